"""An index that names a tensor which its shard lacks."""

from __future__ import annotations

import json
from pathlib import Path

from attacks._tools import show, tensor, write

#: What the error says.
SAYS = "which it does not"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    write(folder / "model-00001-of-00001.safetensors", {"a": tensor(0, 4)}, b"1234")
    index = {
        "metadata": {},
        "weight_map": {
            "a": "model-00001-of-00001.safetensors",
            "b": "model-00001-of-00001.safetensors",
        },
    }
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    return folder


if __name__ == "__main__":
    show(make)

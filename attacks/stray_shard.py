"""A file of tensors in the folder that the index does not name."""

from __future__ import annotations

import json
from pathlib import Path

from attacks._tools import show, tensor, write

#: What the error says.
SAYS = "does not name"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    write(folder / "model-00001-of-00001.safetensors", {"a": tensor(0, 4)}, b"1234")
    write(folder / "model-00002-of-00002.safetensors", {"b": tensor(0, 4)}, b"1234")
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    return folder


if __name__ == "__main__":
    show(make)

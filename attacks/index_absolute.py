"""An index whose shard is an absolute path."""

from __future__ import annotations

import json
from pathlib import Path

from attacks._tools import show, tensor, write

#: What the error says.
SAYS = "no safetensors file in its own folder"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    secret = folder / "secret.safetensors"
    write(secret, {"a": tensor(0, 4)}, b"1234")
    folder = folder / "model"
    folder.mkdir()
    index = {"metadata": {}, "weight_map": {"a": str(secret)}}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    return path


if __name__ == "__main__":
    show(make)

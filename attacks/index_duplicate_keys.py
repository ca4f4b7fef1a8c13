"""An index that names a tensor twice."""

from __future__ import annotations

from pathlib import Path

from attacks._tools import show, tensor, write

#: What the error says.
SAYS = "twice"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    write(folder / "model-00001-of-00001.safetensors", {"a": tensor(0, 4)}, b"1234")
    path = folder / "model.safetensors.index.json"
    name = "model-00001-of-00001.safetensors"
    path.write_text(f'{{"weight_map": {{"a": "{name}", "a": "b.safetensors"}}}}')
    return folder


if __name__ == "__main__":
    show(make)

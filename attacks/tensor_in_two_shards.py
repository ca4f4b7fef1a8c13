"""Two files of a folder that hold a tensor of the same name."""

from __future__ import annotations

from pathlib import Path

from attacks._tools import show, tensor, write

#: What the error says.
SAYS = "both"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    write(folder / "a.safetensors", {"a": tensor(0, 4)}, b"1234")
    write(folder / "b.safetensors", {"a": tensor(0, 4)}, b"5678")
    return folder


if __name__ == "__main__":
    show(make)

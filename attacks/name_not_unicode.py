"""A name with half a character, which JSON can escape and no file can hold otherwise."""

from __future__ import annotations

from pathlib import Path

from attacks._tools import show, tensor, write

#: What the error says.
SAYS = "is not Unicode"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    return write(folder / "a.safetensors", {"\ud800": tensor(0, 4)}, b"1234")


if __name__ == "__main__":
    show(make)

"""A shape whose number of elements is 0 in 64 bits."""

from __future__ import annotations

from pathlib import Path

from attacks._tools import show, tensor, write

#: What the error says.
SAYS = "takes"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    return write(folder / "a.safetensors", {"a": tensor(0, 0, [2**32, 2**32])}, b"")


if __name__ == "__main__":
    show(make)

"""A shape of more elements than there are bytes."""

from __future__ import annotations

from pathlib import Path

from attacks._tools import show, tensor, write

#: What the error says.
SAYS = "takes 4000000 bytes"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    return write(folder / "a.safetensors", {"a": tensor(0, 4, [1000, 1000], "F32")}, b"1234")


if __name__ == "__main__":
    show(make)

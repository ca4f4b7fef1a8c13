"""A header of no bytes."""

from __future__ import annotations

from pathlib import Path

from attacks._tools import show, write

#: What the error says.
SAYS = "does not begin"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    return write(folder / "a.safetensors", b"", b"")


if __name__ == "__main__":
    show(make)

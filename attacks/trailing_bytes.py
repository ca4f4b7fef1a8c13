"""Bytes behind the last tensor."""

from __future__ import annotations

from pathlib import Path

from attacks._tools import show, tensor, write

#: What the error says.
SAYS = "end at"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    return write(folder / "a.safetensors", {"a": tensor(0, 4)}, b"1234" + b"evil")


if __name__ == "__main__":
    show(make)

"""Offsets before the data."""

from __future__ import annotations

from pathlib import Path

from attacks._tools import show, tensor, write

#: What the error says.
SAYS = "data_offsets"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    return write(folder / "a.safetensors", {"a": tensor(-8, 8, [16])}, b"12345678")


if __name__ == "__main__":
    show(make)

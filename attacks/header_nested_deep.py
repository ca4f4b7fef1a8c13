"""A header nested so deep that a recursive parser overflows its stack."""

from __future__ import annotations

from pathlib import Path

from attacks._tools import show, write

#: What the error says.
SAYS = "safetensors file"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    return write(folder / "a.safetensors", b'{"a":' + b"[" * 1_000_000, b"")


if __name__ == "__main__":
    show(make)

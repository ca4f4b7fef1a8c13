"""Bytes that belong to no tensor, in which anything may hide."""

from __future__ import annotations

from pathlib import Path

from attacks._tools import show, tensor, write

#: What the error says.
SAYS = "leaves a hole"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    return write(folder / "a.safetensors", {"a": tensor(0, 4), "b": tensor(8, 12)}, b"123456789012")


if __name__ == "__main__":
    show(make)

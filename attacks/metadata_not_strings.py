"""Metadata that are not strings."""

from __future__ import annotations

from pathlib import Path

from attacks._tools import show, write

#: What the error says.
SAYS = "__metadata__"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    return write(folder / "a.safetensors", {"__metadata__": {"a": [1]}}, b"")


if __name__ == "__main__":
    show(make)

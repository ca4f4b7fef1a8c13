"""A header that says it is longer than the file."""

from __future__ import annotations

from pathlib import Path

from attacks._tools import show, tensor, write

#: What the error says.
SAYS = "longer than the file"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    return write(folder / "a.safetensors", {"a": tensor(0, 4)}, b"1234", length=10_000)


if __name__ == "__main__":
    show(make)

"""A header that says it has 4 GB, which a reader might allocate."""

from __future__ import annotations

from pathlib import Path

from attacks._tools import show, tensor, write

#: What the error says.
SAYS = "longer than 100000000"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    return write(folder / "a.safetensors", {"a": tensor(0, 4)}, b"1234", length=2**32)


if __name__ == "__main__":
    show(make)

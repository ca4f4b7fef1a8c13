"""Two tensors of the same bytes: a small file that takes much memory."""

from __future__ import annotations

from pathlib import Path

from attacks._tools import show, tensor, write

#: What the error says.
SAYS = "overlaps"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    return write(folder / "a.safetensors", {"a": tensor(0, 8), "b": tensor(4, 12)}, b"123456789012")


if __name__ == "__main__":
    show(make)

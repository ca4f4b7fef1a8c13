"""A header that is not UTF-8."""

from __future__ import annotations

from pathlib import Path

from attacks._tools import show, write

#: What the error says.
SAYS = "not JSON"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    return write(folder / "a.safetensors", b'{"\xff\xfe": 1}', b"")


if __name__ == "__main__":
    show(make)

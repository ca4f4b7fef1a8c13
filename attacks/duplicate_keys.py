"""A name twice: checkers may see one tensor, readers the other."""

from __future__ import annotations

from pathlib import Path

from attacks._tools import show, write

#: What the error says.
SAYS = "twice"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    header = b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
    header += b'"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'
    return write(folder / "a.safetensors", header, b"1234")


if __name__ == "__main__":
    show(make)

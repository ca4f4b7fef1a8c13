"""A compressed checkpoint that a changed byte makes a plain one, of streams for weights."""

from __future__ import annotations

from pathlib import Path

from attacks._tools import show, tensor, write

#: What the error says.
SAYS = "describes tensors, but not itself"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    metadata = {"bompressrs": "{}", "compressrs:a": "{}"}
    header = {"__metadata__": metadata, "a": tensor(0, 8)}
    return write(folder / "a.safetensors", header, b"12345678")


if __name__ == "__main__":
    show(make)

"""A shape of true, which Python takes for 1."""

from __future__ import annotations

from pathlib import Path

from attacks._tools import show, tensor, write

#: What the error says.
SAYS = "no list of sizes"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    return write(folder / "a.safetensors", {"a": tensor(0, 1, [True])}, b"1")


if __name__ == "__main__":
    show(make)

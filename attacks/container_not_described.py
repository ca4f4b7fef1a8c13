"""A compressed checkpoint with a tensor that it does not describe."""

from __future__ import annotations

from pathlib import Path

from attacks._tools import container, show, tensor

#: What the error says.
SAYS = "does not describe"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    return container(folder / "a.safetensors", {"a": tensor(0, 8)}, {}, b"12345678")


if __name__ == "__main__":
    show(make)

"""A compressed tensor that is the same as itself: a reader might not return."""

from __future__ import annotations

from pathlib import Path

from attacks._tools import container, show

#: What the error says.
SAYS = "which is not stored"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    description = {"dtype": "F32", "shape": [2], "same": "a"}
    return container(folder / "a.safetensors", {}, {"a": description}, b"")


if __name__ == "__main__":
    show(make)

"""A compressed tensor of some bytes that says it is a terabyte."""

from __future__ import annotations

from pathlib import Path

from attacks._tools import container, show, tensor

#: What the error says.
SAYS = "cannot stand for"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    description = {
        "dtype": "F32", "shape": [2**38], "coding": "planes", "streams": ["values"],
        "bytes": [[8]], "xxh3": "0" * 16,
    }  # fmt: skip
    return container(folder / "a.safetensors", {"a": tensor(0, 8)}, {"a": description}, b"12345678")


if __name__ == "__main__":
    show(make)

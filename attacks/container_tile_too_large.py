"""Tiles of few bytes that say they are of many elements, with a right checksum in front."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from attacks._tools import container, show, tensor
from compressrs import _core

#: What the error says.
SAYS = "cannot stand for"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    # Not too many for all streams together, but for the one of a tile.
    data = bytes(1008)
    checksum = _core.Checksum()
    checksum.update(np.frombuffer(data, np.uint8))
    description = {
        "dtype": "F32", "shape": [1000, 2000], "coding": "planes", "streams": ["values"],
        "tile": 1_999_999, "bytes": [[8], [1000]], "xxh3": f"{checksum.digest():016x}",
    }  # fmt: skip
    return container(folder / "a.safetensors", {"a": tensor(0, 1008)}, {"a": description}, data)


if __name__ == "__main__":
    show(make)

"""A compressed checkpoint of a version that is not known."""

from __future__ import annotations

import json
from pathlib import Path

from attacks._tools import show, write

#: What the error says.
SAYS = "must be of version"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    metadata = {"compressrs": json.dumps({"version": 1000})}
    return write(folder / "a.safetensors", {"__metadata__": metadata}, b"")


if __name__ == "__main__":
    show(make)

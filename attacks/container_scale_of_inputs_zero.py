"""Quantized weights whose scales of inputs, by which they are divided, are 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from attacks._tools import container, show, tensor

#: What the error says.
SAYS = "a scale of inputs is not positive"


def make(folder: Path) -> Path:
    """Make the checkpoint and return what to open."""
    from compressrs import _core
    from compressrs.checkpoint import _coding

    parts = [
        _coding.encode_bytes(np.ones(64, np.uint8), "U8"),
        _coding.encode_bytes(np.ones(8, np.float32).view(np.uint8), "F32"),
        _coding.encode_bytes(np.zeros(8, np.float32).view(np.uint8), "F32"),
    ]
    data = b"".join(parts)
    data += bytes(-len(data) % 8)
    checksum = _core.Checksum()
    checksum.update(np.frombuffer(data, np.uint8))
    description = {
        "dtype": "F32",
        "shape": [8, 8],
        "coding": "scaled",
        "streams": ["codes", "scales", "inputs"],
        "bytes": [[len(part) for part in parts]],
        "codes": "int",
        "bits": 8,
        "xxh3": f"{checksum.digest():016x}",
    }
    path = folder / "a.safetensors"
    return container(path, {"a": tensor(0, len(data))}, {"a": description}, data)


if __name__ == "__main__":
    show(make)

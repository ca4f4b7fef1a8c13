"""Decoding of tiles from their streams, for every coding."""

from __future__ import annotations

from compressrs.checkpoint import _codebook, _coding, _quantized
from compressrs.checkpoint._coding import Bytes, Description, Parts

_DECODERS = {
    "planes": _coding.decode_planes,
    "codebook": _codebook.decode,
    **dict.fromkeys(_coding.QUANTIZED, _quantized.decode),
}


def decode(d: Description, parts: Parts) -> Bytes:
    """Return the decoded bytes of a tile.

    Raises
    ------
    ValueError
        If the streams are damaged or contradict the description.
    """
    return _DECODERS[d.coding](d, parts)

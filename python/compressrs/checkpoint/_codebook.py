"""Weight sharing: one-dimensional k-means codebooks (Han et al., arXiv 1510.00149)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressrs import _core
from compressrs._arrays import dtype_of
from compressrs.checkpoint import _coding
from compressrs.checkpoint._coding import Bytes, Description, Parts, Tile
from compressrs.checkpoint._format import DTYPES

#: Maximum number of steps of Lloyd's algorithm.
MAX_STEPS = 100

#: Number of values by which it is seen that there are more than a codebook holds.
_SEEN = 1 << 14


def levels(values: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """Return at most `k` ascending levels: the values, if they are so few, or k-means of them.

    Values that were shared before, and perhaps trained, so stay the same.
    """
    if np.unique(values[:: max(values.size // _SEEN, 1)]).size <= k:
        distinct = np.unique(values)
        if distinct.size <= k:
            return distinct
    found = np.empty((1, k), np.float32)
    matrix = np.ascontiguousarray(values).reshape(1, -1)
    _core.kmeans(matrix, (1, values.size), False, MAX_STEPS, found)
    return np.unique(found)


def encode(x: NDArray[Any], dtype: str, streams: tuple[str, ...], entries: int) -> Tile:
    """Encode a tile with a codebook of at most `entries` values, each by the nearest.

    With positions, zeros are stored separately as code 0, and the other codes represent
    non-zeros.
    """
    kind = dtype_of(DTYPES[dtype].numpy or "")
    values = x.astype(np.float32)
    sparse = streams[0] in _coding.POSITIONS
    kept = values[values != 0] if sparse else values
    book = np.unique(levels(kept, entries - sparse).astype(kind).astype(np.float32))
    if sparse:
        book = np.concatenate([[np.float32(0)], book[book != 0]])
    codes = np.zeros(values.size, np.uint8)
    if book.size > sparse:
        middles = (book[sparse + 1 :] + book[sparse:-1]) / 2
        codes = (np.searchsorted(middles, values) + sparse).astype(np.uint8)
    stored = np.zeros(entries, kind)
    stored[: book.size] = book.astype(kind)
    tail = _coding.encode_bytes(stored.view(np.uint8), dtype)
    if not sparse:
        return Tile((_coding.encode_bytes(codes, "U8"), tail))
    codes[values == 0] = 0
    places, kept_codes, counts = _coding.split_zeros(codes, streams)
    # Code 0 does not occur among the non-zeros, which may save a bit.
    return Tile((places, _coding.encode_bytes(kept_codes - np.uint8(1), "U8"), tail), counts)


def decode(d: Description, parts: Parts) -> Bytes:
    """Decode a tile that `encode` encoded."""
    entries = d.options.get("entries")
    if type(entries) is not int or not 1 <= entries <= 256 or d.dtype not in _coding.WEIGHTS:
        raise ValueError(f"a codebook must have 1 to 256 entries of floats, got {entries!r}")
    kind = dtype_of(DTYPES[d.dtype].numpy or "")
    stored = _coding.decode_bytes(parts.streams["codebook"], d.dtype, entries * kind.itemsize).view(
        kind
    )
    if parts.counts is None:
        codes = _coding.decode_bytes(parts.streams["codes"], "U8", parts.size)
        _require_below(codes, entries)
    else:
        where, places = parts.positions()
        kept = _coding.decode_bytes(parts.streams["codes"], "U8", parts.counts[1])
        _require_below(kept, entries - 1)
        parts.require_positions(places, kept.size)
        codes = _coding.merge_zeros(places, kept + np.uint8(1), (where,), parts.size, 1)
    return np.take(stored, codes).view(np.uint8)


def _require_below(codes: Bytes, entries: int) -> None:
    if codes.size and int(codes.max()) >= entries:
        raise ValueError(f"the stream is damaged: a code leads beyond {entries} entries")

"""Inspection and comparison of checkpoints."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressrs._checks import file_path
from compressrs.checkpoint import _coding, _format
from compressrs.checkpoint._format import DTYPES, FLOATS
from compressrs.checkpoint.reader import PLAIN_TILE, Checkpoint


def info(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return statistics of each tensor of a checkpoint.

    Parameters
    ----------
    path : path
        As for `open`.

    Returns
    -------
    list of dict
        ``name``, ``dtype``, ``shape``, ``coding``, ``bytes`` (decoded), ``stored``
        (in the file), ``min`` and ``max`` (None if there are no numbers), ``zeros`` (a
        fraction), ``entropy`` (bits per element with lossless coding), ``shared`` (whether
        it is stored as another tensor).

    Raises
    ------
    OSError
        If something cannot be read.
    ValueError
        If something is damaged.
    """
    with Checkpoint(path) as c:
        return [_row(c, name) for name in c]


def _row(c: Checkpoint, name: str) -> dict[str, Any]:
    d = c.description(name)
    bits = DTYPES[d.dtype].bits
    row: dict[str, Any] = {
        "name": name,
        "dtype": d.dtype,
        "shape": list(d.shape),
        "coding": "shared" if c.is_alias(name) else d.coding,
        "bytes": d.size * bits // 8,
        "stored": c.nbytes(name),
        "min": None,
        "max": None,
        "zeros": 0.0,
        "entropy": 0.0,
        "shared": c.is_alias(name),
    }
    if d.size == 0:
        return row
    low, high, nonzero, coded = math.inf, -math.inf, 0, 0
    for _, data in c.tiles(name):
        coded += len(_coding.encode_bytes(data, d.dtype))
        if DTYPES[d.dtype].numpy is None or d.dtype == "C64":
            continue
        x = _numbers(c, name, data)
        nonzero += int(np.count_nonzero(x))
        x = x[~np.isnan(x)] if x.dtype.kind == "f" else x
        if x.size:
            low, high = min(low, x.min().item()), max(high, x.max().item())
    row["entropy"] = 8 * coded / d.size
    if DTYPES[d.dtype].numpy is not None and d.dtype != "C64":
        row["zeros"] = 1 - nonzero / d.size
        if low <= high:
            row["min"], row["max"] = low, high
    return row


def _numbers(c: Checkpoint, name: str, data: _coding.Bytes) -> NDArray[Any]:
    """Return a tile as an array with a dtype that NumPy supports."""
    x = data.view(c.numpy_dtype(name))
    return x if x.dtype.isbuiltin == 1 and x.dtype.kind in "fiub" else x.astype(np.float32)


def diff(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Compare the tensors of two checkpoints, tile by tile.

    Parameters
    ----------
    a, b : path
        As for `open`.

    Returns
    -------
    list of dict
        ``name``; ``only_in`` (``"a"``, ``"b"`` or None); ``changed``, the fraction of
        elements that differ (None if there is nothing to compare, 1 for another dtype than a
        floating-point one); and, for numeric tensors,
        ``max_error``, ``relative_error`` ``|a - b| / |a|`` in the Euclidean norm, and
        ``cosine``, each None where undefined.

    Raises
    ------
    OSError
        If something cannot be read.
    ValueError
        If something is damaged.
    """
    with Checkpoint(file_path(a, "a")) as first, Checkpoint(file_path(b, "b")) as second:
        rows = []
        for name in (*first, *(name for name in second if name not in first)):
            row: dict[str, Any] = {
                "name": name,
                "only_in": None,
                "changed": None,
                "max_error": None,
                "relative_error": None,
                "cosine": None,
            }
            if name not in first or name not in second:
                row["only_in"] = "a" if name in first else "b"
            elif first.shape(name) == second.shape(name):
                row.update(_difference(first, second, name))
            rows.append(row)
        return rows


def _difference(first: Checkpoint, second: Checkpoint, name: str) -> dict[str, Any]:
    kinds = first.dtype(name), second.dtype(name)
    floats = set(kinds) <= set(FLOATS)
    if not floats and kinds[0] != kinds[1]:
        return {"changed": 1.0 if math.prod(first.shape(name)) else 0.0}
    changed, largest = 0, 0.0
    aa = bb = ab = squares = 0.0
    for x, y in zip(_chunks(first, name, floats), _chunks(second, name, floats), strict=True):
        if not floats:
            changed += x.size - int(np.count_nonzero(x == y))
            continue
        p, q = x.astype(np.float64), y.astype(np.float64)
        changed += p.size - int(np.count_nonzero((p == q) | (np.isnan(p) & np.isnan(q))))
        with np.errstate(invalid="ignore"):
            error = np.abs(p - q)
        largest = max(largest, float(error.max()))
        aa, bb = aa + float(p @ p), bb + float(q @ q)
        ab, squares = ab + float(p @ q), squares + float(error @ error)
    size = math.prod(first.shape(name))
    if not floats:
        # Of bytes, where elements are less than one.
        size = min(size, _format.tensor_bytes(kinds[0], first.shape(name)))
    found: dict[str, Any] = {"changed": changed / size if size else 0.0}
    if floats:
        found["max_error"] = largest
        found["relative_error"] = math.sqrt(squares / aa) if aa else None
        found["cosine"] = ab / math.sqrt(aa * bb) if aa and bb else None
    return found


def _chunks(c: Checkpoint, name: str, floats: bool) -> Iterator[NDArray[Any]]:
    """Yield a tensor's elements in chunks of the same size for every checkpoint.

    What is not compared as numbers is words of as many bits.
    """
    bits = DTYPES[c.dtype(name)].bits
    kind = c.numpy_dtype(name) if floats else np.dtype(f"u{max(bits // 8, 1)}")
    rest = np.empty(0, kind)
    for _, data in c.tiles(name):
        x = data.view(kind)
        rest = np.concatenate([rest, x]) if rest.size else x
        while rest.size >= PLAIN_TILE:
            yield rest[:PLAIN_TILE]
            rest = rest[PLAIN_TILE:]
    if rest.size:
        yield rest

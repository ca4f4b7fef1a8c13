"""Patterns as sets of places, and what is stored at them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from compressrs._arrays import Array

if TYPE_CHECKING:
    from compressrs.sparse.csr import CSRMatrix


def keys(matrix: CSRMatrix) -> npt.NDArray[np.int64]:
    """Return a number for the place of each entry: they ascend row by row."""
    key: npt.NDArray[np.int64] = matrix.rows() * max(matrix.shape[1], 1) + matrix.indices
    return key


def union(a: CSRMatrix, b: CSRMatrix) -> npt.NDArray[np.int64]:
    """Return the keys of the places that either stores, ascending."""
    require_shape(a, b)
    return np.union1d(keys(a), keys(b))


def intersection(a: CSRMatrix, b: CSRMatrix) -> npt.NDArray[np.int64]:
    """Return the keys of the places that both store, ascending."""
    require_shape(a, b)
    return np.intersect1d(keys(a), keys(b))


def require_shape(a: CSRMatrix, b: CSRMatrix) -> None:
    """Raise ValueError unless the shapes agree."""
    if a.shape != b.shape:
        raise ValueError(f"shapes must agree, got {a.shape} and {b.shape}")


def carried(values: Array, places: npt.NDArray[np.int64], fill: float) -> npt.NDArray[Any]:
    """Return the values at some places, `fill` where the place is -1."""
    if values.size == 0:
        return np.full(places.shape, fill, values.dtype)
    # Clipped, -1 is 0.
    out: Array = values.take(places, mode="clip")
    out[places < 0] = fill
    return out

"""Set operations on sparsity patterns, and moving values between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from compressrs._arrays import Array

if TYPE_CHECKING:
    from compressrs.sparse.csr import CSRMatrix


def keys(matrix: CSRMatrix) -> npt.NDArray[np.int64]:
    """Return the row-major flat index of each entry."""
    key: npt.NDArray[np.int64] = matrix.rows() * max(matrix.shape[1], 1) + matrix.indices
    return key


def union(a: CSRMatrix, b: CSRMatrix) -> npt.NDArray[np.int64]:
    """Return the ascending keys of the union of two patterns."""
    require_shape(a, b)
    return np.union1d(keys(a), keys(b))


def intersection(a: CSRMatrix, b: CSRMatrix) -> npt.NDArray[np.int64]:
    """Return the ascending keys of the intersection of two patterns."""
    require_shape(a, b)
    return np.intersect1d(keys(a), keys(b))


def require_shape(a: CSRMatrix, b: CSRMatrix) -> None:
    """Raise ValueError unless the shapes agree."""
    if a.shape != b.shape:
        raise ValueError(f"shapes must agree, got {a.shape} and {b.shape}")


def carried(values: Array, places: npt.NDArray[np.int64], fill: float) -> npt.NDArray[Any]:
    """Return ``values[places]``, with `fill` where the index is -1."""
    if values.size == 0:
        return np.full(places.shape, fill, values.dtype)
    # -1 is clipped to 0; `fill` replaces what it reads.
    out: Array = values.take(places, mode="clip")
    out[places < 0] = fill
    return out

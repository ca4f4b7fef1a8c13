"""Set operations on sparsity patterns, and moving values between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from compressrs._arrays import Array

if TYPE_CHECKING:
    from compressrs.sparse.csr import CSRMatrix


class Places:
    """Keys of the entries of matrices of one shape, which ascend in row-major order.

    The key is the flat index, ``row * columns + column``. Where that overflows int64,
    columns are replaced by their ranks among the columns that occur.

    Parameters
    ----------
    *matrices : CSRMatrix
    """

    def __init__(self, *matrices: CSRMatrix) -> None:
        rows, columns = matrices[0].shape
        self._width = max(columns, 1)
        self._columns: npt.NDArray[Any] | None = None
        if rows * self._width > np.iinfo(np.int64).max:
            self._columns = np.unique(np.concatenate([matrix.indices for matrix in matrices]))
            self._width = max(self._columns.size, 1)

    def keys(self, matrix: CSRMatrix) -> npt.NDArray[np.int64]:
        """Return the key of each entry."""
        column: Array = matrix.indices
        if self._columns is not None:
            column = np.searchsorted(self._columns, column)
        key: npt.NDArray[np.int64] = matrix.rows() * self._width + column
        return key

    def split(
        self, key: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the rows and columns of keys."""
        row, column = np.divmod(key, self._width)
        return row, column if self._columns is None else self._columns[column].astype(np.int64)


def union(a: CSRMatrix, b: CSRMatrix) -> tuple[Places, npt.NDArray[np.int64]]:
    """Return the ascending keys of the union of two patterns."""
    require_shape(a, b)
    places = Places(a, b)
    return places, np.union1d(places.keys(a), places.keys(b))


def intersection(a: CSRMatrix, b: CSRMatrix) -> tuple[Places, npt.NDArray[np.int64]]:
    """Return the ascending keys of the intersection of two patterns."""
    require_shape(a, b)
    places = Places(a, b)
    return places, np.intersect1d(places.keys(a), places.keys(b))


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

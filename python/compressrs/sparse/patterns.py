"""Flat indices of the entries of sparsity patterns, and moving values between patterns."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs._arrays import Array


class FlatIndex:
    """Flat indices of entries of matrices of one shape, which ascend in row-major order.

    The flat index is ``row * columns + column``. Where that overflows int64, columns are
    replaced by their ranks among the columns that occur.

    Parameters
    ----------
    shape : (int, int)
    *columns : array of int
        The columns of the entries of each matrix.
    """

    def __init__(self, shape: tuple[int, int], *columns: Array) -> None:
        self._width = max(shape[1], 1)
        self._columns: npt.NDArray[Any] | None = None
        if shape[0] * self._width > np.iinfo(np.int64).max:
            self._columns = np.unique(np.concatenate(columns))
            self._width = max(self._columns.size, 1)

    def ravel(self, rows: npt.NDArray[np.int64], columns: Array) -> npt.NDArray[np.int64]:
        """Return the flat index of each entry."""
        if self._columns is not None:
            columns = np.searchsorted(self._columns, columns)
        flat: npt.NDArray[np.int64] = rows * self._width + columns
        return flat

    def unravel(
        self, flat: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the rows and columns of flat indices."""
        row, column = np.divmod(flat, self._width)
        return row, column if self._columns is None else self._columns[column].astype(np.int64)


def carried(values: Array, positions: npt.NDArray[np.int64], fill: float) -> npt.NDArray[Any]:
    """Return ``values[positions]``, with `fill` where the position is -1."""
    if values.size == 0:
        return np.full(positions.shape, fill, values.dtype)
    # -1 is clipped to 0; `fill` replaces what it reads.
    out: Array = values.take(positions, mode="clip")
    out[positions < 0] = fill
    return out

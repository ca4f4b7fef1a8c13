"""n:m sparse storage: n values of every m columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, Shared, as_array
from compressrs._checks import whole
from compressrs.sparse.base import SparseMatrix, as_shape, dense_weight, immutable
from compressrs.sparse.csr import CSRMatrix


class NMMatrix(SparseMatrix):
    """A matrix that stores `n` of every `m` columns, such as 2:4.

    Entries are spread evenly over rows and columns, so the work is balanced between
    threads. An entry takes its value and one byte; its column is also cached for the
    products, in 2 bytes if there are at most 32,768 columns.

    Parameters
    ----------
    arrays : pair of array
        ``(data, positions)``, both of shape (rows, columns // m * n): data float32,
        float64, float16 or bfloat16, C-contiguous, used without copying; positions uint8,
        copied: the column of each value within its group of m, ascending in each group.
    shape : pair of int
        Rows and columns, the latter a multiple of `m`.
    n, m : int, default 2 and 4
        ``1 <= n <= m <= 256``.

    Attributes
    ----------
    data, shape, nnz, dtype, T
        As in `CSRMatrix`.
    positions : array of uint8
        As above; immutable.
    n, m : int
    indices, indptr : array
        Of the CSR format, see `to_csr`.

    Raises
    ------
    TypeError
        If an array is of another dtype.
    ValueError
        If the arrays do not describe a matrix of this shape.

    References
    ----------
    Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv 2104.08378.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> A = cr.sparse.NMMatrix.from_dense(np.array([[1.0, -3.0, 2.0, 0.5]]), n=2, m=4)
    >>> A.to_dense()
    array([[ 0., -3.,  2.,  0.]])
    >>> A.data, A.positions
    (array([[-3.,  2.]]), array([[1, 2]], dtype=uint8))
    >>> A @ np.array([1.0, 1.0, 10.0, 1.0])
    array([17.])
    """

    format = "nm"

    def __init__(
        self, arrays: tuple[Array, Array], shape: tuple[int, int], n: int = 2, m: int = 4
    ) -> None:
        try:
            data, positions = arrays
        except (TypeError, ValueError):
            raise TypeError("arrays must be a pair (data, positions)") from None
        data, positions = as_array(data, "data"), as_array(positions, "positions")
        self.n, self.m = _pair(n, m)
        self._shape = as_shape(shape)
        rows, columns = self._shape
        if columns % self.m:
            raise ValueError(f"shape must have a multiple of m={self.m} columns, got {self._shape}")
        need = (rows, columns // self.m * self.n)
        for name, array in (("data", data), ("positions", positions)):
            if array.shape != need:
                raise ValueError(
                    f"{name} must have shape {need} for shape={self._shape}, n={self.n} and "
                    f"m={self.m}, got {array.shape}"
                )
        if positions.dtype != np.uint8:
            raise TypeError(f"positions must have dtype uint8, got {positions.dtype}")
        if not data.flags.c_contiguous:
            raise ValueError("data must be C-contiguous (make it so with np.ascontiguousarray)")
        groups = positions.reshape(rows, columns // self.m, self.n)
        ascend = (groups[..., :-1] < groups[..., 1:]).all()
        if not ascend or (positions.size and positions.max() >= self.m):
            raise ValueError(f"positions must ascend in each group and be below {self.m}")
        self.positions = immutable(positions.reshape(-1)).reshape(need)
        left = np.repeat(np.arange(0, columns, self.m), self.n)
        short = columns <= 2**15
        indices = (positions + left).astype(np.int16 if short else np.int32).reshape(-1)
        indptr = np.arange(rows + 1) * need[1]
        indptr = indptr.astype(np.int32 if indptr[-1] < 2**31 else np.int64)
        self._parts = data, immutable(indices), immutable(indptr)
        self._check()

    def _check(self) -> None:
        data, indices, indptr = self._parts
        self._core = _core.Sparse((data.reshape(-1), indices, indptr), self._shape, (1, 1))

    def __reduce__(self) -> tuple[Any, ...]:
        arrays = Shared.of(self.data), self.positions
        return type(self), (arrays, self._shape, self.n, self.m)

    @classmethod
    def from_dense(cls, w: Array, n: int = 2, m: int = 4, *, mask: Array | None = None) -> NMMatrix:
        """Return a matrix of the `n` largest magnitudes of every `m` columns, or of a mask.

        Parameters
        ----------
        w : array, shape (rows, columns)
            float32, float64, float16 or bfloat16, its columns a multiple of `m`. Among equal
            magnitudes the first are dropped; NaN counts as the largest.
        n, m : int, default 2 and 4
        mask : array of bool, shape (rows, columns), optional
            True at the `n` of every `m` columns to store.

        Raises
        ------
        TypeError
            If `w` is not an array of such a dtype, or `mask` not of bool.
        ValueError
            If `w` does not have two axes, the second a multiple of `m`, or `mask` does not
            keep `n` of every `m`.
        """
        w = dense_weight(w)
        n, m = _pair(n, m)
        if w.ndim != 2 or w.shape[1] % m:
            raise ValueError(f"w must have two axes, the second a multiple of m={m}, got {w.shape}")
        groups = w.reshape(w.shape[0], w.shape[1] // m, m)
        if mask is None:
            kept: Array = np.empty(groups.shape, np.bool_)
            _core.mask_n_of_m(groups, "w", n, m, False, kept)
        else:
            mask = as_array(mask, "mask")
            if mask.dtype != np.bool_:
                raise TypeError(f"mask must have dtype bool, got {mask.dtype}")
            if mask.shape != w.shape:
                raise ValueError(f"mask must have the shape {w.shape} of w, got {mask.shape}")
            kept = mask.reshape(groups.shape)
            if (np.count_nonzero(kept, axis=2) != n).any():
                raise ValueError(f"mask must keep {n} of each {m} columns")
        positions = np.nonzero(kept)[2].reshape(*groups.shape[:2], n)
        flat = (w.shape[0], groups.shape[1] * n)
        data = np.take_along_axis(groups, positions, axis=2).reshape(flat)
        arrays = np.ascontiguousarray(data), positions.astype(np.uint8).reshape(flat)
        return cls(arrays, w.shape, n, m)

    @classmethod
    def _of_parts(
        cls, parts: tuple[Array, ...], shape: tuple[int, int], **options: int
    ) -> NMMatrix:
        data, indices, _ = parts
        positions = (indices % options["m"]).astype(np.uint8).reshape(data.shape)
        return cls((data, positions), shape, **options)

    def _options(self) -> dict[str, int]:
        return {"n": self.n, "m": self.m}

    def with_data(self, data: Array) -> NMMatrix:
        """Return a matrix with other values and the same pattern."""
        return NMMatrix((data, self.positions), self._shape, self.n, self.m)

    def copy(self) -> NMMatrix:
        """Return a copy of the matrix."""
        return self.with_data(self.data.copy())

    def to_csr(self) -> CSRMatrix:
        """Return the matrix in CSR format; the values are shared."""
        data, indices, indptr = self._parts
        return CSRMatrix((data.reshape(-1), indices, indptr), self._shape)

    def _flat(self, out: Array) -> npt.NDArray[Any]:
        if out.shape != self.data.shape or not out.flags.c_contiguous:
            raise ValueError(
                f"out must be C-contiguous of the shape {self.data.shape} of data, got {out.shape}"
            )
        return out.reshape(-1)


def _pair(n: int, m: int) -> tuple[int, int]:
    n, m = whole(n, "n", 1), whole(m, "m", 1)
    if not n <= m <= 256:
        raise ValueError(f"n must be at most m, and m at most 256, got {n} and {m}")
    return n, m

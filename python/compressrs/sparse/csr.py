"""Compressed sparse row storage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, as_array, compute_dtype, is_half
from compressrs._checks import choice, converted, number, threshold_of
from compressrs._typing import ScipyCSR, ScipyCSRArray
from compressrs.sparse.base import SparseMatrix, dense_weight, immutable, scipy_sparse
from compressrs.sparse.patterns import FlatIndex, carried


class CSRMatrix(SparseMatrix):
    """A matrix in compressed sparse row format.

    The entries of row ``i`` are ``data[indptr[i]:indptr[i + 1]]``, in the columns
    ``indices[indptr[i]:indptr[i + 1]]``. Indices may be unsorted and may repeat;
    repeated entries are summed (see `canonical`). The arrays are used without copying, and
    `data` is an ordinary array that an optimizer can train.

    Parameters
    ----------
    arrays : tuple of array
        ``(data, indices, indptr)``: data float32, float64, float16 or bfloat16 (of ml_dtypes),
        indices int16, int32 or int64, indptr int32 or int64; one axis each, contiguous.
    shape : pair of int
        Rows and columns.

    Attributes
    ----------
    data, indices, indptr : array
        As above. Writable index arrays are checked again in every product. Those made by
        `from_dense`, `copy` and the methods that return a new matrix are immutable and
        checked once.
    shape : pair of int
    nnz : int
        Number of stored entries.
    dtype : dtype
        That of `data`.
    T : TransposedMatrix
        The transpose, a view that shares the arrays.

    Raises
    ------
    TypeError
        If an array is of another dtype.
    ValueError
        If the arrays do not describe a matrix of this shape.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> A = cr.sparse.CSRMatrix.from_dense(np.array([[0.0, 2.0], [0.0, 0.0], [3.0, 0.0]]))
    >>> A
    <CSRMatrix of shape (3, 2), float64, with 2 stored entries>
    >>> A @ np.array([[1.0], [10.0]])
    array([[20.],
           [ 0.],
           [ 3.]])
    >>> np.array([[1.0, 10.0]]) @ A.T
    array([[20.,  0.,  3.]])
    >>> A.matmul(np.array([1.0, 10.0]), bias=np.array([0.5, -1.0, -4.0]), relu=True)
    array([20.5,  0. ,  0. ])
    """

    format = "csr"

    @classmethod
    def from_dense(
        cls,
        w: Array,
        threshold: float = 0.0,
        *,
        mask: Array | None = None,
        index_dtype: str | None = None,
    ) -> CSRMatrix:
        """Return a matrix of the non-zeros at or above a threshold, or of what a mask keeps.

        Parameters
        ----------
        w : array, shape (rows, columns)
            float32, float64, float16 or bfloat16. Copied first if not C-contiguous.
        threshold : float, default 0.0
            Entries with ``|w| < threshold`` are dropped, the threshold being rounded to the dtype
            of `w`, as NumPy does. NaN is stored.
        mask : array of bool, shape (rows, columns), optional
            Entries where it is True are stored, zeros included: a pattern to train in.
            Replaces `threshold`.
        index_dtype : {"int16"}, optional
            Store indices in 2 bytes; requires at most 32,768 columns.

        Returns
        -------
        CSRMatrix
            With indices in ascending order: int16 if requested, else int32 if they fit,
            else int64.

        Raises
        ------
        TypeError
            If `w` is not an array of such a dtype, or `mask` not of bool.
        ValueError
            If `w` does not have two axes, `threshold` is negative or not finite, both it
            and a mask are given, or there are too many columns for the index dtype.
        """
        w = dense_weight(w)
        threshold = threshold_of(w.dtype, threshold)
        if mask is not None:
            mask = as_array(mask, "mask")
            if threshold:
                raise ValueError("give either threshold or mask, not both")
        if index_dtype is not None:
            choice(index_dtype, "index_dtype", ("int16",))
        wide = w.astype(np.float32) if is_half(w.dtype) else w
        parts = _core.csr_from_dense(wide, threshold, mask, index_dtype is not None)
        matrix = cls(parts, w.shape)
        return matrix.astype(w.dtype) if is_half(w.dtype) else matrix

    @classmethod
    def from_scipy(cls, matrix: ScipyCSR) -> CSRMatrix:
        """Wrap a SciPy CSR matrix without copying its arrays.

        Since the arrays stay writable, they are checked in every product; `copy` returns a
        matrix whose pattern is checked once.

        Raises
        ------
        TypeError
            If it is not in CSR format (convert it with ``.tocsr()``).
        """
        if getattr(matrix, "format", None) != "csr":
            got = getattr(matrix, "format", type(matrix).__name__)
            raise TypeError(f"matrix must be a SciPy CSR matrix (use .tocsr()), got {got}")
        return cls((matrix.data, matrix.indices, matrix.indptr), matrix.shape)

    def to_scipy(self) -> ScipyCSRArray:
        """Return a SciPy CSR array that shares the arrays.

        Only int16 indices are copied, since SciPy does not support them.

        Raises
        ------
        ModuleNotFoundError
            If SciPy is not installed.
        TypeError, ValueError
            If the arrays have been changed so that they describe no matrix of this shape.
        TypeError
            If `dtype` is float16 or bfloat16, which SciPy does not support.
        """
        data, indices, indptr = self._checked_parts()
        if indices.dtype != indptr.dtype:
            indices = indices.astype(indptr.dtype)
        return scipy_sparse(data.dtype).csr_array(
            (data, indices, indptr), shape=self.shape, copy=False
        )

    def pattern(self) -> npt.NDArray[np.bool_]:
        """Return a boolean array that is True where an entry is stored."""
        mask = np.zeros(self._shape, np.bool_)
        mask[self.rows(), self.indices] = True
        return mask

    def __getitem__(self, rows: npt.ArrayLike | slice) -> CSRMatrix:
        """Return some rows, in the order of their numbers: an embedding that is stored sparse.

        Parameters
        ----------
        rows : array of int or bool, or slice
            Numbers may repeat; negative ones count from the end.

        Returns
        -------
        CSRMatrix
            A copy.

        Raises
        ------
        TypeError
            If they are no integers.
        IndexError
            If one names no row.

        Examples
        --------
        >>> import numpy as np, compressrs as cr
        >>> A = cr.sparse.CSRMatrix.from_dense(np.diag([1.0, 2.0, 3.0]))
        >>> A[[2, 0, 2]].to_dense()
        array([[0., 0., 3.],
               [1., 0., 0.],
               [0., 0., 3.]])
        """
        if not isinstance(rows, slice):
            rows = converted(rows, "rows")
            if rows.ndim != 1 or (rows.dtype.kind not in "iub" and rows.size):
                raise TypeError(
                    "rows must be a slice or an array of integers or booleans of one axis, got "
                    f"{rows.dtype} of shape {rows.shape}"
                )
            rows = rows if rows.size else rows.astype(np.intp)
        ids = np.arange(self.shape[0])[rows]
        starts = self.indptr[ids].astype(np.int64)
        lengths = self.indptr[ids + 1] - starts
        indptr = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(lengths, out=indptr[1:])
        positions = np.repeat(starts - indptr[:-1], lengths) + np.arange(indptr[-1])
        kind = self.indptr.dtype if indptr[-1] <= np.iinfo(self.indptr.dtype).max else np.int64
        parts = self.data[positions], self.indices[positions], indptr.astype(kind)
        return CSRMatrix(parts, (len(ids), self.shape[1]))

    def rows(self) -> npt.NDArray[np.int64]:
        """Return the row of each entry."""
        indptr = self._checked_parts()[2]
        return np.repeat(np.arange(self._shape[0]), np.diff(indptr))

    @property
    def has_sorted_indices(self) -> bool:
        """Whether the columns of each row ascend, which many other libraries require."""
        flat = self._flat_indices()
        return bool(np.all(flat[:-1] <= flat[1:]))

    @property
    def has_canonical_format(self) -> bool:
        """Whether the columns of each row ascend without repetition."""
        flat = self._flat_indices()
        return bool(np.all(flat[:-1] < flat[1:]))

    def _flat_indices(self) -> npt.NDArray[np.int64]:
        return FlatIndex(self._shape, self.indices).ravel(self.rows(), self.indices)

    def canonical(self) -> CSRMatrix:
        """Return the matrix with ascending columns and repeated entries summed.

        Returns itself if it is canonical already. Stored zeros are kept.
        """
        if self.has_canonical_format:
            return self
        index = FlatIndex(self._shape, self.indices)
        flat = index.ravel(self.rows(), self.indices)
        order = np.argsort(flat, kind="stable")
        unique, first = np.unique(flat[order], return_index=True)
        data = self.data[order].astype(compute_dtype(self.dtype), copy=False)
        data = np.add.reduceat(data, first) if first.size else data
        return _from_flat(index, unique, data.astype(self.dtype, copy=False), self)

    def transpose(self) -> CSRMatrix:
        """Return the transpose as a new CSR matrix with ascending indices.

        `T` costs nothing and is as fast in most products. Use this one for many products with
        the same values, or to pass the transpose to another library.
        """
        indices, indptr, positions = self._core.transpose()
        rows, columns = self._shape
        return CSRMatrix((self.data[positions], indices, indptr), (columns, rows))

    def scale_rows(self, factors: Array) -> CSRMatrix:
        """Return the matrix with row ``i`` scaled by ``factors[i]``; the pattern is shared."""
        return self.with_data(self.data * self._factors(factors, 0)[self.rows()])

    def scale_columns(self, factors: Array) -> CSRMatrix:
        """Return the matrix with column ``j`` scaled by ``factors[j]``; the pattern is shared."""
        return self.with_data(self.data * self._factors(factors, 1)[self.indices])

    def _factors(self, factors: Array, axis: int) -> Array:
        factors = as_array(factors, "factors")
        if factors.shape != self._shape[axis : axis + 1]:
            raise ValueError(
                f"factors must have shape {self._shape[axis : axis + 1]}, got {factors.shape}"
            )
        if factors.dtype != self.dtype:
            raise TypeError(f"factors must have dtype {self.dtype} like data, got {factors.dtype}")
        return factors

    def with_pattern(self, pattern: CSRMatrix, fill: float = 0.0) -> CSRMatrix:
        """Return the values moved to another pattern, with `fill` at new positions.

        The pattern's arrays are shared. To move an optimizer's state, see `carry`.

        Raises
        ------
        ValueError
            If the shapes differ, or a pattern has repeated entries.
        """
        _require_csr(pattern, "pattern")
        return pattern.with_data(carry(self.data, self, pattern, fill))

    def __add__(self, other: CSRMatrix) -> CSRMatrix:
        """Return the sum, on the union of both patterns."""
        if not isinstance(other, CSRMatrix):
            return NotImplemented
        if self.dtype != other.dtype:
            raise TypeError(f"dtypes must agree, got {self.dtype} and {other.dtype}")
        a, b = self.canonical(), other.canonical()
        both = self.union(other)
        return both.with_data(carry(a.data, a, both) + carry(b.data, b, both))

    def union(self, other: CSRMatrix) -> CSRMatrix:
        """Return the union of both patterns, with this matrix's values and 0 elsewhere."""
        _require_csr(other, "other")
        a = self.canonical()
        return a.with_pattern(_combined(a, other, np.union1d))

    def intersection(self, other: CSRMatrix) -> CSRMatrix:
        """Return the intersection of both patterns, with this matrix's values."""
        _require_csr(other, "other")
        a = self.canonical()
        return a.with_pattern(_combined(a, other, np.intersect1d))


def carry(values: Array, old: CSRMatrix, new: CSRMatrix, fill: float = 0.0) -> npt.NDArray[Any]:
    """Return per-entry values of one pattern, moved to another pattern.

    When a layer's pattern changes during training, this moves what is stored per entry,
    such as an optimizer's moments.

    Parameters
    ----------
    values : array, shape (old.nnz,)
        One for each entry of `old`; any dtype.
    old, new : CSRMatrix
        Of the same shape, in any order, without repeated entries.
    fill : float, default 0.0
        For entries of `new` that are not in `old`.

    Returns
    -------
    array, shape (new.nnz,)

    Raises
    ------
    ValueError
        If shapes disagree or entries repeat.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> old = cr.sparse.CSRMatrix.from_dense(np.array([[1.0, 2.0, 0.0]]))
    >>> new = cr.sparse.CSRMatrix.from_dense(np.array([[0.0, 1.0, 1.0]]))
    >>> cr.sparse.carry(old.data, old, new)
    array([2., 0.])
    """
    values = as_array(values, "values")
    _require_csr(old, "old")
    _require_csr(new, "new")
    fill = number(fill, "fill", finite=False)
    _require_shape(old, new)
    if values.shape != (old.nnz,):
        raise ValueError(f"values must have shape {(old.nnz,)}, got {values.shape}")
    return carried(values, old._core.locate(new._core), fill)


def _require_csr(matrix: object, name: str) -> None:
    if not isinstance(matrix, CSRMatrix):
        raise TypeError(f"{name} must be a CSRMatrix, got {type(matrix).__name__}")


def _require_shape(a: CSRMatrix, b: CSRMatrix) -> None:
    if a.shape != b.shape:
        raise ValueError(f"shapes must agree, got {a.shape} and {b.shape}")


def _combined(
    a: CSRMatrix, b: CSRMatrix, operation: Callable[[Array, Array], npt.NDArray[np.int64]]
) -> CSRMatrix:
    """Return the pattern of a set operation on the flat indices of two patterns."""
    _require_shape(a, b)
    index = FlatIndex(a.shape, a.indices, b.indices)
    flat = operation(index.ravel(a.rows(), a.indices), index.ravel(b.rows(), b.indices))
    return _from_flat(index, flat, np.zeros(flat.size, a.dtype), a)


def _fitting(numbers: npt.NDArray[np.int64], dtype: np.dtype[Any]) -> Array:
    """Return numbers in this dtype of integers, or in int64 where it does not hold them all."""
    largest = numbers.max(initial=0)
    return numbers.astype(dtype if largest <= np.iinfo(dtype).max else np.int64)


def _from_flat(
    index: FlatIndex, flat: npt.NDArray[np.int64], data: Array, like: CSRMatrix
) -> CSRMatrix:
    """Return a matrix with the shape of `like` whose entries have these ascending indices."""
    row, column = index.unravel(flat)
    counts = np.bincount(row, minlength=like.shape[0])
    indptr = _fitting(np.concatenate([[0], np.cumsum(counts)]), like.indptr.dtype)
    indices = _fitting(column, like.indices.dtype)
    return CSRMatrix((data, immutable(indices), immutable(indptr)), like.shape)

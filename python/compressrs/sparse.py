"""CSR matrices with fast products, forward and backward."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, as_array
from compressrs._checks import number

if TYPE_CHECKING:
    import scipy.sparse


class CSRMatrix:
    """A matrix in compressed sparse row form.

    The entries of row ``i`` are ``data[indptr[i]:indptr[i + 1]]``, in the columns
    ``indices[indptr[i]:indptr[i + 1]]``. Indices may be unsorted and may repeat;
    repeated entries count as their sum. The arrays are used, not copied, and
    `data` is an ordinary array: an optimizer can train it.

    Parameters
    ----------
    arrays : tuple of array
        ``(data, indices, indptr)``: data float32 or float64, indices and indptr
        both int32 or both int64, one axis each, contiguous.
    shape : pair of int
        Rows and columns.

    Attributes
    ----------
    data, indices, indptr : array
        As above. They are checked again in every product, since they may have been
        written to.
    shape : pair of int
    nnz : int
        Number of stored entries.
    dtype : dtype
        That of `data`.
    T : TransposedCSRMatrix
        The transpose, which shares the arrays.

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
    """

    # NumPy leaves `X @ A` to us.
    __array_ufunc__ = None

    def __init__(self, arrays: tuple[Array, Array, Array], shape: tuple[int, int]) -> None:
        try:
            data, indices, indptr = arrays
        except (TypeError, ValueError):
            raise TypeError("arrays must be a tuple (data, indices, indptr)") from None
        self._parts = (
            as_array(data, "data"),
            as_array(indices, "indices"),
            as_array(indptr, "indptr"),
        )
        self._shape = _shape(shape)
        _core.csr_check(self._parts, self._shape)

    @classmethod
    def from_dense(cls, w: Array, threshold: float = 0.0) -> CSRMatrix:
        """Store what is not 0 and not below a threshold in magnitude.

        Parameters
        ----------
        w : array, shape (rows, columns)
            float32 or float64. Copied first if not C-contiguous.
        threshold : float, default 0.0
            ``|w| < threshold`` is left out. NaN is stored.

        Returns
        -------
        CSRMatrix
            With int32 indices where they suffice, else int64, in ascending order.

        Raises
        ------
        TypeError
            If `w` is not an array of such a dtype.
        ValueError
            If `w` has not two axes or `threshold` is negative or not finite.
        """
        w = as_array(w, "w")
        return cls(_core.csr_from_dense(w, number(threshold, "threshold", 0)), w.shape)

    @classmethod
    def from_scipy(cls, matrix: scipy.sparse.csr_array | scipy.sparse.csr_matrix) -> CSRMatrix:
        """Share the arrays of a SciPy CSR matrix; nothing is copied.

        Raises
        ------
        TypeError
            If it is not in CSR form (convert it with ``.tocsr()``).
        """
        if getattr(matrix, "format", None) != "csr":
            got = getattr(matrix, "format", type(matrix).__name__)
            raise TypeError(f"matrix must be a SciPy CSR matrix (use .tocsr()), got {got}")
        return cls((matrix.data, matrix.indices, matrix.indptr), matrix.shape)

    def to_scipy(self) -> scipy.sparse.csr_array:
        """Return a SciPy CSR array that shares the arrays; nothing is copied."""
        import scipy.sparse

        return scipy.sparse.csr_array(self._parts, shape=self.shape, copy=False)

    def to_dense(self) -> npt.NDArray[Any]:
        """Return the matrix as an array; repeated entries are added up."""
        return _core.csr_to_dense(self._parts, self._shape)

    def pattern(self) -> npt.NDArray[np.bool_]:
        """Return a boolean array that is True where an entry is stored."""
        mask = np.zeros(self._shape, np.bool_)
        mask[np.repeat(np.arange(self._shape[0]), np.diff(self.indptr)), self.indices] = True
        return mask

    def copy(self) -> CSRMatrix:
        """Return a matrix with arrays of its own."""
        data, indices, indptr = self._parts
        return CSRMatrix((data.copy(), indices.copy(), indptr.copy()), self._shape)

    def matmul(self, x: Array, out: Array | None = None) -> npt.NDArray[Any]:
        """Return ``self @ x``.

        Each element is summed in the order in which its row is stored, so the
        result does not depend on the number of threads.

        Parameters
        ----------
        x : array, shape (columns, n) or (columns,)
            Of the matrix's dtype, in any order. Copied first if strides are
            negative.
        out : array, shape (rows, n) or (rows,), optional
            Where to write the result.

        Raises
        ------
        TypeError
            If `x` or `out` is not an array of the matrix's dtype.
        ValueError
            If shapes do not fit, `out` cannot be written or shares memory with
            anything read, or the matrix's arrays have become invalid.
        """
        return _matmul(self, x, out, transposed=False)

    @property
    def data(self) -> npt.NDArray[Any]:
        """The stored values."""
        return self._parts[0]

    @property
    def indices(self) -> npt.NDArray[Any]:
        """The columns of the stored values."""
        return self._parts[1]

    @property
    def indptr(self) -> npt.NDArray[Any]:
        """Where each row starts in `data` and `indices`, and the end of the last."""
        return self._parts[2]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self._shape

    @property
    def ndim(self) -> int:
        """2, as of an array."""
        return 2

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return self.data.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored values."""
        return self.data.dtype

    @property
    def T(self) -> TransposedCSRMatrix:
        """The transpose, which shares the arrays."""
        return TransposedCSRMatrix(self)

    def __matmul__(self, x: Array) -> npt.NDArray[Any]:
        return self.matmul(x)

    def __rmatmul__(self, y: Array) -> npt.NDArray[Any]:
        product: Array = self.T.matmul(as_array(y, "X").T).T
        return product

    def __repr__(self) -> str:
        return f"<CSRMatrix of shape {self.shape}, {self.dtype}, with {self.nnz} stored entries>"


class TransposedCSRMatrix:
    """The transpose of a `CSRMatrix`, sharing its arrays; made by `CSRMatrix.T`."""

    __array_ufunc__ = None

    def __init__(self, matrix: CSRMatrix) -> None:
        self.T = matrix

    def matmul(self, x: Array, out: Array | None = None) -> npt.NDArray[Any]:
        """Return ``self @ x``; as `CSRMatrix.matmul`."""
        return _matmul(self.T, x, out, transposed=True)

    def to_dense(self) -> npt.NDArray[Any]:
        """Return the matrix as an array."""
        dense: Array = self.T.to_dense().T
        return dense

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.T.shape
        return columns, rows

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return self.T.nnz

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored values."""
        return self.T.dtype

    def __matmul__(self, x: Array) -> npt.NDArray[Any]:
        return self.matmul(x)

    def __rmatmul__(self, y: Array) -> npt.NDArray[Any]:
        product: Array = self.T.matmul(as_array(y, "X").T).T
        return product

    def __repr__(self) -> str:
        return f"<transpose of {self.T!r}>"


def _matmul(a: CSRMatrix, x: Array, out: Array | None, *, transposed: bool) -> npt.NDArray[Any]:
    x = as_array(x, "X")
    if x.ndim not in (1, 2):
        raise ValueError(f"X must have 1 or 2 axes, got shape {x.shape}")
    shape = (a.shape[1 if transposed else 0], *x.shape[1:])
    if out is None:
        # In the order of X, so that the transpose of the result is as well.
        transposed_input = x.flags.f_contiguous and not x.flags.c_contiguous
        out = np.empty(shape, a.dtype, order="F" if transposed_input else "C")
    else:
        out = as_array(out, "out")
        if out.shape != shape:
            raise ValueError(f"out must have shape {shape}, got {out.shape}")
    x2, out2 = (x, out) if x.ndim == 2 else (x[:, None], out[:, None])
    _core.csr_matmul(a._parts, a._shape, transposed, x2, out2)
    return out


def sddmm(pattern: CSRMatrix, u: Array, v: Array, out: Array | None = None) -> npt.NDArray[Any]:
    """Return the entries of ``u @ v`` at those of a sparse pattern.

    ``out[p] = sum_k u[i, k] v[k, j]`` for each stored entry ``p = (i, j)``, in the
    order of ``pattern.data``: for ``Y = X @ A.T`` the gradient of a loss with
    respect to ``A.data`` is ``sddmm(A, dY.T, X)``. The name stands for sampled
    dense-dense matrix multiplication.

    Parameters
    ----------
    pattern : CSRMatrix, shape (m, n)
        Where to sample; the values of its `data` do not count.
    u : array, shape (m, k)
    v : array, shape (k, n)
        Of the pattern's dtype, in any order; views are welcome.
    out : array, shape (pattern.nnz,), optional
        Where to write the result; C-contiguous.

    Returns
    -------
    array, shape (pattern.nnz,)

    Raises
    ------
    TypeError
        If `pattern` is not a CSRMatrix, or an array is of another dtype.
    ValueError
        If shapes do not fit, or `out` cannot be written or shares memory with
        anything read.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> A = cr.sparse.CSRMatrix.from_dense(np.array([[0.0, 1.0], [1.0, 0.0]]))
    >>> cr.sparse.sddmm(A, np.array([[1.0], [2.0]]), np.array([[10.0, 100.0]]))
    array([100.,  20.])
    """
    if not isinstance(pattern, CSRMatrix):
        raise TypeError(f"pattern must be a CSRMatrix, got {type(pattern).__name__}")
    u, v = as_array(u, "U"), as_array(v, "V")
    out = np.empty(pattern.nnz, pattern.dtype) if out is None else as_array(out, "out")
    _core.sddmm(pattern._parts, pattern._shape, u, v, out)
    return out


def _shape(shape: tuple[int, int]) -> tuple[int, int]:
    try:
        rows, columns = map(operator.index, shape)
    except (TypeError, ValueError):
        raise TypeError(f"shape must be a pair of integers, got {shape!r}") from None
    if not (0 <= rows < 2**62 and 0 <= columns < 2**62):
        raise ValueError(f"shape must not be negative, nor huge, got {shape!r}")
    return rows, columns

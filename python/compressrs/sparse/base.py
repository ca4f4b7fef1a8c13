"""Base classes of the sparse matrices: storage and products with dense arrays."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import (
    Array,
    Shared,
    as_array,
    compute_dtype,
    dtype_of,
    empty_aligned,
    is_half,
)
from compressrs._checks import flag, integer

_M = TypeVar("_M", bound="SparseMatrix")

#: The matrix in the core.
_Kernels: TypeAlias = _core.Sparse


class Products:
    """Products with a dense matrix on either side."""

    # Makes NumPy defer `X @ A` to `__rmatmul__`.
    __array_ufunc__ = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        raise NotImplementedError

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the stored values."""
        raise NotImplementedError

    def _multiply(self, x: Array, out: Array, epilogue: _Epilogue) -> None:
        """Write ``self @ x`` to `out`; both arrays have two axes."""
        raise NotImplementedError

    def matmul(
        self,
        x: Array,
        out: Array | None = None,
        *,
        bias: Array | None = None,
        relu: bool = False,
        accumulate: bool = False,
    ) -> npt.NDArray[Any]:
        r"""Return ``self @ x``, optionally fused with a bias, a ReLU or an accumulation.

        .. math:: y \leftarrow \phi(A x + y + b)

        where :math:`y` is added if `accumulate`, :math:`b` is `bias`, and :math:`\phi` is
        :math:`\max(\cdot, 0)` if `relu`.

        Parameters
        ----------
        x : array, shape (columns, n) or (columns,)
            Of the matrix's dtype, or float32 if that is float16 or bfloat16, in any memory
            order. Copied first if a stride is negative.
        out : array, shape (rows, n) or (rows,), optional
            Where to write the result, in any memory order. Of the dtype of `x`. Strides must not
            be negative: kernels count on from the first element, and a copy, as is made of such
            an `x`, would not be `out`.
        bias : array, shape (rows,), optional
            Of the dtype of `x`.
        relu : bool, default False
            Whether to clamp negative results to 0. NaN stays NaN.
        accumulate : bool, default False
            Whether to add to what `out` holds.

        Returns
        -------
        array, shape (rows, n) or (rows,)
            `out` if given, otherwise a new array in the memory order of `x` and of its dtype.

        Raises
        ------
        TypeError
            If `x`, `out` or `bias` is not an array of such a dtype.
        ValueError
            If shapes do not match, `out` is read-only or shares memory with an input,
            `accumulate` is set without `out`, a stride of `out` is negative, or the matrix's
            arrays have become invalid.

        Notes
        -----
        The order of summation depends on the shapes alone, not on the number of threads. It
        does depend on the number of columns of `x`.

        Products of float16 and bfloat16 are summed in float32, from the sum that is accumulated
        to the bias and the ReLU, and each result is rounded once.
        """
        x = self._operand(x, "x")
        rows, columns = self.shape
        if x.shape[0] != columns:
            raise ValueError(f"x must have shape {(columns, *x.shape[1:])}, got {x.shape}")
        shape = (rows, *x.shape[1:])
        if out is not None:
            out = as_array(out, "out")
            if out.shape != shape:
                raise ValueError(f"out must have shape {shape}, got {out.shape}")
        return self._product(x, out, shape, bias, relu, accumulate)

    def _product(
        self,
        x: Array,
        out: Array | None,
        shape: tuple[int, ...],
        bias: Array | None,
        relu: bool,
        accumulate: bool,
    ) -> npt.NDArray[Any]:
        """Return ``matmul(x, out, ...)`` of this shape; `x` and `out` have been checked."""
        accumulate = flag(accumulate, "accumulate")
        if out is None:
            if accumulate:
                raise ValueError("accumulate=True needs out, the array to add to")
            # In the memory order of `x`, so that transposes have the same order too.
            order: Literal["F", "C"] = "F" if x.flags.fnc else "C"
            out = empty_aligned(shape, x.dtype, order)
        if bias is not None:
            bias = as_array(bias, "bias")
        x2, out2 = (x, out) if x.ndim == 2 else (x[:, None], out[:, None])
        self._multiply(x2, out2, (accumulate, bias, flag(relu, "relu")))
        return out

    def __matmul__(self, x: Array) -> npt.NDArray[Any]:
        return self.matmul(x)

    def __rmatmul__(self, y: Array) -> npt.NDArray[Any]:
        return self.rmatmul(y)

    def rmatmul(
        self,
        y: Array,
        out: Array | None = None,
        *,
        bias: Array | None = None,
        relu: bool = False,
        accumulate: bool = False,
    ) -> npt.NDArray[Any]:
        """Return ``y @ self``: `matmul` with transposed shapes.

        A layer's forward pass is ``weight.T.rmatmul(x, bias=bias)``.

        Parameters
        ----------
        y : array, shape (n, rows) or (rows,)
        out : array, shape (n, columns) or (columns,), optional
            In any memory order, but without negative strides.
        bias : array, shape (columns,), optional
        relu, accumulate : bool, default False
        """
        y = self._operand(y, "y")
        rows, columns = self.shape
        if y.shape[-1] != rows:
            raise ValueError(f"y must have shape {(*y.shape[:-1], rows)}, got {y.shape}")
        shape = (*y.shape[:-1], columns)
        if out is not None:
            out = as_array(out, "out")
            if out.shape != shape:
                raise ValueError(f"out must have shape {shape}, got {out.shape}")
        turned = None if out is None else out.T
        product = self._transposed()._product(y.T, turned, shape[::-1], bias, relu, accumulate)
        return np.asarray(product.T) if out is None else out

    def to_dense(self) -> npt.NDArray[Any]:
        """Return the matrix as a dense array."""
        raise NotImplementedError

    def toarray(self) -> npt.NDArray[Any]:
        """Return `to_dense()`, under SciPy's name."""
        return self.to_dense()

    @property
    def ndim(self) -> int:
        """Number of axes: 2."""
        return 2

    def _operand(self, x: Array, name: str) -> Array:
        """Return the dense operand of a product after checking its axes and dtype."""
        x = as_array(x, name)
        if x.ndim not in (1, 2):
            raise ValueError(f"{name} must have 1 or 2 axes, got shape {x.shape}")
        dtype = self.dtype
        # Mostly the same object, which takes less time to find than that it is equal.
        if x.dtype is not dtype and x.dtype not in (dtype, compute_dtype(dtype)):
            other = " or float32" if is_half(dtype) else ""
            raise TypeError(
                f"{name} must have dtype {dtype} like data{other} (convert it with "
                f"a.astype('{compute_dtype(dtype)}')), got {x.dtype}"
            )
        return x

    def _transposed(self) -> Products:
        """Return the transpose."""
        raise NotImplementedError


#: (accumulate, bias, relu) as in `Products.matmul`.
_Epilogue = tuple[bool, Array | None, bool]


class StoredMatrix(Products):
    """Base of the matrices that hold their entries, rather than view another matrix."""

    _core: _Kernels
    _shape: tuple[int, int]

    def _multiply(self, x: Array, out: Array, epilogue: _Epilogue) -> None:
        self._core.matmul(False, x, out, epilogue)

    def _transposed(self) -> Products:
        return self.T

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self._shape

    @property
    def nnz(self) -> int:
        """Number of stored values."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """Number of stored values, as in SciPy."""
        return self.nnz

    @property
    def T(self) -> TransposedMatrix:
        """The transpose, a view that shares the arrays."""
        return TransposedMatrix(self)


class SparseMatrix(StoredMatrix):
    """Base of the sparse matrices: three arrays, which are used without copying.

    Attributes
    ----------
    data, indices, indptr : array
    shape : pair of int
        Rows and columns.
    nnz : int
        Number of stored values.
    nbytes : int
        Bytes of memory, including what products have prepared.
    dtype : dtype
        That of `data`.
    T : TransposedMatrix
        The transpose, a view that shares the arrays.
    """

    #: The name of the format in `scipy.sparse`.
    format: ClassVar[str]

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
        self._shape = as_shape(shape)
        self._check()

    @classmethod
    def _of_parts(
        cls: type[_M], parts: tuple[Array, ...], shape: tuple[int, int], **options: int
    ) -> _M:
        """Return a matrix from data, indices and indptr, and the values of `_options`."""
        return cls(parts, shape, **options)  # type: ignore[arg-type]

    def _options(self) -> dict[str, int]:
        """Return the parameters of the format besides arrays and shape."""
        return {}

    def _check(self) -> None:
        """Validate the arrays and hand them to the core."""
        self._core = _core.Sparse(self._parts, self._shape, self._blocksize())

    def __getstate__(self) -> dict[str, Any]:
        data, indices, indptr = self._parts
        state = {key: value for key, value in self.__dict__.items() if key != "_core"}
        # Unpickled copies of read-only arrays are writable and would have to be checked
        # again at each product.
        state["_fixed"] = is_immutable(indices), is_immutable(indptr)
        state["_parts"] = Shared.of(data), indices, indptr
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        data, *pattern = state.pop("_parts")
        indices, indptr = (
            immutable(array) if fixed and not is_immutable(array) else array
            for array, fixed in zip(pattern, state.pop("_fixed"), strict=True)
        )
        self.__dict__.update(state)
        self._parts = data, indices, indptr
        self._check()

    def __copy__(self: _M) -> _M:
        return self.with_data(self.data)

    def _blocksize(self) -> tuple[int, int]:
        """Return the shape of the block that one index addresses."""
        return (1, 1)

    def _checked_parts(self) -> tuple[Array, Array, Array]:
        """Return data, indices and indptr as they are handed to others.

        Raises
        ------
        TypeError, ValueError
            If they have been changed so that they describe no matrix of this shape: code
            that relies on them, as SciPy's does, would read outside memory.
        """
        self._core.check()
        return self._parts

    def _flat(self, out: Array) -> Array:
        """Return a one-dimensional view of `out` in the core's order of entries."""
        return out

    def with_data(self: _M, data: Array) -> _M:
        """Return a matrix with other values and the same pattern, which is shared."""
        matrix = type(self)((data, self.indices, self.indptr), self._shape)
        matrix._core.share(self._core)
        return matrix

    def _rearranged(self: _M, indices: Array, indptr: Array) -> _M:
        """Return a matrix of the same data with another pattern, which is copied.

        Raises
        ------
        TypeError, ValueError
            If it is not a pattern of this format, of as many entries.
        """
        for name, array in (("indices", indices), ("indptr", indptr)):
            if array.dtype.kind != "i":
                raise TypeError(f"{name} must have an integer dtype, got {array.dtype}")
        parts = self.data, immutable(indices), immutable(indptr)
        matrix = self._of_parts(parts, self._shape, **self._options())
        # A format that derives its pattern from a part of it may have derived another one.
        if not (np.array_equal(matrix.indices, indices) and np.array_equal(matrix.indptr, indptr)):
            raise ValueError(f"indices must be of {type(self).__name__}")
        return matrix

    def copy(self: _M) -> _M:
        """Return a copy whose pattern is immutable.

        An immutable pattern is checked once rather than at each product.
        """
        data, indices, indptr = self._checked_parts()
        return type(self)((data.copy(), immutable(indices), immutable(indptr)), self._shape)

    def astype(self: _M, dtype: npt.DTypeLike) -> _M:
        """Return a matrix with values of another dtype.

        Parameters
        ----------
        dtype : dtype
            float32, float64, float16 or bfloat16 (of ml_dtypes).
        """
        try:
            given = dtype_of(dtype) if isinstance(dtype, str) else np.dtype(dtype)
        except (TypeError, ValueError):
            given = None
        known = given is not None and (given in (np.float32, np.float64) or is_half(given))
        if dtype is None or not known:
            raise TypeError(f"dtype must be float32, float64, float16 or bfloat16, got {dtype!r}")
        return self.with_data(self.data.astype(given))

    def to_dense(self) -> npt.NDArray[Any]:
        """Return the matrix as a dense array; repeated entries are summed."""
        return self._core.to_dense().astype(self.dtype, copy=False)

    @property
    def data(self) -> npt.NDArray[Any]:
        """The stored values."""
        return self._parts[0]

    @property
    def indices(self) -> npt.NDArray[Any]:
        """The columns of the stored values, or the block columns of the blocks."""
        return self._parts[1]

    @property
    def indptr(self) -> npt.NDArray[Any]:
        """The offset in `indices` at which each row starts, and the end of the last row."""
        return self._parts[2]

    @property
    def nnz(self) -> int:
        """Number of stored values."""
        return self.data.size

    @property
    def nbytes(self) -> int:
        """Bytes of memory: of the arrays, and of what products have prepared so far.

        The first product of a matrix of single entries prepares its pattern, and the first
        product of its transpose another one; see the guide on sparse matrices. Matrices that
        share an immutable pattern share that too, and each counts it.
        """
        return sum(part.nbytes for part in self._parts) + self._core.prepared_bytes

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the stored values."""
        return self.data.dtype

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} of shape {self.shape}, {self.dtype}, "
            f"with {self.nnz} stored entries>"
        )


class TransposedMatrix(Products):
    """The transpose of a sparse matrix, a view that `SparseMatrix.T` returns.

    Attributes
    ----------
    T : SparseMatrix or QuantizedCSRMatrix
        The original matrix.
    """

    def __init__(self, matrix: Any) -> None:
        self.T = matrix

    def _multiply(self, x: Array, out: Array, epilogue: _Epilogue) -> None:
        self.T._core.matmul(True, x, out, epilogue)

    def _transposed(self) -> Products:
        matrix: Products = self.T
        return matrix

    def to_dense(self) -> npt.NDArray[Any]:
        """Return the matrix as a dense array."""
        dense: Array = self.T.to_dense().T
        return dense

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.T.shape
        return columns, rows

    @property
    def nnz(self) -> int:
        """Number of stored values."""
        return int(self.T.nnz)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the stored values."""
        dtype: np.dtype[Any] = self.T.dtype
        return dtype

    def __repr__(self) -> str:
        return f"<transpose of {self.T!r}>"


def sddmm(
    pattern: SparseMatrix, u: Array, v: Array, out: Array | None = None, *, accumulate: bool = False
) -> npt.NDArray[Any]:
    """Return the entries of ``u @ v`` at the stored positions of a sparse matrix.

    ``out[p] = sum_k u[i, k] v[k, j]`` for each stored entry ``p = (i, j)``, in the
    order of ``pattern.data``: for ``Y = X @ A.T`` the gradient of a loss with
    respect to ``A.data`` is ``sddmm(A, dY.T, X)``. The name stands for sampled
    dense-dense matrix multiplication. Repeated entries each receive the same value.

    Parameters
    ----------
    pattern : SparseMatrix, shape (m, n)
        Where to sample; the values in its `data` are ignored.
    u : array, shape (m, k)
    v : array, shape (k, n)
        Of the pattern's dtype, in any memory order; views are accepted. Both may be float32 if
        that is float16 or bfloat16.
    out : array of the shape of ``pattern.data``, optional
        Where to write the result, of the pattern's dtype. Must be C-contiguous.
    accumulate : bool, default False
        Whether to add to what `out` holds.

    Returns
    -------
    array of the shape of ``pattern.data``
        Of the pattern's dtype; summed in float32 if that is float16 or bfloat16.

    Raises
    ------
    TypeError
        If `pattern` is not a sparse matrix, or an array is of another dtype.
    ValueError
        If shapes do not match, `out` is read-only or shares memory with an input, or
        `accumulate` is set without `out`.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> A = cr.sparse.CSRMatrix.from_dense(np.array([[0.0, 1.0], [1.0, 0.0]]))
    >>> cr.sparse.sddmm(A, np.array([[1.0], [2.0]]), np.array([[10.0, 100.0]]))
    array([100.,  20.])
    """
    if not isinstance(pattern, SparseMatrix):
        raise TypeError(
            f"pattern must be a sparse matrix of compressrs, got {type(pattern).__name__}"
        )
    u, v = as_array(u, "u"), as_array(v, "v")
    if out is None:
        if flag(accumulate, "accumulate"):
            raise ValueError("accumulate=True needs out, the array to add to")
        out = np.empty(pattern.data.shape, pattern.dtype)
    else:
        out = as_array(out, "out")
    pattern._core.sddmm(u, v, pattern._flat(out), flag(accumulate, "accumulate"))
    return out


def scipy_sparse(dtype: np.dtype[Any]) -> Any:
    """Return the module `scipy.sparse`.

    Raises
    ------
    ModuleNotFoundError
        If SciPy is not installed.
    TypeError
        If it has no matrices of `dtype`.
    """
    if is_half(dtype):
        raise TypeError(f"SciPy has no sparse matrices of {dtype}: convert with astype('float32')")
    try:
        import scipy.sparse
    except ModuleNotFoundError:
        raise ModuleNotFoundError("to_scipy needs SciPy: pip install scipy") from None
    return scipy.sparse


def dense_weight(w: object) -> Array:
    """Return what is to be stored sparse as an array.

    Raises
    ------
    TypeError
        If it is not one of a dtype that sparse matrices have.
    """
    array = as_array(w, "w")
    if array.dtype not in (np.float32, np.float64) and not is_half(array.dtype):
        raise TypeError(
            f"w must have dtype float32, float64, float16 or bfloat16, got {array.dtype}"
        )
    return array


def as_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return `shape` as a pair of non-negative integers."""
    try:
        # A slice, since sets and dicts have no first and second element.
        rows, columns = (integer(n, "shape") for n in shape[:])
    except (LookupError, TypeError, ValueError):
        raise TypeError(f"shape must be a pair of integers, got {shape!r}") from None
    if not (0 <= rows < 2**62 and 0 <= columns < 2**62):
        raise ValueError(f"shape must not be negative, nor huge, got {shape!r}")
    return rows, columns


def immutable(x: Array) -> Array:
    """Return an immutable copy of a one-dimensional array."""
    # Of the base class, whose methods can be relied on; `frombuffer` rejects empty buffers.
    x = np.array(x)
    frozen: Array = np.frombuffer(x.tobytes(), x.dtype) if x.size else x
    return frozen


def is_immutable(x: Array) -> bool:
    """Whether an array was made by `immutable`."""
    return isinstance(x.base, bytes)

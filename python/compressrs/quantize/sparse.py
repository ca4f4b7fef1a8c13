"""Sparse matrices whose values are codes of 8 bits."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, as_array
from compressrs._checks import file_path, flag
from compressrs.quantize.rounding import parameters, quantize
from compressrs.quantize.scheme import Scheme
from compressrs.quantize.tensor import QuantizedTensor, checked_scale
from compressrs.sparse.base import StoredMatrix, as_shape, immutable, is_immutable
from compressrs.sparse.csr import CSRMatrix
from compressrs.sparse.files import read_npz, write_npz

#: The name of the format in files.
_FORMAT = "quantized_csr"


class QuantizedCSRMatrix(StoredMatrix):
    r"""A sparse matrix in CSR format with a code of 8 bits and no more for each entry.

    .. math:: a_p = s_{g(p)}\, c_p

    An entry takes 1 byte and its index, 5 with int32 indices and 3 with int16, instead of 8 and
    6 in float32. Products sum in float32, of values that are decoded while they are in the cache;
    they are the products of `dequantize`, bit for bit. It is not trained: quantize a trained
    `CSRMatrix` by `from_csr`.

    Parameters
    ----------
    arrays : tuple of array
        ``(codes, scale, indices, indptr)``: codes int8 within the scheme's bits, scale float32;
        indices and indptr as in `CSRMatrix`. All are copied unless they are immutable.
    shape : pair of int
        Rows and columns.
    scheme : Scheme
        Symmetric, of dtype "int", 2 to 8 bits. A scale is that of a row (granularity
        "channel", `scale` of shape (rows,)), of `group_size` stored values one after another
        ("group"), or of all ("tensor").

    Attributes
    ----------
    codes : array of int8, shape (nnz,)
    scale : array of float32
    indices, indptr : array
        As in `CSRMatrix`. All four are immutable.
    scheme : Scheme
    shape : pair of int
    dtype : numpy.dtype
        float32, the dtype of operands and results.
    T : TransposedMatrix

    Raises
    ------
    TypeError
        If an array is of another dtype.
    ValueError
        If the scheme is of another kind, the arrays do not describe a matrix of this shape,
        there is not one scale for each group, or a code times its scale is beyond float32.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> A = cr.sparse.CSRMatrix.from_dense(np.array([[0, 127.5, 0], [-25.5, 0, 1]], np.float32))
    >>> Q = cr.quantize.QuantizedCSRMatrix.from_csr(A)
    >>> Q.codes, Q.scale
    (array([ 127, -128,    5], dtype=int8), array([1. , 0.2], dtype=float32))
    >>> Q @ np.ones(3, np.float32)
    array([127. , -24.6], dtype=float32)
    """

    def __init__(
        self, arrays: tuple[Array, Array, Array, Array], shape: tuple[int, int], scheme: Scheme
    ) -> None:
        try:
            codes, scale, indices, indptr = arrays
        except (TypeError, ValueError):
            raise TypeError("arrays must be a tuple (codes, scale, indices, indptr)") from None
        self._scheme = require_sparse_scheme(scheme)
        self._shape = as_shape(shape)
        codes, scale = as_array(codes, "codes"), as_array(scale, "scale")
        indices, indptr = as_array(indices, "indices"), as_array(indptr, "indptr")
        if codes.dtype != np.int8:
            raise TypeError(f"codes must have dtype int8, got {codes.dtype}")
        if scale.dtype != np.float32:
            raise TypeError(f"scale must have dtype float32, got {scale.dtype}")
        if codes.ndim != 1 or scale.ndim != 1:
            raise ValueError(
                f"codes and scale must have 1 axis, got shapes {codes.shape} and {scale.shape}"
            )
        # Before they are checked, since they might change afterwards.
        codes, scale, indices, indptr = self._arrays = (
            _kept(codes),
            _kept(scale),
            _kept(indices),
            _kept(indptr),
        )
        limit = 2 ** (self._scheme.bits - 1)
        if codes.size and not -limit <= codes.min() <= codes.max() < limit:
            raise ValueError(f"codes must be from {-limit} to {limit - 1}, got others")
        checked_scale(scale[None], (1, scale.size), np.dtype(np.float32))
        self._core = _core.Sparse(
            (codes, indices, indptr),
            self._shape,
            (1, 1),
            (scale, group_size(self._scheme, codes)),
        )
        large = _beyond(codes, scale, indptr, self._scheme)
        if large.size:
            raise ValueError(
                f"codes times scale must be numbers of float32, got {codes[large[0]]} times "
                f"{_of_each(scale, codes, indptr, self._scheme)[large[0]]:g} for codes[{large[0]}]"
            )

    @classmethod
    def from_csr(cls, matrix: CSRMatrix, scheme: Scheme | None = None) -> QuantizedCSRMatrix:
        """Round the values of a sparse matrix to the nearest codes, as `quantize` does.

        Where the lowest code, of which there is no positive one, would stand for a number
        beyond float32, the code above it is taken.

        Parameters
        ----------
        matrix : CSRMatrix
            Its values are taken as float32.
        scheme : Scheme, optional
            As above; by default 8 bits with a scale for each row.

        Raises
        ------
        TypeError
            If `matrix` is not a `CSRMatrix`, or `scheme` not a `Scheme`.
        ValueError
            If the scheme is of another kind, or a value is NaN or infinite.

        Examples
        --------
        >>> import numpy as np, compressrs as cr
        >>> A = cr.sparse.CSRMatrix.from_dense(np.diag([1.0, 10.0, 100.0]))
        >>> scheme = cr.quantize.Scheme(bits=4, granularity="group", group_size=2)
        >>> cr.quantize.QuantizedCSRMatrix.from_csr(A, scheme).codes
        array([1, 7, 7], dtype=int8)
        """
        if not isinstance(matrix, CSRMatrix):
            raise TypeError(f"matrix must be a CSRMatrix, got {type(matrix).__name__}")
        scheme = require_sparse_scheme(Scheme() if scheme is None else scheme)
        data, indices, indptr = matrix._checked_parts()
        with np.errstate(over="ignore"):
            data = data.astype(np.float32, copy=False)
        if not np.isfinite(data).all():
            raise ValueError("matrix must have finite values of float32, got NaN or infinity")
        if scheme.granularity == "channel":
            lengths = np.diff(indptr)
            low, high = np.zeros((2, matrix.shape[0], 1), np.float32)
            starts = indptr[:-1][lengths > 0]
            if starts.size:
                low[lengths > 0, 0] = np.minimum.reduceat(data, starts)
                high[lengths > 0, 0] = np.maximum.reduceat(data, starts)
            scale = parameters(low, high, scheme)[0][:, 0]
            each = np.repeat(scale, lengths)[None]
            codes = quantize(data, _of_entries(scheme), scale=each).codes
        else:
            q = quantize(data, scheme)
            codes, scale = q.codes, q.scale.ravel()
        codes[_beyond(codes, scale, indptr, scheme)] += 1
        quantized = cls((codes, scale, indices, indptr), matrix.shape, scheme)
        quantized._core.share(matrix._core)
        return quantized

    def dequantize(self) -> CSRMatrix:
        """Return the matrix with values in float32; the pattern is shared."""
        each = _of_each(self.scale, self.codes, self.indptr, self.scheme)
        q = QuantizedTensor(self.codes, each[None], scheme=_of_entries(self.scheme))
        matrix = CSRMatrix((q.dequantize(), self.indices, self.indptr), self._shape)
        matrix._core.share(self._core)
        return matrix

    def to_dense(self) -> npt.NDArray[Any]:
        """Return the values as a dense array of float32; repeated entries are summed."""
        return self._core.to_dense()

    def copy(self) -> QuantizedCSRMatrix:
        """Return a copy; the arrays, which are immutable, are shared."""
        matrix = type(self)(self._arrays, self._shape, self._scheme)
        matrix._core.share(self._core)
        return matrix

    __copy__ = copy

    def save(self, path: str | os.PathLike[str], *, compressed: bool = True) -> None:
        """Write the matrix to a file, which is replaced atomically.

        Parameters
        ----------
        path : path
            ``.npz`` is appended unless the name already ends with it.
        compressed : bool, default True

        Raises
        ------
        OSError
            If the file cannot be written; an existing file is then unchanged.
        """
        target = file_path(path, "path")
        scheme = self.scheme
        parts = {
            "shape": np.array(self._shape),
            "codes": self.codes,
            "scale": self.scale,
            "indices": self.indices,
            "indptr": self.indptr,
            "bits": np.array(scheme.bits),
            "granularity": np.array(scheme.granularity),
            "group_size": np.array(scheme.group_size or 0),
        }
        write_npz(target, _FORMAT, parts, flag(compressed, "compressed"))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> QuantizedCSRMatrix:
        """Read a matrix that `save` wrote.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it is corrupt, or does not hold such a matrix.
        """
        names = ("codes", "scale", "indices", "indptr", "bits", "granularity", "group_size")
        _, shape, (*arrays, bits, granularity, size) = read_npz(
            file_path(path, "path"), (_FORMAT,), names
        )
        try:
            scheme = Scheme(
                bits=bits.item(),
                granularity=granularity.item(),
                group_size=size.item() or None,
            )
            codes, scale, indices, indptr = arrays
            return cls((codes, scale, indices, indptr), as_shape(shape), scheme)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)} is not a sparse matrix: {error}") from None

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_core"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        QuantizedCSRMatrix.__init__(self, state["_arrays"], state["_shape"], state["_scheme"])

    @property
    def codes(self) -> npt.NDArray[np.int8]:
        """The code of each entry."""
        return self._arrays[0]

    @property
    def scale(self) -> npt.NDArray[np.float32]:
        """The scale of each row, group or the matrix."""
        return self._arrays[1]

    @property
    def indices(self) -> npt.NDArray[Any]:
        """The column of each entry."""
        return self._arrays[2]

    @property
    def indptr(self) -> npt.NDArray[Any]:
        """The offset at which each row starts, and the end of the last row."""
        return self._arrays[3]

    @property
    def scheme(self) -> Scheme:
        """The scheme of the codes."""
        return self._scheme

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return self.codes.size

    @property
    def nbytes(self) -> int:
        """Bytes of memory: of the arrays, and of what products have prepared so far."""
        return sum(array.nbytes for array in self._arrays) + self._core.prepared_bytes

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32, the dtype of operands and results."""
        return np.dtype(np.float32)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} of shape {self.shape}, {self.scheme.bits} bits, "
            f"with {self.nnz} stored entries>"
        )


def is_sparse_scheme(scheme: Scheme) -> bool:
    """Whether codes of a sparse matrix can have a scheme."""
    return scheme.dtype == "int" and scheme.symmetric and scheme.granularity != "block"


def require_sparse_scheme(scheme: Scheme) -> Scheme:
    """Return a scheme after checking that codes of a sparse matrix can have it.

    Raises
    ------
    TypeError, ValueError
        If they cannot.
    """
    if not isinstance(scheme, Scheme):
        raise TypeError(f"scheme must be a Scheme, got {type(scheme).__name__}")
    if not is_sparse_scheme(scheme):
        raise ValueError(
            "scheme must be symmetric, of dtype 'int' and granularity 'channel', 'group' or "
            f"'tensor', got {scheme!r}"
        )
    return scheme


def _of_entries(scheme: Scheme) -> Scheme:
    """Return the scheme with a scale for each entry."""
    return Scheme(bits=scheme.bits, granularity="group", group_size=1)


def _kept(x: Array) -> Array:
    """Return an immutable copy of an array of one axis, or the array itself if it is one."""
    # Unpickled arrays are writable, whatever they were. The core refuses other axes.
    return x if (is_immutable(x) and not x.flags.writeable) or x.ndim != 1 else immutable(x)


def group_size(scheme: Scheme, codes: Array) -> int:
    """Return how many entries share a scale, or 0 for those of a row."""
    if scheme.granularity == "channel":
        return 0
    size = scheme.group_size
    return size if isinstance(size, int) else max(codes.size, 1)


def _of_each(scale: Array, codes: Array, indptr: Array, scheme: Scheme) -> Array:
    """Return the scale of each entry."""
    size = group_size(scheme, codes)
    if size:
        each: Array = scale[np.arange(codes.size) // size]
        return each
    return np.repeat(scale, np.diff(indptr))


def _beyond(codes: Array, scale: Array, indptr: Array, scheme: Scheme) -> npt.NDArray[np.intp]:
    """Return the positions of entries whose code times the scale is beyond float32."""
    largest = 2 ** (scheme.bits - 1)
    if float(scale.max(initial=0)) * largest <= float(np.finfo(np.float32).max):
        return np.zeros(0, np.intp)
    with np.errstate(over="ignore"):
        values = _of_each(scale, codes, indptr, scheme) * codes
    return np.flatnonzero(~np.isfinite(values))

"""Quantized arrays: codes, scales, zero points."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, as_array, compute_dtype, is_number
from compressrs.quantize.scheme import Scheme


class QuantizedTensor:
    r"""A quantized array: :math:`x = \mathrm{scale}\,(\mathrm{code} - \mathrm{zero\_point})`.

    For other codes than integers, :math:`x = \mathrm{scale}\cdot\mathrm{level}(\mathrm{code})`.
    Returned by `quantize` and the methods of this package; the constructor is for codes from
    other sources.

    Parameters
    ----------
    codes : array of int8 or uint8
        One code per element, in the scheme's dtype; used, not copied.
    scale : array, shape ``scheme.scale_shape(codes.shape)``
        float32, or float64 if `dtype` is; others are converted.
    zero_point : array, optional
        In the shape of `scale` and the dtype of `codes`; required if the scheme has zero points.
    scheme : Scheme
    codebook : array, shape (blocks, levels), optional
        For dtype "codebook": the levels of each block.
    group_index : array of int32, shape (columns,), optional
        For granularity "group": the group of each column, if columns were sorted into groups
        (GPTQ's activation order). Each group has `group_size` columns, the last one the rest.
    dtype : dtype, optional
        Result dtype of `dequantize`: float32 (default), float64, float16 or bfloat16.

    Attributes
    ----------
    codes, scale, zero_point, codebook, group_index : array
        As above, or None.
    scheme : Scheme
    dtype : numpy.dtype
    shape : tuple of int

    Raises
    ------
    TypeError
        If an array has another dtype.
    ValueError
        If shapes do not fit, codes or zero points are out of range, or a scale is not a
        positive normal number.

    Examples
    --------
    >>> import numpy as np
    >>> from compressrs.quantize import QuantizedTensor, Scheme
    >>> codes = np.array([[-8, 7], [0, 1]], np.int8)
    >>> scale = np.array([[0.5], [2.0]], np.float32)
    >>> q = QuantizedTensor(codes, scale, scheme=Scheme(bits=4))
    >>> q.dequantize()
    array([[-4. ,  3.5],
           [ 0. ,  2. ]], dtype=float32)
    """

    codes: npt.NDArray[Any]
    scale: npt.NDArray[Any]
    zero_point: npt.NDArray[Any] | None
    codebook: npt.NDArray[Any] | None
    group_index: npt.NDArray[np.int32] | None
    scheme: Scheme
    dtype: np.dtype[Any]

    def __init__(
        self,
        codes: Array,
        scale: Array,
        zero_point: Array | None = None,
        *,
        scheme: Scheme,
        codebook: Array | None = None,
        group_index: Array | None = None,
        dtype: npt.DTypeLike | None = None,
    ) -> None:
        if not isinstance(scheme, Scheme):
            raise TypeError(f"scheme must be a Scheme, got {type(scheme).__name__}")
        self.scheme = scheme
        try:
            self.dtype = np.dtype(np.float32 if dtype is None else dtype)
        except (TypeError, ValueError):
            raise TypeError(f"dtype must be one of floating-point numbers, got {dtype!r}") from None
        require_float(self.dtype, "dtype")
        self.codes = _of_dtype(codes, "codes", scheme.code_dtype)
        shape = scheme.scale_shape(self.codes.shape)
        self.scale = checked_scale(scale, shape, self.dtype)
        self.zero_point = checked_zero_point(zero_point, shape, scheme)
        self.codebook = _checked_codebook(codebook, shape, scheme, self.dtype)
        self.group_index = _checked_group_index(group_index, self.codes.shape, scheme)
        if not _are_codes(self.codes, scheme, self.codebook):
            raise ValueError(
                f"codes must be those of {scheme.dtype!r} in {scheme.bits} bits, got others"
            )

    @classmethod
    def _of(cls, scheme: Scheme, dtype: np.dtype[Any], **arrays: Any) -> QuantizedTensor:
        """Return a tensor of arrays that need no checks."""
        q = cls.__new__(cls)
        q.scheme, q.dtype = scheme, dtype
        for name in ("zero_point", "codebook", "group_index"):
            setattr(q, name, arrays.pop(name, None))
        q.codes, q.scale = arrays.pop("codes"), arrays.pop("scale")
        assert not arrays
        return q

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.codes.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.codes.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.codes.size

    @property
    def nbytes(self) -> int:
        """Bytes with codes packed at `bits` each, including scales and codebooks.

        This is the size in files of `nn.Layer.save`; in memory, codes take a byte each, and once
        more what the `QuantizedMatrix` of a product holds.
        """
        total = self.scheme.nbytes(self.shape, self.scale.itemsize)
        return total + (0 if self.group_index is None else self.group_index.nbytes)

    def dequantize(self, out: Array | None = None) -> npt.NDArray[Any]:
        """Return the numbers that the codes represent.

        Parameters
        ----------
        out : array, optional
            Receives the result; of this shape and dtype, C-contiguous.

        Raises
        ------
        TypeError
            If `out` is not an array of this dtype.
        ValueError
            If `out` has another shape, or codes have become invalid; nothing is written then.
        """
        return self._decode(self.codes, self.scale, self.zero_point, out)

    def rows(self, indices: npt.ArrayLike, out: Array | None = None) -> npt.NDArray[Any]:
        """Return dequantized rows, as an embedding does.

        Parameters
        ----------
        indices : int or array of int
            Indices of rows; negative ones count from the end.
        out : array, optional
            As in `dequantize`, of shape ``indices.shape + shape[1:]``.

        Raises
        ------
        IndexError
            If an index is out of range.
        TypeError, ValueError
            Those of `dequantize`; if indices are not integers, or there is only one axis.

        Examples
        --------
        >>> import numpy as np
        >>> from compressrs.quantize import Scheme, quantize
        >>> q = quantize(np.eye(3, dtype=np.float32), Scheme(bits=8, symmetric=False))
        >>> q.rows([2, 0])
        array([[0., 0., 1.],
               [1., 0., 0.]], dtype=float32)
        """
        if self.ndim < 2:
            raise ValueError(f"rows needs at least two axes, got shape {self.shape}")
        try:
            index = np.asarray(indices)
        except ValueError:
            raise TypeError("indices must be integers, in an array or a number") from None
        if index.dtype.kind not in "iu" and index.size:
            raise TypeError(f"indices must be integers, got {index.dtype}")
        count = self.shape[0]
        if index.size and not (-count <= int(index.min()) and int(index.max()) < count):
            raise IndexError(f"indices must be from {-count} to {count - 1}, got {indices!r}")
        index = index.astype(np.intp, copy=False)
        codes = self.codes[index]
        blocks = np.arange(self.shape[0])[index].ravel() // self.scheme.block(self.shape)[0]
        zero = None if self.zero_point is None else self.zero_point[blocks]
        shape = codes.shape
        rows = self._decode(
            codes.reshape(len(blocks), *self.shape[1:]),
            self.scale[blocks],
            zero,
            None if out is None else self._rows_out(out, shape),
            blocks=blocks,
        )
        result: npt.NDArray[Any] = rows.reshape(shape)
        return result

    def _rows_out(self, out: Array, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        given = as_array(out, "out")
        if given.shape != shape or not given.flags.c_contiguous:
            raise ValueError(f"out must be C-contiguous and have shape {shape}, got {given.shape}")
        return given.reshape(math.prod(shape[: len(shape) - len(self.shape) + 1]), *self.shape[1:])

    def _decode(
        self,
        codes: npt.NDArray[Any],
        scale: npt.NDArray[Any],
        zero_point: npt.NDArray[Any] | None,
        out: Array | None,
        blocks: npt.NDArray[Any] | None = None,
    ) -> npt.NDArray[Any]:
        """Dequantize all rows, or those with the given rows of blocks."""
        # A view, so that its shape stays when another thread resizes or reshapes the codes.
        codes = codes.view()
        if out is None:
            given = np.empty(codes.shape, self.dtype)
        else:
            given = as_array(out, "out")
            if given.dtype != self.dtype:
                raise TypeError(f"out must have dtype {self.dtype}, got {given.dtype}")
            if given.shape != codes.shape or not given.flags.c_contiguous:
                raise ValueError(
                    f"out must be C-contiguous and have shape {codes.shape}, got {given.shape}"
                )
        matrix = self.scheme.matrix(codes.shape)
        block = self.scheme.block(self.shape)
        codebook = self.codebook
        if blocks is not None:
            block = 1, block[1]
            if codebook is not None:
                sets = codebook.reshape(*self.scale.shape, -1)[blocks]
                codebook = np.ascontiguousarray(sets).reshape(scale.size, codebook.shape[1])
        codes, target = codes.reshape(matrix), given.reshape(matrix)
        order = None
        if self.group_index is not None:
            order = np.argsort(self.group_index, kind="stable")
            codes, target = codes[:, order], np.empty(matrix, self.dtype)
        zero = np.zeros(scale.shape, np.uint8) if zero_point is None else zero_point.view(np.uint8)
        _core.dequantize(
            np.ascontiguousarray(codes).view(np.uint8),
            block,
            kind(self.scheme, codebook),
            np.ascontiguousarray(scale),
            np.ascontiguousarray(zero),
            target,
        )
        if order is not None:
            given.reshape(matrix)[:, order] = target
        return given

    def _state(self, prefix: str) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays that are not None, by name."""
        names = ("codes", "scale", "zero_point", "codebook", "group_index")
        arrays = {prefix + name: getattr(self, name) for name in names}
        return {name: array for name, array in arrays.items() if array is not None}

    def copy(self) -> QuantizedTensor:
        """Return a copy with its own arrays."""
        return copy.deepcopy(self)

    def __len__(self) -> int:
        return len(self.codes)

    def __repr__(self) -> str:
        return f"<QuantizedTensor of shape {self.shape}, {self.scheme!r}, {self.nbytes} bytes>"


def kind(
    scheme: Scheme, codebook: npt.NDArray[Any] | None = None
) -> tuple[str, int, bool, npt.NDArray[Any] | None]:
    """Return the codes of a scheme in the form that the bindings take."""
    return scheme.dtype, scheme.bits, scheme.symmetric, codebook


def require_float(dtype: np.dtype[Any], name: str) -> None:
    """Raise TypeError unless arrays of this dtype can be quantized."""
    if not is_number(dtype) or dtype.kind in "iu" or dtype.itemsize > 8:
        raise TypeError(
            f"{name} must have dtype float32, float64, float16 or bfloat16, got {dtype}"
        )


def _of_dtype(x: Array, name: str, dtype: str) -> npt.NDArray[Any]:
    array = as_array(x, name)
    if array.dtype != dtype:
        raise TypeError(f"{name} must have dtype {dtype}, got {array.dtype}")
    return np.ascontiguousarray(array) if array.ndim else array


def checked_scale(
    scale: Array, shape: tuple[int, int], dtype: np.dtype[Any], name: str = "w"
) -> npt.NDArray[Any]:
    """Return checked scales in the compute type of `dtype`.

    Raises
    ------
    TypeError, ValueError
        If they are not floating-point numbers, positive and normal, of this shape.
    """
    array = as_array(scale, "scale")
    require_float(array.dtype, "scale")
    if array.shape != shape:
        raise ValueError(f"scale must have shape {shape} for {name}, got {array.shape}")
    compute = compute_dtype(dtype)
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, compute)
    least = np.finfo(compute).smallest_normal
    if not (np.isfinite(array) & (array >= least)).all():
        bad = array[~(np.isfinite(array) & (array >= least))][0]
        raise ValueError(f"scale must be finite and at least {least:g}, got {bad}")
    return array


def checked_zero_point(
    zero_point: Array | None, shape: tuple[int, int], scheme: Scheme
) -> npt.NDArray[Any] | None:
    """Return checked zero points in the dtype of the codes.

    Raises
    ------
    TypeError, ValueError
        If they are not integers, of this shape, in range, or given where there are none.
    """
    if not scheme.has_zero_point:
        if zero_point is not None:
            raise ValueError("zero_point must be None for a symmetric scheme, got an array")
        return None
    if zero_point is None:
        raise ValueError("zero_point must be given, as the scheme has it")
    array = as_array(zero_point, "zero_point")
    if array.dtype.kind not in "iu":
        raise TypeError(f"zero_point must have dtype {scheme.code_dtype}, got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"zero_point must have shape {shape}, got {array.shape}")
    low, high = limits(scheme)
    if array.size and not (low <= array.min() and array.max() <= high):
        raise ValueError(
            f"zero_point must be from {low} to {high}, got {array.min()} to {array.max()}"
        )
    return np.ascontiguousarray(array, scheme.code_dtype)


def limits(scheme: Scheme) -> tuple[int, int]:
    """Return the smallest and the largest code."""
    low = -(2 ** (scheme.bits - 1)) if scheme.dtype == "int" else 0
    return low, low + 2**scheme.bits - 1


def _are_codes(codes: npt.NDArray[Any], scheme: Scheme, codebook: npt.NDArray[Any] | None) -> bool:
    if codes.size == 0:
        return True
    if scheme.dtype.startswith("fp8"):
        largest = 0x7E if scheme.dtype == "fp8_e4m3" else 0x7B
        return bool((codes & 0x7F).max() <= largest)
    low, high = limits(scheme)
    if codebook is not None:
        high = codebook.shape[1] - 1
    return bool(low <= codes.min() and codes.max() <= high)


def _checked_codebook(
    codebook: Array | None, shape: tuple[int, int], scheme: Scheme, dtype: np.dtype[Any]
) -> npt.NDArray[Any] | None:
    if (codebook is not None) != (scheme.dtype == "codebook"):
        raise ValueError(
            f"codebook must {'' if codebook is None else 'not '}be given for {scheme.dtype!r}"
        )
    if codebook is None:
        return None
    array = as_array(codebook, "codebook")
    require_float(array.dtype, "codebook")
    blocks = shape[0] * shape[1]
    if array.ndim != 2 or len(array) != blocks or not 1 <= array.shape[1] <= 2**scheme.bits:
        need = f"({blocks}, 1 to {2**scheme.bits})"
        raise ValueError(f"codebook must have shape {need}, got {array.shape}")
    array = np.ascontiguousarray(array, compute_dtype(dtype))
    if not np.isfinite(array).all():
        raise ValueError("codebook must be finite, got NaN or infinity")
    return array


def _checked_group_index(
    group_index: Array | None, shape: tuple[int, ...], scheme: Scheme
) -> npt.NDArray[np.int32] | None:
    if group_index is None:
        return None
    if scheme.granularity != "group":
        raise ValueError("group_index must be None unless granularity is 'group'")
    array = as_array(group_index, "group_index")
    columns = scheme.matrix(shape)[1]
    if array.dtype.kind not in "iu":
        raise TypeError(f"group_index must have dtype int32, got {array.dtype}")
    expected = np.arange(columns) // scheme.block(shape)[1]
    if array.shape != (columns,) or not np.array_equal(np.sort(array), expected):
        raise ValueError(
            f"group_index must name a group for each of {columns} columns, "
            f"{scheme.group_size} a group and what is left in the last"
        )
    return np.ascontiguousarray(array, np.int32)

"""Quantization schemes: the codes, and which numbers share a scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

from compressrs._checks import choice, dimensions, flag, whole

#: Height and width of the blocks that share a scale.
Block: TypeAlias = tuple[int, int]

_BITS = {"int": 8, "uint": 8, "nf4": 4, "fp8_e4m3": 8, "fp8_e5m2": 8, "codebook": 4}
_GRANULARITIES = ("tensor", "channel", "group", "block")


@dataclass(frozen=True)
class Scheme:
    r"""Describe codes and the granularity of their scales.

    An array is treated as a matrix whose rows are its first axis and whose columns are all
    others, like the weight of a layer (outputs, inputs, ...). A vector is one row.

    ========== ================================================================
    ``dtype``  codes
    ========== ================================================================
    int        int8, :math:`-2^{b-1}` to :math:`2^{b-1} - 1`
    uint       uint8, 0 to :math:`2^b - 1`, with a zero point
    nf4        uint8, index of 16 levels: quantiles of the normal distribution
    fp8_e4m3   uint8, the bits of a float of 4 + 3 bits, up to 448
    fp8_e5m2   uint8, the bits of a float of 5 + 2 bits, up to 57344
    codebook   uint8, index of :math:`2^b` centroids that k-means finds
    ========== ================================================================

    Parameters
    ----------
    bits : int, optional
        2 to 8 for "int" and "uint" (default 8), 1 to 8 for "codebook" (default 4); fixed for
        the others.
    symmetric : bool, default True
        Whether the range is symmetric about 0; otherwise a zero point, the code of 0, is stored
        with each scale. Only "int" and
        "uint" can be asymmetric.
    granularity : {"channel", "tensor", "group", "block"}, default "channel"
        Which elements share a scale: a row, all, `group_size` adjacent ones in a row, or a block.
    group_size : int or pair of int, optional
        For "group" the number of elements; for "block" rows and columns, or one number for
        both. If it does not divide a row (or column), the last group is shorter.
    dtype : str, default "int"
        A row of the table.

    Raises
    ------
    TypeError, ValueError
        If a parameter has another value, or two cannot be combined.

    Examples
    --------
    >>> from compressrs.quantize import Scheme
    >>> Scheme(bits=4, granularity="group", group_size=128)
    Scheme(bits=4, symmetric=True, granularity='group', group_size=128, dtype='int')
    >>> Scheme(dtype="nf4", granularity="group", group_size=64).bits
    4
    """

    bits: int = None  # type: ignore[assignment]  # replaced by the default of the dtype
    symmetric: bool = True
    granularity: str = "channel"
    group_size: int | tuple[int, int] | None = None
    dtype: str = "int"

    def __post_init__(self) -> None:
        dtype = choice(self.dtype, "dtype", tuple(_BITS))
        choice(self.granularity, "granularity", _GRANULARITIES)
        self._set("bits", _bits(self.bits, dtype))
        self._set("symmetric", flag(self.symmetric, "symmetric"))
        if not self.symmetric and dtype not in ("int", "uint"):
            raise ValueError(f"symmetric must be True for dtype {dtype!r}, got False")
        self._set("group_size", _group_size(self.group_size, self.granularity))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def code_dtype(self) -> str:
        """The dtype of unpacked codes: "int8" or "uint8"."""
        return "int8" if self.dtype == "int" else "uint8"

    @property
    def has_zero_point(self) -> bool:
        """Whether codes are relative to a zero point."""
        return self.dtype == "uint" or not self.symmetric

    def matrix(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the shape of an array as a matrix.

        Raises
        ------
        ValueError
            If `shape` has no axis.
        """
        return matrix_shape(shape)

    def block(self, shape: tuple[int, ...]) -> Block:
        """Return the rows and columns of a block that shares a scale, at least 1 each."""
        rows, columns = self.matrix(shape)
        if isinstance(self.group_size, tuple):
            return self.group_size
        if self.group_size is not None:
            return 1, self.group_size
        return (max(rows, 1) if self.granularity == "tensor" else 1), max(columns, 1)

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the shape of the scales for an array of `shape`: blocks down and across."""
        rows, columns = self.matrix(shape)
        height, width = self.block(shape)
        return -(-rows // height), -(-columns // width)

    def nbytes(self, shape: tuple[int, ...], scale_itemsize: int = 4) -> int:
        """Return the bytes that an array of `shape` takes, codes packed at `bits` each."""
        shape, scale_itemsize = (
            dimensions(shape, "shape"),
            whole(scale_itemsize, "scale_itemsize", 1),
        )
        blocks = math.prod(self.scale_shape(shape))
        total: int = -(-math.prod(shape) * self.bits // 8)
        if self.dtype == "codebook":
            return total + blocks * scale_itemsize * (1 << self.bits)
        if self.has_zero_point:
            total += -(-blocks * self.bits // 8)
        return total + blocks * scale_itemsize


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape of an array as a matrix."""
    shape = dimensions(shape, "shape")
    if not shape:
        raise ValueError("shape must have at least one axis, got ()")
    return (1, shape[0]) if len(shape) == 1 else (shape[0], math.prod(shape[1:]))


def _bits(bits: Any, dtype: str) -> int:
    default = _BITS[dtype]
    if bits is None:
        return default
    bits = whole(bits, "bits", 1)
    if dtype in ("int", "uint", "codebook"):
        least = 1 if dtype == "codebook" else 2
        if not least <= bits <= 8:
            raise ValueError(f"bits must be from {least} to 8 for dtype {dtype!r}, got {bits}")
    elif bits != default:
        raise ValueError(f"bits must be {default} for dtype {dtype!r}, got {bits}")
    return int(bits)


def _group_size(size: Any, granularity: str) -> int | tuple[int, int] | None:
    if granularity not in ("group", "block"):
        if size is not None:
            raise ValueError(
                "group_size must be None unless granularity is 'group' or 'block', "
                f"got {size!r} with {granularity!r}"
            )
        return None
    if size is None:
        raise ValueError(f"group_size must be given for granularity {granularity!r}")
    if granularity == "group":
        return whole(size, "group_size", 1)
    if isinstance(size, (tuple, list)):
        if len(size) != 2:
            raise ValueError(f"group_size must be a number or (rows, columns), got {size!r}")
        return whole(size[0], "group_size", 1), whole(size[1], "group_size", 1)
    return whole(size, "group_size", 1), whole(size, "group_size", 1)

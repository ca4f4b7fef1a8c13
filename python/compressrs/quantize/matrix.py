"""Products with quantized weights, packed once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, as_array
from compressrs._checks import choice, number, positive, whole

_INPUTS = ("float32", "int8")
_ACTIVATIONS = ("relu", "gelu")

#: The normal range of float32.
_NORMAL = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)

#: Longer groups are cut in parts of this many columns, so that sums fit int32.
_MAX_GROUP = 1 << 16


class QuantizedMatrix:
    r"""A matrix of quantized weights, packed for products with rows of activations.

    .. math:: W_{nk} = s_{ng}\,(c_{nk} - z_{ng}), \qquad g = \lfloor k / G \rfloor

    with groups of :math:`G` columns. Codes of up to 4 bits take half a byte each, others a
    byte. They are copied, so that later changes of `q` have no effect.

    Parameters
    ----------
    q : QuantizedTensor, shape (out, in)
        Of dtype "int" or "uint", "nf4", or a codebook of up to 4 bits for the whole tensor.
        An array with more than two axes is treated as a matrix whose rows are the first axis.

    Attributes
    ----------
    shape : pair of int
        Outputs and inputs.
    bits, group_size : int
    nbytes : int
        Bytes of packed codes, scales and zero points, padding included.
    codes, scale, zero_point : array
        Unpacked copies; one scale and zero point for each output and group.

    Raises
    ------
    TypeError
        If an array has another dtype.
    ValueError
        If the dtype of `q` is not supported (use ``q.dequantize()`` then), codes or zero points
        are out of range, scales are not finite, or shapes do not fit.
    MemoryError
        If the packed copy does not fit into memory.

    Examples
    --------
    >>> import numpy as np
    >>> from compressrs.quantize import QuantizedMatrix
    >>> codes = np.array([[1, -2, 3], [4, 5, -128]], np.int8)
    >>> W = QuantizedMatrix.from_codes(codes, np.array([[0.5], [2.0]], np.float32))
    >>> W.linear(np.ones((1, 3), np.float32))
    array([[   1., -238.]], dtype=float32)
    """

    def __init__(self, q: Any) -> None:
        if not (hasattr(q, "scheme") and hasattr(q, "codes")):
            raise TypeError(f"q must be a QuantizedTensor, got {type(q).__name__}")
        scheme, codes, scale = q.scheme, as_array(q.codes, "codes"), as_array(q.scale, "scale")
        if codes.ndim == 0:
            raise ValueError("q must have at least one axis, got a scalar")
        levels = None
        if scheme.dtype not in ("int", "uint"):
            levels = _levels(q)
        rows, columns = scheme.matrix(codes.shape)
        height, width = scheme.block(codes.shape)
        codes = codes.reshape(rows, columns)
        zero = None if q.zero_point is None else as_array(q.zero_point, "zero_point")
        if height > 1:
            scale = np.repeat(scale, height, axis=0)[:rows]
            zero = None if zero is None else np.repeat(zero, height, axis=0)[:rows]
        order = None
        if getattr(q, "group_index", None) is not None:
            # Columns of a group are adjacent only after sorting.
            order = np.argsort(q.group_index, kind="stable")
            codes = codes[:, order]
        self._pack(codes, scale, zero, scheme.bits, min(width, max(columns, 1)), levels, order)

    @classmethod
    def from_codes(
        cls,
        codes: Array,
        scale: Array | float,
        zero_point: Array | None = None,
        *,
        bits: int = 8,
        group_size: int | None = None,
        levels: Array | None = None,
    ) -> QuantizedMatrix:
        """Pack codes and scales from other sources.

        Parameters
        ----------
        codes : array of int8 or uint8, shape (out, in)
            Signed, from ``-2**(bits - 1)``, or unsigned.
        scale : array of float32, shape (out, groups)
            Finite; with one group also (out,) or, for all outputs, a scalar.
        zero_point : array, shape of `scale`, optional
            Of the dtype of `codes`, in their range; default 0.
        bits : int, default 8
            2 to 8.
        group_size : int, optional
            Columns that share a scale; default all. The last group may be shorter.
        levels : array of float32, shape (2**bits,), optional
            The value of each code, for unsigned codes of up to 4 bits; products then require
            ``input="float32"``.

        Raises
        ------
        TypeError, ValueError, MemoryError
            As the class.

        Examples
        --------
        >>> import numpy as np
        >>> from compressrs.quantize import QuantizedMatrix
        >>> codes = np.array([[0, 15, 7, 9]], np.uint8)
        >>> scale, zero = np.array([[1.0, 0.5]], np.float32), np.array([[8, 7]], np.uint8)
        >>> W = QuantizedMatrix.from_codes(codes, scale, zero, bits=4, group_size=2)
        >>> W.linear(np.ones((1, 4), np.float32), input="int8")
        array([[0.]], dtype=float32)
        """
        self = cls.__new__(cls)
        codes = as_array(codes, "codes")
        if isinstance(scale, (int, float, np.generic)):
            scale = np.array(number(scale, "scale"), np.float32)
        scale = as_array(scale, "scale")
        if codes.ndim != 2:
            raise ValueError(f"codes must have 2 axes, got shape {codes.shape}")
        bits = whole(bits, "bits", 2, 8)
        columns = max(codes.shape[1], 1)
        group = columns if group_size is None else min(whole(group_size, "group_size", 1), columns)
        if scale.ndim == 0:
            scale = np.broadcast_to(scale, (codes.shape[0], 1))
        elif scale.ndim == 1:
            scale = scale[:, None]
        if zero_point is not None:
            zero_point = as_array(zero_point, "zero_point")
            if zero_point.ndim == 0:
                zero_point = np.broadcast_to(zero_point, scale.shape)
            elif zero_point.ndim == 1:
                zero_point = zero_point[:, None]
        if levels is not None:
            levels = as_array(levels, "levels")
        self._pack(codes, scale, zero_point, bits, group, levels, None)
        return self

    def _pack(
        self,
        codes: Array,
        scale: Array,
        zero: Array | None,
        bits: int,
        group: int,
        levels: Array | None,
        order: npt.NDArray[np.intp] | None,
    ) -> None:
        self.bits, self.group_size = bits, group
        self._sums: npt.NDArray[np.float64] | None = None
        self._levels = None if levels is None else levels.copy()
        self._order = order
        self._shape = (codes.shape[0], codes.shape[1])
        columns = codes.shape[1]
        if scale.dtype == np.float64:
            scale = scale.astype(np.float32)
        part = min(group, _MAX_GROUP)
        if part < group:
            if columns > group:
                raise ValueError(
                    f"group_size must be at most {_MAX_GROUP}, or all {columns} columns, "
                    f"got {group}"
                )
            parts = -(-columns // part)
            scale = np.repeat(scale, parts, axis=1)
            zero = None if zero is None else np.repeat(zero, parts, axis=1)
        self._core = _core.PackedWeights((codes, zero, levels), scale, bits, part)

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self._shape

    @property
    def nbytes(self) -> int:
        """Bytes of packed codes, scales and zero points, padding included."""
        return self._core.nbytes

    @property
    def codes(self) -> npt.NDArray[Any]:
        """The codes, unpacked."""
        codes = self._core.codes()
        if self._order is not None:
            unsorted = np.empty_like(codes)
            unsorted[:, self._order] = codes
            return unsorted
        return codes

    @property
    def scale(self) -> npt.NDArray[np.float32]:
        """The scales, of outputs and groups."""
        return self._of_groups(self._core.scale())

    @property
    def zero_point(self) -> npt.NDArray[Any]:
        """The zero points, of outputs and groups."""
        return self._of_groups(self._core.zero_point())

    def _of_groups(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what groups have, not their parts."""
        return x[:, :1] if self.group_size > _MAX_GROUP else x

    def linear(
        self,
        x: Array,
        bias: Array | None = None,
        activation: str | None = None,
        input: str = "float32",
        out: Array | None = None,
        *,
        input_scale: Array | float | None = None,
        input_zero_point: int = 0,
        output_scale: float | None = None,
        output_zero_point: int = 0,
    ) -> npt.NDArray[Any]:
        r"""Return ``activation(x @ W.T + bias)``.

        With ``input="float32"`` the weights alone are quantized:

        .. math:: y_{bn} = \sum_g s_{ng} \sum_{k \in g} x_{bk}\,(c_{nk} - z_{ng})

        the inner sum one chain of fused multiply-adds in float32. With ``input="int8"``
        each row of `x` becomes codes :math:`q_{bk} = \mathrm{round}(x_{bk} / t_b)`,
        :math:`t_b = \max_k |x_{bk}| / 127`, ties to even, and

        .. math:: y_{bn} = t_b \sum_g s_{ng} \sum_{k \in g} q_{bk}\,(c_{nk} - z_{ng})

        whose inner sum is an exact integer. It is rounded to float32, multiplied by
        :math:`s_{ng}` and added to the groups before it, from the first to the last; the
        total is multiplied by :math:`t_b`; then `bias` is added: each operation rounds to
        float32 on its own, in this order, so that results have the same bits for every
        instruction set, number of threads and batch.

        With one `input_scale` :math:`t` for float32 `x`, codes are fixed before:
        :math:`q_{bk} = \mathrm{clip}(\mathrm{round}(x_{bk} / t) + u, -128, 127)` with
        `input_zero_point` :math:`u`, and the bias, in float32, is
        :math:`b_n - t\,u \sum_g s_{ng} \sum_{k \in g} (c_{nk} - z_{ng})`.

        Parameters
        ----------
        x : array of float32, shape (batch, in)
            Copied if not C-contiguous. With `input_scale` it may be int8 codes.
        bias : array of float32, shape (out,), optional
        activation : {"relu", "gelu"}, optional
            ``max(y, 0)``, or :math:`y\,\Phi(y)` with the normal distribution's
            :math:`\Phi`.
        input : {"float32", "int8"}, default "float32"
            "int8" is faster: slightly for one row, several times for many.
        out : array, shape (batch, out), optional
            Receives the result; C-contiguous.
        input_scale : array of float32, shape (batch,), or float, optional
            With ``input="int8"``: the scales :math:`t_b` of int8 `x`, or the one by which
            float32 `x` is quantized.
        input_zero_point : int, default 0
            -128 to 127; other than 0 only with one `input_scale` for all rows.
        output_scale : float, optional
            Return int8: ``clip(round(y / output_scale) + output_zero_point, -128, 127)``,
            rounded half to even.
        output_zero_point : int, default 0
            -128 to 127.

        Returns
        -------
        array of float32, or int8 with `output_scale`, shape (batch, out)

        Raises
        ------
        TypeError
            If an array has another dtype.
        ValueError
            If a shape does not fit, `out` cannot be written or shares memory with another
            argument, a parameter is out of range, ``input="int8"`` is combined with levels that
            are not integers, or numbers that are not finite would become int8.

        Notes
        -----
        A row of `x` with NaN or infinity becomes NaN with ``input="int8"``. A row of zeros
        has the scale 0, unless `input_scale` is given.
        """
        choice(input, "input", _INPUTS)
        if activation is not None:
            choice(activation, "activation", _ACTIVATIONS)
        integers = input == "int8"
        if integers and self._levels is not None:
            raise ValueError("input must be 'float32' for codes with levels, got 'int8'")
        x = as_array(x, "x")
        if x.ndim != 2:
            raise ValueError(f"x must have shape (batch, {self._shape[1]}), got {x.shape}")
        shape = (x.shape[0], self._shape[0])
        zero = whole(input_zero_point, "input_zero_point", -128, 127)
        one = isinstance(input_scale, (int, float, np.generic))
        if zero and not one:
            raise ValueError(f"input_zero_point needs one input_scale for all rows, got {zero}")
        if input_scale is not None:
            if not integers:
                raise ValueError("input_scale needs input='int8', got 'float32'")
            if one:
                step = _normal(input_scale, "input_scale")
                bias = self._shifted(bias, step, zero)
                input_scale = np.full(shape[0], step, np.float32)
            input_scale = as_array(input_scale, "input_scale")
            if not (np.isfinite(input_scale) & (input_scale >= 0)).all():
                raise ValueError("input_scale must be finite and not negative, got others")
        requantize = None
        if output_scale is not None:
            requantize = (
                _normal(output_scale, "output_scale"),
                whole(output_zero_point, "output_zero_point", -128, 127),
            )
        given = x
        if self._order is not None:
            if x.shape[1] != self._shape[1]:
                raise ValueError(f"x must have shape (batch, {self._shape[1]}), got {x.shape}")
            x = np.take(x, self._order, axis=1)
        if one and x.dtype != np.int8:
            x, input_scale = _fixed_codes(x, step, zero)
            if requantize is not None and not np.isfinite(input_scale).all():
                raise ValueError("x must be finite for an output in codes, got NaN or infinity")
        if x is not given and out is not None and np.may_share_memory(given, as_array(out, "out")):
            raise ValueError("out and x share memory, which must not be (pass a copy of one)")
        if out is None:
            result = np.empty(shape, np.float32 if requantize is None else np.int8)
        else:
            result = as_array(out, "out")
        if bias is not None:
            bias = as_array(bias, "bias")
        self._core.linear(x, integers, input_scale, bias, activation or "none", result, requantize)
        return result

    def _shifted(self, bias: Array | None, step: float, zero: int) -> Array | None:
        """Return the bias without what the zero point of the input adds to the sums."""
        if not zero:
            return bias
        if self._sums is None:
            self._sums = self._sums_of_rows()
        shift: npt.NDArray[np.float64] = step * zero * self._sums
        if bias is None:
            return (-shift).astype(np.float32)
        before = as_array(bias, "bias")
        if before.dtype != np.float32 or before.shape != self._shape[:1]:
            # As it is, to be refused with what is wrong about it.
            return bias
        return (before - shift).astype(np.float32)

    def _sums_of_rows(self) -> npt.NDArray[np.float64]:
        """Return the sum of each row."""
        starts = np.arange(0, self._shape[1], self.group_size)
        if not len(starts):
            return np.zeros(self._shape[0])
        codes, zero = self._core.codes().astype(np.int64), self.zero_point.astype(np.int64)
        lengths = np.diff(np.append(starts, self._shape[1]))
        sums = np.add.reduceat(codes, starts, axis=1) - zero * lengths
        total: npt.NDArray[np.float64] = (sums * self.scale.astype(np.float64)).sum(axis=1)
        return total

    def __repr__(self) -> str:
        return (
            f"<QuantizedMatrix of shape {self._shape}, {self.bits} bits, "
            f"groups of {self.group_size}>"
        )

    def __getstate__(self) -> dict[str, Any]:
        zero = None if self._levels is not None else self.zero_point
        return {
            "version": 1,
            "codes": self._core.codes(),
            "scale": self.scale,
            "zero_point": zero,
            "bits": self.bits,
            "group_size": self.group_size,
            "levels": self._levels,
            "order": self._order,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._pack(
            state["codes"],
            state["scale"],
            state["zero_point"],
            state["bits"],
            state["group_size"],
            state["levels"],
            state["order"],
        )


def _normal(x: Any, name: str) -> float:
    """Return a scale that is a positive normal float32."""
    step = positive(x, name)
    if not _NORMAL[0] <= step <= _NORMAL[1]:
        raise ValueError(f"{name} must be a normal float32, got {x!r}")
    return float(np.float32(step))


def _fixed_codes(
    x: Array, step: float, zero: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return the codes of rows, and their scales: NaN of those that are not finite."""
    codes, scales = np.empty(x.shape, np.int8), np.empty(len(x), np.float32)
    _core.fixed_codes(x, step, zero, codes, scales)
    return codes, scales


def _levels(q: Any) -> npt.NDArray[np.float32]:
    """Return the value of each code of `q`, without the scale."""
    scheme, codebook = q.scheme, getattr(q, "codebook", None)
    if scheme.bits > 4 or (codebook is not None and len(codebook) != 1):
        raise ValueError(
            f"q must be of dtype 'int', 'uint' or 'nf4', or have one codebook of up to 4 bits, "
            f"got {scheme!r}; multiply by q.dequantize() instead"
        )
    codes = np.arange(2**scheme.bits, dtype=np.uint8)[None]
    if codebook is not None:
        levels = np.zeros(codes.size, np.float32)
        levels[: codebook.shape[1]] = codebook[0]
        return levels
    whole = type(scheme)(dtype=scheme.dtype, granularity="tensor")
    one = np.ones((1, 1), np.float32)
    levels = type(q)(codes, one, scheme=whole, dtype=np.float32).dequantize()[0]
    return np.ascontiguousarray(levels)


def matmul_integer(
    a: Array, b: Array, out: npt.NDArray[np.int32] | None = None
) -> npt.NDArray[np.int32]:
    """Return ``a @ b`` of bytes in int32, exactly, on every instruction set.

    Uses the byte products of the instruction set, without saturation; NumPy has no fast integer
    product.

    Parameters
    ----------
    a : array of int8 or uint8, shape (m, k)
    b : array of int8 or uint8, shape (k, n)
    out : array of int32, shape (m, n), optional
        Receives the result; C-contiguous.

    Returns
    -------
    array of int32, shape (m, n)

    Raises
    ------
    TypeError
        If an array has another dtype.
    ValueError
        If shapes do not fit, `out` cannot be written or shares memory with a factor, or
        `k` is so large that a sum could leave int32: above 131,071 for int8 by int8,
        65,793 for int8 by uint8, 33,025 for uint8 by uint8.

    Examples
    --------
    >>> import numpy as np
    >>> from compressrs.quantize import matmul_integer
    >>> a = np.full((1, 4), -128, np.int8)
    >>> matmul_integer(a, a.T)
    array([[65536]], dtype=int32)
    """
    a, b = as_array(a, "a"), as_array(b, "b")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"a and b must have shapes (m, k) and (k, n), got {a.shape} and {b.shape}")
    out = np.empty((a.shape[0], b.shape[1]), np.int32) if out is None else as_array(out, "out")
    _core.matmul_integer(a, b, out)
    return out

"""Rounding to the nearest code."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, as_array, compute_dtype
from compressrs.quantize.scheme import Scheme
from compressrs.quantize.tensor import (
    QuantizedTensor,
    checked_scale,
    checked_zero_point,
    kind,
    require_float,
)


def quantize(
    w: Array,
    scheme: Scheme,
    *,
    scale: Array | None = None,
    zero_point: Array | None = None,
) -> QuantizedTensor:
    r"""Round an array to the nearest codes.

    With :math:`n = 2^b - 1` steps, each block of `w` that shares a scale gets

    .. math::
        s = \frac{\max |w|}{n / 2} \quad\text{(symmetric)}, \qquad
        s = \frac{\max(w, 0) - \min(w, 0)}{n},\; z = \mathrm{round}(q_{\min} - \min(w, 0) / s)

    .. math:: q = \mathrm{clamp}(\mathrm{round}(w / s) + z,\, q_{\min},\, q_{\max})

    rounded half to even. Levels of "nf4" and numbers of FP8 are the nearest to
    :math:`w / s`, :math:`s = \max |w|` over the largest level; of two equally near, FP8
    takes the even one and "nf4" the lower one.

    Parameters
    ----------
    w : array
        float32, float64, float16 or bfloat16, at least one axis; computed in float32, or
        float64 if it is that.
    scheme : Scheme
    scale, zero_point : array, optional
        Given instead of found, see `QuantizedTensor`; the zero point with the scale where
        the scheme has it.

    Returns
    -------
    QuantizedTensor

    Raises
    ------
    TypeError
        If `w` is not such an array or `scheme` is no Scheme.
    ValueError
        If `w` holds NaN or infinity, or a scale or zero point is out of range.

    Notes
    -----
    A block of zeros gets the scale 1. A scale that would be subnormal becomes the smallest
    normal number.

    Examples
    --------
    >>> import numpy as np
    >>> from compressrs.quantize import Scheme, quantize
    >>> w = np.array([[-1.5, 0.2, 0.7, 1.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    >>> q = quantize(w, Scheme(bits=4))
    >>> q.codes
    array([[-8,  1,  4,  5],
           [ 0,  0,  0,  0]], dtype=int8)
    >>> q.scale.ravel()
    array([0.2, 1. ], dtype=float32)
    """
    return rounded(w, scheme, scale, zero_point, "w")


def rounded(
    w: Array, scheme: Scheme, scale: Array | None, zero_point: Array | None, name: str
) -> QuantizedTensor:
    """Return what `quantize` does, of an argument with this name."""
    w, matrix = checked_weight(w, scheme, name)
    if scheme.dtype == "codebook":
        raise ValueError("scheme must not be a codebook, whose levels kmeans finds")
    if zero_point is not None and scale is None:
        raise ValueError("zero_point needs scale, got zero_point alone")
    shape = scheme.scale_shape(w.shape)
    codes = np.empty(matrix.shape, scheme.code_dtype)
    own = scale is None
    if scale is None:
        found = np.empty(shape, compute_dtype(w.dtype))
        zero: Any = np.empty(shape, scheme.code_dtype)
    else:
        found = checked_scale(scale, shape, w.dtype, name)
        zero = checked_zero_point(zero_point, shape, scheme)
        if not np.isfinite(matrix).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
        if zero is None:
            zero = np.zeros(shape, scheme.code_dtype)
    _core.quantize(
        matrix,
        name,
        scheme.block(w.shape),
        kind(scheme),
        own,
        found,
        zero.view(np.uint8),
        codes.view(np.uint8),
    )
    return QuantizedTensor._of(
        scheme,
        w.dtype,
        codes=codes.reshape(w.shape),
        scale=found,
        zero_point=zero if scheme.has_zero_point else None,
    )


def parameters(
    low: Array, high: Array, scheme: Scheme
) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    """Return the scales and zero points for ranges, with the formulas of `quantize`.

    Parameters
    ----------
    low, high : array, shape (blocks down, blocks across)
        The smallest and largest value of each block, float32 or float64, finite; 0 is
        added to the range.
    scheme : Scheme

    Returns
    -------
    scale : array
        Of the shape and dtype of `low`.
    zero_point : array or None
        Of the same shape, where the scheme has it.

    Raises
    ------
    TypeError, ValueError
        If an array has another dtype or shape, a range is empty or not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from compressrs.quantize import Scheme, parameters
    >>> scheme = Scheme(bits=8, symmetric=False, granularity="tensor", dtype="uint")
    >>> parameters(np.array([[-1.0]]), np.array([[1.55]]), scheme)
    (array([[0.01]]), array([[100]], dtype=uint8))
    """
    if not isinstance(scheme, Scheme):
        raise TypeError(f"scheme must be a Scheme, got {type(scheme).__name__}")
    low, high = as_array(low, "low"), as_array(high, "high")
    for array, name in ((low, "low"), (high, "high")):
        if array.dtype not in (np.float32, np.float64) or array.dtype != low.dtype:
            raise TypeError(
                f"low and high must both have dtype float32 or float64, got {array.dtype} "
                f"for {name}"
            )
        if array.ndim != 2 or array.shape != low.shape:
            raise ValueError(f"low and high must have two axes, of one shape, got {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    if (low > high).any():
        raise ValueError("low must not be above high")
    scale, zero = np.empty(low.shape, low.dtype), np.empty(low.shape, scheme.code_dtype)
    _core.scales(
        np.ascontiguousarray(low),
        np.ascontiguousarray(high),
        kind(scheme),
        scale,
        zero.view(np.uint8),
    )
    return scale, zero if scheme.has_zero_point else None


def checked_weight(
    w: Array, scheme: Scheme, name: str = "w"
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return `w` as an array, and as the matrix that a scheme sees.

    Raises
    ------
    TypeError, ValueError
        If it is no array of floating-point numbers with an axis, or `scheme` no Scheme.
    """
    if not isinstance(scheme, Scheme):
        raise TypeError(f"scheme must be a Scheme, got {type(scheme).__name__}")
    w = as_array(w, name)
    require_float(w.dtype, name)
    if w.ndim == 0:
        raise ValueError(f"{name} must have at least one axis, got a single number")
    return w, w.reshape(scheme.matrix(w.shape))

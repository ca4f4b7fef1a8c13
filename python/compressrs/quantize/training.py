"""Quantization-aware training: rounding in the forward pass, straight-through gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, as_array, compute_dtype
from compressrs._checks import flag
from compressrs.quantize.rounding import checked_weight, rounded
from compressrs.quantize.scheme import Scheme
from compressrs.quantize.tensor import checked_scale, checked_zero_point, kind, limits


def fake_quantize(
    x: Array,
    scheme: Scheme,
    scale: Array | None = None,
    zero_point: Array | None = None,
    *,
    out: Array | None = None,
) -> npt.NDArray[Any]:
    r"""Return ``quantize(x, ...).dequantize()``, computed in a single pass.

    Parameters
    ----------
    x : array
        float32, float64, float16 or bfloat16, at least one axis.
    scheme : Scheme
        Not "codebook".
    scale, zero_point : array, optional
        See `quantize`; by default from the range of `x`, which must be finite then. With a given
        scale, NaN is propagated and infinities are clipped.
    out : array, optional
        Receives the result; of this shape and dtype, C-contiguous.

    Returns
    -------
    array
        In the shape and dtype of `x`.

    Raises
    ------
    TypeError, ValueError
        Those of `quantize`; if `out` does not fit.

    References
    ----------
    Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", arXiv 1712.05877.

    Examples
    --------
    >>> import numpy as np
    >>> from compressrs.quantize import Scheme, fake_quantize
    >>> fake_quantize(np.array([[0.3, -0.8, 9.0]]), Scheme(bits=2), np.array([[0.5]]))
    array([[ 0.5, -1. ,  0.5]])
    """
    x, matrix = checked_weight(x, scheme, "x")
    y = _like(x, out)
    found, zero = _given(x, scheme, scale, zero_point)
    block = scheme.block(x.shape)
    _core.fake_quantize(matrix, block, kind(scheme), found, zero, y.reshape(matrix.shape))
    return y


def fake_quantize_backward(
    x: Array,
    dy: Array,
    scheme: Scheme,
    scale: Array,
    zero_point: Array | None = None,
    *,
    lsq: bool = True,
    out: Array | None = None,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    r"""Return the gradients of `fake_quantize` with respect to `x` and to the scale.

    With :math:`y` its result, and :math:`v = x / s` without the zero point,

    .. math::
        \frac{\partial L}{\partial x} = \begin{cases} \partial L / \partial y & x \text{ in
        range} \\ 0 & \text{else} \end{cases} \qquad
        \frac{\partial L}{\partial s} = g \sum \frac{\partial L}{\partial y}
        \begin{cases} y / s - v & x \text{ in range} \\ y / s & \text{else} \end{cases}

    Parameters
    ----------
    x, dy : array
        The input and the gradient with respect to the result, with equal shapes and dtypes.
    scheme, scale, zero_point
        As given to `fake_quantize`.
    lsq : bool, default True
        Whether :math:`g = 1 / \sqrt{N q_{\max}}`, N the elements of a block, LSQ's factor that
        balances the updates of scales and weights; otherwise 1.
    out : array, optional
        Receives `dx`.

    Returns
    -------
    dx : array
        In the shape and dtype of `x`.
    dscale : array
        Of the shape and dtype of `scale`.

    Raises
    ------
    TypeError, ValueError
        Those of `fake_quantize`; if `dy` does not match `x`.

    References
    ----------
    Esser et al., "Learned Step Size Quantization", arXiv 1902.08153, equations 3 and 5.

    Examples
    --------
    >>> import numpy as np
    >>> from compressrs.quantize import Scheme, fake_quantize_backward
    >>> x, dy = np.array([[0.3, -0.8, 9.0]]), np.ones((1, 3))
    >>> dx, dscale = fake_quantize_backward(x, dy, Scheme(bits=2), np.array([[0.5]]), lsq=False)
    >>> dx, dscale.round(6)
    (array([[1., 1., 0.]]), array([[1.]]))
    """
    x, matrix = checked_weight(x, scheme, "x")
    dy = as_array(dy, "dy")
    if dy.shape != x.shape:
        raise ValueError(f"dy must have the shape {x.shape} of x, got {dy.shape}")
    if dy.dtype != x.dtype:
        raise TypeError(f"dy must have the dtype {x.dtype} of x, got {dy.dtype}")
    lsq = flag(lsq, "lsq")
    dx = _like(x, out)
    found, zero = _given(x, scheme, scale, zero_point)
    dscale = np.empty_like(found)
    block = scheme.block(x.shape)
    _core.fake_quantize_backward(
        matrix,
        dy.reshape(matrix.shape),
        block,
        kind(scheme),
        found,
        zero,
        dx.reshape(matrix.shape),
        dscale,
    )
    if lsq and dscale.size:
        dscale *= (1 / np.sqrt(_block_sizes(matrix.shape, block) * _largest(scheme))).astype(
            dscale.dtype
        )
    return dx, dscale


def lsq_scale(w: Array, scheme: Scheme) -> npt.NDArray[Any]:
    r"""Return LSQ's initial scales, :math:`2\,\mathrm{mean}|w| / \sqrt{q_{\max}}`.

    Parameters
    ----------
    w : array
        As for `quantize`.
    scheme : Scheme
        Symmetric "int".

    Raises
    ------
    TypeError, ValueError
        Those of `quantize`; if the scheme is not symmetric "int".

    References
    ----------
    Esser et al., arXiv 1902.08153, section 2.1.

    Examples
    --------
    >>> import numpy as np
    >>> from compressrs.quantize import Scheme, lsq_scale
    >>> lsq_scale(np.array([[1.0, -3.0]]), Scheme(bits=3))
    array([[2.30940108]])
    """
    w, matrix = checked_weight(w, scheme)
    if scheme.dtype != "int" or not scheme.symmetric:
        raise ValueError(f"scheme must be symmetric with dtype 'int', got {scheme}")
    if not np.isfinite(matrix).all():
        raise ValueError("w must be finite, got NaN or infinity")
    height, width = scheme.block(w.shape)
    rows, columns = np.arange(0, len(matrix), height), np.arange(0, matrix.shape[1], width)
    magnitudes = np.abs(matrix.astype(np.float64))
    if not magnitudes.size:
        return np.ones(scheme.scale_shape(w.shape), compute_dtype(w.dtype))
    sums = np.add.reduceat(np.add.reduceat(magnitudes, columns, axis=1), rows, axis=0)
    means = sums / _block_sizes(matrix.shape, (height, width))
    scale = 2 * means / math.sqrt(_largest(scheme))
    compute = compute_dtype(w.dtype)
    scale = np.where(means == 0, 1, np.maximum(scale, np.finfo(compute).smallest_normal))
    return scale.astype(compute)


def _largest(scheme: Scheme) -> int:
    return max(limits(scheme)[1], 1)


def _block_sizes(shape: tuple[int, ...], block: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Return the elements of each block of a matrix."""
    heights, widths = (
        np.minimum(step, n - np.arange(0, n, step)) for n, step in zip(shape, block, strict=True)
    )
    sizes: npt.NDArray[np.int64] = np.multiply.outer(heights, widths)
    return sizes


def _given(
    x: npt.NDArray[Any], scheme: Scheme, scale: Array | None, zero_point: Array | None
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the scales and the bytes of zero points, given (and checked) or computed."""
    if scheme.dtype == "codebook":
        raise ValueError("scheme must not be a codebook")
    zero: npt.NDArray[Any] | None
    if scale is None:
        if zero_point is not None:
            raise ValueError("zero_point needs scale, got zero_point alone")
        q = rounded(x, scheme, None, None, "x")
        found, zero = q.scale, q.zero_point
    else:
        shape = scheme.scale_shape(x.shape)
        found = checked_scale(scale, shape, x.dtype, "x")
        zero = checked_zero_point(zero_point, shape, scheme)
    return found, np.zeros(found.shape, np.uint8) if zero is None else zero.view(np.uint8)


def _like(x: npt.NDArray[Any], out: Array | None) -> npt.NDArray[Any]:
    if out is None:
        return np.empty(x.shape, x.dtype)
    given = as_array(out, "out")
    if given.dtype != x.dtype:
        raise TypeError(f"out must have the dtype {x.dtype} of x, got {given.dtype}")
    if given.shape != x.shape or not given.flags.c_contiguous:
        raise ValueError(f"out must be C-contiguous, of the shape {x.shape} of x")
    return given

"""Softmax with temperature, log-softmax, and log-sum-exp."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, as_array
from compressrs._checks import integer, positive


def softmax(
    z: Array, temperature: float | Array = 1.0, axis: int = -1, out: Array | None = None
) -> npt.NDArray[Any]:
    r"""Return the softmax of logits at a temperature.

    .. math:: p_j = \frac{\exp(z_j / T)}{\sum_k \exp(z_k / T)}

    Parameters
    ----------
    z : array
        Logits, float32, float64, float16 or bfloat16, of any shape. Half precision is
        computed in single precision.
    temperature : float or array, default 1.0
        :math:`T > 0`; larger values give a more uniform distribution. An array gives one
        temperature per slice along `axis`: its shape is that of `z` without that axis.
    axis : int, default -1
        The axis over which the result sums to 1.
    out : array, optional
        Where to write the result, with the shape and dtype of `z`; may be `z` itself.

    Returns
    -------
    array
        Of the shape and dtype of `z`. Slices along `axis` that contain NaN or +inf, or only
        -inf, become NaN. The largest logit is subtracted first, so finite logits never
        overflow.

    Raises
    ------
    TypeError
        If `z` or `out` is not an array of such a dtype.
    ValueError
        If `temperature` is not in [1e-30, 1e30] or of another shape, `axis` is out
        of range, or `out` has another shape, is read-only, not C-contiguous, or shares
        only part of its memory with `z`.

    References
    ----------
    Hinton, Vinyals & Dean, arXiv 1503.02531, equation 1.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> z = np.array([1.0, 2.0, 3.0])
    >>> cr.distill.softmax(z).round(3)
    array([0.09 , 0.245, 0.665])
    >>> cr.distill.softmax(z, temperature=10).round(3)
    array([0.301, 0.332, 0.367])
    """
    return _softmax(z, temperature, axis, out, log=False)


def log_softmax(
    z: Array, temperature: float | Array = 1.0, axis: int = -1, out: Array | None = None
) -> npt.NDArray[Any]:
    r"""Return the logarithm of the softmax, accurate for probabilities that underflow.

    .. math:: \log p_j = z_j / T - \log \sum_k \exp(z_k / T)

    Parameters, result and errors are those of `softmax`.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> cr.distill.log_softmax(np.array([0.0, -1000.0]))
    array([    0., -1000.])
    """
    return _softmax(z, temperature, axis, out, log=True)


def logsumexp(
    z: Array, temperature: float | Array = 1.0, axis: int = -1, out: Array | None = None
) -> npt.NDArray[Any]:
    r"""Return the log-sum-exp of logits at a temperature.

    .. math:: \log \sum_k \exp(z_k / T)

    Parameters are those of `softmax`; the shape of `out` lacks the axis.

    Returns
    -------
    array
        Of the dtype of `z`, without the axis: +inf for slices that contain +inf, -inf for
        slices that are empty or contain only -inf, NaN for slices that contain NaN.

    Raises
    ------
    TypeError
        If `z` or `out` is not an array of such a dtype.
    ValueError
        As for `softmax`; `out` must not share memory with `z`.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> cr.distill.logsumexp(np.zeros((2, 4)), axis=0).round(4)
    array([0.6931, 0.6931, 0.6931, 0.6931])
    """
    z = as_array(z, "z")
    axis = _axis(axis, z.ndim)
    shape = z.shape[:axis] + z.shape[axis + 1 :]
    out = np.empty(shape, z.dtype) if out is None else as_array(out, "out")
    _core.logsumexp(z, temperatures(temperature, shape), axis, out)
    return out


def _softmax(
    z: Array, temperature: float | Array, axis: int, out: Array | None, *, log: bool
) -> npt.NDArray[Any]:
    z = as_array(z, "z")
    axis = _axis(axis, z.ndim)
    out = np.empty(z.shape, z.dtype) if out is None else as_array(out, "out")
    t = temperatures(temperature, z.shape[:axis] + z.shape[axis + 1 :])
    _core.softmax(z, t, axis, log, out)
    return out


#: Within these a temperature, its square and their reciprocals are numbers in any dtype.
_COLDEST, _HOTTEST = 1e-30, 1e30


def one_temperature(value: Any) -> float:
    """Return a temperature as a float.

    Raises
    ------
    TypeError
        If it is not a number.
    ValueError
        If it is not in [1e-30, 1e30].
    """
    t = positive(value, "temperature")
    if not _COLDEST <= t <= _HOTTEST:
        raise ValueError(f"temperature must be in [{_COLDEST:g}, {_HOTTEST:g}], got {t:g}")
    return t


def temperatures(value: float | Array, shape: tuple[int, ...]) -> float | npt.NDArray[np.float64]:
    """Return a temperature for all rows, or a flat array with one per row.

    Raises
    ------
    TypeError
        If it is neither a number nor an array of numbers.
    ValueError
        If a temperature is not in [1e-30, 1e30], or the shape is wrong.
    """
    if not isinstance(value, np.ndarray) or value.ndim == 0:
        return one_temperature(value)
    if value.dtype.kind not in "iuf":
        raise TypeError(f"temperature must be numbers, got {value.dtype}")
    if value.shape != shape:
        raise ValueError(
            f"temperature must be a number or have the shape {shape} of the rows, got {value.shape}"
        )
    flat = np.ascontiguousarray(value, np.float64).reshape(-1)
    if not (np.isfinite(flat) & (flat > 0)).all():
        raise ValueError("temperature must be finite numbers > 0 in every row")
    if not ((flat >= _COLDEST) & (flat <= _HOTTEST)).all():
        raise ValueError(f"temperature must be in [{_COLDEST:g}, {_HOTTEST:g}] in every row")
    return flat


def _axis(axis: int, ndim: int) -> int:
    axis = integer(axis, "axis")
    if ndim == 0:
        raise ValueError("z must have at least one axis, got none")
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis must be from {-ndim} to {ndim - 1} for {ndim} axes, got {axis}")
    return axis % ndim

"""In-place gradient clipping."""

from __future__ import annotations

import math

import numpy as np

from compressrs import _core
from compressrs._arrays import Array, ArrayTree, flatten
from compressrs._checks import flag, number
from compressrs._core import NonFiniteGradientError
from compressrs.optim._complex import ParameterViews


def clip_grad_norm_(
    grads: ArrayTree,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> float:
    r"""Scale gradients in place so that their total norm is at most `max_norm`.

    .. math:: g \leftarrow \min\left(1, \frac{\text{max\_norm}}{\|g\|_p + 10^{-6}}\right) g

    with the norm over all arrays together, summed in double precision in a fixed
    order. ``opt.step(grads, max_grad_norm=...)`` does the same in fewer passes over
    memory and without writing to the gradients.

    Parameters
    ----------
    grads : array, or list or nested dict of arrays
        float32, float64, float16, bfloat16, complex64 or complex128, C-contiguous and writable;
        None is skipped. The norm of complex ones is that of their magnitudes.
    max_norm : float
        At least 0.
    norm_type : float, default 2.0
        :math:`p > 0`; may be infinite.
    error_if_nonfinite : bool, default False
        Raise, without changing anything, if the norm is NaN or infinite.

    Returns
    -------
    float
        The norm before clipping; infinite also where it is beyond the range of float64,
        though finite gradients are clipped to `max_norm` even then.

    Raises
    ------
    TypeError
        If a gradient is not an array of such a dtype.
    NonFiniteGradientError
        If `error_if_nonfinite` is set; a subclass of ValueError.
    ValueError
        If a gradient cannot be changed in place, two share memory, or a number is
        out of range.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> g = [np.array([3.0]), np.array([4.0])]
    >>> cr.optim.clip_grad_norm_(g, max_norm=1.0)
    5.0
    >>> [a.round(3).tolist() for a in g]
    [[0.6], [0.8]]
    """
    must_be_finite = flag(error_if_nonfinite, "error_if_nonfinite")
    names, arrays = _gradients(grads)
    limit = number(max_norm, "max_norm", finite=False)
    if limit != math.inf:
        limit = number(max_norm, "max_norm", 0)
    order = number(norm_type, "norm_type", finite=False)
    if not order > 0:
        raise ValueError(f"norm_type must be a number > 0, got {norm_type!r}")
    # Changes nothing; rejects arrays that cannot be changed in place.
    _core.clamp(arrays, names, float("inf"))
    norm, factor = _norm(arrays, order, limit)
    if must_be_finite and not 0 <= norm < float("inf"):
        raise NonFiniteGradientError(
            f"the norm of the gradients is {norm}; nothing was changed "
            "(error_if_nonfinite=False scales them regardless)"
        )
    if not factor >= 1:
        _core.scale(arrays, names, factor)
    return norm


def clip_grad_value_(grads: ArrayTree, clip_value: float) -> None:
    """Clip each element of the gradients in place to ``[-clip_value, clip_value]``.

    Parameters
    ----------
    grads : array, or list or nested dict of arrays
        As for `clip_grad_norm_`. NaN stays NaN. Real and imaginary parts are clipped each.
    clip_value : float
        At least 0.

    Raises
    ------
    TypeError, ValueError
        As for `clip_grad_norm_`.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> g = np.array([-3.0, 0.5])
    >>> cr.optim.clip_grad_value_(g, 1.0)
    >>> g
    array([-1. ,  0.5])
    """
    names, arrays = _gradients(grads)
    _core.clamp(arrays, names, number(clip_value, "clip_value", 0))


def _norm(arrays: ParameterViews, order: float, limit: float) -> tuple[float, float]:
    """Return the norm of the gradients, and the factor by which they are clipped."""
    if order == 2 or not any(arrays.complex):
        # Both parts of a complex number add their squares.
        return _core.norm(arrays, arrays.names, order, limit)
    sizes = _magnitudes(arrays, 1.0)
    if all(np.isfinite(size).all() for size in sizes):
        return _core.norm(sizes, arrays.names, order, limit)
    # Magnitudes of finite numbers may be beyond the range: a power of 2 loses no bits of these.
    norm, factor = _core.norm(_magnitudes(arrays, 0.25), arrays.names, order, limit * 0.25)
    return norm * 4, factor


def _magnitudes(arrays: ParameterViews, scale: float) -> list[Array]:
    """Return the gradients times `scale`, and the magnitudes of complex ones."""
    scaled = [array if scale == 1 else array.astype(np.float64) * scale for array in arrays]
    with np.errstate(over="ignore"):
        return [
            np.hypot(array[..., 0], array[..., 1], dtype=np.float64) if is_complex else array
            for array, is_complex in zip(scaled, arrays.complex, strict=True)
        ]


def _gradients(grads: ArrayTree) -> tuple[list[str], ParameterViews]:
    named = [(name, leaf) for name, leaf in flatten(grads, "grads") if leaf is not None]
    arrays = ParameterViews((leaf for _, leaf in named), (name for name, _ in named))
    return arrays.names, arrays

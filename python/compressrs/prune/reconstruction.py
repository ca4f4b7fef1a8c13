"""SparseGPT: one-shot pruning that updates the remaining weights to compensate."""

from __future__ import annotations

import math
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, as_array, is_number
from compressrs._checks import number, whole
from compressrs._warnings import warn
from compressrs.prune.selection import Mask
from compressrs.prune.statistics import InputStatistics


class CalibrationWarning(UserWarning):
    """Issued when calibration inputs do not determine the weights uniquely."""


def sparsegpt(
    w: Array,
    statistics: InputStatistics,
    sparsity: float | None = None,
    *,
    nm: tuple[int, int] | None = None,
    damping: float = 0.01,
    block: int = 128,
) -> Mask:
    r"""Prune a layer in place, minimizing the change of its outputs.

    With :math:`H = X^\top X + \lambda\,\mathrm{mean}(\mathrm{diag}\,X^\top X)\,I` and
    :math:`H^{-1} = U^\top U`, `U` upper triangular, columns are processed from left to right.
    Removing weight :math:`w_j` of a row costs :math:`(w_j / U_{jj})^2`; the remaining weights
    after it in the row are updated by :math:`-(w_j / U_{jj})\,U_{j,\cdot}` to compensate.

    Parameters
    ----------
    w : array, shape (outputs, inputs, ...)
        float32, float64, float16 or bfloat16, writable; changed in place. All axes after
        the first are inputs.
    statistics : InputStatistics
        Statistics of calibration inputs of this layer, with ``gram=True``.
    sparsity : float, optional
        In [0, 1). Exactly ``round(sparsity * w.size)`` weights are removed.
    nm : pair of int, optional
        Alternatively, keep `n` of every `m` inputs, such as ``(2, 4)``; `m` must divide the
        number of inputs.
    damping : float, default 0.01
        The fraction :math:`\lambda` of the mean diagonal that is added to the diagonal.
    block : int, default 128
        Number of columns for which masks are selected before the weights are updated; rounded
        up to a multiple of `m`.

    Returns
    -------
    array of bool
        The mask, with the shape of `w`: True where a weight is kept.

    Raises
    ------
    TypeError
        If `w` is not an array of such a dtype, or a parameter of another type.
    ValueError
        If a parameter is out of range, `statistics` has seen nothing, has no `gram`, other
        features or a `gram` that cannot be factored, as where it is not finite, or a weight
        is not finite; `w` is unchanged in that case.

    Warns
    -----
    CalibrationWarning
        If there are fewer inputs than features, or inputs are linearly dependent, so that only
        damping makes the update unique; if damping is too small for the factorization, in which
        case it is multiplied by ten until it suffices.

    Notes
    -----
    Computed in double precision. Weights of inputs that were always 0 are removed first.

    References
    ----------
    Frantar & Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in
    One-Shot", arXiv 2301.00774, algorithm 1.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> rng = np.random.default_rng(0)
    >>> x, w = rng.standard_normal((100, 8)), rng.standard_normal((3, 8))
    >>> statistics = cr.prune.InputStatistics(8, gram=True)
    >>> statistics.update(x)
    >>> y = x @ w.T
    >>> mask = cr.prune.sparsegpt(w, statistics, 0.5)
    >>> int(mask.sum()), bool((w[~mask] == 0).all())
    (12, True)
    """
    w = as_array(w, "w")
    if not isinstance(statistics, InputStatistics):
        raise TypeError(f"statistics must be InputStatistics, got {type(statistics).__name__}")
    features = statistics.features
    if w.ndim < 2 or w.size == 0 or w.size // len(w) != features:
        raise ValueError(f"w must have shape (outputs, {features}), got {w.shape}")
    if not is_number(w.dtype) or w.dtype.kind in "iu":
        raise TypeError(f"w must have a floating-point dtype, got {w.dtype}")
    if not w.flags.writeable:
        raise ValueError("w must be writable, since it is changed in place")
    if not np.isfinite(w).all():
        raise ValueError("w must be finite, got NaN or infinity")
    damping = number(damping, "damping", 0)
    block = whole(block, "block", 1)
    choice, block = removal(sparsity, nm, w.size, features, block)
    factor, idle = inverse_factor(statistics, damping)
    wide = np.array(w, np.float64).reshape(len(w), features)
    wide[:, idle] = 0
    mask = np.empty(wide.shape, np.bool_)
    if not _core.reconstruct(wide, factor, choice, min(block, features), mask):
        raise ValueError("w and statistics must be such that nothing overflows")
    w[...] = wide.reshape(w.shape)
    return mask.reshape(w.shape)


def removal(
    sparsity: float | None, nm: tuple[int, int] | None, size: int, features: int, block: int
) -> tuple[tuple[int, int | None], int]:
    """Return what the Rust module removes, and columns of a block that fit it.

    Raises
    ------
    TypeError, ValueError
        If both or none are given, or one is out of range.
    """
    if (sparsity is None) == (nm is None):
        raise ValueError("give either sparsity or nm, not both and not none")
    if nm is None:
        return (round(number(sparsity, "sparsity", 0, below=1) * size), None), block
    try:
        n, m = nm
    except (TypeError, ValueError):
        raise TypeError(f"nm must be a pair of integers, got {nm!r}") from None
    n, m = whole(n, "nm", 1), whole(m, "nm", 1)
    if n > m or features % m:
        raise ValueError(f"nm must be (n, m), n <= m, m a divisor of {features}, got {nm}")
    return (n, m), -(-block // m) * m


def inverse_factor(
    statistics: InputStatistics, damping: float, order: npt.NDArray[np.intp] | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return the factor of the inverse Hessian, and which inputs were always 0.

    The factor is of the inputs in `order`, if that is given.

    Raises
    ------
    ValueError
        If `statistics` has seen nothing, or has no `gram`.

    Warns
    -----
    CalibrationWarning
        See `sparsegpt`.
    """
    gram = statistics.gram
    if gram is None or statistics.count == 0:
        raise ValueError(
            "statistics must have seen inputs with gram=True, got "
            f"{statistics.count} rows{'' if gram is not None else ' without'}"
        )
    if not np.isfinite(gram).all():
        raise ValueError("statistics must hold a finite gram, got NaN or infinity")
    idle = np.diagonal(gram) == 0
    # A power of 4 changes nothing but the exponents, also of the roots; no sum overflows.
    exponent = math.frexp(float(np.abs(gram).max()))[1]
    hessian = gram * 0.25 ** max(-500, min(exponent // 2, 500))
    diagonal = np.diagonal(hessian).copy()
    hessian[idle, idle] = 1
    if order is not None:
        hessian = np.ascontiguousarray(hessian[np.ix_(order, order)])
    features = statistics.features
    least = np.finfo(np.float64).eps * features * float(diagonal.max(initial=0))
    if statistics.count < features:
        warn(
            f"{statistics.count} calibration inputs for {features} features leave the "
            f"weights undetermined; damped by {damping:g}, more inputs would help",
            CalibrationWarning,
        )
    elif not _is_sound(_core.Factor.of(hessian), least):
        warn(
            "some calibration inputs are linear combinations of others, which leaves the "
            f"weights undetermined; damped by {damping:g}",
            CalibrationWarning,
        )
    mean = float(diagonal.mean()) or 1.0
    # With this much a matrix `x' x` is close to a multiple of the identity.
    enough = max(damping, 1e6 * features)
    while damping <= enough:
        found = _core.Factor.of(hessian + damping * mean * np.eye(features))
        if _is_sound(found, least):
            return found.inverse(), idle
        damping = max(10 * damping, 1e-8)
        warn(
            f"the calibration inputs cannot be factored; damped by {damping:g} instead",
            CalibrationWarning,
        )
    raise ValueError("statistics must hold a gram that is positive semidefinite")


def _is_sound(factor: _core.Factor | None, least: float) -> TypeGuard[_core.Factor]:
    """Whether a matrix could be factored, with pivots that are more than rounding."""
    return factor is not None and bool((factor.pivots() > least).all())

"""Better scales and better rounding than to the nearest: MSE, HQQ, AdaRound, bias correction."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs._arrays import Array, as_array, compute_dtype
from compressrs._checks import number, positive, whole
from compressrs.optim import Adam
from compressrs.prune.statistics import InputStatistics
from compressrs.quantize.rounding import checked_weight, parameters, quantize
from compressrs.quantize.scaling import checked_gram
from compressrs.quantize.scheme import Scheme
from compressrs.quantize.tensor import QuantizedTensor, limits, require_float


def mse_scale(
    w: Array, scheme: Scheme, *, steps: int = 80, least: float = 0.2
) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    r"""Return the scales with the least squared error of each block, for `quantize` or `gptq`.

    The range of each block is tried at ``steps`` ratios from `least` to 1: values beyond it
    are clamped, all others lie closer together.

    Parameters
    ----------
    w : array
        As for `quantize`.
    scheme : Scheme
        Not "codebook".
    steps : int, default 80
    least : float, default 0.2
        In (0, 1].

    Returns
    -------
    scale, zero_point : array
        See `parameters`.

    Raises
    ------
    TypeError, ValueError
        As `quantize`; if a parameter is out of range.

    References
    ----------
    Nagel et al., arXiv 2106.08295, section 3.1.

    Examples
    --------
    >>> import numpy as np
    >>> from compressrs.quantize import Scheme, mse_scale, quantize
    >>> rng = np.random.default_rng(0)
    >>> w, scheme = rng.standard_normal((4, 256)), Scheme(bits=3)
    >>> scale, _ = mse_scale(w, scheme)
    >>> before = np.square(quantize(w, scheme).dequantize() - w).mean()
    >>> after = np.square(quantize(w, scheme, scale=scale).dequantize() - w).mean()
    >>> bool(after < 0.7 * before)
    True
    """
    w, matrix = checked_weight(w, scheme)
    steps = whole(steps, "steps", 1, 1000)
    least = positive(least, "least")
    if least > 1:
        raise ValueError(f"least must be in (0, 1], got {least}")
    whole_range = quantize(w, scheme)
    best = whole_range.scale.copy()
    zero_point = None if whole_range.zero_point is None else whole_range.zero_point.copy()
    wide = matrix.astype(np.float64)
    errors = _block_sums((whole_range.dequantize().reshape(matrix.shape) - wide) ** 2, w, scheme)
    low, high = _block_ranges(wide, w, scheme)
    for ratio in np.linspace(least, 1, steps)[:-1][::-1]:
        scale, zero = parameters(
            (ratio * low).astype(best.dtype), (ratio * high).astype(best.dtype), scheme
        )
        q = quantize(w, scheme, scale=scale, zero_point=zero)
        found = _block_sums((q.dequantize().reshape(matrix.shape) - wide) ** 2, w, scheme)
        better = found < errors
        errors[better], best[better] = found[better], scale[better]
        if zero_point is not None and zero is not None:
            zero_point[better] = zero[better]
    return best, zero_point


def hqq(
    w: Array,
    scheme: Scheme,
    *,
    p: float = 0.7,
    beta: float = 10.0,
    kappa: float = 1.01,
    rounds: int = 20,
) -> QuantizedTensor:
    r"""Round with scales and zero points that ignore outliers, without calibration data.

    Half-quadratic splitting of :math:`\min \| W - s (q - z) \|_p^p`, :math:`p < 1`, in turns:

    .. math::
        E &= \mathrm{sign}(r) \max(|r| - |r|^{p - 1} / \beta, 0), \quad r = W - s (q - z) \\
        z &= \mathrm{round}\,\overline{q - (W - E) / s}, \quad
        s = \frac{\sum (W - E)(q - z)}{\sum (q - z)^2}, \quad
        q = \mathrm{clamp}(\mathrm{round}(W / s) + z)

    with :math:`\beta \leftarrow \kappa \beta`, and residuals measured in steps of the first
    scale. Of all rounds, each block keeps that with the least error.

    Parameters
    ----------
    w : array
        As for `quantize`.
    scheme : Scheme
        "int" or "uint".
    p, beta, kappa, rounds
        As above; the defaults are the authors'.

    Returns
    -------
    QuantizedTensor

    Raises
    ------
    TypeError, ValueError
        As `quantize`; if a parameter is out of range.

    Notes
    -----
    The authors keep the scale and let zero points be real numbers. Here these are codes, as
    integer kernels need them, which leaves them little to do; the scale, which the authors
    found not worth solving for beside a real zero point, is solved for instead.

    References
    ----------
    Badri & Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023,
    https://mobiusml.github.io/hqq_blog/.

    Examples
    --------
    >>> import numpy as np
    >>> from compressrs.quantize import Scheme, hqq, quantize
    >>> rng = np.random.default_rng(0)
    >>> w = rng.standard_t(3, (4, 256))
    >>> scheme = Scheme(bits=4, symmetric=False, dtype="uint")
    >>> before = (np.abs(quantize(w, scheme).dequantize() - w) ** 0.7).mean()
    >>> after = (np.abs(hqq(w, scheme).dequantize() - w) ** 0.7).mean()
    >>> bool(after < before)
    True
    """
    w, matrix = checked_weight(w, scheme)
    if scheme.dtype not in ("int", "uint"):
        raise ValueError(f"scheme must have dtype 'int' or 'uint', got {scheme.dtype!r}")
    p = number(p, "p", 0)
    if not 0 < p < 1:
        raise ValueError(f"p must be in (0, 1), got {p}")
    beta, kappa = positive(beta, "beta"), positive(kappa, "kappa")
    rounds = whole(rounds, "rounds", 1, 10_000)
    start = quantize(w, scheme)
    best_scale = start.scale.copy()
    best_zero = None if start.zero_point is None else start.zero_point.copy()
    wide = matrix.astype(np.float64)
    unit = _expand(start.scale.astype(np.float64), w, scheme)
    q = start
    least, most = limits(scheme)
    errors = None
    for _ in range(rounds):
        zero = 0.0 if q.zero_point is None else q.zero_point.astype(np.float64)
        shift = 0.0 if q.zero_point is None else _expand(q.zero_point.astype(np.float64), w, scheme)
        codes = q.codes.reshape(matrix.shape).astype(np.float64)
        scale = _expand(q.scale.astype(np.float64), w, scheme)
        residual = (wide - scale * (codes - shift)) / unit
        found = _block_sums(np.abs(residual) ** p, w, scheme)
        if errors is None:
            errors = found
        better = found < errors
        errors[better], best_scale[better] = found[better], q.scale[better]
        if best_zero is not None and q.zero_point is not None:
            best_zero[better] = q.zero_point[better]
        size = np.abs(residual)
        with np.errstate(divide="ignore"):
            shrunk = np.maximum(size - size ** (p - 1) / beta, 0)
        inliers = wide - np.sign(residual) * shrunk * unit
        beta *= kappa
        if scheme.has_zero_point and not scheme.symmetric:
            counts = _block_sums(np.ones_like(wide), w, scheme)
            means = _block_sums(codes - inliers / scale, w, scheme) / np.maximum(counts, 1)
            zero = np.clip(np.rint(means), least, most)
            shift = _expand(zero, w, scheme)
        steps = codes - shift
        squares = _block_sums(steps**2, w, scheme)
        products = _block_sums(inliers * steps, w, scheme)
        old = q.scale.astype(np.float64)
        solved = np.where(squares > 0, products / np.where(squares > 0, squares, 1), old)
        tiny = float(np.finfo(compute_dtype(w.dtype)).smallest_normal)
        solved = np.where(solved > tiny, solved, old).astype(q.scale.dtype)
        zeros = None if q.zero_point is None else np.broadcast_to(zero, solved.shape)
        q = quantize(
            w,
            scheme,
            scale=solved,
            zero_point=None if zeros is None else zeros.astype(scheme.code_dtype),
        )
    return quantize(w, scheme, scale=best_scale, zero_point=best_zero)


def adaround(
    w: Array,
    statistics: InputStatistics,
    scheme: Scheme,
    *,
    scale: Array | None = None,
    zero_point: Array | None = None,
    steps: int = 1000,
    lr: float = 1e-2,
    strength: float = 10.0,
) -> QuantizedTensor:
    r"""Learn for each weight whether it is rounded up or down, by the error of the outputs.

    With :math:`h(V) = \mathrm{clip}(1.2\,\sigma(V) - 0.1, 0, 1)` and
    :math:`\tilde W = s\,\mathrm{clamp}(\lfloor W / s \rfloor + h(V) + z)`, minimizes

    .. math::
        \frac{\| X (W - \tilde W)^\top \|^2}{n} + \lambda \sum_{ij}
        1 - |2 h(V_{ij}) - 1|^\beta

    over `V` by Adam, :math:`\beta` going from 20 to 2 after the first fifth of the steps; the
    second term drives each to 0 or 1.

    Parameters
    ----------
    w : array, shape (outputs, inputs)
        float32, float64, float16 or bfloat16.
    statistics : InputStatistics
        With ``gram=True``, of calibration inputs of this layer.
    scheme : Scheme
        "int" or "uint".
    scale, zero_point : array, optional
        Used instead of scales from the range of the weights; see `quantize`.
    steps : int, default 1000
    lr : float, default 1e-2
        Of Adam.
    strength : float, default 10.0
        :math:`\lambda`, in units of the first term's value for rounding to the nearest over
        the number of weights: whatever the scale of inputs and weights, the second term
        begins at most so many times as large.

    Returns
    -------
    QuantizedTensor
        Each code is the one below or above :math:`w / s`. That of the outputs' least error
        among what was learned and rounding to the nearest.

    Raises
    ------
    TypeError, ValueError
        As `gptq`.

    References
    ----------
    Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv
    2004.10568, equations 21 to 24.
    """
    w, _ = checked_weight(w, scheme)
    if scheme.dtype not in ("int", "uint"):
        raise ValueError(f"scheme must have dtype 'int' or 'uint', got {scheme.dtype!r}")
    steps = whole(steps, "steps", 1, 1_000_000)
    lr, strength = positive(lr, "lr"), number(strength, "strength", 0)
    gram = checked_gram(w, statistics) / statistics.count
    nearest = quantize(w, scheme, scale=scale, zero_point=zero_point)
    wide = w.astype(np.float64)
    s = _expand(nearest.scale.astype(np.float64), w, scheme)
    z = 0.0 if nearest.zero_point is None else _expand(nearest.zero_point.astype(float), w, scheme)
    least, most = limits(scheme)
    floor = np.floor(wide / s)
    part = np.clip(wide / s - floor, 1e-3, 1 - 1e-3)
    # h(V) begins at what is cut off: nothing is rounded yet.
    v = -np.log(1.2 / (part + 0.1) - 1)
    change = nearest.dequantize().astype(np.float64) - wide
    error_of_nearest = float(np.vdot(change @ gram, change))
    weight = strength * error_of_nearest / max(w.size, 1)
    opt = Adam([v], lr=lr)
    warm = steps // 5
    for step in range(steps):
        sigmoid = 1 / (1 + np.exp(-v))
        h = np.clip(1.2 * sigmoid - 0.1, 0, 1)
        slope = np.where((h > 0) & (h < 1), 1.2 * sigmoid * (1 - sigmoid), 0.0)
        soft = floor + h + z
        inside = (soft >= least) & (soft <= most)
        change = s * (np.clip(soft, least, most) - z) - wide
        gradient = 2 * (change @ gram) * s * inside
        if step >= warm:
            beta = 2 + 18 * (1 - (step - warm) / max(steps - warm, 1))
            u = 2 * h - 1
            gradient -= weight * 2 * beta * np.abs(u) ** (beta - 1) * np.sign(u)
        opt.step([gradient * slope])
    up = 1.2 / (1 + np.exp(-v)) - 0.1 >= 0.5
    codes = np.clip(floor + up + z, least, most)
    change = s * (codes - z) - wide
    if float(np.vdot(change @ gram, change)) >= error_of_nearest:
        return nearest
    nearest.codes[...] = codes.astype(scheme.code_dtype)
    return nearest


def bias_correction(
    w: Array, q: QuantizedTensor, mean: Array, bias: Array | None = None
) -> npt.NDArray[Any]:
    r"""Return the bias that keeps the mean of a layer's outputs.

    .. math:: b' = b + (W - \tilde W)\,\mathrm{E}[x]

    Parameters
    ----------
    w : array, shape (outputs, inputs, ...)
        Before quantization. All axes after the first are inputs.
    q : QuantizedTensor
        After it, of the same shape.
    mean : array, shape (inputs,) or (outputs, inputs)
        Of calibration inputs; one row for each output where their inputs differ, as in a
        convolution with groups.
    bias : array, shape (outputs,), optional
        0 if not given.

    Returns
    -------
    array, shape (outputs,)
        In the dtype of `w`.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, shape, or is not finite.

    References
    ----------
    Nagel et al., arXiv 1906.04721, section 4.2.

    Examples
    --------
    >>> import numpy as np
    >>> from compressrs.quantize import Scheme, bias_correction, quantize
    >>> w = np.array([[1.0, 0.3]])
    >>> q = quantize(w, Scheme(bits=2))
    >>> bias_correction(w, q, np.array([0.0, 1.0]))
    array([0.3])
    """
    w = as_array(w, "w")
    if not isinstance(q, QuantizedTensor):
        raise TypeError(f"q must be a QuantizedTensor, got {type(q).__name__}")
    require_float(w.dtype, "w")
    if w.ndim < 2 or w.shape != q.shape:
        raise ValueError(f"w must be an array of the shape of q, {q.shape}, got {w.shape}")
    given, shape = as_array(mean, "mean"), q.scheme.matrix(q.shape)
    if given.shape not in (shape, shape[1:]):
        raise ValueError(f"mean must have shape {shape[1:]} or {shape}, got {given.shape}")
    require_float(given.dtype, "mean")
    before = np.zeros(len(w))
    if bias is not None:
        array = as_array(bias, "bias")
        require_float(array.dtype, "bias")
        before = array.astype(np.float64)
    if before.shape != w.shape[:1]:
        raise ValueError(f"bias must have shape {w.shape[:1]}, got {before.shape}")
    change = (w.astype(np.float64) - q.dequantize().astype(np.float64)).reshape(shape)
    result = before + np.sum(change * given.astype(np.float64), axis=1)
    if not np.isfinite(result).all():
        raise ValueError("w, mean and bias must be finite, got NaN or infinity")
    found: npt.NDArray[Any] = result.astype(w.dtype)
    return found


def _starts(w: npt.NDArray[Any], scheme: Scheme) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    rows, columns = scheme.matrix(w.shape)
    height, width = scheme.block(w.shape)
    return np.arange(0, rows, height), np.arange(0, columns, width)


def _block_sums(
    x: npt.NDArray[np.float64], w: npt.NDArray[Any], scheme: Scheme
) -> npt.NDArray[np.float64]:
    """Return the sum over each block of a matrix."""
    down, across = _starts(w, scheme)
    if not x.size:
        return np.zeros(scheme.scale_shape(w.shape))
    sums: npt.NDArray[np.float64] = np.add.reduceat(
        np.add.reduceat(x, across, axis=1), down, axis=0
    )
    return sums


def _block_ranges(
    x: npt.NDArray[np.float64], w: npt.NDArray[Any], scheme: Scheme
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the smallest and the largest value of each block of a matrix."""
    if not x.size:
        nothing = np.zeros(scheme.scale_shape(w.shape))
        return nothing, nothing
    down, across = _starts(w, scheme)
    low = np.minimum.reduceat(np.minimum.reduceat(x, across, axis=1), down, axis=0)
    high = np.maximum.reduceat(np.maximum.reduceat(x, across, axis=1), down, axis=0)
    return low, high


def _expand(
    of_blocks: npt.NDArray[np.float64], w: npt.NDArray[Any], scheme: Scheme
) -> npt.NDArray[np.float64]:
    """Return what each element's block has."""
    rows, columns = scheme.matrix(w.shape)
    height, width = scheme.block(w.shape)
    return of_blocks[np.arange(rows)[:, None] // height, np.arange(columns) // width]

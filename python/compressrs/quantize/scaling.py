"""Scales of inputs that make weights easier to quantize: AWQ, SmoothQuant, equalization."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressrs._arrays import Array, as_array, as_matrix, is_number
from compressrs._checks import share, whole
from compressrs.prune.statistics import InputStatistics
from compressrs.quantize.rounding import checked_weight, quantize
from compressrs.quantize.scheme import Scheme
from compressrs.quantize.tensor import QuantizedTensor


class Scaled(NamedTuple):
    """Quantized weights for inputs that are divided by `input_scale` before.

    Attributes
    ----------
    q : QuantizedTensor
        Of ``w * input_scale``.
    input_scale : array, shape (inputs,)
        Divides the inputs, or the outputs of the layer before.
    """

    q: QuantizedTensor
    input_scale: npt.NDArray[Any]


def awq(w: Array, statistics: InputStatistics, scheme: Scheme, *, steps: int = 20) -> Scaled:
    r"""Scale up the weights of large inputs before rounding, so that they lose less.

    :math:`s_j = a_j^\alpha`, :math:`a_j` the root mean square of input `j`, divided by
    :math:`\sqrt{\max s \min s}`; of :math:`\alpha = 0, 1/n, ..., 1`, the one with the least
    error of the outputs, :math:`\| X (W - Q(W s) / s)^\top \|^2`. :math:`\alpha = 0` is no
    scaling.

    Parameters
    ----------
    w : array, shape (outputs, inputs)
        float32, float64, float16 or bfloat16.
    statistics : InputStatistics
        With ``gram=True``, of calibration inputs of this layer.
    scheme : Scheme
        Not "codebook".
    steps : int, default 20
        :math:`n`.

    Returns
    -------
    Scaled
        ``(q, input_scale)``: the layer's output is ``(x / input_scale) @ q.T``.

    Raises
    ------
    TypeError
        If an argument has another type or dtype.
    ValueError
        If a parameter is out of range, `statistics` is empty, has no `gram` or another number
        of features, or a weight is not finite.

    Notes
    -----
    The paper takes the mean magnitude of inputs for :math:`a_j`; statistics hold squares.
    Its clipping of weights is `mse_scale`.

    References
    ----------
    Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and
    Acceleration", arXiv 2306.00978, section 3.2.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((200, 16)) * np.array([20.0] + 15 * [1.0])
    >>> w = rng.standard_normal((8, 16))
    >>> statistics = cr.prune.InputStatistics(16, gram=True)
    >>> statistics.update(x)
    >>> scheme = cr.quantize.Scheme(bits=3)
    >>> q, input_scale = cr.quantize.awq(w, statistics, scheme)
    >>> better = q.dequantize() / input_scale - w
    >>> nearest = cr.quantize.quantize(w, scheme).dequantize() - w
    >>> bool(np.linalg.norm(x @ better.T) < 0.8 * np.linalg.norm(x @ nearest.T))
    True
    """
    w, _ = checked_weight(w, scheme)
    steps = whole(steps, "steps", 1, 1000)
    gram = checked_gram(w, statistics)
    scales = awq_scales(statistics, steps)
    errors = awq_errors(w, gram, scheme, scales)
    return scaled(w, scheme, scales[int(np.argmin(errors))])


def awq_scales(statistics: InputStatistics, steps: int) -> list[npt.NDArray[np.float64]]:
    """Return the scales of inputs that AWQ tries."""
    magnitudes = statistics.norms / np.sqrt(statistics.count)
    magnitudes = np.maximum(magnitudes, 1e-4 * (magnitudes.max() or 1.0))
    found = []
    for step in range(steps + 1):
        scale = magnitudes ** (step / steps)
        found.append(scale / np.sqrt(scale.max() * scale.min()))
    return found


def awq_errors(
    w: npt.NDArray[Any],
    gram: npt.NDArray[np.float64],
    scheme: Scheme,
    scales: list[npt.NDArray[np.float64]],
) -> npt.NDArray[np.float64]:
    """Return the squared error of the outputs for each of these scales of inputs."""
    wide = w.astype(np.float64)

    def error(scale: npt.NDArray[np.float64]) -> float:
        q = scaled(w, scheme, scale).q
        return output_error(q.dequantize().astype(np.float64) / scale - wide, gram)

    return np.array([error(scale) for scale in scales])


def scaled(w: npt.NDArray[Any], scheme: Scheme, scale: npt.NDArray[np.float64]) -> Scaled:
    """Quantize a weight for inputs that are divided by `scale` before."""
    q = quantize((w.astype(np.float64) * scale).astype(w.dtype), scheme)
    return Scaled(q, scale.astype(q.scale.dtype))


def smooth_scale(
    weights: Array | list[Array], ranges: Array, alpha: float = 0.5
) -> npt.NDArray[Any]:
    r"""Return the scales by which SmoothQuant divides inputs and multiplies weights.

    .. math::
        s_j = \frac{(\max |x_j|)^\alpha}{(\max |w_j|)^{1 - \alpha}}

    so that what is hard to quantize is shared by both. Inputs and weights that are 0 get 1.

    Parameters
    ----------
    weights : array, or list of array, shape (outputs, inputs)
        Of the layers that have these inputs; float.
    ranges : array, shape (inputs,)
        :math:`\max |x_j|`, as of a `MinMax` of all channels.
    alpha : float, default 0.5
        In [0, 1]; larger values shift more of the range from inputs to weights.

    Returns
    -------
    array of float64, shape (inputs,)

    Raises
    ------
    TypeError, ValueError
        If an array has another dtype or shape or is not finite, a range is negative, or
        `alpha` is out of range.

    References
    ----------
    Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
    Language Models", arXiv 2211.10438, equation 4.

    Examples
    --------
    >>> import numpy as np
    >>> from compressrs.quantize import smooth_scale
    >>> smooth_scale(np.array([[0.5, -1.0], [0.25, 1.0]]), np.array([8.0, 1.0]))
    array([4., 1.])
    """
    alpha = share(alpha, "alpha")
    bounds = _floats(ranges, "ranges", 1)
    if (bounds < 0).any():
        raise ValueError("ranges must not be negative")
    given = list(weights) if isinstance(weights, (list, tuple)) else [weights]
    if not given:
        raise ValueError("weights must hold at least one array, got none")
    arrays = [_floats(w, "weights", 2) for w in given]
    for w in arrays:
        if w.shape[1] != len(bounds):
            raise ValueError(
                f"weights must have shape (outputs, {len(bounds)}) like ranges, got {w.shape}"
            )
    most = np.max([np.abs(w).max(axis=0, initial=0) for w in arrays], axis=0)
    usable = (most > 0) & (bounds > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(usable, bounds**alpha / most ** (1 - alpha), 1.0)
    scale = np.where(np.isfinite(scale) & (scale > 0), scale, 1.0)
    return scale


def equalize(first: Array, bias: Array | None, second: Array) -> npt.NDArray[np.float64]:
    r"""Equalize the ranges of channels between two layers, in place, without changing outputs.

    For :math:`y = W_2 f(W_1 x + b_1)` with :math:`f(s z) = s f(z)` for :math:`s > 0`, as of
    ReLU, row `i` of the first is divided and column `i` of the second multiplied by

    .. math:: s_i = \sqrt{r_i^{(1)} / r_i^{(2)}}

    where the ranges :math:`r_i` are the largest magnitudes of that row and column. Channels of
    zeros are unchanged.

    Parameters
    ----------
    first : array, shape (channels, inputs, ...)
    bias : array, shape (channels,), or None
    second : array, shape (outputs, channels, ...)
        All of one dtype, float32 or float64, writable and C-contiguous.

    Returns
    -------
    array of float64, shape (channels,)
        :math:`s`.

    Raises
    ------
    TypeError, ValueError
        If an array does not fit or is not finite; nothing is changed then.

    References
    ----------
    Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
    arXiv 1906.04721, section 4.1.

    Examples
    --------
    >>> import numpy as np
    >>> from compressrs.quantize import equalize
    >>> first, second = np.array([[8.0], [1.0]]), np.array([[2.0, 4.0]])
    >>> equalize(first, None, second)
    array([2. , 0.5])
    >>> first.ravel(), second.ravel()
    (array([4., 2.]), array([4., 2.]))
    """
    a, b = as_array(first, "first"), as_array(second, "second")
    c = None if bias is None else as_array(bias, "bias")
    for array, name in ((a, "first"), (b, "second"), (c, "bias")):
        if array is None:
            continue
        if array.dtype not in (np.float32, np.float64) or array.dtype != a.dtype:
            need = "float32 or float64, all like first"
            raise TypeError(f"{name} must have dtype {need}, got {array.dtype}")
        if not array.flags.writeable or not array.flags.c_contiguous:
            raise ValueError(f"{name} must be writable and C-contiguous")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    if a.ndim < 2:
        raise ValueError(f"first must have shape (channels, inputs, ...), got {a.shape}")
    if b.ndim < 2 or b.shape[1] != len(a):
        raise ValueError(f"second must have shape (outputs, {len(a)}) like first, got {b.shape}")
    if c is not None and c.shape != (len(a),):
        raise ValueError(f"bias must have shape ({len(a)},) like first, got {c.shape}")
    pairs = [(a, b)] if c is None else [(a, b), (a, c), (b, c)]
    if any(np.may_share_memory(*pair) for pair in pairs):
        raise ValueError("first, bias and second must not share memory")
    rows = np.abs(as_matrix(a, 1)).max(axis=1, initial=0).astype(np.float64)
    columns = np.abs(b).max(axis=(0, *range(2, b.ndim)), initial=0).astype(np.float64)
    usable = (rows > 0) & (columns > 0)
    scale: npt.NDArray[np.float64] = np.ones(len(a))
    scale[usable] = np.sqrt(rows[usable]) / np.sqrt(columns[usable])
    narrow = scale.astype(a.dtype)
    a /= narrow.reshape(-1, *(1,) * (a.ndim - 1))
    if c is not None:
        c /= narrow
    b *= narrow.reshape(1, -1, *(1,) * (b.ndim - 2))
    return scale


def checked_gram(w: npt.NDArray[Any], statistics: InputStatistics) -> npt.NDArray[np.float64]:
    """Return the Gram matrix of statistics, after checking it and the weight.

    Raises
    ------
    TypeError, ValueError
        If not.
    """
    if not isinstance(statistics, InputStatistics):
        raise TypeError(f"statistics must be InputStatistics, got {type(statistics).__name__}")
    features = statistics.features
    if w.ndim != 2 or w.size == 0 or w.shape[1] != features:
        raise ValueError(f"w must have shape (outputs, {features}), got {w.shape}")
    if statistics.gram is None or not statistics.count:
        raise ValueError(
            "statistics must have seen inputs with gram=True, got "
            f"{statistics.count} rows{'' if statistics.gram is not None else ' without'}"
        )
    if not np.isfinite(w).all():
        raise ValueError("w must be finite, got NaN or infinity")
    gram = statistics.gram
    if not np.isfinite(gram).all() or (np.diagonal(gram) < 0).any():
        raise ValueError("statistics must have a finite gram with a diagonal of at least 0")
    return gram


def output_error(change: npt.NDArray[Any], gram: npt.NDArray[np.float64]) -> float:
    """Return the squared change of outputs over all inputs for a change of weights."""
    return float(np.vdot(change @ gram, change))


def _floats(x: Array, name: str, ndim: int) -> npt.NDArray[np.float64]:
    array = as_array(x, name)
    if not is_number(array.dtype) or array.dtype.kind in "iu":
        raise TypeError(f"{name} must have a floating-point dtype, got {array.dtype}")
    if array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} axes, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return array.astype(np.float64)

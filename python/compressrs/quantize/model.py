"""Whole models in few bits."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from compressrs._arrays import Array, as_array
from compressrs._checks import choice, flag
from compressrs.nn.container import Sequential
from compressrs.nn.linear import Linear
from compressrs.prune.statistics import InputStatistics
from compressrs.quantize.codebook import kmeans
from compressrs.quantize.refinement import adaround, bias_correction, hqq, mse_scale
from compressrs.quantize.rounding import quantize
from compressrs.quantize.scaling import awq
from compressrs.quantize.scheme import Scheme
from compressrs.quantize.sweep import gptq
from compressrs.quantize.tensor import require_float

if TYPE_CHECKING:
    from compressrs.nn import QuantizedLinear

Method = Literal["nearest", "mse", "hqq", "gptq", "awq", "adaround"]
_METHODS = ("nearest", "mse", "hqq", "gptq", "awq", "adaround")
_CALIBRATED = ("gptq", "awq", "adaround")


def quantize_model(
    model: Sequential,
    scheme: Scheme | Mapping[str, Scheme | None],
    calibration: Array | Iterable[Array] | None = None,
    *,
    method: Method = "nearest",
    input: str = "float32",
    correct_bias: bool = False,
) -> Sequential:
    """Return a model whose linear layers are in few bits; others are copied.

    Layers are quantized one after another, and each is calibrated with the inputs that the
    quantized layers before it give.

    Parameters
    ----------
    model : Sequential
        Unchanged.
    scheme : Scheme, or dict of str to Scheme or None
        For all layers, or by name: patterns as of `fnmatch` for the layer's position, as
        ``{"0": None, "*": Scheme(bits=4)}``; the first that fits counts. None keeps a layer
        in float, and so do names that no pattern fits.
    calibration : array, or iterable of array, shape (rows, features), optional
        Inputs of the model, all at once or batch by batch (kept for all layers). Needed by
        the methods "gptq", "awq" and "adaround", and by `correct_bias`.
    method : {"nearest", "mse", "hqq", "gptq", "awq", "adaround"}, default "nearest"
        `quantize`, with scales of `mse_scale`, or the function of that name. Layers with a
        codebook get `kmeans`, or "gptq" with it.
    input : {"float32", "int8"}, default "float32"
        See `compressrs.nn.QuantizedLinear`.
    correct_bias : bool, default False
        Whether each layer's bias makes up for the change of its mean output, also for what
        earlier layers change in its input, see `bias_correction`; layers without bias get
        one.

    Returns
    -------
    Sequential
        With `compressrs.nn.QuantizedLinear` in place of `compressrs.nn.Linear`.

    Raises
    ------
    TypeError
        If an argument has another type.
    ValueError
        If `method` or `input` is none of these, calibration inputs are missing or empty, or
        no layer is quantized.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> model = cr.nn.Sequential(cr.nn.Linear(8, 6, rng=0), cr.nn.ReLU(), cr.nn.Linear(6, 2, rng=1))
    >>> x = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    >>> scheme = cr.quantize.Scheme(bits=8)
    >>> small = cr.quantize.quantize_model(model, scheme, x, method="gptq")
    >>> bool(np.abs(small(x) - model(x)).max() < 0.02)
    True
    """
    if not isinstance(model, Sequential):
        raise TypeError(f"model must be a Sequential, got {type(model).__name__}")
    correct_bias = flag(correct_bias, "correct_bias")
    choice(method, "method", _METHODS)
    choice(input, "input", ("float32", "int8"))
    schemes = _schemes(model, scheme)
    needed = method in _CALIBRATED or correct_bias
    batches: list[Any] = []
    if calibration is not None:
        whole = isinstance(calibration, np.ndarray) or hasattr(calibration, "__dlpack__")
        if not whole and not isinstance(calibration, Iterable):
            raise TypeError(f"calibration must be arrays, got {type(calibration).__name__}")
        batches = [calibration] if whole else list(calibration)
        batches = [_batch(x, model) for x in batches]
    if needed and not sum(len(x) for x in batches):
        raise ValueError(
            f"calibration must hold inputs for {method!r}"
            f"{' with correct_bias' if correct_bias else ''}, got none"
        )
    # What the layers of the model itself are given.
    given = batches if correct_bias else []
    layers: list[Any] = []
    for i, layer in enumerate(model):
        same: Any = copy.deepcopy(layer)
        new = same
        if schemes[i] is not None:
            new = _quantized(layer, schemes[i], batches, method, input)
        if new is not same and correct_bias:
            new = _with_bias(layer, new, _mean(given), _mean(batches))
        batches = [new.forward(x) for x in batches] if needed else []
        given = [same.forward(x) for x in given]
        layers.append(copy.deepcopy(new))
    return Sequential(*layers)


def _mean(batches: list[npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    total = np.sum([x.sum(axis=0, dtype=np.float64) for x in batches], axis=0)
    mean: npt.NDArray[np.float64] = total / sum(len(x) for x in batches)
    return mean


def _with_bias(
    layer: Any,
    new: QuantizedLinear,
    before: npt.NDArray[np.float64],
    after: npt.NDArray[np.float64],
) -> QuantizedLinear:
    """Return the layer with a bias that keeps the mean of outputs.

    `before` and `after` are the means of inputs that the layer is given in the model and in
    the quantized model.
    """
    from compressrs.nn import QuantizedLinear

    w, scale = layer.weight.astype(np.float64), new.input_scale
    bias = 0 if layer.bias is None else layer.bias.astype(np.float64)
    bias = bias + w @ (before - after)
    if scale is not None:
        w, after = w * scale, after / scale
    found = bias_correction(w, new.weight, after, bias).astype(layer.weight.dtype)
    return QuantizedLinear(new.weight, found, input=new.input, input_scale=scale)


def _batch(x: Any, model: Sequential) -> npt.NDArray[Any]:
    """Return calibration inputs as an array, if the first layer may take it."""
    batch = as_array(x, "calibration")
    require_float(batch.dtype, "calibration")
    features = next((layer.weight.shape[1] for layer in model if isinstance(layer, Linear)), None)
    if batch.ndim != 2 or (isinstance(model[0], Linear) and batch.shape[1] != features):
        raise ValueError(f"calibration must have shape (rows, {features}), got {batch.shape}")
    if isinstance(model[0], Linear) and batch.dtype != model[0].weight.dtype:
        raise TypeError(
            f"calibration must have dtype {model[0].weight.dtype} like the model, got {batch.dtype}"
        )
    return batch


def _schemes(
    model: Sequential, scheme: Scheme | Mapping[str, Scheme | None]
) -> list[Scheme | None]:
    """Return the scheme of each layer."""
    rules = {"*": scheme} if isinstance(scheme, Scheme) else scheme
    if not isinstance(rules, Mapping):
        raise TypeError(f"scheme must be a Scheme or a dict, got {type(scheme).__name__}")
    for pattern, rule in rules.items():
        if rule is not None and not isinstance(rule, Scheme):
            raise TypeError(
                f"scheme[{pattern!r}] must be a Scheme or None, got {type(rule).__name__}"
            )
    found: list[Scheme | None] = []
    for i, layer in enumerate(model):
        fits = (rule for pattern, rule in rules.items() if fnmatch.fnmatchcase(str(i), pattern))
        found.append(next(fits, None) if isinstance(layer, Linear) else None)
    if not any(found):
        raise ValueError("scheme must quantize at least one Linear layer, got none")
    return found


def _quantized(
    layer: Any,
    scheme: Any,
    batches: list[npt.NDArray[Any]],
    method: str,
    input: str,
) -> QuantizedLinear:
    """Return one layer in few bits."""
    # Its module imports this package.
    from compressrs.nn import QuantizedLinear

    w, scale = layer.weight, None
    if method in _CALIBRATED:
        statistics = InputStatistics(w.shape[1], gram=True)
        for x in batches:
            statistics.update(x)
    if method == "gptq":
        q = gptq(w, statistics, scheme)
    elif scheme.dtype == "codebook":
        q = kmeans(w, scheme)
    elif method == "awq":
        q, scale = awq(w, statistics, scheme)
    elif method == "adaround":
        q = adaround(w, statistics, scheme)
    elif method == "hqq":
        q = hqq(w, scheme)
    elif method == "mse":
        found, zero_point = mse_scale(w, scheme)
        q = quantize(w, scheme, scale=found, zero_point=zero_point)
    else:
        q = quantize(w, scheme)
    bias = None if layer.bias is None else layer.bias.copy()
    return QuantizedLinear(q, bias, input=input, input_scale=scale)

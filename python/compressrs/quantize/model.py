"""Quantization of whole models."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from compressrs._arrays import Array, as_matrix
from compressrs._checks import choice, flag
from compressrs.nn.attention import Embedding, MultiHeadAttention
from compressrs.nn.container import Residual, Sequential
from compressrs.nn.conv import Conv2d
from compressrs.nn.layer import Layer
from compressrs.nn.linear import Linear, SparseLinear
from compressrs.prune.statistics import InputStatistics, batches_of
from compressrs.quantize.codebook import kmeans
from compressrs.quantize.observers import MinMax, Observer
from compressrs.quantize.patches import means, statistics_of
from compressrs.quantize.refinement import adaround, bias_correction, hqq, mse_scale
from compressrs.quantize.rounding import quantize
from compressrs.quantize.scaling import awq
from compressrs.quantize.scheme import Scheme
from compressrs.quantize.sparse import require_sparse_scheme
from compressrs.quantize.sweep import gptq
from compressrs.quantize.tensor import QuantizedTensor

if TYPE_CHECKING:
    from compressrs.nn import (
        QuantizedConv2d,
        QuantizedLinear,
        QuantizedMultiHeadAttention,
        QuantizedSparseLinear,
    )

Method = Literal["nearest", "rtn", "mse", "hqq", "gptq", "awq", "adaround"]
_METHODS = ("nearest", "rtn", "mse", "hqq", "gptq", "awq", "adaround")
_CALIBRATED = ("gptq", "awq", "adaround")
#: Layers that can be quantized.
_KINDS = (Linear, SparseLinear, Conv2d, Embedding, MultiHeadAttention)


def quantize_model(
    model: Sequential,
    scheme: Scheme | Mapping[str, Scheme | None],
    calibration: Array | Iterable[Array] | None = None,
    *,
    method: Method = "nearest",
    input: str = "float32",
    activations: Scheme | None = None,
    observer: Callable[[], Observer] = MinMax,
    correct_bias: bool = False,
) -> Sequential:
    """Return a copy of a model with quantized layers.

    Quantized are linear, sparse linear, convolution, embedding and attention layers.

    Layers are quantized one after another, at any depth of `Sequential` and `Residual`, and each
    is calibrated with the inputs that the quantized layers before it give. All other layers are
    copied.

    Parameters
    ----------
    model : Sequential
        Unchanged.
    scheme : Scheme, or dict of str to Scheme or None
        For all layers, or by name as in `Layer.summary`: patterns of `fnmatch`, such as
        ``{"0": None, "*.body.*": Scheme(bits=4), "*": Scheme(bits=8)}``, of which the first
        that matches applies. None keeps a layer in float, and so do names that no pattern
        matches.
    calibration : array, or iterable of array, optional
        Inputs of the model, all at once or batch by batch (kept for all layers). Needed by
        the methods "gptq", "awq" and "adaround", by `activations` and by `correct_bias`.
    method : {"nearest", "rtn", "mse", "hqq", "gptq", "awq", "adaround"}, default "nearest"
        `quantize`, with scales of `mse_scale`, or the function of that name. Layers with a
        codebook use `kmeans`, or "gptq" with its levels. Embeddings are rounded to nearest by
        the methods that need calibration, and so are convolutions by "awq", which scales
        features. All groups of a convolution are calibrated with the inputs of all. Sparse
        layers are rounded to nearest by every method, with schemes of
        `QuantizedCSRMatrix`: symmetric integers, whose groups are of stored values.
    input : {"float32", "int8"}, default "float32"
        See `compressrs.nn.QuantizedLinear` and `compressrs.nn.QuantizedConv2d`. The inputs of
        sparse layers stay in float32, in which their products sum.
    activations : Scheme, optional
        Quantize inputs with one scale for each layer, found by `observer` from the calibration
        inputs: ``Scheme(bits=8, granularity="tensor")``, or asymmetric with a zero point.
        Implies ``input="int8"``, whose scales are otherwise those of each row or image.
    observer : callable, default MinMax
        Returns an observer of one range, such as ``lambda: Percentile(percentile=99.9)``.
    correct_bias : bool, default False
        Whether to correct each layer's bias for the change of its mean output, including the
        change of its input by earlier layers; see `bias_correction`. Layers without bias get
        one.

    Returns
    -------
    Sequential
        With `compressrs.nn.QuantizedLinear`, `compressrs.nn.QuantizedConv2d`,
        `compressrs.nn.QuantizedEmbedding`, `compressrs.nn.QuantizedMultiHeadAttention` and
        `compressrs.nn.QuantizedSparseLinear`.

    Raises
    ------
    TypeError
        If an argument has another type, or a sparse layer is in float64.
    ValueError
        If `method` or `input` has another value, calibration inputs are missing, empty or not
        accepted by the model, no layer would be quantized, or a sparse layer cannot have its
        scheme.

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
    _check_observer(observer)
    if activations is not None:
        _check_activations(activations)
        input = "int8"
    needed = method in _CALIBRATED or correct_bias or activations is not None
    # In evaluation mode, so that calibration does not change running averages.
    original = model.copy().eval()
    batches = _batches(calibration, original)
    if needed and not sum(len(x) for x in batches):
        use: list[str] = [method] if method in _CALIBRATED else []
        use += ["correct_bias"] if correct_bias else []
        use += ["activations"] if activations is not None else []
        raise ValueError(f"calibration must hold inputs for {', '.join(use)}, got none")
    conversion = _Conversion(schemes, method, input, activations, observer, correct_bias)
    if not needed:
        batches = []
    new, *_ = conversion.sequential(original, "", batches, batches if correct_bias else [])
    return new.train(model.training)


def _batches(calibration: Any, model: Sequential) -> list[npt.NDArray[Any]]:
    """Return calibration inputs as arrays, after running the model on one row of each."""
    if calibration is None:
        return []
    batches = []
    for name, x in batches_of(calibration, "calibration"):
        try:
            model.forward(x[:1])
        except (TypeError, ValueError, IndexError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(
                f"{name} must hold inputs of the model, one in each row, got shape {x.shape}, "
                f"with whose first row the model fails: {error}"
            ) from None
        batches.append(x)
    return batches


#: Inputs of a layer, batch by batch.
_Batches: TypeAlias = "list[npt.NDArray[Any]]"


@dataclasses.dataclass
class _Conversion:
    """The conversion of each kind of layer.

    Methods return the new layer, its outputs for calibration inputs, and the outputs of the
    original layer for the inputs that the original model gives it (if biases are corrected).
    """

    schemes: Mapping[str, Scheme | None]
    method: str
    input: str
    activations: Scheme | None
    observer: Callable[[], Observer]
    correct_bias: bool

    def sequential(
        self, model: Sequential, path: str, batches: _Batches, given: _Batches
    ) -> tuple[Sequential, _Batches, _Batches]:
        layers = []
        for name, layer in model.children().items():
            inner = f"{path}.{name}" if path else name
            new, batches, given = self.layer(layer, inner, batches, given)
            layers.append(new)
        return Sequential(*layers), batches, given

    def layer(
        self, layer: Layer, path: str, batches: _Batches, given: _Batches
    ) -> tuple[Layer, _Batches, _Batches]:
        if isinstance(layer, Sequential):
            return self.sequential(layer, path, batches, given)
        if isinstance(layer, Residual):
            return self.residual(layer, path, batches, given)
        scheme = self.schemes.get(path)
        new: Layer
        if scheme is None:
            # Of the copy that is converted.
            new = layer
        elif isinstance(layer, Linear):
            new = self.linear(layer, scheme, batches, given)
        elif isinstance(layer, SparseLinear):
            new = self.sparse(layer, scheme, batches, given)
        elif isinstance(layer, Conv2d):
            new = self.conv(layer, scheme, batches, given)
        elif isinstance(layer, MultiHeadAttention):
            new = self.attention(layer, scheme, batches, given)
        else:
            new = self.embedding(layer, scheme)
        new.eval()
        return new, [new.forward(x) for x in batches], [layer.forward(x) for x in given]

    def residual(
        self, layer: Residual, path: str, batches: _Batches, given: _Batches
    ) -> tuple[Residual, _Batches, _Batches]:
        body, through, original = self.sequential(layer.body, f"{path}.body", batches, given)
        shortcut, side, beside = layer.shortcut, batches, given
        if shortcut is not None:
            shortcut, side, beside = self.layer(shortcut, f"{path}.shortcut", batches, given)
        sums = [x + y for x, y in zip(side, through, strict=True)]
        original = [x + y for x, y in zip(beside, original, strict=True)]
        return Residual(*body, shortcut=shortcut), sums, original

    def linear(
        self, layer: Any, scheme: Scheme, batches: _Batches, given: _Batches
    ) -> QuantizedLinear:
        # Imported here, since the module imports this package.
        from compressrs.nn import QuantizedLinear

        statistics, scale = self.statistics(layer.weight.shape[1], batches), None
        if self.method == "awq" and scheme.dtype != "codebook":
            q, scale = awq(layer.weight, statistics, scheme)
        else:
            q = _codes(layer.weight, scheme, statistics, self.method)
        bias = None if layer.bias is None else layer.bias.copy()
        if self.correct_bias:
            w, before, after = layer.weight, _mean(given), _mean(batches)
            bias = _bias(w, q, scale, bias, before, after)
        scaled = batches if scale is None else [x / scale for x in batches]
        return QuantizedLinear(q, bias, input=self.input, input_scale=scale, **self.fixed(scaled))

    def sparse(
        self, layer: SparseLinear, scheme: Scheme, batches: _Batches, given: _Batches
    ) -> QuantizedSparseLinear:
        from compressrs.nn import QuantizedSparseLinear

        new = QuantizedSparseLinear.from_sparse(layer, scheme)
        if not self.correct_bias:
            return new
        mean = layer.weight.to_dense().astype(np.float64) @ _mean(given)
        change = mean - new.weight.to_dense().astype(np.float64) @ _mean(batches)
        bias = change if layer.bias is None else layer.bias + change
        return QuantizedSparseLinear(new.weight, bias.astype(np.float32))

    def conv(
        self, layer: Conv2d, scheme: Scheme, batches: _Batches, given: _Batches
    ) -> QuantizedConv2d:
        from compressrs.nn import QuantizedConv2d

        calibrated = self.method in _CALIBRATED and self.method != "awq"
        statistics = statistics_of(layer, batches) if calibrated else None
        method = "nearest" if self.method == "awq" else self.method
        q = _codes(layer.weight, scheme, statistics, method)
        bias = None if layer.bias is None else layer.bias.copy()
        if self.correct_bias:
            before, after = means(layer, given), means(layer, batches)
            bias = _bias(layer.weight, q, None, bias, before, after)
        stride, padding, dilation, groups = layer._geometry
        return QuantizedConv2d(
            q,
            bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            input=self.input,
            **self.fixed(batches),
        )

    def statistics(self, features: int, batches: _Batches) -> Any:
        """Return the statistics that the method needs."""
        if self.method not in _CALIBRATED:
            return None
        statistics = InputStatistics(features, gram=True)
        for x in batches:
            statistics.update(x)
        return statistics

    def fixed(self, batches: _Batches) -> dict[str, Any]:
        """Return the fixed scale and zero point of inputs, if asked for."""
        if self.activations is None:
            return {}
        observer = self.observer()
        for x in batches:
            observer.update(x)
        scale, zero = observer.parameters(self.activations)
        return {"activation_scale": scale, "activation_zero_point": zero}

    def attention(
        self, layer: MultiHeadAttention, scheme: Scheme, batches: _Batches, given: _Batches
    ) -> QuantizedMultiHeadAttention:
        # Imported here, since the module imports this package.
        from compressrs.nn.quantized_attention import QuantizedMultiHeadAttention, attended

        params = layer.params
        inner = _Weights(params["in_proj_weight"], params.get("in_proj_bias"))
        outer = _Weights(params["out_proj.weight"], params.get("out_proj.bias"))
        first = self.linear(inner, scheme, batches, given)
        # The outputs of the heads calibrate the second product.
        mixed = [attended(first, layer.heads, layer.causal, x)[-1] for x in batches]
        original = [layer._mixed(x)[-1] for x in given]
        second = self.linear(outer, scheme, mixed, original)
        return QuantizedMultiHeadAttention(first, second, layer.heads, causal=layer.causal)

    def embedding(self, layer: Any, scheme: Scheme) -> Layer:
        from compressrs.nn.quantized_attention import QuantizedEmbedding

        method = "nearest" if self.method in _CALIBRATED else self.method
        return QuantizedEmbedding(_codes(layer.weight, scheme, None, method))


@dataclasses.dataclass
class _Weights:
    """Weight and bias of a product that is not a layer."""

    weight: Array
    bias: Array | None


def _mean(batches: _Batches) -> npt.NDArray[np.float64]:
    """Return the mean row of inputs with any number of axes."""
    rows = [as_matrix(x, -1) for x in batches]
    total = np.sum([x.sum(axis=0, dtype=np.float64) for x in rows], axis=0)
    mean: npt.NDArray[np.float64] = total / sum(map(len, rows))
    return mean


def _bias(
    w: Array,
    q: QuantizedTensor,
    scale: Array | None,
    bias: Array | None,
    before: npt.NDArray[np.float64],
    after: npt.NDArray[np.float64],
) -> npt.NDArray[Any]:
    """Return the bias that keeps the mean of outputs.

    `before` and `after` are the means of the inputs in the model and in the quantized model,
    and `scale` is that of the inputs.
    """
    wide = w.astype(np.float64)
    matrix = as_matrix(wide, 1)
    total = (0 if bias is None else bias) + np.sum(matrix * (before - after), axis=1)
    if scale is not None:
        wide, after = wide * scale, after / scale
    return bias_correction(wide, q, after, total).astype(w.dtype)


def _check_activations(scheme: Scheme) -> None:
    """Check the scheme of inputs."""
    if not isinstance(scheme, Scheme):
        raise TypeError(f"activations must be a Scheme, got {type(scheme).__name__}")
    if (scheme.bits, scheme.dtype, scheme.granularity) != (8, "int", "tensor"):
        raise ValueError(
            f"activations must have bits=8, dtype='int' and granularity='tensor', got {scheme!r}"
        )


def _check_observer(observer: Any) -> None:
    """Check what makes observers."""
    if not callable(observer):
        kind = type(observer).__name__
        got = f"an instance of {kind}" if isinstance(observer, Observer) else repr(observer)
        raise TypeError(
            "observer must be a class or a function that returns a new observer for each layer, "
            f"such as observer=MSE or observer=lambda: Percentile(percentile=99.9), got {got}"
        )
    made = observer()
    if not isinstance(made, Observer):
        raise TypeError(f"observer must return an Observer, got {type(made).__name__}")
    if made.channels is not None:
        raise ValueError(f"observer must return one of all channels, got {made!r}")


def _schemes(
    model: Sequential, scheme: Scheme | Mapping[str, Scheme | None]
) -> dict[str, Scheme | None]:
    """Return the scheme of each layer that can be quantized, by name."""
    rules = {"*": scheme} if isinstance(scheme, Scheme) else scheme
    if not isinstance(rules, Mapping):
        raise TypeError(f"scheme must be a Scheme or a dict, got {type(scheme).__name__}")
    for pattern, rule in rules.items():
        if rule is not None and not isinstance(rule, Scheme):
            raise TypeError(
                f"scheme[{pattern!r}] must be a Scheme or None, got {type(rule).__name__}"
            )
    names = [name for name, layer in model.named_layers() if isinstance(layer, _KINDS)]
    found: dict[str, Scheme | None] = {}
    for name in names:
        fits = (rule for pattern, rule in rules.items() if fnmatch.fnmatchcase(name, pattern))
        found[name] = next(fits, None)
    for pattern, rule in rules.items():
        if not fnmatch.filter(names, pattern) and (
            rule is not None or not _is_layer(model, pattern)
        ):
            raise ValueError(
                f"scheme[{pattern!r}] must match a layer that can be quantized, of which there "
                f"are {names or 'none that is in float'}"
            )
    if not any(found.values()):
        raise ValueError(
            f"scheme must quantize at least one layer, of which there are {names or 'none'}, got "
            f"{list(rules)}"
        )
    for name, layer in model.named_layers():
        if isinstance(layer, SparseLinear) and (own := found[name]) is not None:
            _check_sparse(layer, name, own)
    return found


def _check_sparse(layer: SparseLinear, name: str, scheme: Scheme) -> None:
    """Raise an error that names a sparse layer, if it cannot be quantized by a scheme."""
    if layer.weight.dtype == np.float64:
        raise TypeError(
            f"layer {name} (SparseLinear) must have weights in float32, float16 or bfloat16, got "
            f"float64; a scheme of None keeps it: scheme={{{name!r}: None, ...}}"
        )
    try:
        require_sparse_scheme(scheme)
    except ValueError as error:
        raise ValueError(
            f"the scheme of layer {name} (SparseLinear) cannot be used: {error}; a scheme of None "
            f"keeps it: scheme={{{name!r}: None, ...}}"
        ) from None


def _is_layer(model: Sequential, pattern: str) -> bool:
    """Whether a pattern matches a layer of any kind."""
    return any(fnmatch.fnmatchcase(name, pattern) for name, _ in model.named_layers())


def _codes(w: Array, scheme: Scheme, statistics: Any, method: str) -> QuantizedTensor:
    """Return a quantized weight, by a method that does not scale the inputs."""
    if method == "gptq":
        return gptq(w, statistics, scheme)
    if scheme.dtype == "codebook":
        return kmeans(w, scheme)
    if method == "adaround":
        q = adaround(np.ascontiguousarray(w.reshape(scheme.matrix(w.shape))), statistics, scheme)
        codes = q.codes.reshape(w.shape)
        return QuantizedTensor(codes, q.scale, q.zero_point, scheme=scheme, dtype=q.dtype)
    if method == "hqq":
        return hqq(w, scheme)
    if method == "mse":
        found, zero_point = mse_scale(w, scheme)
        return quantize(w, scheme, scale=found, zero_point=zero_point)
    return quantize(w, scheme)

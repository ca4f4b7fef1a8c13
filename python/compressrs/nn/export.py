"""Export to files that a few lines of NumPy code run."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from compressrs._arrays import Array, compute_dtype
from compressrs._checks import converted
from compressrs._files import write_atomically
from compressrs.nn.activations import GELU, Dropout, ReLU, SiLU, Softmax
from compressrs.nn.attention import Embedding, MultiHeadAttention
from compressrs.nn.container import Flatten, Residual, Sequential
from compressrs.nn.conv import AvgPool, Conv2d, MaxPool
from compressrs.nn.layer import Layer
from compressrs.nn.linear import Linear, SparseLinear
from compressrs.nn.norm import BatchNorm, LayerNorm, fold_batch_norm
from compressrs.nn.quantized import QuantizedLinear
from compressrs.nn.quantized_attention import QuantizedEmbedding, QuantizedMultiHeadAttention
from compressrs.nn.quantized_conv import QuantizedConv2d
from compressrs.nn.quantized_sparse import QuantizedSparseLinear
from compressrs.quantize.sparse import group_size
from compressrs.quantize.tensor import QuantizedTensor

#: The code that decodes a weight `w`, once; its arrays are ``a[0]``, ``a[1]``, ...
_WEIGHTS = {
    "codes": "w = (a[0].astype(a[2].dtype) - a[1][:, a[3]]) * a[2][:, a[3]]",
    "levels": "w = a[1][a[0]] * a[2][:, a[3]]",
    "sparse": "w = np.zeros(a[3], a[0].dtype); w[a[2], a[1]] = a[0]",
    "sparse_codes": "v = a[0] * a[3][a[2] if a[5] == 0 else np.arange(len(a[0])) // a[5]]; "
    "w = np.zeros(a[4], v.dtype); np.add.at(w, (a[2], a[1]), v)",
}

#: The code of each kind of step, which changes `x`; its arrays are decoded weights, then its own.
_LINES = {
    "affine": "x = x @ a[0].T + a[1]",
    "conv_w": "x = conv(x, a[0].reshape(a[1]), a[2], *a[3])",
    "round": "s = np.abs(x).max(-1, keepdims=True) / 127; "
    "x = np.rint(x / np.maximum(s, 1e-30)) * s",
    "round_images": "s = np.abs(x).max((1, 2, 3), keepdims=True) / 127; "
    "x = np.rint(x / np.maximum(s, 1e-30)) * s",
    "round_fixed": "x = (np.clip(np.rint(x / a[0]) + a[1], -128, 127) - a[1]) * a[0]",
    "attention": "x = attend(x, a[0], a[1], a[2], a[3], *a[4], lengths)",
    "attention_w": "x = attend(x, a[0], a[2], a[1], a[3], *a[4], lengths)",
    "scale": "x = x * a[0] + a[1]",
    "normalize_axis_1": "m, s, b = (v.reshape(-1, *[1] * (x.ndim - 2)) for v in a); "
    "x = (x - m) * s + b",
    "relu": "x = np.maximum(x, 0)",
    "silu": "x = x / (1 + np.exp(-x))",
    "gelu": "x = x * (1 + erf(x / 2**0.5).astype(x.dtype)) / 2",
    "gelu_tanh": "x = x * (1 + np.tanh((2 / np.pi)**0.5 * (x + 0.044715 * x**3))) / 2",
    "softmax": "x = np.exp(x - x.max(-1, keepdims=True)); x /= x.sum(-1, keepdims=True)",
    "layer_norm": "x = (x - x.mean(-1, keepdims=True)) "
    "/ np.sqrt(x.var(-1, keepdims=True) + a[0]) * a[1] + a[2]",
    "flatten": "x = x.reshape(len(x), -1)",
    "embedding": "x = a[0][x]",
    "keep": "kept.append(x)",
    "swap": "x, kept[-1] = kept[-1], x",
    "add": "x = x + kept.pop()",
    "conv": "x = conv(x, a[0], a[1], *a[2])",
    "max_pool": "x = windows(x, *a[0], -np.inf).max((4, 5))",
    "avg_pool": "x = windows(x, *a[0], 0).mean((4, 5))",
}

#: Sliding windows as two additional axes, and the convolution on them.
_WINDOWS = """\
def windows(x, kh, kw, sh, sw, ph, pw, dh, dw, fill):
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=fill)
    shape = (dh * (kh - 1) + 1, dw * (kw - 1) + 1)
    v = np.lib.stride_tricks.sliding_window_view(x, shape, (2, 3))
    return v[:, :, ::sh, ::sw, ::dh, ::dw]"""
_CONV = """\
def conv(x, w, b, groups, *sizes):
    v = windows(x, *w.shape[2:], *sizes, 0)
    v = v.reshape(len(x), groups, -1, *v.shape[2:])
    w = w.reshape(groups, -1, *w.shape[1:])
    y = np.einsum("ngchwkl,gfckl->ngfhw", v, w, optimize=True)
    return y.reshape(len(x), -1, *y.shape[3:]) + b.reshape(-1, 1, 1)"""

#: The error function by its Taylor series at the next of the nodes k / 1024, with an error below
#: 1e-13; arrays beyond 6, where it is 1 in double precision, and NaN take the last node.
_ERF = """\
nodes = np.arange(6145) / 1024
values, slopes = np.array([math.erf(t) for t in nodes]), 2 / np.pi**0.5 * np.exp(-nodes * nodes)
def erf(x):
    z = np.fmin(np.abs(x, dtype=float), 6)
    k = np.rint(z * 1024).astype(int)
    t, d = nodes[k], z - nodes[k]
    y = values[k] + slopes[k] * d * (1 - t * d + (2 * t * t - 1) / 3 * d * d)
    return np.copysign(y, x)"""
_ATTEND = """\
def attend(x, w, b, w_out, b_out, heads, causal, lengths):
    n, length, features = x.shape
    y = (x @ w.T + b).reshape(n, length, 3 * heads, -1).swapaxes(1, 2)
    q, k, v = np.split(y, 3, axis=1)
    s = q @ k.swapaxes(2, 3) * x.dtype.type((features // heads) ** -0.5)
    if causal:
        s = np.where(np.tri(length, dtype=bool), s, s.dtype.type(-np.inf))
    if lengths is not None:
        ends = np.asarray(lengths)
        valid = ends.shape == (n,) and ends.dtype.kind in "iu"
        if not valid or not ((0 < ends) & (ends <= length)).all():
            raise ValueError(f"lengths must hold {n} integers from 1 to {length}, got {ends}")
        s = np.where(np.arange(length) < ends.reshape(-1, 1, 1, 1), s, s.dtype.type(-np.inf))
    s = np.exp(s - s.max(-1, keepdims=True))
    y = s / s.sum(-1, keepdims=True) @ v
    return y.swapaxes(1, 2).reshape(n, length, features) @ w_out.T + b_out"""

Step = tuple[str, list[Any]]


def export(
    model: Layer, path: Path, standardize: tuple[Array, Array] | None, after: str | None = None
) -> str:
    """Write a model to an ``.npz`` file and return the code that runs it.

    Raises
    ------
    TypeError
        If a layer cannot be exported.
    OSError
        If the file cannot be written.
    """
    model = fold_batch_norm(model) if isinstance(model, Sequential) else model
    steps: list[Step] = []
    if standardize is not None:
        try:
            mean, scale = standardize
        except (TypeError, ValueError):
            raise TypeError(
                f"standardize must be a pair of arrays (mean, scale), got {standardize!r}"
            ) from None
        mean = converted(mean, "standardize[0]", np.float64)
        scale = converted(scale, "standardize[1]", np.float64)
        steps.append(("scale", [1 / scale, -mean / scale]))
    _collect(model, "", steps)
    if after is not None:
        steps.append((after, []))
    arrays = {"steps": np.array([kind for kind, _ in steps])}
    for i, (_, parts) in enumerate(steps):
        arrays |= {f"{i}.{k}": np.asarray(part) for k, part in enumerate(parts)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())
    return lines([kind for kind, _ in steps], path)


def lines(kinds: list[str], path: Path) -> str:
    """Return the code that runs such steps."""
    used = list(dict.fromkeys(kinds))
    run = [kind for kind in used if kind not in _WEIGHTS]
    code = ["import math" if "gelu" in used else "", "import numpy as np"]
    if {"conv", "conv_w", "max_pool", "avg_pool"} & set(used):
        code.append(_WINDOWS)
    if {"conv", "conv_w"} & set(used):
        code.append(_CONV)
    if "gelu" in used:
        code.append(_ERF)
    attends = bool({"attention", "attention_w"} & set(used))
    if attends:
        code.append(_ATTEND)
    code.append(f"def load(path={str(path)!r}):")
    arrays = '[f[f"{i}.{k}"] for k in range(sum(n.startswith(f"{i}.") for n in f.files))]'
    if len(run) == len(used):
        each = f'[(s, {arrays}) for i, s in enumerate(f["steps"])]'
        code.append(f"    with np.load(path) as f: steps = {each}")
    else:
        code += [
            "    steps, weights = [], []",
            "    with np.load(path) as f:",
            '        for i, step in enumerate(f["steps"]):',
            f"            a = {arrays}",
            *_branches([kind for kind in used if kind in _WEIGHTS], _WEIGHTS),
            "            else:",
            "                steps.append((step, weights + a)); weights = []; continue",
            "            weights.append(w)",
        ]
    code += [
        f"    def run(x{', lengths=None' if attends else ''}):",
        "        kept = []" if "keep" in used else "",
        "        for step, a in steps:",
        *_branches(run, _LINES),
        "        return x",
        "    return run",
        f"def predict(x, path={str(path)!r}{', lengths=None' if attends else ''}): "
        f"return load(path)(x{', lengths' if attends else ''})",
    ]
    return "\n".join(line for line in code if line)


def _branches(kinds: list[str], code: dict[str, str]) -> list[str]:
    """Return the lines that do what is due for a step of one of some kinds."""
    return [
        f'            {"elif" if k else "if"} step == "{kind}": {code[kind]}'
        for k, kind in enumerate(kinds)
    ]


def _collect(layer: Layer, name: str, steps: list[Step]) -> None:
    """Append the steps of a layer."""
    if isinstance(layer, Sequential):
        for key, child in layer.children().items():
            _collect(child, f"{name}.{key}" if name else key, steps)
        return
    if isinstance(layer, Residual):
        steps.append(("keep", []))
        _collect(layer.body, f"{name}.body" if name else "body", steps)
        if layer.shortcut is not None:
            steps.append(("swap", []))
            _collect(layer.shortcut, f"{name}.shortcut" if name else "shortcut", steps)
        steps.append(("add", []))
        return
    if (step := _STEPS.get(type(layer))) is not None:
        steps += step(layer)
        return
    kinds = ", ".join(sorted(kind.__name__ for kind in _STEPS))
    at = f"layer {name}" if name else "the model"
    raise TypeError(f"{at} is a {type(layer).__name__}, which cannot be exported; {kinds} can")


def _bias(layer: Any) -> Array:
    weight = layer.weight
    dtype = compute_dtype(weight.dtype)
    return np.zeros(weight.shape[0], dtype) if layer.bias is None else layer.bias


def _sparse(layer: SparseLinear) -> list[Step]:
    # Archives know no bfloat16, and the code multiplies float32.
    dense = layer.weight.to_dense().astype(compute_dtype(layer.weight.dtype), copy=False)
    rows, columns = np.nonzero(dense)
    small = np.uint16 if max(dense.shape) <= 2**16 else np.int64
    parts = [dense[rows, columns], columns.astype(small), rows.astype(small)]
    return [("sparse", [*parts, np.array(dense.shape)]), ("affine", [_bias(layer)])]


def _sparse_codes(layer: QuantizedSparseLinear) -> list[Step]:
    q = layer.weight
    small = np.uint16 if max(q.shape) <= 2**16 else np.int64
    rows = np.repeat(np.arange(q.shape[0]), np.diff(q.indptr)).astype(small)
    # How many entries share a scale; 0 for those of a row.
    each = np.array(group_size(q.scheme, q.codes))
    parts = [q.codes, q.indices.astype(small), rows, q.scale, np.array(q.shape), each]
    return [("sparse_codes", parts), ("affine", [_bias(layer)])]


def _sizes(layer: Any) -> Array:
    """Return the sizes that the code of a convolution takes."""
    return np.array([layer.groups, *layer.stride, *layer.padding, *layer.dilation])


def _conv(layer: Conv2d) -> list[Step]:
    return [("conv", [layer.weight, _bias(layer), _sizes(layer)])]


def _quantized_conv(layer: QuantizedConv2d) -> list[Step]:
    product = ("conv_w", [np.array(layer.weight.shape), _bias(layer), _sizes(layer)])
    return [*_rounding(layer, "round_images"), *_codes(layer.weight), product]


def _pool(kind: str) -> Callable[[Any], list[Step]]:
    def step(layer: Any) -> list[Step]:
        sizes = [*layer.kernel_size, *layer.stride, *layer.padding, 1, 1]
        return [(kind, [np.array(sizes)])]

    return step


def _layer_norm(layer: LayerNorm) -> list[Step]:
    eps = np.array(layer.eps, layer.weight.dtype)
    return [("layer_norm", [eps, layer.weight, _bias(layer)])]


def _batch_norm(layer: BatchNorm) -> list[Step]:
    return [("normalize_axis_1", [layer.buffers["running_mean"], layer.affine()[0], layer.bias])]


def _attention(layer: MultiHeadAttention) -> list[Step]:
    params, features = layer.params, layer.features
    w_in, w_out = params["in_proj_weight"], params["out_proj.weight"]
    b_in = params.get("in_proj_bias", np.zeros(3 * features, w_in.dtype))
    b_out = params.get("out_proj.bias", np.zeros(features, w_in.dtype))
    sizes = np.array([layer.heads, layer.causal])
    return [("attention", [w_in, b_in, w_out, b_out, sizes])]


def _quantized_linear(layer: QuantizedLinear) -> list[Step]:
    return [*_inputs(layer), *_codes(layer.weight), ("affine", [_bias(layer)])]


def _quantized_attention(layer: QuantizedMultiHeadAttention) -> list[Step]:
    first, second = layer.in_proj, layer.out_proj
    if _inputs(second) or any(kind == "scale" for kind, _ in _inputs(first)):
        raise TypeError(
            "attention with inputs in int8 or scaled inputs (awq) cannot be exported; quantize it "
            "with input='float32' and another method"
        )
    biases = [_bias(first), _bias(second)]
    sizes = np.array([layer.heads, layer.causal])
    weights = [*_codes(first.weight), *_codes(second.weight)]
    return [*weights, ("attention_w", [*biases, sizes])]


def _inputs(layer: QuantizedLinear) -> list[Step]:
    """Return the steps that scale or round the inputs of a product."""
    scale, steps = layer.input_scale, []
    if scale is not None:
        steps.append(("scale", [1 / scale, np.zeros_like(scale)]))
    return steps + _rounding(layer, "round")


def _rounding(layer: QuantizedLinear | QuantizedConv2d, dynamic: str) -> list[Step]:
    """Return the step that rounds the input, if any."""
    if layer.input != "int8":
        return []
    scale, zero = layer.activation_scale, layer.activation_zero_point
    if scale is None or zero is None:
        return [(dynamic, [])]
    return [("round_fixed", [scale[0], zero.astype(scale.dtype)[0]])]


def _codes(q: Any) -> list[Step]:
    """Return the step that decodes a weight; scales have one column for each group."""
    rows, columns = q.scheme.matrix(q.shape)
    codes, block = q.codes.reshape(rows, columns), q.scheme.block(q.shape)
    groups: Any = np.arange(columns) // block[1] if q.group_index is None else q.group_index
    groups = groups.astype(np.uint16 if groups.max(initial=0) < 2**16 else np.int64)
    scale = q.scale.repeat(block[0], 0)[:rows] if q.scale.shape[0] > 1 else q.scale
    if q.scheme.dtype in ("int", "uint"):
        zero = np.zeros((1, q.scale.shape[1]), np.int8) if q.zero_point is None else q.zero_point
        zero = zero.repeat(block[0], 0)[:rows] if zero.shape[0] > 1 else zero
        return [("codes", [codes, zero.astype(scale.dtype), scale, groups])]
    if q.scheme.dtype == "codebook" and q.scale.size > 1:
        raise TypeError("a codebook for each block cannot be exported; one for the tensor can")
    return [("levels", [codes, _levels(q), scale, groups])]


def _levels(q: Any) -> Array:
    """Return the number that each code stands for, before the scale."""
    one = np.ones((1, 1), q.scale.dtype)
    scheme = dataclasses.replace(q.scheme, granularity="tensor", group_size=None)
    count = 2**q.scheme.bits if q.codebook is None else q.codebook.shape[1]
    codes = np.arange(count, dtype=q.codes.dtype).reshape(1, -1)
    largest = {"fp8_e4m3": 0x7E, "fp8_e5m2": 0x7B}.get(q.scheme.dtype, 0xFF)
    # Codes of NaN do not occur.
    codes[(codes & 0x7F) > largest] = 0
    made = QuantizedTensor(codes, one, scheme=scheme, codebook=q.codebook, dtype=q.scale.dtype)
    levels: Array = made.dequantize()[0]
    return levels


#: The steps of each kind of layer; empty for those without effect in evaluation.
_STEPS: dict[type, Callable[[Any], list[Step]]] = {
    Linear: lambda layer: [("affine", [layer.weight, _bias(layer)])],
    SparseLinear: _sparse,
    QuantizedLinear: _quantized_linear,
    QuantizedConv2d: _quantized_conv,
    QuantizedSparseLinear: _sparse_codes,
    Conv2d: _conv,
    BatchNorm: _batch_norm,
    LayerNorm: _layer_norm,
    MultiHeadAttention: _attention,
    QuantizedMultiHeadAttention: _quantized_attention,
    Embedding: lambda layer: [("embedding", [layer.weight])],
    QuantizedEmbedding: lambda layer: [*_codes(layer.weight), ("embedding", [])],
    ReLU: lambda layer: [("relu", [])],
    SiLU: lambda layer: [("silu", [])],
    GELU: lambda layer: [("gelu" if layer.approximate == "none" else "gelu_tanh", [])],
    Softmax: lambda layer: [("softmax", [])],
    Flatten: lambda layer: [("flatten", [])],
    MaxPool: _pool("max_pool"),
    AvgPool: _pool("avg_pool"),
    Dropout: lambda layer: [],
}

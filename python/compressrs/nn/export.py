"""Models as files that a few lines of NumPy run."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from compressrs._arrays import Array
from compressrs._files import write_atomically
from compressrs.nn.activations import GELU, Dropout, ReLU, SiLU, Softmax
from compressrs.nn.attention import Embedding
from compressrs.nn.container import Flatten, Residual, Sequential
from compressrs.nn.conv import AvgPool, Conv2d, MaxPool
from compressrs.nn.layer import Layer
from compressrs.nn.linear import Linear, SparseLinear
from compressrs.nn.norm import BatchNorm, LayerNorm, fold_batch_norm

#: What a step does with `x`, given its arrays `a`, `b`, ... as ``f[f"{i}.{k}"]``.
_LINES = {
    "affine": "x = x @ a[0].T + a[1]",
    "sparse": "w = np.zeros(a[3], a[0].dtype); w[a[2], a[1]] = a[0]; x = x @ w.T + a[4]",
    "scale": "x = x * a[0] + a[1]",
    "scale_axis_1": "x = x * a[0].reshape(-1, *[1] * (x.ndim - 2)) "
    "+ a[1].reshape(-1, *[1] * (x.ndim - 2))",
    "relu": "x = np.maximum(x, 0)",
    "silu": "x = x / (1 + np.exp(-x))",
    "gelu": "x = x * (1 + np.vectorize(math.erf)(x / 2**0.5).astype(x.dtype)) / 2",
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

#: Windows of images as two more axes, and what is made of them.
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
    y = np.einsum("ngchwkl,gfckl->ngfhw", v, w.reshape(groups, -1, *w.shape[1:]))
    return y.reshape(len(x), len(w), *y.shape[3:]) + b.reshape(-1, 1, 1)"""

Step = tuple[str, list[Any]]


def export(
    model: Layer, path: Path, standardize: tuple[Array, Array] | None, after: str | None = None
) -> str:
    """Write a model to an ``.npz`` file and return the lines that run it.

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
        mean, scale = standardize
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
    code = ["import math" if "gelu" in used else "", "import numpy as np"]
    if {"conv", "max_pool", "avg_pool"} & set(used):
        code.append(_WINDOWS)
    if "conv" in used:
        code.append(_CONV)
    code += [
        f"def predict(x, path={str(path)!r}):",
        "    f = np.load(path)",
        "    kept = []" if "keep" in used else "",
        '    for i, step in enumerate(f["steps"]):',
        '        a = [f[f"{i}.{k}"] for k in range(sum(n.startswith(f"{i}.") for n in f.files))]',
    ]
    for k, kind in enumerate(used):
        word = "elif" if k else "if"
        code.append(f'        {word} step == "{kind}": {_LINES[kind]}')
    code.append("    return x")
    return "\n".join(line for line in code if line)


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
    for kind, step in _STEPS.items():
        if type(layer) is kind:
            found = step(layer)
            if found is not None:
                steps.append(found)
            return
    kinds = ", ".join(sorted(kind.__name__ for kind in _STEPS))
    at = f"layer {name}" if name else "the model"
    raise TypeError(f"{at} is a {type(layer).__name__}, which cannot be exported; {kinds} can")


def _bias(layer: Any, size: int) -> Array:
    weight = layer.params["weight"]
    return np.zeros(size, weight.dtype) if layer.bias is None else layer.bias


def _sparse(layer: SparseLinear) -> Step:
    dense = layer.weight.to_dense()
    rows, columns = np.nonzero(dense)
    small = np.uint16 if max(dense.shape) <= 2**16 else np.int64
    parts = [dense[rows, columns], columns.astype(small), rows.astype(small)]
    return "sparse", [*parts, np.array(dense.shape), _bias(layer, len(dense))]


def _conv(layer: Conv2d) -> Step:
    sizes = [layer.groups, *layer.stride, *layer.padding, *layer.dilation]
    return "conv", [layer.weight, _bias(layer, len(layer.weight)), np.array(sizes)]


def _pool(kind: str) -> Callable[[Any], Step]:
    def step(layer: Any) -> Step:
        sizes = [*layer.kernel_size, *layer.stride, *layer.padding, 1, 1]
        return kind, [np.array(sizes)]

    return step


def _layer_norm(layer: LayerNorm) -> Step:
    dtype = layer.weight.dtype
    return "layer_norm", [np.array(layer.eps, dtype), layer.weight, _bias(layer, layer.weight.size)]


#: The step of each kind of layer; None for those that do nothing in evaluation.
_STEPS: dict[type, Callable[[Any], Step | None]] = {
    Linear: lambda layer: ("affine", [layer.weight, _bias(layer, len(layer.weight))]),
    SparseLinear: _sparse,
    Conv2d: _conv,
    BatchNorm: lambda layer: ("scale_axis_1", list(layer.affine())),
    LayerNorm: _layer_norm,
    Embedding: lambda layer: ("embedding", [layer.weight]),
    ReLU: lambda layer: ("relu", []),
    SiLU: lambda layer: ("silu", []),
    GELU: lambda layer: ("gelu" if layer.approximate == "none" else "gelu_tanh", []),
    Softmax: lambda layer: ("softmax", []),
    Flatten: lambda layer: ("flatten", []),
    MaxPool: _pool("max_pool"),
    AvgPool: _pool("avg_pool"),
    Dropout: lambda layer: None,
}

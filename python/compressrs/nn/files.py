"""Models in files: their structure and their arrays."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressrs._arrays import Array, compute_dtype, is_floating
from compressrs._checks import file_path
from compressrs._files import load_tensors, require, save_tensors
from compressrs._json import parse_json
from compressrs.nn._packing import Unpacked, packed_state
from compressrs.nn.activations import GELU, Dropout, ReLU, SiLU, Softmax
from compressrs.nn.attention import Embedding, MultiHeadAttention
from compressrs.nn.container import Flatten, Residual, Sequential
from compressrs.nn.conv import AvgPool, Conv2d, MaxPool
from compressrs.nn.layer import Layer
from compressrs.nn.linear import Linear, SparseLinear
from compressrs.nn.norm import BatchNorm, LayerNorm
from compressrs.sparse.formats import FORMATS

if TYPE_CHECKING:
    from compressrs.checkpoint import Checkpoint

FORMAT = "compressrs.nn"
#: The version of files, and that of files whose codes are packed, which "1" does not have.
VERSION, PACKED = "1", "2"

#: Layers that are made from their `config` alone.
_LAYERS: dict[str, Callable[..., Layer]] = {
    layer.__name__: layer
    for layer in (
        AvgPool,
        BatchNorm,
        Conv2d,
        Dropout,
        Embedding,
        Flatten,
        GELU,
        LayerNorm,
        Linear,
        MaxPool,
        MultiHeadAttention,
        ReLU,
        SiLU,
        Softmax,
    )
}

#: For each layer with arrays, the name of the largest, and its shape by the `config`. It is
#: compared with what the file holds before the layer is made: memory is in proportion to the file.
_SHAPES: dict[str, tuple[str, Callable[[Mapping[str, Any]], tuple[int, ...]]]] = {
    "BatchNorm": ("weight", lambda c: (c["channels"],)),
    "Conv2d": (
        "weight",
        lambda c: (c["out_channels"], c["in_channels"] // c["groups"], *c["kernel_size"]),
    ),
    "Embedding": ("weight", lambda c: (c["num_embeddings"], c["features"])),
    "LayerNorm": ("weight", lambda c: (c["features"],)),
    "Linear": ("weight", lambda c: (c["out_features"], c["in_features"])),
    "MultiHeadAttention": ("out_proj.weight", lambda c: (c["features"], c["features"])),
}

#: Where checkpoints of other programs are read.
_CHECKPOINTS = "and compressrs.checkpoint.open reads the tensors of any checkpoint"

_MATRICES: dict[str, Any] = {matrix.__name__: matrix for matrix in FORMATS.values()}


def describe(layer: Layer) -> dict[str, Any]:
    """Return the structure of a layer, in types that JSON can represent."""
    config = layer.config() if hasattr(layer, "config") else {}
    children = layer.children() if hasattr(layer, "children") else {}
    inner = {name: describe(child) for name, child in children.items()}
    return {"type": type(layer).__name__, "config": config, "layers": inner}


def save(path: Path, model: Layer) -> None:
    """Write a model."""
    description = describe(model)
    arrays, packed = packed_state(description, model.state_dict())
    version = PACKED if packed else VERSION
    metadata = {"format": FORMAT, "version": version, "model": json.dumps(description)}
    save_tensors(path, arrays, {**metadata, **packed})


def load_into(path: Path, model: Layer) -> None:
    """Load the arrays into a model of the same layers."""
    with _compressed(path) as compressed:
        if compressed is None:
            description, arrays = _read(path)
        else:
            description, arrays = _described(path, compressed.metadata, compressed)
        if (difference := _difference(describe(model), description)) is not None:
            raise ValueError(f"{path} must hold a model of the same layers: {difference}")
        try:
            model.load_state_dict(dict(arrays) if compressed is None else _state(model, arrays, []))
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds another model: {error}") from None


def load(path: str | os.PathLike[str]) -> Layer:
    """Return the model that a file holds, which `Layer.save` wrote.

    Of a file that `compressrs.checkpoint.compress` made of it, layers whose weights are
    stored quantized or sparse are `QuantizedLinear`, `SparseLinear` and `QuantizedSparseLinear`;
    their weights are never dense.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is damaged, of another format or version, or has a layer that is none of
        compressrs's; such a model is made first and then loads the file itself.

    Examples
    --------
    >>> import compressrs as cr, tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> cr.nn.Sequential(cr.nn.Linear(3, 2, rng=0), cr.nn.ReLU()).save(path)
    >>> [type(layer).__name__ for layer in cr.nn.load(path)]
    ['Linear', 'ReLU']
    """
    file = file_path(path)
    with _compressed(file) as compressed:
        if compressed is None:
            description, arrays = _read(file)
        else:
            description, arrays = _described(file, compressed.metadata, compressed)
        try:
            made: list[str] = []
            model = _make(description, arrays, "", _linears(compressed, made))
            model.load_state_dict(
                dict(arrays) if compressed is None else _state(model, arrays, made)
            )
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{file} holds no model that can be made here: {error}") from None
    return model


@contextmanager
def _compressed(path: Path) -> Iterator[Checkpoint | None]:
    """Give the checkpoint that a file is, if it was compressed."""
    # Its modules import this package.
    from compressrs.checkpoint import _header, reader
    from compressrs.checkpoint._source import File

    try:
        file = File(path)
    except IsADirectoryError as error:
        raise IsADirectoryError(
            error.errno, f"not a regular file but a folder, {_CHECKPOINTS}", str(path)
        ) from None
    except ValueError:
        # What is wrong with it is said by the reader of models.
        yield None
        return
    metadata = file.header.metadata
    file.close()
    if _header.KEY not in metadata:
        _require_model(path, metadata)
        yield None
        return
    with reader.open(path) as c:
        yield c


def _linears(
    compressed: Checkpoint | None, made: list[str]
) -> Callable[[str, Mapping[str, Any]], Layer | None]:
    """Return what makes a linear layer of streams, where there are some, and notes its name."""

    def make(prefix: str, config: Mapping[str, Any]) -> Layer | None:
        from compressrs.checkpoint import _models

        weight = f"{prefix}weight"
        if compressed is None or _models.is_stored_dense(compressed, weight):
            return None
        made.append(prefix)
        bias = f"{prefix}bias" if config["bias"] else None
        return _models.linear(compressed, weight, bias, np.dtype(config["dtype"]))

    return make


def _state(model: Layer, arrays: Mapping[str, Array], made: list[str]) -> dict[str, Array]:
    """Return the values of a model's arrays of a compressed file, in the model's dtypes.

    Those of layers that are made of streams stay.
    """
    found = {}
    for name, own in model.state_dict().items():
        found[name] = own if name.startswith(tuple(made)) else arrays[name]
        # Floats may have been rounded to fewer bits. Integers are no floats that were.
        if is_floating(own.dtype):
            if found[name].dtype.kind in "iub":
                raise ValueError(f"{name} must be of {own.dtype}, got {found[name].dtype}")
            found[name] = found[name].astype(own.dtype, copy=False)
    return found


def _read(path: Path) -> tuple[dict[str, Any], Unpacked]:
    arrays, metadata = load_tensors(path, {"format": FORMAT})
    return _described(path, metadata, arrays)


def _described(
    path: Path, metadata: Mapping[str, str], stored: Mapping[str, Array]
) -> tuple[dict[str, Any], Unpacked]:
    """Return what a file's model is made of, and its arrays."""
    _require_model(path, metadata)
    try:
        description: dict[str, Any] = parse_json(metadata["model"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} does not say what its model is made of: {error!r}") from None
    try:
        return description, Unpacked(stored, metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _require_model(path: Path, metadata: Mapping[str, str]) -> None:
    """Raise a ValueError unless a file with this metadata holds a model."""
    version = PACKED if metadata.get("version") == PACKED else VERSION
    try:
        require(path, metadata, {"format": FORMAT, "version": version})
    except ValueError as error:
        raise ValueError(f"{error}, {_CHECKPOINTS}") from None


def _difference(own: Any, other: Any, path: str = "") -> str | None:
    """Return the first difference between two descriptions, or None."""
    name = f"layer {path}" if path else "the model"
    if not isinstance(other, dict) or own["type"] != other.get("type"):
        got = other.get("type") if isinstance(other, dict) else other
        return f"{name} is {own['type']} here, and {got} there"
    if json.loads(json.dumps(own["config"])) != other.get("config"):
        return f"{name} has {own['config']} here, and {other.get('config')} there"
    layers = other.get("layers")
    if not isinstance(layers, dict) or own["layers"].keys() != layers.keys():
        got = list(layers) if isinstance(layers, dict) else layers
        return f"{name} has layers {list(own['layers'])} here, and {got} there"
    for key, child in own["layers"].items():
        found = _difference(child, layers[key], f"{path}.{key}" if path else key)
        if found is not None:
            return found
    return None


def _make(
    description: Mapping[str, Any],
    arrays: Unpacked,
    prefix: str,
    linear: Callable[[str, Mapping[str, Any]], Layer | None],
) -> Layer:
    """Return the layer that a description stands for, with arbitrary values in its arrays.

    `linear` returns a linear layer in another form than dense, or None.
    """
    kind, config = description["type"], description["config"]
    layers = {
        name: _make(child, arrays, f"{prefix}{name}.", linear)
        for name, child in description["layers"].items()
    }
    if kind == "Sequential":
        return Sequential(*layers.values())
    if kind == "Residual":
        body: Any = layers["body"]
        return Residual(*body, shortcut=layers.get("shortcut"))
    if kind == "SparseLinear":
        parts = tuple(arrays[f"{prefix}weight{s}"].copy() for s in ("", ".indices", ".indptr"))
        options = {k: config[k] for k in ("n", "m") if k in config}
        weight = _MATRICES[config["format"]]._of_parts(parts, tuple(config["shape"]), **options)
        bias = np.zeros(weight.shape[0], compute_dtype(weight.dtype)) if config["bias"] else None
        return SparseLinear(weight, bias)
    if "Quantized" in kind:
        # Imported here, since these modules import this one.
        from compressrs.nn import quantized, quantized_attention, quantized_conv, quantized_sparse

        layers_of: dict[str, Any] = {
            "QuantizedLinear": quantized.QuantizedLinear,
            "FakeQuantizedLinear": quantized.FakeQuantizedLinear,
            "QuantizedConv2d": quantized_conv.QuantizedConv2d,
            "FakeQuantizedConv2d": quantized_conv.FakeQuantizedConv2d,
            "QuantizedEmbedding": quantized_attention.QuantizedEmbedding,
            "QuantizedMultiHeadAttention": quantized_attention.QuantizedMultiHeadAttention,
            "QuantizedSparseLinear": quantized_sparse.QuantizedSparseLinear,
        }
        if kind in layers_of:
            state = {k.removeprefix(prefix): arrays[k] for k in arrays if k.startswith(prefix)}
            made: Layer = layers_of[kind]._of_state(config, state)
            return made
    if kind == "Linear" and (found := linear(prefix, config)) is not None:
        return found
    if kind not in _LAYERS:
        at = f"layer {prefix[:-1]}" if prefix else "the model"
        raise ValueError(f"{at} is a {kind}, which is none of compressrs's layers")
    if kind in _SHAPES:
        array, shape_of = _SHAPES[kind]
        shape, found_shape = shape_of(config), arrays.shape(prefix + array)
        if shape != found_shape:
            raise ValueError(f"{prefix}{array} has the shape {found_shape}, not {shape}")
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    return _LAYERS[kind](**arguments)

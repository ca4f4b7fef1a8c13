"""Layers of models: statistics of their inputs, and what options make of them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from compressrs._arrays import Array
from compressrs.nn import Layer, Linear, QuantizedLinear, Sequential, SparseLinear
from compressrs.nn.container import Container
from compressrs.prune import CalibrationWarning, InputStatistics, sparsegpt
from compressrs.prune.statistics import batches_of, observe, statistics_of
from compressrs.quantize import gptq, prune_and_quantize
from compressrs.search.options import Option
from compressrs.sparse import NMMatrix

#: The share of the Gram matrix's mean diagonal that is added to it, as by default in `gptq`.
DAMPING = 0.01


def calibration_batches(calibration: Any) -> list[Array]:
    """Return calibration inputs as a list of batches.

    Raises
    ------
    TypeError, ValueError
        If they are not arrays, or empty.
    """
    found = [x for _, x in batches_of(calibration, "calibration")]
    if not sum(len(x) if x.ndim else 0 for x in found):
        raise ValueError("calibration must hold inputs, got none")
    return found


def linear_layers(model: Layer) -> dict[str, Linear]:
    """Return the linear layers of a model by name.

    Raises
    ------
    TypeError, ValueError
        If it is no model, or has none.
    """
    if not isinstance(model, Container):
        raise TypeError(
            f"model must be made of layers, as a Sequential, or the path of a checkpoint, "
            f"got {type(model).__name__}"
        )
    found = {name: x for name, x in model.named_layers() if isinstance(x, Linear)}
    if not found:
        raise ValueError("model must have at least one Linear layer, got none")
    return found


def statistics(model: Layer, batches: Sequence[Array], names: Iterable[str]) -> dict[str, Any]:
    """Return the statistics of the inputs of some layers, with Gram matrices."""
    layers = dict(model.named_layers())
    found = statistics_of({name: layers[name] for name in names}, gram=True)
    try:
        for x in batches:
            observe(model, x, found)
    except ValueError as error:
        raise ValueError(f"calibration must be inputs of the model: {error}") from error
    return found


def build(layer: Linear, option: Option, seen: InputStatistics) -> Layer:
    """Return what an option makes of a layer; the layer is unchanged.

    Raises
    ------
    ValueError
        If the option is not of layers of this shape.
    """
    bias = None if layer.bias is None else layer.bias.copy()
    with warnings.catch_warnings():
        # Few inputs are common here; what is lost for it is measured.
        warnings.simplefilter("ignore", CalibrationWarning)
        if option.scheme is not None:
            if option.prunes:
                q, _ = prune_and_quantize(
                    layer.weight, seen, option.scheme, option.sparsity, nm=option.nm
                )
            else:
                q = gptq(layer.weight, seen, option.scheme)
            return QuantizedLinear(q, bias)
        if option.prunes:
            weight = layer.weight.copy()
            mask = sparsegpt(weight, seen, option.sparsity, nm=option.nm)
            if option.nm is not None:
                n, m = option.nm
                return SparseLinear(NMMatrix.from_dense(weight, n=n, m=m), bias)
            dense = Linear.from_arrays(weight, bias)
            return SparseLinear.from_linear(dense, mask=mask)
    if option.rank is not None:
        return _low_rank(layer, option.rank, seen, bias)
    return layer.copy()


def _low_rank(layer: Linear, rank: int, seen: InputStatistics, bias: Array | None) -> Layer:
    """Return two layers whose product is nearest to the weight for the inputs seen."""
    w = layer.weight.astype(np.float64)
    if rank > min(w.shape):
        raise ValueError(f"rank must be at most {min(w.shape)}, got {rank}")
    gram = seen.gram
    assert gram is not None
    damping = DAMPING * float(np.diagonal(gram).mean()) or 1.0
    # || (W - U V) L || with L L' the Gram matrix is least for the leading singular vectors.
    factor = np.linalg.cholesky(gram + damping * np.eye(len(gram)))
    u, s, v = np.linalg.svd(w @ factor, full_matrices=False)
    first = np.linalg.solve(factor.T, (s[:rank, None] * v[:rank]).T).T
    dtype = layer.weight.dtype
    return Sequential(
        Linear.from_arrays(np.ascontiguousarray(first, dtype)),
        Linear.from_arrays(np.ascontiguousarray(u[:, :rank], dtype), bias),
    )


def weight_of(layer: Any) -> Array:
    """Return the weight that a layer made by `build` multiplies by, in double precision."""
    if isinstance(layer, Sequential):
        return weight_of(layer[1]) @ weight_of(layer[0])
    weight = layer.weight
    if isinstance(layer, QuantizedLinear):
        weight = weight.dequantize()
    elif isinstance(layer, SparseLinear):
        weight = weight.to_dense()
    found: Array = np.asarray(weight, np.float64)
    return found


def nbytes(layer: Any) -> int:
    """Return the bytes of a layer's arrays, codes packed."""
    if isinstance(layer, QuantizedLinear):
        return layer.nbytes
    children = layer.children()
    if children:
        return sum(map(nbytes, children.values()))
    return sum(int(array.nbytes) for array in layer.state_dict().values())


def multiply_adds(layer: Any) -> int:
    """Return the multiplications of a layer made by `build` for one row."""
    if isinstance(layer, Sequential):
        return sum(map(multiply_adds, layer))
    if isinstance(layer, SparseLinear):
        return int(layer.weight.nnz)
    weight = layer.weight
    return int(np.prod(weight.shape))


def replaced(model: Layer, new: Mapping[str, Layer]) -> Any:
    """Return a copy of a model with other layers in some places."""
    made: Any = copy.deepcopy(model)
    for name, layer in new.items():
        *path, last = name.split(".")
        parents = [made]
        for part in path:
            parents.append(parents[-1].children()[part])
        parents[-1]._children[last] = layer
        for parent in reversed(parents):
            parent._gather()
    return made


def relative_error(w: Array, new: Array, gram: Array | None) -> float:
    r"""Return :math:`\mathrm{tr}(D G D^\top) / \mathrm{tr}(W G W^\top)`, `D` the difference.

    Without a Gram matrix it is that of the identity.
    """
    before = np.asarray(w, np.float64)
    lost = np.asarray(new, np.float64) - before
    if gram is None:
        above, below = float(np.vdot(lost, lost)), float(np.vdot(before, before))
    else:
        above, below = float(np.vdot(lost @ gram, lost)), float(np.vdot(before @ gram, before))
    # Rounding may make the sum of what is nearly 0 negative.
    return max(above, 0.0) / below if below > 0 else 0.0

"""Taking neurons away for real: fewer rows here, fewer inputs there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compressrs._arrays import Array, as_array, same_memory
from compressrs.nn import Linear, ReLU, Sequential, _Affine
from compressrs.optim import Optimizer
from compressrs.prune.selection import Mask


def neurons(
    keep: Mask,
    outputs: Sequence[Array],
    inputs: Sequence[Array] = (),
    optimizer: Optimizer | None = None,
) -> tuple[list[Array], list[Array]]:
    """Return the arrays of a layer, and of those that it feeds, without some neurons.

    The arrays are smaller and so is every product with them. What a removed neuron put
    out counts as 0: results are those of masks on its weights and its bias.

    Parameters
    ----------
    keep : array of bool, shape (neurons,)
        True for a neuron that stays.
    outputs : list of array
        What has a row for each neuron: the layer's weight, its bias, the scale and shift
        of a normalization; for filters a kernel (outputs, inputs, height, width).
    inputs : list of array, optional
        What has a column (axis 1) for each neuron, or as many columns in a row for each
        as go into it evenly: weights and kernels of the next layers, and a weight that
        takes feature maps, flattened channel by channel. A recurrent weight may be here
        and in `outputs`.
    optimizer : Optimizer, optional
        Those of the arrays that it trains are replaced in it, with their state and masks.

    Returns
    -------
    outputs, inputs : list of array
        New arrays, in the same order.

    Raises
    ------
    TypeError
        If `keep` is not a boolean vector, or something not an array.
    ValueError
        If no neuron stays, or a shape does not fit; nothing is changed then.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w1, b1, w2 = np.ones((3, 2)), np.arange(3.0), np.array([[1.0, 2.0, 3.0]])
    >>> opt = cr.optim.Adam([w1, b1, w2])
    >>> opt.step([w1 + 1, b1 + 1, w2 + 1])
    >>> keep = np.array([True, False, True])
    >>> (w1, b1), (w2,) = cr.prune.neurons(keep, [w1, b1], [w2], optimizer=opt)
    >>> w1.shape, b1.shape, w2.shape, opt.state[2]["exp_avg"].shape
    ((2, 2), (2,), (1, 2), (1, 2))
    """
    keep = as_array(keep, "keep")
    if keep.dtype != np.bool_ or keep.ndim != 1:
        raise TypeError(
            f"keep must be a boolean array of one axis, got {keep.dtype} of shape {keep.shape}"
        )
    if not keep.any():
        raise ValueError(f"keep must keep at least one neuron of {keep.size}, got none")
    arrays: list[Array] = []
    cuts: list[dict[int, Mask]] = []
    places: list[int] = []
    for axis, name, given in ((0, "outputs", outputs), (1, "inputs", inputs)):
        for i, value in enumerate(given):
            array = as_array(value, f"{name}[{i}]")
            length = array.shape[axis] if array.ndim > axis else 0
            each = length // keep.size
            if length == 0 or length != each * keep.size or (axis == 0 and each != 1):
                need = f"{keep.size} rows" if axis == 0 else f"a multiple of {keep.size} columns"
                raise ValueError(f"{name}[{i}] must have {need}, got shape {array.shape}")
            place = next((k for k, a in enumerate(arrays) if same_memory(a, array)), len(arrays))
            if place == len(arrays):
                arrays.append(array)
                cuts.append({})
            if axis in cuts[place]:
                raise ValueError(f"{name}[{i}] must not be given twice")
            cuts[place][axis] = np.repeat(keep, each)
            places.append(place)
    new = [_cut(array, cut) for array, cut in zip(arrays, cuts, strict=True)]
    if optimizer is not None:
        found = {}
        for k, array in enumerate(arrays):
            index = optimizer._index_of(array)
            if index is not None:
                found[index] = k
        optimizer._replace(
            {index: new[k] for index, k in found.items()},
            lambda index, values, fill: _cut(values, cuts[found[index]]),
        )
    returned = [new[place] for place in places]
    return returned[: len(outputs)], returned[len(outputs) :]


def _cut(array: Array, cut: dict[int, Mask]) -> Array:
    """Return an array without what is cut along some axes, where it has these lengths."""
    for axis, keep in cut.items():
        # Means over an axis have length 1 there.
        if array.ndim > axis and array.shape[axis] == keep.size:
            array = np.compress(keep, array, axis=axis)
    return np.ascontiguousarray(array)


def shrink(model: Sequential, keep: Mapping[int, Mask], optimizer: Optimizer | None = None) -> None:
    """Take neurons of a model away, and what the next layer had for them.

    Parameters
    ----------
    model : Sequential
        Its dense layers get new, smaller arrays.
    keep : dict of array of bool
        By the position of a dense layer in the model, which of its neurons stay; see
        `neuron_mask`.
    optimizer : Optimizer, optional
        The one that trains the model; it goes on with the new arrays.

    Raises
    ------
    TypeError
        If a mask is not a boolean vector, or a layer is not a `Linear`.
    ValueError
        If a layer has no layer after it, no neuron would stay, or a shape does not fit;
        what was asked for before in the same call is done then.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> model = cr.nn.Sequential(cr.nn.Linear(3, 8, rng=0), cr.nn.ReLU(), cr.nn.Linear(8, 2, rng=1))
    >>> opt = cr.optim.Adam(model.params)
    >>> keep = cr.prune.neuron_mask(model[0].weight, axis=0, sparsity=0.75).any(axis=1)
    >>> cr.prune.shrink(model, {0: keep}, optimizer=opt)
    >>> model[0].weight.shape, model[2].weight.shape
    ((2, 3), (2, 2))
    >>> model.backward(model(np.ones((5, 3), np.float32)))[0].shape
    (3,)
    >>> opt.step(model.grads)
    """
    for position in keep:
        _pair(model, position)
    for position, mask in keep.items():
        layer, following = _pair(model, position)
        has_bias = layer.bias is not None
        rows = [layer.weight, layer.bias] if has_bias else [layer.weight]
        (weight, *bias), (after,) = neurons(mask, rows, [following.weight], optimizer)
        _adopt(layer, weight, bias[0] if has_bias else None)
        _adopt(following, after, following.bias)


def _pair(model: Sequential, position: int) -> tuple[Linear, Linear]:
    """Return a layer and the one that it feeds."""
    if not 0 <= position < len(model):
        raise ValueError(f"keep must be of layers 0 to {len(model) - 1}, got {position}")
    layer: Any = model[position]
    after = next((i for i in range(position + 1, len(model)) if not _passes(model[i])), None)
    if after is None:
        raise ValueError(
            f"keep must be of layers that feed another one, got {position}, whose neurons "
            "are the model's outputs"
        )
    following: Any = model[after]
    for i, found in ((position, layer), (after, following)):
        if not isinstance(found, Linear):
            raise TypeError(f"layer {i} must be a Linear, got {type(found).__name__}")
    return layer, following


def _passes(layer: object) -> bool:
    """Whether a layer leaves a neuron that puts out 0 as it is."""
    return isinstance(layer, ReLU)


def _adopt(layer: _Affine, weight: Array, bias: Array | None) -> None:
    """Have a layer work with other arrays."""
    layer.weight, layer.bias = weight, bias
    layer._use({"weight": weight} if bias is None else {"weight": weight, "bias": bias})

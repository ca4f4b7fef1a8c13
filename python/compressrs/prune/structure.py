"""Taking neurons away for real: fewer rows here, fewer inputs there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compressrs._arrays import Array, as_array, same_memory
from compressrs._checks import sequence, whole
from compressrs.nn import Linear, ReLU, Sequential
from compressrs.optim import Optimizer
from compressrs.optim._weights import structure_changed
from compressrs.prune.optimizers import index_in
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
        What else holds on to the old arrays, as an `EMA` or a `Pruner` does, has to be made
        anew.

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
    keep = _vector(keep, "keep")
    cuts = _Cuts()
    outputs, inputs = sequence(outputs, "outputs"), sequence(inputs, "inputs")
    for axis, name, given in ((0, "outputs", outputs), (1, "inputs", inputs)):
        for i, value in enumerate(given):
            cuts.add(as_array(value, f"{name}[{i}]"), axis, keep, f"{name}[{i}]")
    new = cuts.make(optimizer)
    return new[: len(outputs)], new[len(outputs) :]


class _Cuts:
    """What is taken from arrays, along one axis or both."""

    def __init__(self) -> None:
        self._arrays: list[Array] = []
        self._cuts: list[dict[int, Mask]] = []
        #: Which array each `add` was about.
        self._places: list[int] = []

    def add(self, array: Array, axis: int, keep: Mask, name: str) -> None:
        """Take along an axis what `keep` does not keep, of an array called `name`."""
        length = array.shape[axis] if array.ndim > axis else 0
        each = length // keep.size
        if length == 0 or length != each * keep.size or (axis == 0 and each != 1):
            need = f"{keep.size} rows" if axis == 0 else f"a multiple of {keep.size} columns"
            raise ValueError(f"{name} must have {need}, got shape {array.shape}")
        own = (k for k, other in enumerate(self._arrays) if same_memory(other, array))
        place = next(own, len(self._arrays))
        if place == len(self._arrays):
            self._arrays.append(array)
            self._cuts.append({})
        if axis in self._cuts[place]:
            raise ValueError(f"{name} must not be given twice")
        self._cuts[place][axis] = np.repeat(keep, each)
        self._places.append(place)

    def make(self, optimizer: Optimizer | None) -> list[Array]:
        """Return the new array for each `add`, having the optimizer train them."""
        new = [_cut(array, cut) for array, cut in zip(self._arrays, self._cuts, strict=True)]
        if optimizer is not None:
            found = {}
            for k, array in enumerate(self._arrays):
                index = index_in(optimizer, array)
                if index is not None:
                    found[index] = k
            optimizer._replace(
                {index: new[k] for index, k in found.items()},
                lambda index, values, fill: _cut(values, self._cuts[found[index]]),
            )
        return [new[place] for place in self._places]


def _vector(keep: object, name: str) -> Mask:
    """Return a mask of neurons, if it is one that keeps some."""
    mask = as_array(keep, name)
    if mask.dtype != np.bool_ or mask.ndim != 1:
        raise TypeError(
            f"{name} must be a boolean array of one axis, got {mask.dtype} of shape {mask.shape}"
        )
    if not mask.any():
        raise ValueError(f"{name} must keep at least one neuron of {mask.size}, got none")
    return mask


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
        If `model` is not a `Sequential`, `keep` not a dict, a mask not a boolean vector, or
        a layer not a `Linear`.
    ValueError
        If a layer has no layer after it, no neuron would stay, or a shape does not fit;
        nothing is changed then.

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
    if not isinstance(model, Sequential):
        raise TypeError(f"model must be a Sequential, got {type(model).__name__}")
    if not isinstance(keep, Mapping):
        raise TypeError(
            f"keep must be a dict of masks by the layer's position, got {type(keep).__name__}"
        )
    cuts = _Cuts()
    adopted: list[tuple[Linear, str]] = []
    for position, mask in keep.items():
        layer, following = _pair(model, position)
        name = f"keep[{position}]"
        mask = _vector(mask, name)
        for owner, attribute, axis in (
            (layer, "weight", 0),
            (layer, "bias", 0),
            (following, "weight", 1),
        ):
            array = getattr(owner, attribute)
            if array is not None:
                cuts.add(array, axis, mask, f"the {attribute} that {name} is for")
                adopted.append((owner, attribute))
    for (owner, attribute), array in zip(adopted, cuts.make(optimizer), strict=True):
        structure_changed([getattr(owner, attribute)])
        owner._use({attribute: array})
        setattr(owner, attribute, array)


def _pair(model: Sequential, position: int) -> tuple[Linear, Linear]:
    """Return a layer and the one that it feeds."""
    if whole(position, "the keys of keep", 0) >= len(model):
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

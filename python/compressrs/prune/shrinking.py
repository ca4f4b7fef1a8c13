"""Removal of units from a model, its optimizer, averages and pruner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressrs._arrays import Array
from compressrs._checks import flag
from compressrs.nn import Conv2d, Layer, Sequential
from compressrs.optim import EMA, Optimizer
from compressrs.prune.dependencies import Group, Member, Walk, array_of, group_of
from compressrs.prune.pruner import Pruner
from compressrs.prune.selection import Mask
from compressrs.prune.structure import Cuts, as_unit_mask


def shrink(
    model: Sequential,
    keep: Mapping[int | str, Mask],
    optimizer: Optimizer | None = None,
    *,
    ema: EMA | None = None,
    pruner: Pruner | None = None,
    outputs: bool = False,
) -> None:
    """Remove neurons or filters from a model, with all dependent arrays.

    These are the arrays that `groups` lists: rows of weights and biases, entries of
    normalizations, and the inputs of the layers that consume the units, through residuals and
    flattening. Up to rounding, the outputs of the model equal those with all arrays that
    produce the units masked.

    Parameters
    ----------
    model : Sequential
        The model, whose layers receive new, smaller arrays.
    keep : dict of array of bool
        By position or name of a layer in the model, such as ``"3.body.0"``: True for the
        neurons or filters that are kept; see `neuron_mask`. If several layers produce the same
        units, name one of them.
    optimizer : Optimizer, optional
        The optimizer of the model; it continues with the new arrays and their state.
    ema, pruner : EMA and Pruner, optional
        Averages and masks to shrink with the model. For a `GroupPruner`, use its method
        `shrink`.
    outputs : bool, default False
        Whether outputs of the model may be removed.

    Raises
    ------
    TypeError
        If `model` is not a `Sequential`, `keep` not a dict, a mask not a boolean vector, or
        a layer is of a kind whose units cannot be removed; the layer is named.
    ValueError
        If a layer has no layer after it, no neuron would be kept, units are named twice, or
        a shape does not match. Nothing is changed in that case.

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
    outputs = flag(outputs, "outputs")
    for name, follower, kind in (("ema", ema, EMA), ("pruner", pruner, Pruner)):
        if follower is not None and not isinstance(follower, kind):
            got = type(follower).__name__
            raise TypeError(f"{name} must be of type {kind.__name__}, got {got}")
    walk, layers = Walk(model), dict(model.named_layers())
    cuts = Cuts()
    adopted: list[tuple[Any, Member]] = []
    seen: dict[str, int | str] = {}
    for key, mask in keep.items():
        group = group_made_by(walk, layers, model, key, outputs, "keep")
        mask = as_unit_mask(mask, f"keep[{key!r}]")
        if group.name in seen:
            raise ValueError(f"keep must name units once, got {seen[group.name]!r} and {key!r}")
        seen[group.name] = key
        for member in group.members:
            array = array_of(layers[member.layer], member)
            if array is not None:
                name = f"the {member.array} that keep[{key!r}] is for"
                cuts.add(array, member.axis, mask, name)
                adopted.append((layers[member.layer], member))
    # Averages come last: they keep the masks of holders that were not shrunk.
    followers = [follower for follower in (pruner, ema) if follower is not None]
    for (layer, member), array in zip(
        adopted, cuts.make(optimizer, followers, replaced=True), strict=True
    ):
        adopt(layer, member, array)


def adopt(layer: Any, member: Member, array: Array) -> None:
    """Replace an array of a layer."""
    if member.array in layer.buffers:
        layer.buffers[member.array] = array
        return
    if isinstance(layer, Conv2d) and layer.groups > 1:
        layer.groups = len(array)
    layer._use({member.array: array})


def group_made_by(
    walk: Walk,
    layers: dict[str, Layer],
    model: Sequential,
    key: int | str,
    outputs: bool,
    argument: str,
) -> Group:
    """Return the units that a layer produces after checking that they can be removed."""
    name = str(key)
    if name not in layers:
        if isinstance(key, int) and 0 <= key < len(model):
            kind = type(model[key]).__name__
            raise TypeError(f"layer {key} must be a Linear or a Conv2d, got {kind}; name one in it")
        raise ValueError(
            f"{argument} must be of layers 0 to {len(model) - 1}, or of names of layers in the "
            f"model, got {key!r}"
        )
    space = walk.made_by.get(name)
    if space is None:
        kind = type(layers[name]).__name__
        raise TypeError(f"layer {name} must be a Linear or a Conv2d without groups, got {kind}")
    if space.is_output and not outputs:
        raise ValueError(
            f"{argument} must be of layers that feed another one, got {key!r}, whose neurons "
            "are the model's outputs (outputs=True removes some of these)"
        )
    if space.fixed is not None:
        raise TypeError(f"layer {name} makes units that cannot be removed: {space.fixed}")
    return group_of(space)

"""Inheritance: a model of other widths that keeps what it has learned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from compressrs._arrays import Array
from compressrs._checks import generator, whole
from compressrs.nn import BatchNorm, Layer, Sequential
from compressrs.nn.layer import RandomState, uniform
from compressrs.optim import Optimizer
from compressrs.prune.dependencies import Group, Member, Walk, array_of
from compressrs.prune.shrinking import adopt, group_made_by
from compressrs.prune.structure import Cuts


def resize(
    model: Sequential,
    sizes: Mapping[int | str, int],
    optimizer: Optimizer | None = None,
    *,
    rng: RandomState = None,
) -> None:
    """Change the numbers of neurons or filters of layers, with all dependent arrays.

    Of a layer that becomes smaller, the units with the largest weights (their mean square)
    stay. One that becomes larger has new units whose incoming weights are drawn as those of a
    new layer, and whose outgoing weights are 0: up to rounding, the outputs of the model are
    unchanged until it is trained. In a search, a child begins with the weights of its parent.

    Parameters
    ----------
    model : Sequential
        The model, whose layers receive new arrays.
    sizes : dict of int
        The new numbers by position or name of the layer, as in `compressrs.prune.shrink`.
        Units of several layers that are added to each other are named by one of these.
    optimizer : Optimizer, optional
        The optimizer of the model; it continues with the new arrays and their state, which
        of new weights is that at the beginning.
    rng : int, Generator or None, optional
        Of new weights.

    Raises
    ------
    TypeError
        If an argument is of another type, or a layer is of a kind whose units cannot be
        removed; the layer is named.
    ValueError
        If a size is below 1, a layer has no layer after it, units are named twice, or weights
        are NaN. Nothing is changed in that case.
    MemoryError
        If there is not enough memory for the new arrays; nothing is changed.

    References
    ----------
    Chen et al., "Net2Net", arXiv 1511.05641, where new units are copies instead.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> model = cr.nn.Sequential(cr.nn.Linear(3, 8, rng=0), cr.nn.ReLU(), cr.nn.Linear(8, 2, rng=1))
    >>> opt = cr.optim.Adam(model.params)
    >>> x = np.ones((1, 3), np.float32)
    >>> before = model(x)
    >>> cr.search.resize(model, {0: 12}, opt, rng=0)
    >>> model[0].weight.shape, bool(np.allclose(model(x), before))
    ((12, 3), True)
    """
    if not isinstance(model, Sequential):
        raise TypeError(f"model must be a Sequential, got {type(model).__name__}")
    if not isinstance(sizes, Mapping):
        raise TypeError(
            f"sizes must be a dict of sizes by the layer's position, got {type(sizes).__name__}"
        )
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be an Optimizer, got {type(optimizer).__name__}")
    draw = generator(rng)
    walk, layers = Walk(model), dict(model.named_layers())
    cuts, adopted = Cuts(), []
    seen: dict[str, int | str] = {}
    for key, given in sizes.items():
        group = group_made_by(walk, layers, model, key, False, "sizes")
        size = whole(given, f"sizes[{key!r}]", 1, 2**31)
        if group.name in seen:
            raise ValueError(f"sizes must name units once, got {seen[group.name]!r} and {key!r}")
        seen[group.name] = key
        if size == group.size:
            continue
        keep = _largest(model, group, size) if size < group.size else None
        for member in group.members:
            layer = layers[member.layer]
            array = array_of(layer, member)
            if array is None:
                continue
            name = f"the {member.array} that sizes[{key!r}] is for"
            if keep is not None:
                cuts.add(array, member.axis, keep, name)
            else:
                new = _values(layer, member, draw)
                cuts.grow(array, member.axis, group.size, size - group.size, new, name)
            adopted.append((layer, member))
    made = cuts.make(optimizer, replaced=True)
    for (layer, member), array in zip(adopted, made, strict=True):
        adopt(layer, member, array)


def _largest(model: Sequential, group: Group, size: int) -> Any:
    """Return a mask of the units with the largest weights."""
    scores = group.scores(model)
    if np.isnan(scores).any():
        raise ValueError(f"the weights of layer {group.name} in model must not be NaN")
    keep = np.zeros(group.size, np.bool_)
    keep[np.argsort(-scores, kind="stable")[:size]] = True
    return keep


def _values(layer: Layer, member: Member, draw: np.random.Generator) -> Any:
    """Return a function of the values of new slices of an array, for their shape."""
    if member.axis == 1:
        return np.zeros
    if isinstance(layer, BatchNorm):
        return np.ones if member.array in ("weight", "running_var") else np.zeros
    inputs = math.prod(layer.params["weight"].shape[1:])

    def drawn(shape: tuple[int, ...]) -> Array:
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else inputs
        return uniform(draw, 1 / math.sqrt(fan_in), shape, np.dtype(np.float64))

    return drawn

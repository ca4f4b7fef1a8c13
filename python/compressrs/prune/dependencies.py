"""Dependencies between the arrays of a model that structured pruning must cut together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressrs._arrays import Array
from compressrs._checks import flag, number
from compressrs.nn import (
    GELU,
    AvgPool,
    BatchNorm,
    Conv2d,
    Dropout,
    Embedding,
    Flatten,
    Layer,
    LayerNorm,
    Linear,
    MaxPool,
    MultiHeadAttention,
    ReLU,
    Residual,
    Sequential,
    SiLU,
    Softmax,
)

#: Layers that map 0 to 0, elementwise or channelwise.
_PASSING = (ReLU, GELU, SiLU, Dropout, MaxPool, AvgPool, Flatten)


class Member(NamedTuple):
    """An array that has an entry for each unit along an axis."""

    #: The name of the layer in the model.
    layer: str
    #: The name of the array in `params` or `buffers`.
    array: str
    #: 0 for an array that produces or scales units, 1 for one that consumes them.
    axis: int


@dataclass(frozen=True)
class Group:
    """Units (neurons, filters) of a model that can only be removed from all of its arrays.

    Attributes
    ----------
    name : str
        The name of the first layer that produces the units.
    size : int
        Number of units.
    makers : tuple of str
        All layers that produce them: more than one where residuals are added.
    members : tuple of Member
        The arrays with an entry per unit.
    is_output : bool
        Whether they include the outputs of the model.
    """

    name: str
    size: int
    makers: tuple[str, ...]
    members: tuple[Member, ...]
    is_output: bool = False

    def scores(self, model: Sequential, norm: float = 2) -> npt.NDArray[np.float64]:
        """Return a norm of the weights that produce each unit, divided by their number.

        Parameters
        ----------
        model : Sequential
            The model that the group belongs to.
        norm : float, default 2
            1 or 2.

        Raises
        ------
        TypeError, ValueError
            If `model` is not one with the layers of the group, or `norm` another number.
        """
        if not isinstance(model, Sequential):
            raise TypeError(f"model must be a Sequential, got {type(model).__name__}")
        layers = dict(model.named_layers())
        if missing := [name for name in self.makers if name not in layers]:
            raise ValueError(f"model must have the layers {list(self.makers)}, lacks {missing}")
        weights = [layers[name].params["weight"] for name in self.makers]
        return unit_scores(weights, self.size, norm)


def unit_scores(weights: list[Array], size: int, norm: float) -> npt.NDArray[np.float64]:
    """Return a norm of the rows of weights, divided by the number of their elements."""
    norm = one_or_two(norm)
    total, count = np.zeros(size), 0
    for weight in weights:
        rows = np.abs(weight.reshape(size, -1).astype(np.float64))
        total += (rows**norm).sum(axis=1)
        count += rows.shape[1]
    result: npt.NDArray[np.float64] = (total / count) ** (1 / norm)
    return result


@dataclass(eq=False)
class Space:
    """The units along an axis of an activation."""

    size: int | None
    members: list[Member] = field(default_factory=list)
    makers: list[str] = field(default_factory=list)
    is_output: bool = False
    #: The reason why no unit can be removed, or None.
    fixed: str | None = None
    merged: Space | None = None

    def root(self) -> Space:
        """Return the space that this one was merged into."""
        return self if self.merged is None else self.merged.root()

    def join(self, other: Space) -> Space:
        """Merge two spaces whose units are added to each other."""
        a, b = self.root(), other.root()
        if a is not b:
            a.members += b.members
            a.makers += b.makers
            a.fixed = a.fixed or b.fixed
            if a.size != b.size:
                a.fixed = a.fixed or f"units of {a.size} and of {b.size} are added"
            b.merged = a
        return a


class Walk:
    """Follows units through a model."""

    def __init__(self, model: Sequential) -> None:
        self.spaces: list[Space] = []
        last = self._layer(model, "", self._space(None, fixed="they are the model's inputs"))
        last.root().is_output = True
        order = {name: i for i, (name, _) in enumerate(model.named_layers())}
        for space in self.spaces:
            space.makers.sort(key=order.__getitem__)
        #: The space whose units a layer makes, by the layer's name.
        self.made_by = {name: s.root() for s in self.spaces for name in s.root().makers}

    def groups(self) -> list[Group]:
        """Return the spaces of which units can be removed, in the order of their layers."""
        found: list[Group] = []
        for space in self.spaces:
            if space.merged is None and space.makers and space.fixed is None:
                found.append(group_of(space))
        return found

    def _space(self, size: int | None, fixed: str | None = None) -> Space:
        space = Space(size, fixed=fixed)
        self.spaces.append(space)
        return space

    def _layer(self, layer: Any, name: str, inputs: Space) -> Space:
        """Add the arrays of a layer to the groups of its units; return the space of its output."""
        if isinstance(layer, Sequential):
            for key, child in layer.children().items():
                inputs = self._layer(child, f"{name}.{key}" if name else key, inputs)
            return inputs
        if isinstance(layer, Residual):
            side = inputs
            if layer.shortcut is not None:
                side = self._layer(layer.shortcut, f"{name}.shortcut", inputs)
            return side.join(self._layer(layer.body, f"{name}.body", inputs))
        inputs = inputs.root()
        if type(layer) in _PASSING:
            return inputs
        if type(layer) is BatchNorm:
            inputs.members += [Member(name, key, 0) for key in ("weight", "bias")]
            inputs.members += [Member(name, f"running_{key}", 0) for key in ("mean", "var")]
            return inputs
        if type(layer) is Linear or (type(layer) is Conv2d and layer.groups == 1):
            inputs.members.append(Member(name, "weight", 1))
            return self._made(layer, name, ("weight", "bias"))
        if type(layer) is Conv2d and layer.groups == len(layer.weight) == layer.takes[1]:
            # Each filter reads one channel and makes one.
            inputs.members += [Member(name, key, 0) for key in ("weight", "bias")]
            return inputs
        if type(layer) is Embedding:
            inputs.fixed = inputs.fixed or f"layer {name} takes them for numbers of rows"
            space = self._space(layer.weight.shape[1])
            space.fixed = f"layer {name} (Embedding) makes them"
            return space
        reasons = {
            LayerNorm: "normalizes over them",
            Softmax: "normalizes over them",
            MultiHeadAttention: "divides them into heads",
            Conv2d: "divides them into groups",
        }
        reason = reasons.get(type(layer), "is none whose units can be followed")
        reason = f"layer {name} ({type(layer).__name__}) {reason}"
        inputs.fixed = inputs.fixed or reason
        space = self._space(None, fixed=reason)
        return inputs if type(layer) in (LayerNorm, Softmax) else space

    def _made(self, layer: Any, name: str, arrays: tuple[str, ...]) -> Space:
        space = self._space(len(layer.weight))
        space.makers.append(name)
        space.members += [Member(name, key, 0) for key in arrays if key in layer.params]
        return space


def one_or_two(norm: float) -> float:
    """Return the order of a norm after checking that it is 1 or 2."""
    order = number(norm, "norm")
    if order not in (1, 2):
        raise ValueError(f"norm must be 1 or 2, got {norm!r}")
    return order


def group_of(space: Space) -> Group:
    """Return a space whose units can be removed as a group."""
    assert space.size is not None
    members = tuple(space.members)
    return Group(space.makers[0], space.size, tuple(space.makers), members, space.is_output)


def groups(model: Sequential, *, outputs: bool = False) -> list[Group]:
    """Return the groups of units that can be removed, with the arrays that depend on them.

    Units are followed through normalizations, activations, pooling, `Flatten`, depthwise
    convolutions and residuals: where outputs of two layers are added, their units go
    together.

    Parameters
    ----------
    model : Sequential
    outputs : bool, default False
        Whether the units of the model's outputs count: without some, it has fewer classes.

    Returns
    -------
    list of Group
        In the order of the layers. Not among them are units that a `LayerNorm` or an
        attention needs all of, and what unknown layers make or read.

    Raises
    ------
    TypeError
        If `model` is not a `Sequential`.

    References
    ----------
    Fang et al., "DepGraph: Towards Any Structural Pruning", arXiv 2301.12900.

    Examples
    --------
    >>> import compressrs as cr
    >>> model = cr.nn.Sequential(
    ...     cr.nn.Conv2d(1, 4, 3), cr.nn.BatchNorm(4), cr.nn.ReLU(), cr.nn.Flatten(),
    ...     cr.nn.Linear(16, 2),
    ... )
    >>> [(group.name, group.size) for group in cr.prune.groups(model)]
    [('0', 4)]
    >>> [(m.layer, m.array, m.axis) for m in cr.prune.groups(model)[0].members][-1]
    ('4', 'weight', 1)
    """
    if not isinstance(model, Sequential):
        raise TypeError(f"model must be a Sequential, got {type(model).__name__}")
    outputs = flag(outputs, "outputs")
    return [group for group in Walk(model).groups() if outputs or not group.is_output]


def array_of(layer: Layer, member: Member) -> Array | None:
    """Return the array that a member names, if the layer has it."""
    found = layer.params.get(member.array)
    return layer.buffers.get(member.array) if found is None else found

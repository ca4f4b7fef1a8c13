"""Groups of units of an ONNX graph that can only be removed together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compressrs._checks import flag
from compressrs.onnx._units import Member
from compressrs.onnx._walk import Walk
from compressrs.onnx.model import Model
from compressrs.onnx.pruning import oriented, require_model
from compressrs.prune.dependencies import Space, unit_scores


@dataclass(frozen=True)
class Group:
    """Units (neurons, filters) of a model that can only be removed from all of its arrays.

    Attributes
    ----------
    name : str
        The name of the first weight that produces the units.
    size : int
        Number of units.
    makers : tuple of str
        All weights that produce them: more than one where their results are added.
    members : tuple
        The arrays with entries for each unit: name, axis, and number of entries of each unit.
    is_output : bool
        Whether they include the outputs of the model.
    """

    name: str
    size: int
    makers: tuple[str, ...]
    members: tuple[Member, ...]
    is_output: bool = False

    def scores(self, model: Model, norm: float = 2) -> npt.NDArray[np.float64]:
        """Return a norm of the weights that produce each unit, divided by their number.

        Parameters
        ----------
        model : Model
            The model that the group belongs to.
        norm : float, default 2
            1 or 2.

        Raises
        ------
        TypeError, ValueError
            If `model` is not one with the arrays of the group, or `norm` another number.
        """
        known = require_model(model).initializers
        if missing := [name for name in self.makers if name not in known]:
            raise ValueError(f"model must have the arrays {list(self.makers)}, lacks {missing}")
        weights = [oriented(model[name], known[name]) for name in self.makers]
        return unit_scores(weights, self.size, norm)


def groups(model: Model, *, outputs: bool = False) -> list[Group]:
    """Return the groups of units that can be removed, with the arrays that depend on them.

    Units are followed from ``Gemm``, ``MatMul`` and ``Conv`` through biases, normalizations,
    activations, pooling, flattening, depthwise convolutions, and sums and products of values:
    where results of two layers are added, their units go together.

    Parameters
    ----------
    model : Model
    outputs : bool, default False
        Whether the units of the model's outputs count: without some, it has fewer classes.

    Returns
    -------
    list of Group
        In the order of the arrays. Not among them are units that an operator needs all of, as
        ``LayerNormalization`` does, that go through an operator that is none of the above, or
        into a graph in a node.

    Raises
    ------
    TypeError
        If `model` is none.

    References
    ----------
    Fang et al., "DepGraph: Towards Any Structural Pruning", arXiv 2301.12900.

    Examples
    --------
    >>> import compressrs as cr
    >>> from onnx import parser
    >>> model = cr.onnx.load(parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["": 17]>
    ...     g (float[n, 2] x) => (float[n, 1] y)
    ...     <float[2, 3] a = {4, 1, 3, 2, 0, 5}, float[3] b = {0, 1, 2}, float[3, 1] c = {1, 2, 3}>
    ...     { h = MatMul(x, a)  s = Add(h, b)  r = Relu(s)  y = MatMul(r, c) }
    ... '''))
    >>> [(group.name, group.size) for group in cr.onnx.groups(model)]
    [('a', 3)]
    >>> [(member.array, member.axis) for member in cr.onnx.groups(model)[0].members]
    [('a', 1), ('b', 0), ('c', 0)]
    """
    walk = Walk(require_model(model))
    outputs = flag(outputs, "outputs")
    found = {id(space): space for space in walk.made_by.values() if space.fixed is None}
    listed = [group_of(walk, space) for space in found.values()]
    return [group for group in listed if outputs or not group.is_output]


def group_of(walk: Walk, space: Space) -> Group:
    """Return a space whose units can be removed as a group."""
    assert space.size is not None
    members = tuple(dict.fromkeys(m for own, m in walk.members if own.root() is space))
    return Group(space.makers[0], space.size, tuple(space.makers), members, space.is_output)

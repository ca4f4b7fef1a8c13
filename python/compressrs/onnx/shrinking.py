"""Removal of neurons and filters from ONNX models."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compressrs.onnx._walk import Walk
from compressrs.onnx.dependencies import group_of
from compressrs.onnx.model import Model
from compressrs.onnx.pruning import require_model
from compressrs.prune.selection import Mask
from compressrs.prune.structure import as_unit_mask


def shrink(model: Model, keep: Mapping[str, Mask], *, outputs: bool = False) -> None:
    """Remove neurons or filters from a model, with all dependent arrays.

    These are the arrays that `groups` lists: weights that produce the units, their biases and
    normalizations, and the inputs of the layers that consume them. Up to rounding, the outputs
    of the model equal those with all arrays that produce the units masked.

    Parameters
    ----------
    model : Model
        Its arrays become smaller; shapes of values in the file follow.
    keep : dict of array of bool
        By the name of a weight: True for the neurons or filters that are kept. If several
        weights produce the same units, name one of them.
    outputs : bool, default False
        Whether outputs of the model may be removed.

    Raises
    ------
    TypeError
        If `model` is none, `keep` not a dict, or a mask not a boolean vector.
    ValueError
        If a name is of no weight that makes units; if its units cannot be removed, with the node
        that needs them; if no unit would be kept, units are named twice, or a length does not
        match. Nothing is changed in that case.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> from onnx import parser
    >>> model = cr.onnx.load(parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["": 17]>
    ...     g (float[n, 2] x) => (float[n, 1] y)
    ...     <float[2, 3] a = {4, 1, 3, 2, 0, 5}, float[3] b = {0, 1, 2}, float[3, 1] c = {1, 2, 3}>
    ...     { h = MatMul(x, a)  s = Add(h, b)  r = Relu(s)  y = MatMul(r, c) }
    ... '''))
    >>> cr.onnx.shrink(model, {"a": np.array([True, False, True])})
    >>> {name: array.shape for name, array in model.items()}
    {'a': (2, 2), 'b': (2,), 'c': (2, 1)}
    """
    require_model(model)
    if not isinstance(keep, Mapping):
        raise TypeError(
            f"keep must be a dict of masks by the weight's name, got {type(keep).__name__}"
        )
    walk = Walk(model)
    cuts: dict[str, dict[int, Mask]] = {}
    masks: dict[int, Mask] = {}
    seen: dict[str, str] = {}
    for name, mask in keep.items():
        space = walk.made_by.get(name)
        if space is None:
            raise ValueError(
                f"keep must be of weights that make units, {list(walk.made_by)}, got {name!r}"
            )
        if space.fixed is not None:
            raise ValueError(f"{name} makes units that cannot be removed: {space.fixed}")
        group = group_of(walk, space)
        if group.is_output and not outputs:
            raise ValueError(
                f"keep must be of weights that feed another one, got {name!r}, whose units "
                "are the model's outputs (outputs=True removes some of these)"
            )
        mask = as_unit_mask(mask, f"keep[{name!r}]")
        if mask.size != group.size:
            raise ValueError(f"keep[{name!r}] must have length {group.size}, got {mask.size}")
        if group.name in seen:
            raise ValueError(f"keep must name units once, got {seen[group.name]!r} and {name!r}")
        seen[group.name], masks[id(space)] = name, mask
        for member in group.members:
            cuts.setdefault(member.array, {})[member.axis] = np.repeat(mask, member.each)
    smaller = {}
    for name, cut in cuts.items():
        array = model[name]
        for axis, mask in cut.items():
            array = np.compress(mask, array, axis=axis)
        smaller[name] = np.ascontiguousarray(array)
    lengths = {}
    for value, made in walk.values.items():
        if made is not None and (kept := masks.get(id(made.space.root()))) is not None:
            lengths[value] = made.axis, int(kept.sum()) * made.each
    numbers = [
        (change, int(kept.sum()))
        for change in walk.changes
        if (kept := masks.get(id(change.space.root()))) is not None
    ]
    model._cut(smaller, lengths, [(c.node, c.each, n) for c, n in numbers])

"""Whether an optimizer is that of a model."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressrs import _core
from compressrs._arrays import Array, ArrayTree, flatten


def require_trained(model: Any, optimizer: Any, name: str) -> None:
    """Raise an error if an optimizer has none of a model's parameters, and would train another.

    Arrays are compared by their memory: an optimizer may have views of them, or some of them
    only. Models and optimizers whose arrays are not known, such as those of a user's without
    `params` or `param_groups`, pass.

    Raises
    ------
    ValueError
        `name` is what the model is called in the message.
    """
    own = _known(getattr(model, "params", None))
    groups = getattr(optimizer, "param_groups", None)
    if not own or not isinstance(groups, (list, tuple)):
        return
    trained: list[Array] = []
    for group in groups:
        arrays = _known(group.get("params")) if isinstance(group, dict) else None
        if arrays is None:
            return
        trained += arrays
    if not trained or {_core.address(a) for a in own} & {_core.address(a) for a in trained}:
        return
    if not any(np.may_share_memory(a, b) for a in own for b in trained):
        raise ValueError(
            f"optimizer must have parameters of the {name}, as of Adam({name}.params), got one "
            "whose arrays are all of something else"
        )


def _known(tree: ArrayTree) -> list[Array] | None:
    """Return the arrays of a tree that have elements, or None if it holds anything else."""
    arrays = [leaf for _, leaf in flatten(tree)]
    if not all(isinstance(array, np.ndarray) for array in arrays):
        return None
    return [array for array in arrays if array.size]

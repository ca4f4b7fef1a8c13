"""Functions of the user's that return a loss and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from compressrs._arrays import Array, ArrayTree, as_gradient
from compressrs._checks import returned_number
from compressrs.optim._complex import gradient_pairs

#: Returns the loss and its gradients at the current parameters.
Closure: TypeAlias = Callable[[], tuple[float, ArrayTree]]


def evaluated(
    closure: Closure, parameters: Sequence[Array], names: Sequence[str]
) -> tuple[float, ArrayTree]:
    """Call a closure and return what it returns.

    Raises
    ------
    TypeError
        If that is not a number and gradients.
    ValueError
        If the closure changes a parameter.
    """
    before = [w.copy() for w in parameters]
    result = closure()
    for name, own, value in zip(names, parameters, before, strict=True):
        # Bytes, since NaN is not equal to itself.
        if not np.array_equal(own.reshape(-1).view(np.uint8), value.reshape(-1).view(np.uint8)):
            raise ValueError(f"closure must not change parameters, but changed {name}")
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(
            f"closure must return a loss and its gradients, got {type(result).__name__}"
        )
    return returned_number(result[0], "closure", "a number as the loss"), result[1]


def gradient_of(parameter: Array, leaf: object, name: str, *, is_complex: bool = False) -> Array:
    """Return a gradient as an array, if it has its parameter's shape; of a complex one pairs."""
    if is_complex:
        leaf = gradient_pairs(leaf, parameter, f"the gradient of {name}", name)
    given = as_gradient(leaf, f"the gradient of {name}")
    if given.shape != parameter.shape:
        raise ValueError(
            f"the gradient of {name} must have shape {parameter.shape}, got {given.shape}"
        )
    return given

"""Functions of the user's that return a loss and its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from compressrs._arrays import Array, ArrayTree, as_gradient

#: Returns the loss and its gradients at the current parameters.
Closure: TypeAlias = Callable[[], tuple[float, ArrayTree]]


def evaluated(closure: Closure) -> tuple[float, ArrayTree]:
    """Call a closure and return what it returns.

    Raises
    ------
    TypeError
        If that is not a number and gradients.
    """
    result = closure()
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(
            f"closure must return a loss and its gradients, got {type(result).__name__}"
        )
    try:
        return float(result[0]), result[1]
    except (TypeError, ValueError):
        raise TypeError(
            f"closure must return a number as the loss, got {type(result[0]).__name__}"
        ) from None


def gradient_of(parameter: Array, leaf: object, name: str) -> Array:
    """Return a gradient as an array, if it has its parameter's shape."""
    given = as_gradient(leaf, f"the gradient of {name}")
    if given.shape != parameter.shape:
        raise ValueError(
            f"the gradient of {name} must have shape {parameter.shape}, got {given.shape}"
        )
    return given

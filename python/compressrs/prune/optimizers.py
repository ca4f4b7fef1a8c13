"""Which of an optimizer's parameters an array is."""

from __future__ import annotations

from compressrs._arrays import Array
from compressrs.optim import Optimizer


def index_in(optimizer: Optimizer, array: Array) -> int | None:
    """Return the index of an array among an optimizer's parameters, if it is one.

    Raises
    ------
    TypeError
        If `optimizer` is not an `Optimizer`, but something that wraps one, say.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer must be an Optimizer of cr.optim, got {type(optimizer).__name__}; "
            "of what wraps one, pass the one inside"
        )
    return optimizer._index_of(array)


def require_index(optimizer: Optimizer, array: Array, name: str) -> int:
    """Return the index of an array among an optimizer's parameters.

    Raises
    ------
    TypeError
        If `optimizer` is not an `Optimizer`.
    ValueError
        If the array is not one of its parameters.
    """
    index = index_in(optimizer, array)
    if index is None:
        raise ValueError(f"{name} must be a parameter of the optimizer, which has none such")
    return index

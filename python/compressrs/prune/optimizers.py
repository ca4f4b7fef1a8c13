"""Lookup of arrays among an optimizer's parameters."""

from __future__ import annotations

from compressrs._arrays import Array
from compressrs.optim import Optimizer
from compressrs.prune._weights import require_real


def index_in(optimizer: Optimizer, array: Array) -> int | None:
    """Return the index of an array among an optimizer's parameters, or None.

    Raises
    ------
    TypeError
        If `optimizer` is not an `Optimizer`, for example a wrapper around one, or the array is
        complex.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer must be an Optimizer of cr.optim, got {type(optimizer).__name__}; "
            "if it wraps one, pass the wrapped optimizer"
        )
    require_real(array, "an array of the optimizer")
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
        raise ValueError(f"{name} must be a parameter of the optimizer, but is not")
    return index

"""Gradients that the core does not look at, or cannot say all about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from compressrs._arrays import Array, as_gradient, compute_dtype, is_floating
from compressrs._core import NonFiniteGradientError
from compressrs.optim.rows import RowGradient


def require_fitting(
    groups: Iterable[Mapping[str, Any]], gradients: Iterable[Any], paths: Iterable[str]
) -> None:
    """Check the gradients of frozen groups against their parameters.

    Raises
    ------
    TypeError
        If one is not an array of a floating-point dtype.
    ValueError
        If it does not have its parameter's shape, or names rows that this does not have.
    """
    # A loop, since small steps take microseconds.
    for group in groups:
        if group.get("frozen", False) is not False:
            break
    else:
        return
    parameters = _with_frozen(groups)
    for (array, frozen), gradient, path in zip(parameters, gradients, paths, strict=True):
        if not frozen or gradient is None:
            continue
        name, owner, shape = f"grads{path}", f"params{path}", array.shape
        if isinstance(gradient, RowGradient):
            given, shape = gradient.values, (len(gradient.rows), *shape[1:])
            if array.ndim == 0:
                raise ValueError(f"{name} has the gradients of rows, but {owner} has no rows")
            owner = f"rows and {owner}"
        else:
            given = as_gradient(gradient, name)
        if not is_floating(given.dtype):
            raise TypeError(
                f"{name} must have dtype float32, float64, float16 or bfloat16, got {given.dtype}"
            )
        if given.shape != shape:
            raise ValueError(f"{name} must have the shape {shape} of {owner}, got {given.shape}")
        if isinstance(gradient, RowGradient) and gradient.rows.max(initial=-1) >= len(array):
            raise ValueError(
                f"{name}.rows must be rows of params{path}, from 0 to {len(array) - 1}, got "
                f"{gradient.rows.max()}"
            )


def _with_frozen(groups: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Array, bool]]:
    """Yield each parameter, and whether its group is frozen."""
    for group in groups:
        frozen = group.get("frozen", False) is not False
        for array in group["params"]:
            yield array, frozen


def explained(
    error: NonFiniteGradientError, gradients: Sequence[Any], paths: Sequence[str]
) -> NonFiniteGradientError:
    """Return an error about NaN or infinity, or one about sums of rows that overflowed."""
    for gradient, path in zip(gradients, paths, strict=True):
        if not (
            isinstance(gradient, RowGradient)
            and str(error).startswith(f"grads{path} holds NaN or infinity")
            and np.isfinite(gradient.values).all()
        ):
            continue
        dtype = compute_dtype(gradient.values.dtype)
        return NonFiniteGradientError(
            f"grads{path} holds finite gradients of the same row whose sum is beyond the range of "
            f'{dtype}; nothing was changed (nonfinite="skip" leaves such steps out)'
        )
    return error

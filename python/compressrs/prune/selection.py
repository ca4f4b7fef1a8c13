"""Which values of some arrays are the smallest: per layer, per row, or of all."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array
from compressrs._checks import choice, number

Mask: TypeAlias = npt.NDArray[np.bool_]

#: Sparsities of layers of these shapes, given that of all together.
Allocation: TypeAlias = Callable[[list[tuple[int, ...]], float], Sequence[float]]

#: Of all layers, or of each.
Sparsity: TypeAlias = float | Sequence[float]

#: "global", "layer", "row", or how much to take from each layer.
Scope: TypeAlias = str | Allocation

SCOPES = ("global", "layer", "row")


class EmptyLayerWarning(UserWarning):
    """A layer would have been pruned to nothing; the message names it."""


def check_scope(scope: Scope) -> Scope:
    """Return `scope`, if it is one.

    Raises
    ------
    ValueError
        If it is neither callable nor one of `SCOPES`.
    """
    return scope if callable(scope) else choice(scope, "scope", SCOPES)


def select(
    arrays: list[Array],
    names: list[str],
    sparsity: Sparsity,
    scope: Scope,
    *,
    by_value: bool,
    allow_empty: bool,
    shapes: list[tuple[int, ...]] | None = None,
) -> list[Mask]:
    """Return masks that remove the smallest magnitudes, or values.

    Where each layer has a sparsity of its own, "global" means as much as "layer".
    `shapes`, by default those of the arrays, are what a callable `scope` goes by.

    Raises
    ------
    ValueError
        If a sparsity is not in [0, 1), there are no values, or one is NaN.
    """
    if sum(array.size for array in arrays) == 0:
        name = names[0] if names else "the list of arrays"
        raise ValueError(f"{name} must hold at least one value, got none")
    if isinstance(sparsity, (Sequence, np.ndarray)) and not isinstance(sparsity, str):
        giver, sparsities = "sparsity", list(sparsity)
        if callable(scope):
            raise ValueError("scope must not be callable where each layer's sparsity is given")
    else:
        share = number(sparsity, "sparsity", 0, below=1)
        if scope == "global":
            return _smallest(arrays, names, share, by_value, allow_empty)
        giver, sparsities = "scope", [share] * len(arrays)
        if callable(scope):
            sparsities = list(scope(shapes or [array.shape for array in arrays], share))
    if len(sparsities) != len(arrays):
        raise ValueError(
            f"{giver} must give {len(arrays)} sparsities, one a layer, got {len(sparsities)}"
        )
    masks = []
    for array, name, share in zip(arrays, names, sparsities, strict=True):
        share = number(share, f"the sparsity of {name}", 0, below=1)
        if array.size == 0:
            masks.append(np.ones(array.shape, np.bool_))
        elif scope == "row":
            masks.append(_rows(array, name, share, by_value, allow_empty))
        else:
            masks += _smallest([array], [name], share, by_value, allow_empty)
    return masks


def _smallest(
    arrays: list[Array], names: list[str], sparsity: float, by_value: bool, allow_empty: bool
) -> list[Mask]:
    """Remove exactly a share of all arrays together."""
    total = sum(array.size for array in arrays)
    k = round(sparsity * total)
    masks = [np.empty(array.shape, np.bool_) for array in arrays]
    spared: dict[int, int] = {}
    while True:
        # As many more as were put back are taken elsewhere.
        _core.mask_smallest(arrays, names, min(k + len(spared), total), by_value, masks)
        for layer, place in spared.items():
            masks[layer].flat[place] = True
        empty = [i for i, mask in enumerate(masks) if mask.size and not mask.any()]
        if allow_empty or not empty:
            return masks
        for layer in empty:
            warn_empty(names[layer])
            spared[layer] = largest(arrays[layer], by_value)


def _rows(array: Array, name: str, sparsity: float, by_value: bool, allow_empty: bool) -> Mask:
    """Remove exactly a share of each row, that is, of each output."""
    rows = array.reshape(len(array) if array.ndim else 1, -1)
    mask = np.empty(rows.shape, np.bool_)
    _core.mask_rows(rows, name, round(sparsity * rows.shape[1]), by_value, mask)
    if not mask.any() and not allow_empty:
        warn_empty(name)
        mask.flat[largest(array, by_value)] = True
    return mask.reshape(array.shape)


def warn_empty(name: str) -> None:
    """Warn that a layer was to be pruned to nothing."""
    warnings.warn(
        f"{name} would be pruned to nothing; the largest is kept (allow_empty=True lets it go)",
        EmptyLayerWarning,
        stacklevel=2,
    )


def largest(array: Array, by_value: bool) -> int:
    """Return the flat index of the largest; the last of equal ones, which goes last."""
    flat = array.reshape(-1)
    order = flat if by_value else np.abs(flat)
    return flat.size - 1 - int(np.argmax(order[::-1]))

"""Which values of some arrays are the smallest: per layer, per row, or of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array
from compressrs._checks import choice, number
from compressrs._warnings import warn

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


def is_several(sparsity: Sparsity) -> TypeGuard[Sequence[float]]:
    """Whether a sparsity is given for each layer; an array without axes is a number."""
    if isinstance(sparsity, np.ndarray):
        return sparsity.ndim > 0
    return isinstance(sparsity, Sequence) and not isinstance(sparsity, (str, bytes))


def check_scope(scope: Scope) -> Scope:
    """Return `scope`, if it is one.

    Raises
    ------
    ValueError
        If it is neither callable nor one of `SCOPES`.
    """
    return scope if callable(scope) else choice(scope, "scope", SCOPES)


@dataclass(frozen=True)
class Selection:
    """What a share of is to be removed.

    Attributes
    ----------
    arrays : list of array
        Weights, or scores of them if `by_value`.
    names : list of str
        Theirs, for messages.
    sparsity : float, or sequence of float
        In [0, 1); of all arrays, or of each.
    scope : str or callable
        See `compressrs.prune.masks`. Where each layer has a sparsity of its own, "global"
        means as much as "layer".
    by_value : bool
        Whether the smallest values are removed, rather than magnitudes.
    allow_empty : bool
        Whether a layer may be pruned to nothing.
    alive : list of array of bool, optional
        Masks of what has not been removed before. What has goes first.
    shapes : list of tuple of int, optional
        What a callable `scope` goes by, if not the shapes of the arrays.
    """

    arrays: list[Array]
    names: list[str]
    sparsity: Sparsity
    scope: Scope = "layer"
    by_value: bool = False
    allow_empty: bool = False
    alive: list[Mask] | None = None
    shapes: list[tuple[int, ...]] | None = None

    def sunk(self) -> Selection:
        """Return the same by values of which what has been removed before is the smallest."""
        if self.alive is None:
            return self
        arrays = [
            np.where(mask, array if self.by_value else np.abs(array), array.dtype.type(-np.inf))
            for array, mask in zip(self.arrays, self.alive, strict=True)
        ]
        return replace(self, arrays=arrays, by_value=True, alive=None)

    def masks(self) -> list[Mask]:
        """Return masks that remove single values.

        Raises
        ------
        ValueError
            If a sparsity is not in [0, 1), there are no values, or one is NaN.
        """
        if self.alive is not None:
            return self.sunk().masks()
        if sum(array.size for array in self.arrays) == 0:
            name = self.names[0] if self.names else "the list of arrays"
            raise ValueError(f"{name} must hold at least one value, got none")
        given = self.sparsity
        if is_several(given):
            if callable(self.scope):
                raise ValueError("scope must not be callable where each layer's sparsity is given")
            return self._each("sparsity", list(given))
        share = number(given, "sparsity", 0, below=1)
        if self.scope == "global":
            return self._smallest(self.arrays, self.names, share)
        if callable(self.scope):
            shapes = self.shapes or [array.shape for array in self.arrays]
            return self._each("scope", list(self.scope(shapes, share)))
        return self._each("scope", [share] * len(self.arrays))

    def _each(self, giver: str, sparsities: list[float]) -> list[Mask]:
        """Return masks of arrays that are pruned one by one."""
        n = len(self.arrays)
        if len(sparsities) != n:
            raise ValueError(
                f"{giver} must give {n} sparsities, one a layer, got {len(sparsities)}"
            )
        masks = []
        for array, name, given in zip(self.arrays, self.names, sparsities, strict=True):
            share = number(given, f"the sparsity of {name}", 0, below=1)
            if array.size == 0:
                masks.append(np.ones(array.shape, np.bool_))
            elif self.scope == "row":
                masks.append(self._rows(array, name, share))
            else:
                masks += self._smallest([array], [name], share)
        return masks

    def _smallest(self, arrays: list[Array], names: list[str], sparsity: float) -> list[Mask]:
        """Remove exactly a share of arrays together."""
        total = sum(array.size for array in arrays)
        k = round(sparsity * total)
        masks = [np.empty(array.shape, np.bool_) for array in arrays]
        spared: dict[int, int] = {}
        while True:
            # As many more as were put back are taken elsewhere.
            count = min(k + len(spared), total)
            _core.mask_smallest(arrays, names, count, self.by_value, masks)
            for layer, place in spared.items():
                masks[layer].flat[place] = True
            empty = [i for i, mask in enumerate(masks) if mask.size and not mask.any()]
            if self.allow_empty or not empty:
                return masks
            for layer in empty:
                warn_empty(names[layer])
                spared[layer] = largest(arrays[layer], self.by_value)

    def _rows(self, array: Array, name: str, sparsity: float) -> Mask:
        """Remove exactly a share of each row, that is, of each output."""
        rows = array.reshape(len(array) if array.ndim else 1, -1)
        mask = np.empty(rows.shape, np.bool_)
        _core.mask_rows(rows, name, round(sparsity * rows.shape[1]), self.by_value, mask)
        if not self.allow_empty:
            keep_one(mask, array, name, self.by_value)
        return mask.reshape(array.shape)


def keep_one(mask: Mask, array: Array, name: str, by_value: bool) -> None:
    """Have a mask that keeps nothing keep the largest, and warn of it."""
    if mask.size and not mask.any():
        warn_empty(name)
        mask.flat[largest(array, by_value)] = True


def warn_empty(name: str) -> None:
    """Warn that a layer was to be pruned to nothing."""
    warn(
        f"{name} would be pruned to nothing; the largest is kept (allow_empty=True lets it go)",
        EmptyLayerWarning,
    )


def largest(array: Array, by_value: bool) -> int:
    """Return the flat index of the largest; the last of equal ones, which goes last."""
    flat = array.reshape(-1)
    order = flat if by_value else np.abs(flat)
    return flat.size - 1 - int(np.argmax(order[::-1]))

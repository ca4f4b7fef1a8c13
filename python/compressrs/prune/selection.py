"""Selection of the smallest values: over all arrays, per layer, or per row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, as_matrix
from compressrs._checks import choice, number
from compressrs._warnings import warn

Mask: TypeAlias = npt.NDArray[np.bool_]

#: A function from the layers' shapes and the total sparsity to the layers' sparsities.
Allocation: TypeAlias = Callable[[list[tuple[int, ...]], float], Sequence[float]]

#: One value for all layers together, or one per layer.
Sparsity: TypeAlias = float | Sequence[float]

#: "global", "layer", "row", or a function that returns each layer's sparsity.
Scope: TypeAlias = str | Allocation

SCOPES = ("global", "layer", "row")


class EmptyLayerWarning(UserWarning):
    """Issued when all of a layer would have been removed; the message names the layer."""


def is_several(sparsity: Sparsity) -> TypeGuard[Sequence[float]]:
    """Whether there is one sparsity per layer; a 0-d array counts as a number."""
    if isinstance(sparsity, np.ndarray):
        return sparsity.ndim > 0
    return isinstance(sparsity, Sequence) and not isinstance(sparsity, (str, bytes))


def check_scope(scope: Scope) -> Scope:
    """Return `scope` after checking it.

    Raises
    ------
    ValueError
        If it is neither callable nor one of `SCOPES`.
    """
    return scope if callable(scope) else choice(scope, "scope", SCOPES)


@dataclass(frozen=True)
class Selection:
    """The arrays and options from which masks are computed.

    Attributes
    ----------
    arrays : list of array
        Weights, or their scores if `by_value`.
    names : list of str
        Names of the arrays, for error messages.
    sparsity : float, or sequence of float
        In [0, 1): the total, or one value per array.
    scope : str or callable
        See `compressrs.prune.masks`. With one sparsity per layer, "global" means the same
        as "layer".
    by_value : bool
        Whether arrays are ranked by value rather than by magnitude.
    allow_empty : bool
        Whether all of a layer may be removed.
    alive : list of array of bool, optional
        Masks of the weights that were not removed before. Removed weights are ranked
        lowest.
    shapes : list of tuple of int, optional
        The shapes passed to a callable `scope`, if not those of the arrays.
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
        """Return an equivalent selection by value in which removed weights rank lowest."""
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
            name = self.names[0] if self.names else "params"
            raise ValueError(f"{name} must hold at least one value, got none")
        given = self.sparsity
        if is_several(given):
            if callable(self.scope):
                raise ValueError("scope must not be callable with a sparsity for each layer")
            return self._each("sparsity", list(given))
        share = number(given, "sparsity", 0, below=1)
        if self.scope == "global":
            return self._smallest(self.arrays, self.names, share)
        if callable(self.scope):
            shapes = self.shapes or [array.shape for array in self.arrays]
            return self._each("scope", list(self.scope(shapes, share)))
        return self._each("scope", [share] * len(self.arrays))

    def _each(self, giver: str, sparsities: list[float]) -> list[Mask]:
        """Return the masks of arrays that each have their own sparsity."""
        n = len(self.arrays)
        if len(sparsities) != n:
            raise ValueError(
                f"{giver} must give {n} sparsities, one per layer, got {len(sparsities)}"
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
        """Return masks that remove exactly a fraction of all arrays together."""
        total = sum(array.size for array in arrays)
        k = round(sparsity * total)
        masks = [np.empty(array.shape, np.bool_) for array in arrays]
        spared: dict[int, int] = {}
        while True:
            # Each weight that was restored is replaced by one from another layer.
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
        """Return a mask that removes exactly a fraction of each row, that is, per output."""
        rows = as_matrix(array, 1)
        mask = np.empty(rows.shape, np.bool_)
        _core.mask_rows(rows, name, round(sparsity * rows.shape[1]), self.by_value, mask)
        if not self.allow_empty:
            keep_one(mask, array, name, self.by_value)
        return mask.reshape(array.shape)


def keep_one(mask: Mask, array: Array, name: str, by_value: bool) -> None:
    """Make an all-False mask keep the largest value, with a warning."""
    if mask.size and not mask.any():
        warn_empty(name)
        mask.flat[largest(array, by_value)] = True


def warn_empty(name: str) -> None:
    """Warn that all of a layer would have been removed."""
    warn(
        f"all of {name} would be removed; its largest is kept (allow_empty=True removes it too)",
        EmptyLayerWarning,
    )


def largest(array: Array, by_value: bool) -> int:
    """Return the flat index of the largest value, which is removed last (the last if tied)."""
    flat = array.reshape(-1)
    order = flat if by_value else np.abs(flat)
    return flat.size - 1 - int(np.argmax(order[::-1]))

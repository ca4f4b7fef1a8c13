"""Weights shared by several objects: their active masks, and arrays that were replaced."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from compressrs import _core
from compressrs._arrays import Array, Views


class _Holder(Protocol):
    def _held_masks(self) -> Iterator[tuple[Array, Array]]:
        """Yield arrays and their masks, True where a weight is kept."""


#: Optimizers and pruners.
_holders: weakref.WeakSet[Any] = weakref.WeakSet()
#: Replaced by a new object after every change of a mask.
_version = object()
#: Arrays, by identity, that a change of structure replaced or rearranged, and when.
_changed: dict[int, tuple[weakref.ref[Array], int]] = {}
_clock = itertools.count(1)
_now = 0


def holds_masks(holder: _Holder) -> None:
    """Register an object whose masks apply wherever its arrays are written."""
    _holders.add(holder)
    masks_changed()


def masks_changed() -> None:
    """Invalidate cached masks."""
    global _version
    _version = object()


def structure_changed(arrays: Iterable[Array]) -> None:
    """Record that arrays were replaced, or their elements rearranged."""
    global _now
    _now = next(_clock)
    for array in arrays:
        key = id(array)
        gone = weakref.ref(array, lambda _, key=key: _changed.pop(key, None))  # type: ignore[misc]
        _changed[key] = (gone, _now)


class Weights:
    """Arrays that an object writes to in addition to an optimizer or a pruner.

    Parameters
    ----------
    owner : str
        The object that holds them, for messages.
    names : list of str
    arrays : list of array
    """

    def __init__(self, owner: str, names: list[str], arrays: list[Array]) -> None:
        self.owner, self.names = owner, names
        # Deep copies refer to the copied arrays.
        self.arrays = arrays if isinstance(arrays, Views) else Views(arrays, names)
        self._since = _now
        self._version: object = None
        self._masks: list[Array | None] = []

    def require_unchanged(self) -> None:
        """Raise a ValueError if an array was replaced or rearranged since construction."""
        for name, array in zip(self.names, self.arrays, strict=True):
            found = _changed.get(id(array))
            if found is not None and found[0]() is array and found[1] > self._since:
                raise ValueError(
                    f"{name} was replaced or rearranged (by shrink, neurons or rewire) since the "
                    f"{self.owner} was made; make a new {self.owner}"
                )

    def masks(self) -> list[Array | None]:
        """Return the active masks, which combine those of all optimizers and pruners."""
        if self._version is not _version:
            version = _version
            held: dict[tuple[Any, ...], Array] = {}
            for holder in list(_holders):
                for array, mask in holder._held_masks():
                    key = _place(array)
                    held[key] = held[key] & mask if key in held else mask
            self._masks = [held.get(_place(array)) for array in self.arrays]
            self._version = version
        return self._masks

    def apply_masks(self, arrays: list[Array]) -> None:
        """Set masked elements of arrays with the weights' shapes to 0."""
        for name, array, mask in zip(self.names, arrays, self.masks(), strict=True):
            if mask is not None:
                _core.apply_mask(array, mask, name)

    def assign(self, values: list[Array]) -> None:
        """Set the weights to values; masked elements become 0."""
        for array, value in zip(self.arrays, values, strict=True):
            array[...] = value
        self.apply_masks(self.arrays)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy starts from the current weights and looks up masks again.
        self.__dict__.update(state, _since=_now, _version=None)


def unpacked(bits: Array, shape: tuple[int, ...]) -> Array:
    """Return a boolean mask from its packed bits."""
    size = int(np.prod(shape, dtype=np.int64))
    return np.unpackbits(bits, count=size, bitorder="little").reshape(shape).astype(np.bool_)


def _place(array: Array) -> tuple[Any, ...]:
    return array.__array_interface__["data"][0], array.shape, array.strides, array.dtype

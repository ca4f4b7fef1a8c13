"""Weights that several objects hold: masks in force, and arrays that were replaced."""

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
#: Another object after every change of a mask.
_version = object()
#: By identity, arrays that a change of structure replaced or rearranged, and when.
_changed: dict[int, tuple[weakref.ref[Array], int]] = {}
_clock = itertools.count(1)
_now = 0


def holds_masks(holder: _Holder) -> None:
    """Have an object's masks hold wherever its arrays are written to."""
    _holders.add(holder)
    masks_changed()


def masks_changed() -> None:
    """Have all masks looked up anew."""
    global _version
    _version = object()


def structure_changed(arrays: Iterable[Array]) -> None:
    """Note that arrays were replaced by others, or their elements rearranged."""
    global _now
    _now = next(_clock)
    for array in arrays:
        key = id(array)
        gone = weakref.ref(array, lambda _, key=key: _changed.pop(key, None))  # type: ignore[misc]
        _changed[key] = (gone, _now)


class Weights:
    """Arrays that an object writes to, beside an optimizer or a pruner.

    Parameters
    ----------
    owner : str
        What holds them, for messages.
    names : list of str
    arrays : list of array
    """

    def __init__(self, owner: str, names: list[str], arrays: list[Array]) -> None:
        self.owner, self.names = owner, names
        # Copies go along with what they are copied with.
        self.arrays = arrays if isinstance(arrays, Views) else Views(arrays, names)
        self._since = _now
        self._version: object = None
        self._masks: list[Array | None] = []

    def require_unchanged(self) -> None:
        """Raise a ValueError if one was replaced or rearranged since this was made."""
        for name, array in zip(self.names, self.arrays, strict=True):
            found = _changed.get(id(array))
            if found is not None and found[0]() is array and found[1] > self._since:
                raise ValueError(
                    f"{name} was replaced or rearranged (by shrink, neurons or rewire) since the "
                    f"{self.owner} was made; make a new {self.owner}"
                )

    def masks(self) -> list[Array | None]:
        """Return the masks in force: what any optimizer or pruner removed is removed."""
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
        """Set what is removed to 0 in arrays that belong to the weights."""
        for name, array, mask in zip(self.names, arrays, self.masks(), strict=True):
            if mask is not None:
                _core.apply_mask(array, mask, name)

    def assign(self, values: list[Array]) -> None:
        """Set the weights to values, but for what is removed."""
        for array, value in zip(self.arrays, values, strict=True):
            array[...] = value
        self.apply_masks(self.arrays)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Copies are of the weights as they are now; masks are looked up anew.
        self.__dict__.update(state, _since=_now, _version=None)


def unpacked(bits: Array, shape: tuple[int, ...]) -> Array:
    """Return a mask of which there are the bits."""
    size = int(np.prod(shape, dtype=np.int64))
    return np.unpackbits(bits, count=size, bitorder="little").reshape(shape).astype(np.bool_)


def _place(array: Array) -> tuple[Any, ...]:
    return array.__array_interface__["data"][0], array.shape, array.strides, array.dtype

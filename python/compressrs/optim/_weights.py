"""Weights shared by several objects: their active masks, and arrays that were replaced."""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

import numpy as np

from compressrs import _core
from compressrs._arrays import Array, Views
from compressrs._state import Undo


class _Holder(Protocol):
    def _held_masks(self) -> Iterator[tuple[Array, Array]]:
        """Yield arrays and their masks, True where a weight is kept."""


#: What tells arrays apart, whichever views they are.
_Place: TypeAlias = tuple[Any, ...]
#: A mask and the holder that set it, None in a copy.
_Known: TypeAlias = "tuple[weakref.ref[Any] | None, Array]"

#: Optimizers and pruners.
_holders: weakref.WeakSet[Any] = weakref.WeakSet()
#: All `Weights`.
_observers: weakref.WeakSet[Weights] = weakref.WeakSet()
#: Replaced by a new object after every change of a mask.
_version = object()
#: Arrays, by identity, that a change of structure replaced or rearranged, when, and whether
#: they were replaced.
_changed: dict[int, tuple[weakref.ref[Array], int, bool]] = {}
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


def masks_set(arrays: Iterable[Array], undo: Undo) -> None:
    """Have the new masks of arrays known, instead of those that holders now gone had set."""
    places = set(map(_place, arrays))
    undo.on_failure(masks_changed)
    masks_changed()
    for weights in list(_observers):
        weights._masks_set(places, undo)


def structure_changed(arrays: Iterable[Array], *, replaced: bool = True) -> None:
    """Record that arrays were replaced or, if not `replaced`, their elements rearranged."""
    global _now
    _now = next(_clock)
    for array in arrays:
        key = id(array)
        gone = weakref.ref(array, lambda _, key=key: _changed.pop(key, None))  # type: ignore[misc]
        _changed[key] = (gone, _now, replaced)


@contextmanager
def changes_undone() -> Iterator[None]:
    """Forget the changes of structure that the block recorded, if it raises."""
    changed = dict(_changed)
    since = [(weights, weights._since) for weights in list(_observers)]
    try:
        yield
    except BaseException:
        _changed.clear()
        _changed.update(changed)
        for weights, time in since:
            weights._since = time
        raise


class Weights:
    """Arrays that an object writes to in addition to an optimizer or a pruner.

    Parameters
    ----------
    owner : str
        The object that holds them, for messages.
    names : list of str
    arrays : list of array
    followers : tuple of list of array
        Lists of arrays of the weights' shapes, such as averages: when a mask is set, masked
        elements become 0 in them too.
    """

    def __init__(
        self,
        owner: str,
        names: list[str],
        arrays: list[Array],
        followers: tuple[list[Array], ...] = (),
    ) -> None:
        self.owner, self.names, self.followers = owner, names, followers
        # Deep copies refer to the copied arrays.
        self.arrays = arrays if isinstance(arrays, Views) else Views(arrays, names)
        self._since = _now
        self._version: object = None
        self._masks: list[Array | None] = []
        # Of each array, the masks and who holds them. A mask stays when its holder is gone,
        # until another one sets a mask of that array.
        self._known: list[list[_Known]] = [[] for _ in arrays]
        _observers.add(self)

    def require_unchanged(self, *, loading: bool = False) -> None:
        """Raise a ValueError if an array was replaced or rearranged since construction.

        When a state is about to be loaded, rearranged arrays are accepted: the state is that of
        the new arrangement.
        """
        for name, array in zip(self.names, self.arrays, strict=True):
            found = _changed.get(id(array))
            if found is None or found[0]() is not array or found[1] <= self._since:
                continue
            if found[2] or not loading:
                raise ValueError(
                    f"{name} was replaced or rearranged (by shrink, neurons, rewire or a loaded "
                    f"pattern) since the {self.owner} was made; make a new {self.owner}"
                )

    def state_loaded(self, undo: Undo) -> None:
        """Accept the arrangement of the arrays, since a state that fits it was loaded."""
        undo.on_failure(functools.partial(setattr, self, "_since", self._since))
        self._since = _now

    def masks(self) -> list[Array | None]:
        """Return the active masks, which combine those of all optimizers and pruners.

        The last mask of an optimizer or a pruner that does not exist any more stays active.
        """
        if self._version is not _version:
            version = _version
            held: dict[_Place, list[_Known]] = {}
            for holder in list(_holders):
                for array, mask in holder._held_masks():
                    held.setdefault(_place(array), []).append((weakref.ref(holder), mask))
            self._known = [
                held.get(_place(array), []) + [one for one in known if _is_orphan(one)]
                for array, known in zip(self.arrays, self._known, strict=True)
            ]
            self._masks = [
                functools.reduce(np.logical_and, [mask for _, mask in known]) if known else None
                for known in self._known
            ]
            self._version = version
        return self._masks

    def _masks_set(self, places: set[_Place], undo: Undo) -> None:
        own = [_place(array) for array in self.arrays]
        if places.isdisjoint(own):
            return
        undo.on_failure(functools.partial(setattr, self, "_known", self._known))
        self._known = [
            [one for one in known if not _is_orphan(one)] if place in places else known
            for place, known in zip(own, self._known, strict=True)
        ]
        # Now, since the holder may be gone before the next use.
        masks = self.masks()
        # Now too, so that a state that is saved before the next use is the one that is loaded.
        for arrays in self.followers:
            undo.remember(*(a for a, mask in zip(arrays, masks, strict=True) if mask is not None))
            self.apply_masks(arrays)

    def replaced(
        self,
        arrays: Views,
        cut: Callable[[int, Array], Array],
        followers: tuple[list[Array], ...] = (),
    ) -> Weights:
        """Return the same for new arrays, after a change of structure.

        Masks of the old arrays are kept if their holder did not follow the change; `cut`
        returns what is left of the mask of the array with an index.
        """
        self._version = None
        self.masks()
        new = Weights(self.owner, self.names, arrays, followers)
        new._known = [
            [(None, cut(i, mask)) for _, mask in known] for i, known in enumerate(self._known)
        ]
        return new

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

    def __getstate__(self) -> dict[str, Any]:
        masks = self.masks()
        known = [[] if mask is None else [(None, mask)] for mask in masks]
        return {**self.__dict__, "_known": known, "_version": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy starts from the current weights, and from the masks that were known.
        self.__dict__.update(state, _since=_now)
        _observers.add(self)


def packed(mask: Array | None) -> Array | None:
    """Return a boolean mask packed to one bit per weight, or None."""
    return None if mask is None else np.packbits(mask, bitorder="little")


def unpacked(bits: Array, shape: tuple[int, ...]) -> Array:
    """Return a boolean mask from its packed bits."""
    size = int(np.prod(shape, dtype=np.int64))
    return np.unpackbits(bits, count=size, bitorder="little").reshape(shape).astype(np.bool_)


def _is_orphan(known: _Known) -> bool:
    """Whether a mask's holder does not exist any more, or was not copied."""
    return known[0] is None or known[0]() is None


def _place(array: Array) -> _Place:
    return _core.address(array), array.shape, array.strides, array.dtype

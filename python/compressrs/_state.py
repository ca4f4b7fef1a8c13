"""State dicts: checked completely first, then taken over completely or not at all."""

from __future__ import annotations

import copy
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import numpy as np

from compressrs._arrays import Array
from compressrs._checks import require_unmasked


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Have Ctrl-C raise `KeyboardInterrupt` after the block only.

    For short blocks whose half is no state to leave things in. Only the main thread is
    interrupted; handlers that are not set from Python stay as they are.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    received: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda *args: received.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            handler(*received[-1])


class Undo:
    """Restores what was changed, in reverse order: a change that fails, or one for a while."""

    def __init__(self) -> None:
        self._restores: list[Callable[[], None]] = []

    def on_failure(self, restore: Callable[[], None]) -> None:
        """Have a function called if the change fails."""
        self._restores.append(restore)

    def remember(self, *arrays: Array) -> None:
        """Note the values of arrays that are about to be written to."""
        for array in arrays:
            self._restores.append(_restore_array(array, array.copy()))

    def remember_attributes(self, owner: Any, without: tuple[str, ...] = ()) -> None:
        """Note which objects the attributes of an object are."""
        before = {k: v for k, v in owner.__dict__.items() if k not in without}
        self._restores.append(lambda: owner.__dict__.update(before))

    def remember_state(self, part: Any) -> Callable[[], None]:
        """Note the state dict of an object, and return what loads it again."""
        before = copy.deepcopy(part.state_dict())

        def restore() -> None:
            part.load_state_dict(before)

        self.on_failure(restore)
        return restore

    def write(self, target: Array, value: Array) -> None:
        """Copy values into an array."""
        self.remember(target)
        target[...] = value

    def restore(self) -> None:
        """Undo all changes."""
        with uninterrupted():
            while self._restores:
                # Removed afterwards: an interrupt before this block calls it once more.
                self._restores[-1]()
                self._restores.pop()


def _restore_array(array: Array, before: Array) -> Callable[[], None]:
    return lambda: np.copyto(array, before)


@contextmanager
def all_or_nothing() -> Iterator[Undo]:
    """Undo the changes of the block if it raises, also if Ctrl-C interrupts it."""
    undo = Undo()
    try:
        yield undo
    except BaseException:
        undo.restore()
        raise


@contextmanager
def restoring() -> Iterator[Undo]:
    """Undo the changes of the block at its end, also if it raises or Ctrl-C interrupts it."""
    undo = Undo()
    try:
        try:
            yield undo
        finally:
            undo.restore()
    except BaseException:
        # An interrupt at the end of the block came before what restores.
        undo.restore()
        raise


#: Takes over a state that has been checked, and notes how to undo that.
Take: TypeAlias = Callable[[Undo], None]


class Described:
    """Base of classes whose `repr` gives their settings and counts."""

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name}={value!r}"
            for name, value in vars(self).items()
            if not name.startswith("_") and isinstance(value, (bool, int, float, str))
        )
        return f"<{type(self).__name__}({shown})>"


class Stateful(Described):
    """Base class of what has a state dict.

    A subclass has `state_dict` and `_checked`. What holds other stateful objects calls their
    `_checked` in its own, and what these return in what it returns, so that everything is
    checked before anything changes.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to restore the state."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned.

        Raises
        ------
        ValueError
            If it does not fit; nothing is changed then, nor if the call is interrupted.
        """
        with self._exclusive("load_state_dict"):
            try:
                _require_no_masks(state_dict)
                take = self._checked(state_dict)
            except TypeError as error:
                # Of an entry, whose type is a value to the caller.
                raise ValueError(str(error)) from error
            with all_or_nothing() as undo:
                take(undo)

    def _checked(self, state_dict: Mapping[str, Any]) -> Take:
        """Check a state dict; return what takes it over."""
        raise NotImplementedError

    def _exclusive(self, what: str) -> AbstractContextManager[None]:
        """Keep other threads out, where there may be others."""
        return nullcontext()


def _require_no_masks(state_dict: Any) -> None:
    """Raise a TypeError if a state holds a masked array."""
    stack, seen = [state_dict], set()
    while stack:
        value = stack.pop()
        require_unmasked(value, "state_dict's entries")
        if isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
            seen.add(id(value))  # a state may hold itself, which is refused elsewhere
            stack += value.values() if isinstance(value, Mapping) else value


def checked_state(part: Any, state_dict: Any) -> Take:
    """Check the state dict of any object that has some; return what takes it over.

    An object of a class of a user's checks by itself when it loads, and is given its state of
    before if another part fails.
    """
    if isinstance(part, Stateful):
        return part._checked(state_dict)
    if hasattr(part, "_checked_state"):  # a layer
        checked: Take = part._checked_state(state_dict)
        return checked

    def take(undo: Undo) -> None:
        undo.remember_state(part)
        part.load_state_dict(state_dict)

    return take


def require_keys(
    state_dict: Any, needed: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Mapping[str, Any]:
    """Return a state dict, if it is a dict with these keys and no others.

    Raises
    ------
    TypeError
        If it is not a dict.
    ValueError
        If a key is missing or unknown.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must be a dict, got {type(state_dict).__name__}")
    if missing := [key for key in needed if key not in state_dict]:
        raise ValueError(f"state_dict must have the key {missing[0]!r}, got {_keys(state_dict)}")
    if unknown := [key for key in state_dict if key not in (*needed, *optional)]:
        raise ValueError(f"state_dict must have the keys {[*needed]}, got {unknown[0]!r} as well")
    return state_dict


def _keys(mapping: Mapping[Any, Any]) -> list[str]:
    return sorted(map(str, mapping))


def checked_generator(rng: np.random.Generator, state: Any, name: str) -> Take:
    """Check the state of a random generator; return what takes it over.

    Raises
    ------
    TypeError, ValueError
        If it is not a state of such a generator; `name` is that of the entry.
    """
    own: Any = rng.bit_generator
    if not isinstance(state, Mapping):
        raise TypeError(
            f"{name} must be the state of a {type(own).__name__}, got {type(state).__name__}"
        )
    twin = type(own)()
    before = own.state
    try:
        twin.state = state
        if not same_structure(twin.state, before) or not same_values(twin.state, state):
            raise ValueError("other entries")
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ValueError(
            f"{name} must be the state of a {type(own).__name__}, got {error!r}"
        ) from None
    checked = twin.state

    def take(undo: Undo) -> None:
        undo.on_failure(lambda: setattr(own, "state", before))
        own.state = checked

    return take


def same_structure(a: Any, b: Any) -> bool:
    """Whether nested dicts have the same keys."""
    if not isinstance(a, Mapping) or not isinstance(b, Mapping):
        return not isinstance(a, Mapping) and not isinstance(b, Mapping)
    return a.keys() == b.keys() and all(same_structure(a[key], b[key]) for key in a)


def same_values(a: Any, b: Any) -> bool:
    """Whether nested dicts have the same entries: NumPy takes 1.5 for 1."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same_values(a[key], b[key]) for key in a)
    return bool(np.array_equal(a, b))

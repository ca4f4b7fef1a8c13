"""Mutual exclusion of calls on an object, from threads and from signal handlers."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar


class Guarded:
    """Base class of objects that several threads may use.

    The lock is reentrant, since a signal handler runs in the main thread, between any two
    instructions: waiting there for a lock that the thread itself holds would deadlock. The
    operation in progress is recorded beside the lock, and calls that would see a half-made
    change are rejected.
    """

    #: Operations that a signal handler may interrupt anywhere with the state consistent.
    _consistent: ClassVar[frozenset[str]] = frozenset(("save", "state_dict"))

    def __init__(self) -> None:
        self._guard()

    def _guard(self) -> None:
        self._lock = threading.RLock()
        #: The operation in progress.
        self._doing: str | None = None
        _guarded.add(self)

    def _require_idle(self, what: str) -> None:
        """Raise a RuntimeError if this thread has an operation in progress."""
        if self._doing is not None:
            raise RuntimeError(
                f"{what} cannot be called during {self._doing} of the same "
                f"{type(self).__name__}, as from a signal handler; note the signal and call it "
                "afterwards"
            )

    @contextmanager
    def _changing(self, what: str) -> Iterator[None]:
        """Exclude all other calls while the state is changed."""
        with self._lock:
            self._require_idle(what)
            try:
                self._doing = what
                yield
            finally:
                self._doing = None

    @contextmanager
    def _exclusive(self, what: str) -> Iterator[None]:
        """Let no other thread in, and refuse to begin in the middle of another call."""
        with self._lock:
            self._require_idle(what)
            yield

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Exclude changes of the state while it is read."""
        with self._lock:
            before = self._doing
            if before not in self._consistent:
                self._require_idle(what)
            try:
                self._doing = what
                yield
            finally:
                self._doing = before

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_doing")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._guard()


#: All instances, to give them new locks in a forked child, where a lock that another thread
#: held would stay locked.
_guarded: weakref.WeakSet[Guarded] = weakref.WeakSet()


def _renew_locks() -> None:
    for guarded in _guarded:
        guarded._lock, guarded._doing = threading.RLock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)

"""One call at a time into an object, from other threads and from signal handlers."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar


class Guarded:
    """Base class of what several threads may call.

    The lock is one that its own thread can take again, since a signal handler runs in the
    main thread, between two instructions of whatever that does: a lock that it holds would
    never be released. What is under way is noted beside it, and refuses calls that would
    find half of a change.
    """

    #: What leaves the state consistent wherever a signal handler may interrupt it.
    _consistent: ClassVar[frozenset[str]] = frozenset(("save", "state_dict"))

    def __init__(self) -> None:
        self._guard()

    def _guard(self) -> None:
        self._lock = threading.RLock()
        #: What is under way.
        self._doing: str | None = None
        _guarded.add(self)

    def _require_idle(self, what: str) -> None:
        """Raise a RuntimeError if this thread is in the middle of something."""
        if self._doing is not None:
            raise RuntimeError(
                f"{what} cannot be called during {self._doing} of the same "
                f"{type(self).__name__}, as from a signal handler; note the signal and call it "
                "afterwards"
            )

    @contextmanager
    def _changing(self, what: str) -> Iterator[None]:
        """Let no other call in while the state is changed."""
        with self._lock:
            self._require_idle(what)
            try:
                self._doing = what
                yield
            finally:
                self._doing = None

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Let no call change the state while it is read."""
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


#: For giving them new locks in a forked child: a lock that another thread held would stay
#: locked there.
_guarded: weakref.WeakSet[Guarded] = weakref.WeakSet()


def _renew_locks() -> None:
    for guarded in _guarded:
        guarded._lock, guarded._doing = threading.RLock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)

"""Ranks that are threads of one process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from compressrs._arrays import Array
from compressrs._checks import function, whole
from compressrs.distributed.communicator import Communicator, RankError

Result = TypeVar("Result")

#: Seconds that ranks are given to end after an interrupt.
_GRACE = 1.0


class _Hub:
    """Where the ranks of one `run_local` meet."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.data: list[bytes] = [b""] * size
        self.sent: list[list[list[Array]]] = [[] for _ in range(size)]
        #: The rank that ended first, and how.
        self.ended: tuple[int, str] | None = None
        #: Whether `run_local` has ended.
        self.over = False
        self._changed = threading.Condition()
        self._waiting = self._meetings = 0

    def wait(self) -> None:
        """Wait for all ranks.

        Raises
        ------
        RankError
            If a rank has ended, which then never comes.
        """
        with self._changed:
            self._waiting += 1
            meeting = self._meetings
            if self._waiting == self.size:
                self._waiting = 0
                self._meetings += 1
                self._changed.notify_all()
            try:
                # A rank that ends after all have met does not concern this meeting.
                while self._meetings == meeting:
                    self.require_running()
                    if self.ended is not None:
                        rank, how = self.ended
                        raise RankError(f"rank {rank} {how}, and others wait for it", rank)
                    self._changed.wait()
            except BaseException:
                self._waiting -= 1
                raise

    def end(self, rank: int, how: str) -> None:
        """Note that a rank takes no further part."""
        with self._changed:
            if self.ended is None:
                self.ended = rank, how
            self._changed.notify_all()

    def close(self) -> None:
        """Note that `run_local` has ended."""
        with self._changed:
            self.over = True
            self._changed.notify_all()

    def require_running(self) -> None:
        """Raise a RuntimeError if `run_local` has ended."""
        if self.over:
            raise RuntimeError(
                "a communicator of run_local cannot be used after run_local has ended"
            )


class LocalCommunicator(Communicator):
    """One rank by itself; `run_local` makes several that are threads.

    Examples
    --------
    >>> import compressrs as cr
    >>> comm = cr.distributed.LocalCommunicator()
    >>> comm.rank, comm.size
    (0, 1)
    """

    def __init__(self) -> None:
        super().__init__(0, 1)
        self._hub = _Hub(1)

    @classmethod
    def _of(cls, hub: _Hub, rank: int) -> LocalCommunicator:
        comm = cls()
        comm.rank, comm.size, comm._hub = rank, hub.size, hub
        return comm

    def _allgather(self, data: bytes) -> list[bytes]:
        self._hub.data[self.rank] = data
        self._hub.wait()
        result = list(self._hub.data)
        self._hub.wait()
        return result

    def _exchange(self, send: list[list[Array]], receive: list[list[Array]]) -> None:
        self._hub.sent[self.rank] = send
        self._hub.wait()
        for rank, arrays in enumerate(receive):
            sources = self._hub.sent[rank][self.rank] if rank != self.rank else []
            for target, source in zip(arrays, sources, strict=True):
                np.copyto(target, source)
        self._hub.wait()

    def _require_usable(self) -> None:
        self._hub.require_running()

    def __reduce__(self) -> Any:
        return (LocalCommunicator, ()) if self.size == 1 else super().__reduce__()


def run_local(run: Callable[..., Result], size: int, *args: Any) -> list[Result]:
    """Call ``run(comm, *args)`` in `size` threads that are the ranks of a communicator.

    For tests, and to try programs without MPI.

    Parameters
    ----------
    run : callable
    size : int
        From 1 to 1024.
    *args
        Further arguments, the same for each rank.

    Returns
    -------
    list
        What each rank returned.

    Raises
    ------
    Exception
        What a rank raised first; the other ranks then raise a RankError where they wait for it.
    RankError
        On a rank that waits for one that has returned.
    KeyboardInterrupt
        Within a second after Ctrl-C; ranks that still compute then run on until they send
        something. Their communicators raise a RuntimeError after this function has ended.

    Examples
    --------
    >>> import compressrs as cr
    >>> cr.distributed.run_local(lambda comm: sum(comm.allgather(comm.rank)), 3)
    [3, 3, 3]
    """
    function(run, "run")
    hub = _Hub(size := whole(size, "size", 1, 1024))
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def work(rank: int) -> None:
        try:
            results[rank] = run(LocalCommunicator._of(hub, rank), *args)
        except BaseException as error:
            errors.append(error)
            hub.end(rank, "ended with an error")
        else:
            hub.end(rank, "has returned")

    # Daemons: a rank that never ends must not keep the interpreter from ending.
    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(size)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        hub.close()
        _join_for(threads, _GRACE)
        raise
    hub.close()
    if errors:
        raise next((e for e in errors if not isinstance(e, RankError)), errors[0])
    return results


def _join_for(threads: Sequence[threading.Thread], seconds: float) -> None:
    """Wait for threads that were started, but not longer."""
    end = time.monotonic() + seconds
    for thread in threads:
        if thread.ident is not None:
            thread.join(max(0.0, end - time.monotonic()))

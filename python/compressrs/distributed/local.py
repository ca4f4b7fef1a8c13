"""Ranks that are threads of one process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from compressrs._arrays import Array
from compressrs._checks import function, whole
from compressrs.distributed.communicator import Communicator, RankError

Result = TypeVar("Result")


class _Hub:
    """Where the ranks of one `run_local` meet."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size)
        self.data: list[bytes] = [b""] * size
        self.sent: list[list[list[Array]]] = [[] for _ in range(size)]
        #: The rank that ended with an error first.
        self.failed: int | None = None

    def wait(self) -> None:
        try:
            self.barrier.wait()
        except threading.BrokenBarrierError:
            rank = -1 if self.failed is None else self.failed
            raise RankError(f"rank {rank} ended with an error", rank) from None


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
        pass

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

    Examples
    --------
    >>> import compressrs as cr
    >>> cr.distributed.run_local(lambda comm: sum(comm.allgather(comm.rank)), 3)
    [3, 3, 3]
    """
    function(run, "run")
    hub = _Hub(whole(size, "size", 1, 1024))
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def work(rank: int) -> None:
        try:
            results[rank] = run(LocalCommunicator._of(hub, rank), *args)
        except BaseException as error:
            if hub.failed is None:
                hub.failed = rank
            errors.append(error)
            hub.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((e for e in errors if not isinstance(e, RankError)), errors[0])
    return results

"""MPI, by mpi4py."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from compressrs._arrays import Array
from compressrs._threads import get_num_threads
from compressrs.distributed.communicator import Communicator
from compressrs.distributed.local import LocalCommunicator
from compressrs.distributed.partition import pieces

#: Bytes of one message: before MPI 4 a message has at most 2**31 - 1 elements.
_LIMIT = 1 << 30


class MPICommunicator(Communicator):
    """The ranks of a communicator of MPI, which is duplicated.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        All ranks, ``MPI.COMM_WORLD``, by default.

    Raises
    ------
    ModuleNotFoundError
        If mpi4py is not installed.
    RuntimeError
        If MPI was initialized for a single thread, or in a process that is now forked.
    TypeError
        If `comm` is not such a communicator.
    """

    def __init__(self, comm: Any = None) -> None:
        self._mpi = require_mpi()
        comm = self._mpi.COMM_WORLD if comm is None else comm
        if not isinstance(comm, self._mpi.Comm):
            raise TypeError(f"comm must be a communicator of mpi4py, got {type(comm).__name__}")
        super().__init__(comm.Get_rank(), comm.Get_size())
        self._require_usable()
        # The user's own messages are never taken for ours.
        self._comm = comm.Dup()

    def _allgather(self, data: bytes) -> list[bytes]:
        gathered: list[bytes] = self._comm.allgather(data)
        return gathered

    def _exchange(self, send: list[list[Array]], receive: list[list[Array]]) -> None:
        self._start(send, receive)()

    def _start(self, send: list[list[Array]], receive: list[list[Array]]) -> Callable[[], object]:
        comm, kind = self._comm, self._mpi.BYTE
        requests = []
        # From the next rank on, so that not all send to the same one first.
        for step in range(1, self.size):
            source = (self.rank - step) % self.size
            for array in receive[source]:
                for low, high in pieces(array.size, _LIMIT):
                    requests.append(comm.Irecv([array[low:high], kind], source))
        for step in range(1, self.size):
            target = (self.rank + step) % self.size
            for array in send[target]:
                for low, high in pieces(array.size, _LIMIT):
                    requests.append(comm.Isend([array[low:high], kind], target))
        return functools.partial(self._mpi.Request.Waitall, requests)

    def _require_usable(self) -> None:
        mpi = self._mpi
        if mpi.Is_finalized():
            raise RuntimeError("MPI has been finalized")
        level = mpi.Query_thread()
        if level < mpi.THREAD_FUNNELED and get_num_threads() > 1:
            raise RuntimeError(
                "MPI must support threads, but was initialized for a single one; set "
                "mpi4py.rc.thread_level = 'funneled' before MPI is imported, or "
                "compressrs.set_num_threads(1)"
            )
        if level < mpi.THREAD_SERIALIZED and not mpi.Is_thread_main():
            raise RuntimeError(
                "MPI was initialized for calls from the main thread only; set "
                "mpi4py.rc.thread_level = 'serialized' before MPI is imported"
            )


def as_communicator(comm: Any) -> Communicator:
    """Return a `Communicator`.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or Communicator or None
        One of mpi4py, such as ``MPI.COMM_WORLD``, is duplicated: messages of the user's are
        never taken for those of compressrs. None is this process alone.

    Raises
    ------
    TypeError
        If it is something else.
    RuntimeError
        If MPI was initialized for a single thread; see the message.

    Examples
    --------
    >>> import compressrs as cr
    >>> cr.distributed.as_communicator(None)
    <LocalCommunicator: rank 0 of 1>
    """
    if comm is None:
        return LocalCommunicator()
    if isinstance(comm, Communicator):
        return comm
    if type(comm).__module__.partition(".")[0] == "mpi4py":
        return MPICommunicator(comm)
    raise TypeError(
        "comm must be a communicator of mpi4py, such as MPI.COMM_WORLD, a Communicator of "
        f"cr.distributed, or None, got {type(comm).__name__}"
    )


def require_mpi() -> Any:
    """Return the module ``mpi4py.MPI``.

    Raises
    ------
    ModuleNotFoundError
        If mpi4py is not installed, or finds no MPI.
    """
    try:
        from mpi4py import MPI
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "messages between processes need mpi4py: pip install 'compressrs[mpi]'"
        ) from None
    except (ImportError, RuntimeError) as error:
        raise ModuleNotFoundError(
            f"mpi4py found no MPI ({error}): pip install mpich, or install one of the system's"
        ) from error
    return MPI

"""What ranks exchange messages by, whichever library carries them."""

from __future__ import annotations

import abc
import functools
import os
import pickle
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np

from compressrs import _core
from compressrs._arrays import Array
from compressrs._checks import sequence, whole

#: Attribute of errors that all ranks know of.
_TOLD = "_compressrs_told"


class RankError(RuntimeError):
    """Raised where nothing is wrong, but an operation of all ranks failed on another one.

    Parameters
    ----------
    message : str
    rank : int
        The rank that failed.
    """

    def __init__(self, message: str, rank: int) -> None:
        super().__init__(message, rank)
        self.rank = rank

    def __str__(self) -> str:
        return str(self.args[0])


class Accumulated(Protocol):
    """What has been accumulated for an operation of all ranks, and is dropped if one fails."""

    def release(self) -> None:
        """Drop it."""


class Communicator(abc.ABC):
    """Messages between ranks: the protocol that `compressrs.distributed` is written against.

    All methods are collective: every rank calls them, in the same order.

    Attributes
    ----------
    rank : int
        This rank, from 0.
    size : int
        Number of ranks.
    bytes : int
        Bytes that this rank has sent to others; without those by which `exchange` finds out
        whether all ranks take part. May be set to 0.
    """

    rank: int
    size: int

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size, self.bytes = rank, size, 0
        self._process = os.getpid()
        self._accumulated: weakref.WeakSet[Accumulated] = weakref.WeakSet()

    @abc.abstractmethod
    def _allgather(self, data: bytes) -> list[bytes]:
        """Return the bytes of every rank."""

    @abc.abstractmethod
    def _exchange(self, send: list[list[Array]], receive: list[list[Array]]) -> None:
        """Send 1-D arrays of bytes, and receive into others."""

    @abc.abstractmethod
    def _require_usable(self) -> None:
        """Raise a RuntimeError if messages cannot be sent from here."""

    def _start(self, send: list[list[Array]], receive: list[list[Array]]) -> Callable[[], object]:
        """As `_exchange`, but return what waits for the messages."""
        return functools.partial(self._exchange, send, receive)

    def exchange(self, send: Sequence[Sequence[Array]], receive: Sequence[Sequence[Array]]) -> None:
        """Send arrays to each rank, and receive arrays from each.

        Parameters
        ----------
        send : sequence of sequence of array
            For each rank the arrays to send to it, C-contiguous; none to this rank.
        receive : sequence of sequence of array
            For each rank the arrays to write, in the order in which it sends them, with as
            many bytes.

        Raises
        ------
        ValueError
            If there is not one sequence for each rank, or an array is not contiguous.
        RankError
            If another rank fails, or does something else.
        """
        with prepared(self, "exchange"):
            self._bytes(send, "send")
            self._bytes(receive, "receive")
        self.start_exchange(send, receive)()

    def start_exchange(
        self, send: Sequence[Sequence[Array]], receive: Sequence[Sequence[Array]]
    ) -> Callable[[], object]:
        """Start an `exchange`, and return a function that waits for its end.

        Parameters
        ----------
        send, receive : sequence of sequence of array
            See `exchange`. Until the function returns, arrays of `send` must not be written to,
            nor those of `receive` read. All ranks start and wait in the same order; unlike
            `exchange` this does not find out whether they do.

        Raises
        ------
        ValueError
            If there is not one sequence for each rank, or an array is not contiguous.
        """
        outgoing, incoming = self._bytes(send, "send"), self._bytes(receive, "receive")
        if self.size == 1:
            return _nothing
        self._require_alive()
        self.bytes += sum(array.nbytes for arrays in outgoing for array in arrays)
        return self._start(outgoing, incoming)

    def _bytes(self, given: Sequence[Sequence[Array]], name: str) -> list[list[Array]]:
        lists = [sequence(arrays, name) for arrays in sequence(given, name)]
        if len(lists) != self.size:
            raise ValueError(f"{name} must hold {self.size} lists, one a rank, got {len(lists)}")
        if lists[self.rank]:
            raise ValueError(f"{name} must hold nothing for this rank, {self.rank}")
        for array in (array for arrays in lists for array in arrays):
            if not isinstance(array, np.ndarray):
                raise TypeError(f"{name} must hold lists of arrays, got {type(array).__name__}")
            if not array.flags.c_contiguous:
                raise ValueError(f"{name} must hold C-contiguous arrays")
        # Whatever the dtype: libraries of messages know none of half precision.
        return [
            [array.reshape(-1).view(np.uint8) for array in arrays if array.nbytes]
            for arrays in lists
        ]

    def allgather(self, value: Any) -> list[Any]:
        """Return a small object of every rank, by rank.

        Raises
        ------
        RankError
            If another rank fails, or does something else; also for `broadcast` and `barrier`.
        """
        return self.agree("allgather", value=value)

    def broadcast(self, value: Any, root: int = 0) -> Any:
        """Return a small object of the rank `root`."""
        root = whole(root, "root", 0, self.size - 1)
        return self.agree("broadcast", value=value if self.rank == root else None)[root]

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.agree("barrier")

    def _gather(self, value: Any) -> list[Any]:
        self._require_alive()
        data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        self.bytes += len(data) * (self.size - 1)
        return [pickle.loads(one) for one in self._allgather(data)]

    def agree(self, what: str, error: BaseException | None = None, value: Any = None) -> list[Any]:
        """Find out whether all ranks got here without an error, and return a value of each.

        Parameters
        ----------
        what : str
            The operation.
        error : exception, optional
            What failed on this rank; raised by the caller afterwards.
        value : object, optional

        Raises
        ------
        RankError
            If an operation failed on another rank, or another rank is at another operation.
        """
        if self.size == 1:
            return [value]
        message = None if error is None else f"{type(error).__name__}: {error}"
        entries = self._gather((what, message, value))
        if error is not None:
            return []
        for rank, (other, failed, _) in enumerate(entries):
            if failed is not None:
                raise RankError(f"{other} failed on rank {rank}: {failed}", rank)
        for rank, (other, *_) in enumerate(entries):
            if other != entries[0][0]:
                raise RankError(
                    f"all ranks must do the same, but rank {rank} is at {other} and rank 0 at "
                    f"{entries[0][0]}",
                    rank,
                )
        return [value for *_, value in entries]

    def tell(self, what: str, error: BaseException) -> None:
        """Make the other ranks raise a RankError where they wait, once for an error."""
        if not isinstance(error, RankError) and not getattr(error, _TOLD, False):
            # A rank that has ended need not be told, and must not hide what failed here.
            with suppress(RankError):
                self.agree(what, error)
            with suppress(AttributeError, TypeError):
                setattr(error, _TOLD, True)

    @contextmanager
    def together(self, what: str = "the block") -> Iterator[None]:
        """Return a context that raises on all ranks if it raises on one, so that none waits.

        Collective operations inside of it take part: where a rank fails before it calls one,
        the others, which wait there, raise a RankError. What optimizers of these ranks have
        accumulated for their next step is then dropped on all ranks.

        Parameters
        ----------
        what : str
            Name of the operation, for messages.

        Raises
        ------
        RankError
            If the block failed on another rank.
        """
        try:
            with together(self, what):
                yield
        except BaseException:
            for one in list(self._accumulated):
                one.release()
            raise

    def drop_on_errors(self, accumulated: Accumulated) -> None:
        """Call ``accumulated.release()`` if a block of `together` raises; it is not kept alive."""
        if not hasattr(accumulated, "release"):
            raise TypeError(f"accumulated must have release(), got {type(accumulated).__name__}")
        self._accumulated.add(accumulated)

    def require_same(self, what: Mapping[str, str]) -> None:
        """Raise a ValueError on all ranks, which names one, if they disagree.

        Parameters
        ----------
        what : dict of str
            Descriptions of what must be the same, by name.
        """
        if self.size == 1:
            return
        digest = blake2b(repr(sorted(what.items())).encode(), digest_size=16).digest()
        # Agreed on, so that a rank that failed before it got here is noticed.
        if len(set(self.agree("comparing ranks", value=digest))) == 1:
            return
        first, *others = self.allgather(dict(what))
        for rank, other in enumerate(others, 1):
            for name in [*first, *(name for name in other if name not in first)]:
                ours, theirs = first.get(name, "nothing"), other.get(name, "nothing")
                if ours != theirs:
                    error = ValueError(
                        f"all ranks must have the same {name}, got {theirs} on rank {rank} and "
                        f"{ours} on rank 0"
                    )
                    setattr(error, _TOLD, True)
                    raise error

    def _require_alive(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError(
                "a communicator cannot be used in a forked child: the other ranks know only the "
                "process that was forked; start processes with multiprocessing's 'spawn' method"
            )
        self._require_usable()

    def __copy__(self) -> Communicator:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Communicator:
        # Copies of what communicates are ranks among the same others.
        return self

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{type(self).__name__} of {self.size} ranks cannot be pickled: it belongs to "
            "processes that run; save state_dict(), or use save(path)"
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: rank {self.rank} of {self.size}>"


def checksum(array: Array) -> str:
    """Return a checksum of the bytes of a C-contiguous array."""
    digest = _core.Checksum()
    digest.update(array.reshape(-1).view(np.uint8))
    return f"{digest.digest():016x}"


def array_descriptions(names: Sequence[str], arrays: Sequence[Array]) -> dict[str, str]:
    """Return what arrays must have in common for `Communicator.require_same`, values included."""
    pairs = list(zip(names, arrays, strict=True))
    shapes = {f"dtype and shape of {n}": f"{a.dtype} {a.shape}" for n, a in pairs}
    values = {f"values of {n}": f"those with the checksum {checksum(a)}" for n, a in pairs}
    return {**shapes, **values}


def _nothing() -> None:
    """Wait for no message."""


@contextmanager
def prepared(comm: Communicator, what: str) -> Iterator[None]:
    """As `together`, for what an exchange needs, memory above all; `bytes` stays as it is.

    A rank that failed between the messages of an exchange would leave the others waiting.
    """
    before = comm.bytes
    with together(comm, what):
        yield
    comm.bytes = before


@contextmanager
def together(comm: Communicator, what: str) -> Iterator[None]:
    """As `Communicator.together`, but keep what was accumulated for the next step."""
    try:
        yield
    except BaseException as error:
        comm.tell(what, error)
        raise
    comm.agree(what)

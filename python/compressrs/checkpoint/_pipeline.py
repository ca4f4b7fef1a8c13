"""Reading ahead and writing behind, in threads of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(calls: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yield the results of calls, running the next call in another thread meanwhile."""
    with ThreadPoolExecutor(1, "compressrs-read") as pool:
        waiting: Future[T] | None = None
        for call in calls:
            following = pool.submit(call)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


class Background:
    """Runs calls in order in another thread, with a queue of at most two."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "compressrs-write")
        self._waiting: list[Future[None]] = []

    def submit(self, call: Callable[[], None]) -> None:
        """Queue a call; raise the exception of an earlier call, if any."""
        if len(self._waiting) >= 2:
            self._waiting.pop(0).result()
        self._waiting.append(self._pool.submit(call))

    def wait(self) -> None:
        """Wait for all calls; raise the first exception, if any."""
        while self._waiting:
            self._waiting.pop(0).result()

    def close(self) -> None:
        """Stop the thread after the queued calls."""
        self._pool.shutdown(wait=True, cancel_futures=True)

"""Encoding of tensors as tasks of an executor, in other processes or on other machines."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from compressrs import _core
from compressrs.checkpoint._coding import PLAIN, Tile
from compressrs.checkpoint._encoding import Encoder, read_tiles
from compressrs.checkpoint._plan import Step

#: How often tasks are given to new workers after one was killed.
ATTEMPTS = 3

#: Tasks that are submitted before the first result is written, at least.
AHEAD = 4


class Future(Protocol):
    """A result to wait for, as of `concurrent.futures`."""

    def result(self) -> Any:
        """Wait for the result."""

    def cancel(self) -> Any:
        """Do not begin, if that has not happened yet."""


class Executor(Protocol):
    """What runs calls elsewhere, as an executor of `concurrent.futures` does."""

    def submit(self, call: Any, /, *arguments: Any) -> Future:
        """Begin a call."""


@dataclass(frozen=True)
class Encoded:
    """The encoded tiles of a tensor."""

    tiles: list[Tile]
    #: XXH3 of the source's bytes.
    source: str
    error: float | None


def encode(step: Step) -> Encoded:
    """Encode a tensor: a function of its step alone, which may be repeated anywhere.

    Raises
    ------
    OSError, ValueError
        If the source cannot be read from here, or was changed.
    """
    checksum = _core.Checksum()
    encoder = Encoder(step)
    tiles = []
    for begin, end in read_tiles(step):
        data = step.located.file.read(begin, end)
        checksum.update(data)
        tile = encoder.encode(data)
        tiles.append(Tile(tuple(map(bytes, tile.streams)), tile.counts))
    step.located.file.check_unchanged()
    return Encoded(tiles, f"{checksum.digest():016x}", encoder.error)


def encoded(executor: Executor, steps: Iterable[Step]) -> Generator[Encoded | None, None, None]:
    """Yield the encoded tensors in order; None for those that are copied, not encoded.

    Raises
    ------
    RuntimeError
        If workers keep being killed.
    """
    left = deque(steps)
    running: deque[tuple[Step, Future | None]] = deque()
    window = max(AHEAD, 2 * int(getattr(executor, "workers", 0)))
    attempts = 0
    try:
        while left or running:
            try:
                while left and sum(f is not None for _, f in running) < window:
                    step = left[0]
                    future = None if step.coding == PLAIN else executor.submit(encode, step)
                    running.append((left.popleft(), future))
                future = running[0][1]
                found = None if future is None else future.result()
            except BrokenExecutor as error:
                attempts += 1
                restart = getattr(executor, "restart", None)
                if restart is None or attempts == ATTEMPTS:
                    name = running[0][0].name if running else left[0].name
                    raise RuntimeError(
                        f"workers were killed {attempts} times, last while {name!r} was encoded; "
                        "with fewer workers less memory is used; go on with resume"
                    ) from error
                restart()
                left.extendleft(step for step, _ in reversed(running))
                running.clear()
                continue
            running.popleft()
            yield found
    finally:
        for _, future in running:
            if future is not None:
                future.cancel()

"""Encoding of tensors as tasks of an executor, in other processes or on other machines."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from compressrs import _core
from compressrs._errors import WorkersKilledError
from compressrs.checkpoint._coding import PLAIN, Bytes, Tile
from compressrs.checkpoint._encoding import Before, Encoder, read_tiles, relative
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


@dataclass(frozen=True)
class Prepared:
    """What is found of a tensor before its tiles are encoded one by one."""

    #: XXH3 of the source's bytes.
    source: str
    before: list[Before]


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
        tiles.append(_tile(encoder, data))
    step.located.file.check_unchanged()
    return Encoded(tiles, f"{checksum.digest():016x}", encoder.error)


def prepare(step: Step) -> Prepared:
    """Find what the tiles of a tensor need of each other, as `encode` does in their order."""
    checksum = _core.Checksum()
    encoder = Encoder(step)
    before, ties = [], 0
    for begin, end in read_tiles(step):
        data = step.located.file.read(begin, end)
        checksum.update(data)
        before.append(encoder.before(ties))
        ties += encoder.ties(data)
    step.located.file.check_unchanged()
    return Prepared(f"{checksum.digest():016x}", before)


def encode_tile(step: Step, number: int, before: Before) -> tuple[Tile, float, float]:
    """Encode a tile; return the sums of squares of its errors and of its weights as well."""
    begin, end = next(itertools.islice(read_tiles(step), number, None))
    encoder = Encoder(step, before=before)
    tile = _tile(encoder, step.located.file.read(begin, end))
    step.located.file.check_unchanged()
    return tile, encoder.lost, encoder.weight


def _tile(encoder: Encoder, data: Bytes) -> Tile:
    """Encode a tile into bytes, which are sent between processes."""
    tile = encoder.encode(data)
    return Tile(tuple(map(bytes, tile.streams)), tile.counts)


class _Job:
    """The tasks of a tensor: one, or one that prepares those of its tiles.

    Results that have arrived are kept if a worker is killed; the other tasks are repeated.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        #: The first task: of the whole tensor, or of what precedes those of the tiles.
        self.first: Future | None = None
        self._tiles: deque[Future] = deque()
        self._prepared: Prepared | None = None
        self._done: list[tuple[Tile, float, float]] = []

    def begin(self, executor: Executor) -> None:
        """Submit the first task."""
        if self.step.coding != PLAIN and self._prepared is None:
            self.first = executor.submit(prepare if self.step.tiles > 1 else encode, self.step)

    def finish(self, executor: Executor, window: int) -> Encoded | None:
        """Wait for the result, and submit the tasks of tiles, so many ahead."""
        if self.step.coding == PLAIN:
            return None
        if self.step.tiles <= 1:
            assert self.first is not None
            whole: Encoded = self.first.result()
            return whole
        if self._prepared is None:
            assert self.first is not None
            self._prepared, self.first = self.first.result(), None
        before = self._prepared.before
        while len(self._done) < len(before):
            while len(self._tiles) < window and len(self._done) + len(self._tiles) < len(before):
                number = len(self._done) + len(self._tiles)
                self._tiles.append(executor.submit(encode_tile, self.step, number, before[number]))
            self._done.append(self._tiles[0].result())
            self._tiles.popleft()
        lost = weight = 0.0
        for _, of_tile, all_of_tile in self._done:
            # In the order, and with the roundings, of one process.
            lost += of_tile
            weight += all_of_tile
        error = None if self.step.rule.lossless else relative(lost, weight)
        return Encoded([tile for tile, *_ in self._done], self._prepared.source, error)

    def cancel(self) -> None:
        """Forget tasks that have not ended."""
        for future in (self.first, *self._tiles):
            if future is not None:
                future.cancel()
        self.first = None
        self._tiles.clear()


def encoded(executor: Executor, steps: Iterable[Step]) -> Generator[Encoded | None, None, None]:
    """Yield the encoded tensors in order; None for those that are copied, not encoded.

    Raises
    ------
    RuntimeError
        If workers keep being killed.
    """
    left = deque(map(_Job, steps))
    running: deque[_Job] = deque()
    window = max(AHEAD, 2 * int(getattr(executor, "workers", 0)))
    attempts = 0
    try:
        while left or running:
            try:
                while left and sum(job.first is not None for job in running) < window:
                    running.append(left.popleft())
                    running[-1].begin(executor)
                found = running[0].finish(executor, window)
            except BrokenExecutor as error:
                attempts += 1
                restart = getattr(executor, "restart", None)
                if restart is None or attempts == ATTEMPTS:
                    raise WorkersKilledError(
                        f"workers were killed {attempts} times, last while "
                        f"{running[0].step.name!r} was encoded; "
                        "with fewer workers less memory is used; go on with resume"
                    ) from error
                restart()
                for job in running:
                    job.cancel()
                left.extendleft(reversed(running))
                running.clear()
                continue
            running.popleft()
            yield found
    finally:
        for job in running:
            job.cancel()

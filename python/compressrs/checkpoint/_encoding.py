"""Encoding of a tensor's tiles into streams, as its step specifies."""

from __future__ import annotations

import math
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressrs._arrays import dtype_of
from compressrs.checkpoint import _codebook, _coding, _quantized
from compressrs.checkpoint._coding import PLAIN, Bytes, Parts, Tile
from compressrs.checkpoint._decoding import decode
from compressrs.checkpoint._format import DTYPES
from compressrs.checkpoint._plan import Step, row_elements
from compressrs.checkpoint.recipe import Rule

#: Number of elements from which size and error of a tensor are predicted.
PREDICTED = 1 << 18


@dataclass(frozen=True)
class Before:
    """What the encoder of a tile must know of the rest of its tensor."""

    #: Magnitude below which all weights are pruned, and how many of this one still are to be.
    threshold: float | None
    ties: int
    #: What the inputs of a quantized tensor are divided by, if anything.
    input_scale: NDArray[np.float32] | None


class Encoder:
    """Encodes the tiles of one tensor, in order.

    Parameters
    ----------
    step : Step
    sample : array of uint8, optional
        Bytes of some rows that stand for all of the tensor where these are needed first.
    before : Before, optional
        To begin with another tile than the first.

    Raises
    ------
    ValueError
        If the tensor contains NaN or infinity, which the step cannot represent.
    """

    def __init__(
        self, step: Step, sample: Bytes | None = None, before: Before | None = None
    ) -> None:
        self.step = step
        self._sample = sample
        # Sums of squares over the tiles so far: of the errors, and of the weights.
        self.lost = self.weight = 0.0
        #: Magnitude below which all weights are pruned, and how many of this one still are to be.
        self._threshold: float | None = None
        self._ties = 0
        if before is not None:
            self._threshold, self._ties = before.threshold, before.ties
        elif step.rule.prune and step.tiles > 1 and sample is None:
            self._threshold, self._ties = _threshold_of_tiles(step)
        self._quantizer: _quantized.Quantizer | None = None
        if step.coding in _coding.QUANTIZED:
            statistics = None if step.inputs is None else step.inputs.load()
            tiles = self._tiles if before is None else None
            self._quantizer = _quantized.Quantizer(step.rule, statistics, tiles)
            if before is not None:
                self._quantizer.input_scale = before.input_scale

    def before(self, ties: int) -> Before:
        """Return what the encoder of a tile needs, before which there are so many ties."""
        quantizer = self._quantizer
        scale = None if quantizer is None else quantizer.input_scale
        return Before(self._threshold, max(self._ties - ties, 0), scale)

    def ties(self, data: Bytes) -> int:
        """Return how many weights of a tile have the magnitude up to which some are pruned."""
        if self._threshold is None:
            return 0
        return int(np.count_nonzero(self._magnitudes(self._rows(data)) == self._threshold))

    def _tiles(self) -> Iterator[NDArray[Any]]:
        if self._sample is not None:
            yield self.transform(self._sample)
            return
        for begin, end in read_tiles(self.step):
            yield self.transform(self.step.located.file.read(begin, end))

    def encode(self, data: Bytes) -> Tile:
        """Encode the bytes of a tile."""
        step = self.step
        if step.rule.lossless:
            return _coding.encode_planes(data, step.dtype, step.streams)
        x = self.transform(data)
        if step.coding == "codebook":
            tile = _codebook.encode(x.reshape(-1), step.dtype, step.streams, step.rule.entries)
        elif self._quantizer is not None:
            tile = _quantized.encode(x, step.streams, self._quantizer)
        else:
            tile = _coding.encode_planes(x.reshape(-1).view(np.uint8), step.dtype, step.streams)
        self._measure(data, tile, x.size)
        return tile

    def _measure(self, data: Bytes, tile: Tile, size: int) -> None:
        entry = self.step.located.entry
        streams = (np.frombuffer(stream, np.uint8) for stream in tile.streams)
        parts = Parts(dict(zip(self.step.streams, streams, strict=True)), tile.counts, size)
        decoded = decode(self.step.description(), parts)
        before = _floats(data, entry.dtype)
        lost = _floats(decoded, self.step.dtype) - before
        self.lost += float(lost @ lost)
        self.weight += float(before @ before)

    @property
    def error(self) -> float | None:
        """``|w - decoded| / |w|`` in the Euclidean norm so far; None for lossless codings."""
        if self.step.rule.lossless:
            return None
        return relative(self.lost, self.weight)

    def _rows(self, data: Bytes) -> NDArray[Any]:
        """Return the weights of a tile as rows."""
        entry = self.step.located.entry
        kind = dtype_of(DTYPES[entry.dtype].numpy or "")
        return data.view(kind).reshape(-1, row_elements(self.step.located))

    @staticmethod
    def _magnitudes(x: NDArray[Any]) -> NDArray[np.float32]:
        return np.abs(x.astype(np.float32))

    def transform(self, data: Bytes) -> NDArray[Any]:
        """Return the pruned and rounded weights of a tile as rows."""
        step = self.step
        entry = step.located.entry
        x = self._rows(data)
        if step.rule.quantize and not step.rule.prunes and step.dtype == entry.dtype == "BF16":
            # Codes are of single precision, which NumPy has kernels for.
            x = _floats(data, entry.dtype).reshape(x.shape)
        if (step.rule.prunes or step.rule.quantize) and not np.isfinite(x).all():
            raise ValueError(f"{step.name!r} holds NaN or infinity; ignore it to keep it as it is")
        if step.rule.prunes:
            x = np.where(self._mask(x), x, x.dtype.type(0))
        if step.dtype != entry.dtype:
            with np.errstate(over="ignore"):
                rounded = x.astype(dtype_of(DTYPES[step.dtype].numpy or ""))
            if not np.isfinite(rounded[np.isfinite(x)]).all():
                raise ValueError(
                    f"{step.name!r} holds numbers too large for {step.rule.dtype}; "
                    "use bfloat16, or ignore it"
                )
            x = rounded
        return x

    def _mask(self, x: NDArray[Any]) -> NDArray[np.bool_]:
        from compressrs import prune

        rule = self.step.rule
        if rule.pattern is not None:
            n, m = rule.kept_of()
            return prune.nm_mask(np.ascontiguousarray(x), n, m)
        if self._threshold is None:
            share = _pruned(rule, x.size) / x.size
            return prune.magnitude_mask(np.ascontiguousarray(x), share)
        magnitudes = self._magnitudes(x)
        kept: NDArray[np.bool_] = magnitudes >= self._threshold
        # Of equal magnitudes the first are pruned, as by `prune.magnitude_mask`.
        ties = np.flatnonzero(magnitudes == self._threshold)[: self._ties]
        kept.reshape(-1)[ties] = False
        self._ties -= ties.size
        return kept


def relative(lost: float, weight: float) -> float:
    """Return the relative error for sums of squares of errors and of weights."""
    return math.sqrt(lost / weight) if weight > 0 else 0.0


def _floats(data: Bytes, dtype: str) -> NDArray[np.float32]:
    """Return the values of a tile in single precision."""
    if dtype == "BF16":
        # The upper halves of numbers in single precision.
        widened: NDArray[np.float32] = (data.view("<u2").astype(np.uint32) << np.uint32(16)).view(
            "f4"
        )
        return widened
    return data.view(dtype_of(DTYPES[dtype].numpy or "")).astype(np.float32).reshape(-1)


@dataclass(frozen=True)
class Prediction:
    """What a sample of a tensor's rows tells of all of them."""

    #: Size in bytes, and relative error (None for lossless codings).
    after: int
    error: float | None
    #: Time to read and encode; writing goes on meanwhile.
    seconds: float
    #: Memory of a tile that is encoded while others are read and written.
    memory: int


def predict(step: Step) -> Prediction:
    """Predict size, error, time and memory of a tensor by encoding a sample of its rows."""
    entry = step.located.entry
    bits = DTYPES[entry.dtype].bits
    row = row_elements(step.located)
    size = max(min(entry.size, PREDICTED) // row, 1) * row if entry.size else 0
    first = (entry.size - size) // 2 // row * row if row else 0
    started = time.perf_counter()
    begin = entry.begin + first * bits // 8
    data = step.located.file.read(begin, begin + size * bits // 8)
    reading = time.perf_counter() - started
    scale = entry.size / size if size else 0.0
    if step.coding == PLAIN:
        return Prediction(entry.nbytes, None, reading * scale, 3 * min(entry.nbytes, 1 << 24))
    with _traced() as peak:
        started = time.perf_counter()
        encoder = Encoder(step, data)
        preparing, held = time.perf_counter() - started, peak()
        tile = encoder.encode(data)
        # Read ahead, and waiting to be written.
        working = peak() + 2 * data.nbytes + 2 * sum(map(len, tile.streams))
    # The second time everything has been imported and allocated.
    started = time.perf_counter()
    encoder.encode(data)
    encoding = time.perf_counter() - started
    after = int(sum(map(len, tile.streams)) * scale)
    in_tile = min(step.tile, entry.size) / size
    return Prediction(
        after,
        encoder.error,
        preparing + (reading + encoding) * scale,
        held + int(working * in_tile),
    )


@contextmanager
def _traced() -> Iterator[Callable[[], int]]:
    """Give a function that returns the peak of memory allocated since it was last called."""
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]

    def peak() -> int:
        found = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.reset_peak()
        return found

    try:
        yield peak
    finally:
        if not tracing:
            tracemalloc.stop()


def read_tiles(step: Step) -> Iterator[tuple[int, int]]:
    """Yield the start and end offset of each tile of a tensor in its file's data."""
    entry = step.located.entry
    width = DTYPES[entry.dtype].bits // 8
    for first in range(0, entry.size, step.tile):
        last = min(entry.size, first + step.tile)
        yield entry.begin + first * width, entry.begin + last * width


def _pruned(rule: Rule, size: int) -> int:
    """Return how many weights of a tensor are pruned; one at least stays."""
    return min(round((rule.prune or 0.0) * size), size - 1)


def _threshold_of_tiles(step: Step) -> tuple[float, int]:
    """Return the magnitude below which weights are pruned, and how many of it are.

    This is the order statistic of `prune.magnitude_threshold`, found in two passes over the
    tensor by the high and the low half of the float32 magnitudes; float64 is rounded first.
    """
    entry = step.located.entry
    kind = dtype_of(DTYPES[entry.dtype].numpy or "")
    rank = _pruned(step.rule, entry.size)

    def counts(high: int | None) -> NDArray[np.int64]:
        total = np.zeros(1 << 16, np.int64)
        for begin, end in read_tiles(step):
            x = step.located.file.read(begin, end).view(kind).astype(np.float32)
            keys = np.abs(x).view(np.uint32)
            if high is None:
                keys = keys >> np.uint32(16)
            else:
                keys = keys[keys >> np.uint32(16) == high] & np.uint32(0xFFFF)
            total += np.bincount(keys, minlength=1 << 16)
        return total

    high, rank = _bucket(counts(None), rank)
    low, ties = _bucket(counts(high), rank)
    return float(np.array([high << 16 | low], np.uint32).view(np.float32)[0]), ties


def _bucket(counts: NDArray[np.int64], rank: int) -> tuple[int, int]:
    """Return the bucket that contains the element of this rank, and its rank within it."""
    ends = np.cumsum(counts)
    bucket = int(np.searchsorted(ends, rank, side="right"))
    return bucket, rank - int(ends[bucket] - counts[bucket])

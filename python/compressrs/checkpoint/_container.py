"""Containers: safetensors files of encoded streams, written sequentially."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from compressrs import _core
from compressrs._paths import descriptor_of
from compressrs.checkpoint import _format
from compressrs.checkpoint._coding import PLAIN, Bytes, Description, Tile, blob_entry
from compressrs.checkpoint._encoding import Encoder, read_tiles
from compressrs.checkpoint._format import Entry
from compressrs.checkpoint._header import KEY, VERSION, header_checksum
from compressrs.checkpoint._pipeline import Background, ahead
from compressrs.checkpoint._plan import Step
from compressrs.checkpoint._tasks import Encoded
from compressrs.checkpoint.reader import PLAIN_TILE

#: Maximum size of data that is copied once more to avoid padding the header.
COMPACT = 1 << 28

#: Bytes per copy operation.
COPY = 1 << 24


@dataclass(frozen=True)
class Stored:
    """A tensor stored in a container."""

    name: str
    entry: Entry | None
    description: Description
    #: XXH3 of the source's bytes.
    source: str
    #: ``|w - decoded| / |w|``; None for lossless codings.
    error: float | None = None

    def record(self) -> dict[str, Any]:
        """Return the journal entry of the tensor."""
        e = self.entry
        where = None if e is None else [e.dtype, list(e.shape), e.begin, e.end]
        return {
            "tensor": self.name,
            "at": where,
            "description": self.description.to_json(),
            "source": self.source,
            "error": self.error,
        }

    @staticmethod
    def of_record(record: dict[str, Any]) -> Stored:
        """Return the tensor of a journal entry."""
        at, name = record["at"], record["tensor"]
        entry = None if at is None else Entry(name, at[0], tuple(at[1]), at[2], at[3])
        description = Description.from_json(record["description"])
        return Stored(name, entry, description, record["source"], record["error"])


class Shard:
    """One file of a container, to which tensors are appended.

    The maximum size of the header is reserved at the front, since its length is known only
    after all tensors are encoded, and they are written only once.
    """

    def __init__(self, path: Path, reserve: int) -> None:
        self.path = path
        self.reserve = reserve
        self.stored: list[Stored] = []
        self.size = 0
        self._descriptor = descriptor_of(path, os.O_RDWR | os.O_CREAT)

    def restore(self, stored: Iterable[Stored]) -> None:
        """Restore tensors that were written before, and truncate the file after them."""
        self.stored = list(stored)
        self.size = max((s.entry.end for s in self.stored if s.entry is not None), default=0)
        os.ftruncate(self._descriptor, self.reserve + self.size)

    def intact(self, stored: Stored) -> bool:
        """Whether the bytes of a tensor are complete and match their checksum."""
        if stored.entry is None:
            return True
        checksum = _core.Checksum()
        try:
            for begin in range(stored.entry.begin, stored.entry.end, COPY):
                n = min(COPY, stored.entry.end - begin)
                data = _format.read_at(self._descriptor, self.reserve + begin, n)
                checksum.update(np.frombuffer(data, np.uint8))
        except ValueError:
            return False
        return f"{checksum.digest():016x}" == stored.description.checksum

    def add(
        self, step: Step, advance: Callable[[int], None], encoded: Encoded | None = None
    ) -> Stored:
        """Encode and append a tensor, overlapping reading, encoding and writing.

        If it has been encoded elsewhere, it is only appended.

        Raises
        ------
        OSError, ValueError
            If the source cannot be read, or the file not be written.
        """
        entry = step.located.entry
        source, written = _core.Checksum(), _core.Checksum()
        offset = self.reserve + self.size
        background = Background()

        def read(begin: int, end: int) -> Bytes:
            data = step.located.file.read(begin, end)
            source.update(data)
            return data

        def write(data: Bytes, at: int) -> None:
            written.update(data)
            _write_at(self._descriptor, data, at)

        encoder = None if step.coding == PLAIN or encoded is not None else Encoder(step)

        def tiles() -> Iterator[tuple[Tile, int]]:
            if encoded is not None:
                for tile, (begin, end) in zip(encoded.tiles, read_tiles(step), strict=True):
                    yield tile, end - begin
                return
            parts = read_tiles(step) if encoder is not None else _copied(entry)
            for data in ahead(_call(read, begin, end) for begin, end in parts):
                yield Tile((data.data,)) if encoder is None else encoder.encode(data), len(data)

        lengths, counts = [], []
        try:
            for tile, size in tiles():
                if encoder is not None or encoded is not None:
                    lengths.append(tuple(map(len, tile.streams)))
                    if tile.counts is not None:
                        counts.append(tile.counts)
                for chunk in tile.streams:
                    background.submit(_call(write, np.frombuffer(chunk, np.uint8), offset))
                    offset += len(chunk)
                advance(size)
            # Align the next tensor to 8 bytes.
            padding = -(offset - self.reserve) % 8 if step.coding != PLAIN else 0
            background.submit(_call(write, np.zeros(padding, np.uint8), offset))
            background.wait()
        finally:
            background.close()
        step.located.file.check_unchanged()
        d = replace(
            step.description(),
            lengths=tuple(lengths),
            counts=tuple(counts),
            checksum=f"{written.digest():016x}",
        )
        if d.coding == PLAIN:
            end = self.size + entry.nbytes
            entry = replace(entry, dtype=step.dtype, begin=self.size, end=end)
        else:
            entry = blob_entry(step.name, d, self.size)
        digest, error = f"{source.digest():016x}", None if encoder is None else encoder.error
        if encoded is not None:
            digest, error = encoded.source, encoded.error
        stored = Stored(step.name, entry, d, digest, error)
        self.stored.append(stored)
        self.size = entry.end
        return stored

    def drop_last(self) -> None:
        """Remove the last tensor."""
        self.restore(self.stored[:-1])

    def move_last(self, other: Shard) -> Stored:
        """Move the last tensor to the end of another file."""
        last = self.stored[-1]
        if last.entry is None:
            raise ValueError(f"{last.name!r} has no bytes to move")
        for begin in range(last.entry.begin, last.entry.end, COPY):
            n = min(COPY, last.entry.end - begin)
            data = _format.read_at(self._descriptor, self.reserve + begin, n)
            at = other.reserve + other.size + begin - last.entry.begin
            _write_at(other._descriptor, np.frombuffer(data, np.uint8), at)
        self.drop_last()
        entry = replace(last.entry, begin=other.size, end=other.size + last.entry.nbytes)
        moved = replace(last, entry=entry)
        other.stored.append(moved)
        other.size = entry.end
        return moved

    def finish(self, about: dict[str, Any]) -> None:
        """Write the header before the data; small files are rewritten without padding."""
        header = container_header(self.stored, about)
        if len(header) > self.reserve:
            raise RuntimeError(f"a header of {len(header)} bytes, reserved {self.reserve}")
        if self.size > COMPACT:
            padded = container_header(self.stored, about, self.reserve)
            _write_at(self._descriptor, np.frombuffer(padded, np.uint8), 0)
            os.ftruncate(self._descriptor, self.reserve + self.size)
            self.close()
            return
        compact = self.path.with_suffix(".compact")
        descriptor = descriptor_of(compact, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            _write_at(descriptor, np.frombuffer(header, np.uint8), 0)
            for begin in range(0, self.size, COPY):
                n = min(COPY, self.size - begin)
                data = _format.read_at(self._descriptor, self.reserve + begin, n)
                _write_at(descriptor, np.frombuffer(data, np.uint8), len(header) + begin)
        finally:
            os.close(descriptor)
        self.close()
        os.replace(compact, self.path)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def container_header(
    stored: Iterable[Stored], about: dict[str, Any], length: int | None = None
) -> bytes:
    """Return the header of a container, preceded by its length."""
    tensors = list(stored)
    entries = [s.entry for s in tensors if s.entry is not None]
    metadata = {f"{KEY}:{s.name}": s.description.to_json() for s in tensors}
    # As the safetensors library writes it, for readers that check it.
    if "format" in about.get("metadata", {}):
        metadata["format"] = about["metadata"]["format"]
    whole = {"version": VERSION, **about, "xxh3": header_checksum(entries, metadata)}
    metadata = {KEY: json.dumps(whole, separators=(",", ":")), **metadata}
    return _format.serialize(entries, metadata, length)


def reserved(steps: Iterable[Step], about: dict[str, Any]) -> int:
    """Return the maximum size of the header of these tensors.

    Raises
    ------
    ValueError
        If that exceeds the limit of the format.
    """
    far = 10**15
    fakes = []
    for step in steps:
        d = Description.from_json(step.largest_description())
        # An alias needs fewer fields, but contains another name, which may be longer.
        fakes.append(Stored(step.name, Entry(step.name, "F8_E4M3FNUZ", d.shape, far, far), d, ""))
    longest = max((len(json.dumps(json.dumps(step.name))) for step in steps), default=0)
    extra = longest * len(fakes)
    length = len(container_header(fakes, about)) + extra
    if length - 8 > _format.MAX_HEADER:
        raise ValueError(f"its header would take up to {length} bytes, more than the format allows")
    return -(-length // 4096) * 4096


def _copied(entry: Entry) -> Iterator[tuple[int, int]]:
    """Yield the parts in which a tensor is copied."""
    for begin in range(entry.begin, entry.end, 4 * PLAIN_TILE):
        yield begin, min(entry.end, begin + 4 * PLAIN_TILE)


def _call(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)


def _write_at(descriptor: int, data: Bytes, offset: int) -> None:
    view = data.data
    while view:
        n = os.pwrite(descriptor, view, offset)
        view, offset = view[n:], offset + n

"""Tiles of tensors as streams of bytes, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressrs import _core
from compressrs._json import parse_json
from compressrs.checkpoint._format import DTYPES, FLOATS, Entry

Bytes = NDArray[np.uint8]

#: Symbols that a byte of a stream stands for at most: a block of six bytes, of 2^17 symbols.
#: What a description asks to be allocated is checked against it before it is.
MAX_EXPANSION = (1 << 17) // 6 + 1

#: How the values of a tensor are stored, and in which streams.
CODINGS: dict[str, tuple[str, ...]] = {
    "planes": ("values",),
    "codebook": ("codes", "codebook"),
    "quantized": ("codes", "scales"),
    # With zero points.
    "shifted": ("codes", "scales", "zeros"),
    # Of weights times the scales of their inputs.
    "scaled": ("codes", "scales", "inputs"),
}

#: Those of codes of few bits with scales.
QUANTIZED = ("quantized", "shifted", "scaled")

#: Streams that say which elements are not zero; a tensor has one of them in front, or none.
POSITIONS = ("bits", "gaps")

#: The dtypes of what lossy codings decode to.
WEIGHTS = FLOATS

#: What stands in a file as it was.
PLAIN = "plain"


@dataclass(frozen=True)
class Description:
    """What a container says of a tensor, as JSON in its metadata.

    Its streams are stored tile after tile: all streams of the first rows, then those of
    the next. A tile is a number of elements, of which the last tile may have fewer.
    """

    dtype: str
    shape: tuple[int, ...]
    coding: str
    streams: tuple[str, ...] = ()
    tile: int = 0
    #: Of each tile, the bytes of each stream.
    lengths: tuple[tuple[int, ...], ...] = ()
    #: Of each tile, the symbols of the positions and the number of values, if there are any.
    counts: tuple[tuple[int, int], ...] = ()
    #: XXH3 of the tensor's bytes in the container, in hexadecimal digits.
    checksum: str = ""
    #: The tensor that this one is the same as; it has no streams then.
    same: str | None = None
    #: What a coding needs besides.
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def stored(self) -> int:
        """Bytes of all streams."""
        return sum(map(sum, self.lengths))

    def tile_range(self, i: int) -> tuple[int, int]:
        """Return the elements of a tile, from the first to the one behind the last."""
        return i * self.tile, min(self.size, (i + 1) * self.tile)

    def to_json(self) -> str:
        """Return the description as the container keeps it."""
        content: dict[str, Any] = {"dtype": self.dtype, "shape": self.shape}
        if self.same is not None:
            content["same"] = self.same
            return json.dumps(content, separators=(",", ":"))
        content["coding"] = self.coding
        if self.coding != PLAIN:
            content["streams"] = self.streams
            content["bytes"] = self.lengths
            if len(self.lengths) > 1:
                content["tile"] = self.tile
            if self.counts:
                content["counts"] = self.counts
        content.update(self.options)
        content["xxh3"] = self.checksum
        return json.dumps(content, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Description:
        """Return what `to_json` wrote.

        Raises
        ------
        ValueError
            If the text is no description, or one that contradicts itself.
        """
        try:
            content = parse_json(text)
        except ValueError as error:
            raise ValueError(f"its description is not JSON: {error}") from None
        if not isinstance(content, dict):
            raise ValueError("its description is not a map")
        dtype, shape = content.pop("dtype", None), content.pop("shape", None)
        if not isinstance(dtype, str) or dtype not in DTYPES or not _sizes(shape):
            raise ValueError(f"its description has dtype {dtype!r} and shape {shape!r}")
        same = content.pop("same", None)
        if same is not None:
            if not isinstance(same, str):
                raise ValueError(f"it must be the same as a tensor, got {same!r}")
            return Description(dtype, tuple(shape), PLAIN, same=same)
        coding, checksum = content.pop("coding", None), content.pop("xxh3", None)
        if not isinstance(coding, str):
            raise ValueError(f"its coding must be one of {[*CODINGS, PLAIN]}, got {coding!r}")
        if not isinstance(checksum, str) or len(checksum) != 16:
            raise ValueError(f"its checksum must be 16 hexadecimal digits, got {checksum!r}")
        d = Description(dtype, tuple(shape), coding, checksum=checksum)
        if coding == PLAIN:
            return d
        streams, lengths = content.pop("streams", None), content.pop("bytes", None)
        tile, counts = content.pop("tile", d.size), content.pop("counts", [])
        if coding not in CODINGS or not isinstance(streams, list):
            raise ValueError(f"its coding must be one of {[*CODINGS, PLAIN]}, got {coding!r}")
        sparse = len(streams) > 0 and streams[0] in POSITIONS
        if tuple(streams[sparse:]) != CODINGS[coding]:
            raise ValueError(f"{coding} must have the streams {CODINGS[coding]}, got {streams}")
        if type(tile) is not int or (tile < 1 and d.size > 0):
            raise ValueError(f"its tiles must have an element at least, got {tile!r}")
        if DTYPES[dtype].bits < 8:
            raise ValueError(f"a tensor of {dtype} must be stored as it is")
        tiles = -(-d.size // tile) if d.size else 0
        for values, width, needed, what in (
            (lengths, len(streams), tiles, "bytes"),
            (counts, 2, tiles if sparse else 0, "counts"),
        ):
            if not isinstance(values, list) or len(values) != needed:
                raise ValueError(f"its {what} must be those of {needed} tiles")
            if not all(_sizes(v) and len(v) == width for v in values):
                raise ValueError(f"its {what} must be {width} numbers for each tile")
        return replace(
            d,
            streams=tuple(streams),
            tile=tile,
            lengths=tuple(map(tuple, lengths)),
            counts=tuple(map(tuple, counts)),
            options=content,
        )


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


@dataclass(frozen=True)
class Tile:
    """A tile that was encoded."""

    streams: tuple[bytes | memoryview, ...]
    counts: tuple[int, int] | None = None


def encode_bytes(data: Bytes, dtype: str) -> bytes:
    """Return the stream of the bytes of elements of a dtype of safetensors."""
    kind = DTYPES[dtype]
    width = kind.width if data.size % kind.width == 0 else 1
    return _core.encode_planes(data, width, kind.floating)


def decode_bytes(stream: Bytes, dtype: str, n: int) -> Bytes:
    """Return the `n` bytes of elements that a stream stands for.

    Raises
    ------
    ValueError
        If the stream is damaged, or stands for another number of bytes.
    """
    if n > len(stream) * MAX_EXPANSION:
        raise ValueError(f"the stream is damaged: {len(stream)} bytes cannot stand for {n}")
    kind = DTYPES[dtype]
    width = kind.width if n % kind.width == 0 else 1
    out = np.empty(n, np.uint8)
    _core.decode_planes(stream, width, kind.floating, out)
    return out


def split_zeros(x: NDArray[Any], streams: Sequence[str]) -> tuple[bytes, Bytes, tuple[int, int]]:
    """Return the stream of where `x`, of unsigned numbers, is not zero, the values, and counts."""
    places, values = _core.split_positions(x, streams[0] == "gaps")
    kept = np.frombuffer(values, np.uint8)
    stream = encode_bytes(np.frombuffer(places, np.uint8), "U8")
    return stream, kept, (len(places), len(values) // x.itemsize)


def merge_zeros(
    places: Bytes, values: Bytes, streams: Sequence[str], size: int, width: int
) -> Bytes:
    """Return `size` elements of `width` bytes: values where positions say, zeros elsewhere.

    Raises
    ------
    ValueError
        If positions and values do not fit each other and the size.
    """
    out = np.empty(size, f"u{width}")
    _core.merge_positions(places, values.view(out.dtype), streams[0] == "gaps", out)
    return out.view(np.uint8)


def encode_planes(data: Bytes, dtype: str, streams: Sequence[str]) -> Tile:
    """Encode a tile without loss, with its zeros apart if `streams` begin with positions."""
    if streams[0] not in POSITIONS:
        return Tile((encode_bytes(data, dtype),))
    places, kept, counts = split_zeros(data.view(f"u{DTYPES[dtype].bits // 8}"), streams)
    return Tile((places, encode_bytes(kept, dtype)), counts)


@dataclass(frozen=True)
class Parts:
    """The streams of a tile, as they stand in the container, by name."""

    streams: Mapping[str, Bytes]
    counts: tuple[int, int] | None
    size: int

    @staticmethod
    def of(d: Description, i: int, data: Bytes) -> Parts:
        """Return the streams of tile `i` of a tensor, whose bytes in the container are `data`."""
        cuts = np.cumsum(d.lengths[i])[:-1]
        begin, end = d.tile_range(i)
        counts = d.counts[i] if d.counts else None
        return Parts(dict(zip(d.streams, np.split(data, cuts), strict=True)), counts, end - begin)

    def merged(self, name: str, dtype: str) -> Bytes:
        """Return the bytes of all elements, those that are not zero being in a stream."""
        width = DTYPES[dtype].bits // 8
        if self.counts is None:
            return decode_bytes(self.streams[name], dtype, self.size * width)
        kind, places = self.positions()
        values = decode_bytes(self.streams[name], dtype, self.counts[1] * width)
        self.require_positions(places, self.counts[1])
        return merge_zeros(places, values, (kind,), self.size, width)

    def require_positions(self, places: Bytes, values: int) -> None:
        """Raise a ValueError if positions cannot stand for all elements, which take memory."""
        if self.size > 255 * (len(places) + 1) + values:
            raise ValueError("the stream is damaged: it has too few positions")

    def positions(self) -> tuple[str, Bytes]:
        """Return the kind of the positions and their bytes."""
        kind = next(kind for kind in POSITIONS if kind in self.streams)
        if self.counts is None:
            raise ValueError("a tensor with positions must have counts")
        return kind, decode_bytes(self.streams[kind], "U8", self.counts[0])


def decode_planes(d: Description, parts: Parts) -> Bytes:
    """Return the bytes of a tile that `encode_planes` encoded."""
    return parts.merged("values", d.dtype)


def blob_entry(name: str, d: Description, begin: int) -> Entry:
    """Return the entry of a tensor's streams in the header of a container."""
    stored = -(-d.stored // 8) * 8
    return Entry(name, "U8", (stored,), begin, begin + stored)

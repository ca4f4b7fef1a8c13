"""The safetensors format: strict parsing and writing of headers."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from compressrs._files import other_format
from compressrs._json import parse_json

#: Maximum size of a header's JSON, as in the safetensors library.
MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class Dtype:
    """A dtype of safetensors: its name in NumPy, its bits, and whether it has an exponent.

    `numpy` is None where neither NumPy nor ml_dtypes has it.
    """

    numpy: str | None
    bits: int
    floating: bool = False

    @property
    def width(self) -> int:
        """Element size by which data is split into byte planes."""
        return {64: 8, 32: 4, 16: 2}.get(self.bits, 1)


#: All dtypes of the format.
DTYPES: dict[str, Dtype] = {
    "BOOL": Dtype("bool", 8),
    "F4": Dtype(None, 4),
    "F6_E2M3": Dtype(None, 6),
    "F6_E3M2": Dtype(None, 6),
    "U8": Dtype("uint8", 8),
    "I8": Dtype("int8", 8),
    "F8_E5M2": Dtype("float8_e5m2", 8),
    "F8_E4M3": Dtype("float8_e4m3fn", 8),
    "F8_E8M0": Dtype("float8_e8m0fnu", 8),
    "F8_E4M3FNUZ": Dtype("float8_e4m3fnuz", 8),
    "F8_E5M2FNUZ": Dtype("float8_e5m2fnuz", 8),
    "I16": Dtype("int16", 16),
    "U16": Dtype("uint16", 16),
    "F16": Dtype("float16", 16, True),
    "BF16": Dtype("bfloat16", 16, True),
    "I32": Dtype("int32", 32),
    "U32": Dtype("uint32", 32),
    "F32": Dtype("float32", 32, True),
    "C64": Dtype("complex64", 64),
    "F64": Dtype("float64", 64, True),
    "I64": Dtype("int64", 64),
    "U64": Dtype("uint64", 64),
}

#: The dtypes that lossy codings support.
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Entry:
    """A tensor's entry in the header of a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return self.end - self.begin

    @property
    def size(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """A file's header, with tensors in the order in which they are listed."""

    entries: tuple[Entry, ...]
    metadata: dict[str, str]
    #: Offset of the data in the file.
    start: int


def tensor_bytes(dtype: str, shape: Iterable[int]) -> int:
    """Return the size of a tensor in bytes.

    Raises
    ------
    ValueError
        If it is not a whole number of bytes.
    """
    bits = math.prod(shape) * DTYPES[dtype].bits
    if bits % 8:
        raise ValueError(f"a tensor of {dtype} and shape {tuple(shape)} is not whole bytes")
    return bits // 8


def parse(path: str | os.PathLike[str], descriptor: int, size: int) -> Header:
    """Read and validate the header of a file of `size` bytes.

    Raises
    ------
    ValueError
        If the file is not a complete safetensors file, or has trailing bytes.
    """
    prefix = os.pread(descriptor, 8, 0)
    if len(prefix) < 8:
        raise _wrong(path, f"it has {size} bytes, and the length of its header alone takes 8")
    if known := other_format(os.pread(descriptor, 9, 0)):
        raise _wrong(path, f"it is {known}")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER:
        raise _wrong(path, f"its header of {length} bytes is longer than {MAX_HEADER}")
    if length > size - 8:
        raise _wrong(path, f"its header of {length} bytes is longer than the file of {size}")
    header = parse_header(path, prefix + read_at(descriptor, 8, length))
    end = max((entry.end for entry in header.entries), default=0)
    if end != size - header.start:
        raise _wrong(path, f"its tensors end at {end}, its data at {size - header.start}")
    return header


def _wrong(path: str | os.PathLike[str], reason: str) -> ValueError:
    return ValueError(f"{os.fspath(path)} is not a complete safetensors file: {reason}")


def parse_header(path: str | os.PathLike[str], data: bytes) -> Header:
    """Return the validated header of a file, given its bytes including the length prefix.

    Raises
    ------
    ValueError
        If it is invalid.
    """
    if len(data) < 8 or int.from_bytes(data[:8], "little") != len(data) - 8:
        raise _wrong(path, "its header has another length than it says")
    if data[8:9] != b"{":
        raise _wrong(path, "its header does not begin with {")
    try:
        content = parse_json(data[8:])
    except ValueError as error:
        raise _wrong(path, f"its header is not JSON: {error}") from None
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _wrong(path, "its __metadata__ is not a map of strings")
    try:
        entries = tuple(_entry(name, value) for name, value in content.items())
        _check_layout(entries)
    except ValueError as error:
        raise _wrong(path, str(error)) from None
    return Header(entries, metadata, len(data))


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} must have dtype, shape and data_offsets, nothing else")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{name!r} has the unknown dtype {dtype!r}")
    if not isinstance(shape, list) or not all(map(_whole, shape)):
        raise ValueError(f"{name!r} has the shape {shape!r}, which is no list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_whole, offsets)):
        raise ValueError(f"{name!r} has the data_offsets {offsets!r}, which are not two offsets")
    entry = Entry(name, dtype, tuple(shape), *offsets)
    needed = tensor_bytes(dtype, shape)
    if entry.nbytes != needed:
        raise ValueError(
            f"{name!r} of {dtype} and shape {entry.shape} takes {needed} bytes, "
            f"but its data_offsets {offsets} span {entry.nbytes}"
        )
    return entry


def _check_layout(entries: Iterable[Entry]) -> None:
    """Raise a ValueError unless the tensors are contiguous from offset 0."""
    end = 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != end:
            kind = "overlaps with what is before it" if entry.begin < end else "leaves a hole"
            raise ValueError(f"{entry.name!r} begins at {entry.begin}, not at {end}: it {kind}")
        end = entry.end


def serialize(
    entries: Iterable[Entry], metadata: Mapping[str, str], length: int | None = None
) -> bytes:
    """Return a header with its length prefix, padded to a multiple of 8 or to `length`.

    Raises
    ------
    ValueError
        If it exceeds the limit of the format.
    """
    content: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for entry in entries:
        content[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.begin, entry.end],
        }
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8 if length is None else length - 8)
    if len(text) > MAX_HEADER or (length is not None and len(text) > length - 8):
        raise ValueError(f"the header would take {len(text)} bytes, more than the format allows")
    return len(text).to_bytes(8, "little") + text


def read_at(descriptor: int, offset: int, n: int) -> bytes:
    """Read exactly `n` bytes.

    Raises
    ------
    ValueError
        If the file ends before.
    """
    data = os.pread(descriptor, n, offset)
    while len(data) < n:
        more = os.pread(descriptor, n - len(data), offset + len(data))
        if not more:
            raise ValueError(f"the file ends at {offset + len(data)}, within what is read")
        data += more
    return data

"""GGUF 3: tensors in blocks of 32 numbers (ggml's docs/gguf.md and src/ggml-common.h).

Q8_0 is {f16 d; i8[32]} with d = max|x| / 127; Q4_0 is {f16 d; u8[16]}, the low nibble of byte
j being number j and the high nibble number j + 16, each standing for (q - 8) d, where d is the
number of largest magnitude, with its sign, over -8. Rounding is half to even.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressrs.checkpoint._coding import QUANTIZED, Bytes
from compressrs.checkpoint._format import FLOATS
from compressrs.checkpoint.export._report import Written
from compressrs.checkpoint.export._staging import staged
from compressrs.checkpoint.reader import Checkpoint

_ALIGNMENT = 32
_BLOCK = 32
#: Numbers of types in ggml, and the bytes of a number or a block.
_F32, _F16, _Q4_0, _Q8_0 = 0, 1, 2, 8
_QUANTIZED = _Q4_0, _Q8_0
_INTEGERS = {"I8": 24, "I16": 25, "I32": 26, "I64": 27, "F64": 28}
_BYTES = {_F32: 4, _F16: 2, 24: 1, 25: 2, 26: 4, 27: 8, 28: 8}
_FORMS = {_F32: "F32", _F16: "F16", _Q4_0: "Q4_0", _Q8_0: "Q8_0"} | {
    kind: dtype for dtype, kind in _INTEGERS.items()
}


def q8_0(x: NDArray[np.float32]) -> Bytes:
    """Return rows of a multiple of 32 numbers as blocks of Q8_0."""
    blocks = x.reshape(-1, _BLOCK)
    d = np.abs(blocks).max(axis=1) / np.float32(127)
    inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d > 0)
    out = np.empty((len(blocks), 34), np.uint8)
    out[:, :2] = d.astype("<f2").view(np.uint8).reshape(-1, 2)
    codes = np.rint(blocks * inverse[:, None])
    out[:, 2:] = np.clip(codes, -128, 127).astype(np.int8).view(np.uint8)
    return out.reshape(-1)


def q4_0(x: NDArray[np.float32]) -> Bytes:
    """Return rows of a multiple of 32 numbers as blocks of Q4_0."""
    blocks = x.reshape(-1, _BLOCK)
    largest = np.abs(blocks).argmax(axis=1)[:, None]
    d = np.take_along_axis(blocks, largest, axis=1)[:, 0] / np.float32(-8)
    inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)
    codes = np.clip(np.rint(blocks * inverse[:, None]) + 8, 0, 15).astype(np.uint8)
    out = np.empty((len(blocks), 18), np.uint8)
    out[:, :2] = d.astype("<f2").view(np.uint8).reshape(-1, 2)
    out[:, 2:] = codes[:, :16] | codes[:, 16:] << 4
    return out.reshape(-1)


def _type(c: Checkpoint, name: str) -> int:
    """Return the type that a tensor is written as: as many bits as it is stored in."""
    d = c.description(name)
    if d.dtype in _INTEGERS and d.coding not in QUANTIZED:
        return _INTEGERS[d.dtype]
    if d.dtype not in FLOATS:
        raise ValueError(f"{name!r} is of {d.dtype}, for which GGUF has no type")
    rows = d.shape[-1] if d.shape else 1
    if d.coding in QUANTIZED and rows % _BLOCK == 0:
        return _Q8_0 if d.options["bits"] > 4 else _Q4_0
    return _F16 if d.dtype == "F16" else _F32


def _nbytes(kind: int, size: int) -> int:
    if kind in _QUANTIZED:
        return size // _BLOCK * (18 if kind == _Q4_0 else 34)
    return size * _BYTES[kind]


def write(
    c: Checkpoint, target: Path, progress: Callable[[int, int], None]
) -> tuple[int, dict[str, Written]]:
    """Write all tensors to one file, those that are quantized in blocks of 32.

    Blocks are made from the decoded numbers, since GGUF's scales are others.

    Raises
    ------
    ValueError
        If a tensor has a dtype or a name that GGUF cannot hold.
    """
    types = {name: _type(c, name) for name in c}
    infos, offset = b"", 0
    for name, kind in types.items():
        if len(name.encode()) >= 64:
            raise ValueError(f"{name!r} must be shorter than 64 bytes to be a name in GGUF")
        shape = c.shape(name) or (1,)
        if len(shape) > 4:
            raise ValueError(f"{name!r} has {len(shape)} axes; GGUF has 4 at most")
        # The innermost first.
        dims = b"".join(struct.pack("<Q", n) for n in reversed(shape))
        infos += _string(name) + struct.pack("<I", len(shape)) + dims
        infos += struct.pack("<IQ", kind, offset)
        offset += _aligned(_nbytes(kind, c.description(name).size))
    values = [("general.architecture", 8, _string("unknown"))]
    values += [("general.quantization_version", 4, struct.pack("<I", 2))]
    values += [("general.alignment", 4, struct.pack("<I", _ALIGNMENT))]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(types), len(values))
    head += b"".join(_string(key) + struct.pack("<I", kind) + value for key, kind, value in values)
    head += infos
    with staged(target, len(head) + offset) as path, open(path, "wb") as file:
        file.write(head.ljust(_aligned(len(head)), b"\0"))
        done = 0
        for name, kind in types.items():
            written = 0
            for data in _data(c, name, kind):
                file.write(data.data)
                written += data.nbytes
                progress(done + written, offset)
            file.write(b"\0" * (_aligned(written) - written))
            done += _aligned(written)
        size = file.tell()
    found = {
        name: Written(_FORMS[kind], _nbytes(kind, c.description(name).size), kind in _QUANTIZED)
        for name, kind in types.items()
    }
    return size, found


def _data(c: Checkpoint, name: str, kind: int) -> Any:
    dtype = c.numpy_dtype(name)
    rest = np.empty(0, np.float32)
    for _, data in c.tiles(name):
        if kind in _QUANTIZED:
            # Tiles are whole rows, and those whole blocks.
            rest = data.view(dtype).astype(np.float32)
            yield q8_0(rest) if kind == _Q8_0 else q4_0(rest)
        elif kind == _F32 and dtype != np.float32:
            yield data.view(dtype).astype(np.float32).view(np.uint8)
        else:
            yield data


def _aligned(n: int) -> int:
    return -(-n // _ALIGNMENT) * _ALIGNMENT


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data

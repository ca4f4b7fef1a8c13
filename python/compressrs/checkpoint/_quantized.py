"""Codes of few bits with scales, as streams."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressrs._arrays import dtype_of
from compressrs.checkpoint import _coding
from compressrs.checkpoint._coding import Bytes, Description, Parts, Tile
from compressrs.checkpoint._format import DTYPES
from compressrs.checkpoint.recipe import Rule

#: The code of 0 in nf4, which is stored as 0: what is pruned has no code.
_NF4_ZERO = 7

#: Bits of a scale's mantissa that are cleared: 11 significant ones stay, as in float16, but
#: with the range of float32. Cleared bits cost nothing once they are coded.
_CLEARED = 13


def _family() -> Any:
    """Return `compressrs.quantize`, imported when a checkpoint needs it."""
    return import_module("compressrs.quantize")


def scheme(options: Mapping[str, Any]) -> Any:
    """Return the `quantize.Scheme` that a description's options name.

    Raises
    ------
    ValueError
        If they name none.
    """
    bits, kind, group = options.get("bits"), options.get("codes"), options.get("group_size")
    symmetric = options.get("symmetric", True)
    if kind not in ("int", "nf4") or (kind, bits) not in (("int", 8), ("int", 4), ("nf4", 4)):
        raise ValueError(f"codes must be int of 8 or 4 bits, or nf4, got {kind!r} of {bits!r}")
    if type(symmetric) is not bool or (group is not None and type(group) is not int):
        raise ValueError(f"group_size must be a number or null, got {group!r}")
    granularity = "channel" if group is None else "group"
    return _family().Scheme(bits, symmetric, granularity, group, kind)


def options(rule: Rule) -> dict[str, Any]:
    """Return what a description says of a rule's codes."""
    kind, bits = {"int8": ("int", 8), "int4": ("int", 4), "nf4": ("nf4", 4)}[rule.quantize or ""]
    found: dict[str, Any] = {"codes": kind, "bits": bits}
    if rule.group_size is not None:
        found["group_size"] = rule.group_size
    if rule.method == "hqq":
        found["symmetric"] = False
    return found


def quantize(x: NDArray[Any], rule: Rule) -> Any:
    """Quantize rows of weights with scales of 11 significant bits."""
    q = _family()
    w = np.ascontiguousarray(x, np.float32)
    kind = scheme(options(rule))
    found = q.quantize(w, kind) if rule.method == "rtn" else q.hqq(w, kind)
    bits = found.scale.astype(np.float32).view(np.uint32)
    half, keep = np.uint32(1 << (_CLEARED - 1)), ~np.uint32((1 << _CLEARED) - 1)
    scale = ((bits + half) & keep).view(np.float32)
    return q.quantize(w, kind, scale=scale, zero_point=found.zero_point)


def encode(x: NDArray[Any], streams: tuple[str, ...], rule: Rule) -> Tile:
    """Encode rows of weights."""
    q = quantize(x, rule)
    codes = q.codes.view(np.uint8).reshape(-1)
    if rule.quantize == "nf4":
        codes = codes ^ np.uint8(_NF4_ZERO)
    elif rule.quantize == "int4":
        codes = codes & np.uint8(0xF)
    tail = [_coding.encode_bytes(q.scale.reshape(-1).view(np.uint8), "F32")]
    if q.zero_point is not None:
        tail.append(_coding.encode_bytes(q.zero_point.reshape(-1).view(np.uint8), "U8"))
    if streams[0] not in _coding.POSITIONS:
        return Tile((_coding.encode_bytes(codes, "U8"), *tail))
    places, kept, counts = _coding.split_zeros(codes, streams)
    return Tile((places, _coding.encode_bytes(kept, "U8"), *tail), counts)


def tensor(d: Description, parts: Parts) -> Any:
    """Return the codes and scales of a tile, as a `quantize.QuantizedTensor` of its rows.

    Raises
    ------
    ValueError
        If the streams are damaged.
    """
    kind = scheme(d.options)
    if d.dtype not in _coding.WEIGHTS:
        raise ValueError(f"what is quantized must be of floats, got {d.dtype}")
    row = d.size // d.shape[0] if d.shape and d.shape[0] else 1
    if parts.size % row:
        raise ValueError(f"a tile of {parts.size} elements must be whole rows of {row}")
    shape = (parts.size // row, row)
    codes = parts.merged("codes", "U8").copy()
    if kind.dtype == "nf4":
        codes ^= np.uint8(_NF4_ZERO)
    elif kind.bits == 4:
        # The sign of four bits.
        codes = (codes ^ np.uint8(8)) - np.uint8(8)
    scales = kind.scale_shape(shape)
    n = scales[0] * scales[1]
    scale = _coding.decode_bytes(parts.streams["scales"], "F32", 4 * n).view(np.float32)
    zero = None
    if "zeros" in parts.streams:
        zero = _coding.decode_bytes(parts.streams["zeros"], "U8", n).view(np.int8).reshape(scales)
    return _family().QuantizedTensor(
        codes.view(kind.code_dtype).reshape(shape), scale.reshape(scales), zero, scheme=kind
    )


def joined(parts: list[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """Return the `quantize.QuantizedTensor` of tiles that follow each other."""
    zeros = [part.zero_point for part in parts if part.zero_point is not None]
    return _family().QuantizedTensor(
        np.concatenate([part.codes for part in parts]).reshape(shape),
        np.concatenate([part.scale for part in parts]),
        np.concatenate(zeros) if zeros else None,
        scheme=parts[0].scheme,
        dtype=dtype,
    )


def decode(d: Description, parts: Parts) -> Bytes:
    """Return the bytes of a tile that `encode` encoded."""
    x = tensor(d, parts).dequantize()
    kind = dtype_of(DTYPES[d.dtype].numpy or "")
    decoded: Bytes = x.reshape(-1).astype(kind, copy=False).view(np.uint8)
    return decoded

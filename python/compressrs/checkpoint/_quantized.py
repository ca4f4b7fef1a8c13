"""Codes of few bits with scales, as streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compressrs._arrays import dtype_of
from compressrs.checkpoint import _coding
from compressrs.checkpoint._coding import Bytes, Description, Parts, Tile
from compressrs.checkpoint._format import DTYPES
from compressrs.checkpoint.recipe import INTEGERS, Rule

if TYPE_CHECKING:
    from compressrs.prune import InputStatistics

#: The code of 0 in nf4, which is stored as 0: what is pruned has no code.
_NF4_ZERO = 7

#: Ratios of the largest magnitude that are tried as ranges, and the least of them.
_RATIOS = {"steps": 20, "least": 0.4}

#: Ratios of scales of inputs that AWQ tries, and GPTQ's share of the mean on the diagonal.
_AWQ_STEPS, _DAMPING = 20, 0.01

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
    valid = type(bits) is int and (2 <= bits <= 8 if kind == "int" else (kind, bits) == ("nf4", 4))
    if not valid:
        raise ValueError(f"codes must be int of 2 to 8 bits, or nf4, got {kind!r} of {bits!r}")
    if type(symmetric) is not bool or (group is not None and type(group) is not int):
        raise ValueError(f"group_size must be a number or null, got {group!r}")
    granularity = "channel" if group is None else "group"
    return _family().Scheme(bits, symmetric, granularity, group, kind)


def options(rule: Rule) -> dict[str, Any]:
    """Return what a description says of a rule's codes."""
    integer = rule.quantize in INTEGERS
    kind, bits = ("int", int((rule.quantize or "")[3:])) if integer else ("nf4", 4)
    found: dict[str, Any] = {"codes": kind, "bits": bits}
    if rule.group_size is not None:
        found["group_size"] = rule.group_size
    if rule.method == "hqq":
        found["symmetric"] = False
    return found


class Quantizer:
    """Quantizes the rows of one tensor, in any order, with scales of 11 significant bits.

    Parameters
    ----------
    rule : Rule
    statistics : InputStatistics, optional
        Of the tensor's inputs, for calibrated methods.
    tiles : callable, optional
        Iterates over all rows, for methods that need them before.
    """

    def __init__(
        self,
        rule: Rule,
        statistics: InputStatistics | None = None,
        tiles: Callable[[], Iterator[NDArray[Any]]] | None = None,
    ) -> None:
        self.rule = rule
        self.scheme = scheme(options(rule))
        #: What the inputs are divided by, if the method scales them.
        self.input_scale: NDArray[np.float32] | None = None
        if statistics is None:
            return
        if rule.method == "gptq":
            sweep = import_module("compressrs.quantize.sweep")
            self._factored = sweep.factored(statistics, _DAMPING, act_order=True)
        elif tiles is not None:
            self.input_scale = self._scale_of_inputs(statistics, tiles())

    def _scale_of_inputs(
        self, statistics: InputStatistics, tiles: Iterator[NDArray[Any]]
    ) -> NDArray[np.float32]:
        """Return AWQ's scales of inputs, by the error of the outputs of all rows."""
        scaling = import_module("compressrs.quantize.scaling")
        scales = scaling.awq_scales(statistics, _AWQ_STEPS)
        errors = np.zeros(len(scales))
        for x in tiles:
            w = np.ascontiguousarray(x, np.float32)
            gram = scaling.checked_gram(w, statistics)
            errors += scaling.awq_errors(w, gram, self.scheme, scales)
        best: NDArray[np.float32] = scales[int(np.argmin(errors))].astype(np.float32)
        return best

    def __call__(self, x: NDArray[Any]) -> Any:
        """Return the `quantize.QuantizedTensor` of some rows, times `input_scale`."""
        q = _family()
        w = np.ascontiguousarray(x, np.float32)
        if self.input_scale is not None:
            w = w * self.input_scale
        zero_point = None
        if self.rule.method in ("mse", "gptq"):
            scale, _ = q.mse_scale(w, self.scheme, **_RATIOS)
        else:
            found = (q.hqq if self.rule.method == "hqq" else q.quantize)(w, self.scheme)
            scale, zero_point = found.scale, found.zero_point
        scale = _rounded(scale)
        if self.rule.method == "gptq":
            sweep = import_module("compressrs.quantize.sweep")
            return sweep.gptq_rows(w, self._factored, self.scheme, scale)
        return q.quantize(w, self.scheme, scale=scale, zero_point=zero_point)


def _rounded(scale: NDArray[Any]) -> NDArray[np.float32]:
    """Return scales with 11 significant bits."""
    bits = scale.astype(np.float32).view(np.uint32)
    half, keep = np.uint32(1 << (_CLEARED - 1)), ~np.uint32((1 << _CLEARED) - 1)
    kept: NDArray[np.float32] = ((bits + half) & keep).view(np.float32)
    return kept


def encode(x: NDArray[Any], streams: tuple[str, ...], quantizer: Quantizer) -> Tile:
    """Encode rows of weights."""
    q = quantizer(x)
    codes = q.codes.view(np.uint8).reshape(-1)
    if quantizer.rule.quantize == "nf4":
        codes = codes ^ np.uint8(_NF4_ZERO)
    elif q.scheme.bits < 8:
        codes = codes & np.uint8((1 << q.scheme.bits) - 1)
    tail = [_coding.encode_bytes(q.scale.reshape(-1).view(np.uint8), "F32")]
    if q.zero_point is not None:
        tail.append(_coding.encode_bytes(q.zero_point.reshape(-1).view(np.uint8), "U8"))
    if quantizer.input_scale is not None:
        tail.append(_coding.encode_bytes(quantizer.input_scale.view(np.uint8), "F32"))
    if streams[0] not in _coding.POSITIONS:
        return Tile((_coding.encode_bytes(codes, "U8"), *tail))
    places, kept, counts = _coding.split_zeros(codes, streams)
    return Tile((places, _coding.encode_bytes(kept, "U8"), *tail), counts)


def tensor(d: Description, parts: Parts, dtype: np.dtype[Any] | None = None) -> Any:
    """Return the codes and scales of a tile, as a `quantize.QuantizedTensor` of its rows.

    It is decoded to `dtype`, by default float32.

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
    elif kind.bits < 8:
        # Extend the sign of so many bits.
        half = np.uint8(1 << (kind.bits - 1))
        codes = (codes ^ half) - half
    scales = kind.scale_shape(shape)
    n = scales[0] * scales[1]
    scale = _coding.decode_bytes(parts.streams["scales"], "F32", 4 * n).view(np.float32)
    zero = None
    if "zeros" in parts.streams:
        zero = _coding.decode_bytes(parts.streams["zeros"], "U8", n).view(np.int8).reshape(scales)
    return _family().QuantizedTensor(
        codes.view(kind.code_dtype).reshape(shape),
        scale.reshape(scales),
        zero,
        scheme=kind,
        dtype=np.float32 if dtype is None else dtype,
    )


def input_scale(d: Description, parts: Parts) -> NDArray[np.float32] | None:
    """Return what the inputs of a tile of quantized rows are divided by, if anything.

    Raises
    ------
    ValueError
        If it is damaged.
    """
    if "inputs" not in parts.streams:
        return None
    row = d.size // d.shape[0]
    scale = _coding.decode_bytes(parts.streams["inputs"], "F32", 4 * row).view(np.float32)
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise ValueError("the stream is damaged: a scale of inputs is not positive")
    return scale


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
    kind = dtype_of(DTYPES[d.dtype].numpy or "")
    scale = input_scale(d, parts)
    if scale is None:
        # float64 as well is decoded from single precision, which scales and codes are of.
        narrow = np.dtype(np.float32) if d.dtype == "F64" else kind
        x = tensor(d, parts, narrow).dequantize()
    else:
        x = tensor(d, parts).dequantize() / scale
    decoded: Bytes = x.reshape(-1).astype(kind, copy=False).view(np.uint8)
    return decoded

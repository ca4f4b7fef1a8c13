"""Codes of less than 8 bits in files, where they stand one after another without gaps."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs._arrays import Array
from compressrs._json import parse_json

#: The key of the metadata of a file that says which arrays are packed.
KEY = "packed"

#: The arrays of a quantized weight that are packed.
_ARRAYS = ("weight.codes", "weight.zero_point")

#: Codes at a time, a multiple of 8, so that each part is whole bytes.
_PART = 1 << 18


def pack(codes: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Return the low `bits` of each code, the first code in the lowest bits of the first byte.

    Raises
    ------
    ValueError
        If a code is beyond `bits`.
    """
    signed = codes.dtype.kind == "i"
    low = -(1 << (bits - 1)) if signed else 0
    high = low + (1 << bits) - 1
    if codes.size and not low <= int(codes.min()) <= int(codes.max()) <= high:
        raise ValueError(f"must be from {low} to {high} in {bits} bits, got others")
    flat = np.ascontiguousarray(codes).reshape(-1).view(np.uint8)
    packed = np.empty(-(-flat.size * bits // 8), np.uint8)
    for first in range(0, flat.size, _PART):
        part = flat[first : first + _PART, None]
        planes = np.unpackbits(part, axis=1, count=bits, bitorder="little")
        whole = np.packbits(planes, bitorder="little")
        packed[first * bits // 8 :][: whole.size] = whole
    return packed


def unpack(
    packed: npt.NDArray[np.uint8], bits: int, shape: tuple[int, ...], dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    """Return the codes that `pack` packed.

    Raises
    ------
    ValueError
        If there are not as many bytes as codes of this shape take.
    """
    size = math.prod(shape)
    if packed.dtype != np.uint8 or packed.shape != (-(-size * bits // 8),):
        raise ValueError(
            f"codes of {bits} bits and shape {shape} must be packed in {-(-size * bits // 8)} "
            f"bytes, got {packed.dtype} of shape {packed.shape}"
        )
    codes = np.empty(size, np.uint8)
    for first in range(0, size, _PART):
        part = codes[first : first + _PART]
        stored = packed[first * bits // 8 :][: -(-part.size * bits // 8)]
        # Whole bytes for all codes at once: along an axis NumPy packs one by one.
        planes = np.zeros((part.size, 8), np.uint8)
        flat = np.unpackbits(stored, count=part.size * bits, bitorder="little")
        planes[:, :bits] = flat.reshape(-1, bits)
        part[:] = np.packbits(planes, bitorder="little")
    if np.dtype(dtype).kind == "i":
        # Extend the sign of so many bits.
        half = np.uint8(1 << (bits - 1))
        codes ^= half
        codes -= half
    return codes.view(dtype).reshape(shape)


def packed_state(
    description: Mapping[str, Any], state: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, str]]:
    """Return a model's arrays as its file holds them, and the metadata that says which are packed.

    Raises
    ------
    ValueError
        If a code is not one of its scheme, since it was written to.
    """
    arrays, about = dict(state), {}
    for prefix, scheme in _schemes(description, ""):
        bits = scheme["bits"]
        for name in (prefix + array for array in _ARRAYS):
            codes = arrays.get(name)
            if codes is None or bits >= 8:
                continue
            try:
                arrays[name] = pack(codes, bits)
            except ValueError as error:
                raise ValueError(f"{name} {error}") from None
            about[name] = {"bits": bits, "shape": codes.shape, "dtype": codes.dtype.name}
    return arrays, {KEY: json.dumps(about)} if about else {}


def _schemes(description: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the schemes in a description of a model, with the prefix of their arrays' names."""
    parts = {"": description["config"], **description["config"]}
    for name, config in parts.items():
        if isinstance(config, dict) and isinstance(config.get("scheme"), dict):
            yield f"{prefix}{name}." if name else prefix, config["scheme"]
    for name, inner in description["layers"].items():
        yield from _schemes(inner, f"{prefix}{name}.")


class Unpacked(Mapping[str, Array]):
    """The arrays of a file, or of a checkpoint that was made of it, unpacked when they are read.

    Raises
    ------
    ValueError
        If the metadata does not say how arrays are packed.
    """

    def __init__(self, stored: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
        self._stored = stored
        self._packed: dict[str, tuple[int, tuple[int, ...], str]] = {}
        try:
            for name, about in parse_json(metadata.get(KEY, "{}")).items():
                bits, shape, dtype = about["bits"], tuple(about["shape"]), about["dtype"]
                sizes = all(type(n) is int and n >= 0 for n in shape)
                if type(bits) is not int or not 1 < bits < 8 or not sizes or name not in stored:
                    raise ValueError(f"{name!r} cannot be packed as {about}")
                if dtype not in ("int8", "uint8"):
                    raise ValueError(f"codes are not of {dtype!r}")
                self._packed[name] = bits, shape, dtype
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"the metadata {KEY!r} is damaged: {error}") from None

    def __getitem__(self, name: str) -> Array:
        array = self._stored[name]
        if name not in self._packed:
            return array
        try:
            return unpack(array, *self._packed[name])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array, which is not read from a checkpoint for it."""
        if name in self._packed:
            return self._packed[name][1]
        shape = getattr(self._stored, "shape", None)
        return tuple(self._stored[name].shape if shape is None else shape(name))

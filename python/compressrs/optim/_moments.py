"""Conversion of optimizer state between full and low precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from compressrs import _core
from compressrs._arrays import Array, dtype_of

#: Name, shape, dtype and initial value of a buffer.
Buffer: TypeAlias = tuple[str, tuple[int, ...], str, float]

#: Version of the 8-bit code format, recorded in state dicts and files; bump on any change.
CODES = {"version": _core.CODE_VERSION, "block_size": _core.CODE_BLOCK}

#: Suffix of the name of a buffer that holds the scales of 8-bit codes.
SCALE = "_scale"

#: Buffers of half-precision weights, which do not belong to a rule.
OF_WEIGHTS = ("compensation", "master")


def has_codes(state: Mapping[Any, Mapping[str, Array]]) -> bool:
    """Whether any parameter's state is stored in 8 bits."""
    return any(name.endswith(SCALE) for buffers in state.values() for name in buffers)


def narrowed(wanted: list[Buffer], values: Mapping[str, Array]) -> dict[str, Array]:
    """Return the buffers `wanted` with the given values, or their initial values if missing."""
    buffers: dict[str, Array] = {}
    for name, shape, dtype, initial in wanted:
        if name in buffers:  # scales, which are made with their codes
            continue
        value = values.get(name)
        if dtype in ("int8", "uint8"):
            codes = np.zeros(shape, dtype)
            scales = np.zeros(-(-codes.size // _core.CODE_BLOCK), np.float32)
            if value is None and initial:
                value = np.full(shape, initial, np.float32)
            if value is not None:
                single = np.ascontiguousarray(value, np.float32)
                _core.encode_state(single, codes, scales, name)
            buffers[name], buffers[name + SCALE] = codes, scales
        elif value is not None:
            buffers[name] = np.array(value, dtype_of(dtype), order="C")
        elif initial:
            buffers[name] = np.full(shape, initial, dtype_of(dtype))
        else:
            buffers[name] = np.zeros(shape, dtype_of(dtype))
    return buffers


def widened(buffers: Mapping[str, Array]) -> dict[str, Array]:
    """Return buffers in full precision: codes decoded, bfloat16 as float32."""
    values: dict[str, Array] = {}
    for name, array in buffers.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in buffers:
            continue
        if name + SCALE in buffers:
            values[name] = np.empty(array.shape, np.float32)
            codes, scales = np.ascontiguousarray(array), np.array(buffers[name + SCALE])
            _core.decode_state(codes, scales, values[name], name)
        elif array.dtype.name == "bfloat16":
            values[name] = array.astype(np.float32)
        else:
            values[name] = array
    return values

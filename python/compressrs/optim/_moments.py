"""State in few bytes: from full precision and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from compressrs import _core
from compressrs._arrays import Array, dtype_of

#: Name, shape, dtype and initial value of a buffer.
Buffer: TypeAlias = tuple[str, tuple[int, ...], str, float]

#: What 8-bit state is written in; stands in state dicts and files that hold some.
CODES = {"version": _core.CODE_VERSION, "block_size": _core.CODE_BLOCK}

#: What the name of a buffer of codes becomes for its scales.
SCALE = "_scale"

#: Buffers that belong to a weight in half precision, not to a rule.
OF_WEIGHTS = ("compensation", "master")


def has_codes(state: Mapping[Any, Mapping[str, Array]]) -> bool:
    """Whether a state, by index of the parameter, is in 8 bits somewhere."""
    return any(name.endswith(SCALE) for buffers in state.values() for name in buffers)


def narrowed(wanted: list[Buffer], values: Mapping[str, Array]) -> dict[str, Array]:
    """Return the buffers `wanted` with these values; the initial ones where there are none."""
    buffers: dict[str, Array] = {}
    for name, shape, dtype, initial in wanted:
        if name in buffers:  # scales, made with their codes
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

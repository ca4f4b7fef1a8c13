"""Weights of integers in plain checkpoints, which other programs quantized."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressrs._json import parse_json
from compressrs._paths import read_regular
from compressrs.checkpoint.reader import Checkpoint
from compressrs.quantize import QuantizedTensor, Scheme

#: What a layer's packed codes are named in formats of other programs.
PACKED = ("weight_packed", "qweight")

#: What a weight's scale is named beside it.
_SCALES = ("_scale", "_scale_inv")

#: What else would change the numbers that codes stand for.
_OTHERS = ("_zero_point", "_g_idx")

#: Of the weights, in the configuration of compressed-tensors, what must be as here.
_INT8 = {"num_bits": 8, "type": "int", "symmetric": True}


def scale_of(c: Checkpoint, weight: str) -> str | None:
    """Return the name of the scale that is stored beside a plain weight, if there is one."""
    return next((weight + s for s in _SCALES if weight + s in c), None)


def is_int_quantized(c: Checkpoint, weight: str) -> bool:
    """Whether a weight of int8 is one of compressed-tensors' format "int-quantized"."""
    if f"{weight}_scale" not in c or any(weight + other in c for other in _OTHERS):
        return False
    try:
        config = parse_json(read_regular(c.home(weight).path.parent / "config.json"))
        about = config["quantization_config"]
        groups = list(about["config_groups"].values())
        if about["quant_method"] != "compressed-tensors":
            return False
        return bool(groups) and all(
            (group.get("format") or about["format"]) == "int-quantized"
            and all(group["weights"].get(key) == value for key, value in _INT8.items())
            for group in groups
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        # No configuration, or one of another form, is none of this format.
        return False


def tensor(c: Checkpoint, weight: str, dtype: np.dtype[Any]) -> QuantizedTensor:
    """Return the codes and scales of a weight of format "int-quantized".

    Raises
    ------
    ValueError
        If there is not one positive scale for each row, or one for all.
    """
    name = f"{weight}_scale"
    scale = c[name].astype(np.float32)
    rows = c.shape(weight)[0]
    granularity = "tensor" if scale.size == 1 and rows != 1 else "channel"
    try:
        return QuantizedTensor(
            c[weight],
            scale.reshape(-1, 1),
            scheme=Scheme(bits=8, granularity=granularity),
            dtype=dtype,
        )
    except ValueError as error:
        raise ValueError(
            f"{name!r} must be of one scale for each row of {weight!r}, or one for all: {error}"
        ) from None


def refusal(c: Checkpoint, name: str) -> str:
    """Return why a tensor that is not of floats is made no layer, and what to do."""
    found = scale_of(c, name)
    scale = "a scale" if found is None else f"c[{found!r}]"
    return (
        f"{name!r} is of {c.dtype(name)}, whose elements may be codes for other numbers, in "
        "a format that is not read; if they are codes, make a "
        f"compressrs.quantize.QuantizedTensor of c[{name!r}] and {scale}, and of it a "
        "compressrs.nn.QuantizedLinear; if they are the numbers, make a compressrs.nn.Linear by "
        "from_arrays, of the array as float32"
    )

"""Layers and models of `compressrs.nn` in the form in which a checkpoint stores their weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressrs._arrays import Array
from compressrs.checkpoint import _coding
from compressrs.checkpoint.reader import Checkpoint
from compressrs.nn import Layer, Linear, QuantizedLinear, SparseLinear
from compressrs.quantize import QuantizedTensor


def linear(
    c: Checkpoint, weight: str, bias: str | None, dtype: np.dtype[Any] | None = None
) -> Layer:
    """Return the layer with a weight, quantized or sparse if it is stored so, else dense.

    `dtype` is that of the layer; by default that of the weight, or float32 if that is of
    16 bits.

    Raises
    ------
    KeyError, ValueError
        If there is no such weight or bias, it is no matrix or vector, or is damaged.
    """
    d = c.description(weight)
    if len(d.shape) != 2:
        raise ValueError(f"{weight!r} must be a matrix to be a layer's weight, got {d.shape}")
    if dtype is None:
        dtype = np.dtype(np.float64 if d.dtype == "F64" else np.float32)
    vector = None if bias is None else c[bias].astype(dtype)
    if d.coding in _coding.QUANTIZED:
        q = c.quantized(weight)
        q = QuantizedTensor(q.codes, q.scale, q.zero_point, scheme=q.scheme, dtype=dtype)
        scale = c.input_scale(weight)
        return QuantizedLinear(q, vector, input_scale=None if scale is None else _as(scale, dtype))
    if d.streams[:1] and d.streams[0] in _coding.POSITIONS:
        return SparseLinear(c.csr(weight).astype(dtype), vector)
    return Linear.from_arrays(c[weight].astype(dtype, copy=False), vector)


def is_stored_dense(c: Checkpoint, weight: str) -> bool:
    """Whether a weight is neither quantized nor sparse."""
    d = c.description(weight)
    return d.coding not in _coding.QUANTIZED and d.streams[:1] not in (("bits",), ("gaps",))


def _as(x: Array, dtype: np.dtype[Any]) -> Array:
    return np.asarray(x).astype(dtype)

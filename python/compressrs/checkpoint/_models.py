"""Layers and models of `compressrs.nn` in the form in which a checkpoint stores their weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressrs._arrays import Array
from compressrs.checkpoint import _coding, _integers, _quantized
from compressrs.checkpoint._format import FLOATS
from compressrs.checkpoint.reader import Checkpoint
from compressrs.nn import Layer, Linear, QuantizedLinear, QuantizedSparseLinear, SparseLinear
from compressrs.quantize import QuantizedTensor
from compressrs.quantize.sparse import QuantizedCSRMatrix, is_sparse_scheme

#: Dtypes of tensors that are numbers as they are.
_NUMBERS = (*FLOATS, "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")

_SUFFIX = ".weight"


def linear(
    c: Checkpoint, weight: str, bias: str | None, dtype: np.dtype[Any] | None = None
) -> Layer:
    """Return the layer with a weight, quantized or sparse if it is stored so, else dense.

    `dtype` is that of the layer; by default that of the weight, or float32 if that is of
    16 bits.

    Raises
    ------
    KeyError, ValueError
        If there is no such weight or bias, it is no matrix or vector, is of integers without a
        scale that is read, or is damaged.
    """
    d = c.description(_present(c, weight))
    if len(d.shape) != 2:
        raise ValueError(f"{weight!r} must be a matrix to be a layer's weight, got {d.shape}")
    if dtype is None:
        dtype = np.dtype(np.float64 if d.dtype == "F64" else np.float32)
    vector = None if bias is None else _vector(c, bias).astype(dtype)
    if d.dtype not in _NUMBERS or (found := _integers.scale_of(c, weight)) is not None:
        if d.dtype == "I8" and _integers.is_int_quantized(c, weight):
            return QuantizedLinear(_integers.tensor(c, weight, dtype), vector)
        if d.dtype not in _NUMBERS:
            raise ValueError(_integers.refusal(c, weight))
        raise ValueError(
            f"{weight!r} is of {d.dtype} with the scale {found!r}, in a format that is not read; "
            f"scale c[{weight!r}] yourself and make a compressrs.nn.Linear of it by from_arrays"
        )
    if d.coding in _coding.QUANTIZED:
        scale = c.input_scale(weight)
        if scale is None and dtype == np.float32 and _is_sparse(d):
            sparse = _sparse(c, weight)
            # Beyond this share, codes alone take less than codes with indices.
            if sparse.nbytes < d.size * sparse.scheme.bits // 8 + sparse.scale.nbytes:
                return QuantizedSparseLinear(sparse, vector)
        q = c.quantized(weight)
        q = QuantizedTensor(q.codes, q.scale, q.zero_point, scheme=q.scheme, dtype=dtype)
        return QuantizedLinear(q, vector, input_scale=None if scale is None else _as(scale, dtype))
    if _has_positions(d):
        return SparseLinear(c.csr(weight).astype(dtype), vector)
    return Linear.from_arrays(c[weight].astype(dtype, copy=False), vector)


def is_stored_dense(c: Checkpoint, weight: str) -> bool:
    """Whether a weight is neither quantized nor sparse."""
    d = c.description(weight)
    return d.coding not in _coding.QUANTIZED and not _has_positions(d)


def _has_positions(d: _coding.Description) -> bool:
    return bool(d.streams) and d.streams[0] in _coding.POSITIONS


def _is_sparse(d: _coding.Description) -> bool:
    """Whether a quantized weight is stored sparse, with scales that a sparse matrix can have."""
    scheme = _quantized.scheme(d.options)
    return _has_positions(d) and scheme.granularity == "channel" and is_sparse_scheme(scheme)


def _sparse(c: Checkpoint, weight: str) -> QuantizedCSRMatrix:
    """Return the codes of a weight that are not 0, which are read tile by tile."""
    d = c.description(weight)
    codes, indices = [np.empty(0, np.int8)], [np.empty(0, np.int32)]
    scales, counts = [np.empty(0, np.float32)], [np.zeros(1, np.int64)]
    for tile in c._quantized_tiles(weight):
        rows, columns = np.nonzero(tile.codes)
        codes.append(tile.codes[rows, columns])
        indices.append(columns.astype(np.int32))
        scales.append(tile.scale[:, 0])
        counts.append(np.bincount(rows, minlength=len(tile.codes)))
    values, scale, at = (np.concatenate(parts) for parts in (codes, scales, indices))
    offsets = np.cumsum(np.concatenate(counts))
    shape = d.shape[0], d.shape[1]
    return QuantizedCSRMatrix((values, scale, at, offsets), shape, _quantized.scheme(d.options))


def _present(c: Checkpoint, weight: str) -> str:
    """Return the name of a weight, or raise a KeyError that says where it is instead."""
    if weight in c:
        return weight
    name = weight.removesuffix(_SUFFIX)
    if name.endswith(_SUFFIX) and name in c:
        raise KeyError(
            f"no tensor {weight!r} in {c.files.path}: name the layer, "
            f"{name.removesuffix(_SUFFIX)!r}, without {_SUFFIX!r}"
        )
    for packed in _integers.PACKED:
        if f"{name}.{packed}" in c:
            raise KeyError(
                f"no tensor {weight!r} in {c.files.path}: the weight is packed, as "
                f"{name + '.' + packed!r}, in a format of codes that is not read; use the "
                "checkpoint that it was made of"
            )
    return weight


def _vector(c: Checkpoint, bias: str) -> Array:
    """Return a bias, which must be of floats."""
    if c.dtype(bias) not in _NUMBERS:
        raise ValueError(_integers.refusal(c, bias))
    return c[bias]


def _as(x: Array, dtype: np.dtype[Any]) -> Array:
    return np.asarray(x).astype(dtype)

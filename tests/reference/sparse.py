"""Sparse products as loops over the stored entries."""

import numpy as np


def entries(data, indices, indptr):
    """Yield row, column (of blocks, if data has them) and value of each entry."""
    for row in range(len(indptr) - 1):
        for p in range(indptr[row], indptr[row + 1]):
            yield row, indices[p], data[p]


def to_dense(data, indices, indptr, shape):
    dense = np.zeros(shape, data.dtype)
    for row, column, value in entries(data, indices, indptr):
        value = np.atleast_2d(value)
        r, c = value.shape
        dense[row * r : (row + 1) * r, column * c : (column + 1) * c] += value
    return dense


def matmul(dense, x, y=0.0, bias=None, relu=False):
    """Return a product with its epilogue in double precision."""
    result = dense.astype(np.float64) @ x.astype(np.float64) + y
    if bias is not None:
        result = result + (bias[:, None] if result.ndim == 2 else bias)
    return np.maximum(result, 0) if relu else result


def sddmm(data, indices, indptr, u, v):
    full = u.astype(np.float64) @ v.astype(np.float64)
    out = np.empty(data.shape)
    r, c = data.shape[1:] or (1, 1)
    for p, (row, column, _) in enumerate(entries(data, indices, indptr)):
        block = full[row * r : (row + 1) * r, column * c : (column + 1) * c]
        out[p] = block if data.ndim == 3 else block[0, 0]
    return out

"""Many arrays as one vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from compressrs._arrays import Array


def joined(arrays: Sequence[Array], dtype: np.dtype[Any]) -> Array:
    """Return the elements of all arrays as one vector of a dtype."""
    return np.concatenate([np.zeros(0, dtype), *(a.reshape(-1).astype(dtype) for a in arrays)])


def parts_of(vector: Array, arrays: Sequence[Array]) -> list[Array]:
    """Return views of a vector with the shapes of arrays."""
    parts, start = [], 0
    for array in arrays:
        parts.append(vector[start : start + array.size].reshape(array.shape))
        start += array.size
    return parts

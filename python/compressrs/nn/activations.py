"""Activation functions as layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressrs._arrays import Array, as_array
from compressrs.nn.layer import Copyable


class ReLU(Copyable):
    """The larger of the input and 0; NaN stays NaN."""

    _of_batch = ("_y",)

    def __init__(self) -> None:
        self.params: dict[str, Any] = {}
        self.grads: dict[str, Any] = {}
        self._y: Array | None = None

    def forward(self, x: Array) -> Array:
        """Return ``max(x, 0)``."""
        x = as_array(x, "x")
        if x.dtype.kind != "f":
            raise TypeError(f"x must have a floating-point dtype, got {x.dtype}")
        self._y = np.asarray(np.maximum(x, 0))
        return self._y

    __call__ = forward

    def backward(self, dy: Array) -> Array:
        """Return `dy` where the input was positive, else 0."""
        dy = as_array(dy, "dy")
        if self._y is None:
            raise RuntimeError("backward needs a forward before it")
        if dy.shape != self._y.shape:
            raise ValueError(f"dy must have shape {self._y.shape}, got {dy.shape}")
        if dy.dtype != self._y.dtype:
            raise TypeError(f"dy must have dtype {self._y.dtype} like the input, got {dy.dtype}")
        return np.where(self._y > 0, dy, dy.dtype.type(0))

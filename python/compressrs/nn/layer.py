"""What all layers have in common."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np

from compressrs._arrays import Array

#: A seed, a generator, or None for one that differs from run to run.
RandomState: TypeAlias = int | np.random.Generator | None


class Layer(Protocol):
    """What `Sequential` strings together."""

    params: dict[str, Any]
    grads: dict[str, Any]

    def forward(self, x: Array) -> Array:
        """Return the output for a batch of rows."""

    def backward(self, dy: Array) -> Array:
        """Return the gradient with respect to the last input."""

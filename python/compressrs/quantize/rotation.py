"""Rotations that spread outliers over all inputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs._arrays import Array, as_array
from compressrs._checks import generator, whole
from compressrs._state import Described
from compressrs.nn.layer import RandomState


class HadamardRotation(Described):
    r"""An orthogonal matrix :math:`R` that is applied in :math:`O(n \log n)`.

    :math:`R = H D / \sqrt{m}`: `D` random signs, `H` Hadamard matrices of size `m`, the largest
    power of 2 that divides `n`, along the diagonal. Since :math:`x W^\top = (x R^\top)(W
    R^\top)^\top`, weights and inputs are rotated, outputs stay; a value much larger than others
    becomes `m` values of :math:`1 / \sqrt{m}` of it, which few bits represent better.

    Parameters
    ----------
    n : int
        Inputs of the layer.
    rng : seed or generator, optional
        Of the signs.

    Attributes
    ----------
    signs : array of int8, shape (n,)

    Raises
    ------
    TypeError, ValueError
        If `n` is not an integer of at least 1.

    References
    ----------
    Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", arXiv 2404.00456.

    Examples
    --------
    >>> import numpy as np
    >>> from compressrs.quantize import HadamardRotation
    >>> rotation = HadamardRotation(4, rng=0)
    >>> x = np.array([[8.0, 0.0, 0.0, 0.0]])
    >>> np.abs(rotation(x))
    array([[4., 4., 4., 4.]])
    >>> np.allclose(rotation.inverse(rotation(x)), x)
    True
    """

    def __init__(self, n: int, *, rng: RandomState = None) -> None:
        n = whole(n, "n", 1, 1 << 40)
        signs = generator(rng).integers(0, 2, n) * 2 - 1
        self.signs = signs.astype(np.int8)

    @property
    def size(self) -> int:
        """The size of the Hadamard matrices."""
        n = len(self.signs)
        return n & -n

    def __call__(self, x: Array) -> npt.NDArray[Any]:
        r"""Return :math:`x R^\top` for rows `x` of shape (..., n), in a new array.

        Raises
        ------
        TypeError, ValueError
            If `x` is not float32 or float64 of that shape.
        """
        x = self._checked(x)
        return self._transform(x * self.signs.astype(x.dtype))

    def inverse(self, x: Array) -> npt.NDArray[Any]:
        """Return :math:`x R`, which undoes the rotation."""
        x = self._checked(x)
        result: npt.NDArray[Any] = self._transform(x.copy()) * self.signs.astype(x.dtype)
        return result

    def _checked(self, x: Array) -> npt.NDArray[Any]:
        x = as_array(x, "x")
        if x.dtype not in (np.float32, np.float64):
            raise TypeError(f"x must have dtype float32 or float64, got {x.dtype}")
        if x.ndim < 1 or x.shape[-1] != len(self.signs):
            raise ValueError(f"x must have shape (..., {len(self.signs)}), got {x.shape}")
        return x

    def _transform(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Multiply by the Hadamard matrices, by sums and differences, which overwrites `x`."""
        shape, size = x.shape, self.size
        half = 1
        while half < size:
            pairs = x.reshape(-1, 2, half)
            x = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1)
            half *= 2
        x = x.reshape(shape)
        x *= x.dtype.type(1 / math.sqrt(size))
        return x

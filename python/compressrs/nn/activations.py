"""Activation functions and dropout."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from compressrs import _core
from compressrs._arrays import Array, as_array
from compressrs._checks import choice, generator, number
from compressrs.distill.probabilities import softmax
from compressrs.nn.layer import Layer, RandomState, check_gradient, check_input


class ReLU(Layer):
    r"""The rectified linear unit, :math:`\max(x, 0)`; NaN is propagated."""

    def forward(self, x: Array) -> Array:
        """Return ``max(x, 0)``."""
        x = as_array(x, "x")
        if x.dtype.kind != "f":
            raise TypeError(f"x must have a floating-point dtype, got {x.dtype}")
        y = np.asarray(np.maximum(x, 0))
        # Not `y` itself, which the caller may change.
        self._keep(y > 0, y.dtype) if self.training else self._keep()
        return y

    def backward(self, dy: Array) -> Array:
        """Return `dy` where the input was positive, else 0."""
        positive, dtype = self._kept()
        dy = check_gradient(dy, positive.shape, dtype)
        return np.where(positive, dy, dtype.type(0))


class _Elementwise(Layer):
    """Base class of activation functions that the core computes."""

    _of: str

    def forward(self, x: Array) -> Array:
        """Return the activation of each element, in float32 or float64."""
        x = check_input(x, "x")
        y = np.empty(x.shape, x.dtype)
        _core.activate(self._of, x, y)
        self._keep(x)
        return y

    def backward(self, dy: Array) -> Array:
        """Return `dy` times the derivative."""
        (x,) = self._kept()
        dy = check_gradient(dy, x.shape, x.dtype)
        dx = np.empty(x.shape, x.dtype)
        _core.activate_backward(self._of, x, dy, dx)
        return dx


class GELU(_Elementwise):
    r"""The Gaussian error linear unit, :math:`x \Phi(x)`.

    Parameters
    ----------
    approximate : {"none", "tanh"}, default "none"
        Whether :math:`\Phi` is the normal distribution function or its approximation
        :math:`(1 + \tanh(\sqrt{2 / \pi} (x + 0.044715 x^3))) / 2`.

    References
    ----------
    Hendrycks & Gimpel, "Gaussian Error Linear Units", arXiv 1606.08415.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> cr.nn.GELU()(np.array([-1.0, 0.0, 1.0])).round(4)
    array([-0.1587,  0.    ,  0.8413])
    """

    def __init__(self, approximate: Literal["none", "tanh"] = "none") -> None:
        super().__init__()
        self.approximate = choice(approximate, "approximate", ("none", "tanh"))
        self._of = "gelu" if self.approximate == "none" else "gelu_tanh"

    def config(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {"approximate": self.approximate}


class SiLU(_Elementwise):
    r"""The sigmoid linear unit, :math:`x / (1 + e^{-x})`.

    References
    ----------
    Elfwing, Uchibe & Doya, "Sigmoid-weighted linear units", arXiv 1702.03118.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> cr.nn.SiLU()(np.array([-1.0, 0.0, 1.0])).round(4)
    array([-0.2689,  0.    ,  0.7311])
    """

    _of = "silu"


class Softmax(Layer):
    r"""Softmax along the last axis, :math:`y_j = e^{x_j} / \sum_k e^{x_k}`.

    Not needed before `compressrs.nn.cross_entropy`, which takes logits.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> cr.nn.Softmax()(np.array([[0.0, 0.0]]))
    array([[0.5, 0.5]])
    """

    def forward(self, x: Array) -> Array:
        """Return the probabilities of each row."""
        x = check_input(x, "x")
        if x.ndim == 0:
            raise ValueError("x must have at least one axis, got none")
        y = np.asarray(softmax(x))
        # A copy, since the caller may change `y`.
        self._keep(y.copy() if self.training else y)
        return y

    def backward(self, dy: Array) -> Array:
        """Return the gradient with respect to the logits."""
        (y,) = self._kept()
        dy = check_gradient(dy, y.shape, y.dtype)
        dx = np.empty(y.shape, y.dtype)
        _core.softmax_backward(y, dy, dx)
        return dx


class Dropout(Layer):
    r"""Dropout: in training, each element becomes 0 with probability :math:`p`.

    The random numbers depend on the seed and on the number of calls in training. Both are
    buffers, so that a resumed run drops the same elements.

    Parameters
    ----------
    p : float, default 0.5
        In [0, 1). The remaining elements are scaled by :math:`1 / (1 - p)`.
    rng : int, Generator or None
        Seed, or generator that draws it.

    References
    ----------
    Srivastava et al., "Dropout", JMLR 15, 2014.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> layer = cr.nn.Dropout(0.5, rng=0)
    >>> bool(np.isin(layer(np.ones((2, 3), np.float32)), [0, 2]).all())
    True
    >>> layer.eval()(np.ones((1, 3), np.float32))
    array([[1., 1., 1.]], dtype=float32)
    """

    def __init__(self, p: float = 0.5, *, rng: RandomState = None) -> None:
        super().__init__()
        self.p = number(p, "p", 0, below=1)
        seed = generator(rng).integers(2**63 - 1)
        self.buffers["seed"] = np.array(seed, np.int64)
        self.buffers["calls"] = np.zeros((), np.int64)

    def forward(self, x: Array) -> Array:
        """Return `x` with dropped elements; in evaluation, `x` itself."""
        x = check_input(x, "x")
        if not self.training:
            return x
        key = [int(self.buffers["seed"]), int(self.buffers["calls"])]
        self.buffers["calls"][...] += 1
        keep = np.random.default_rng(key).random(x.shape, np.float32) >= self.p
        factor = keep * x.dtype.type(1 / (1 - self.p))
        self._keep(factor)
        y: Array = x * factor
        return y

    def backward(self, dy: Array) -> Array:
        """Return `dy` with the same elements dropped and the others scaled."""
        (factor,) = self._kept()
        dx: Array = check_gradient(dy, factor.shape, factor.dtype) * factor
        return dx

    def config(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {"p": self.p}

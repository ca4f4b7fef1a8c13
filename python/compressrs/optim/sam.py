"""Sharpness-aware minimization."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from compressrs import _core
from compressrs._arrays import Array, ArrayTree, compute_dtype, flatten_like
from compressrs._checks import flag, function, positive
from compressrs._state import Stateful, Take, Undo, require_keys, restoring
from compressrs.optim._closure import Closure, evaluated, gradient_of
from compressrs.optim._dicts import frozen_parameters
from compressrs.optim._guard import Guarded
from compressrs.optim._weights import unpacked
from compressrs.optim.base import Optimizer


class SAM(Guarded, Stateful):
    r"""Sharpness-aware minimization: the gradient at the worst point nearby.

    .. math::
        \epsilon &= \rho \, \frac{T^2 g(\theta)}{\|T g(\theta)\|_2}, \quad
        T = 1 \text{, or } |\theta| \text{ if adaptive} \\
        \theta &\leftarrow \text{the optimizer's step with } g(\theta + \epsilon)

    Each step takes two gradients, so it costs twice the time; it pays where a model overfits:
    vision without much data, fine-tuning, noisy labels. It does not where training is short of
    time or the loss is still far from its end.

    Parameters
    ----------
    optimizer : Optimizer
        Takes the step; usually `SGD` with momentum, or `AdamW`.
    rho : float, default 0.05
        :math:`\rho > 0`. About 10 times as much if `adaptive`.
    adaptive : bool, default False
        Scale the neighbourhood by the size of each weight (ASAM), so that the result does not
        depend on how weights are scaled between layers. Biases, which are 0 at first, then
        hardly move.

    Raises
    ------
    TypeError
        If `optimizer` is not an `Optimizer`.
    ValueError
        If `rho` is out of range.

    References
    ----------
    Foret et al., "Sharpness-aware minimization for efficiently improving generalization",
    arXiv 2010.01412, algorithm 1; Kwon et al., "ASAM", arXiv 2102.11600.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.array([1.0, -2.0])
    >>> opt = cr.optim.SAM(cr.optim.SGD(w, lr=0.1), rho=0.5)
    >>> for _ in range(60):
    ...     loss = opt.step(lambda: (float(w @ w), 2 * w))
    >>> bool(np.abs(w).max() < 0.2)
    True
    """

    def __init__(self, optimizer: Optimizer, rho: float = 0.05, *, adaptive: bool = False) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be an Optimizer, got {type(optimizer).__name__}")
        super().__init__()
        self.rho = positive(rho, "rho")
        self.adaptive = flag(adaptive, "adaptive")
        self.optimizer = optimizer

    def step(self, closure: Closure, **kwargs: Any) -> float:
        """Take a step of the optimizer with the gradients at the worst point nearby.

        Parameters
        ----------
        closure : callable
            ``closure()`` returns the loss and the gradients of the same batch at the current
            parameters, in the structure of these, and must not change them. It is called twice.
        **kwargs
            Those of `Optimizer.step`.

        Returns
        -------
        float
            The loss before the step.

        Raises
        ------
        TypeError
            If the closure does not return a loss and gradients.
        ValueError
            If the closure changes a parameter, and as `Optimizer.step`. After any exception, of
            the closure as well, all parameters and states are as before.
        """
        function(closure, "closure")
        with self._changing("step"), self.optimizer._together("step"):
            arrays, names = self.optimizer._arrays(), self.optimizer._names
            with restoring() as undo:
                undo.remember(*arrays)
                loss, grads = evaluated(closure, arrays, names)
                self._climb(arrays, grads)
                _, grads = evaluated(closure, arrays, names)
            self.optimizer.step(grads, **kwargs)
            return loss

    def _climb(self, arrays: list[Array], grads: ArrayTree) -> None:
        """Move the parameters to where the loss is largest nearby, to first order."""
        optimizer = self.optimizer
        flat = flatten_like(optimizer._structure, grads, "grads")
        frozen = frozen_parameters(optimizer.param_groups)
        scaled: dict[int, Array] = {}
        for i, (w, leaf) in enumerate(zip(arrays, flat, strict=True)):
            if leaf is None or frozen[i]:
                continue
            given = gradient_of(w, leaf, optimizer._names[i], is_complex=i in optimizer._complex)
            g = np.array(given, compute_dtype(w.dtype))
            bits = optimizer._masks[i]
            if bits is not None:
                _core.apply_mask(g, unpacked(bits, w.shape), optimizer._names[i])
            scaled[i] = g
        exponent = _exponent(scaled.values())
        for i, g in scaled.items():
            # Products and norm neither overflow nor vanish, whatever the scale of the gradients.
            scaled[i] = np.ldexp(g, -exponent) * self._sizes(i, arrays[i])
        names = [f"the gradient of {optimizer._names[i]}" for i in scaled]
        norm = _core.norm([*scaled.values()], names, 2.0, math.inf)[0] if scaled else 0.0
        if norm > 0 and math.isfinite(norm):
            for i, g in scaled.items():
                move = self.rho * (g / g.dtype.type(norm)) * self._sizes(i, arrays[i])
                arrays[i] += move.astype(arrays[i].dtype)

    def _sizes(self, i: int, w: Array) -> Array | float:
        """Return T for parameter `i`; of complex numbers, the magnitude for both parts."""
        if not self.adaptive:
            return 1.0
        if i in self.optimizer._complex:
            with np.errstate(over="ignore"):  # the norm is then infinite, too
                magnitudes: Array = np.hypot(w[..., :1], w[..., 1:])
            return magnitudes
        sizes: Array = np.abs(w.astype(compute_dtype(w.dtype)))
        return sizes

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state dict."""
        with self._reading("state_dict"):
            return {"optimizer": self.optimizer.state_dict()}

    def _checked(self, state_dict: Mapping[str, Any]) -> Take:
        require_keys(state_dict, ("optimizer",))
        take_optimizer = self.optimizer._checked(state_dict["optimizer"])

        def take(undo: Undo) -> None:
            with self._changing("load_state_dict"):
                take_optimizer(undo)

        return take


def _exponent(arrays: Iterable[Array]) -> int:
    """Return the power of 2 of the largest element, within the range of the types."""
    largest, limit = 0.0, 1022
    for array in arrays:
        largest = max(largest, float(np.abs(array).max(initial=0)))
        limit = min(limit, int(np.finfo(array.dtype).maxexp) - 2)
    if not math.isfinite(largest):
        return 0
    return max(-limit, min(limit, math.frexp(largest)[1]))

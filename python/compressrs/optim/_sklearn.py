"""Adapters to the optimizer interface of scikit-learn's MLP. Requires scikit-learn."""

from __future__ import annotations

from typing import Any

from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer

from compressrs._arrays import Array
from compressrs.optim.adam import Adam
from compressrs.optim.momentum import Momentum


class MLPAdam(AdamOptimizer):  # type: ignore[misc]
    """Adam; scikit-learn adds its epsilon before the bias correction."""

    def __init__(self, params: list[Array], *args: Any, **kwargs: Any) -> None:
        super().__init__([], *args, **kwargs)
        betas = (self.beta_1, self.beta_2)
        self._ours = Adam(params, self.learning_rate_init, betas, self.epsilon)

    def update_params(self, params: list[Array], grads: list[Array]) -> None:
        """Update the parameters in place."""
        self.t += 1
        correction = (1 - self.beta_2**self.t) ** 0.5
        self._ours.param_groups[0]["eps"] = self.epsilon / correction
        self._ours.step(_like(grads, params))


class MLPMomentum(SGDOptimizer):  # type: ignore[misc]
    """Classical momentum with a learning rate that may change."""

    def __init__(self, params: list[Array], *args: Any, **kwargs: Any) -> None:
        super().__init__([], *args, **kwargs)
        rate = self.learning_rate_init
        self._ours = Momentum(params, rate, self.momentum, nesterov=self.nesterov)

    def update_params(self, params: list[Array], grads: list[Array]) -> None:
        """Update the parameters in place."""
        self._ours.param_groups[0]["lr"] = self.learning_rate
        self._ours.step(_like(grads, params))


def _like(grads: list[Array], params: list[Array]) -> list[Array]:
    """Return the gradients in the parameters' dtype; they may be float64 for float32."""
    return [g.astype(p.dtype, copy=False) for g, p in zip(grads, params, strict=True)]

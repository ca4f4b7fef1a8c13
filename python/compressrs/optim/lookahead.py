"""The Lookahead wrapper: slow weights that follow fast weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressrs import _core
from compressrs._arrays import Array, ArrayTree, compute_dtype, same_memory
from compressrs._checks import share, whole
from compressrs._state import Stateful, Take, Undo, require_keys
from compressrs.optim._guard import Guarded
from compressrs.optim._weights import Weights
from compressrs.optim.base import Optimizer
from compressrs.optim.ema import assign, checked_arrays


def _other(a: Array, b: Array) -> bool:
    return not same_memory(a, b)


class Lookahead(Guarded, Stateful):
    r"""Lookahead: k steps of an optimizer, then an interpolation back to slow weights.

    After every `k` steps of the optimizer on the weights :math:`\theta`,

    .. math:: \phi \leftarrow \phi + \alpha (\theta - \phi), \quad \theta \leftarrow \phi

    Parameters
    ----------
    optimizer : Optimizer
    k : int, default 5
        Steps between synchronizations, at least 1.
    alpha : float, default 0.5
        :math:`\alpha` in [0, 1].

    Raises
    ------
    TypeError
        If `optimizer` is not an `Optimizer` or `k` is not an integer.
    ValueError
        If a number is out of range.

    References
    ----------
    Zhang, Lucas, Hinton & Ba, "Lookahead optimizer: k steps forward, 1 step back",
    arXiv 1907.08610, algorithm 1.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.zeros(1)
    >>> opt = cr.optim.Lookahead(cr.optim.SGD(w, lr=1.0), k=2)
    >>> for _ in range(2):
    ...     _ = opt.step(np.ones(1))
    >>> w
    array([-1.])
    """

    def __init__(self, optimizer: Optimizer, k: int = 5, alpha: float = 0.5) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be an Optimizer, got {type(optimizer).__name__}")
        super().__init__()
        self.k = whole(k, "k", 1)
        self.alpha = share(alpha, "alpha")
        self.optimizer = optimizer
        self.step_count = 0
        self._slow: list[Array] = []
        self._shared = Weights("Lookahead", [], [])
        self._follow()

    def _follow(self, *, loading: bool = False) -> None:
        """Add slow weights for new parameters; raise if known parameters were replaced."""
        self._shared.require_unchanged(loading=loading)
        arrays = self.optimizer._arrays()
        known = len(self._slow)
        if any(map(_other, self._shared.arrays, arrays)):
            raise ValueError(
                "the optimizer has other parameters than the Lookahead was made with (it was "
                "loaded by pickle, or they were replaced); make a new Lookahead"
            )
        if len(arrays) > known:
            self._slow += [w.astype(compute_dtype(w.dtype)) for w in arrays[known:]]
            views = self.optimizer._views()
            self._shared = Weights("Lookahead", views.names, views, (self._slow,))

    def step(self, grads: ArrayTree, **kwargs: Any) -> float | None:
        """Take a step of the optimizer, and synchronize after every `k` steps.

        Parameters, result and errors are those of `Optimizer.step`.
        """
        with self._changing("step"):
            self._follow()
            norm = self.optimizer.step(grads, **kwargs)
            self.step_count += 1
            if self.step_count % self.k == 0:
                fast, names = self._shared.arrays, self._shared.names
                slow_names = [f"the slow weights of {name}" for name in names]
                _core.lerp(self._slow, slow_names, fast, names, self.alpha)
                self._shared.apply_masks(self._slow)
                self._shared.assign(self._slow)
            return norm

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state dict, the slow weights and the number of steps."""
        with self._reading("state_dict"):
            return {
                "optimizer": self.optimizer.state_dict(),
                "slow": list(self._slow),
                "param_names": list(self._shared.names),
                "step_count": self.step_count,
            }

    def _checked(self, state_dict: Mapping[str, Any]) -> Take:
        require_keys(state_dict, ("optimizer", "slow", "step_count"), ("param_names",))
        self._follow(loading=True)
        slow, step_count = checked_arrays(self._slow, state_dict, "slow", self._shared.names)
        take_optimizer = self.optimizer._checked(state_dict["optimizer"])

        def take(undo: Undo) -> None:
            with self._changing("load_state_dict"):
                undo.remember_attributes(self, without=("_doing",))
                take_optimizer(undo)
                assign(self._slow, slow, undo)
                self._shared.state_loaded(undo)
                self._shared.apply_masks(self._slow)
                self.step_count = step_count

        return take

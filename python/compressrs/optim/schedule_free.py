"""Schedule-free training: averaging instead of a learning-rate schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from compressrs import _core
from compressrs._arrays import ArrayTree, compute_dtype, rebuild, require_in_place, same_memory
from compressrs._checks import function, number
from compressrs._state import Stateful, Take, Undo, require_keys
from compressrs.optim._complex import ParameterViews, named_parameters
from compressrs.optim._guard import Guarded
from compressrs.optim._weights import Weights
from compressrs.optim.base import Optimizer
from compressrs.optim.ema import assign, checked_arrays


class ScheduleFree(Guarded, Stateful):
    r"""Schedule-Free wrapper around an optimizer, which then needs no learning-rate schedule.

    .. math::
        z &\leftarrow \text{the optimizer's step on } z \text{ with the gradient at } y \\
        x &\leftarrow x + c_t (z - x), \quad
        c_t = \frac{w_t}{\sum_{i \le t} w_i}, \quad w_t = (\max_{i \le t} \gamma_i)^r \\
        y &\leftarrow \beta x + (1 - \beta) z

    During training the parameters hold :math:`y`, at which gradients are evaluated; `eval`
    sets them to the average :math:`x`, the model to use, and `train` sets them back.

    Parameters
    ----------
    params : array, or list or nested dict of arrays
        float32, float64, float16, bfloat16, complex64 or complex128, C-contiguous and writable.
    make : callable
        Given the arrays :math:`z` in the structure of `params`, returns the optimizer
        that trains them. It should not use momentum: for example ``SGD``, or ``Adam``
        with ``betas=(0, 0.999)``.
    momentum : float, default 0.9
        :math:`\beta` in [0, 1).
    weight_lr_power : float, default 2.0
        :math:`r \ge 0`.

    Attributes
    ----------
    optimizer : Optimizer
        The optimizer that `make` returned.

    Raises
    ------
    TypeError
        If a parameter is not such an array, or `make` does not return an Optimizer.
    ValueError
        If a number is out of range, or an array cannot be changed in place.

    References
    ----------
    Defazio et al., "The road less scheduled", arXiv 2405.15682, equations 2 to 4.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.array([1.0])
    >>> opt = cr.optim.ScheduleFree(w, lambda z: cr.optim.SGD(z, lr=0.5))
    >>> for _ in range(20):
    ...     _ = opt.step(2 * w)
    >>> opt.eval()
    >>> bool(abs(w[0]) < 0.1)
    True
    """

    def __init__(
        self,
        params: ArrayTree,
        make: Callable[[ArrayTree], Optimizer],
        momentum: float = 0.9,
        weight_lr_power: float = 2.0,
    ) -> None:
        self.momentum = number(momentum, "momentum", 0, below=1)
        self.weight_lr_power = number(weight_lr_power, "weight_lr_power", 0)
        function(make, "make")
        super().__init__()
        self._names, self._weights = named_parameters(params, "params")
        require_in_place(self._weights, self._names)
        # In the compute dtype, so that small updates are not lost.
        self._x = [w.astype(compute_dtype(w.dtype)) for w in self._weights]
        self._z_names = [f"z of {name}" for name in self._names]
        copies = self._weights.originals([x.copy() for x in self._x])
        self._z = ParameterViews(copies, self._z_names)
        self._x_names = [f"the average of {name}" for name in self._names]
        # Masks may be set for the parameters and for z, and apply to both sequences.
        followers = self._x, self._z, self._weights
        self._shared = Weights("ScheduleFree", self._names, self._weights, followers)
        self._of_z = Weights("ScheduleFree", self._z_names, self._z, followers)
        self.optimizer = make(rebuild(params, iter(copies)))
        if not isinstance(self.optimizer, Optimizer):
            raise TypeError(f"make must return an Optimizer, got {type(self.optimizer).__name__}")
        self.step_count = 0
        self._largest_lr = 0.0
        self._weight_sum = 0.0
        self._training = True

    def step(self, grads: ArrayTree, **kwargs: Any) -> float | None:
        """Take a step with the gradients at the current parameters.

        Parameters, result and errors are those of `Optimizer.step`.

        Raises
        ------
        RuntimeError
            If the parameters hold the average: call `train` first.
        """
        if not self._training:
            raise RuntimeError("the parameters hold the average; call train() before step()")
        with self._changing("step"):
            self._require_unchanged()
            return self._step(grads, **kwargs)

    def _require_unchanged(self, *, loading: bool = False) -> None:
        self._shared.require_unchanged(loading=loading)
        arrays = self.optimizer._arrays()
        if len(arrays) != len(self._z) or any(
            not same_memory(a, b) for a, b in zip(arrays, self._z, strict=True)
        ):
            raise ValueError(
                "the optimizer has other parameters than the ScheduleFree was made with; make a "
                "new ScheduleFree"
            )

    def _step(self, grads: ArrayTree, **kwargs: Any) -> float | None:
        norm = self.optimizer.step(grads, **kwargs)
        self.step_count += 1
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._largest_lr = max(self._largest_lr, *rates)
        weight = self._largest_lr**self.weight_lr_power
        self._weight_sum += weight
        share = weight / self._weight_sum if self._weight_sum else 0.0
        _core.lerp(self._x, self._x_names, self._z, self._z_names, share)
        self._set_y()
        return norm

    def eval(self) -> None:
        """Set the parameters to the average, for evaluation."""
        if self._training:
            with self._changing("eval"):
                self._require_unchanged()
                self._apply_masks()
                self._shared.assign(self._x)
                self._training = False

    def train(self) -> None:
        """Set the parameters to the point at which gradients are evaluated, for training."""
        if not self._training:
            with self._changing("train"):
                self._require_unchanged()
                self._set_y()
                self._training = True

    def _set_y(self) -> None:
        self._apply_masks()
        self._shared.assign(self._x)
        _core.lerp(self._weights, self._names, self._z, self._z_names, 1 - self.momentum)

    def _apply_masks(self) -> None:
        """Set masked elements to 0 in both sequences; masks on either of them count too."""
        for weights in (self._shared, self._of_z):
            weights.apply_masks(self._x)
            weights.apply_masks(self._z)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state dict, both sequences (not copied), and the weights."""
        with self._reading("state_dict"):
            return {
                "optimizer": self.optimizer.state_dict(),
                "x": list(self._x),
                "z": list(self._z),
                "param_names": list(self._names),
                "step_count": self.step_count,
                "largest_lr": self._largest_lr,
                "weight_sum": self._weight_sum,
            }

    def _checked(self, state_dict: Mapping[str, Any]) -> Take:
        keys = ("optimizer", "x", "z", "step_count", "largest_lr", "weight_sum")
        require_keys(state_dict, keys, ("param_names",))
        largest = number(state_dict["largest_lr"], "state_dict['largest_lr']", 0)
        total = number(state_dict["weight_sum"], "state_dict['weight_sum']", 0)
        self._require_unchanged(loading=True)
        x, step_count = checked_arrays(self._x, state_dict, "x", self._names)
        z, _ = checked_arrays(self._z, state_dict, "z", self._names)
        take_optimizer = self.optimizer._checked(state_dict["optimizer"])

        def take(undo: Undo) -> None:
            undo.remember_attributes(self, without=("_doing",))
            undo.remember(*self._weights)
            with self._changing("load_state_dict"):
                take_optimizer(undo)
                assign(self._x, x, undo)
                assign(self._z, z, undo)
                self._shared.state_loaded(undo)
                self.step_count, self._largest_lr, self._weight_sum = step_count, largest, total
                self._training = True
                self._set_y()

        return take

"""Schedules that multiply the base rate by a factor."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from compressrs._checks import function, number, numbers, sequence, share, whole
from compressrs.optim.base import Optimizer
from compressrs.optim.lr_scheduler.base import FactorLR, LRScheduler, one_each

Multiplicative = TypeVar("Multiplicative", bound="MultiplicativeLR")


class LambdaLR(LRScheduler):
    r"""Multiplies the base rate by a function of the step.

    .. math:: \gamma_t = \gamma_0 \lambda(t)

    Parameters
    ----------
    optimizer : Optimizer
    lr_lambda : callable, or list of callable
        :math:`\lambda`, for all groups or one per group.
    last_epoch : int, default -1
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[float], float] | Sequence[Callable[[float], float]],
        last_epoch: int = -1,
    ) -> None:
        given = one_each(lr_lambda, "lr_lambda", optimizer)
        self.lr_lambdas = [function(one, "lr_lambda") for one in given]
        super().__init__(optimizer, last_epoch)

    def rate(self, step: float, group: int) -> float:
        """Return the rate of a parameter group at a step."""
        return float(self.base_lrs[group] * self.lr_lambdas[group](step))


class MultiplicativeLR(LRScheduler):
    r"""Multiplies the rate by a function of the step at every step.

    .. math:: \gamma_t = \gamma_0 \prod_{i=1}^t \lambda(i)

    Parameters
    ----------
    optimizer : Optimizer
    lr_lambda : callable, or list of callable
        :math:`\lambda`, for all groups or one per group.
    last_epoch : int, default -1
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
    ) -> None:
        given = one_each(lr_lambda, "lr_lambda", optimizer)
        self.lr_lambdas = [function(one, "lr_lambda") for one in given]
        #: For each group, a step and the product of the factors up to it.
        self._products = [(0, 1.0) for _ in self.lr_lambdas]
        super().__init__(optimizer, last_epoch)

    _chains = True

    def rate(self, step: float, group: int) -> float:
        """Return the rate of a parameter group at a step."""
        return self._rate_from(self.base_lrs[group], step, group)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that `load_state_dict` needs to resume."""
        products = [self._product(self.last_epoch, i) for i in range(len(self.lr_lambdas))]
        return {**super().state_dict(), "products": products}

    def _restored(self: Multiplicative, state_dict: Mapping[str, Any]) -> Multiplicative:
        twin = super()._restored(state_dict)
        given = state_dict.get("products")
        if given is None:  # PyTorch's
            raise ValueError("state_dict must hold 'products', which PyTorch's does not")
        products = numbers(given, "state_dict['products']", len(self.lr_lambdas), 0)
        twin._products = [(int(twin.last_epoch), product) for product in products]
        return twin

    def _rate_from(self, base: float, step: float, group: int) -> float:
        return base * self._product(step, group)

    def _base_of(self, rate: float, step: float, group: int) -> float:
        return rate / (self._product(step, group) or 1.0)

    def _product(self, step: float, group: int) -> float:
        known, product = self._products[group]
        if step < known:
            known, product = 0, 1.0
        for i in range(known + 1, int(step) + 1):
            product *= self.lr_lambdas[group](i)
        # A new list, since copies of the schedule share the old one.
        self._products = [*self._products]
        self._products[group] = (int(step), product)
        return product


class StepLR(FactorLR):
    r"""Multiplies the rate by a factor every `step_size` steps.

    .. math:: \gamma_t = \gamma_0 g^{\lfloor t / s \rfloor}

    Parameters
    ----------
    optimizer : Optimizer
    step_size : int
        :math:`s \ge 1`.
    gamma : float, default 0.1
        :math:`g \ge 0`.
    last_epoch : int, default -1
    """

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self.step_size = whole(step_size, "step_size", 1)
        self.gamma = number(gamma, "gamma", 0)
        super().__init__(optimizer, last_epoch)

    def factor(self, step: float) -> float:
        """Return the factor at a step."""
        return float(self.gamma ** (step // self.step_size))


class MultiStepLR(FactorLR):
    r"""Multiplies the rate by a factor at each milestone.

    .. math:: \gamma_t = \gamma_0 g^{|\{m : m \le t\}|}

    Parameters
    ----------
    optimizer : Optimizer
    milestones : list of int
    gamma : float, default 0.1
        :math:`g \ge 0`.
    last_epoch : int, default -1
    """

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Sequence[int],
        gamma: float = 0.1,
        last_epoch: int = -1,
    ) -> None:
        self.milestones = sorted(
            whole(m, "milestones", 0) for m in sequence(milestones, "milestones")
        )
        self.gamma = number(gamma, "gamma", 0)
        super().__init__(optimizer, last_epoch)

    def factor(self, step: float) -> float:
        """Return the factor at a step."""
        passed: int = bisect_right(self.milestones, step)
        return float(self.gamma**passed)


class ConstantLR(FactorLR):
    r"""Multiplies the base rate by a constant for the first `total_iters` steps.

    Parameters
    ----------
    optimizer : Optimizer
    factor : float, default 1/3
        In [0, 1].
    total_iters : int, default 5
        Number of steps until the base rate is restored.
    last_epoch : int, default -1
    """

    def __init__(
        self,
        optimizer: Optimizer,
        factor: float = 1.0 / 3,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        self._factor = share(factor, "factor")
        self.total_iters = whole(total_iters, "total_iters", 0)
        super().__init__(optimizer, last_epoch)

    def factor(self, step: float) -> float:
        """Return the factor at a step."""
        return self._factor if step < self.total_iters else 1.0


class LinearLR(FactorLR):
    r"""Multiplies the base rate by a linearly changing factor, for example for warm-up.

    .. math:: \gamma_t = \gamma_0 \left(f_0 + (f_1 - f_0) \frac{\min(t, n)}{n}\right)

    Parameters
    ----------
    optimizer : Optimizer
    start_factor : float, default 1/3
        :math:`f_0` in (0, 1].
    end_factor : float, default 1.0
        :math:`f_1` in [0, 1].
    total_iters : int, default 5
        :math:`n \ge 1`.
    last_epoch : int, default -1
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        self.start_factor = share(start_factor, "start_factor")
        if self.start_factor == 0:
            raise ValueError("start_factor must be in (0, 1], got 0")
        self.end_factor = share(end_factor, "end_factor")
        self.total_iters = whole(total_iters, "total_iters", 1)
        super().__init__(optimizer, last_epoch)

    def factor(self, step: float) -> float:
        """Return the factor at a step."""
        done = min(step, self.total_iters) / self.total_iters
        return self.start_factor + (self.end_factor - self.start_factor) * done


class ExponentialLR(FactorLR):
    r"""Multiplies the rate by a factor at every step.

    .. math:: \gamma_t = \gamma_0 g^t

    Parameters
    ----------
    optimizer : Optimizer
    gamma : float
        :math:`g \ge 0`.
    last_epoch : int, default -1
    """

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = number(gamma, "gamma", 0)
        super().__init__(optimizer, last_epoch)

    def factor(self, step: float) -> float:
        """Return the factor at a step."""
        return float(self.gamma**step)


class PolynomialLR(FactorLR):
    r"""Polynomial decay to 0 over `total_iters` steps.

    .. math:: \gamma_t = \gamma_0 \left(1 - \frac{\min(t, n)}{n}\right)^p

    Parameters
    ----------
    optimizer : Optimizer
    total_iters : int, default 5
        :math:`n \ge 1`.
    power : float, default 1.0
        :math:`p \ge 0`.
    last_epoch : int, default -1
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_iters: int = 5,
        power: float = 1.0,
        last_epoch: int = -1,
    ) -> None:
        self.total_iters = whole(total_iters, "total_iters", 1)
        self.power = number(power, "power", 0)
        super().__init__(optimizer, last_epoch)

    def factor(self, step: float) -> float:
        """Return the factor at a step."""
        return float((1 - min(step, self.total_iters) / self.total_iters) ** self.power)

"""Learning-rate schedules, with the names, arguments and values of PyTorch.

A schedule is a function of the step and sets ``param_groups[i]["lr"]``; call `step`
once after each step (or epoch) of the optimizer. Since each is such a function, and
not a rule for changing the rate that is there, schedules compose exactly: one after
another (`SequentialLR`, for warm-up) and on top of each other (`ChainedScheduler`).

Examples
--------
Warm-up over 10 steps, then a cosine down to 0 over 90:

>>> import numpy as np, compressrs as cr
>>> from compressrs.optim import lr_scheduler
>>> opt = cr.optim.AdamW(np.zeros(2), lr=0.1)
>>> schedule = lr_scheduler.SequentialLR(
...     opt,
...     [
...         lr_scheduler.LinearLR(opt, start_factor=0.1, total_iters=10),
...         lr_scheduler.CosineAnnealingLR(opt, T_max=90),
...     ],
...     milestones=[10],
... )
>>> rates = []
>>> for _ in range(101):
...     rates.append(opt.param_groups[0]["lr"])
...     schedule.step()
>>> [round(rates[t], 4) for t in (0, 5, 10, 55, 100)]
[0.01, 0.055, 0.1, 0.05, 0.0]
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from compressrs._arrays import number
from compressrs.optim.base import Optimizer

__all__ = [
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]


class LRScheduler:
    """Base class of the schedules that are functions of the step.

    Parameters
    ----------
    optimizer : Optimizer
        Its groups' rates as they are, kept as ``group["initial_lr"]``, are the base
        rates.
    last_epoch : int, default -1
        The step to go on from; -1 starts.

    Attributes
    ----------
    base_lrs : list of float
    last_epoch : int
        Steps taken.

    Raises
    ------
    TypeError
        If `optimizer` is none, or a parameter is not a number.
    ValueError
        If a parameter is out of range.
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        self.optimizer = _optimizer(optimizer)
        self.base_lrs = [
            float(group.setdefault("initial_lr", group["lr"])) for group in optimizer.param_groups
        ]
        self.last_epoch: float = _whole(last_epoch, "last_epoch", -1) + 1
        self._apply()

    def rate(self, step: float, group: int) -> float:
        """Return the rate of a parameter group at a step."""
        raise NotImplementedError

    def momentum(self, step: float, group: int) -> float | None:
        """Return the momentum of a group at a step, if the schedule has a say in it."""
        return None

    def step(self) -> None:
        """Go on by one step."""
        self.last_epoch += 1
        self._apply()

    def get_last_lr(self) -> list[float]:
        """Return the rates in force."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return what the schedule needs to go on."""
        return {"last_epoch": self.last_epoch, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned, and set the rates accordingly.

        Raises
        ------
        ValueError
            If it is not such a dict.
        """
        try:
            last, rates = float(state_dict["last_epoch"]), list(map(float, state_dict["base_lrs"]))
        except (TypeError, LookupError, ValueError, OverflowError):
            raise ValueError("state_dict must hold 'last_epoch' and 'base_lrs'") from None
        if len(rates) != len(self.base_lrs):
            raise ValueError(
                f"state_dict must have {len(self.base_lrs)} base_lrs, one a group, got {len(rates)}"
            )
        self.last_epoch, self.base_lrs = int(last) if last.is_integer() else last, rates
        self._apply()

    def _apply(self) -> None:
        rates = [self.rate(self.last_epoch, i) for i in range(len(self.base_lrs))]
        momenta = [self.momentum(self.last_epoch, i) for i in range(len(self.base_lrs))]
        groups = self.optimizer.param_groups
        for group, rate, momentum in zip(groups, rates, momenta, strict=False):
            group["lr"] = rate
            if momentum is None:
                continue
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum


class _FactorLR(LRScheduler):
    """A schedule that multiplies every base rate by the same factor."""

    def factor(self, step: float) -> float:
        """Return the factor at a step."""
        raise NotImplementedError

    def rate(self, step: float, group: int) -> float:
        """Return the rate of a parameter group at a step."""
        return self.base_lrs[group] * self.factor(step)


class LambdaLR(LRScheduler):
    r"""The base rate times a function of the step.

    .. math:: \gamma_t = \gamma_0 \lambda(t)

    Parameters
    ----------
    optimizer : Optimizer
    lr_lambda : callable, or list of callable
        :math:`\lambda`, for all groups or one each.
    last_epoch : int, default -1
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[float], float] | Sequence[Callable[[float], float]],
        last_epoch: int = -1,
    ) -> None:
        self.lr_lambdas = _each(lr_lambda, "lr_lambda", optimizer)
        super().__init__(optimizer, last_epoch)

    def rate(self, step: float, group: int) -> float:
        """Return the rate of a parameter group at a step."""
        return float(self.base_lrs[group] * self.lr_lambdas[group](step))


class MultiplicativeLR(LRScheduler):
    r"""The rate times a function of the step, at every step.

    .. math:: \gamma_t = \gamma_0 \prod_{i=1}^t \lambda(i)

    Parameters
    ----------
    optimizer : Optimizer
    lr_lambda : callable, or list of callable
        :math:`\lambda`, for all groups or one each.
    last_epoch : int, default -1
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
    ) -> None:
        self.lr_lambdas = _each(lr_lambda, "lr_lambda", optimizer)
        self._products = [[1.0] for _ in self.lr_lambdas]
        super().__init__(optimizer, last_epoch)

    def rate(self, step: float, group: int) -> float:
        """Return the rate of a parameter group at a step."""
        products = self._products[group]
        while len(products) <= step:
            products.append(products[-1] * self.lr_lambdas[group](len(products)))
        return self.base_lrs[group] * products[int(step)]


class StepLR(_FactorLR):
    r"""Falls by a factor every so many steps.

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
        self.step_size = _whole(step_size, "step_size", 1)
        self.gamma = number(gamma, "gamma", 0)
        super().__init__(optimizer, last_epoch)

    def factor(self, step: float) -> float:
        """Return the factor at a step."""
        return float(self.gamma ** (step // self.step_size))


class MultiStepLR(_FactorLR):
    r"""Falls by a factor at each milestone.

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
        self.milestones = sorted(_whole(m, "milestones", 0) for m in milestones)
        self.gamma = number(gamma, "gamma", 0)
        super().__init__(optimizer, last_epoch)

    def factor(self, step: float) -> float:
        """Return the factor at a step."""
        passed: int = bisect_right(self.milestones, step)
        return float(self.gamma**passed)


class ConstantLR(_FactorLR):
    r"""A part of the base rate for the first steps, then all of it.

    Parameters
    ----------
    optimizer : Optimizer
    factor : float, default 1/3
        In [0, 1].
    total_iters : int, default 5
        Steps until the base rate.
    last_epoch : int, default -1
    """

    def __init__(
        self,
        optimizer: Optimizer,
        factor: float = 1.0 / 3,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        self._factor = _share(factor, "factor")
        self.total_iters = _whole(total_iters, "total_iters", 0)
        super().__init__(optimizer, last_epoch)

    def factor(self, step: float) -> float:
        """Return the factor at a step."""
        return self._factor if step < self.total_iters else 1.0


class LinearLR(_FactorLR):
    r"""A factor that goes from one value to another along a line: warm-up, for one.

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
        self.start_factor = _share(start_factor, "start_factor")
        if self.start_factor == 0:
            raise ValueError("start_factor must be in (0, 1], got 0")
        self.end_factor = _share(end_factor, "end_factor")
        self.total_iters = _whole(total_iters, "total_iters", 1)
        super().__init__(optimizer, last_epoch)

    def factor(self, step: float) -> float:
        """Return the factor at a step."""
        done = min(step, self.total_iters) / self.total_iters
        return self.start_factor + (self.end_factor - self.start_factor) * done


class ExponentialLR(_FactorLR):
    r"""Falls by a factor at every step.

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


class PolynomialLR(_FactorLR):
    r"""Falls to 0 along a power of the remaining time.

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
        self.total_iters = _whole(total_iters, "total_iters", 1)
        self.power = number(power, "power", 0)
        super().__init__(optimizer, last_epoch)

    def factor(self, step: float) -> float:
        """Return the factor at a step."""
        return float((1 - min(step, self.total_iters) / self.total_iters) ** self.power)


class CosineAnnealingLR(LRScheduler):
    r"""Falls along a cosine, without restarts.

    .. math:: \gamma_t = \gamma_{\min} + \tfrac12 (\gamma_0 - \gamma_{\min})
        \left(1 + \cos \frac{t \pi}{T}\right)

    Parameters
    ----------
    optimizer : Optimizer
    T_max : int
        :math:`T \ge 1`, half a period; the rate rises again after it.
    eta_min : float, default 0.0
        :math:`\gamma_{\min} \ge 0`.
    last_epoch : int, default -1

    References
    ----------
    Loshchilov & Hutter, "SGDR: stochastic gradient descent with warm restarts",
    arXiv 1608.03983, equation 5.
    """

    def __init__(
        self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        self.T_max = _whole(T_max, "T_max", 1)
        self.eta_min = number(eta_min, "eta_min", 0)
        super().__init__(optimizer, last_epoch)

    def rate(self, step: float, group: int) -> float:
        """Return the rate of a parameter group at a step."""
        return _cosine(self.base_lrs[group], self.eta_min, step / self.T_max)


class CosineAnnealingWarmRestarts(LRScheduler):
    r"""Falls along a cosine, again and again, in periods that grow.

    Parameters
    ----------
    optimizer : Optimizer
    T_0 : int
        Steps of the first period, at least 1.
    T_mult : int, default 1
        Factor from one period to the next, at least 1.
    eta_min : float, default 0.0
        The rate at the end of a period.
    last_epoch : int, default -1

    References
    ----------
    Loshchilov & Hutter, arXiv 1608.03983.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_0: int,
        T_mult: int = 1,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.T_0 = _whole(T_0, "T_0", 1)
        self.T_mult = _whole(T_mult, "T_mult", 1)
        self.eta_min = number(eta_min, "eta_min", 0)
        super().__init__(optimizer, last_epoch)

    def step(self, epoch: float | None = None) -> None:
        """Go on by one step, or to `epoch`, which need not be whole."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else number(epoch, "epoch", 0)
        self._apply()

    def rate(self, step: float, group: int) -> float:
        """Return the rate of a parameter group at a step."""
        start, period = 0.0, self.T_0
        if self.T_mult == 1:
            start = step // period * period
        while step >= start + period:
            start += period
            period *= self.T_mult
        return _cosine(self.base_lrs[group], self.eta_min, (step - start) / period)


class CyclicLR(LRScheduler):
    r"""Goes up and down between two rates.

    Parameters
    ----------
    optimizer : Optimizer
    base_lr, max_lr : float, or list of float
        The bounds, for all groups or one each.
    step_size_up : int, default 2000
        Steps of the way up.
    step_size_down : int, optional
        Steps of the way down; `step_size_up` if not given.
    mode : {"triangular", "triangular2", "exp_range"}, default "triangular"
        The amplitude is constant, or halved in each cycle, or multiplied by
        ``gamma ** step``.
    gamma : float, default 1.0
    scale_fn : callable, optional
        The amplitude's factor, instead of `mode`.
    scale_mode : {"cycle", "iterations"}, default "cycle"
        Whether `scale_fn` is given the number of the cycle, from 1, or the step.
    cycle_momentum : bool, default True
        Let the momentum (or the first beta) go the opposite way.
    base_momentum, max_momentum : float, or list of float
        Its bounds.
    last_epoch : int, default -1

    References
    ----------
    Smith, "Cyclical learning rates for training neural networks", arXiv 1506.01186.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        base_lr: float | Sequence[float],
        max_lr: float | Sequence[float],
        step_size_up: int = 2000,
        step_size_down: int | None = None,
        mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
        gamma: float = 1.0,
        scale_fn: Callable[[float], float] | None = None,
        scale_mode: Literal["cycle", "iterations"] = "cycle",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.8,
        max_momentum: float | Sequence[float] = 0.9,
        last_epoch: int = -1,
    ) -> None:
        _choice(mode, "mode", ("triangular", "triangular2", "exp_range"))
        _choice(scale_mode, "scale_mode", ("cycle", "iterations"))
        low = [number(x, "base_lr", 0) for x in _each(base_lr, "base_lr", optimizer)]
        self.max_lrs = [number(x, "max_lr", 0) for x in _each(max_lr, "max_lr", optimizer)]
        self.step_size_up = _whole(step_size_up, "step_size_up", 1)
        down = step_size_up if step_size_down is None else step_size_down
        self.step_size_down = _whole(down, "step_size_down", 1)
        self.mode, self.gamma = mode, number(gamma, "gamma", 0)
        self.scale_fn, self.scale_mode = scale_fn, scale_mode
        self.cycle_momentum = cycle_momentum
        _momentum_of(optimizer, cycle_momentum)
        self.base_momentums = _each(base_momentum, "base_momentum", optimizer)
        self.max_momentums = _each(max_momentum, "max_momentum", optimizer)
        if last_epoch == -1:
            for group, rate in zip(optimizer.param_groups, low, strict=True):
                group["initial_lr"] = rate
        super().__init__(optimizer, last_epoch)

    def rate(self, step: float, group: int) -> float:
        """Return the rate of a parameter group at a step."""
        low, high = self.base_lrs[group], self.max_lrs[group]
        return low + (high - low) * self._height(step)

    def momentum(self, step: float, group: int) -> float | None:
        """Return the momentum of a group at a step, if it cycles."""
        if not self.cycle_momentum:
            return None
        low, high = self.base_momentums[group], self.max_momentums[group]
        return float(high - (high - low) * self._height(step))

    def _height(self, step: float) -> float:
        """Return where between both rates a step is, as a share."""
        total = self.step_size_up + self.step_size_down
        cycle, position = divmod(step, total)
        if position <= self.step_size_up:
            height = position / self.step_size_up
        else:
            height = (total - position) / self.step_size_down
        if self.scale_fn is not None:
            return height * self.scale_fn(cycle + 1 if self.scale_mode == "cycle" else step)
        if self.mode == "triangular2":
            return float(height / 2.0**cycle)
        return float(height * self.gamma**step) if self.mode == "exp_range" else height


class OneCycleLR(LRScheduler):
    r"""Up to a large rate, then down to almost 0, in one cycle.

    Parameters
    ----------
    optimizer : Optimizer
    max_lr : float, or list of float
        The largest rate, for all groups or one each.
    total_steps : int, optional
        Or give `epochs` and `steps_per_epoch`. Stepping past it is a ValueError.
    epochs, steps_per_epoch : int, optional
    pct_start : float, default 0.3
        Share of the steps that go up, in (0, 1).
    anneal_strategy : {"cos", "linear"}, default "cos"
    cycle_momentum : bool, default True
        Let the momentum (or the first beta) go the opposite way.
    base_momentum, max_momentum : float, or list of float
        Its bounds.
    div_factor : float, default 25.0
        ``max_lr / div_factor`` is the first rate.
    final_div_factor : float, default 1e4
        The first rate over the last.
    three_phase : bool, default False
        Go down to the first rate as fast as up, and only then to the last.
    last_epoch : int, default -1

    References
    ----------
    Smith & Topin, "Super-convergence", arXiv 1708.07120.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.85,
        max_momentum: float | Sequence[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ) -> None:
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise ValueError("give total_steps, or both epochs and steps_per_epoch")
            epochs = _whole(epochs, "epochs", 1)
            total_steps = epochs * _whole(steps_per_epoch, "steps_per_epoch", 1)
        self.total_steps = _whole(total_steps, "total_steps", 1)
        share = number(pct_start, "pct_start", 0, below=1)
        self._anneal = {"cos": _cosine, "linear": _line}[
            _choice(anneal_strategy, "anneal_strategy", ("cos", "linear"))
        ]
        self.max_lrs = [number(x, "max_lr", 0) for x in _each(max_lr, "max_lr", optimizer)]
        div, final_div = (
            number(div_factor, "div_factor"),
            number(final_div_factor, "final_div_factor"),
        )
        if div <= 0 or final_div <= 0:
            raise ValueError("div_factor and final_div_factor must be greater than 0")
        self.cycle_momentum = cycle_momentum
        _momentum_of(optimizer, cycle_momentum)
        self.base_momentums = _each(base_momentum, "base_momentum", optimizer)
        self.max_momentums = _each(max_momentum, "max_momentum", optimizer)
        self._final_div = final_div
        # Each phase: its last step, and the ends of rate and momentum by name.
        up = ("first", "max"), ("high", "low")
        last = float(self.total_steps - 1)
        if three_phase:
            self._phases = [
                (share * self.total_steps - 1, *up),
                (2 * share * self.total_steps - 2, ("max", "first"), ("low", "high")),
                (last, ("first", "last"), ("high", "high")),
            ]
        else:
            self._phases = [
                (share * self.total_steps - 1, *up),
                (last, ("max", "last"), ("low", "high")),
            ]
        if last_epoch == -1:
            for group, rate in zip(optimizer.param_groups, self.max_lrs, strict=True):
                group["initial_lr"] = rate / div
        super().__init__(optimizer, last_epoch)

    def step(self) -> None:
        """Go on by one step.

        Raises
        ------
        ValueError
            If all steps have been taken; nothing is changed then.
        """
        if self.last_epoch >= self.total_steps:
            raise ValueError(f"the schedule has total_steps={self.total_steps} steps, all taken")
        super().step()

    def rate(self, step: float, group: int) -> float:
        """Return the rate of a parameter group at a step."""
        first = self.base_lrs[group]
        ends = {"first": first, "max": self.max_lrs[group], "last": first / self._final_div}
        (start, end), _, done = self._phase(step)
        return self._anneal(ends[start], ends[end], done)

    def momentum(self, step: float, group: int) -> float | None:
        """Return the momentum of a group at a step, if it cycles."""
        if not self.cycle_momentum:
            return None
        ends = {"low": self.base_momentums[group], "high": self.max_momentums[group]}
        _, (start, end), done = self._phase(step)
        return self._anneal(ends[start], ends[end], done)

    def _phase(self, step: float) -> tuple[tuple[str, str], tuple[str, str], float]:
        """Return the ends of both, and how much of their phase is done."""
        begin = 0.0
        for end, rates, momenta in self._phases:
            if step <= end:
                return rates, momenta, (step - begin) / (end - begin) if end > begin else 1.0
            begin = end
        end, rates, momenta = self._phases[-1]
        begin = self._phases[-2][0]
        return rates, momenta, (step - begin) / (end - begin) if end > begin else 1.0


class SequentialLR(LRScheduler):
    """One schedule after another.

    Parameters
    ----------
    optimizer : Optimizer
    schedulers : list of LRScheduler
        Of this optimizer; each counts its steps from where it begins.
    milestones : list of int
        Where the second and the following begin, ascending.
    last_epoch : int, default -1
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: Sequence[LRScheduler],
        milestones: Sequence[int],
        last_epoch: int = -1,
    ) -> None:
        self.schedulers = _schedulers(schedulers, optimizer)
        self.milestones = [_whole(m, "milestones", 0) for m in milestones]
        if len(self.milestones) != len(self.schedulers) - 1:
            raise ValueError(
                f"milestones must be one less than the {len(self.schedulers)} schedulers, "
                f"got {len(self.milestones)}"
            )
        if self.milestones != sorted(self.milestones):
            raise ValueError(f"milestones must ascend, got {list(milestones)}")
        super().__init__(optimizer, last_epoch)

    def rate(self, step: float, group: int) -> float:
        """Return the rate of a parameter group at a step."""
        scheduler, local = self._current(step)
        return scheduler.rate(local, group)

    def momentum(self, step: float, group: int) -> float | None:
        """Return the momentum of a group at a step, if the current schedule sets it."""
        scheduler, local = self._current(step)
        return scheduler.momentum(local, group)

    def _current(self, step: float) -> tuple[LRScheduler, float]:
        i = bisect_right(self.milestones, step)
        return self.schedulers[i], step - (self.milestones[i - 1] if i else 0)


class ChainedScheduler(LRScheduler):
    """Several schedules on top of each other: their factors are multiplied.

    The factor of a schedule is its rate over its base rate.

    Parameters
    ----------
    schedulers : list of LRScheduler
        Of one optimizer.
    optimizer : Optimizer, optional
        That of the schedulers.
    """

    def __init__(
        self, schedulers: Sequence[LRScheduler], optimizer: Optimizer | None = None
    ) -> None:
        self.schedulers = _schedulers(schedulers, optimizer)
        super().__init__(self.schedulers[0].optimizer)

    def rate(self, step: float, group: int) -> float:
        """Return the rate of a parameter group at a step."""
        rate = self.base_lrs[group]
        for scheduler in self.schedulers:
            base = scheduler.base_lrs[group]
            rate *= scheduler.rate(step, group) / base if base else 0.0
        return rate

    def momentum(self, step: float, group: int) -> float | None:
        """Return the momentum of a group at a step, if a schedule sets it."""
        momenta = [s.momentum(step, group) for s in self.schedulers]
        return next((m for m in reversed(momenta) if m is not None), None)


class ReduceLROnPlateau:
    r"""Lowers the rate when a metric stops getting better.

    Parameters
    ----------
    optimizer : Optimizer
    mode : {"min", "max"}, default "min"
        Whether smaller or larger is better.
    factor : float, default 0.1
        In [0, 1).
    patience : int, default 10
        Steps without improvement that are let pass.
    threshold : float, default 1e-4
        What counts as an improvement: by this share of the best, or by this much.
    threshold_mode : {"rel", "abs"}, default "rel"
    cooldown : int, default 0
        Steps after a change in which none are counted.
    min_lr : float, or list of float, default 0
        Lower bound, for all groups or one each.
    eps : float, default 1e-8
        Smaller changes are not made.

    Raises
    ------
    TypeError, ValueError
        As for `LRScheduler`.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> opt = cr.optim.SGD(np.zeros(2), lr=0.1)
    >>> schedule = cr.optim.lr_scheduler.ReduceLROnPlateau(opt, factor=0.5, patience=1)
    >>> for loss in (1.0, 0.9, 0.9, 0.9):
    ...     schedule.step(loss)
    >>> schedule.get_last_lr()
    [0.05]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: Literal["min", "max"] = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0,
        eps: float = 1e-8,
    ) -> None:
        self.optimizer = _optimizer(optimizer)
        self.mode = _choice(mode, "mode", ("min", "max"))
        self.factor = number(factor, "factor", 0, below=1)
        self.patience = _whole(patience, "patience", 0)
        self.threshold = number(threshold, "threshold", 0)
        self.threshold_mode = _choice(threshold_mode, "threshold_mode", ("rel", "abs"))
        self.cooldown = _whole(cooldown, "cooldown", 0)
        self.min_lrs = [number(x, "min_lr", 0) for x in _each(min_lr, "min_lr", optimizer)]
        self.eps = number(eps, "eps", 0)
        self.best = math.inf if mode == "min" else -math.inf
        self.bad_steps = 0
        self.cooling = 0
        self.last_epoch = 0

    def step(self, metrics: float) -> None:
        """Take note of the metric, and lower the rate if it is time to.

        NaN counts as no improvement.
        """
        metric = float(metrics)
        self.last_epoch += 1
        if self._is_better(metric):
            self.best, self.bad_steps = metric, 0
        else:
            self.bad_steps += 1
        if self.cooling > 0:
            self.cooling -= 1
            self.bad_steps = 0
        if self.bad_steps > self.patience:
            for group, low in zip(self.optimizer.param_groups, self.min_lrs, strict=False):
                rate = max(group["lr"] * self.factor, low)
                if group["lr"] - rate > self.eps:
                    group["lr"] = rate
            self.cooling, self.bad_steps = self.cooldown, 0

    def get_last_lr(self) -> list[float]:
        """Return the rates in force."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return what the schedule needs to go on."""
        keys = ("best", "bad_steps", "cooling", "last_epoch")
        return {key: getattr(self, key) for key in keys}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises
        ------
        ValueError
            If it is not such a dict; nothing is changed then.
        """
        try:
            best = float(state_dict["best"])
            counts = {key: int(state_dict[key]) for key in ("bad_steps", "cooling", "last_epoch")}
        except (TypeError, LookupError, ValueError, OverflowError):
            raise ValueError(
                "state_dict must hold 'best', 'bad_steps', 'cooling' and 'last_epoch'"
            ) from None
        self.best = best
        self.__dict__.update(counts)

    def _is_better(self, metric: float) -> bool:
        sign = 1 if self.mode == "max" else -1
        if self.threshold_mode == "abs":
            bound = self.best + sign * self.threshold
        else:
            bound = self.best * (1 + sign * self.threshold)
        return sign * metric > sign * bound


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def _line(start: float, end: float, done: float) -> float:
    return start + (end - start) * done


def _optimizer(optimizer: object) -> Optimizer:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be an Optimizer, got {type(optimizer).__name__}")
    return optimizer


def _schedulers(schedulers: Sequence[LRScheduler], optimizer: object) -> list[LRScheduler]:
    """Return the schedulers, which must be of this optimizer, or of one if it is None."""
    try:
        checked = list(schedulers)
    except TypeError:
        raise TypeError(
            f"schedulers must be a list of LRScheduler, got {type(schedulers).__name__}"
        ) from None
    if not checked:
        raise ValueError("schedulers must hold at least one, got none")
    for i, scheduler in enumerate(checked):
        if not isinstance(scheduler, LRScheduler):
            # ReduceLROnPlateau goes by a metric, not by the step.
            raise TypeError(
                f"schedulers[{i}] must be an LRScheduler, got {type(scheduler).__name__}"
            )
        if scheduler.optimizer is not (optimizer or checked[0].optimizer):
            raise ValueError(f"schedulers[{i}] must be of the same optimizer as the others")
    return checked


def _each(value: Any, name: str, optimizer: Optimizer) -> list[Any]:
    """Return one value a parameter group."""
    groups = len(_optimizer(optimizer).param_groups)
    if not isinstance(value, (list, tuple)):
        return [value] * groups
    if len(value) != groups:
        raise ValueError(f"{name} must be one value or {groups}, one a group, got {len(value)}")
    return list(value)


def _momentum_of(optimizer: Optimizer, cycles: bool) -> None:
    if cycles and not {"momentum", "betas"} & optimizer.defaults.keys():
        raise ValueError(
            f"{type(optimizer).__name__} has no momentum to cycle (pass cycle_momentum=False)"
        )


def _whole(value: Any, name: str, low: int) -> int:
    try:
        whole = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}") from None
    if whole < low:
        raise ValueError(f"{name} must be at least {low}, got {whole}")
    return whole


def _share(value: float, name: str) -> float:
    x = number(value, name, 0)
    if x > 1:
        raise ValueError(f"{name} must be in [0, 1], got {value!r}")
    return x


def _choice(value: str, name: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value

"""Cyclical schedules of the learning rate, with the momentum cycled inversely."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from compressrs._checks import choice, flag, function, number, whole
from compressrs.optim.base import Optimizer
from compressrs.optim.lr_scheduler.base import LRScheduler, cosine, one_each


class CyclicLR(LRScheduler):
    r"""Cycles the learning rate between two bounds.

    Parameters
    ----------
    optimizer : Optimizer
    base_lr, max_lr : float, or list of float
        The bounds, for all groups or one per group.
    step_size_up : int, default 2000
        Steps in the increasing half of a cycle.
    step_size_down : int, optional
        Steps in the decreasing half; `step_size_up` if not given.
    mode : {"triangular", "triangular2", "exp_range"}, default "triangular"
        Whether the amplitude is constant, halved after each cycle, or multiplied by
        ``gamma ** step``.
    gamma : float, default 1.0
    scale_fn : callable, optional
        Function that returns the factor of the amplitude; overrides `mode`.
    scale_mode : {"cycle", "iterations"}, default "cycle"
        Whether `scale_fn` is called with the number of the cycle, from 1, or the step.
    cycle_momentum : bool, default True
        Whether to cycle the momentum (or the first beta) inversely.
    base_momentum, max_momentum : float, or list of float
        Bounds of the momentum.
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
        choice(mode, "mode", ("triangular", "triangular2", "exp_range"))
        choice(scale_mode, "scale_mode", ("cycle", "iterations"))
        low = [number(x, "base_lr", 0) for x in one_each(base_lr, "base_lr", optimizer)]
        self.max_lrs = [number(x, "max_lr", 0) for x in one_each(max_lr, "max_lr", optimizer)]
        self.step_size_up = whole(step_size_up, "step_size_up", 1)
        down = step_size_up if step_size_down is None else step_size_down
        self.step_size_down = whole(down, "step_size_down", 1)
        self.mode, self.gamma = mode, number(gamma, "gamma", 0)
        self.scale_fn = None if scale_fn is None else function(scale_fn, "scale_fn")
        self.scale_mode = scale_mode
        self.cycle_momentum = flag(cycle_momentum, "cycle_momentum")
        _require_momentum(optimizer, self.cycle_momentum)
        self.base_momentums = _momenta(base_momentum, "base_momentum", optimizer)
        self.max_momentums = _momenta(max_momentum, "max_momentum", optimizer)
        super().__init__(optimizer, last_epoch, _base_lrs=low)

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
        """Return the position of a step between both rates, in [0, 1]."""
        total = self.step_size_up + self.step_size_down
        cycle, position = divmod(step, total)
        if position <= self.step_size_up:
            height = position / self.step_size_up
        else:
            height = (total - position) / self.step_size_down
        if self.scale_fn is not None:
            at = cycle + 1 if self.scale_mode == "cycle" else step
            return float(height * self.scale_fn(at))
        if self.mode == "triangular2":
            return math.ldexp(height, -int(cycle))
        return float(height * self.gamma**step) if self.mode == "exp_range" else height


class OneCycleLR(LRScheduler):
    r"""The 1cycle policy: one rise to a large rate, then annealing to almost 0.

    Parameters
    ----------
    optimizer : Optimizer
    max_lr : float, or list of float
        The maximum rate, for all groups or one per group.
    total_steps : int, optional
        Alternatively, give `epochs` and `steps_per_epoch`. Stepping past the last step
        raises a ValueError.
    epochs, steps_per_epoch : int, optional
    pct_start : float, default 0.3
        Fraction of the steps in which the rate increases, in (0, 1).
    anneal_strategy : {"cos", "linear"}, default "cos"
    cycle_momentum : bool, default True
        Whether to cycle the momentum (or the first beta) inversely.
    base_momentum, max_momentum : float, or list of float
        Bounds of the momentum.
    div_factor : float, default 25.0
        The initial rate is ``max_lr / div_factor``.
    final_div_factor : float, default 1e4
        The final rate is the initial rate divided by this.
    three_phase : bool, default False
        Whether to decrease to the initial rate in as many steps as the increase took, and
        then to the final rate.
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
            epochs = whole(epochs, "epochs", 1)
            total_steps = epochs * whole(steps_per_epoch, "steps_per_epoch", 1)
        self.total_steps = total_steps
        self._pct_start = number(pct_start, "pct_start", 0, below=1)
        self._three_phase = flag(three_phase, "three_phase")
        self._anneal = {"cos": cosine, "linear": _line}[
            choice(anneal_strategy, "anneal_strategy", ("cos", "linear"))
        ]
        self.max_lrs = [number(x, "max_lr", 0) for x in one_each(max_lr, "max_lr", optimizer)]
        div, final_div = (
            number(div_factor, "div_factor"),
            number(final_div_factor, "final_div_factor"),
        )
        if div <= 0 or final_div <= 0:
            raise ValueError("div_factor and final_div_factor must be greater than 0")
        self.cycle_momentum = flag(cycle_momentum, "cycle_momentum")
        _require_momentum(optimizer, self.cycle_momentum)
        self.base_momentums = _momenta(base_momentum, "base_momentum", optimizer)
        self.max_momentums = _momenta(max_momentum, "max_momentum", optimizer)
        self._final_div = final_div
        first = [rate / div for rate in self.max_lrs]
        super().__init__(optimizer, last_epoch, _base_lrs=first)
        for group, rate in zip(optimizer.param_groups, first, strict=True):
            group["initial_lr"] = rate

    @property
    def total_steps(self) -> int:
        """Number of steps; assigning another one changes the schedule from the next step on."""
        return self._total_steps

    @total_steps.setter
    def total_steps(self, value: int) -> None:
        self._total_steps = whole(value, "total_steps", 1)

    def step(self) -> None:
        """Advance by one step.

        Raises
        ------
        ValueError
            If all steps have been taken; nothing is changed in that case.
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
        """Return the endpoints of rate and momentum, and the progress within their phase."""
        begin = 0.0
        phases = self._phases()
        for end, rates, momenta in phases:
            if step <= end:
                return rates, momenta, (step - begin) / (end - begin) if end > begin else 1.0
            begin = end
        # Past the end, the final rate is kept.
        _, rates, momenta = phases[-1]
        return rates, momenta, 1.0

    def _phases(self) -> list[tuple[float, tuple[str, str], tuple[str, str]]]:
        """Return the last step of each phase, and the endpoints of its rate and momentum."""
        rise = self._pct_start * self.total_steps
        up = (rise - 1, ("first", "max"), ("high", "low"))
        last = float(self.total_steps - 1)
        if self._three_phase:
            down = (2 * rise - 2, ("max", "first"), ("low", "high"))
            return [up, down, (last, ("first", "last"), ("high", "high"))]
        return [up, (last, ("max", "last"), ("low", "high"))]


def _line(start: float, end: float, done: float) -> float:
    return start + (end - start) * done


def _momenta(value: float | Sequence[float], name: str, optimizer: Optimizer) -> list[float]:
    """Return one momentum per group."""
    return [number(x, name, 0, below=1) for x in one_each(value, name, optimizer)]


def _require_momentum(optimizer: Optimizer, cycles: bool) -> None:
    if cycles and not {"momentum", "betas"} & optimizer.defaults.keys():
        raise ValueError(
            f"{type(optimizer).__name__} has no momentum to cycle (pass cycle_momentum=False)"
        )

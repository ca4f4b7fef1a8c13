"""Base classes of the schedules."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from compressrs._checks import count, number, numbers, whole
from compressrs._state import Stateful, Take, Undo, require_keys
from compressrs.optim.base import Optimizer

#: The class of a schedule and of its copy.
Own = TypeVar("Own", bound="LRScheduler")


class LRScheduler(Stateful):
    """Base class of schedules that are functions of the step.

    Parameters
    ----------
    optimizer : Optimizer
        The first schedule of an optimizer stores the groups' learning rates as
        ``group["initial_lr"]``, the base rates.
    last_epoch : int, default -1
        The last completed step when resuming; -1 starts from the beginning.

    Attributes
    ----------
    base_lrs : list of float
    last_epoch : int
        Number of steps taken.

    Raises
    ------
    TypeError
        If `optimizer` is not an `Optimizer`, or a parameter is not a number.
    ValueError
        If a parameter is out of range.

    Notes
    -----
    As in PyTorch, schedules that multiply the rate (all but `LambdaLR`, `CyclicLR`,
    `OneCycleLR`, `CosineAnnealingWarmRestarts` and `SequentialLR`) start from the groups'
    rates at construction, and continue from a rate that was set manually. For a group added
    later they schedule the rate it was added with; the other schedules, and those with
    per-group values, raise a ValueError.
    """

    #: Whether the schedule continues from a rate that was set manually.
    _chains = False
    #: Whether the schedule accepts groups that are added later.
    _joins = False

    def __init__(
        self, optimizer: Optimizer, last_epoch: int = -1, *, _base_lrs: list[float] | None = None
    ) -> None:
        self.optimizer = require_optimizer(optimizer)
        groups = optimizer.param_groups
        initial = [float(group.get("initial_lr", group["lr"])) for group in groups]
        self.base_lrs = initial if _base_lrs is None else _base_lrs
        self.last_epoch: float = count(whole(last_epoch, "last_epoch", -1) + 1, "last_epoch")
        #: What `base_lrs` are for a schedule that multiplies the groups' rates.
        self._starts = [float(group["lr"]) for group in groups] if last_epoch == -1 else initial
        self._last_lrs = [float(group["lr"]) for group in groups]
        self._set(self._settings(self.last_epoch))
        for group, rate in zip(groups, self.base_lrs, strict=True):
            group.setdefault("initial_lr", rate)

    def rate(self, step: float, group: int) -> float:
        """Return the rate of a parameter group at a step."""
        raise NotImplementedError

    def momentum(self, step: float, group: int) -> float | None:
        """Return the momentum of a group at a step, or None if the schedule does not set it."""
        return None

    def step(self) -> None:
        """Advance by one step.

        Raises
        ------
        ValueError
            If a rate would not be finite, or a group was added for which the schedule has
            no values; nothing is changed in that case.
        """
        self._go_to(self.last_epoch + 1)

    def get_last_lr(self) -> list[float]:
        """Return the current rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the state that `load_state_dict` needs to resume."""
        return {
            "scheduler": type(self).__name__,
            "last_epoch": self.last_epoch,
            "base_lrs": list(self.base_lrs),
            "starts": list(self._starts),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, and set the rates accordingly.

        Raises
        ------
        ValueError
            If it is invalid or from another class of schedule; nothing is changed in that
            case. State dicts of PyTorch, which do not record the class, are accepted.
        """
        super().load_state_dict(state_dict)

    def _checked(self, state_dict: Mapping[str, Any]) -> Take:
        twin = self._restored(state_dict)
        settings = twin._settings(twin.last_epoch)

        def take(undo: Undo) -> None:
            self._remember(undo)
            self.optimizer._remember(undo)
            self._take(twin)
            self._set(settings)

        return take

    def _remember(self, undo: Undo) -> None:
        """Have the state restored if a change fails."""
        undo.remember_attributes(self)

    def _restored(self: Own, state_dict: Mapping[str, Any]) -> Own:
        """Return a copy of the schedule with the state of `state_dict`."""
        check_kind(self, state_dict)
        if "scheduler" in state_dict:
            require_keys(state_dict, tuple(self.state_dict()))
        twin = copy.copy(self)
        groups = len(self.optimizer.param_groups)
        last = number(state_dict.get("last_epoch"), "state_dict['last_epoch']", 0, below=2**53)
        if not (self._takes_fractions or last.is_integer()):
            raise ValueError(f"state_dict['last_epoch'] must be an integer, got {last}")
        bases = numbers(state_dict.get("base_lrs"), "state_dict['base_lrs']", groups, 0)
        starts = numbers(state_dict.get("starts", bases), "state_dict['starts']", groups, 0)
        twin.last_epoch = int(last) if last.is_integer() else last
        twin.base_lrs, twin._starts = bases, starts
        # What the groups have now is not what this schedule set.
        twin._last_lrs = self.get_last_lr()
        return twin

    #: Whether steps may be fractional.
    _takes_fractions = False

    def _take(self: Own, twin: Own) -> None:
        """Take the state of a copy."""
        self.__dict__.update(twin.__dict__)

    def _go_to(self, step: float) -> None:
        """Set the rates and momenta of a step, or change nothing if that fails."""
        twin = copy.copy(self)
        twin._follow()
        settings = twin._settings(step)
        twin.last_epoch = step
        self._take(twin)
        self._set(settings)

    def _follow(self) -> None:
        """Account for groups that were added and rates that were set manually."""
        groups = self.optimizer.param_groups
        known = len(self.base_lrs)
        if len(groups) > known and not self._joins:
            raise ValueError(
                f"group {known} was added after the schedule was made, which has no values for "
                f"it: make a new {type(self).__name__}"
            )
        bases, starts = list(self.base_lrs), list(self._starts)
        for i, group in enumerate(groups):
            rate = float(group["lr"])
            if i >= known:
                base = self._base_of(rate, self.last_epoch, i)
                bases.append(base)
                starts.append(base)
            elif self._chains and rate != self._last_lrs[i]:
                starts[i] = self._base_of(rate, self.last_epoch, i)
        self.base_lrs, self._starts = bases, starts

    def _base_of(self, rate: float, step: float, group: int) -> float:
        """Return the base rate that gives a group this rate at a step."""
        raise NotImplementedError

    def _rate_from(self, base: float, step: float, group: int) -> float:
        """Return the rate of a group at a step if its base rate is `base`."""
        return self.rate(step, group)

    def _settings(self, step: float) -> list[tuple[float, float | None]]:
        """Return the rate and the momentum of each group at a step."""
        settings = []
        for i in range(len(self.base_lrs)):
            try:
                rate = float(self._rate_from(self._starts[i], step, i))
            except OverflowError:
                rate = math.inf
            if not (math.isfinite(rate) and rate >= 0):
                raise ValueError(
                    f"the schedule must give finite rates >= 0, got {rate} for group {i} at step "
                    f"{step}"
                )
            settings.append((rate, self.momentum(step, i)))
        return settings

    def _set(self, settings: list[tuple[float, float | None]]) -> None:
        momenta = [momentum for _, momentum in settings]
        groups = self.optimizer.param_groups
        if any(m and group.get("momentum") == 0 for group, m in zip(groups, momenta, strict=True)):
            # As in PyTorch, momentum is enabled if it was off, which requires state.
            changes = [
                {"momentum": m} if m and "momentum" in group else {}
                for group, m in zip(groups, momenta, strict=True)
            ]
            self.optimizer._configure(changes, "a schedule's step")
        for group, (rate, momentum) in zip(self.optimizer.param_groups, settings, strict=True):
            group["lr"] = rate
            if momentum is None:
                continue
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum
        self._last_lrs = [rate for rate, _ in settings]


class FactorLR(LRScheduler):
    """A schedule that multiplies every base rate by the same factor."""

    _chains = _joins = True

    def factor(self, step: float) -> float:
        """Return the factor at a step."""
        raise NotImplementedError

    def rate(self, step: float, group: int) -> float:
        """Return the rate of a parameter group at a step."""
        return self._rate_from(self.base_lrs[group], step, group)

    def _rate_from(self, base: float, step: float, group: int) -> float:
        return base * self.factor(step)

    def _base_of(self, rate: float, step: float, group: int) -> float:
        return rate / (self.factor(step) or 1.0)


def cosine(start: float, end: float, done: float) -> float:
    """Interpolate between two rates along half a cosine; `done` is in [0, 1]."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def check_kind(scheduler: object, state_dict: Mapping[str, Any]) -> None:
    """Raise a ValueError if a state dict is from another class of schedule."""
    kind = type(scheduler).__name__
    # PyTorch's do not record the class; they are recognized by their count of step calls.
    got = state_dict.get("scheduler") if isinstance(state_dict, Mapping) else state_dict
    own = isinstance(state_dict, Mapping) and (
        (isinstance(got, str) and got == kind)
        or ("scheduler" not in state_dict and "_step_count" in state_dict)
    )
    if not own:
        raise ValueError(f"state_dict must be of a {kind} as its state_dict() returns, got {got!r}")


def require_optimizer(optimizer: object) -> Optimizer:
    """Return the optimizer after checking its type."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be an Optimizer, got {type(optimizer).__name__}")
    return optimizer


def one_each(value: Any, name: str, optimizer: Optimizer) -> list[Any]:
    """Return a list with one value per parameter group."""
    groups = len(require_optimizer(optimizer).param_groups)
    if not isinstance(value, (list, tuple)):
        return [value] * groups
    if len(value) != groups:
        raise ValueError(f"{name} must be one value or {groups}, one a group, got {len(value)}")
    return list(value)

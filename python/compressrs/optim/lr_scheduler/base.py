"""What all schedules share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from compressrs._checks import whole
from compressrs.optim.base import Optimizer


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
        self.optimizer = require_optimizer(optimizer)
        self.base_lrs = [
            float(group.setdefault("initial_lr", group["lr"])) for group in optimizer.param_groups
        ]
        self.last_epoch: float = whole(last_epoch, "last_epoch", -1) + 1
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


class FactorLR(LRScheduler):
    """A schedule that multiplies every base rate by the same factor."""

    def factor(self, step: float) -> float:
        """Return the factor at a step."""
        raise NotImplementedError

    def rate(self, step: float, group: int) -> float:
        """Return the rate of a parameter group at a step."""
        return self.base_lrs[group] * self.factor(step)


def cosine(start: float, end: float, done: float) -> float:
    """Return where between two rates half a cosine is, as it goes from one to the other."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def require_optimizer(optimizer: object) -> Optimizer:
    """Return the optimizer, if it is one."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be an Optimizer, got {type(optimizer).__name__}")
    return optimizer


def one_each(value: Any, name: str, optimizer: Optimizer) -> list[Any]:
    """Return one value a parameter group."""
    groups = len(require_optimizer(optimizer).param_groups)
    if not isinstance(value, (list, tuple)):
        return [value] * groups
    if len(value) != groups:
        raise ValueError(f"{name} must be one value or {groups}, one a group, got {len(value)}")
    return list(value)

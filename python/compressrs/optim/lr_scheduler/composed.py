"""Schedules composed of other schedules."""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from compressrs._checks import sequence, whole
from compressrs._state import Undo
from compressrs.optim.base import Optimizer
from compressrs.optim.lr_scheduler.base import LRScheduler, require_optimizer

Whole = TypeVar("Whole", bound="Composed")


class Composed(LRScheduler):
    """Base of schedules that contain others and save their state."""

    schedulers: list[LRScheduler]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this schedule and of those it contains."""
        return {**super().state_dict(), "schedulers": [s.state_dict() for s in self.schedulers]}

    def _restored(self: Whole, state_dict: Mapping[str, Any]) -> Whole:
        twin = super()._restored(state_dict)
        states = state_dict.get("schedulers")
        if not isinstance(states, (list, tuple)) or len(states) != len(self.schedulers):
            raise ValueError(f"state_dict must hold the {len(self.schedulers)} 'schedulers'")
        pairs = zip(self.schedulers, states, strict=True)
        twin.schedulers = [own._restored(state) for own, state in pairs]
        return twin

    def _remember(self, undo: Undo) -> None:
        super()._remember(undo)
        for scheduler in self.schedulers:
            scheduler._remember(undo)

    def _take(self: Whole, twin: Whole) -> None:
        # The contained objects are kept, since the caller may hold references to them.
        schedulers = self.schedulers
        for own, new in zip(schedulers, twin.schedulers, strict=True):
            own._take(new)
        super()._take(twin)
        self.schedulers = schedulers


class SequentialLR(Composed):
    """Runs schedules one after another.

    Parameters
    ----------
    optimizer : Optimizer
    schedulers : list of LRScheduler
        Schedules of this optimizer. Each counts its steps from where it begins.
    milestones : list of int
        Steps at which the second and the following begin, ascending.
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
        self.milestones = [whole(m, "milestones", 0) for m in sequence(milestones, "milestones")]
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
        """Return the momentum of a group at a step, or None if it is not set."""
        scheduler, local = self._current(step)
        return scheduler.momentum(local, group)

    def _current(self, step: float) -> tuple[LRScheduler, float]:
        i = bisect_right(self.milestones, step)
        return self.schedulers[i], step - (self.milestones[i - 1] if i else 0)


class ChainedScheduler(Composed):
    """Combines schedules by multiplying their factors.

    The factor of a schedule is its rate divided by its base rate.

    Parameters
    ----------
    schedulers : list of LRScheduler
        Schedules of the same optimizer.
    optimizer : Optimizer, optional
        The optimizer of the schedulers.
    """

    def __init__(
        self, schedulers: Sequence[LRScheduler], optimizer: Optimizer | None = None
    ) -> None:
        self.schedulers = _schedulers(schedulers, optimizer)
        super().__init__(self.schedulers[0].optimizer)
        # The first schedule began at the groups' rates.
        self._starts = list(self.schedulers[0]._starts)
        self._set(self._settings(self.last_epoch))

    @property
    def _chains(self) -> bool:  # type: ignore[override]
        return all(s._chains for s in self.schedulers)

    @property
    def _joins(self) -> bool:  # type: ignore[override]
        return all(s._joins for s in self.schedulers)

    def rate(self, step: float, group: int) -> float:
        """Return the rate of a parameter group at a step."""
        return self._rate_from(self.base_lrs[group], step, group)

    def _rate_from(self, base: float, step: float, group: int) -> float:
        return base * self._factor(step, group)

    def _base_of(self, rate: float, step: float, group: int) -> float:
        return rate / (self._factor(step, group) or 1.0)

    def _follow(self) -> None:
        schedulers = [copy.copy(s) for s in self.schedulers]
        if self._joins:
            for scheduler in schedulers:
                scheduler.last_epoch = self.last_epoch
                scheduler._last_lrs = self.get_last_lr()
                scheduler._follow()
        self.schedulers = schedulers
        super()._follow()

    def _factor(self, step: float, group: int) -> float:
        factor = 1.0
        for scheduler in self.schedulers:
            base = scheduler.base_lrs[group]
            factor *= scheduler.rate(step, group) / base if base else 0.0
        return factor

    def momentum(self, step: float, group: int) -> float | None:
        """Return the momentum of a group at a step, or None if no schedule sets it."""
        momenta = [s.momentum(step, group) for s in self.schedulers]
        return next((m for m in reversed(momenta) if m is not None), None)


def _schedulers(schedulers: Sequence[LRScheduler], optimizer: object) -> list[LRScheduler]:
    """Return the schedulers after checking that all belong to one (this) optimizer."""
    try:
        checked = list(schedulers)
    except TypeError:
        raise TypeError(
            f"schedulers must be a list of LRScheduler, got {type(schedulers).__name__}"
        ) from None
    if optimizer is not None:
        require_optimizer(optimizer)
    if not checked:
        raise ValueError("schedulers must hold at least one, got none")
    for i, scheduler in enumerate(checked):
        if not isinstance(scheduler, LRScheduler):
            # ReduceLROnPlateau depends on a metric, not on the step.
            raise TypeError(
                f"schedulers[{i}] must be an LRScheduler, got {type(scheduler).__name__}"
            )
        if scheduler.optimizer is not (checked[0].optimizer if optimizer is None else optimizer):
            raise ValueError(f"schedulers[{i}] must be of the same optimizer as the others")
    return checked

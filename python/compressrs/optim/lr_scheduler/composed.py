"""Schedules made of schedules."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from compressrs._checks import whole
from compressrs.optim.base import Optimizer
from compressrs.optim.lr_scheduler.base import LRScheduler


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
        self.milestones = [whole(m, "milestones", 0) for m in milestones]
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

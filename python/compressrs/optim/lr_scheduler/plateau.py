"""A schedule that goes by a metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from compressrs._checks import choice, number, whole
from compressrs.optim.base import Optimizer
from compressrs.optim.lr_scheduler.base import check_kind, one_each, require_optimizer


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
        self.optimizer = require_optimizer(optimizer)
        self.mode = choice(mode, "mode", ("min", "max"))
        self.factor = number(factor, "factor", 0, below=1)
        self.patience = whole(patience, "patience", 0)
        self.threshold = number(threshold, "threshold", 0)
        self.threshold_mode = choice(threshold_mode, "threshold_mode", ("rel", "abs"))
        self.cooldown = whole(cooldown, "cooldown", 0)
        self.min_lrs = [number(x, "min_lr", 0) for x in one_each(min_lr, "min_lr", optimizer)]
        #: Whether each group has a bound of its own, so that none can be added later.
        self._each = isinstance(min_lr, (list, tuple))
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
        groups = self.optimizer.param_groups
        if len(groups) > len(self.min_lrs):
            if self._each:
                raise ValueError(
                    f"min_lr must be one value or {len(groups)}, one a group, got "
                    f"{len(self.min_lrs)}: group {len(self.min_lrs)} was added later"
                )
            self.min_lrs = self.min_lrs[:1] * len(groups)
        self.last_epoch += 1
        if self._is_better(metric):
            self.best, self.bad_steps = metric, 0
        else:
            self.bad_steps += 1
        if self.cooling > 0:
            self.cooling -= 1
            self.bad_steps = 0
        if self.bad_steps > self.patience:
            for group, low in zip(groups, self.min_lrs, strict=True):
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
        return {"scheduler": type(self).__name__, **{key: getattr(self, key) for key in keys}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises
        ------
        ValueError
            If it is not such a dict; nothing is changed then.
        """
        check_kind(self, state_dict)
        try:
            best = float(state_dict["best"])
            keys = ("bad_steps", "cooling", "last_epoch")
            counts = {key: whole(state_dict[key], key, 0) for key in keys}
            if math.isnan(best) or max(counts.values()) >= 2**53:
                raise ValueError(f"{best} and {counts}")
        except (TypeError, LookupError, ValueError, OverflowError) as error:
            raise ValueError(
                f"state_dict must hold 'best', 'bad_steps', 'cooling' and 'last_epoch', got {error}"
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

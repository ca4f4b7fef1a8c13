"""A schedule that depends on a metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from compressrs._checks import choice, count, number, whole
from compressrs._state import Stateful, Take, Undo, require_keys
from compressrs.optim.base import Optimizer
from compressrs.optim.lr_scheduler.base import check_kind, one_each, require_optimizer


class ReduceLROnPlateau(Stateful):
    r"""Reduces the rate when a metric has stopped improving.

    Parameters
    ----------
    optimizer : Optimizer
    mode : {"min", "max"}, default "min"
        Whether a smaller or a larger metric is better.
    factor : float, default 0.1
        Factor by which the rate is multiplied, in [0, 1).
    patience : int, default 10
        Number of steps without improvement that are tolerated.
    threshold : float, default 1e-4
        Minimum change that counts as an improvement; see `threshold_mode`.
    threshold_mode : {"rel", "abs"}, default "rel"
        Whether a metric must be below ``best * (1 - threshold)`` or ``best - threshold``
        to be an improvement; in mode "max", above ``best * (1 + threshold)`` or
        ``best + threshold``.
    cooldown : int, default 0
        Steps after a reduction during which bad steps are not counted.
    min_lr : float, or list of float, default 0
        Lower bound of the rate, for all groups or one per group.
    eps : float, default 1e-8
        Reductions smaller than this are not applied.

    Raises
    ------
    TypeError, ValueError
        As for `LRScheduler`.

    Notes
    -----
    The relative rule is PyTorch's and meant for positive metrics. With a negative best value,
    such as a negative log-likelihood below 0, ``best * (1 - threshold)`` is larger than `best`:
    in mode "min" a metric that is slightly worse, by up to ``threshold * abs(best)``, counts as
    an improvement and becomes the new best; in mode "max" likewise. Slow deterioration is then
    not noticed. Use ``threshold_mode="abs"`` for metrics that can be negative.

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
        #: Whether there is one bound per group, which rules out adding groups later.
        self._each = isinstance(min_lr, (list, tuple))
        self.eps = number(eps, "eps", 0)
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = 0
        self.cooldown_counter = 0
        self.last_epoch = 0

    def step(self, metrics: float) -> None:
        """Record the metric, and reduce the rate if it has stopped improving.

        NaN counts as no improvement.

        Raises
        ------
        TypeError
            If `metrics` is not a number.
        """
        metric = number(metrics, "metrics", finite=False)
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
            self.best, self.num_bad_epochs = metric, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            for group, low in zip(groups, self.min_lrs, strict=True):
                rate = max(group["lr"] * self.factor, low)
                if group["lr"] - rate > self.eps:
                    group["lr"] = rate
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0

    def get_last_lr(self) -> list[float]:
        """Return the current rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the state that `load_state_dict` needs to resume."""
        keys = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
        return {"scheduler": type(self).__name__, **{key: getattr(self, key) for key in keys}}

    def _checked(self, state_dict: Mapping[str, Any]) -> Take:
        check_kind(self, state_dict)
        counters = ("num_bad_epochs", "cooldown_counter", "last_epoch")
        require_keys(state_dict, ("scheduler", "best", *counters))
        best = number(state_dict["best"], "state_dict['best']", finite=False)
        counts = {key: count(state_dict[key], f"state_dict[{key!r}]") for key in counters}
        if math.isnan(best):
            raise ValueError("state_dict['best'] must be a number, got NaN")

        def take(undo: Undo) -> None:
            undo.remember_attributes(self)
            self.__dict__.update(counts, best=best)

        return take

    def _is_better(self, metric: float) -> bool:
        sign = 1 if self.mode == "max" else -1
        if self.threshold_mode == "abs":
            bound = self.best + sign * self.threshold
        else:
            bound = self.best * (1 + sign * self.threshold)
        return sign * metric > sign * bound

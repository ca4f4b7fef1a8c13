"""Cosine schedules."""

from __future__ import annotations

from compressrs._checks import number, whole
from compressrs.optim.base import Optimizer
from compressrs.optim.lr_scheduler.base import LRScheduler, cosine


class CosineAnnealingLR(LRScheduler):
    r"""Cosine annealing without restarts.

    .. math:: \gamma_t = \gamma_{\min} + \tfrac12 (\gamma_0 - \gamma_{\min})
        \left(1 + \cos \frac{t \pi}{T}\right)

    Parameters
    ----------
    optimizer : Optimizer
    T_max : int
        :math:`T \ge 1`, half a period of the cosine; the rate rises again afterwards.
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
        self.T_max = whole(T_max, "T_max", 1)
        self.eta_min = number(eta_min, "eta_min", 0)
        super().__init__(optimizer, last_epoch)

    _chains = _joins = True

    def rate(self, step: float, group: int) -> float:
        """Return the rate of a parameter group at a step."""
        return self._rate_from(self.base_lrs[group], step, group)

    def _rate_from(self, base: float, step: float, group: int) -> float:
        return cosine(base, self.eta_min, step / self.T_max)

    def _base_of(self, rate: float, step: float, group: int) -> float:
        # The fraction of the distance from the minimum rate to the base rate.
        height = cosine(1.0, 0.0, step / self.T_max)
        if height < 1e-12:  # at the minimum, where every base rate gives the same
            return self._starts[group] if group < len(self._starts) else rate
        return self.eta_min + (rate - self.eta_min) / height


class CosineAnnealingWarmRestarts(LRScheduler):
    r"""Cosine annealing with warm restarts, in periods that may grow.

    Parameters
    ----------
    optimizer : Optimizer
    T_0 : int
        Steps of the first period, at least 1.
    T_mult : int, default 1
        Factor between the lengths of successive periods, at least 1.
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
        self.T_0 = whole(T_0, "T_0", 1)
        self.T_mult = whole(T_mult, "T_mult", 1)
        self.eta_min = number(eta_min, "eta_min", 0)
        super().__init__(optimizer, last_epoch)

    _takes_fractions = True

    def step(self, epoch: float | None = None) -> None:
        """Advance by one step, or to `epoch`, which may be fractional."""
        if epoch is not None:
            epoch = number(epoch, "epoch", 0, below=2**53)
        self._go_to(self.last_epoch + 1 if epoch is None else epoch)

    def rate(self, step: float, group: int) -> float:
        """Return the rate of a parameter group at a step."""
        start, period = 0.0, self.T_0
        if self.T_mult == 1:
            start = step // period * period
        while step >= start + period:
            start += period
            period *= self.T_mult
        return cosine(self.base_lrs[group], self.eta_min, (step - start) / period)

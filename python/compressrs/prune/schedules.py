"""Sparsity as a function of the training step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from compressrs._checks import number, whole

#: A function from the training step, counted from 0, to the sparsity.
Schedule: TypeAlias = Callable[[int], float]


class OneShot:
    r"""One-shot pruning: 0 before step `begin`, the final sparsity from then on.

    Parameters
    ----------
    final : float, default 0.95
        Sparsity in [0, 1).
    begin : int, default 0
        The pruning step.

    Raises
    ------
    TypeError
        If a parameter is not a number, or a step not an integer.
    ValueError
        If a parameter is out of range.

    Examples
    --------
    >>> import compressrs as cr
    >>> schedule = cr.prune.OneShot(final=0.8, begin=10)
    >>> [schedule(t) for t in (0, 9, 10, 11)]
    [0.0, 0.0, 0.8, 0.8]
    """

    def __init__(self, final: float = 0.95, begin: int = 0) -> None:
        self.final = number(final, "final", 0, below=1)
        self.begin = whole(begin, "begin", 0)

    def __call__(self, step: int) -> float:
        """Return the sparsity at training step `step`, counted from 0."""
        return self.final if whole(step, "step", 0) >= self.begin else 0.0

    def __repr__(self) -> str:
        return f"OneShot(final={self.final}, begin={self.begin})"


class _Gradual:
    """Base of schedules from one sparsity to another; `_between` interpolates."""

    def __init__(
        self,
        initial: float = 0.0,
        final: float = 0.95,
        begin: int = 0,
        end: int = 1000,
        frequency: int = 1,
    ) -> None:
        self.initial = number(initial, "initial", 0, below=1)
        self.final = number(final, "final", 0, below=1)
        self.begin, self.end = whole(begin, "begin", 0), whole(end, "end", 0)
        if self.end <= self.begin:
            raise ValueError(f"end must be greater than begin, got {end} and {begin}")
        self.frequency = whole(frequency, "frequency", 1)

    def _between(self, left: float) -> float:
        """Return the sparsity when a fraction `left` of the schedule remains."""
        raise NotImplementedError

    def __call__(self, step: int) -> float:
        """Return the sparsity at training step `step`, counted from 0."""
        step = whole(step, "step", 0)
        if step < self.begin:
            return 0.0
        if step >= self.end:
            return self.final
        pruned = (step - self.begin) // self.frequency * self.frequency
        return self._between(1 - pruned / (self.end - self.begin))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(initial={self.initial}, final={self.final}, "
            f"begin={self.begin}, end={self.end}, frequency={self.frequency})"
        )


class CubicSchedule(_Gradual):
    r"""The gradual schedule of Zhu & Gupta, which prunes fast at first and slowly at the end.

    .. math:: s_t = s_f + (s_i - s_f) \left(1 - \frac{t - t_0}{n \Delta t}\right)^3

    for :math:`t \in \{t_0, t_0 + \Delta t, \dots, t_0 + n \Delta t\}`; between these
    steps the sparsity is constant. Before `begin` it is 0, from `end` on it is `final`.

    Parameters
    ----------
    initial : float, default 0.0
        Sparsity :math:`s_i` at `begin`, in [0, 1).
    final : float
        Sparsity :math:`s_f` at `end`, in [0, 1).
    begin : int, default 0
        First pruning step :math:`t_0`.
    end : int
        Last pruning step :math:`t_0 + n \Delta t`, after `begin`.
    frequency : int, default 1
        Steps :math:`\Delta t` between pruning steps.

    Raises
    ------
    TypeError
        If a parameter is not a number, or a step not an integer.
    ValueError
        If a parameter is out of range.

    References
    ----------
    Zhu & Gupta, "To prune, or not to prune", arXiv 1710.01878, equation 1.

    Examples
    --------
    >>> import compressrs as cr
    >>> schedule = cr.prune.CubicSchedule(final=0.8, begin=10, end=20, frequency=5)
    >>> [round(schedule(t), 3) for t in (0, 10, 14, 15, 20, 30)]
    [0.0, 0.0, 0.0, 0.7, 0.8, 0.8]
    """

    def _between(self, left: float) -> float:
        """Return the sparsity when a fraction `left` of the schedule remains."""
        return self.final + (self.initial - self.final) * left**3


class LinearSchedule(_Gradual):
    r"""A linear schedule: every pruning step removes the same number of weights.

    .. math:: s_t = s_f + (s_i - s_f) \left(1 - \frac{t - t_0}{n \Delta t}\right)

    Parameters and errors are those of `CubicSchedule`.

    Examples
    --------
    >>> import compressrs as cr
    >>> schedule = cr.prune.LinearSchedule(final=0.8, begin=10, end=20, frequency=5)
    >>> [round(schedule(t), 3) for t in (9, 10, 14, 15, 20, 30)]
    [0.0, 0.0, 0.0, 0.4, 0.8, 0.8]
    """

    def _between(self, left: float) -> float:
        """Return the sparsity when a fraction `left` of the schedule remains."""
        return self.final + (self.initial - self.final) * left


class ExponentialSchedule(_Gradual):
    r"""A schedule of exponentially decreasing density.

    .. math::
        1 - s_t = (1 - s_i)^{1 - p} (1 - s_f)^p, \qquad p = \frac{t - t_0}{n \Delta t}

    Parameters and errors are those of `CubicSchedule`.

    References
    ----------
    Han et al., arXiv 1506.02626, and Frankle & Carbin, arXiv 1803.03635, whose pruning
    rounds each remove a fraction of the remaining weights.

    Examples
    --------
    >>> import compressrs as cr
    >>> schedule = cr.prune.ExponentialSchedule(final=0.75, begin=10, end=20, frequency=5)
    >>> [round(schedule(t), 3) for t in (9, 10, 14, 15, 20, 30)]
    [0.0, 0.0, 0.0, 0.5, 0.75, 0.75]
    """

    def _between(self, left: float) -> float:
        """Return the sparsity when a fraction `left` of the schedule remains."""
        return float(1 - (1 - self.initial) ** left * (1 - self.final) ** (1 - left))


class IterativeSchedule:
    r"""Iterative pruning: each round removes a fraction of the remaining weights.

    .. math:: s_t = \min(s_f, 1 - (1 - r)^k), \qquad k = 1 + \lfloor (t - t_0) / \Delta t \rfloor

    Between rounds, training continues or restarts from a `LotteryTicket`.

    Parameters
    ----------
    rate : float, default 0.2
        Fraction of the remaining weights that a round removes, in (0, 1).
    final : float, default 0.95
        Sparsity after the last round, in [0, 1).
    begin : int, default 0
        Step of the first round.
    frequency : int, default 1000
        Steps between rounds.

    Attributes
    ----------
    rounds : int
        Number of rounds until the final sparsity is reached.
    end : int
        Step of the last round.

    Raises
    ------
    TypeError
        If a parameter is not a number, or a step not an integer.
    ValueError
        If a parameter is out of range, or `rate` is 0, which would never reach `final`.

    References
    ----------
    Frankle & Carbin, "The Lottery Ticket Hypothesis", arXiv 1803.03635.

    Examples
    --------
    >>> import compressrs as cr
    >>> schedule = cr.prune.IterativeSchedule(rate=0.5, final=0.8, begin=10, frequency=10)
    >>> [schedule(t) for t in (9, 10, 19, 20, 30, 1000)]
    [0.0, 0.5, 0.5, 0.75, 0.8, 0.8]
    >>> schedule.rounds, schedule.end
    (3, 30)
    """

    def __init__(
        self, rate: float = 0.2, final: float = 0.95, begin: int = 0, frequency: int = 1000
    ) -> None:
        self.rate = number(rate, "rate", 0, below=1)
        if self.rate == 0:
            raise ValueError("rate must be in (0, 1), got 0, which removes nothing")
        if self.rate < 1e-12:
            raise ValueError(f"rate must be at least 1e-12, got {rate!r}")
        self.final = number(final, "final", 0, below=1)
        self.begin = whole(begin, "begin", 0)
        self.frequency = whole(frequency, "frequency", 1)

    @property
    def rounds(self) -> int:
        """Number of rounds until the final sparsity is reached."""
        # Tolerates rounding errors in quotients that are mathematically whole.
        exact = math.log1p(-self.final) / math.log1p(-self.rate)
        return max(1, math.ceil(exact - 1e-9))

    @property
    def end(self) -> int:
        """Step of the last round."""
        return self.begin + (self.rounds - 1) * self.frequency

    def __call__(self, step: int) -> float:
        """Return the sparsity at training step `step`, counted from 0."""
        step = whole(step, "step", 0)
        if step < self.begin:
            return 0.0
        if step >= self.end:
            return self.final
        k = 1 + (step - self.begin) // self.frequency
        return min(self.final, float(1 - (1 - self.rate) ** k))

    def __repr__(self) -> str:
        return (
            f"IterativeSchedule(rate={self.rate}, final={self.final}, begin={self.begin}, "
            f"frequency={self.frequency})"
        )

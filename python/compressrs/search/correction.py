"""Correction of errors that do not add up (SPDY): a search over coefficients of layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compressrs._checks import count, function, generator, returned_number
from compressrs._text import markdown_table
from compressrs.nn.layer import RandomState
from compressrs.search._tables import Floats
from compressrs.search.allocation import Allocation
from compressrs.search.measurements import Measurements

#: The largest share of layers whose coefficients change at once, at first.
SHARE = 0.25


@dataclass(frozen=True)
class Trial:
    """A choice, what its errors sum to without correction, and the model's loss with it."""

    choice: tuple[int, ...]
    predicted: float
    loss: float


@dataclass(frozen=True)
class Correction:
    """What `correct` found.

    Attributes
    ----------
    coefficients : array of float64, shape (layers,)
        For `Measurements.allocate`.
    allocation : Allocation
        The choice with the least loss.
    trials : list of Trial
        The choices that were evaluated, the first of them that of equal coefficients.
    """

    coefficients: Floats
    allocation: Allocation
    trials: list[Trial]

    @property
    def correlation(self) -> float:
        """Spearman's rank correlation of predicted errors and losses; NaN for fewer than 3."""
        finite = [t for t in self.trials if math.isfinite(t.loss)]
        if len(finite) < 3:
            return math.nan
        one, other = (_ranks([getattr(t, name) for t in finite]) for name in ("predicted", "loss"))
        spread = float(one.std() * other.std())
        if spread == 0:
            return math.nan
        return float(((one - one.mean()) * (other - other.mean())).mean() / spread)

    def table(self) -> str:
        """Return predicted errors and losses of the whole model as a Markdown table."""
        trials = enumerate(self.trials)
        rows = ((str(i), f"{t.predicted:.6g}", f"{t.loss:.6g}") for i, t in trials)
        return markdown_table([("Trial", "predicted error", "loss"), *rows], 0)


def correct(
    measurements: Measurements,
    budget: float | Mapping[str, float],
    evaluate: Callable[[Sequence[int]], float],
    *,
    trials: int = 50,
    rng: RandomState = 0,
) -> Correction:
    """Find coefficients of the layers' errors whose allocation has the least true loss.

    Errors of layers add up only roughly: a layer may matter more to the loss than its output
    error says. Coefficients start at 1; in each trial those of some layers, fewer and fewer,
    are multiplied by random factors, and kept if the loss of the allocation for them is less.

    Parameters
    ----------
    measurements : Measurements
    budget : float, or dict of str to float
        See `Measurements.allocate`.
    evaluate : callable
        Returns the loss of the model for a choice (the option's number of each layer). A loss
        that is not finite is never the best. Choices that come up again are not evaluated
        again.
    trials : int, default 50
        Allocations after the first.
    rng : int, Generator or None, default 0

    Returns
    -------
    Correction

    Raises
    ------
    TypeError, ValueError
        If an argument is none of these, or as `compressrs.search.allocate`.

    References
    ----------
    Frantar & Alistarh, "SPDY: Accurate Pruning with Speedup Guarantees", arXiv 2201.13096,
    section 3.3.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> tables = [np.array([0.0, 1.0])] * 2, {"bytes": [np.array([2.0, 1.0])] * 2}
    >>> found = cr.search.Measurements(["a", "b"], [["x", "y"]] * 2, *tables)
    >>> matters = cr.search.correct(found, 3, lambda choice: 5.0 * choice[0] + choice[1])
    >>> matters.allocation.choice
    [0, 1]
    """
    if not isinstance(measurements, Measurements):
        raise TypeError(f"measurements must be Measurements, got {type(measurements).__name__}")
    function(evaluate, "evaluate")
    trials = count(trials, "trials")
    draw = generator(rng)
    layers = len(measurements.names)
    coefficients = np.ones(layers)
    allocation = measurements.allocate(budget)
    seen: dict[tuple[int, ...], Trial] = {}

    def loss_of(choice: Sequence[int]) -> float:
        key = tuple(choice)
        if key not in seen:
            predicted = math.fsum(e[k] for e, k in zip(measurements.errors, key, strict=True))
            seen[key] = Trial(key, predicted, _loss(evaluate(list(key))))
        return seen[key].loss

    least = loss_of(allocation.choice)
    for trial in range(trials):
        changing = max(round(SHARE * layers * (1 - trial / trials)), 1)
        changed = coefficients.copy()
        at = draw.choice(layers, min(changing, layers), replace=False)
        changed[at] *= np.exp(draw.normal(0, 1, len(at)))
        other = measurements.allocate(budget, coefficients=changed)
        loss = loss_of(other.choice)
        if loss < least:
            coefficients, allocation, least = changed, other, loss
    return Correction(coefficients, allocation, list(seen.values()))


def _loss(value: object) -> float:
    loss = returned_number(value, "evaluate")
    return loss if math.isfinite(loss) else math.inf


def _ranks(values: Sequence[float]) -> Floats:
    """Return ranks, equal ones for equal values."""
    array = np.asarray(values)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    middles: Floats = ends - (counts - 1) / 2
    return middles[inverse]

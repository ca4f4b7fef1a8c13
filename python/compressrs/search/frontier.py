"""All choices of one option a layer that are the best for some budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compressrs._arrays import Array
from compressrs._checks import number, whole
from compressrs._warnings import warn
from compressrs.search._relaxation import Hulls
from compressrs.search._tables import Floats, Ints, Layer, Tables, tables
from compressrs.search.allocation import (
    Allocation,
    InfeasibleError,
    UnprovenWarning,
    ceiling,
)

#: Points of a frontier at most.
POINTS = 50_000


@dataclass(frozen=True)
class Frontier:
    """The trade-off between error and cost: points by rising cost and falling error.

    Attributes
    ----------
    cost, error : array of float64, shape (points,)
    bound : array of float64, shape (points,)
        No choice of at most a point's cost has a smaller error; equal to `error` if `exact`.
    exact : bool
        Whether these are all choices that no other dominates.
    """

    cost: Floats
    error: Floats
    bound: Floats
    exact: bool
    _tables: Tables
    _trail: tuple[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]], ...]

    def __len__(self) -> int:
        return len(self.cost)

    def choice(self, point: int) -> list[int]:
        """Return the option of each layer at a point.

        Raises
        ------
        TypeError, ValueError
            If there is no such point.
        """
        label = whole(point, "point", 0, len(self) - 1)
        picked = []
        for before, option in reversed(self._trail):
            picked.append(int(option[label]))
            label = int(before[label])
        return self._tables.choice(picked[::-1])

    def within(self, budget: float) -> Allocation:
        """Return the point with the least error whose exact cost is within a budget.

        Raises
        ------
        TypeError
            If the budget is not a number.
        InfeasibleError
            If no point is within it.
        """
        budget = number(budget, "budget", 0)
        # Costs here are rounded: those next to the budget are decided exactly.
        high = np.nextafter(budget, np.inf)
        for point in range(int(np.searchsorted(self.cost, high, "right")) - 1, -1, -1):
            choice = self.choice(point)
            if self._tables.fits(choice, [budget]):
                error = self._tables.error(choice)
                least, price = Hulls(self._tables.layers).at(budget)
                bound = error if self.exact else min(least, error)
                cost = self._tables.cost(choice)[0]
                return Allocation(choice, error, cost, budget, bound, [price])
        costs = [float(c[k, 0]) for c, k in zip(self._tables.costs, self.choice(0), strict=True)]
        raise InfeasibleError(
            f"budget must be at least {ceiling(costs)!r}, what the cheapest choice costs, "
            f"got {budget!r}"
        )


def pareto(
    errors: Sequence[Array],
    costs: Sequence[Array],
    *,
    ties: Sequence[Sequence[int]] | None = None,
    points: int = POINTS,
) -> Frontier:
    """Return the best choices of one option a layer for all budgets at once.

    Parameters
    ----------
    errors, costs, ties
        See `allocate`; for one budget.
    points : int, default 50,000
        The most points that are kept. A frontier that has more is thinned, evenly along the
        cost, with a warning; each point then still has a bound.

    Returns
    -------
    Frontier

    Raises
    ------
    TypeError, ValueError
        As `allocate`; if the options have several costs.

    Warns
    -----
    UnprovenWarning
        If the frontier had to be thinned.

    Notes
    -----
    Costs and errors are compared as sums of doubles: choices that agree to about
    ``layers * 2**-52`` may count as equal.

    Examples
    --------
    >>> import compressrs as cr
    >>> found = cr.search.pareto([[0.0, 1.0, 4.0], [0.0, 3.0]], [[8, 4, 2], [16, 8]])
    >>> found.cost, found.error
    (array([10., 12., 16., 20., 24.]), array([7., 4., 3., 1., 0.]))
    >>> found.choice(3)
    [1, 0]
    >>> found.within(21).error
    1.0
    """
    given = tables(errors, costs, ties)
    if given.budgets != 1:
        raise ValueError(f"costs must be one an option for a frontier, got {given.budgets}")
    points = whole(points, "points", 2)
    cost = error = np.zeros(1)
    trail = []
    thinned = False
    hulls = Hulls(given.layers)
    for done, layer in enumerate(given.layers, 1):
        cost, error, before, option = _extended(cost, error, layer)
        if len(cost) > points:
            thinned = True
            kept = _thinned(cost, error, hulls.first(done), points)
            cost, error, before, option = cost[kept], error[kept], before[kept], option[kept]
        trail.append((before, option))
    bound = error
    if thinned:
        bound = np.minimum(np.interp(cost, *hulls.first(len(given.layers))), error)
        warn(
            f"the frontier has more than {points} points and was thinned; the largest gap is "
            f"{float((error - bound).max()):g}",
            UnprovenWarning,
        )
    return Frontier(cost, error, bound, not thinned, given, tuple(trail))


def _extended(
    cost: Floats, error: Floats, layer: Layer
) -> tuple[Floats, Floats, npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return all points with each of a layer's options that are not dominated."""
    options = len(layer.error)
    costs = (cost[:, None] + layer.cost[0]).reshape(-1)
    errors = (error[:, None] + layer.error).reshape(-1)
    candidates = None
    if len(costs) > 4096:
        candidates = np.flatnonzero(~_clearly_dominated(costs, errors))
        costs, errors = costs[candidates], errors[candidates]
    order = np.argsort(costs)
    if (np.diff(costs[order]) == 0).any():
        order = np.lexsort((errors, costs))
    costs, errors = costs[order], errors[order]
    kept = np.ones(len(costs), np.bool_)
    kept[1:] = errors[1:] < np.minimum.accumulate(errors)[:-1]
    at = order[kept] if candidates is None else candidates[order[kept]]
    before, option = np.divmod(at, options)
    return costs[kept], errors[kept], before.astype(np.int32), option.astype(np.int32)


def _clearly_dominated(costs: Floats, errors: Floats) -> npt.NDArray[np.bool_]:
    """Whether something in a lower interval of costs has no larger error: most are, quickly."""
    buckets = 1 << (len(costs).bit_length() - 3)
    low, span = costs.min(), float(np.ptp(costs)) or 1.0
    bucket = ((costs - low) * ((buckets - 1) / span)).astype(np.int32)
    least = np.full(buckets + 1, np.inf)
    np.minimum.at(least[1:], bucket, errors)
    dominated: npt.NDArray[np.bool_] = errors >= np.minimum.accumulate(least)[bucket]
    return dominated


def _thinned(cost: Floats, error: Floats, hull: tuple[Floats, Floats], points: int) -> Ints:
    """Return at most `points` of a frontier: of each interval of costs what is nearest the hull."""
    above = error - np.interp(cost, *hull)
    inner = points - 2
    bucket = ((cost - cost[0]) * (inner / (cost[-1] - cost[0]))).astype(np.int64)
    bucket[0], bucket[-1] = -1, inner + 1
    order = np.lexsort((above, bucket))
    first = np.ones(len(order), np.bool_)
    first[1:] = np.diff(bucket[order]) > 0
    return order[first]

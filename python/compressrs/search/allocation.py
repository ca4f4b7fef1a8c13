"""Exact choice of one option a layer within budgets, and all such choices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressrs._arrays import Array
from compressrs._checks import number, whole
from compressrs._warnings import warn
from compressrs.search import _labels
from compressrs.search._relaxation import Relaxation, relax
from compressrs.search._tables import Tables, limits, tables

#: Labels that are kept at once.
MAX_LABELS = 1_000_000


class InfeasibleError(ValueError):
    """No choice is within the budgets; the message says what the least is."""


class UnprovenWarning(UserWarning):
    """Issued when a choice could not be proven to be the best."""


@dataclass(frozen=True)
class Allocation:
    r"""A choice of one option a layer, and what is proven of it.

    Attributes
    ----------
    choice : list of int
        The option of each layer.
    error : float
        The sum of its errors.
    cost : float, or list of float
        The sum of its costs, a list if `budget` was one.
    budget : float, or list of float
    bound : float
        No choice within the budgets has a smaller error (to within rounding of sums).
    multipliers : list of float
        Prices of the budgets, :math:`\lambda \ge 0`. For these,
        :math:`\sum_l \min_k (e_{lk} + \lambda c_{lk}) - \lambda B` is a bound that anyone
        can recompute; `bound` is at least as high.
    """

    choice: list[int]
    error: float
    cost: float | list[float]
    budget: float | list[float]
    bound: float
    multipliers: list[float]

    @property
    def gap(self) -> float:
        """``error - bound``: 0 if the choice is proven to be the best."""
        return self.error - self.bound

    @property
    def exact(self) -> bool:
        """Whether the choice is proven to be the best."""
        return self.gap == 0


def allocate(
    errors: Sequence[Array],
    costs: Sequence[Array],
    budget: float | Sequence[float],
    *,
    ties: Sequence[Sequence[int]] | None = None,
    tolerance: float = 0.0,
    max_labels: int = MAX_LABELS,
) -> Allocation:
    r"""Return the choice of one option a layer with the least error within the budgets.

    .. math:: \min_k \sum_l e_{l,k_l} \quad\text{such that}\quad \sum_l c_{l,k_l} \le B

    for up to three costs and budgets at once (a multiple-choice knapsack problem). The
    optimum is exact: labels of (error, costs) are extended layer by layer; those that another
    dominates, that no choice for the later layers brings within the budgets, or whose
    Lagrangian bound is above the best choice are removed.

    Parameters
    ----------
    errors : sequence of array, shape (options,)
        A layer each, with as many options as it has.
    costs : sequence of array, shape (options,) or (options, budgets)
        What the options cost.
    budget : float or sequence of float
        The most that the costs may sum to.
    ties : sequence of sequence of int, optional
        Groups of layers that must take the same option.
    tolerance : float, default 0.0
        Stop at a choice whose error is at most this share above the bound.
    max_labels : int, default 1,000,000
        Labels that are kept at once. With more, as several budgets and hundreds of layers
        can need, the best choice so far is returned, with its gap and a warning.

    Returns
    -------
    Allocation

    Raises
    ------
    TypeError
        If an argument has another type.
    ValueError
        If there are no layers or a layer has no options; if lengths disagree; if a number is
        NaN, infinite or negative; if with `max_labels` neither a choice is found nor that
        there is none.
    InfeasibleError
        If no choice is within the budgets: a ValueError that says what the least is.

    Warns
    -----
    UnprovenWarning
        If `max_labels` were not enough to prove the choice.

    Notes
    -----
    Whether a choice is within a budget is decided by the exact sum of its costs, not by a
    rounded one: it never exceeds the budget, and may use all of it. Sums of errors are those
    of doubles, so that of two choices whose errors agree to about ``layers * 2**-52`` either
    may be returned.

    References
    ----------
    Pisinger, "A minimal algorithm for the multiple-choice knapsack problem", European
    Journal of Operational Research 83, 1995: bounds and core. Frantar & Alistarh, "SPDY:
    Accurate Pruning with Speedup Guarantees", arXiv 2201.13096: this allocation of
    sparsities, on a grid of costs.

    Examples
    --------
    >>> import compressrs as cr
    >>> errors = [[0.0, 1.0, 4.0], [0.0, 3.0]]  # of keeping 8, 4, 2 bits, and of 8, 4 bits
    >>> sizes = [[8, 4, 2], [16, 8]]
    >>> found = cr.search.allocate(errors, sizes, 20)
    >>> found.choice, found.error, found.cost, found.gap
    ([1, 0], 1.0, 20.0, 0.0)
    >>> try:
    ...     cr.search.allocate(errors, sizes, 9)
    ... except cr.search.InfeasibleError as error:
    ...     print(error)
    budget must be at least 10, what the cheapest choice costs, got 9
    """
    given = tables(errors, costs, ties)
    limit = limits(budget, given.budgets)
    tolerance = number(tolerance, "tolerance", 0)
    max_labels = whole(max_labels, "max_labels", 1)
    _require_feasible(given, limit)
    relaxation = relax(given, limit)
    picked, bound = _solve(given, limit, relaxation, tolerance, max_labels)
    if picked is None:
        raise InfeasibleError(_least_of_several(given, limit, ties, max_labels))
    choice = given.choice(picked)
    error, cost = given.error(choice), given.cost(choice)
    # The bound is of rounded sums.
    bound = min(bound, error)
    if error - bound > tolerance * error:
        warn(
            f"the choice is within {error - bound:g} of the best, but {max_labels} labels do not "
            "prove that it is the best; max_labels may be larger",
            UnprovenWarning,
        )
    single = np.ndim(np.asarray(budget, object)) == 0
    return Allocation(
        choice,
        error,
        cost[0] if single else cost,
        limit[0] if single else limit,
        bound,
        relaxation.multipliers.tolist(),
    )


def _solve(
    given: Tables, limit: list[float], start: Relaxation, tolerance: float, max_labels: int
) -> tuple[list[int] | None, float]:
    """Return the best choice, None if there is none, and a lower bound of its error."""
    picked = None if start.picked is None else start.picked.tolist()
    best = math.inf if picked is None else given.error(given.choice(picked))
    prices = [layer.error + start.multipliers @ layer.cost for layer in given.layers]
    # What sums of doubles may lose.
    slack = (
        4
        * len(prices)
        * 2.0**-52
        * (
            math.fsum(float(price.max()) for price in prices)
            + float(start.multipliers @ np.array(limit))
        )
    )
    # No choice exceeds the bound by more: then nothing is left out.
    widest = math.fsum(float(price.max() - price.min()) for price in prices)
    bound = start.bound
    # Of choices near to the bound there are few: look further step by step.
    most = max((best - bound) / 64, 0.0) if picked is not None else widest / 256
    while best == math.inf or best - bound > tolerance * best:
        most = min(most, max(best - start.bound, 0.0))
        try:
            found, cut = _labels.search(
                given.layers, limit, start.multipliers, slack, most, given.exact, max_labels
            )
        except _labels.TooManyLabels:
            if picked is None:
                raise ValueError(
                    f"max_labels must be larger: with {max_labels} neither a choice within the "
                    "budgets was found nor that there is none"
                ) from None
            return picked, min(bound, best)
        if found is not None:
            error = given.error(given.choice(found))
            if error < best and given.fits(given.choice(found), limit):
                picked, best = found, error
        if not cut or start.bound + most >= best:
            return picked, best
        bound = max(bound, start.bound + most)
        most *= 4
    return picked, min(bound, best)


def _require_feasible(given: Tables, limit: list[float]) -> None:
    """Raise an InfeasibleError if one of the budgets is too small by itself."""
    for b, most in enumerate(limit):
        # The cheapest option: the first by cost and what rounding left of it.
        least = [int(np.lexsort((layer.rest[b], layer.cost[b]))[0]) for layer in given.layers]
        choice = given.choice(least)
        costs = [float(c[k, b]) for c, k in zip(given.costs, choice, strict=True)]
        if math.fsum([*costs, -most]) > 0:
            name = "budget" if len(limit) == 1 else f"budget[{b}]"
            raise InfeasibleError(
                f"{name} must be at least {_text(ceiling(costs))}, what the cheapest choice "
                f"costs, got {_text(most)}"
            )


def ceiling(costs: list[float]) -> float:
    """Return the smallest double that is at least the exact sum of costs."""
    total = math.fsum(costs)
    return math.nextafter(total, math.inf) if math.fsum([*costs, -total]) > 0 else total


def _text(cost: float) -> str:
    """Return the shortest text of exactly this number."""
    return repr(cost).removesuffix(".0")


def _least_of_several(given: Tables, limit: list[float], ties: Any, max_labels: int) -> str:
    """Return what to say where each budget is enough by itself, but not all at once."""
    said = []
    for b in range(len(limit)):
        others = [i for i in range(len(limit)) if i != b]
        try:
            least = allocate(
                [c[:, b] for c in given.costs],
                [c[:, others] for c in given.costs],
                [limit[i] for i in others],
                ties=ties,
                max_labels=max_labels,
            )
        except ValueError:
            continue
        costs = [float(c[k, b]) for c, k in zip(given.costs, least.choice, strict=True)]
        said.append(f"budget[{b}] of {_text(ceiling(costs))}")
    return (
        f"budget must allow a choice, got {limit}: no choice is within all of them; with the "
        f"others as they are it takes {' or '.join(said) or 'more of several'}"
    )

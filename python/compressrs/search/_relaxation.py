"""Bounds and first solutions: the Lagrangian relaxation of an allocation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from compressrs.search._tables import Floats, Ints, Layer, Tables

#: Evaluations of the dual function for two and three budgets.
STEPS = 600

#: The largest price that is looked for, in errors of all layers a budget.
RADIUS = 100.0


class Padded:
    """All layers' options in arrays of one width; what is padded costs infinity."""

    def __init__(self, layers: list[Layer]) -> None:
        width = max(len(layer.error) for layer in layers)
        count, budgets = len(layers), len(layers[0].cost)
        self.error = np.full((count, width), np.inf)
        self.cost = np.full((budgets, count, width), np.inf)
        for i, layer in enumerate(layers):
            self.error[i, : len(layer.error)] = layer.error
            self.cost[:, i, : len(layer.error)] = layer.cost
        self.rows = np.arange(count)

    def of(self, picked: Ints) -> tuple[float, Floats]:
        """Return the error and the costs of a choice."""
        return float(self.error[self.rows, picked].sum()), self.cost[:, self.rows, picked].sum(1)

    def cheapest(self, multipliers: Floats) -> Ints:
        """Return what each layer takes where costs have prices."""
        total = self.error.copy()
        for price, cost in zip(multipliers, self.cost, strict=True):
            if price > 0:
                total += price * cost
        found: Ints = np.argmin(total, axis=1)
        return found


@dataclass(frozen=True)
class Relaxation:
    """A lower bound of the error, the prices that give it, and a choice within the budgets."""

    bound: float
    multipliers: Floats
    picked: Ints | None


def relax(tables: Tables, budget: list[float]) -> Relaxation:
    """Return the best Lagrangian bound that is found, and a choice if one is."""
    padded, limit = Padded(tables.layers), np.array(budget)
    if len(budget) == 1:
        multipliers, seen = np.array([Hulls(tables.layers).at(budget[0])[1]]), []
        # By cost: the first option of each layer is its cheapest.
        seen.append(np.zeros(len(padded.rows), np.intp))
    else:
        multipliers, seen = _ellipsoid(padded, limit)
    # Dearer costs until the choice fits.
    for factor in (1, 1.0001, 1.001, 1.01, 1.1, 2, 10, 1e3, 1e6):
        seen.append(padded.cheapest(multipliers * factor))
    candidates = sorted(((padded.of(picked)[0], k) for k, picked in enumerate(seen)))
    fitting = (
        seen[k] for _, k in candidates if tables.fits(tables.choice(seen[k].tolist()), budget)
    )
    first = next(fitting, None)
    best = None if first is None else _improved(padded, first, limit, tables, budget)
    return Relaxation(bound_of(tables, budget, multipliers), multipliers, best)


def bound_of(tables: Tables, budget: list[float], multipliers: Floats) -> float:
    r"""Return :math:`\sum_l \min_k (e_{lk} + \lambda c_{lk}) - \lambda B`."""
    prices = multipliers.tolist()
    least = (float((layer.error + multipliers @ layer.cost).min()) for layer in tables.layers)
    return max(
        math.fsum([*least, *(-p * b for p, b in zip(prices, budget, strict=True))]),
        math.fsum(float(layer.error.min()) for layer in tables.layers),
    )


def hull(layer: Layer) -> list[int]:
    """Return the options on the lower convex hull of error over the only cost, by cost."""
    cost, error = layer.cost[0].tolist(), layer.error.tolist()
    found: list[int] = []
    for k in range(len(cost)):
        while len(found) > 1:
            i, j = found[-2], found[-1]
            if (error[j] - error[i]) * (cost[k] - cost[j]) < (error[k] - error[j]) * (
                cost[j] - cost[i]
            ):
                break
            found.pop()
        found.append(k)
    return found


class Hulls:
    """The lower convex hulls of layers' options: of their sums, the relaxed frontier."""

    def __init__(self, layers: list[Layer]) -> None:
        costs, errors = [], []
        for layer in layers:
            at = hull(layer)
            costs.append(layer.cost[0][at])
            errors.append(layer.error[at])
        cost = np.concatenate([np.diff(c) for c in costs])
        gain = np.concatenate([-np.diff(e) for e in errors])
        with np.errstate(over="ignore"):
            rate = gain / cost
        order = np.argsort(-rate, kind="stable")
        layer_of = np.repeat(np.arange(len(layers)), [len(c) - 1 for c in costs])
        # Steps along the hulls by falling gain a cost.
        self._rate, self._cost, self._gain = rate[order], cost[order], gain[order]
        self._layer = layer_of[order]
        self._first_cost = np.array([c[0] for c in costs])
        self._first_error = np.array([e[0] for e in errors])

    def first(self, count: int) -> tuple[Floats, Floats]:
        """Return costs and errors of the corners of the relaxed frontier of the first layers."""
        of = self._layer < count
        cost, gain = np.cumsum(self._cost[of]), np.cumsum(self._gain[of])
        start = math.fsum(self._first_cost[:count])
        error = math.fsum(self._first_error[:count])
        return np.concatenate([[start], start + cost]), np.concatenate([[error], error - gain])

    def at(self, budget: float) -> tuple[float, float]:
        """Return the relaxed error at a budget, and the gain of a little more of it."""
        cost, error = self.first(len(self._first_cost))
        following = int(np.searchsorted(cost, budget, side="right"))
        price = 0.0
        if 0 < following < len(cost):
            price = float(self._rate[following - 1])
        return float(np.interp(budget, cost, error)), price if math.isfinite(price) else 0.0


def _ellipsoid(padded: Padded, limit: Floats) -> tuple[Floats, list[Ints]]:
    """Maximize the dual function of two or three prices by the ellipsoid method."""
    n = len(limit)
    # Errors and costs in units of their ranges, so that prices are of order 1.
    span = float(np.where(np.isfinite(padded.error), padded.error, 0).max(axis=1).sum()) or 1.0
    scale = np.where(limit > 0, limit, 1.0)
    enough = 0.01 / len(padded.rows) ** 2
    center, shape = np.zeros(n), np.eye(n) * RADIUS**2
    best, found = -math.inf, center.copy()
    fitting: list[tuple[float, Ints]] = []
    for _ in range(STEPS):
        depth = 0.0
        if (center < 0).any():
            gradient = np.where(center < 0, 1.0, 0.0)
            norm = math.sqrt(max(float(gradient @ shape @ gradient), 0.0))
            depth = -float(center @ gradient) / norm if norm > 0 else 0.0
        else:
            picked = padded.cheapest(center * (span / scale))
            error, cost = padded.of(picked)
            gradient = (cost - limit) / scale
            value = error / span + float(center @ gradient)
            if (gradient <= 0).all() and (not fitting or error < fitting[-1][0]):
                fitting.append((error, picked))
            norm = math.sqrt(max(float(gradient @ shape @ gradient), 0.0))
            if value > best:
                best, found = value, center.copy()
            elif norm > 0:
                depth = (best - value) / norm
            if norm < enough:
                break
        if norm == 0 or depth >= 1:
            break
        # Only what may still be better than the best is kept: a deep cut.
        step = shape @ gradient / norm
        center = center + (1 + n * depth) / (n + 1) * step
        cut = 2 * (1 + n * depth) / ((n + 1) * (1 + depth))
        shape = n * n * (1 - depth**2) / (n * n - 1) * (shape - cut * np.outer(step, step))
    return found * (span / scale), [picked for _, picked in fitting[-1:]]


def _improved(
    padded: Padded, picked: Ints, limit: Floats, tables: Tables, budget: list[float]
) -> Ints:
    """Use what is left of the budgets: change one layer at a time while that helps."""
    before, picked, rows = picked, picked.copy(), padded.rows
    # More than what sums of doubles lose.
    margin = len(rows) * 2.0**-50 * limit
    left = limit - margin - padded.of(picked)[1]
    gain = padded.error[rows, picked][:, None] - padded.error
    more = padded.cost - padded.cost[:, rows, picked][..., None]
    for _ in range(2 * len(rows)):
        fits = (more <= left[:, None, None]).all(axis=0)
        at = int(np.argmax(np.where(fits, gain, 0)))
        row, option = divmod(at, gain.shape[1])
        if not fits[row, option] or gain[row, option] <= 0:
            break
        left -= more[:, row, option]
        picked[row] = option
        gain[row] = padded.error[row, option] - padded.error[row]
        more[:, row] = padded.cost[:, row] - padded.cost[:, row, option, None]
    return picked if tables.fits(tables.choice(picked.tolist()), budget) else before

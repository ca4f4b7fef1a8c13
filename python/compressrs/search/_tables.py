"""Tables of options: validation, exact sums of costs, removal of dominated options."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from compressrs._checks import converted, number, sequence, whole

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.intp]

#: Budgets at once.
MAX_BUDGETS = 3


@dataclass(frozen=True)
class Layer:
    """The options of one layer, or of several that must agree.

    The exact cost of an option is ``cost + rest``; `rest` is what rounding to a double leaves.
    """

    error: Floats
    #: (budgets, options)
    cost: Floats
    rest: Floats
    #: The options' numbers in the tables given.
    option: Ints
    members: tuple[int, ...]

    def take(self, at: Any) -> Layer:
        """Return the layer with some of its options."""
        return Layer(
            self.error[at], self.cost[:, at], self.rest[:, at], self.option[at], self.members
        )


@dataclass(frozen=True)
class Tables:
    """The tables given, and the layers that are chosen for, without dominated options."""

    errors: list[Floats]
    #: (options, budgets) each
    costs: list[Floats]
    layers: list[Layer]
    #: Whether plain sums of these costs are exact.
    exact: bool

    @property
    def budgets(self) -> int:
        """How many costs an option has."""
        return int(self.costs[0].shape[1])

    def choice(self, picked: Sequence[int]) -> list[int]:
        """Return the option of each layer given, from positions in `layers`' options."""
        found = [0] * len(self.errors)
        for layer, k in zip(self.layers, picked, strict=True):
            for member in layer.members:
                found[member] = int(layer.option[k])
        return found

    def error(self, choice: Sequence[int]) -> float:
        """Return the sum of errors, correctly rounded."""
        return math.fsum(e[k] for e, k in zip(self.errors, choice, strict=True))

    def cost(self, choice: Sequence[int]) -> list[float]:
        """Return the sums of costs, correctly rounded."""
        return [
            math.fsum(c[k, b] for c, k in zip(self.costs, choice, strict=True))
            for b in range(self.budgets)
        ]

    def fits(self, choice: Sequence[int], budget: Sequence[float]) -> bool:
        """Whether the exact sums of costs are within the budgets."""
        # The sign of a correctly rounded sum is that of the sum.
        return all(
            math.fsum([*(c[k, b] for c, k in zip(self.costs, choice, strict=True)), -limit]) <= 0
            for b, limit in enumerate(budget)
        )


def tables(errors: Any, costs: Any, ties: Any) -> Tables:
    """Check tables and return them without dominated options.

    Raises
    ------
    TypeError, ValueError
        See `compressrs.search.allocate`.
    """
    error_rows, cost_rows = _rows(errors, "errors"), _rows(costs, "costs")
    if not error_rows:
        raise ValueError("errors must hold at least one layer, got none")
    if len(error_rows) != len(cost_rows):
        raise ValueError(
            f"errors and costs must have one table a layer, got {len(error_rows)} and "
            f"{len(cost_rows)}"
        )
    checked_errors: list[Floats] = []
    checked_costs: list[Floats] = []
    for i, (e, c) in enumerate(zip(error_rows, cost_rows, strict=True)):
        error, cost = _table(e, f"errors[{i}]", (1,)), _table(c, f"costs[{i}]", (1, 2))
        if len(error) == 0:
            raise ValueError(f"errors[{i}] must have at least one option, got none")
        if len(cost) != len(error):
            raise ValueError(
                f"costs[{i}] must have {len(error)} options like errors[{i}], got {len(cost)}"
            )
        cost = cost.reshape(len(cost), -1)
        if not 1 <= cost.shape[1] <= MAX_BUDGETS:
            raise ValueError(
                f"costs[{i}] must be of 1 to {MAX_BUDGETS} budgets, got {cost.shape[1]}"
            )
        if checked_costs and cost.shape[1] != checked_costs[0].shape[1]:
            raise ValueError(
                f"costs[{i}] must be of {checked_costs[0].shape[1]} budgets like costs[0], "
                f"got {cost.shape[1]}"
            )
        checked_errors.append(error)
        checked_costs.append(cost)
    groups = _groups(ties, [len(e) for e in checked_errors])
    for name, found in (("errors", checked_errors), ("costs", checked_costs)):
        if sum(float(array.max()) for array in found) > np.finfo(float).max / 4:
            raise ValueError(f"{name} must be such that their sums do not overflow")
    layers = [_without_dominated(_layer(g, checked_errors, checked_costs)) for g in groups]
    return Tables(checked_errors, checked_costs, layers, _sums_are_exact(checked_costs))


def limits(budget: Any, count: int) -> list[float]:
    """Check the budgets and return them.

    Raises
    ------
    TypeError, ValueError
        If they are not `count` finite numbers of at least 0.
    """
    # One number where there is one budget; a sequence of one number is the same.
    given = [budget] if np.ndim(converted(budget, "budget", object)) == 0 else list(budget)
    if len(given) != count:
        raise ValueError(f"budget must be {count} numbers like the costs of an option, got {given}")
    if count == 1:
        return [number(given[0], "budget", 0)]
    return [number(b, f"budget[{i}]", 0) for i, b in enumerate(given)]


def _rows(value: Any, name: str) -> list[Any]:
    if isinstance(value, (str, bytes, dict)):
        raise TypeError(f"{name} must be a list of arrays, got {type(value).__name__}")
    return sequence(value, name)


def _table(value: Any, name: str, axes: tuple[int, ...]) -> Floats:
    array = converted(value, name)
    if array.dtype.kind not in "fiub" or array.dtype == bool:
        raise TypeError(f"{name} must be an array of numbers, got dtype {array.dtype}")
    if array.ndim not in axes:
        need = " or ".join(("(options,)", "(options, budgets)")[a - 1] for a in axes)
        raise ValueError(f"{name} must have shape {need}, got {array.shape}")
    found: Floats = array.astype(np.float64)
    if array.dtype.kind in "iu" and (np.abs(found) > 2**53).any():
        raise ValueError(f"{name} must hold numbers up to 2**53, got larger ones")
    if not (found >= 0).all() or np.isinf(found).any():
        bad = found[~((found >= 0) & np.isfinite(found))].flat[0]
        raise ValueError(f"{name} must be finite and at least 0, got {bad:g}")
    return found


def _groups(ties: Any, options: list[int]) -> list[tuple[int, ...]]:
    """Return the layers that are chosen for together, in order."""
    count = len(options)
    leader = list(range(count))
    given = [] if ties is None else _rows(ties, "ties")
    for k, group in enumerate(given):
        members = [whole(i, f"ties[{k}]", 0, count - 1) for i in _rows(group, f"ties[{k}]")]
        if len({options[i] for i in members}) > 1:
            raise ValueError(
                f"ties[{k}] must be layers with equally many options, "
                f"got {[options[i] for i in members]}"
            )
        for one, other in itertools.pairwise(members):
            low, high = sorted((leader[one], leader[other]))
            leader = [low if found == high else found for found in leader]
    found: dict[int, list[int]] = {}
    for i, of in enumerate(leader):
        found.setdefault(of, []).append(i)
    return [tuple(members) for members in found.values()]


def _layer(members: tuple[int, ...], errors: list[Floats], costs: list[Floats]) -> Layer:
    first = members[0]
    if len(members) == 1:
        error, cost = errors[first], np.ascontiguousarray(costs[first].T)
        rest = np.zeros_like(cost)
    else:
        error = np.array(
            [math.fsum(column) for column in zip(*(errors[i] for i in members), strict=True)]
        )
        sums = [
            [
                split(sum(Fraction(x) for x in column))
                for column in zip(*(costs[i][:, b] for i in members), strict=True)
            ]
            for b in range(costs[first].shape[1])
        ]
        pairs = np.array(sums, np.float64)
        cost, rest = pairs[..., 0].copy(), pairs[..., 1].copy()
    return Layer(error, cost, rest, np.arange(len(error)), members)


def split(x: Fraction | int) -> tuple[float, float]:
    """Return a double, and what is left of `x` as another."""
    high = float(x)
    return high, float(x - Fraction(high))


def _without_dominated(layer: Layer) -> Layer:
    """Remove options than which another is no worse in anything; order by cost."""
    order = np.lexsort((layer.option, layer.error, *layer.rest[::-1], *layer.cost[::-1]))
    layer = layer.take(order)
    kept: list[int] = []
    if len(layer.cost) == 1:
        least = math.inf
        for k, e in enumerate(layer.error.tolist()):
            if e < least:
                least = e
                kept.append(k)
        return layer.take(kept)
    # Whatever dominates an option comes before it in this order.
    for k in range(len(layer.error)):
        cost, rest = layer.cost[:, kept], layer.rest[:, kept]
        here, left = layer.cost[:, k, None], layer.rest[:, k, None]
        cheap = ((cost < here) | ((cost == here) & (rest <= left))).all(axis=0)
        if not (cheap & (layer.error[kept] <= layer.error[k])).any():
            kept.append(k)
    return layer.take(kept)


def _sums_are_exact(costs: Iterable[Floats]) -> bool:
    """Whether sums of these costs in double precision are exact, in any order."""
    flat = np.concatenate([c.reshape(-1) for c in costs])
    flat = flat[flat > 0]
    if flat.size == 0:
        return True
    mantissa, exponent = np.frexp(flat)
    bits = np.ldexp(mantissa, 53).astype(np.int64)
    lowest = np.frexp((bits & -bits).astype(np.float64))[1] - 1
    quantum = int((exponent - 53 + lowest).min())
    total = sum(Fraction(float(c.max())) for c in costs)
    return total <= Fraction(2) ** (quantum + 53)

"""Dynamic programming over layers: labels of cost and error, without dominated ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from compressrs.search._tables import Floats, Ints, Layer, split

#: Labels of several costs that are compared with all others at once.
BLOCK = 1024


class TooManyLabels(Exception):
    """More labels than allowed."""


@dataclass
class Labels:
    """Choices for the layers so far: error, exact cost ``cost + rest``, and where from."""

    error: Floats
    #: (budgets, labels)
    cost: Floats
    #: None where sums of costs are exact without.
    rest: Floats | None
    #: What the error exceeds the bound by, whatever later layers take.
    excess: Floats
    #: For each layer so far the label before, and the option.
    trail: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]] = field(default_factory=list)

    @staticmethod
    def first(budgets: int, exact: bool) -> Labels:
        """Return the label of no layers."""
        cost = np.zeros((budgets, 1))
        return Labels(np.zeros(1), cost, None if exact else cost.copy(), np.zeros(1))

    def __len__(self) -> int:
        return len(self.error)

    def take(self, at: Ints) -> Labels:
        """Return some of the labels, in this order."""
        rest = None if self.rest is None else self.rest[:, at]
        before, option = self.trail[-1]
        trail = [*self.trail[:-1], (before[at], option[at])]
        return Labels(self.error[at], self.cost[:, at], rest, self.excess[at], trail)

    def extended(self, layer: Layer, excess: Floats, most: float, limit: int) -> Labels:
        """Return all labels with each of a layer's options, up to an excess.

        Raises
        ------
        TooManyLabels
            If they are more than `limit`.
        """
        total = self.excess[:, None] + excess
        before, option = np.nonzero(total <= most)
        if len(before) > limit:
            raise TooManyLabels
        error = self.error[before] + layer.error[option]
        cost, rest = self.cost[:, before], None
        if self.rest is None:
            cost = cost + layer.cost[:, option]
        else:
            cost, rest = _sum(
                cost, self.rest[:, before], layer.cost[:, option], layer.rest[:, option]
            )
        step = before.astype(np.int32), option.astype(np.int32)
        return Labels(error, cost, rest, total[before, option], [*self.trail, step])

    def within(self, high: Floats, low: Floats) -> Labels:
        """Return the labels whose costs are at most ``high + low``."""
        here, limit = self.cost, high[:, None]
        if self.rest is None:
            # A sum of doubles that is exact is above high + low exactly if it is above high.
            fits = (here < limit) | ((here == limit) & (low[:, None] >= 0))
        else:
            fits = (here < limit) | ((here == limit) & (self.rest <= low[:, None]))
        kept = fits.all(axis=0)
        return self if kept.all() else self.take(np.flatnonzero(kept))

    def undominated(self) -> Labels:
        """Return the labels than which no other is known to be as good in all."""
        if len(self) < 2:
            return self
        return self._frontier() if len(self.cost) == 1 else self._blocks()

    def _frontier(self) -> Labels:
        cost, rest = self.cost[0], None if self.rest is None else self.rest[0]
        order = np.argsort(cost)
        ordered = cost[order]
        if (ordered[1:] == ordered[:-1]).any():
            keys = (self.error, cost) if rest is None else (self.error, rest, cost)
            order = np.lexsort(keys)
        error = self.error[order]
        kept = np.ones(len(order), np.bool_)
        kept[1:] = error[1:] < np.minimum.accumulate(error)[:-1]
        return self.take(order[kept])

    def _blocks(self) -> Labels:
        """Compare labels with the best and with those near to them in order of error."""
        rests = self.cost if self.rest is None else self.rest
        keys = [key for pair in zip(rests, self.cost, strict=True) for key in pair]
        order = np.lexsort((*keys, self.error))
        kept: list[Ints] = []
        for start in range(0, len(order), BLOCK):
            block = order[start : start + BLOCK]
            known = np.concatenate([*kept[:1], *kept[-1:], block] if kept else [block])
            cheap = np.ones((len(known), len(block)), np.bool_)
            for b, cost in enumerate(self.cost):
                one, other = cost[known][:, None], cost[block]
                if self.rest is None:
                    cheap &= one <= other
                else:
                    rest = self.rest[b]
                    cheap &= (one < other) | (
                        (one == other) & (rest[known][:, None] <= rest[block])
                    )
            cheap &= self.error[known][:, None] <= self.error[block]
            # Of equal labels the first in order stays.
            behind = len(known) - len(block)
            cheap[behind:] &= np.tri(len(block), k=-1, dtype=np.bool_).T
            kept.append(block[np.flatnonzero(~cheap.any(axis=0))])
        return self.take(np.concatenate(kept))

    def path(self, label: int) -> list[int]:
        """Return the option of each layer so far."""
        found = []
        for before, option in reversed(self.trail):
            found.append(int(option[label]))
            label = int(before[label])
        return found[::-1]


def search(
    layers: list[Layer],
    budget: list[float],
    multipliers: Floats,
    slack: float,
    most: float,
    exact: bool,
    limit: int,
) -> tuple[list[int] | None, bool]:
    """Return the best choice whose error exceeds the Lagrangian bound by at most `most`.

    Also returned is whether an option or a label was left out for its excess; otherwise the
    result is the best choice of all.

    Raises
    ------
    TooManyLabels
        If it takes more than `limit` labels at once.
    """
    chosen = [0] * len(layers)
    active: list[tuple[int, Layer, Floats, Ints]] = []
    fixed = [Fraction(0)] * len(budget)
    cut = False
    for i, layer in enumerate(layers):
        price = layer.error + multipliers @ layer.cost
        excess = price - price.min()
        at = np.flatnonzero(excess <= most + slack)
        cut |= len(at) < len(excess)
        if len(at) == 1:
            chosen[i] = int(at[0])
            for b in range(len(budget)):
                fixed[b] += Fraction(layer.cost[b, at[0]]) + Fraction(layer.rest[b, at[0]])
        else:
            active.append((i, layer.take(at), excess[at], at))
    # Layers with much to lose first: few of their options are left, and labels grow late.
    active.sort(key=lambda item: (-float(np.partition(item[2], 1)[1]), item[0]))
    left = [Fraction(b) - f for b, f in zip(budget, fixed, strict=True)]
    for _, layer, _, _ in active:
        left = [x - _least(layer, b) for b, x in enumerate(left)]
    if min(left) < 0:
        return None, cut
    labels = Labels.first(len(budget), exact)
    for _, layer, excess, _ in active:
        before = len(labels) * len(excess)
        labels = labels.extended(layer, excess, most + slack, 8 * limit)
        cut |= len(labels) < before
        left = [x + _least(layer, b) for b, x in enumerate(left)]
        pairs = np.array([split(x) for x in left])
        labels = labels.within(pairs[:, 0], pairs[:, 1]).undominated()
        if len(labels) > limit:
            raise TooManyLabels
        if len(labels) == 0:
            return None, cut
    best = int(np.argmin(labels.error))
    for (i, _, _, at), option in zip(active, labels.path(best), strict=True):
        chosen[i] = int(at[option])
    return chosen, cut


def _least(layer: Layer, budget: int) -> Fraction:
    cost, rest = layer.cost[budget], layer.rest[budget]
    at = int(np.lexsort((rest, cost))[0])
    return Fraction(float(cost[at])) + Fraction(float(rest[at]))


def _sum(high: Floats, low: Floats, cost: Floats, rest: Floats) -> tuple[Floats, Floats]:
    """Return the sum of two pairs of doubles as a pair (Knuth's two-sum, renormalized)."""
    s = high + cost
    part = s - high
    error = (high - (s - part)) + (cost - part) + (low + rest)
    total = s + error
    return total, error - (total - s)

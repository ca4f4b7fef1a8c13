"""Allocations and frontiers by trying all choices, with exact sums."""

import itertools
from fractions import Fraction

import numpy as np


def choices(errors, ties=()):
    """Yield all choices in which tied layers agree."""
    for choice in itertools.product(*(range(len(e)) for e in errors)):
        if all(len({choice[i] for i in group}) == 1 for group in ties):
            yield choice


def total(tables, choice):
    """Return the exact sum of what a choice takes."""
    return sum(Fraction(float(t[k])) for t, k in zip(tables, choice, strict=True))


def allocate(errors, costs, budget, ties=()):
    """Return the least error within the budgets, or None."""
    columns = [[np.asarray(c)[:, b] for c in costs] for b in range(len(budget))]
    within = (
        total(errors, choice)
        for choice in choices(errors, ties)
        if all(total(c, choice) <= Fraction(b) for c, b in zip(columns, budget, strict=True))
    )
    return min(within, default=None)


def pareto(errors, costs, ties=()):
    """Return the costs and errors that no other choice dominates, by rising cost."""
    found = sorted({(total(costs, c), total(errors, c)) for c in choices(errors, ties)})
    kept = []
    for cost, error in found:
        if not kept or error < kept[-1][1]:
            kept.append((cost, error))
    return kept

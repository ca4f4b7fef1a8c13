"""Allocations and frontiers: equal to trying all choices, and to an integer program."""

import math
import pickle
import warnings
from fractions import Fraction

import numpy as np
import pytest

from compressrs import search
from tests.reference import search as reference


def instance(rng, layers, options, budgets=1, kind=None):
    """Return random tables of a kind: uniform, integer, correlated or decimal."""
    kind = kind or ("uniform", "integer", "correlated", "decimal")[rng.integers(4)]
    errors, costs = [], []
    for _ in range(layers):
        m = int(rng.integers(1, options + 1))
        error, cost = rng.uniform(0, 1, m), rng.uniform(0, 1, (m, budgets))
        if kind == "integer":
            error, cost = np.round(10 * error), np.round(10 * cost)
        elif kind == "correlated":
            error = np.abs(1 - cost.mean(axis=1) + 0.05 * error)
        elif kind == "decimal":
            # Sums of tenths are not exact in double precision.
            error, cost = np.sort(error), -np.sort(-np.round(cost, 1), axis=0)
        errors.append(error)
        costs.append(cost)
    low = np.array([sum(c[:, b].min() for c in costs) for b in range(budgets)])
    high = np.array([sum(c[:, b].max() for c in costs) for b in range(budgets)])
    budget = low + rng.uniform(0, 1, budgets) * (high - low)
    if kind in ("integer", "decimal"):
        budget = np.floor(budget * 10) / 10
    return errors, costs, budget


def check(found, errors, costs, budget, best):
    """Check an allocation against the exact least error."""
    assert reference.total(errors, found.choice) == pytest.approx(float(best), rel=1e-12, abs=1e-12)
    for b, limit in enumerate(budget):
        cost = reference.total([np.asarray(c)[:, b] for c in costs], found.choice)
        assert cost <= Fraction(float(limit))
        assert found.cost[b] == float(cost)
    assert found.error == float(reference.total(errors, found.choice))
    assert found.gap == 0 and found.exact
    # The bound of the multipliers can be recomputed, and is one.
    prices = np.array(found.multipliers)
    least = [float((e + np.asarray(c) @ prices).min()) for e, c in zip(errors, costs, strict=True)]
    assert (prices >= 0).all()
    assert math.fsum([*least, -float(prices @ budget)]) <= found.error * (1 + 1e-12) + 1e-12


@pytest.mark.parametrize("seed", range(300))
def test_the_best_of_all_choices_is_found(seed):
    rng = np.random.default_rng(seed)
    budgets = 1 + seed % 3
    errors, costs, budget = instance(rng, int(rng.integers(1, 6)), 5, budgets)
    ties = []
    if seed % 4 == 0 and len(errors) > 2:
        size = len(errors[0])
        errors[2], costs[2] = errors[0][::-1].copy(), rng.permutation(costs[0])
        ties = [[0, 2]] if seed % 8 else [[2, 0], [1]]
        assert len(errors[2]) == size
    best = reference.allocate(errors, costs, budget, ties)
    if best is None:
        with pytest.raises(search.InfeasibleError, match="budget"):
            search.allocate(errors, costs, budget, ties=ties)
        return
    found = search.allocate(errors, costs, budget, ties=ties)
    check(found, errors, costs, budget, best)
    for group in ties:
        assert len({found.choice[i] for i in group}) == 1


def integer_program(errors, costs, budget):
    optimize = pytest.importorskip("scipy.optimize")
    objective = np.concatenate(errors)
    one = np.zeros((len(errors), len(objective)))
    start = 0
    for row, e in zip(one, errors, strict=True):
        row[start : start + len(e)] = 1
        start += len(e)
    within = np.concatenate(costs).T
    return optimize.milp(
        objective,
        constraints=[
            optimize.LinearConstraint(one, 1, 1),
            optimize.LinearConstraint(within, -np.inf, budget),
        ],
        integrality=np.ones(len(objective)),
        bounds=optimize.Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )


def compare_with_integer_programs(seeds, layers, options):
    for seed in seeds:
        rng = np.random.default_rng(1000 + seed)
        kind = ("uniform", "correlated")[seed % 2]
        sizes = int(rng.integers(2, layers + 1)), options
        errors, costs, budget = instance(rng, *sizes, 1 + seed % 3, kind)
        other = integer_program(errors, costs, budget)
        try:
            found = search.allocate(errors, costs, budget)
        except search.InfeasibleError:
            # Infeasible, as the status of a model says.
            assert other.status == 2, seed
            continue
        assert found.gap == 0
        # Integer programs are solved to within 1e-6 in each constraint.
        assert found.error == pytest.approx(other.fun, abs=1e-6), seed


def test_equal_to_integer_programs():
    compare_with_integer_programs(range(60), 8, 6)


@pytest.mark.slow
def test_equal_to_thousands_of_integer_programs():
    compare_with_integer_programs(range(3000), 12, 8)


@pytest.mark.parametrize("seed", range(100))
def test_the_frontier_is_that_of_all_choices(seed):
    rng = np.random.default_rng(seed)
    errors, costs, _ = instance(rng, int(rng.integers(1, 6)), 5)
    costs = [c[:, 0] for c in costs]
    found = search.pareto(errors, costs)
    assert found.exact
    truth = reference.pareto(errors, costs)
    # Sums of doubles may tell apart what agrees exactly, and the other way around.
    for cost, error in truth:
        at = np.searchsorted(found.cost, float(cost) * (1 + 1e-12) + 1e-12, side="right") - 1
        assert found.error[at] <= float(error) * (1 + 1e-12) + 1e-12
    assert (np.diff(found.cost) > 0).all() and (np.diff(found.error) < 0).all()
    for point in range(len(found)):
        choice = found.choice(point)
        assert float(reference.total(costs, choice)) == pytest.approx(found.cost[point])
        assert float(reference.total(errors, choice)) == pytest.approx(found.error[point])


def test_a_point_of_the_frontier_is_the_allocation():
    rng = np.random.default_rng(0)
    errors, costs, _ = instance(rng, 12, 6, kind="uniform")
    flat = [c[:, 0] for c in costs]
    found = search.pareto(errors, flat)
    for budget in np.linspace(found.cost[0] + 1e-9, found.cost[-1] + 1, 9):
        one, other = found.within(budget), search.allocate(errors, flat, budget)
        assert one.error == pytest.approx(other.error, rel=1e-12)
        assert one.cost <= budget and one.gap == 0
    with pytest.raises(search.InfeasibleError, match="budget must be at least"):
        found.within(found.cost[0] / 2)


def test_a_thinned_frontier_has_bounds():
    rng = np.random.default_rng(0)
    errors, costs, _ = instance(rng, 30, 9, kind="uniform")
    flat = [c[:, 0] for c in costs]
    whole = search.pareto(errors, flat)
    with pytest.warns(search.UnprovenWarning, match="thinned"):
        thin = search.pareto(errors, flat, points=50)
    assert whole.exact and not thin.exact and len(thin) <= 50 < len(whole)
    assert thin.cost[0] == whole.cost[0] and thin.error[-1] == pytest.approx(whole.error[-1])
    truth = whole.error[np.searchsorted(whole.cost, thin.cost, side="right") - 1]
    assert (thin.bound <= truth + 1e-12).all() and (truth <= thin.error + 1e-12).all()
    picked = thin.within(float(thin.cost[20]))
    assert picked.cost <= thin.cost[20] and picked.gap >= 0


def test_a_budget_may_be_used_up_but_not_exceeded():
    tenths = [np.array([0.0, 1.0])] * 10, [np.array([0.1, 0.0])] * 10
    # The exact sum of ten doubles 0.1 is more than 1.
    assert sum([Fraction(0.1)] * 10) > 1
    found = search.allocate(*tenths, 1.0)
    assert found.error == 1.0 and found.cost == 0.9
    assert search.allocate(*tenths, math.nextafter(1, 2)).error == 0.0
    eighths = [np.array([0.0, 1.0])] * 10, [np.array([0.125, 0.0])] * 10
    assert search.allocate(*eighths, 1.25).error == 0.0
    # What is added to 1 below its last bit counts.
    small = (
        [np.array([0.0, e]) for e in (5.0, 1.0, 1.0)],
        [np.array([c, 0.0]) for c in (1.0, 1e-17, 1e-17)],
    )
    assert search.allocate(*small, 1.0).error == 2.0
    assert search.allocate(*small, 1.0 + 2**-52).error == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_infeasible_budgets_say_what_the_least_is(seed):
    rng = np.random.default_rng(seed)
    errors, costs, _ = instance(rng, 7, 5, kind=("uniform", "decimal")[seed % 2])
    least = sum(Fraction(float(c.min())) for c in costs)
    with pytest.raises(search.InfeasibleError) as raised:
        search.allocate(errors, costs, [float(least) * 0.999])
    said = float(str(raised.value).split("at least ")[1].split(",")[0])
    assert Fraction(said) >= least
    assert search.allocate(errors, costs, said).cost == float(least)
    if said > 0:
        with pytest.raises(search.InfeasibleError):
            search.allocate(errors, costs, math.nextafter(said, 0))


def test_budgets_that_exclude_each_other_say_what_each_takes():
    errors = [[0.0, 0.0], [0.0, 0.0]]
    costs = [[[1, 4], [4, 1]], [[1, 4], [4, 1]]]
    with pytest.raises(search.InfeasibleError, match=r"budget\[0\] of 8 or budget\[1\] of 8"):
        search.allocate(errors, costs, [4, 4])
    assert search.allocate(errors, costs, [8, 4]).cost == [8.0, 2.0]


def test_large_tables_are_solved_exactly():
    rng = np.random.default_rng(0)
    errors, costs = rng.uniform(0, 1, (200, 30)), rng.uniform(0, 1, (200, 30))
    budget = 0.7 * costs.min(axis=1).sum() + 0.3 * costs.max(axis=1).sum()
    found = search.allocate(errors, costs, budget)
    assert found.gap == 0
    frontier = search.pareto(errors, costs)
    assert frontier.exact and frontier.within(budget).error == pytest.approx(found.error, rel=1e-12)
    for budgets in (2, 3):
        several = rng.uniform(0, 1, (60, 10, budgets))
        limit = 0.5 * several.min(axis=1).sum(axis=0) + 0.5 * several.max(axis=1).sum(axis=0)
        assert search.allocate(errors[:60, :10], several, limit).gap == 0


def test_too_few_labels_give_a_choice_with_its_gap():
    rng = np.random.default_rng(0)
    cost = np.round(rng.uniform(1, 10, (40, 20)), 1)
    errors = 10 - cost + rng.uniform(0, 0.1, cost.shape)
    best = search.allocate(errors, cost, 150.05)
    with pytest.warns(search.UnprovenWarning, match="max_labels"):
        found = search.allocate(errors, cost, 150.05, max_labels=4)
    assert found.bound <= best.error <= found.error and found.gap > 0 and not found.exact
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loose = search.allocate(errors, cost, 150.05, tolerance=0.01)
    assert loose.gap <= 0.01 * loose.error


def test_options_need_not_be_equally_many_and_numbers_may_be_of_any_kind():
    found = search.allocate([(0, 1), np.float32([3])], [[5, 2], np.array([7], np.int8)], 9)
    assert found.choice == [1, 0] and found.error == 4.0 and found.cost == 9.0
    zero = search.allocate([[0.0], [0.0]], [[0], [0]], 0)
    assert zero.choice == [0, 0] and zero.cost == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"errors": []}, "errors must hold at least one layer"),
        ({"errors": [[], [1.0]]}, r"errors\[0\] must have at least one option"),
        ({"errors": [[1.0, np.nan], [1.0]]}, r"errors\[0\] must be finite"),
        ({"errors": [[1.0, -1.0], [1.0]]}, r"errors\[0\] must be .* at least 0, got -1"),
        ({"costs": [[1, np.inf], [1]]}, r"costs\[0\] must be finite"),
        ({"costs": [[1, -2], [1]]}, r"costs\[0\] must be .* at least 0, got -2"),
        ({"costs": [[1, 2], [1, 2]]}, r"costs\[1\] must have 1 options"),
        ({"costs": [[1, 2]]}, "costs must have one table a layer, got 2 and 1"),
        ({"costs": [[[1] * 4] * 2, [[1] * 4]]}, "1 to 3 budgets, got 4"),
        ({"costs": [[[1, 1]] * 2, [1]]}, r"costs\[1\] must be of 2 budgets"),
        ({"costs": [[[]] * 2, [[]]]}, "1 to 3 budgets, got 0"),
        ({"costs": [[2**60 + 1, 1], [1]]}, r"2\*\*53"),
        ({"errors": [[1e308, 1], [1.7e308]]}, "errors must be such that their sums"),
        ({"budget": np.nan}, "budget must be a finite number"),
        ({"budget": -1}, "budget must be a finite number >= 0"),
        ({"budget": []}, "budget must be 1 numbers"),
        ({"budget": [1, 2]}, "budget must be 1 numbers"),
        ({"ties": [[0, 1]]}, "equally many options"),
        ({"ties": [[0, 2]]}, "ties"),
        ({"max_labels": 0}, "max_labels"),
        ({"tolerance": -1}, "tolerance"),
    ],
)
def test_bad_tables_are_refused_by_name(change, message):
    given = {"errors": [[1.0, 2.0], [1.0]], "costs": [[2.0, 1.0], [1.0]], "budget": 9}
    search.allocate(**given)
    with pytest.raises(ValueError, match=message):
        search.allocate(**{**given, **change})


def test_errors_are_pickled():
    error = pickle.loads(pickle.dumps(search.InfeasibleError("budget")))
    assert isinstance(error, ValueError) and str(error) == "budget"

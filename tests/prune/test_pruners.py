"""Pruners with any score, granularity and scope; schedules queried out of order."""

import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import compressrs as cr
from tests.reference import prune as reference

SCORES = {
    "random": lambda: cr.prune.Random(0),
    "snip": cr.prune.Snip,
    "taylor": cr.prune.Taylor,
    "movement": cr.prune.Movement,
    "own": lambda: Own(),
}


class Own(cr.prune.Score):
    def scores(self, weights):
        return [np.arange(w.size, dtype=w.dtype).reshape(w.shape) for w in weights]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    "granularity", [None, cr.prune.NM(2, 8), cr.prune.Blocks((2, 4), "sum"), cr.prune.Neurons(1)]
)
@pytest.mark.parametrize("scope", ["global", "layer", "row", cr.prune.erdos_renyi])
def test_pruners_by_any_score(score, granularity, scope):
    if scope == "row" and granularity and not isinstance(granularity, cr.prune.NM):
        return
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((16, 24)), rng.standard_normal((8, 16))

    def start():
        weights = [a.copy(), b.copy()]
        opt = cr.optim.Adam(weights)
        schedule = cr.prune.LinearSchedule(final=0.75, begin=1, end=9, frequency=2)
        pruner = cr.prune.Pruner(
            weights, schedule, SCORES[score](), scope, opt, granularity=granularity
        )
        return weights, opt, pruner

    def train(weights, opt, pruner, steps):
        removed = [~mask for mask in pruner.masks]
        for t in steps:
            grads = [np.random.default_rng(t).standard_normal(w.shape) for w in weights]
            opt.step(grads)
            pruner.step(grads)
            for w, mask, gone in zip(weights, pruner.masks, removed, strict=True):
                assert (w[~mask] == 0).all()
                assert not (mask & gone).any(), "what was removed stays removed"
                gone |= ~mask

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cr.prune.EmptyLayerWarning)
        weights, opt, pruner = start()
        train(weights, opt, pruner, range(12))
        assert pruner.sparsity == pytest.approx(0.75, abs=0.05)
        first, first_opt, halfway = start()
        train(first, first_opt, halfway, range(5))
        kept = [w.copy() for w in first], first_opt.state_dict(), halfway.state_dict()
        again, again_opt, resumed = start()
        for w, value in zip(again, kept[0], strict=True):
            w[...] = value
        again_opt.load_state_dict(kept[1])
        resumed.load_state_dict(kept[2])
        train(again, again_opt, resumed, range(5, 12))
    for w, truth in zip(again, weights, strict=True):
        np.testing.assert_array_equal(w, truth)


def test_pruners_by_gradients_need_them():
    w = np.arange(1.0, 5.0)
    pruner = cr.prune.Pruner(w, cr.prune.OneShot(0.5), cr.prune.Snip())
    with pytest.raises(TypeError, match=r"step needs grads, of which Snip\(\) is made"):
        pruner.step()
    with pytest.raises(ValueError, match="grads must have the shapes"):
        pruner.step(np.ones(3))
    with pytest.raises(ValueError, match="must be finite, got NaN"):
        pruner.step(np.array([np.nan, 1, 1, 1]))
    assert pruner.step_count == 0
    with pytest.raises(ValueError, match="update must come first"):
        pruner.score.scores(w)
    assert (w == np.arange(1.0, 5.0)).all()
    with pytest.raises(TypeError, match="score must be a Score"):
        cr.prune.Pruner(w, cr.prune.OneShot(), "movement")
    with pytest.raises(TypeError, match="granularity must be a Granularity"):
        cr.prune.Pruner(w, cr.prune.OneShot(), granularity=4)


@pytest.mark.parametrize("steps", [0, 1])
def test_a_step_that_fails_leaves_the_score_as_it_was(steps):
    w = np.arange(1.0, 5.0)
    schedule = cr.prune.OneShot(0.5, begin=steps)

    def two(shapes, sparsity):
        return [sparsity, 0]

    pruner = cr.prune.Pruner(w, schedule, cr.prune.Movement(), two)
    for _ in range(steps):
        pruner.step(np.ones(4))
    before = pruner.state_dict()
    with pytest.raises(ValueError, match="scope must give 1 sparsities"):
        pruner.step(np.ones(4))
    after = pruner.state_dict()
    sums = (state["score_state"]["sums"] for state in (before, after))
    for a, b in zip(*sums, strict=True):
        np.testing.assert_array_equal(a, b)
    assert after["step_count"] == before["step_count"] == steps


def test_schedules_that_fall_or_are_over():
    w = np.arange(1.0, 9.0)
    shares = iter([0.5, 0.25, 0.5, 0.75, 0.0])
    pruner = cr.prune.MagnitudePruner(w, lambda step: next(shares))
    found = []
    for _ in range(5):
        pruner.step()
        found.append(pruner.sparsity)
    assert found == [0.5, 0.5, 0.5, 0.75, 0.75]
    schedule = cr.prune.IterativeSchedule(0.5, 0.75, begin=1, frequency=2)
    # Steps may be queried in any order; after the end the value is constant.
    assert [schedule(t) for t in (9999, 0, 3, 1, 2, 3)] == [0.75, 0, 0.75, 0.5, 0.5, 0.75]


@given(st.floats(0.01, 0.9), st.floats(0, 0.98), st.integers(0, 9), st.integers(1, 7))
def test_iterative_schedule(rate, final, begin, frequency):
    schedule = cr.prune.IterativeSchedule(rate, final, begin, frequency)
    for t in range(begin, begin + 12 * frequency):
        assert schedule(t) == pytest.approx(
            reference.iterative(t, rate, final, begin, frequency), abs=1e-12
        )
    assert schedule(schedule.end) == final
    assert schedule.rounds == 1 or schedule(schedule.end - 1) < final
    assert eval(repr(schedule), vars(cr.prune))(begin) == schedule(begin)


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.3, 0.5, 0.7])
def test_rounds_that_come_out_even(rate):
    for rounds in range(1, 9):
        schedule = cr.prune.IterativeSchedule(rate, 1 - (1 - rate) ** rounds, frequency=10)
        assert schedule.rounds == rounds
        assert schedule.end == 10 * (rounds - 1)


def test_bad_iterative_schedules():
    for kwargs, message in (
        ({"rate": 0}, "rate must be"),
        ({"rate": 1}, "rate must be"),
        ({"final": 1}, "final must be"),
        ({"begin": -1}, "begin must be"),
        ({"frequency": 0}, "frequency must be"),
    ):
        with pytest.raises(ValueError, match=message):
            cr.prune.IterativeSchedule(**kwargs)

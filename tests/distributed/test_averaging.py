"""Means over ranks: exact, rounded, sparse, of low rank; local steps with an outer optimizer."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

import compressrs as cr
from compressrs.distributed import (
    DiLoCo,
    ExactMean,
    PowerSGD,
    RankError,
    RoundedMean,
    TopKMean,
    run_local,
)

from .runs import same

MEANS = {
    "exact": lambda comm: ExactMean(comm),
    "bfloat16": lambda comm: RoundedMean(comm, "bfloat16"),
    "int8": lambda comm: RoundedMean(comm, "int8"),
    "top": lambda comm: TopKMean(comm, 0.1),
    "low": lambda comm: PowerSGD(comm, 2),
}
means = pytest.mark.parametrize("kind", MEANS)
RANKS = 3


def gradients(rank, step=0):
    rng = np.random.default_rng([rank, step])
    return {
        "a": rng.standard_normal((40, 30)).astype(np.float32),
        "b": rng.standard_normal(700).astype(np.float32),
        "c": np.zeros((0, 3), np.float32),
        "d": rng.standard_normal((5, 4, 3, 2)),
    }


def exact(step=0):
    each = [gradients(rank, step) for rank in range(RANKS)]
    return {name: sum(g[name].astype(float) for g in each) / RANKS for name in each[0]}


def test_the_exact_mean():
    for found in run_local(lambda comm: ExactMean(comm).mean(gradients(comm.rank)), RANKS):
        for name, mean in exact().items():
            np.testing.assert_allclose(found[name], mean, rtol=1e-5, atol=1e-6)


@means
def test_ranks_get_the_same_bits_and_nothing_is_lost(kind):
    """The sum of what is received, and of what is kept back, is the sum of the means."""
    steps = 30

    def work(comm):
        reduce = MEANS[kind](comm)
        found = [reduce.mean(gradients(comm.rank, step)) for step in range(steps)]
        return found, reduce.state_dict()

    results = run_local(work, RANKS)
    assert all(same(found, results[0][0]) for found, _ in results)
    total = {k: sum(f[k].astype(float) for f in results[0][0]) for k in "abd"}
    expected = {k: sum(exact(step)[k] for step in range(steps)) for k in "abd"}
    # What is left behind stays as large as a few gradients, whatever the number of steps.
    limit = {"exact": 1e-4, "bfloat16": 0.02, "int8": 0.05, "top": 12.0, "low": 12.0}[kind]
    for name in "abd":
        assert abs(total[name] - expected[name]).max() < limit, name


@means
def test_bytes(kind):
    def work(comm):
        reduce = MEANS[kind](comm)
        grads = np.random.default_rng(comm.rank).standard_normal((1000, 1000)).astype(np.float32)
        reduce.mean(grads)
        reduce.comm.bytes = 0
        reduce.mean(grads)
        return reduce.comm.bytes

    full = 2 * 4e6 * (RANKS - 1) / RANKS
    share = {"exact": 1, "bfloat16": 1 / 2, "int8": 1 / 4 + 1 / 256, "top": 0.3, "low": 0.004}[kind]
    for sent in run_local(work, RANKS):
        assert sent == pytest.approx(share * full, rel=0.05, abs=1000)


@means
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_gradients_that_are_not_finite_are_seen_and_forgotten(kind):
    def work(comm):
        reduce = MEANS[kind](comm)
        grads = gradients(comm.rank)
        if comm.rank == 1:
            grads["a"][3, 4] = np.nan
            grads["b"][5] = np.inf
        first = reduce.mean(grads)
        assert not np.isfinite(first["a"]).all()
        assert not np.isfinite(first["b"]).all()
        for step in range(3):
            after = reduce.mean(gradients(comm.rank, step))
        return all(np.isfinite(after[name]).all() for name in "abd")

    assert run_local(work, RANKS) == [True] * RANKS


@means
def test_half_precision_and_copies(kind):
    reduce = MEANS[kind](None)
    g = np.linspace(-1, 1, 24).reshape(6, 4).astype(ml_dtypes.bfloat16)
    assert reduce.mean(g).dtype == np.float32
    twins = [copy.deepcopy(reduce), pickle.loads(pickle.dumps(reduce)), MEANS[kind](None)]
    twins[2].load_state_dict(copy.deepcopy(reduce.state_dict()))
    expected = reduce.mean(g)
    assert all(same(twin.mean(g), expected) for twin in twins)


@means
def test_wrong_gradients(kind):
    reduce = MEANS[kind](None)
    with pytest.raises(TypeError, match=r"grads\['a'\]"):
        reduce.mean({"a": np.ones(3, int)})
    reduce.mean(np.ones((8, 8)))
    if kind != "exact":
        with pytest.raises(ValueError, match="grads"):
            reduce.mean(np.ones(3))

    def work(comm):
        return MEANS[kind](comm).mean(np.ones(3 + comm.rank))

    with pytest.raises(ValueError, match="rank 1"):
        run_local(work, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: RoundedMean(dtype="int4"),
        lambda: RoundedMean(rng=-1),
        lambda: TopKMean(density=0),
        lambda: TopKMean(density=1.5),
        lambda: PowerSGD(rank=0),
        lambda: DiLoCo(cr.optim.SGD(np.ones(2)), every=0),
        lambda: DiLoCo(cr.optim.SGD(np.ones(2)), outer_lr=-1.0),
        lambda: DiLoCo(cr.optim.SGD(np.ones(2)), 3),
        lambda: DiLoCo("sgd"),
        lambda: DiLoCo(cr.optim.SGD(np.ones(2)), mean="exact"),
    ],
)
def test_arguments(wrong):
    with pytest.raises((TypeError, ValueError)):
        wrong()


def test_all_of_a_gradient_and_none():
    g = np.array([1.0, -2.0, 3.0])
    np.testing.assert_array_equal(TopKMean(density=1.0).mean(g), g)
    assert np.count_nonzero(TopKMean(density=1e-9).mean(g)) == 1


def quadratic(comm, w, target, rank_noise):
    return w - target + rank_noise


@pytest.mark.parametrize("every", [1, 4])
def test_diloco_is_its_formula(every):
    """Two outer steps, against the formula in NumPy."""

    def work(comm):
        w = np.linspace(-1, 1, 10)
        local = DiLoCo(cr.optim.SGD(w, lr=0.1), comm, every=every, outer_lr=0.7, outer_momentum=0.9)
        for step in range(2 * every):
            local.step(w + comm.rank + step)
        return w, local.comm.bytes

    start = np.linspace(-1, 1, 10)
    momentum = 0
    step = 0
    for outer in range(2):
        ends = []
        for rank in range(2):
            w = start.copy()
            for i in range(every):
                w -= 0.1 * (w + rank + step + i)
            ends.append(w)
        step += every
        delta = start - np.mean(ends, axis=0)
        momentum = delta if outer == 0 else 0.9 * momentum + delta
        start = start - 0.7 * (delta + 0.9 * momentum)
    results = run_local(work, 2)
    for w, _ in results:
        np.testing.assert_allclose(w, start, rtol=1e-12)
    assert same(results[0][0], results[1][0])


def test_diloco_sends_once_in_a_while_and_resumes():
    def work(comm):
        w = np.ones(100_000, np.float32)
        local = DiLoCo(cr.optim.Adam(w), comm, every=5)
        local.comm.bytes = 0
        sent = []
        for step in range(7):
            local.step(w * (1 + comm.rank + step))
            sent.append(local.comm.bytes)
        twin_w = w.copy()
        twin = DiLoCo(cr.optim.Adam(twin_w), comm, every=5)
        twin.load_state_dict(copy.deepcopy(local.state_dict()))
        for step in range(4):
            local.step(w * step)
            twin.step(twin_w * step)
        assert same(twin_w, w)
        return sent

    for sent in run_local(work, 2):
        assert sent[3] == 0
        assert sent[4] == pytest.approx(4e5, rel=0.01)
        assert sent[6] == sent[4]


def test_diloco_keeps_masks():
    def work(comm):
        w = np.ones(100)
        opt = cr.optim.Adam(w, lr=0.1)
        local = DiLoCo(opt, comm, every=2)
        opt.set_masks(np.arange(100) % 2 == 0)
        for _ in range(4):
            local.step(np.ones(100))
        return w

    assert all((w[1::2] == 0).all() and (w[::2] != 1).all() for w in run_local(work, 2))


def test_a_rank_that_fails_in_a_local_step():
    def work(comm):
        w = np.ones(4)
        local = DiLoCo(cr.optim.SGD(w), comm, every=3)
        for step in range(3):
            local.step(np.ones(5 if comm.rank == 1 and step == 1 else 4))

    def caught(comm):
        try:
            work(comm)
        except Exception as error:
            return error

    first, second = run_local(caught, 2)
    assert isinstance(first, RankError)
    assert isinstance(second, ValueError)

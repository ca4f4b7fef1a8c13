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


DISAGREEMENTS = {
    "class": lambda comm: ExactMean(comm) if comm.rank else RoundedMean(comm),
    "dtype": lambda comm: RoundedMean(comm, "int8" if comm.rank else "bfloat16"),
    "rng of mean": lambda comm: RoundedMean(comm, rng=comm.rank),
    "density": lambda comm: TopKMean(comm, 0.1 * (1 + comm.rank)),
    "rank of mean": lambda comm: PowerSGD(comm, 1 + comm.rank),
    "rng": lambda comm: PowerSGD(comm, 1, rng=comm.rank),
}


@pytest.mark.parametrize("what", DISAGREEMENTS)
def test_means_of_ranks_that_disagree(what):
    def work(comm):
        with pytest.raises(ValueError, match=f"same .*{what}.* rank 1"):
            DISAGREEMENTS[what](comm).mean(np.ones((50, 20), np.float32))
        with pytest.raises(ValueError, match=f"same .*{what}.* rank 1"):
            DiLoCo(cr.optim.SGD(np.ones(3)), mean=DISAGREEMENTS[what](comm))
        # Whoever disagrees can go on with another mean.
        return ExactMean(comm).mean(np.full(2, comm.rank)[:0].astype(float)).size

    assert run_local(work, 2) == [0, 0]


def test_state_that_ranks_have_from_other_runs():
    def work(comm):
        first = PowerSGD(comm, 1)
        first.mean(np.ones((9, 9)))
        other = PowerSGD(comm, 1)
        other.mean(np.arange(81.0).reshape(9, 9) * (1 + comm.rank))
        twin = PowerSGD(comm, 1)
        twin.load_state_dict((other if comm.rank else first).state_dict())
        with pytest.raises(ValueError, match="factor 0 of mean"):
            twin.mean(np.ones((9, 9)))
        one = ExactMean(comm)
        if comm.rank:
            one.step_count = 1
        with pytest.raises(ValueError, match="number of calls"):
            one.mean(np.ones(3))

    run_local(work, 2)


@means
def test_none_and_nothing(kind):
    def work(comm):
        reduce = MEANS[kind](comm)
        grads = gradients(comm.rank)
        expected = MEANS[kind](comm).mean(grads)
        found = reduce.mean({"none": None, **grads, "last": [None, []]})
        assert same(found, {"none": None, **expected, "last": [None, []]})
        # From here on None must be where it was, since what was kept back is of the others.
        if "residuals" in reduce._kept or "errors" in reduce._kept:
            with pytest.raises(ValueError, match="first call"):
                reduce.mean({**grads, "a": None})
        assert MEANS[kind](comm).mean([]) == []
        assert MEANS[kind](comm).mean(None) is None
        with pytest.raises(ValueError, match="all ranks must have the same"):
            MEANS[kind](comm).mean([grads["a"], None if comm.rank else grads["b"]])

    run_local(work, 2)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("kind", ["exact", "bfloat16", "int8", "top"])
def test_a_mean_is_finite_where_gradients_are(kind, dtype, ranks):
    largest = float(ml_dtypes.finfo(dtype).max)
    signs = np.array([1.0, -1.0, 1.0, 0.0])

    def work(comm):
        make = MEANS[kind] if kind != "top" else lambda comm: TopKMean(comm, 1.0)
        reduce, found = make(comm), []
        for _ in range(3):
            grads = (signs * largest * [1, 1, 1 - 0.01 * comm.rank, 0]).astype(dtype)
            found.append(np.asarray(reduce.mean(grads), np.float64))
        return found

    expected = signs * largest * [1, 1, 1 - 0.005 * (ranks - 1), 0]
    for found in run_local(work, ranks):
        for mean in found:
            np.testing.assert_allclose(mean / largest, expected / largest, rtol=0.03, atol=0.02)


def test_small_values_beside_large_ones_keep_their_bits():
    """Only elements whose sum overflows are added up in another way."""
    tiny = np.float32(1e-44)

    def work(comm):
        grads = np.array([3e38, tiny, 1.1, np.inf, np.nan, -3.4e38], np.float32)
        return ExactMean(comm).mean(grads)

    for found in run_local(work, 2):
        expected = np.array([3e38, tiny, 1.1, np.inf, np.nan, -3.4e38], np.float32)
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
@pytest.mark.parametrize("scale", [1e-300, 1e-60, 1.0, 1e200, 1e300])
def test_rounding_of_float64_beyond_the_range_of_float32(kind, scale):
    grads = np.random.default_rng(0).standard_normal(1000) * scale

    def work(comm):
        reduce = MEANS[kind](comm)
        return sum(reduce.mean(grads) / scale for _ in range(50)) / 50

    for mean in run_local(work, 2):
        np.testing.assert_allclose(mean, grads / scale, atol=0.005)


def diloco_rounds(comm, failing, every=3, calls=9):
    """Call `step` again and again, where one call of a rank fails; return what each call did."""
    w = np.zeros(4)
    mean = RoundedMean(comm, "int8")
    local = DiLoCo(cr.optim.SGD(w, lr=0.1, momentum=0.5), every=every, mean=mean)
    done = []
    for call in range(calls):
        fails = (comm.rank, call) == failing
        before = copy.deepcopy((w, local.state_dict()))
        try:
            local.step(np.full(5 if fails else 4, 1.0 + comm.rank))
        except (ValueError, RankError) as error:
            assert isinstance(error, ValueError if fails else RankError)
            assert same(before, (w, local.state_dict()))
            done.append(error)
        else:
            done.append(None)
    return local.step_count, [type(error).__name__ for error in done], w


@pytest.mark.parametrize("call", range(4))
def test_diloco_stays_in_phase_after_an_error_of_one_rank(call):
    expected = [w for *_, w in run_local(diloco_rounds, 3, None)]
    for rank, (steps, done, w) in enumerate(run_local(diloco_rounds, 3, (1, call), 3, 10)):
        assert steps == 9
        assert done.count("NoneType") == 9
        assert done[call if rank == 1 else 3 * (call // 3) + 2] != "NoneType"
        # As if the calls that failed had not been.
        assert same(w, expected[rank])


def test_an_outer_step_that_fails_is_reverted():
    def work(comm):
        w = np.zeros(4)
        local = DiLoCo(cr.optim.Adam(w, lr=0.1), comm, every=2)
        for _ in range(2):
            local.step(np.ones(4))
        local.step(np.ones(4))
        before = copy.deepcopy((w, local.state_dict()))
        own = local._outer.step
        if comm.rank:

            def fail(grads):
                own(grads)
                raise MemoryError("here")

            local._outer.step = fail
        with pytest.raises(MemoryError if comm.rank else RankError):
            local.step(np.ones(4))
        assert same(before, (w, local.state_dict()))
        local._outer.step = own
        local.step(np.ones(4))
        return w

    first, second = run_local(work, 2)
    assert same(first, second)


def test_diloco_refuses_ranks_that_start_from_other_values():
    def work(comm):
        w = np.full(2, float(comm.rank))
        local = DiLoCo(cr.optim.SGD(w, lr=0.1), comm, every=2)
        with pytest.raises(ValueError, match=r"same values of params, got .* rank 1"):
            local.step(np.ones(2))
        assert (w == comm.rank).all()
        # A state brings the start along, and is compared at the first outer step.
        good = DiLoCo(cr.optim.SGD(np.ones(2), lr=0.1), comm, every=2).state_dict()
        local.load_state_dict(good)
        local.step(np.ones(2))
        local.step(np.ones(2))
        local.load_state_dict({**good, "start": [np.full(2, float(comm.rank))]})
        local.step(np.ones(2))
        with pytest.raises(ValueError, match="same values of params"):
            local.step(np.ones(2))
        with pytest.raises(ValueError if comm.rank else RankError, match="every"):
            DiLoCo(cr.optim.SGD(np.ones(2)), comm, every=0 if comm.rank else 2)
        return local.step_count

    assert run_local(work, 2) == [1, 1]

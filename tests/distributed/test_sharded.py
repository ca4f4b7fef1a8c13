"""Sharded optimizers against the same rule in one process: the same bits on any ranks."""

import copy
import functools
import pickle

import ml_dtypes
import numpy as np
import pytest

import compressrs as cr
from compressrs.distributed import ShardedOptimizer, partition, run_local

from .runs import MICROBATCHES, gradients, parameters, plain, same, shapes_of, sharded

RULES = [
    getattr(cr.optim, name)
    for name in cr.optim.__all__
    if isinstance(getattr(cr.optim, name), type)
    and hasattr(getattr(cr.optim, name), "_rule")
    and not getattr(cr.optim, name)._of_all_parameters
]
RANKS = (1, 2, 3, 4)

#: For fewer micro-batches than ranks.
FEWER = pytest.mark.filterwarnings("ignore:microbatches=. is fewer than:UserWarning")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Parts are exchanged and stepped in several pieces, as large ones are."""
    monkeypatch.setattr(partition, "_PIECE", 1000)


def compare(rule, dtype=np.float32, ranks=RANKS, stage=1, **kwargs):
    """Compare parameters, state and norms after a few steps."""
    expected = parameters(rule, dtype)
    opt, norms = plain(rule, expected, **kwargs)
    state = opt.state_dict()

    def work(comm):
        params = parameters(rule, dtype)
        own, own_norms = sharded(rule, params, comm, stage=stage, **kwargs)
        return params, own.state_dict(), own_norms

    for size in ranks:
        for params, own_state, own_norms in run_local(work, size):
            assert same(params, expected)
            assert same(own_norms, norms)
            assert same(own_state, state)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_rule(rule):
    compare(rule, step={"max_grad_norm": 0.5})


@pytest.mark.parametrize("step", [{}, {"max_grad_norm": 0.5}], ids=["plain", "clipped"])
@pytest.mark.parametrize("rule", [cr.optim.AdamW, cr.optim.SGD, cr.optim.Lamb, cr.optim.Muon])
def test_stage_2(rule, step):
    compare(rule, step=step, ranks=(1, 2, 3, 4), stage=2)


def test_steps_without_clipping_are_taken_piece_by_piece():
    compare(cr.optim.Adam, state_dtype="int8")
    compare(cr.optim.Muon)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "strided", "none", "params"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_gradients_of_a_single_microbatch_are_not_copied(kind, clip, stage):
    def gradient(w, i):
        if kind == "params":
            return dict(w)  # which change while they are sent
        found = gradients(w, 0, i)
        if kind == "none":
            found = {**found, "b": None, **({"a": None} if i == 1 else {})}
        elif kind == "strided":
            found = {name: np.stack([g, -g], axis=-1)[..., 0] for name, g in found.items()}
        else:
            found = {name: g.astype(kind) for name, g in found.items()}
        return found

    def work(comm):
        w, expected = parameters(cr.optim.Adam), parameters(cr.optim.Adam)
        opt = ShardedOptimizer(cr.optim.Adam, w, comm, stage=stage)
        twin = ShardedOptimizer(cr.optim.Adam, expected, comm)
        for _ in range(2):
            grads = gradient(w, comm.rank)
            before = copy.deepcopy(grads)
            norm = opt.step(grads, max_grad_norm=clip)
            if kind != "params":
                assert same(grads, before)
            twin.accumulate(comm.rank, before)
            assert same(norm, twin.step(max_grad_norm=clip))
            assert same(w, expected)
        assert same(opt.state_dict(), twin.state_dict())
        return w

    for size in (1, 2, 3):
        first, *others = run_local(work, size)
        assert all(same(other, first) for other in others)


def test_the_next_piece_is_on_its_way_while_one_is_stepped():
    def work(comm):
        w = np.zeros(400_000, np.float32)
        opt = ShardedOptimizer(cr.optim.Adam, w, comm)
        events, start = [], comm.start_exchange

        def recorded(send, receive):
            wait = start(send, receive)
            number = sum(event.startswith("start") for event in events)
            events.append(f"start {number}")
            return lambda: (events.append(f"wait {number}"), wait())

        class Stepper:
            def __init__(self, inner):
                self.inner = inner

            def step(self, *arguments):
                if len(arguments) == 5:  # not a rehearsal
                    events.append("step")
                return self.inner.step(*arguments)

        opt._inner._stepper = Stepper(opt._inner._stepper)
        comm.start_exchange = recorded
        opt.step(np.ones_like(w))
        return events, opt._layout.count

    for events, count in run_local(work, 2):
        assert count == 32
        steps = [i for i, event in enumerate(events) if event == "step"]
        assert len(steps) > 3
        for i in steps[:-1]:
            # The reduction of the next piece has started, and nobody waits for parameters.
            waiting = {e.split()[1] for e in events[:i] if e.startswith("wait")}
            started = {e.split()[1] for e in events[:i] if e.startswith("start")}
            assert len(started - waiting) >= 1
        assert events[-1].startswith("wait")
        assert events.index("step") < len(events) - count


@FEWER
def test_stage_2_with_any_number_of_microbatches():
    def work(comm, total, stage):
        w = np.zeros(140_000, np.float32)
        opt = ShardedOptimizer(cr.optim.SGD, w, comm, microbatches=total, stage=stage, lr=1.0)
        for _ in range(2):
            for i in opt.indices:
                opt.accumulate(i, np.random.default_rng(i).standard_normal(w.shape))
            opt.step()
        return w

    for total in (1, 2, 3, 5, 8, 13):
        one = run_local(work, 1, total, 1)[0]
        for size in (1, 2, 3, 4):
            assert all(same(w, one) for w in run_local(work, size, total, 2))


def test_stage_2_keeps_the_sums_of_its_own_parts_alone():
    elements = 1 << 20

    def work(comm, stage):
        w = np.zeros(elements, np.float32)
        opt = ShardedOptimizer(cr.optim.SGD, w, comm, microbatches=4 * comm.size, stage=stage)
        for i in opt.indices:
            opt.accumulate(i, np.ones_like(w))
        sums = opt._sums
        flats = [*sums._free, *sums.tree.nodes.values()]
        return sum(array.nbytes for flat in flats for array in flat.values())

    for size in (2, 4):
        assert all(kept >= 4 * elements for kept in run_local(work, size, 1))
        # As many sums as their number has binary digits, at most, each of a rank's part.
        assert all(kept <= 3.01 * 4 * elements / size for kept in run_local(work, size, 2))


def test_rules_of_all_parameters_at_once_are_refused():
    with pytest.raises(ValueError, match="Prodigy estimates its rate from all parameters"):
        ShardedOptimizer(cr.optim.Prodigy, np.ones(3))


def test_cautious_steps():
    compare(cr.optim.AdamW, cautious=True)


@pytest.mark.parametrize("rule", [cr.optim.AdamW, cr.optim.Lamb, cr.optim.Muon])
@pytest.mark.parametrize("state_dtype", ["int8", "bfloat16"])
def test_state_in_few_bits_is_rounded_alike(rule, state_dtype):
    compare(rule, ranks=(1, 3, 4), state_dtype=state_dtype, seed=7)


@pytest.mark.parametrize("precision", ["nearest", "stochastic", "kahan", "master"])
def test_half_precision_weights(precision):
    compare(cr.optim.Adam, ml_dtypes.bfloat16, ranks=(1, 3), precision=precision, seed=2)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    "step",
    [
        {"max_grad_norm": 0.5},
        {"nonfinite": "raise"},
        {"max_grad_norm": 0.5, "nonfinite": "skip", "grad_scale": 0.25},
    ],
    ids=lambda step: "-".join(step),
)
def test_half_precision_weights_are_clipped_alike(dtype, step):
    compare(cr.optim.Adam, dtype, ranks=(1, 2, 3), step=step)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_weights_and_gradients_that_are_not_finite(dtype):
    def work(comm):
        w = np.ones(70_000, dtype)
        opt = ShardedOptimizer(cr.optim.Adam, w, comm, microbatches=3)
        results = []
        for nonfinite in ("skip", "raise"):
            for i in opt.indices:
                opt.accumulate(i, np.full(w.shape, np.nan if i == 2 else 1.0, np.float32))
            try:
                results.append(opt.step(nonfinite=nonfinite))
            except cr.optim.NonFiniteGradientError as error:
                results.append(str(error))
        assert (w == 1).all()
        return results

    for size in (1, 2, 3):
        for norm, message in run_local(work, size):
            assert np.isnan(norm)
            assert "NaN" in message


@FEWER
def test_double_precision():
    def work(comm):
        w = np.linspace(-1, 1, 70_000)
        opt = ShardedOptimizer(cr.optim.Adam, w, comm, microbatches=2, lr=0.1)
        for i in opt.indices:
            opt.accumulate(i, np.sin(w + i))
        opt.step(max_grad_norm=1.0)
        return w

    one = run_local(work, 1)[0]
    assert all(same(w, one) for w in run_local(work, 2))


@pytest.mark.parametrize("scale", [1e-30, 1e18, 1e30])
def test_norms_whose_squares_leave_the_range(scale):
    compare(cr.optim.SGD, ranks=(1, 3), step={"max_grad_norm": 1.0, "grad_scale": scale})


def test_masks():
    rng = np.random.default_rng(1)
    masks = {name: rng.random(s) < 0.5 for name, s in shapes_of(cr.optim.Adam).items()}
    masks["b"] = None

    def prepare(opt):
        opt.set_masks(masks)

    compare(cr.optim.Adam, prepare=prepare, step={"max_grad_norm": 0.1})
    compare(cr.optim.Lamb, prepare=prepare, ranks=(3,))


def test_masks_of_a_pruner():
    def prepare(opt):
        arrays = [array for group in opt.param_groups for array in group["params"]]
        schedule = cr.prune.CubicSchedule(initial=0.1, final=0.8, begin=0, end=3, frequency=1)
        pruner = cr.prune.MagnitudePruner(arrays[:3:2], schedule, optimizer=opt)
        return pruner.step

    compare(cr.optim.Adam, prepare=prepare, ranks=(1, 2, 4))


def test_schedules_change_all_ranks():
    def prepare(opt):
        return cr.optim.lr_scheduler.CosineAnnealingLR(opt, 10).step

    compare(cr.optim.AdamW, prepare=prepare, ranks=(1, 3), lr=0.1)


@FEWER
def test_groups_and_frozen_groups():
    def groups():
        p = parameters(cr.optim.Adam)
        return [
            {"params": [p["a"], p["b"]], "lr": 0.1},
            {"params": {"c": p["c"]}, "frozen": True},
            {"params": p["d"], "state_dtype": "int8"},
        ]

    def grads(i):
        g = gradients(parameters(cr.optim.Adam), 0, i)
        return [[g["a"], g["b"]], {"c": g["c"]}, g["d"]]

    def work(comm):
        own = groups()
        opt = ShardedOptimizer(cr.optim.Adam, own, comm, microbatches=2)
        for t in range(3):
            for i in opt.indices:
                opt.accumulate(i, grads(i))
            opt.step()
            if t == 1:
                opt.param_groups[1]["frozen"] = False
        return own, opt.state_dict()

    own, state = run_local(work, 1)[0]
    before = groups()
    assert not np.array_equal(own[1]["params"]["c"], before[1]["params"]["c"])
    assert state["state"][2]["step"] == 1
    for size in (2, 4):
        for params, other in run_local(work, size):
            assert same([g["params"] for g in params], [g["params"] for g in own])
            assert same(other, state)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_mean_is_finite_where_the_sum_is_not(dtype, stage):
    large = np.array([0.9, -0.9, 0.3]) * np.finfo(dtype).max
    for microbatches in (1, 2, 3, 4, 7):

        def work(comm, microbatches=microbatches):
            w = np.zeros(3, dtype)
            opt = ShardedOptimizer(
                cr.optim.SGD, w, comm, microbatches=microbatches, stage=stage, lr=1.0
            )
            for i in opt.indices:
                opt.accumulate(i, large.astype(dtype))
            norm = opt.step(max_grad_norm=np.inf, nonfinite="raise")
            return w, norm, opt._mean_over_ranks(float(large[0]))

        results = run_local(work, 1) + (run_local(work, 2) if microbatches % 2 == 0 else [])
        for w, norm, mean in results:
            np.testing.assert_allclose(w, -large.astype(dtype), rtol=4 * np.finfo(dtype).eps)
            assert norm == np.inf or np.isclose(norm, np.linalg.norm(large / 2) * 2)
            assert mean == large[0]


@pytest.mark.parametrize(
    ("change", "gradient", "error", "message"),
    [
        ({"frozen": "no"}, np.ones(3), TypeError, "frozen must be True or False"),
        ({"frozen": 1}, np.ones(3), TypeError, "frozen must be True or False"),
        ({}, np.ones(4), ValueError, "grads.* must have the shape"),
        ({}, np.ones(3, int), TypeError, "grads.* dtype"),
        ({"lr": -1.0}, np.ones(3), ValueError, "lr must be"),
    ],
)
def test_frozen_groups_are_checked_as_in_one_process(change, gradient, error, message):
    def optimizers():
        for make in (cr.optim.SGD, functools.partial(ShardedOptimizer, cr.optim.SGD)):
            yield make([{"params": np.ones(2)}, {"params": np.ones(3), "frozen": True}], lr=0.1)
        yield cr.optim.SAM(next(optimizers()))

    for opt in optimizers():
        own = opt.optimizer if isinstance(opt, cr.optim.SAM) else opt
        grads = [np.ones(2), gradient]
        step = opt.step if own is opt else functools.partial(opt.step, lambda g=grads: (1.0, g))
        # Types are refused when they are assigned, ranges when they are used.
        with pytest.raises(error, match=message):
            own.param_groups[1].update(change)
            step(*([grads] if own is opt else []))
        assert (own.param_groups[0]["params"][0] == 1).all()


def test_groups_are_added():
    extra = np.ones(50_000, np.float32)

    def work(comm):
        p = parameters(cr.optim.Adam)
        added = extra.copy()
        opt = ShardedOptimizer(cr.optim.Adam, [p["a"], p["c"]], comm, microbatches=4)
        for t in range(4):
            g = gradients(p, t, 0)
            tree = [g["a"], g["c"]]
            if t == 2:
                opt.add_param_group({"params": added, "lr": 0.5})
            for i in opt.indices:
                opt.accumulate(i, [tree, extra] if t >= 2 else tree)
            opt.step()
        return p, added, opt.state_dict()

    one = run_local(work, 1)[0]
    p = parameters(cr.optim.Adam)
    added = extra.copy()
    opt = cr.optim.Adam([p["a"], p["c"]])
    for t in range(4):
        g = gradients(p, t, 0)
        if t == 2:
            opt.add_param_group({"params": added, "lr": 0.5})
        opt.step([[g["a"], g["c"]], extra] if t >= 2 else [g["a"], g["c"]])
    assert same(one, (p, added, opt.state_dict()))
    assert all(same(other, one) for other in run_local(work, 3))


def test_ema_and_conversion_of_state():
    def prepare(opt):
        opt.convert_state("int8")
        arrays = [array for group in opt.param_groups for array in group["params"]]
        ema = cr.optim.EMA(arrays, decay=0.5)
        averages.append(ema)
        return ema.update

    averages = []
    compare(cr.optim.Adam, prepare=prepare, ranks=(1, 2))
    first, *others = averages
    assert all(same(list(other.average), list(first.average)) for other in others)


@FEWER
def test_microbatches_in_any_order_and_number():
    def work(comm, total, seed):
        w = np.zeros(40_000, np.float32)
        opt = ShardedOptimizer(cr.optim.SGD, w, comm, microbatches=total, lr=1.0)
        for i in np.random.default_rng([seed, comm.rank]).permutation(opt.indices):
            opt.accumulate(i, np.random.default_rng(i).standard_normal(w.shape))
        opt.step()
        return w

    for total in (1, 2, 3, 5, 8, 13):
        one = run_local(work, 1, total, 0)[0]
        for size in (2, 3, 4):
            assert all(same(w, one) for w in run_local(work, size, total, size))


def test_traffic_is_that_of_a_reduce_scatter_and_a_gather():
    elements = 1 << 20

    def work(comm):
        w = np.zeros(elements, np.float32)
        opt = ShardedOptimizer(cr.optim.Adam, w, comm, microbatches=8)
        opt.comm.bytes = 0
        for i in opt.indices:
            opt.accumulate(i, np.ones_like(w))
        opt.step()
        return opt.comm.bytes, sum(a.nbytes for s in opt.state.values() for a in s.values())

    for size in (2, 4):
        ideal = 2 * 4 * elements * (size - 1) / size
        for sent, state in run_local(work, size):
            assert ideal <= sent <= 1.01 * ideal
            assert state <= 1.01 * 8 * elements / size


def test_state_dicts_are_those_of_the_rule():
    kwargs = {"state_dtype": "int8", "lr": 0.01}
    expected = parameters(cr.optim.Adam)
    opt, _ = plain(cr.optim.Adam, expected, **kwargs)
    state = copy.deepcopy(opt.state_dict())
    start = copy.deepcopy(expected)
    mean = gradients(expected, 9, 0)
    opt.step(mean)

    def work(comm):
        params = copy.deepcopy(start)
        own = ShardedOptimizer(cr.optim.Adam, params, comm, microbatches=4, **kwargs)
        own.load_state_dict(state)
        for i in own.indices:
            own.accumulate(i, mean)
        own.step()
        return params, own.state_dict()

    for size in (1, 3):
        for params, other in run_local(work, size):
            assert same(params, expected)
            assert same(other, opt.state_dict())


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("rule", [cr.optim.Adam, cr.optim.Lamb])
def test_parameters_without_elements(rule, stage, tmp_path):
    def work(comm):
        w = {"a": np.zeros(0), "b": np.zeros((0, 3), np.float32)}
        opt = ShardedOptimizer(rule, w, comm, stage=stage, microbatches=4, offload=tmp_path)
        for clip in (None, 1.0):
            for i in opt.indices:
                opt.accumulate(i, {"a": w["a"], "b": None})
            norm = opt.step(max_grad_norm=clip)
        assert norm == 0
        return opt.state_dict()

    w = {"a": np.zeros(0), "b": np.zeros((0, 3), np.float32)}
    opt = rule(w)
    for _ in range(2):
        opt.step({"a": w["a"], "b": None})
    for size in (1, 3):
        assert all(same(state, opt.state_dict()) for state in run_local(work, size))


@FEWER
def test_more_ranks_than_parts():
    def work(comm):
        w = [np.ones(3), np.ones(0)]
        opt = ShardedOptimizer(cr.optim.Lamb, w, comm, microbatches=1)
        for i in opt.indices:
            opt.accumulate(i, [np.ones(3), np.ones(0)])
        opt.step(max_grad_norm=1.0)
        return w, opt.state_dict()

    one = run_local(work, 1)[0]
    assert all(same(other, one) for other in run_local(work, 4))


def test_copies_are_optimizers_of_their_own():
    w = parameters(cr.optim.Adam)
    opt, _ = sharded(cr.optim.Adam, w, prepare=lambda opt: opt.set_masks(None))
    twins = [copy.deepcopy((opt, w)), pickle.loads(pickle.dumps((opt, w)))]
    for index in range(MICROBATCHES):
        opt.accumulate(index, gradients(w, 5, index))
        for twin, own in twins:
            twin.accumulate(index, gradients(own, 5, index))
    opt.step()
    for twin, own in twins:
        assert not same(own, w)
        twin.step()
        assert same(own, w)
        assert same(twin.state_dict(), opt.state_dict())


def test_one_gradient_for_each_rank():
    def work(comm):
        w = np.zeros(3)
        opt = ShardedOptimizer(cr.optim.SGD, w, comm, lr=1.0)
        opt.step(np.full(3, comm.rank))
        return w.tolist()

    with pytest.raises(TypeError, match="floating-point"):
        run_local(work, 2)

    def floats(comm):
        w = np.zeros(3)
        ShardedOptimizer(cr.optim.SGD, w, comm, lr=1.0).step(np.full(3, float(comm.rank)))
        return w.tolist()

    assert run_local(floats, 2) == [[-0.5] * 3] * 2

"""Complex parameters: pairs of real numbers inside, against PyTorch's trajectories."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

import compressrs as cr

DATA = Path(__file__).parents[1] / "data"
CASES = json.loads((DATA / "complex.json").read_text())["cases"]
DTYPES = [np.complex64, np.complex128]
#: Of which a step is the same for complex parameters and for their pairs.
BY_PARTS = [
    "SGD",
    "Momentum",
    "Adagrad",
    "RMSprop",
    "Adadelta",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "Lion",
    "Lamb",
    "Rprop",
    "ASGD",
    "AdEMAMix",
    "Prodigy",
]


def numbers(*shape, dtype=np.complex128, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(dtype)


def as_pairs(z):
    """A copy of z as real numbers, with a last axis for both parts."""
    return np.stack([z.real, z.imag], -1)


def recorded(case):
    with np.load(DATA / "complex.npz") as data:
        return [data[f"{case['id']}/{key}"] for key in ("p0", "target", "grads", "traj")]


@pytest.mark.parametrize("given", ["complex", "view"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['optimizer']}-{c['id']}")
def test_recorded_trajectories(case, given):
    z, target, grads, truth = recorded(case)

    def taken(x):
        return x if given == "complex" else x.view(np.float64)

    opt = getattr(cr.optim, case["optimizer"])(taken(z), **case["kwargs"])
    for gradient_of_torch, expected in zip(grads, truth, strict=True):
        # PyTorch's convention: of |z - c|^2 it is 2 (z - c), the direction of steepest ascent.
        gradient = 2 * (z - target)
        np.testing.assert_allclose(gradient, gradient_of_torch, rtol=1e-11, atol=1e-11)
        opt.step(taken(gradient))
        np.testing.assert_allclose(z, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", BY_PARTS)
def test_steps_are_those_of_the_pairs_to_the_bit(rule, dtype):
    z = numbers(5, 3, dtype=dtype)
    real = as_pairs(z)
    opt, of_pairs = getattr(cr.optim, rule)(z), getattr(cr.optim, rule)(real)
    for seed in range(3):
        g = numbers(5, 3, dtype=dtype, seed=seed + 1)
        norm = opt.step(g, max_grad_norm=1.0, grad_scale=0.5)
        assert norm == of_pairs.step(as_pairs(g), max_grad_norm=1.0, grad_scale=0.5)
        np.testing.assert_array_equal(as_pairs(z), real)
        assert norm == pytest.approx(float(np.linalg.norm(g)) / 2, rel=1e-6)


def test_all_rules_are_either_taken_or_refused():
    rules = {
        name
        for name, value in vars(cr.optim).items()
        if isinstance(value, type)
        and issubclass(value, cr.optim.Optimizer)
        and value is not cr.optim.Optimizer
    }
    assert rules == {*BY_PARTS, "Muon", "Adafactor", "Shampoo", "SOAP"}


@pytest.mark.parametrize("rule", ["Muon", "Adafactor", "Shampoo", "SOAP"])
def test_rules_of_matrices_refuse(rule):
    kind = getattr(cr.optim, rule)
    with pytest.raises(TypeError, match=rf"params\['w'\] must be real for {rule}.*rows and col"):
        kind({"w": numbers(3, 2)})
    opt = kind(np.ones((2, 2)))
    with pytest.raises(TypeError, match="must be real"):
        opt.add_param_group({"params": numbers(3, 2)})
    opt.step(np.ones((2, 2)))  # as before


@pytest.mark.parametrize("dtype", DTYPES)
def test_optax_targets_are_reached(dtype):
    """The complex parabola |x - (1 + i)|^2 and Rosenbrock's function of two complex numbers."""
    minimum = np.array([1 + 1j, 2 - 3j], dtype)
    z = np.array([-1 - 1j, 0], dtype)
    opt = cr.optim.Adam(z, lr=0.05)
    for _ in range(1500):
        opt.step(2 * (z - minimum))
    np.testing.assert_allclose(z, minimum, atol=1e-3)
    z = np.zeros(2, dtype)
    opt = cr.optim.Adam(z, lr=0.02)
    for _ in range(6000):
        opt.step(rosenbrock(z)[1])
    np.testing.assert_allclose(z, [1, 1], atol=5e-2)


def rosenbrock(z):
    """|1 - x|^2 + 100 |y - x^2|^2, and 2 df/d(conj) of x and y."""
    x, y = z
    rest = y - x * x
    gradient = np.array([-2 * (1 - x) - 400 * np.conj(x) * rest, 200 * rest], z.dtype)
    return float(abs(1 - x) ** 2 + 100 * abs(rest) ** 2), gradient


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0), (2, 3, 4)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes(shape, dtype):
    z = np.asarray(numbers(*shape, dtype=dtype))
    g, before = np.asarray(numbers(*shape, dtype=dtype, seed=1)), z.copy()
    opt = cr.optim.SGD(z, lr=0.5)
    opt.step(g)
    np.testing.assert_allclose(z, before - g / 2, rtol=1e-6)
    assert opt.param_groups[0]["params"][0].shape == (*shape, 2)
    if z.size:
        assert np.shares_memory(opt.param_groups[0]["params"][0], z)


def test_trees_groups_and_mixed_parameters():
    z, w, v = numbers(2, 2), np.ones(3, np.float32), numbers(4, dtype=np.complex64)
    truth = z - numbers(2, 2, seed=1), w - 1, v - numbers(4, seed=2)
    opt = cr.optim.SGD([{"params": {"z": z, "w": w}}, {"params": [v], "lr": 1.0}], lr=1.0)
    opt.step([{"z": numbers(2, 2, seed=1), "w": np.ones(3)}, [numbers(4, seed=2)]])
    for got, expected in zip((z, w, v), truth, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    more = numbers(2)
    opt.add_param_group({"params": more, "lr": 1.0})
    before = more.copy()
    opt.step([{"z": None, "w": None}, [None], np.ones(2, complex)])
    np.testing.assert_array_equal(more, before - 1)
    np.testing.assert_allclose(z, truth[0], rtol=1e-6)
    with pytest.raises(TypeError, match=r"grads\[0\]\['z'\] must be complex like params\[0\]"):
        opt.step([{"z": np.ones((2, 2)), "w": None}, [None], None])


def test_gradients_in_any_memory_order_and_precision():
    z = numbers(3, 4)
    g = numbers(6, 4, seed=1)
    for given in (
        np.asfortranarray(g[:3]),
        g[::2],
        g[:3].astype(np.complex64),
        g[2::-1],
    ):
        before = z.copy()
        cr.optim.SGD(z, lr=1.0).step(given)
        np.testing.assert_allclose(z, before - np.asarray(given), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda z: z.real.copy(), TypeError, "grads must be complex like params, got float64"),
        (lambda z: as_pairs(z), TypeError, "grads must be complex like params"),
        (lambda z: np.ones(z.shape, int), TypeError, "grads must be complex like params"),
        (lambda z: z[:1].copy(), ValueError, r"grads must have the shape \(2, 3\) of params"),
        (lambda z: z[..., None].copy(), ValueError, r"grads must have the shape \(2, 3\)"),
        (lambda z: z, ValueError, "memory"),
        (lambda z: z[::1, ::1], ValueError, "memory"),
        (lambda z: 1j, TypeError, "grads must be a NumPy array"),
        (lambda z: np.ma.masked_array(z.copy()), TypeError, "without a mask"),
        (lambda z: z.astype(np.clongdouble), TypeError, "grads must be complex64 or complex128"),
    ],
)
def test_gradients_that_are_refused(make, error, match):
    z = numbers(2, 3)
    opt = cr.optim.Adam(z)
    opt.step(numbers(2, 3, seed=1))
    before, state = z.copy(), copy.deepcopy(opt.state_dict())
    with pytest.raises(error, match=match):
        opt.step(make(z))
    np.testing.assert_array_equal(z, before)
    for name, value in state["state"][0].items():
        np.testing.assert_array_equal(opt.state[0][name], value)


def test_complex_gradients_of_real_parameters_are_refused():
    w = np.ones(2)
    with pytest.raises(TypeError, match=r"grads must have dtype.*complex128"):
        cr.optim.SGD(w).step(np.ones(2, complex))
    with pytest.raises(TypeError, match="complex128"):
        cr.optim.SGD(w).step(cr.optim.RowGradient([0], np.ones(1, complex)))
    np.testing.assert_array_equal(w, [1, 1])


def test_parameters_that_are_refused():
    z = numbers(3, 4)
    fixed = numbers(2)
    fixed.flags.writeable = False
    for params, error, match in [
        (z.T, ValueError, "params must be C-contiguous"),
        (z[:, ::2], ValueError, "params must be C-contiguous"),
        (fixed, ValueError, "params"),
        ([z, z], ValueError, "memory"),
        ([z, z[0]], ValueError, "memory"),
        ([z, z.view(np.float64)], ValueError, "memory"),
        (z.astype(np.clongdouble), TypeError, "params must be complex64 or complex128"),
        (z.astype(">c16"), TypeError, "params"),
    ]:
        with pytest.raises(error, match=match):
            cr.optim.Adam(params)
        with pytest.raises(error, match=match):
            cr.optim.EMA(params)


def test_gradients_that_are_not_finite():
    z = numbers(2)
    opt = cr.optim.SGD(z, lr=1.0)
    before = z.copy()
    bad = np.array([1, complex(0, np.nan)])
    with pytest.raises(cr.optim.NonFiniteGradientError, match="grads"):
        opt.step(bad, nonfinite="raise")
    assert np.isnan(opt.step(bad, nonfinite="skip"))
    np.testing.assert_array_equal(z, before)
    opt.step(bad)
    assert z[0] == before[0] - 1
    assert np.isnan(z[1])


def test_rows_of_complex_gradients():
    z, dense = numbers(4, 2), numbers(4, 2)
    values = numbers(3, 2, seed=1)
    gradient = cr.optim.RowGradient([2, 0, 2], values)
    opt = cr.optim.Adagrad(z, lr=0.5)
    opt.step(gradient)
    whole = np.zeros_like(dense)
    np.add.at(whole, [2, 0, 2], values)
    np.testing.assert_allclose(gradient.dense(4), whole, rtol=1e-12)
    assert gradient.summed().values.dtype == np.complex128
    cr.optim.Adagrad(dense, lr=0.5).step(whole)
    np.testing.assert_allclose(z, dense, rtol=1e-12)
    line = numbers(3)
    before = line.copy()
    cr.optim.SGD(line, lr=1.0).step(cr.optim.RowGradient([1], np.array([2j])))
    np.testing.assert_array_equal(line, before - [0, 2j, 0])
    for rows, error in [
        (cr.optim.RowGradient([1], np.ones((1, 2))), TypeError),
        (cr.optim.RowGradient([1], np.ones((1, 3), complex)), ValueError),
        (cr.optim.RowGradient([4], np.ones((1, 2), complex)), ValueError),
    ]:
        with pytest.raises(error, match="grads"):
            opt.step(rows)
    with pytest.raises(TypeError, match="values must be complex64 or complex128"):
        cr.optim.RowGradient([0], np.ones((1, 2), np.clongdouble))


def test_masks():
    z, mask = numbers(2, 3), np.array([[True, False, True], [False, True, True]])
    opt = cr.optim.Adam(z)
    opt.step(numbers(2, 3, seed=1))
    average = cr.optim.EMA(z, decay=0.5)
    opt.set_masks(mask)
    opt.step(numbers(2, 3, seed=2))
    assert ((z != 0) == mask).all()
    assert (opt.state[0]["exp_avg"][~mask] == 0).all()
    average.update()
    assert ((average.average != 0) == mask).all()
    resumed = numbers(2, 3)
    other = cr.optim.Adam(resumed)
    other.load_state_dict(opt.state_dict())
    other.step(numbers(2, 3, seed=3))
    assert ((resumed != 0) == mask).all()
    with pytest.raises(ValueError, match=r"masks must have the shape \(2, 3\) of params"):
        opt.set_masks(np.ones((2, 3, 2), bool))
    opt.set_masks(None)
    opt.step(numbers(2, 3, seed=4))
    assert (z != 0).all()


def test_pruning_refuses_parts_and_magnitudes_do():
    z = numbers(4, 4)
    opt = cr.optim.SGD(z)
    schedule = cr.prune.OneShot(0.5)
    for refused in (
        lambda: cr.prune.Pruner(z, schedule),
        lambda: cr.prune.Pruner([np.ones((2, 2)), z], schedule),
        lambda: cr.prune.magnitude_mask(z, sparsity=0.5),
        lambda: cr.prune.LotteryTicket(z, opt),
        lambda: cr.prune.Magnitude().scores(z),
    ):
        with pytest.raises(TypeError, match=r"must be real to be pruned.*magnitude_mask\(np.abs"):
            refused()
    with pytest.raises(TypeError, match="real"):
        cr.prune.neurons(np.array([True, False, True, True]), [z], [], optimizer=opt)
    mask = cr.prune.magnitude_mask(np.abs(z), sparsity=0.5)
    opt.set_masks(mask)
    np.testing.assert_array_equal(z != 0, mask)
    assert mask.sum() == 8


def test_clipping():
    g = [numbers(3, 2), np.ones(2), None, numbers(4, dtype=np.complex64)]
    for order in (2.0, 1.0, 3.0, np.inf):
        own = copy.deepcopy(g)
        flat = np.concatenate([x.ravel() for x in g if x is not None])
        norm = cr.optim.clip_grad_norm_(own, 0.5, order)
        assert norm == pytest.approx(np.linalg.norm(flat, order), rel=1e-6)
        np.testing.assert_allclose(own[0], g[0] * (0.5 / (norm + 1e-6)), rtol=1e-6)
        np.testing.assert_allclose(own[3], g[3] * (0.5 / (norm + 1e-6)), rtol=1e-5)
    for order in (1.0, 2.0, np.inf):
        large = [np.full(2, complex(1e308, -1.7e308)), np.ones(1)]
        assert cr.optim.clip_grad_norm_(large, 3.0, order) == np.inf
        assert np.linalg.norm(np.concatenate(large), order) == pytest.approx(3)
        assert large[0][0].imag / large[0][0].real == pytest.approx(-1.7)
        bad = [np.array([complex(np.nan, 1.0)]), np.ones(1)]
        assert np.isnan(cr.optim.clip_grad_norm_(bad, 3.0, order))
    own = numbers(3, 2) * 2
    truth = np.clip(own.real, -1, 1) + 1j * np.clip(own.imag, -1, 1)
    cr.optim.clip_grad_value_(own, 1.0)
    np.testing.assert_array_equal(own, truth)
    with pytest.raises(ValueError, match="grads must be C-contiguous"):
        cr.optim.clip_grad_norm_(numbers(3, 4).T, 1.0)


def test_accumulation():
    accumulator = cr.optim.GradientAccumulator(2)
    a, b = numbers(3, dtype=np.complex64), numbers(3, dtype=np.complex64, seed=1)
    assert accumulator.add([a, np.ones(2)]) is None
    for wrong in ([a.real, np.ones(2)], [a, np.ones(2, complex)]):
        with pytest.raises(TypeError, match="as in the first call"):
            accumulator.add(wrong)
    mean, ones = accumulator.add([b, None])
    assert mean.dtype == np.complex64
    np.testing.assert_allclose(mean, (a + b) / 2, rtol=1e-6)
    np.testing.assert_array_equal(ones, [0.5, 0.5])
    again = pickle.loads(pickle.dumps(accumulator))
    again.add([a, None])
    np.testing.assert_allclose(again.add([a, None])[0], a, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_averages(dtype):
    z = {"a": numbers(2, 3, dtype=dtype), "b": np.ones(2)}
    ema, swa = cr.optim.EMA(z, decay=0.5), cr.optim.SWA(z)
    start = z["a"].copy()
    z["a"] += 1j
    ema.update()
    swa.update()
    assert ema.average["a"].dtype == dtype
    np.testing.assert_allclose(ema.average["a"], start + 0.5j, rtol=1e-6)
    np.testing.assert_array_equal(swa.average["a"], z["a"])
    with ema.applied():
        np.testing.assert_allclose(z["a"], start + 0.5j, rtol=1e-6)
    np.testing.assert_allclose(z["a"], start + 1j, rtol=1e-6)
    ema.average["a"] = np.full((2, 3), 2j, dtype)
    other = cr.optim.EMA(copy.deepcopy(z), decay=0.5)
    other.load_state_dict(ema.state_dict())
    np.testing.assert_array_equal(other.average["a"], np.full((2, 3), 2j))
    ema.copy_to_params()
    np.testing.assert_array_equal(z["a"], np.full((2, 3), 2j))
    single = np.array(1j)
    assert cr.optim.EMA(single).average == 1j


def test_lookahead_and_schedule_free():
    def pair(make):
        z = numbers(3)
        real = as_pairs(z)
        return z, real, make(z), make(real)

    for make in (
        lambda x: cr.optim.Lookahead(cr.optim.Adam(x, lr=0.1), k=2),
        lambda x: cr.optim.ScheduleFree(x, lambda y: cr.optim.Adam(y, lr=0.1, betas=(0, 0.99))),
    ):
        z, real, opt, of_pairs = pair(make)
        for seed in range(5):
            g = numbers(3, seed=seed)
            opt.step(g)
            of_pairs.step(as_pairs(g))
            np.testing.assert_array_equal(as_pairs(z), real)
        z2, opt2 = copy.deepcopy((z, opt))
        z3, opt3 = pickle.loads(pickle.dumps((z, opt)))
        z4 = z.copy()
        opt4 = make(z4)
        opt4.load_state_dict(opt.state_dict())
        for o in (opt, opt2, opt3, opt4):
            o.step(numbers(3, seed=9))
        for other in (z2, z3, z4):
            np.testing.assert_array_equal(other, z)
    inside = []
    cr.optim.ScheduleFree(numbers(3), lambda z: inside.append(z.dtype) or cr.optim.SGD(z, lr=0.1))
    assert inside == [np.complex128]


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs(search):
    z = np.zeros(2, complex)
    real = as_pairs(z)
    kwargs = {"max_iter": 60, "lr": 1.0 if search else 0.002, "line_search_fn": search}
    opt, of_pairs = cr.optim.LBFGS(z, **kwargs), cr.optim.LBFGS(real, **kwargs)

    def closure_of_pairs():
        loss, gradient = rosenbrock(real.view(np.complex128)[..., 0])
        return loss, as_pairs(gradient)

    assert opt.step(lambda: rosenbrock(z)) == of_pairs.step(closure_of_pairs)
    np.testing.assert_array_equal(as_pairs(z), real)
    if search:
        np.testing.assert_allclose(z, [1, 1], atol=1e-5)
    other = z.copy()
    again = cr.optim.LBFGS(other, **kwargs)
    again.load_state_dict(opt.state_dict())
    opt.step(lambda: rosenbrock(z))
    again.step(lambda: rosenbrock(other))
    np.testing.assert_array_equal(z, other)
    with pytest.raises(TypeError, match="the gradient of params must be complex"):
        opt.step(lambda: (1.0, np.ones(2)))


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam(adaptive):
    z, minimum = numbers(3), numbers(3, seed=1)
    seen = []

    def closure():
        seen.append(z.copy())
        return float(np.sum(np.abs(z - minimum) ** 2)), 2 * (z - minimum)

    cr.optim.SAM(cr.optim.SGD(z, lr=0.1), rho=0.5, adaptive=adaptive).step(closure)
    start, g = seen[0], 2 * (seen[0] - minimum)
    # T is one real number for both parts, so that the result turns with the numbers.
    t = np.abs(start) if adaptive else np.ones(3)
    worst = start + 0.5 * t**2 * g / np.linalg.norm(t * g)
    np.testing.assert_allclose(seen[1], worst, rtol=1e-12)
    np.testing.assert_allclose(z, start - 0.2 * (worst - minimum), rtol=1e-12)
    with pytest.raises(TypeError, match="must be complex"):
        cr.optim.SAM(cr.optim.SGD(z)).step(lambda: (1.0, np.ones(3)))


def test_range_test_and_global_search():
    z = numbers(3)
    before = z.copy()
    opt = cr.optim.Adam(z)

    def train():
        loss = float(np.sum(np.abs(z) ** 2))
        opt.step(2 * z)
        return loss

    assert cr.optim.lr_range_test(opt, train, steps=20).rates
    np.testing.assert_array_equal(z, before)
    fun, x0 = cr.optim.flat_function(lambda: (float(np.sum(np.abs(z) ** 2)), 2 * z), z)
    np.testing.assert_array_equal(x0, as_pairs(z).ravel())
    loss, gradient = fun(x0)
    assert loss == pytest.approx(float(np.sum(np.abs(before) ** 2)))
    np.testing.assert_array_equal(gradient, 2 * x0)

    def initialize(rng):
        z[:] = rng.normal(size=3) + 1j

    found = cr.optim.restarts(train, z, initialize, range(3))
    assert found.loss == min(found.losses)


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "int8"])
def test_copies_and_files_continue_with_the_same_bits(tmp_path, state_dtype):
    pytest.importorskip("safetensors")
    if state_dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    z = numbers(70, 60, dtype=np.complex64)
    opt = cr.optim.Adam(z, state_dtype=state_dtype)
    opt.step(numbers(70, 60, dtype=np.complex64, seed=1))
    assert opt.state[0]["exp_avg"].shape == (70, 60, 2)
    if state_dtype == "int8":
        assert opt.state[0]["exp_avg"].dtype == np.int8
    z2, opt2 = copy.deepcopy((z, opt))
    z3, opt3 = pickle.loads(pickle.dumps((z, opt)))
    z4, z5 = z.copy(), z.copy()
    opt4 = cr.optim.Adam(z4, state_dtype=state_dtype)
    opt.save(tmp_path / "opt.safetensors")
    opt4.load(tmp_path / "opt.safetensors")
    run = cr.TrainState(params=[z], optimizer=opt)
    run.save(tmp_path / "run.safetensors")
    z5[:] = 0
    opt5 = cr.optim.Adam(z5, state_dtype=state_dtype)
    cr.TrainState(params=[z5], optimizer=opt5).load(tmp_path / "run.safetensors")
    for o in (opt, opt2, opt3, opt4, opt5):
        o.step(numbers(70, 60, dtype=np.complex64, seed=2))
    for other in (z2, z3, z4, z5):
        np.testing.assert_array_equal(other, z)


def test_parts_of_a_run_are_copied_together():
    z = numbers(2, 2)
    opt = cr.optim.Adam(z)
    parts = z, cr.optim.Lookahead(opt, k=1), cr.optim.EMA(z, decay=0.5)
    before = z.copy()
    for w, lookahead, ema in (copy.deepcopy(parts), pickle.loads(pickle.dumps(parts))):
        lookahead.step(numbers(2, 2, seed=1))
        ema.update()
        assert (w != before).all()
        np.testing.assert_allclose(ema.average, (w + before) / 2, rtol=1e-12)
    np.testing.assert_array_equal(z, before)


def test_sharded_optimizers_refuse():
    z = numbers(3)
    with pytest.raises(TypeError, match="params must be real for ShardedOptimizer"):
        cr.distributed.ShardedOptimizer(cr.optim.Adam, z)
    with pytest.raises(TypeError, match="optimizer must have real parameters"):
        cr.distributed.DiLoCo(cr.optim.Adam(z))


def test_state_dicts_of_real_and_complex_parameters_are_told_apart():
    z = numbers(3)
    opt, of_pairs = cr.optim.Adam([z]), cr.optim.Adam([as_pairs(z)])
    for own, other in ((opt, of_pairs), (of_pairs, opt)):
        with pytest.raises(ValueError, match="complex"):
            own.load_state_dict(other.state_dict())
    for wrong in (None, 0, [1], "0"):
        with pytest.raises(ValueError, match="complex"):
            opt.load_state_dict({**opt.state_dict(), "complex": wrong})


def test_state_that_pytorch_holds_in_complex_numbers():
    z = numbers(3)
    opt = cr.optim.Adam(z, lr=0.1)
    mean, square = numbers(3, seed=1), np.abs(numbers(3, seed=2)) + 1j
    group = {**opt.state_dict()["param_groups"][0], "params": [0]}
    del group["param_names"]
    state = {"step": 4.0, "exp_avg": mean, "exp_avg_sq": square}
    opt.load_state_dict({"state": {0: state}, "param_groups": [group]})
    np.testing.assert_array_equal(opt.state[0]["exp_avg"], as_pairs(mean))
    np.testing.assert_array_equal(opt.state[0]["exp_avg_sq"], as_pairs(square))
    with pytest.raises(ValueError, match="exp_avg"):
        wrong = {**state, "exp_avg": mean[:2]}
        opt.load_state_dict({"state": {0: wrong}, "param_groups": [group]})
    real = cr.optim.Adam(np.ones(3))
    with pytest.raises(ValueError, match="exp_avg"):
        real.load_state_dict({"state": {0: state}, "param_groups": [group]})


@pytest.mark.parametrize("rule", ["SGD", "Adam", "Adagrad", "RMSprop", "Rprop", "NAdam", "ASGD"])
def test_continues_from_pytorch_and_back(rule):
    torch = pytest.importorskip("torch")
    kwargs = {"lr": 0.1, "momentum": 0.9} if rule == "SGD" else {"lr": 0.1}
    start = numbers(2, 3)
    weight = torch.tensor(start, requires_grad=True)
    theirs = getattr(torch.optim, rule)([weight], **kwargs)

    def step_of_torch(seed):
        weight.grad = torch.tensor(numbers(2, 3, seed=seed))
        theirs.step()

    step_of_torch(1)
    z = weight.detach().numpy().copy()
    ours = getattr(cr.optim, rule)(z, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    step_of_torch(2)
    ours.step(numbers(2, 3, seed=2))
    np.testing.assert_allclose(z, weight.detach().numpy(), rtol=1e-10)
    theirs.load_state_dict(cr.optim.to_torch(ours.state_dict()))
    step_of_torch(3)
    ours.step(numbers(2, 3, seed=3))
    np.testing.assert_allclose(z, weight.detach().numpy(), rtol=1e-6)
    tensor = torch.tensor(start)
    cr.optim.SGD(tensor, lr=1.0).step(torch.tensor(start))
    assert (tensor == 0).all()


def test_the_rest_of_the_package_refuses_complex_numbers():
    z = numbers(2, 3)
    layer = cr.nn.Linear(3, 2, rng=0)
    for call in (
        lambda: layer(z),
        lambda: cr.distill.softmax(z),
        lambda: cr.sparse.CSRMatrix.from_dense(z),
        lambda: cr.quantize.quantize(z, cr.quantize.Scheme(bits=8)),
        lambda: layer.params.__setitem__("weight", z),
    ):
        with pytest.raises((TypeError, ValueError), match="complex128"):
            call()

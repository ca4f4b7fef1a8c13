"""Steps at the edge of the range: eps of 0, squares that overflow, wide gradients, few bits."""

import inspect

import ml_dtypes
import numpy as np
import pytest

import compressrs as cr

BF16 = np.dtype(ml_dtypes.bfloat16)
ALL = [getattr(cr.optim, name) for name in cr.optim.__all__]
#: Every rule there is: a new one is tried by all that follows.
RULES = [
    cls
    for cls in ALL
    if isinstance(cls, type)
    and issubclass(cls, cr.optim.Optimizer)
    and cls is not cr.optim.Optimizer
]
SHAPE = (4, 6)


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def eps_of_0(cls):
    """Return the arguments that set all of a rule's eps to 0, where it takes that."""
    kwargs = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if name.startswith("eps"):
            pair = isinstance(parameter.default, tuple)
            kwargs[name] = (0.0, 0.0) if pair else 1e-300 if cls is cr.optim.Muon else 0.0
    return kwargs


def variants(cls):
    """Return a rule as it is, and with each of its switches."""
    parameters = inspect.signature(cls).parameters
    switches = [
        {name: True}
        for name in ("amsgrad", "centered", "nesterov", "decoupled_weight_decay")
        if name in parameters
    ]
    momentum = [{"momentum": 0.9}] if "momentum" in parameters else []
    for switch in switches:
        if "nesterov" in switch:
            switch["momentum"] = 0.9
    return [{}, *switches, *momentum]


EACH = [(cls, kwargs) for cls in RULES for kwargs in variants(cls)]


@pytest.mark.parametrize(("cls", "kwargs"), EACH, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [SHAPE, (7,)])
def test_without_eps_a_gradient_of_0_takes_no_step(cls, kwargs, dtype, shape):
    if cls is cr.optim.Muon and len(shape) != 2:
        pytest.skip("takes matrices")
    w = normal(*shape, dtype=dtype)
    start = w.copy()
    opt = cls(w, **eps_of_0(cls), **kwargs)
    g = np.zeros(shape, dtype)
    for _ in range(3):
        opt.step(g)
    assert np.isfinite(w).all()
    if "lambd" not in inspect.signature(cls).parameters and "weight_decay" not in kwargs:
        # AdamW and Lamb, Muon and Lion decay by default.
        decay = opt.param_groups[0].get("weight_decay", 0) * opt.param_groups[0].get("lr", 0)
        np.testing.assert_allclose(w, start, rtol=4 * float(decay) + 1e-6, atol=0)
    # The first element has had a gradient, the others have had none.
    g.flat[0] = 1
    for _ in range(3):
        opt.step(g)
    assert np.isfinite(w).all()
    # Adadelta begins with steps of the size of its eps.
    assert w.flat[0] != start.flat[0] or cls is cr.optim.Adadelta
    # Squares that vanish are no reason for infinite weights.
    tiny = np.full(shape, np.finfo(dtype).tiny, dtype)
    opt.step(tiny)
    assert np.isfinite(w).all()


@pytest.mark.parametrize("exponent", [100, 200, 307])
def test_muon_of_any_size(exponent):
    w, usual = np.zeros(SHAPE), np.zeros(SHAPE)
    g = normal(*SHAPE)
    cr.optim.Muon(w, lr=0.1, weight_decay=0.0).step(g / 4 * 10.0**exponent)
    cr.optim.Muon(usual, lr=0.1, weight_decay=0.0).step(g / 4)
    np.testing.assert_allclose(w, usual, rtol=1e-5)
    assert np.abs(w).max() > 1e-3


@pytest.mark.parametrize("exponent", [-250, -200, 200, 300])
def test_lamb_and_adafactor_of_weights_of_any_size(exponent):
    start, g, scale = normal(*SHAPE), normal(*SHAPE, seed=1), 10.0**exponent
    for cls, kwargs in ((cr.optim.Lamb, {"weight_decay": 0.0}), (cr.optim.Adafactor, {})):
        w, usual = start * scale, start.copy()
        if cls is cr.optim.Adafactor:
            kwargs = {"eps": (None, 0.0)}
        cls(w, lr=0.1, **kwargs).step(g)
        cls(usual, lr=0.1, **kwargs).step(g)
        # Steps go with the norm of the weights.
        np.testing.assert_allclose(w / scale, usual, rtol=1e-12)
        assert (w != start * scale).all()


@pytest.mark.parametrize("exponent", [-100, 50, 100, 150])
def test_adafactor_of_gradients_of_any_size(exponent):
    """The product of a row's and a column's mean is the fourth power of the gradient."""
    w, usual = np.ones(SHAPE), np.ones(SHAPE)
    g = normal(*SHAPE)
    for array, gradient in ((w, g * 10.0**exponent), (usual, g)):
        opt = cr.optim.Adafactor(array, lr=0.1, eps=(0.0, 1e-3))
        opt.step(gradient)
        opt.step(gradient)
    np.testing.assert_allclose(w, usual, rtol=1e-11)


def test_rprop_sees_agreement_of_small_gradients():
    for dtype in (np.float32, np.float64):
        small = np.finfo(dtype).tiny
        w = np.zeros(3, dtype)
        opt = cr.optim.Rprop(w, lr=0.1)
        opt.step(np.array([small, small, 0], dtype))
        opt.step(np.array([small, -small, small], dtype))
        np.testing.assert_allclose(opt.state[0]["step_size"], [0.12, 0.05, 0.1], rtol=1e-6)


@pytest.mark.parametrize("cls", RULES)
@pytest.mark.parametrize("mask", [False, True])
def test_wide_gradients_are_scaled_and_clipped_in_their_own_precision(cls, mask):
    """Float64 gradients of 1e39 on float32 weights, as float32 gradients that were clipped."""
    w, same = (normal(*SHAPE, dtype=np.float32) for _ in range(2))
    g = normal(*SHAPE, seed=1)
    g /= np.linalg.norm(g)
    opt, plain = cls(w), cls(same)
    if mask:
        kept = np.random.default_rng(2).random(SHAPE) < 0.7
        for o in (opt, plain):
            o.set_masks(kept)
        g /= np.linalg.norm(np.where(kept, g, 0))
    for _ in range(2):
        norm = opt.step(g * 1e60, max_grad_norm=1.0, nonfinite="raise")
        assert norm == pytest.approx(1e60, rel=1e-9)
        plain.step(g.astype(np.float32))
    np.testing.assert_allclose(w, same, rtol=2e-5, atol=1e-6)
    opt.step(g * 1e60, grad_scale=1e-60, nonfinite="raise")
    plain.step(g.astype(np.float32))
    np.testing.assert_allclose(w, same, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16], ids=str)
@pytest.mark.parametrize("cls", RULES)
def test_what_does_not_fit_the_type_of_the_weights_is_refused(cls, dtype):
    w = normal(*SHAPE, dtype=dtype)
    opt = cls(w)
    opt.step(np.ones(SHAPE, np.float32))
    before = w.copy()
    state = [a.copy() for a in opt.state[0].values()]
    for arguments in (
        {"grads": np.full(SHAPE, 1e39)},
        {"grads": np.full(SHAPE, 1e30, np.float32), "grad_scale": 1e10},
        {"grads": np.full(SHAPE, 1e39), "max_grad_norm": 1e45},
    ):
        with pytest.raises(cr.optim.NonFiniteGradientError, match="beyond the range of float32"):
            opt.step(**arguments, nonfinite="raise")
        assert opt.step(**arguments, nonfinite="skip") > 0
    np.testing.assert_array_equal(w, before)
    for a, b in zip(opt.state[0].values(), state, strict=True):
        np.testing.assert_array_equal(a, b)


def test_factors_below_the_range_of_the_weights_type():
    """Float32 gradients near the end of their range, clipped to the other end."""
    w = np.zeros(4, np.float32)
    g = np.full(4, 1e38, np.float32)
    cr.optim.SGD(w, lr=1.0).step(g, max_grad_norm=1e-9)
    np.testing.assert_allclose(w, -5e-10, rtol=1e-6)
    assert cr.optim.clip_grad_norm_(g, 1e-9) == pytest.approx(2e38)
    np.testing.assert_allclose(g, 5e-10, rtol=1e-6)


@pytest.mark.parametrize("order", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("size", [1e308, 1.7e308, 1e-308, 1e-320])
def test_norms_beyond_the_range_clip_all_the_same(order, size):
    g = np.full(100, size)
    g[::2] *= -1
    norm = cr.optim.clip_grad_norm_(g, 1.0, order)
    truth = 100 ** (1 / order)
    if size > 1:
        assert norm == np.inf
        expected = 1 / truth
    else:
        assert norm == pytest.approx(size * truth, rel=1e-12)
        expected = size
    np.testing.assert_allclose(np.abs(g), expected, rtol=1e-12)
    with pytest.raises(cr.optim.NonFiniteGradientError):
        cr.optim.clip_grad_norm_(np.full(100, 1e308), 1.0, 1.0, error_if_nonfinite=True)


def test_a_step_with_a_norm_beyond_the_range():
    w = np.zeros(100)
    g = np.full(100, 1e308)
    assert cr.optim.SGD(w, lr=1.0).step(g, max_grad_norm=1.0, nonfinite="raise") == np.inf
    np.testing.assert_allclose(w, -0.1, rtol=1e-12)
    assert (g == 1e308).all()


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BF16], ids=str)
@pytest.mark.parametrize(("step", "count"), [(2.0**-20, 20_000), (2.0**-23, 20_000), (3e-5, 1000)])
def test_kahan_loses_no_small_step(dtype, step, count):
    w = np.ones(4096, dtype)
    opt = cr.optim.SGD(w, lr=step, precision="kahan")
    g = np.ones(w.shape, dtype)
    for _ in range(count):
        opt.step(g)
    place = float(np.spacing(np.array(0.99, dtype)))
    moved = step * count
    exact = 1 - moved
    assert np.abs(w.astype(np.float64) - exact).max() <= place
    buffer = next(a for name, a in opt.state[0].items() if a.ndim and a.dtype == dtype)
    mean = (w.astype(np.float64) + buffer.astype(np.float64)).mean()
    assert mean == pytest.approx(exact, abs=0.02 * moved)


@pytest.mark.parametrize("order", [0.5, 3.0, 1e3, 1e5, 1e10, 1e17, 1e18, 1e30, 1e308])
@pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e-200, 1.0, 3.0, 1e200, 1e308])
def test_norms_of_any_order(order, scale):
    g = np.array([[0.3, -0.7, 1.0], [1.0, 0.0, 1 - 2**-40]]) * scale
    largest = np.abs(g).max()
    ratios = (np.abs(g) / largest).astype(np.longdouble)
    right = float(largest * (ratios**order).sum() ** (1 / np.longdouble(order)))
    norm = cr.optim.clip_grad_norm_([g.copy()], np.inf, norm_type=order)
    np.testing.assert_allclose(norm, right, rtol=1e-14, atol=5e-324)
    if scale >= 1:
        clipped = [g.copy()]
        cr.optim.clip_grad_norm_(clipped, 0.5, norm_type=order)
        np.testing.assert_allclose(clipped[0], g * (0.5 / (right + 1e-6)), rtol=1e-13)


@pytest.mark.parametrize(("cls", "kwargs"), EACH, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_finite_gradient_makes_weights_nan(cls, kwargs, dtype):
    """A second moment that overflows stops a weight; it does not destroy it."""
    largest = np.finfo(dtype).max
    mixed = np.random.default_rng(0).uniform(-1, 1, SHAPE).astype(dtype)
    # Steps that are a multiple of the gradient are representable at small rates only, and
    # its sums, which some momentum is, not at all.
    multiple = cls in (cr.optim.SGD, cr.optim.Momentum, cr.optim.ASGD, cr.optim.RAdam)
    kwargs = {**kwargs, "lr": 1e-30} if multiple else kwargs
    top = 0.1 if kwargs.get("momentum") and cls is cr.optim.SGD else 1
    for scale in (top, 0.5 * top, 1e-3, 1e-10, 1e-19):
        for direction in (np.ones(SHAPE, dtype), mixed):
            grad = direction * dtype(largest * scale)
            w = np.ones(SHAPE, dtype)
            opt = cls(w, **kwargs)
            # The same twice, as large a one the other way, none, and usual ones.
            for g in (grad, grad, -grad, 0 * grad, mixed, mixed):
                opt.step(g)
            assert np.isfinite(w).all(), scale


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_averages_of_the_largest_weights_are_finite(dtype):
    largest = np.finfo(dtype).max
    w = np.full(3, -largest)
    ema = cr.optim.EMA(w, 0.5)
    w[:] = largest
    ema.update()
    assert np.array_equal(ema.average, np.zeros(3))
    opt = cr.optim.Lookahead(cr.optim.SGD(w, lr=0.0), k=1)
    w[:] = -largest
    opt.step(np.zeros(3, dtype))
    assert np.array_equal(w, np.zeros(3))

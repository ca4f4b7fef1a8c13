"""Optimizers against recorded trajectories and the reference, and their guarantees."""

import copy
import json
import pickle
from pathlib import Path

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import compressrs as cr
from tests.reference import optim as reference

DATA = Path(__file__).parents[1] / "data"
CASES = [
    {**case, "file": file}
    for file in ("optim", "adaptive")
    for case in json.loads((DATA / f"{file}.json").read_text())["cases"]
]
RULES = {
    cr.optim.SGD: (
        reference.sgd,
        [
            {},
            {"momentum": 0.9},
            {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
            {"momentum": 0.9, "nesterov": True, "maximize": True},
        ],
    ),
    cr.optim.Momentum: (
        reference.momentum,
        [{}, {"momentum": 0.5, "weight_decay": 0.1}, {"nesterov": True, "maximize": True}],
    ),
    cr.optim.Adam: (
        reference.adam,
        [
            {},
            {"amsgrad": True, "weight_decay": 0.1},
            {"betas": (0.5, 0.9), "maximize": True},
            {"decoupled_weight_decay": True, "weight_decay": 0.1},
            {"cautious": True, "weight_decay": 0.1, "amsgrad": True},
        ],
    ),
    cr.optim.AdamW: (
        reference.adamw,
        [
            {},
            {"amsgrad": True, "weight_decay": 0.1},
            {"eps": 1e-3, "maximize": True},
            {"cautious": True, "maximize": True},
        ],
    ),
    cr.optim.AdEMAMix: (
        reference.ademamix,
        [
            {},
            {"warmup": 4, "weight_decay": 0.1},
            {"betas": (0.5, 0.9, 0.95), "alpha": 2, "maximize": True},
            {"betas": (0.0, 0.9, 0.95), "warmup": 5},
            {"betas": (0.9, 0.9, 0.0), "warmup": 5},
            {"cautious": True, "weight_decay": 0.1},
        ],
    ),
    cr.optim.Prodigy: (
        reference.prodigy,
        [
            {},
            {"weight_decay": 0.1, "use_bias_correction": True, "d0": 1e-2},
            {"safeguard_warmup": True, "growth_rate": 1.5, "d_coef": 2.0, "maximize": True},
            {"weight_decay": 0.1, "decoupled_weight_decay": False},
        ],
    ),
    cr.optim.Adagrad: (
        reference.adagrad,
        [
            {"eps": 1e-3},
            {"lr_decay": 0.1, "initial_accumulator_value": 0.5, "weight_decay": 0.1},
            {"initial_accumulator_value": 0.1, "maximize": True},
        ],
    ),
    cr.optim.RMSprop: (
        reference.rmsprop,
        [
            {},
            {"momentum": 0.9, "weight_decay": 0.1},
            {"centered": True, "eps": 1e-2},
            {"centered": True, "eps": 1e-2, "momentum": 0.5, "maximize": True},
        ],
    ),
    cr.optim.Adadelta: (
        reference.adadelta,
        [{}, {"rho": 0.5, "weight_decay": 0.1}, {"maximize": True}],
    ),
    cr.optim.Adamax: (
        reference.adamax,
        [{}, {"weight_decay": 0.1}, {"betas": (0.5, 0.9), "maximize": True}],
    ),
    cr.optim.NAdam: (
        reference.nadam,
        [
            {},
            {"weight_decay": 0.1, "momentum_decay": 0.1},
            {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
            {"weight_decay": 0.1, "cautious": True},
        ],
    ),
    cr.optim.RAdam: (
        reference.radam,
        [
            {"betas": (0.9, 0.7)},
            {"weight_decay": 0.1},
            {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
            {"cautious": True, "betas": (0.9, 0.7)},
        ],
    ),
    cr.optim.Lion: (
        reference.lion,
        [{}, {"weight_decay": 0.1}, {"maximize": True}, {"cautious": True, "weight_decay": 0.1}],
    ),
    cr.optim.Lamb: (
        reference.lamb,
        [{}, {"weight_decay": 0.1, "eps_root": 1e-3}, {"maximize": True}],
    ),
    cr.optim.Rprop: (
        reference.rprop,
        [{}, {"etas": (0.1, 3.0), "step_sizes": (0.01, 0.1)}, {"maximize": True}],
    ),
    cr.optim.ASGD: (
        reference.asgd,
        [{}, {"lambd": 0.1, "alpha": 0.5, "t0": 2}, {"weight_decay": 0.1, "maximize": True}],
    ),
    cr.optim.Adafactor: (
        reference.adafactor,
        [
            {},
            {"weight_decay": 0.1, "d": 2.0},
            {"eps": (1e-2, 0.1), "maximize": True},
            {"beta1": 0.9, "weight_decay": 0.1},
        ],
    ),
    # Rounding errors of eigenvalues near 0 are small beside matrix_eps.
    cr.optim.Shampoo: (
        reference.shampoo,
        [
            {"matrix_eps": 1.0},
            {"matrix_eps": 1.0, "block_size": 16, "precondition_frequency": 2},
            {"matrix_eps": 1.0, "betas": (0.5, 1.0), "weight_decay": 0.1, "grafting": "sgd"},
            {"matrix_eps": 1.0, "grafting": "none", "maximize": True},
        ],
    ),
    cr.optim.SOAP: (
        reference.soap,
        [
            {},
            {"precondition_frequency": 2, "weight_decay": 0.1},
            {"shampoo_beta": 0.5, "betas": (0.9, 0.99), "maximize": True},
        ],
    ),
    cr.optim.Muon: (
        reference.muon,
        [
            {},
            {"nesterov": False, "adjust_lr_fn": "match_rms_adamw"},
            {"ns_steps": 3, "adjust_lr_fn": "spectral_unclamped", "maximize": True},
        ],
    ),
}
VARIANTS = [(cls, kwargs) for cls, (_, variants) in RULES.items() for kwargs in variants]
AMPLIFIED = {cr.optim.Muon: 1e-8, cr.optim.Shampoo: 1e-7, cr.optim.SOAP: 1e-6}
TOLERANCE = {"float32": 2e-6, "float64": 1e-12}


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['id']}-{c['optimizer']}")
def test_recorded_trajectories(case):
    with np.load(DATA / f"{case['file']}.npz") as data:
        p, grads, lrs, truth = (data[f"{case['id']}/{k}"] for k in ("p0", "grads", "lrs", "traj"))
    p = p.copy()
    opt = getattr(cr.optim, case["optimizer"])(p, **case["kwargs"])
    for g, lr, expected in zip(grads, lrs, truth, strict=True):
        opt.param_groups[0]["lr"] = lr
        opt.step(g)
        assert np.abs(p - expected).max() <= TOLERANCE[case["dtype"]] * np.abs(truth).max()


@pytest.mark.parametrize(("cls", "kwargs"), VARIANTS, ids=str)
@given(data=st.data())
def test_rules_agree_with_the_reference(cls, kwargs, data):
    dims = {"min_dims": 2, "max_dims": 2} if cls is cr.optim.Muon else {"max_dims": 3}
    shape = data.draw(hnp.array_shapes(**{"min_dims": 0, **dims}, min_side=0, max_side=70))
    if cls in (cr.optim.Shampoo, cr.optim.SOAP) and len(shape) > 2:
        shape = tuple(n % 10 for n in shape)
    if cls is cr.optim.SOAP and len(shape) > 1:
        # Eigenvectors are unique: those of 0 are not; see test_second_order.py.
        shape = (min(shape[0], 30),) * 2
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    p = rng.standard_normal(shape)
    truth, state = p.copy(), {}
    opt = cls(p, lr=0.05, **kwargs)
    for t in range(1, 6):
        g = rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3)
        opt.step(g)
        truth = RULES[cls][0](truth, g, state, t, lr=0.05, **kwargs)
    # Muon's iteration, roots and eigenvectors amplify rounding errors.
    rtol = AMPLIFIED.get(cls, 1e-11)
    np.testing.assert_allclose(p, truth, rtol=rtol, atol=rtol / 10)


def test_momentum_keeps_the_rate_that_gradients_came_with():
    """Where the learning rate changes, Momentum and SGD(momentum=) differ."""
    a, b = np.zeros(1), np.zeros(1)
    classical = cr.optim.Momentum(a, lr=1.0, momentum=0.5)
    torch_form = cr.optim.SGD(b, lr=1.0, momentum=0.5)
    for opt in (classical, torch_form):
        opt.step(np.ones(1))
        opt.param_groups[0]["lr"] = 0.0
        opt.step(np.ones(1))
    assert a[0] == -1.5
    assert b[0] == -1.0


def test_one_call_for_tensors_of_both_dtypes_and_all_shapes():
    rng = np.random.default_rng(0)
    shapes = [(), (0,), (1,), (63,), (64, 3), (70_000,), (5, 0, 2)]
    params = [rng.standard_normal(s).astype(d) for s in shapes for d in ("f4", "f8")]
    separate = [p.copy() for p in params]
    grads = [rng.standard_normal(p.shape).astype(p.dtype) for p in params]
    opt = cr.optim.Adam(params)
    singles = [cr.optim.Adam(p) for p in separate]
    for _ in range(3):
        opt.step(grads)
        for single, g in zip(singles, grads, strict=True):
            single.step(g)
    for a, b in zip(params, separate, strict=True):
        np.testing.assert_array_equal(a, b)


def test_structures():
    w, b, c = np.ones((2, 2)), np.ones(2), np.ones(3)
    opt = cr.optim.SGD({"layer": {"w": w, "b": b}, "rest": [c]}, lr=1.0)
    opt.step({"rest": [np.ones(3)], "layer": {"b": None, "w": np.ones((2, 2))}})
    assert (w == 0).all()
    assert (b == 1).all()
    assert (c == 0).all()
    with pytest.raises(ValueError, match=r"grads\['layer'\] must be a dict with the keys"):
        opt.step({"layer": {"w": w * 2}, "rest": [c * 2]})
    with pytest.raises(ValueError, match=r"grads\['rest'\] must be a list of length 1, got 2"):
        opt.step({"layer": {"w": None, "b": None}, "rest": [None, None]})
    with pytest.raises(ValueError, match=r"grads\['rest'\]\[0\] must have the shape \(3,\)"):
        opt.step({"layer": {"w": None, "b": None}, "rest": [np.ones(4)]})


def test_groups_have_their_own_hyperparameters():
    a, b, c = np.ones(2), np.ones(2), np.ones(2)
    opt = cr.optim.SGD([{"params": [a]}, {"params": b, "lr": 0.5}], lr=1.0)
    opt.step([[np.ones(2)], np.ones(2)])
    assert a[0] == 0
    assert b[0] == 0.5
    opt.add_param_group({"params": {"c": c}, "lr": 0.25})
    opt.step([[None], None, {"c": np.ones(2)}])
    assert (a[0], b[0], c[0]) == (0, 0.5, 0.75)
    assert [int(s["step"]) for s in opt.state.values()] == [1, 1, 1]


def test_adding_a_group_to_plain_parameters():
    a, b = np.ones(2), np.ones(2)
    opt = cr.optim.SGD(a, lr=1.0, momentum=0.5)
    opt.step(np.ones(2))
    before = repr(opt), opt.state[0]["momentum_buffer"].copy()
    for bad in ({"params": a}, {"params": b, "lr": -1}, {"lr": 1}, {"params": np.ones(2, int)}):
        with pytest.raises((TypeError, ValueError)):
            opt.add_param_group(bad)
        assert repr(opt) == before[0]
        assert len(opt.state) == 1
    opt.add_param_group({"params": b})
    opt.step([np.ones(2), np.ones(2)])
    assert (a[0], b[0]) == (1 - 1 - 1.5, 0)


def test_iterators_count_as_lists():
    a, b, c = np.ones(2), np.ones(2), np.ones(2)
    opt = cr.optim.SGD(iter([a]), lr=1.0)
    opt.add_param_group({"params": iter([b])})
    opt.step([[np.ones(2)], iter([np.ones(2)])])
    cr.optim.SGD([{"params": iter([c])}], lr=1.0).step(iter([iter([np.ones(2)])]))
    assert (a[0], b[0], c[0]) == (0, 0, 0)


def test_none_skips_a_tensor_and_its_count():
    a, b = np.ones(3), np.ones(3)
    opt = cr.optim.Adam([a, b], lr=0.1)
    opt.step([np.ones(3), None])
    opt.step([np.ones(3), np.ones(3)])
    alone = np.ones(3)
    cr.optim.Adam(alone, lr=0.1).step(np.ones(3))
    np.testing.assert_array_equal(b, alone)
    assert [int(s["step"]) for s in opt.state.values()] == [2, 1]


def test_strided_gradients_are_taken():
    p, q = np.ones((3, 4)), np.ones((3, 4))
    g = np.arange(12.0).reshape(4, 3).T
    cr.optim.SGD(p, lr=0.1).step(g)
    cr.optim.SGD(q, lr=0.1).step(np.ascontiguousarray(g))
    np.testing.assert_array_equal(p, q)


#: Cautious steps are scaled by the share of the weights that are kept.
UNSCALED = [(cls, kwargs) for cls, kwargs in VARIANTS if not kwargs.get("cautious")]


@pytest.mark.parametrize(("cls", "kwargs"), UNSCALED, ids=str)
@pytest.mark.parametrize("shape", [(30, 37), (1, 5)])
def test_masked_weights_and_their_state_stay_zero(cls, kwargs, shape):
    """Masks equal masking weights, states and gradients outside the optimizer."""
    rng = np.random.default_rng(1)
    p = rng.standard_normal(shape).astype(np.float32) + 3
    twin = p.copy()
    mask = rng.random(shape) < 0.3
    opt, unmasked = cls(p, **kwargs), cls(twin, **kwargs)
    for o in (opt, unmasked):
        o.step(np.ones(shape, np.float32))

    def weights_and_states(o, w):
        return [w, *(b for b in o.state[0].values() if b.shape == shape)]

    opt.set_masks(mask)
    for _ in range(3):
        for array in weights_and_states(unmasked, twin):
            array[~mask] = 0
        g = rng.standard_normal(shape).astype(np.float32)
        opt.step(g)
        unmasked.step(np.where(mask, g, np.float32(0)))
    for ours, theirs in zip(
        weights_and_states(opt, p), weights_and_states(unmasked, twin), strict=True
    ):
        np.testing.assert_array_equal(ours, np.where(mask, theirs, 0))
    assert (p[mask] != 0).all()
    opt.set_masks(None)
    opt.step(np.ones(shape, np.float32))
    assert (p[~mask] != 0).any() or not (~mask).any()


def test_a_mask_hides_non_finite_gradients():
    p = np.ones(4)
    opt = cr.optim.Adam(p)
    opt.set_masks(np.array([True, False, True, False]))
    opt.step(np.array([1.0, np.nan, 1.0, np.inf]))
    assert np.isfinite(p).all()


@pytest.mark.parametrize(("cls", "kwargs"), VARIANTS, ids=str)
def test_state_dict_continues_exactly(cls, kwargs):
    rng = np.random.default_rng(2)
    start = rng.standard_normal((5, 3))
    grads = rng.standard_normal((6, 5, 3))
    p = start.copy()
    opt = cls(p, **kwargs)
    for g in grads[:3]:
        opt.step(g)
    saved, middle = copy.deepcopy(opt.state_dict()), p.copy()
    for g in grads[3:]:
        opt.step(g)
    q = middle.copy()
    other = cls(q, lr=123.0, **kwargs)
    other.load_state_dict(saved)
    for g in grads[3:]:
        other.step(g)
    np.testing.assert_array_equal(q, p)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("cls", RULES)
def test_copies_are_independent(duplicate, cls):
    p = np.ones((5, 2))
    opt = cls(p, lr=0.1)
    opt.step(np.ones((5, 2)))
    before = p.copy()
    twin = duplicate(opt)
    twin.step(np.ones((5, 2)))
    np.testing.assert_array_equal(p, before)
    opt.step(np.ones((5, 2)))
    np.testing.assert_array_equal(twin.param_groups[0]["params"][0], p)


def bad_state_dicts():
    p = np.ones(4)
    opt = cr.optim.Adam(p)
    opt.step(p * 2)
    good = opt.state_dict()

    def change(edit):
        sd = copy.deepcopy(good)
        edit(sd)
        return sd

    yield "nothing", {}
    yield "not a dict", 3
    yield "other rule", cr.optim.SGD(p.copy(), momentum=0.9).state_dict()
    yield "group count", change(lambda sd: sd["param_groups"].append(sd["param_groups"][0]))
    yield "tensor count", change(lambda sd: sd["param_groups"][0].update(params=[0, 1]))
    yield "missing buffer", change(lambda sd: sd["state"][0].pop("exp_avg"))
    yield "shape", change(lambda sd: sd["state"][0].update(exp_avg=np.ones(5)))
    yield "dtype", change(lambda sd: sd["state"][0].update(exp_avg=np.array(["a"] * 4)))
    yield "step", change(lambda sd: sd["state"][0].update(step=-1))
    yield "range", change(lambda sd: sd["param_groups"][0].update(lr=-1.0))


@pytest.mark.parametrize(("name", "sd"), list(bad_state_dicts()), ids=lambda x: str(x)[:20])
def test_bad_state_dicts_change_nothing(name, sd):
    p = np.ones(4)
    opt = cr.optim.Adam(p)
    opt.step(np.ones(4))
    before = pickle.dumps(opt)
    with pytest.raises(ValueError):
        opt.load_state_dict(sd)
    assert pickle.dumps(opt) == before


@pytest.mark.parametrize(
    ("cls", "kwargs", "message"),
    [
        (cr.optim.Adam, {"lr": -1}, "lr must be a finite number >= 0, got -1"),
        (cr.optim.Adam, {"lr": np.nan}, "lr must be a finite number >= 0, got NaN"),
        (cr.optim.Adam, {"betas": (0.9, 1.0)}, r"betas\[1\] must be in \[0, 1\), got 1"),
        (cr.optim.Adam, {"eps": np.inf}, "eps must be a finite number >= 0, got inf"),
        (cr.optim.AdamW, {"weight_decay": -0.1}, "weight_decay must be a finite number >= 0"),
        (cr.optim.SGD, {"nesterov": True}, "momentum must be > 0 for nesterov=True, got 0"),
        (
            cr.optim.SGD,
            {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
            "dampening must be 0 for nesterov=True",
        ),
        (cr.optim.Momentum, {"momentum": 1.5}, r"momentum must be in \[0, 1\), got 1.5"),
    ],
)
def test_hyperparameters_out_of_range(cls, kwargs, message):
    p = np.ones(2)
    with pytest.raises(ValueError, match=message):
        cls(p, **kwargs)
    opt = cls(p)
    opt.param_groups[0].update(kwargs)
    with pytest.raises(ValueError, match=message):
        opt.step(np.ones(2))
    assert (p == 1).all()


@pytest.mark.parametrize(
    "kwargs", [{"lr": "fast"}, {"lr": None}, {"betas": 0.9}, {"betas": (1, 2, 3)}, {"amsgrad": 2}]
)
def test_hyperparameters_of_other_types(kwargs):
    with pytest.raises(TypeError, match=f"{next(iter(kwargs))}.* must be"):
        cr.optim.Adam(np.ones(2), **kwargs)


def test_switching_momentum_on_is_refused():
    p = np.ones(2)
    opt = cr.optim.SGD(p)
    opt.param_groups[0]["momentum"] = 0.9
    with pytest.raises(ValueError, match="make a new optimizer"):
        opt.step(np.ones(2))
    assert (p == 1).all()


def test_huge_and_tiny_gradients_stay_finite():
    p = np.zeros(4, np.float32)
    opt = cr.optim.Adam(p, lr=0.1)
    opt.step(np.array([1e-30, -1e-30, 1e18, 0], np.float32))
    assert np.isfinite(p).all()
    assert p[3] == 0

"""Cautious steps, AdEMAMix and Prodigy: what the tests of all rules do not look at."""

import numpy as np
import pytest

import compressrs as cr

CAUTIOUS = [
    (cr.optim.Adam, {"amsgrad": True}),
    (cr.optim.Adam, {}),
    (cr.optim.AdamW, {}),
    (cr.optim.NAdam, {}),
    (cr.optim.RAdam, {}),
    (cr.optim.Lion, {}),
    (cr.optim.AdEMAMix, {"warmup": 5}),
]


@pytest.mark.parametrize(("cls", "kwargs"), CAUTIOUS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cautious_steps_of_masked_weights_are_those_of_the_kept_ones_alone(cls, kwargs, dtype):
    rng = np.random.default_rng(0)
    p = rng.standard_normal((37, 61)).astype(dtype)
    mask = rng.random(p.shape) < 0.4
    kept = p[mask].copy()
    masked, alone = (cls(w, lr=0.01, cautious=True, **kwargs) for w in (p, kept))
    masked.set_masks(mask)
    for _ in range(5):
        g = rng.standard_normal(p.shape).astype(dtype)
        g[~mask] = np.nan
        masked.step(g)
        alone.step(g[mask])
    np.testing.assert_array_equal(p[mask], kept)
    assert not p[~mask].any()


@pytest.mark.parametrize(("cls", "kwargs"), CAUTIOUS, ids=str)
def test_elements_whose_step_disagrees_only_decay(cls, kwargs):
    p = np.ones(6)
    opt = cls(p, lr=0.01, cautious=True, **{**kwargs, "weight_decay": 0})
    for _ in range(3):
        opt.step(np.ones(6))
    before = p.copy()
    # Smaller than the momentum of the other sign.
    opt.step(np.array([0.1, 0.1, 0.1, -1e-3, -1e-3, -1e-3]))
    assert (p[:3] < before[:3]).all()
    assert p[3:].tobytes() == before[3:].tobytes()


def test_a_gradient_that_is_nan_is_not_hidden():
    p = np.ones(4)
    cr.optim.Adam(p, cautious=True).step(np.array([1.0, np.nan, 1.0, 0.0]))
    assert np.isnan(p).tolist() == [False, True, False, False]
    assert p[3] == 1


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("rule", [cr.optim.Prodigy, cr.optim.AdEMAMix, cr.optim.NAdam])
def test_state_in_few_bytes_follows_that_in_single_precision(rule, state_dtype):
    rng = np.random.default_rng(1)
    kwargs = {"d0": 1e-3} if rule is cr.optim.Prodigy else {"lr": 1e-2}
    if rule is cr.optim.NAdam:
        kwargs["cautious"] = True
    target = rng.standard_normal(5000).astype(np.float32)
    ends = []
    for state in ("float32", state_dtype):
        p = np.zeros(5000, np.float32)
        opt = rule(p, state_dtype=state, **kwargs)
        for _ in range(60):
            opt.step(p - target)
        ends.append(float(np.square(p - target).mean()))
    assert ends[1] < 0.8
    assert abs(ends[1] - ends[0]) < 0.1


@pytest.mark.parametrize("precision", ["kahan", "master"])
@pytest.mark.parametrize(
    ("rule", "kwargs"),
    [(cr.optim.AdamW, {"lr": 1e-2, "cautious": True}), (cr.optim.Prodigy, {"d0": 1e-3})],
)
def test_weights_in_half_precision_follow_those_in_single_precision(rule, kwargs, precision):
    single, half = np.ones(300, np.float32), np.ones(300, np.float16)
    for p in (single, half):
        opt = rule(p, precision=precision, **kwargs)
        for _ in range(20):
            opt.step(2 * p.astype(np.float32))
    assert (single < 0.95).all()
    np.testing.assert_allclose(half, single, atol=2e-2)


def test_the_estimate_is_one_for_all_tensors():
    rng = np.random.default_rng(2)
    joined = rng.standard_normal(96)
    parts = [joined[:10].copy(), joined[10:90].copy().reshape(8, 10), joined[90:].copy()]
    one, many = cr.optim.Prodigy(joined), cr.optim.Prodigy(parts)
    for _ in range(20):
        one.step(joined - 1)
        many.step([p - 1 for p in parts])
        assert len({float(many.state[i]["d"]) for i in range(3)}) == 1
    np.testing.assert_allclose(np.concatenate([p.ravel() for p in parts]), joined, rtol=1e-9)
    # Skipped and frozen tensors know it too, and a tensor that is added later learns it.
    many.step([None, parts[1] - 1, None])
    assert many.state[0]["d"] == many.state[1]["d"]
    late = np.ones(3)
    many.add_param_group({"params": late})
    estimate = float(many.state[0]["d"])
    many.step([[None, parts[1] - 1, None], np.ones(3)])
    assert all(many.state[i]["d"] >= estimate for i in range(4))


def test_tensors_of_both_dtypes_share_the_estimate():
    p = [np.ones(40, np.float32), np.ones(40)]
    opt = cr.optim.Prodigy(p, d0=1e-4)
    for _ in range(30):
        opt.step([2 * w for w in p])
    np.testing.assert_allclose(p[0], p[1], rtol=1e-4)
    assert opt.state[0]["d"] == opt.state[1]["d"] > 1e-3


def test_without_a_gradient_nothing_moves_and_the_estimate_stays():
    p = np.ones(5)
    opt = cr.optim.Prodigy(p, weight_decay=0.1)
    opt.step(np.zeros(5))
    assert (p == 1).all()
    assert opt.state[0]["d"] == 1e-6


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_no_bits(threads):
    rng = np.random.default_rng(3)
    start, gradients = rng.standard_normal(200_000), rng.standard_normal((3, 200_000))
    ends = []
    count = cr.get_num_threads()
    try:
        for n in (1, threads):
            cr.set_num_threads(n)
            for make in (cr.optim.Prodigy, lambda p: cr.optim.Lion(p, cautious=True)):
                p = start.copy()
                opt = make(p)
                for g in gradients:
                    opt.step(g, max_grad_norm=1.0)
                ends.append(p.tobytes())
    finally:
        cr.set_num_threads(count)
    assert ends[:2] == ends[2:]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"d0": 0}, "d0 must be a finite number > 0"),
        ({"d_coef": -1}, "d_coef must be a finite number > 0"),
        ({"growth_rate": 0.5}, "growth_rate must be a number >= 1, got 0.5"),
        ({"growth_rate": np.nan}, "growth_rate must be a number >= 1"),
    ],
)
def test_hyperparameters_of_prodigy(kwargs, message):
    with pytest.raises(ValueError, match=message):
        cr.optim.Prodigy(np.ones(2), **kwargs)


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda z: cr.optim.RAdam(z, lr=0.05, betas=(0, 0.99)), cr.optim.RAdam),
        (lambda z: cr.optim.Lion(z, lr=0.01, betas=(0, 0.99)), cr.optim.Lion),
    ],
)
def test_schedule_free_with_other_rules_inside(make, rule):
    """The rule steps on z with gradients at y; x is the mean of z."""
    rng = np.random.default_rng(4)
    p, beta = rng.standard_normal(20), 0.9
    z, x = p.copy(), p.copy()
    free, inner = cr.optim.ScheduleFree(p, make), make(z)
    for t in range(1, 60):
        y = beta * x + (1 - beta) * z
        np.testing.assert_allclose(p, y, rtol=1e-9, atol=1e-12)
        gradient = y - np.arange(20)
        inner.step(gradient)
        x += (z - x) / t
        free.step(gradient)
    free.eval()
    np.testing.assert_allclose(p, x, rtol=1e-9, atol=1e-12)
    assert isinstance(free.optimizer, rule)

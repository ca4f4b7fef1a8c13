"""Averages with a decay rate of 0 keep nothing: not even digits of the new value."""

import inspect

import numpy as np
import pytest

import compressrs as cr
from compressrs import _core
from tests.optim.test_registry import CLASSES

RULES = _core.rules()
# Above the root of the largest float32, so that squares are infinite.
HUGE = 1e30
SHAPE = (64, 65)


def decay_rates(cls):
    """Return the hyperparameters that must be in [0, 1), all of them 0."""
    zeros = {}
    for name, default in RULES[cls._rule].items():
        if isinstance(default, bool | str) or name in cls._fixed:
            continue
        count = len(default) if isinstance(default, tuple) else 0
        given, zero = ((1.0,) * count, (0.0,) * count) if count else (1.0, 0.0)
        try:
            cls(np.ones((2, 2)), **{name: given})
        except ValueError as error:
            if "in [0, 1)" in str(error):
                zeros[name] = zero
    return zeros


def variants():
    for cls in CLASSES:
        # The estimate of its rate, a factor of its moments, is one of all steps.
        if cls is cr.optim.Prodigy or not (zeros := decay_rates(cls)):
            continue
        options = [{}]
        if "cautious" in inspect.signature(cls).parameters:
            options.append({"cautious": True})
        if cls is cr.optim.RMSprop:
            options.append({"centered": True})
        if "precondition_frequency" in inspect.signature(cls).parameters:
            options = [{"precondition_frequency": 1}]
        if cls is cr.optim.Adafactor:
            # The decay rate of its second moment is 1 - t^beta2_decay.
            options = [{"beta2_decay": 0.0}]
        for option in options:
            yield pytest.param(cls, {**zeros, **option}, id=f"{cls.__name__}-{[*option]}")


VARIANTS = list(variants())


def test_decay_rates_are_found():
    assert {p.values[0].__name__ for p in VARIANTS} >= {"Adam", "Lion", "Muon", "RMSprop", "SOAP"}
    assert decay_rates(cr.optim.AdEMAMix) == {"betas": (0, 0, 0)}
    assert decay_rates(cr.optim.Adafactor) == {"beta1": 0}


def stepped(cls, kwargs, gradients, masked=False, dtype=np.float32):
    """Return parameter and state after these gradients, each taken at the same parameter."""
    w = np.full(SHAPE, 0.5, dtype)
    opt = cls(w, **kwargs)
    if masked:
        opt.set_masks(np.arange(w.size).reshape(SHAPE) % 3 > 0)
    for g in gradients:
        w[...] = np.where(w == 0, 0, 0.5) if masked else 0.5
        opt.step(g)
    return w, {name: x.copy() for name, x in opt.state[0].items() if isinstance(x, np.ndarray)}


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8", "masked", "float64"])
@pytest.mark.parametrize(("cls", "kwargs"), VARIANTS)
def test_no_trace_of_larger_gradients(cls, kwargs, storage):
    rng = np.random.default_rng(0)
    dtype = np.dtype(np.float64 if storage == "float64" else np.float32)
    g = rng.standard_normal(SHAPE).astype(dtype)
    g.flat[:2] = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).tiny
    if storage in ("bfloat16", "int8"):
        if kwargs.get("centered"):
            pytest.skip("moments whose difference is taken are not rounded")
        kwargs = {**kwargs, "state_dtype": storage}
    huge = np.full_like(g, HUGE if dtype == np.float32 else HUGE**6)
    huge[1::2] = np.finfo(dtype).max
    masked = storage == "masked"
    w, state = stepped(cls, kwargs, [huge, g], masked, dtype)
    expected, expected_state = stepped(cls, kwargs, [g, g], masked, dtype)
    for name, x in state.items():
        if cls is cr.optim.SOAP and name in ("exp_avg_sq", "left_basis", "right_basis"):
            continue  # the bases are turned from those before
        if cls is cr.optim.Adadelta and name.startswith("acc_delta"):
            continue  # of a step that is as long as the one before
        np.testing.assert_array_equal(x, expected_state[name], err_msg=name)
    if cls not in (cr.optim.SOAP, cr.optim.Adadelta):
        np.testing.assert_array_equal(w, expected)


def test_adadelta_steps_by_the_last_step():
    g = np.random.default_rng(3).standard_normal(50)
    w, last, expected = np.zeros(50), np.zeros(50), np.zeros(50)
    opt = cr.optim.Adadelta(w, lr=1.0, rho=0, eps=1e-4)
    for t in range(1, 5):
        opt.step(t * g)
        last = np.sqrt(last**2 + 1e-4) / np.sqrt((t * g) ** 2 + 1e-4) * t * g
        expected -= last
        np.testing.assert_allclose(w, expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (cr.optim.Adam, "exp_avg"),
        (cr.optim.Adamax, "exp_avg"),
        (cr.optim.AdEMAMix, "exp_avg_slow"),
        (cr.optim.Lamb, "exp_avg"),
        (cr.optim.Lion, "exp_avg"),
        (cr.optim.Muon, "momentum_buffer"),
        (cr.optim.NAdam, "exp_avg"),
        (cr.optim.RAdam, "exp_avg"),
        (cr.optim.SOAP, "exp_avg"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_average_is_the_gradient(cls, name, dtype):
    g = np.random.default_rng(1).standard_normal(SHAPE).astype(dtype)
    g *= dtype(10.0) ** np.linspace(-300 if dtype == np.float64 else -37, 0, g.size).reshape(SHAPE)
    g.flat[0] = np.finfo(dtype).smallest_subnormal
    _, state = stepped(cls, decay_rates(cls), [np.full_like(g, HUGE), g], dtype=dtype)
    np.testing.assert_array_equal(state[name], g)


@pytest.mark.parametrize("cautious", [False, True])
def test_lion_moves_by_the_sign_of_the_gradient(cautious):
    g = np.where(np.arange(4) % 2, 1e-3, -1e-3).astype(np.float32)
    w = np.zeros(4, np.float32)
    opt = cr.optim.Lion(w, lr=0.5, betas=(0, 0.99), weight_decay=0, cautious=cautious)
    opt.step(np.full(4, HUGE, np.float32))
    w[:] = 0
    opt.step(g)
    np.testing.assert_array_equal(np.sign(w), -np.sign(g))


def test_lion_keeps_the_last_gradient_alone():
    w = np.zeros(4, np.float32)
    opt = cr.optim.Lion(w, lr=0.5, betas=(0.9, 0), weight_decay=0)
    opt.step(np.full(4, HUGE, np.float32))
    w[:] = 0
    g = np.full(4, -1e-3, np.float32)
    opt.step(g)
    # The direction still has the gradient before.
    np.testing.assert_array_equal(w, np.full(4, -0.5))
    np.testing.assert_array_equal(opt.state[0]["exp_avg"], g)


def test_adafactor_without_a_decay_rate_takes_the_last_squares():
    rng = np.random.default_rng(2)
    for shape in ((50,), (5, 10)):
        g = rng.standard_normal(shape).astype(np.float32)
        states = []
        for first in (g, np.full_like(g, 1e15)):
            w = np.ones(shape, np.float32)
            opt = cr.optim.Adafactor(w, beta2_decay=0)
            opt.step(first)
            opt.step(g)
            states.append({k: v.copy() for k, v in opt.state[0].items() if k != "step"})
        for name, x in states[0].items():
            np.testing.assert_array_equal(states[1][name], x, err_msg=name)

"""L-BFGS against PyTorch's recorded iterates, and what it promises around them."""

import copy
import pickle

import numpy as np
import pytest

import compressrs as cr
from tests.reference.lbfgs import CASES, DATA, STEPS, logistic, quadratic, rosenbrock, start

RECORDED = np.load(DATA)


def closure(loss, x):
    return lambda: loss(x)


@pytest.mark.parametrize("name", CASES)
def test_iterates_are_those_of_pytorch(name):
    loss, size, settings = CASES[name]
    x = start(size)
    optimizer = cr.optim.LBFGS(x, **settings)
    for step in range(STEPS):
        optimizer.step(closure(loss, x))
        wanted = RECORDED[f"{name}/x"][step]
        # Rounding is amplified by the line searches of badly conditioned losses.
        np.testing.assert_allclose(x, wanted, rtol=1e-6, atol=1e-9)
        assert optimizer.evaluations == RECORDED[f"{name}/evaluations"][step]


@pytest.mark.parametrize("loss", [rosenbrock, logistic, quadratic])
def test_a_minimum_is_found(loss):
    x = start(7)
    optimizer = cr.optim.LBFGS(x, max_iter=200, tolerance_change=0, line_search_fn="strong_wolfe")
    for _ in range(3):
        optimizer.step(closure(loss, x))
    assert np.abs(loss(x)[1]).max() < 1e-5


def test_trees_masks_and_dtypes():
    """A network's weights; masked ones stay 0, and 32 bits suffice for a fit."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, 4)).astype(np.float32)
    targets = rows @ np.array([1, 0, -2, 0.5], np.float32) + 3
    params = {"w": np.zeros(4, np.float32), "b": [np.zeros(1)]}

    def fit():
        error = rows @ params["w"] + params["b"][0] - targets
        return float((error**2).mean()), {
            "w": 2 * rows.T @ error.astype(np.float32) / 50,
            "b": [np.array([2 * error.mean()])],
        }

    holder = cr.optim.SGD(params["w"])
    holder.set_masks(np.array([True, False, True, True]))
    optimizer = cr.optim.LBFGS(params, max_iter=50, line_search_fn="strong_wolfe")
    assert optimizer.step(fit) > 1
    np.testing.assert_allclose(params["w"], [1, 0, -2, 0.5], atol=1e-3)
    assert params["w"][1] == 0
    np.testing.assert_allclose(params["b"][0], 3, atol=1e-3)


@pytest.mark.parametrize("resume", ["state", "pickle", "copy"])
def test_it_resumes_to_the_same_bits(resume):
    x = start(7)
    optimizer = cr.optim.LBFGS(x, max_iter=3, line_search_fn="strong_wolfe", history_size=3)
    optimizer.step(closure(rosenbrock, x))
    if resume == "state":
        y = x.copy()
        other = cr.optim.LBFGS(y, max_iter=3, line_search_fn="strong_wolfe", history_size=3)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    elif resume == "pickle":
        other = pickle.loads(pickle.dumps(optimizer))
        (y,) = other._weights
    else:
        other = copy.deepcopy(optimizer)
        (y,) = other._weights
    for _ in range(2):
        optimizer.step(closure(rosenbrock, x))
        other.step(closure(rosenbrock, y))
    assert x.tobytes() == y.tobytes()
    assert optimizer.evaluations == other.evaluations


class Failure(Exception):
    pass


def failing(kind, x):
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        loss, gradient = rosenbrock(x)
        if calls < 3:
            return loss, gradient
        if kind == "raises":
            raise Failure
        if kind == "writes":
            x[0] += 1
        if kind == "no pair":
            return loss
        if kind == "shape":
            gradient = gradient[:-1]
        if kind == "nan":
            gradient[0] = np.nan
        return ("a" if kind == "loss" else loss), gradient

    return closure


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("raises", Failure),
        ("writes", ValueError),
        ("no pair", TypeError),
        ("shape", ValueError),
        ("nan", FloatingPointError),
        ("loss", TypeError),
    ],
)
@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_after_an_exception_all_is_as_before(kind, error, line_search):
    x = start(7)
    optimizer = cr.optim.LBFGS(x, lr=1e-3, max_iter=4, line_search_fn=line_search)
    optimizer.step(closure(rosenbrock, x))
    before, state = x.copy(), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(error):
        optimizer.step(failing(kind, x))
    assert x.tobytes() == before.tobytes()
    twin = before.copy()
    other = cr.optim.LBFGS(twin, lr=1e-3, max_iter=4, line_search_fn=line_search)
    other.load_state_dict(state)
    optimizer.step(closure(rosenbrock, x))
    other.step(closure(rosenbrock, twin))
    assert x.tobytes() == twin.tobytes()


def test_a_loss_that_is_not_finite_shortens_the_step():
    """As of a logarithm of a negative number, which a step that is too long meets."""
    x = np.array([0.1])

    def barrier():
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(x[0] - np.log(x[0])), 1 - 1 / x

    optimizer = cr.optim.LBFGS(
        x, lr=50.0, max_iter=50, tolerance_change=0, line_search_fn="strong_wolfe"
    )
    optimizer.step(barrier)
    np.testing.assert_allclose(x, 1, atol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        lambda w: (float(np.abs(w).sum()), np.sign(w)),
        lambda w: (float(w.sum()), np.ones(3)),
        lambda w: (-float(w @ w), -2 * w),
    ],
    ids=["kinks", "line", "concave"],
)
def test_losses_without_curvature_are_lowered_without_an_error(loss):
    w = np.ones(3)
    optimizer = cr.optim.LBFGS(w, line_search_fn="strong_wolfe")
    before = optimizer.step(closure(loss, w))
    assert loss(w)[0] < before and np.isfinite(w).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.0}, "scale"),
        ({"step_count": -1}, "step_count"),
        ({"bends": []}, "same length"),
        ({"changes": [np.zeros(3)], "bends": [np.zeros(3)]}, "shape"),
        ({"last_gradient": np.zeros(7, int)}, "last_gradient"),
        ({"param_names": ["other"]}, "param_names"),
    ],
)
def test_states_that_do_not_fit_are_refused(change, message):
    x = start(7)
    optimizer = cr.optim.LBFGS(x, line_search_fn="strong_wolfe")
    optimizer.step(closure(rosenbrock, x))
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict({**optimizer.state_dict(), **change})


@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 1e26), (np.float64, 1e170)])
def test_large_gradients_do_not_stop_it(dtype, size):
    x = np.array([1, 2, 3], dtype)
    sizes = np.array([1, 30, 90]) * size

    def closure():
        return float((sizes * x.astype(float) ** 2).sum()), (2 * sizes * x).astype(dtype)

    optimizer = cr.optim.LBFGS(x, max_iter=20, line_search_fn="strong_wolfe")
    first = optimizer.step(closure)
    for _ in range(5):
        last = optimizer.step(closure)
    assert last < 1e-6 * first
    cr.optim.LBFGS(x.copy()).load_state_dict(optimizer.state_dict())


def test_a_step_out_of_range_changes_nothing():
    x = np.array([60000.0], np.float16)
    optimizer = cr.optim.LBFGS(x, lr=1e5, max_iter=1)
    with pytest.raises(FloatingPointError, match="the step gives params values that are not"):
        optimizer.step(lambda: (1.0, np.array([-1.0], np.float32)))
    assert x[0] == 60000
    assert optimizer.step_count == 0


def test_a_longer_history_is_cut():
    x = np.array([-1.2, 1.0])

    def closure():
        a, b = x
        gradient = np.array([2 * (a - 1) - 400 * a * (b - a * a), 200 * (b - a * a)])
        return (1 - a) ** 2 + 100 * (b - a * a) ** 2, gradient

    optimizer = cr.optim.LBFGS(x, max_iter=10, line_search_fn="strong_wolfe")
    optimizer.step(closure)
    short = cr.optim.LBFGS(x.copy(), history_size=3)
    short.load_state_dict(optimizer.state_dict())
    assert len(short.state_dict()["changes"]) == 3
    np.testing.assert_array_equal(
        short.state_dict()["changes"], optimizer.state_dict()["changes"][-3:]
    )

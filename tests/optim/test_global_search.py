"""Adapters to basin hopping and CMA-ES, and restarts: what they find, and what they leave."""

import sys

import numpy as np
import pytest

import compressrs as cr


def many_minima(x):
    return float(np.sum(x**2 - np.cos(4 * x))), 2 * x + 4 * np.sin(4 * x)


def tree():
    return {"w": np.full((2, 2), 3.0), "b": [np.full(2, -3.0, np.float32), np.zeros(0)]}


def leaves(params):
    return [params["w"], *params["b"]]


def evaluate_of(params):
    def evaluate():
        found = [many_minima(x.astype(np.float64)) for x in leaves(params)]
        gradients = [gradient for _, gradient in found]
        return sum(loss for loss, _ in found), {"w": gradients[0], "b": gradients[1:]}

    return evaluate


@pytest.mark.parametrize("cls", [cr.optim.SGD, cr.optim.Adam, cr.optim.RMSprop, cr.optim.Rprop])
def test_basin_hopping_leaves_the_nearest_minimum(cls):
    optimize = pytest.importorskip("scipy.optimize")
    params = tree()
    fun, x0 = cr.optim.flat_function(evaluate_of(params), params)
    lr = {"lr": 0.03} if cls is not cr.optim.Rprop else {}
    method = cr.optim.scipy_minimizer(lambda x: cls(x, **lr), steps=150)
    alone = optimize.minimize(fun, x0, method=method, jac=True)
    assert alone.fun > 0
    assert alone.nit <= 150
    options = {"method": method, "jac": True}
    found = optimize.basinhopping(fun, x0, niter=60, stepsize=1.5, minimizer_kwargs=options, rng=0)
    assert found.fun < -5.9
    fun(found.x)
    assert all(np.abs(x).max(initial=0) < 0.05 for x in leaves(params))


def test_a_minimization_returns_its_best_point_and_says_why_it_ended():
    optimize = pytest.importorskip("scipy.optimize")
    method = cr.optim.scipy_minimizer(lambda x: cr.optim.SGD(x, lr=0.1), steps=50, tolerance=1e-3)
    seen = []

    def square(x):
        return float(x @ x), 2 * x

    found = optimize.minimize(square, [1.0, -2.0], method=method, jac=True, callback=seen.append)
    assert found.success
    assert "tolerance" in found.message
    assert 2 * np.abs(found.x).max() <= 1e-3
    assert len(seen) == found.nit < 50
    diverging = cr.optim.scipy_minimizer(lambda x: cr.optim.SGD(x, lr=1e200), steps=50)
    with np.errstate(over="ignore"):
        found = optimize.minimize(square, [1.0], method=diverging, jac=True)
    assert not found.success
    assert "not finite" in found.message
    assert (found.x, found.fun) == ([1.0], 1.0)


def test_what_a_minimizer_refuses():
    optimize = pytest.importorskip("scipy.optimize")
    method = cr.optim.scipy_minimizer(cr.optim.Adam)

    def fun(x):
        return float(x @ x)

    with pytest.raises(ValueError, match="jac must be True or a function"):
        optimize.minimize(fun, [1.0], method=method)
    with pytest.raises(ValueError, match="bounds and constraints must not be given"):
        optimize.minimize(fun, [1.0], method=method, jac=lambda x: x, bounds=[(0, 1)])
    with pytest.raises(ValueError, match="options must be none, got 'maxiter'"):
        optimize.minimize(fun, [1.0], method=method, jac=lambda x: x, options={"maxiter": 3})
    for make in (lambda x: cr.optim.Adam(x.copy()), lambda x: None):
        with pytest.raises(TypeError, match="make must return an Optimizer of the vector"):
            optimize.minimize(fun, [1.0], method=cr.optim.scipy_minimizer(make), jac=lambda x: x)
    for wrong in ({"steps": 0}, {"steps": 1.5}, {"tolerance": -1.0}, {"tolerance": np.nan}):
        with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
            cr.optim.scipy_minimizer(cr.optim.Adam, **wrong)


def test_flat_functions_check_what_they_are_given():
    params = tree()
    fun, x0 = cr.optim.flat_function(evaluate_of(params), params)
    assert x0.shape == (6,)
    np.testing.assert_array_equal(x0, [3, 3, 3, 3, -3, -3])
    _, gradient = fun(np.arange(6.0))
    np.testing.assert_allclose(gradient, many_minima(np.arange(6.0))[1], rtol=1e-6)
    np.testing.assert_array_equal(params["w"], [[0, 1], [2, 3]])
    with pytest.raises(ValueError, match=r"x must have the shape \(6,\), got \(5,\)"):
        fun(np.zeros(5))
    np.testing.assert_array_equal(params["w"], [[0, 1], [2, 3]])
    wrong, _ = cr.optim.flat_function(lambda: (0.0, np.zeros(3)), np.zeros(2))
    with pytest.raises(ValueError, match=r"gradients must have the shape \(2,\), got \(3,\)"):
        wrong(np.zeros(2))
    none, _ = cr.optim.flat_function(lambda: (1.0, None), np.ones(2))
    np.testing.assert_array_equal(none(np.ones(2))[1], 0)
    with pytest.raises(TypeError, match="params"):
        cr.optim.flat_function(lambda: (0.0, None), np.zeros(2, int))


def test_cma_es_needs_no_gradient_and_repeats():
    pytest.importorskip("cmaes")
    found = []
    for _ in range(2):
        params = tree()

        def loss(params=params):
            return sum(float(np.abs(np.round(4 * x)).sum()) for x in leaves(params))

        found.append((cr.optim.cma_es(loss, params, 1.0, generations=150, rng=3), params))
        assert loss() == found[-1][0].loss == min(found[-1][0].losses) == 0
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1]["w"], found[1][1]["w"])


@pytest.mark.parametrize("search", ["cma_es", "restarts"])
def test_after_an_exception_parameters_are_as_before(search):
    if search == "cma_es":
        pytest.importorskip("cmaes")
    params = tree()
    calls = []

    def initialize(rng):
        params["w"][...] = rng.standard_normal((2, 2))

    def run(loss):
        if search == "cma_es":
            return cr.optim.cma_es(loss, params, 1.0, generations=3)
        return cr.optim.restarts(loss, params, initialize)

    def interrupted():
        calls.append(0)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        run(interrupted)
    with pytest.raises(TypeError, match=r"(loss|train) must return a number, got 'x'"):
        run(lambda: "x")
    with pytest.raises(ValueError, match=r"(loss|train) must .*finite"):
        run(lambda: np.nan)
    with pytest.raises(ValueError, match=r"(loss|train) must .*above -inf"):
        run(iter([1.0, -np.inf, *[0.5] * 100]).__next__)
    for own, start in zip(leaves(params), leaves(tree()), strict=True):
        np.testing.assert_array_equal(own, start)


def test_restarts_keep_the_best():
    w = np.zeros(3)

    def initialize(rng):
        w[:] = rng.uniform(-4, 4, 3)

    def train():
        opt = cr.optim.Adam(w, lr=0.05)
        for _ in range(150):
            opt.step(many_minima(w)[1])
        return many_minima(w)[0]

    found = cr.optim.restarts(train, w, initialize, range(20))
    assert len(found.losses) == 20
    assert found.loss == min(found.losses) == many_minima(w)[0]
    assert max(found.losses) > found.loss
    for wrong in ([], [-1], [0.5], 3):
        with pytest.raises((TypeError, ValueError), match="seeds"):
            cr.optim.restarts(train, w, initialize, wrong)


@pytest.mark.parametrize(("module", "extra"), [("cmaes", "cmaes"), ("scipy.optimize", "scipy")])
def test_missing_packages_are_named_before_any_work(module, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)

    def never(*_):
        raise AssertionError

    with pytest.raises(ModuleNotFoundError, match=rf"compressrs\[{extra}\]"):
        if extra == "cmaes":
            cr.optim.cma_es(never, np.zeros(2), 1.0)
        else:
            cr.optim.scipy_minimizer(never)

"""Dynamic sparse training: rewiring, SET, RigL."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import compressrs as cr
from tests.reference import prune as reference


def sparse_layer(inputs=12, outputs=9, sparsity=0.7, seed=0, dtype=np.float32):
    dense = cr.nn.Linear(inputs, outputs, rng=seed, dtype=dtype)
    mask = cr.prune.masks(cr.prune.Random(seed).scores(dense.weight), sparsity)
    return cr.nn.SparseLinear.from_linear(dense, mask=mask)


@given(st.integers(1, 8), st.integers(1, 8), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_rewiring_drops_and_grows(rows, columns, density, share, seed):
    rng = np.random.default_rng(seed)
    w = rng.permutation(np.arange(1.0, rows * columns + 1)).reshape(rows, columns)
    stored = rng.random(w.shape) < density
    growth = rng.permutation(rows * columns).reshape(w.shape).astype(float)
    matrix = cr.sparse.CSRMatrix.from_dense(w, mask=stored)
    count = int(share * matrix.nnz)
    data = matrix.data
    new = cr.prune.rewire(matrix, growth, count)
    expected, pattern = reference.rewire(np.where(stored, w, 0), stored, growth, count)
    np.testing.assert_array_equal(new.pattern(), pattern)
    np.testing.assert_array_equal(new.to_dense(), expected)
    assert new.data is data
    assert new.nnz == matrix.nnz


@pytest.mark.parametrize(
    "make",
    [
        lambda p: cr.optim.Adam(p),
        lambda p: cr.optim.Adam(p, state_dtype="int8"),
        lambda p: cr.optim.Adam(p, state_dtype="bfloat16"),
        lambda p: cr.optim.Adagrad(p, initial_accumulator_value=0.5),
        lambda p: cr.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: cr.optim.Rprop(p, lr=0.1),
    ],
    ids=["adam", "int8", "bfloat16", "adagrad", "sgd", "rprop"],
)
def test_state_goes_along(make):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((100, 100)).astype(np.float32)
    matrix = cr.sparse.CSRMatrix.from_dense(w, mask=rng.random(w.shape) < 0.6)
    opt = make(matrix.data)
    for _ in range(3):
        opt.step(rng.standard_normal(matrix.nnz).astype(np.float32))

    # Codes are decoded to compare the values they represent.
    def state():
        copy = make(matrix.data.copy())
        copy.load_state_dict(opt.state_dict())
        copy.convert_state("float32")
        return {k: v.copy() for k, v in copy.state[0].items() if v.shape}

    before, steps = state(), int(opt.state[0]["step"])
    new = cr.prune.rewire(matrix, rng.random(w.shape).astype(np.float32), 500, opt)
    after = state()
    assert int(opt.state[0]["step"]) == steps
    assert opt.param_groups[0]["params"][0] is matrix.data
    fresh = {k: v for k, v in make(np.zeros(1, np.float32)).state[0].items() if v.shape}
    kept = new.pattern() & matrix.pattern()
    for name, values in after.items():
        dense = matrix.with_data(before[name].astype(np.float32)).to_dense()
        moved = new.with_data(values.astype(np.float32)).to_dense()
        grown = new.pattern() & ~matrix.pattern()
        close = 0.05 * np.abs(dense).max() if "int8" in str(opt) else 0.0
        np.testing.assert_allclose(moved[kept], dense[kept], atol=close, err_msg=name)
        np.testing.assert_allclose(moved[grown], fresh[name].ravel()[0], atol=close)
    opt.step(np.ones(new.nnz, np.float32))


def test_rewiring_refuses_what_does_not_fit():
    layer = sparse_layer()
    matrix, growth = layer.weight, np.ones((9, 12), np.float32)
    before = matrix.to_dense()
    opt = cr.optim.SGD(layer.params, lr=0.1)
    other = cr.optim.SGD(np.ones(3), lr=0.1)
    bad = growth.copy()
    bad[3, 4] = np.nan
    for args, error, message in (
        ((before, growth, 1), TypeError, "matrix must be a CSRMatrix"),
        ((matrix, growth.T, 1), ValueError, r"growth must have shape \(9, 12\)"),
        ((matrix, growth.astype(np.float64), 1), TypeError, "growth must have dtype float32"),
        ((matrix, growth, matrix.nnz + 1), ValueError, "count must be at most"),
        ((matrix, growth, -1), ValueError, "count must be at least 0"),
        ((matrix, growth, 1, other), ValueError, "must be a parameter of the optimizer"),
        ((matrix, bad, 1, opt), ValueError, "growth must hold no NaN"),
        ((matrix, np.full_like(growth, -np.inf), 9, opt), ValueError, "growth must be above -inf"),
    ):
        with pytest.raises(error, match=message):
            cr.prune.rewire(*args)
    twice = cr.sparse.CSRMatrix(
        (np.ones(2, np.float32), np.array([1, 1], np.int32), np.array([0, 2], np.int32)), (1, 3)
    )
    with pytest.raises(ValueError, match="repeated entries"):
        cr.prune.rewire(twice, np.ones((1, 3), np.float32), 1)
    np.testing.assert_array_equal(matrix.to_dense(), before)


@pytest.mark.parametrize("method", ["SET", "RigL"])
def test_sparse_layers_learn_which_entries_to_have(method):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((256, 12)).astype(np.float32)
    # Two of twelve inputs matter to each output.
    truth = np.zeros((9, 12), np.float32)
    truth[np.arange(9), np.arange(9)] = 2
    truth[np.arange(9), np.arange(9) + 3] = -2
    layer = sparse_layer(sparsity=0.75)
    opt = cr.optim.Adam(layer.params, lr=0.03)
    kwargs = {"frequency": 20, "end": 500, "fraction": 0.4}
    evolve = (
        cr.prune.SET([layer], opt, rng=0, **kwargs)
        if method == "SET"
        else cr.prune.RigL(cr.nn.Sequential(layer), opt, **kwargs)
    )
    nnz, data = layer.weight.nnz, layer.weight.data
    changes = 0
    for _ in range(600):
        layer.backward((layer(x) - x @ truth.T) / len(x))
        opt.step(layer.grads)
        changes += evolve.step()
    # 500 itself is the end.
    assert changes == 24
    assert evolve.step_count == 600
    assert layer.weight.nnz == nnz
    assert layer.weight.data is data
    assert layer.params["weight"] is data
    found = np.count_nonzero(layer.weight.pattern() & (truth != 0))
    assert found == 18 if method == "RigL" else found >= 15
    if method == "RigL":
        np.testing.assert_allclose(layer.weight.to_dense(), truth, atol=0.05)


def test_dynamic_training_goes_on_from_a_state():
    def start():
        layer = sparse_layer()
        opt = cr.optim.SGD(layer.params, lr=0.1)
        return layer, opt, cr.prune.SET(layer, opt, frequency=2, rng=1)

    def train(layer, opt, evolve, steps):
        for _ in range(steps):
            layer.backward(layer(np.ones((3, 12), np.float32)))
            opt.step(layer.grads)
            evolve.step()

    whole, *rest = start()
    train(whole, *rest, 10)
    half, opt, evolve = start()
    train(half, opt, evolve, 5)
    state = evolve.state_dict()
    again = cr.prune.SET(half, opt, frequency=2, rng=77)
    again.load_state_dict(state)
    train(half, opt, again, 5)
    np.testing.assert_array_equal(half.weight.to_dense(), whole.weight.to_dense())
    for bad in ({}, {"step_count": 1}, {"step_count": "x"}, {"step_count": 1, "rng": 3}):
        with pytest.raises(ValueError, match="state_dict"):
            again.load_state_dict(bad)


def test_all_patterns_change_or_none():
    layers = [sparse_layer(), sparse_layer(seed=1)]
    opt = cr.optim.Adam([layer.params for layer in layers])
    rigl = cr.prune.RigL(layers, opt, end=10, frequency=1)
    x = np.ones((3, 12), np.float32)
    for layer in layers:
        layer.backward(layer(x))
    opt.step([layer.grads for layer in layers])
    layers[1].backward(np.full((3, 9), np.nan, np.float32))
    before = [layer.weight.to_dense() for layer in layers]
    state = [s["exp_avg"].copy() for s in opt.state.values()]
    with pytest.raises(ValueError, match="growth must hold no NaN"):
        rigl.step()
    assert rigl.step_count == 0
    for layer, w in zip(layers, before, strict=True):
        np.testing.assert_array_equal(layer.weight.to_dense(), w)
    for s, values in zip(opt.state.values(), state, strict=True):
        np.testing.assert_array_equal(s["exp_avg"], values)
    layers[1].backward(np.ones((3, 9), np.float32))
    assert rigl.step()
    assert any(
        (layer.weight.pattern() != (w != 0)).any() for layer, w in zip(layers, before, strict=True)
    )


def test_bad_dynamic_training():
    layer = sparse_layer()
    opt = cr.optim.SGD(layer.params, lr=0.1)
    with pytest.raises(ValueError, match="at least one SparseLinear"):
        cr.prune.SET(cr.nn.Sequential(cr.nn.ReLU()), opt)
    for bad in ([cr.nn.Linear(3, 2)], cr.nn.Linear(3, 2), 3):
        with pytest.raises(TypeError, match=r"layers\[0\] must be a SparseLinear over a CSR"):
            cr.prune.SET(bad, opt)
    with pytest.raises(
        ValueError, match=r"layers\[0\].weight.data must be a parameter of the optimizer"
    ):
        cr.prune.SET(sparse_layer(), opt)
    for kwargs, message in (
        ({"fraction": 1.5}, r"fraction must be in \[0, 1\]"),
        ({"fraction": -1}, "fraction must be"),
        ({"frequency": 0}, "frequency must be at least 1"),
        ({"end": 0}, "end must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            cr.prune.RigL(layer, opt, **{"end": 10, **kwargs})
    with pytest.raises(RuntimeError, match="needs a backward"):
        cr.prune.RigL(layer, opt, end=10, frequency=1).step()
    # No position is free: nothing changes.
    full = cr.nn.SparseLinear.from_linear(cr.nn.Linear(3, 2, rng=0))
    assert cr.prune.SET(full, cr.optim.SGD(full.params, lr=0.1), frequency=1).step()

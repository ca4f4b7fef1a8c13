"""Layers: gradients against finite differences, and training in CSR format."""

import numpy as np
import pytest

import compressrs as cr
from compressrs.nn import Linear, ReLU, Sequential, SparseLinear


def sparse_layer(rng, out_features, in_features):
    dense = Linear(in_features, out_features, dtype=np.float64, rng=rng)
    dense.weight[rng.random(dense.weight.shape) < 0.6] = 0
    return SparseLinear.from_linear(dense)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_gradients_agree_with_finite_differences(kind):
    rng = np.random.default_rng(0)
    if kind == "dense":
        layers = [
            Linear(6, 5, dtype=np.float64, rng=rng),
            ReLU(),
            Linear(5, 3, dtype=np.float64, bias=False, rng=rng),
        ]
    else:
        layers = [sparse_layer(rng, 5, 6), ReLU(), sparse_layer(rng, 3, 5)]
    model = Sequential(*layers)
    x, target = rng.standard_normal((4, 6)), rng.standard_normal((4, 3))

    def loss():
        return 0.5 * ((model(x) - target) ** 2).sum()

    dx = model.backward(model(x) - target)
    arrays = [(x, dx)]
    for key, params in model.params.items():
        arrays += [(params[name], model.grads[key][name].copy()) for name in params]
    h = 1e-6
    for array, grad in arrays:
        for i in np.ndindex(array.shape):
            old = array[i]
            array[i] = old + h
            up = loss()
            array[i] = old - h
            down = loss()
            array[i] = old
            assert (up - down) / (2 * h) == pytest.approx(grad[i], abs=1e-7)


def test_a_sparse_layer_trains_as_the_masked_dense_one():
    """CSR forward, both gradients and the optimizer against a mask on dense arrays."""
    rng = np.random.default_rng(1)
    dense = Linear(40, 30, dtype=np.float64, rng=rng)
    mask = cr.prune.magnitude_mask(dense.weight, sparsity=0.9)
    dense.weight *= mask
    sparse = SparseLinear.from_linear(dense)
    assert sparse.weight.nnz == mask.sum()
    opt_dense, opt_sparse = cr.optim.Adam(dense.params), cr.optim.Adam(sparse.params)
    opt_dense.set_masks({"weight": mask, "bias": None})
    for _ in range(20):
        x, target = rng.standard_normal((16, 40)), rng.standard_normal((16, 30))
        dx = []
        for layer, opt in ((dense, opt_dense), (sparse, opt_sparse)):
            dx.append(layer.backward(layer(x) - target))
            opt.step(layer.grads)
        np.testing.assert_allclose(*dx, atol=1e-10)
    np.testing.assert_allclose(sparse.weight.to_dense(), dense.weight, atol=1e-10)
    np.testing.assert_allclose(sparse.bias, dense.bias, atol=1e-10)
    assert opt_sparse.state[0]["exp_avg"].size == mask.sum()


def test_seeds_make_layers_repeatable():
    a, b = Linear(3, 4, rng=7), Linear(3, 4, rng=7)
    np.testing.assert_array_equal(a.weight, b.weight)
    assert np.abs(a.weight).max() <= 3**-0.5
    assert a.weight.dtype == np.float32


def test_misuse():
    layer = Linear(3, 2, rng=0)
    with pytest.raises(RuntimeError, match="forward before it"):
        layer.backward(np.ones((1, 2), np.float32))
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 3\), got \(3,\)"):
        layer(np.ones(3, np.float32))
    with pytest.raises(TypeError, match="x must have dtype float32"):
        layer(np.ones((1, 3)))
    layer(np.ones((1, 3), np.float32))
    with pytest.raises(ValueError, match=r"dy must have shape \(1, 2\)"):
        layer.backward(np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match="at least 1"):
        Linear(0, 2)
    with pytest.raises(TypeError, match="dtype must be float32 or float64"):
        Linear(1, 2, dtype=np.float16)
    with pytest.raises(TypeError, match="weight must be a sparse matrix of compressrs"):
        SparseLinear(np.eye(2))
    with pytest.raises(ValueError, match="bias must be float64 of shape"):
        SparseLinear(cr.sparse.CSRMatrix.from_dense(np.eye(2)), np.ones(3))
    relu = ReLU()
    with pytest.raises(RuntimeError, match="forward before it"):
        relu.backward(np.ones(2))
    relu(np.array([-1.0, np.nan]))
    with pytest.raises(ValueError, match="dy must have shape"):
        relu.backward(np.ones(3))
    with pytest.raises(TypeError, match="dy must have dtype float64"):
        relu.backward(np.ones(2, np.float32))
    for dtype in (int, object, complex):
        with pytest.raises(TypeError, match="x must have a floating-point dtype"):
            relu(np.ones(2, dtype))

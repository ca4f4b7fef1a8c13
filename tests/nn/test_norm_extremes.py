"""Normalizations of numbers whose squares overflow: what they are for smaller ones."""

import numpy as np
import pytest

from compressrs import nn

#: Powers of two, which round nothing, by which inputs are multiplied.
SCALES = {
    np.float32: [2.0**e for e in (55, 62, 64, 70, 100, 122)],
    np.float64: [2.0**e for e in (500, 511, 520, 1000, 1018)],
}
CASES = [(kind, scale) for kind, scales in SCALES.items() for scale in scales]


def layers(kind):
    """Return the normalizations, with the shapes of their inputs."""
    made = {
        "rows": (nn.LayerNorm(37, eps=1e-30, dtype=kind), (5, 37)),
        "sequences": (nn.LayerNorm(18, eps=1e-30, bias=False, dtype=kind), (2, 3, 18)),
        "features": (nn.BatchNorm(6, eps=1e-30, dtype=kind), (19, 6)),
        "images": (nn.BatchNorm(3, eps=1e-30, dtype=kind), (4, 3, 5, 7)),
    }
    rng = np.random.default_rng(3)
    for layer, _ in made.values():
        for param in layer.params.values():
            param[...] = rng.standard_normal(param.shape)
    return made


def test_all_normalizations_are_tried():
    norms = {name for name in nn.__all__ if name.endswith("Norm")}
    assert norms == {type(layer).__name__ for layer, _ in layers(np.float32).values()}


@pytest.mark.parametrize("which", layers(np.float32))
@pytest.mark.parametrize(("kind", "scale"), CASES)
def test_scaled_inputs_are_normalized_alike(which, kind, scale):
    """eps is negligible: outputs are the same, and gradients of the input smaller."""
    layer, shape = layers(kind)[which]
    rng = np.random.default_rng(7)
    x = rng.standard_normal(shape).astype(kind)
    x += rng.integers(-3, 3, shape).astype(kind)
    dy = rng.standard_normal(shape).astype(kind)
    y = layer(x)
    dx = layer.backward(dy)
    grads = {name: grad.copy() for name, grad in layer.grads.items()}
    limit = 20 * np.finfo(kind).eps
    large = layer(x * kind(scale))
    np.testing.assert_allclose(large, y, rtol=limit, atol=limit * np.abs(y).max())
    found = layer.backward(dy).astype(np.longdouble) * scale
    tiny = 8 * scale * np.nextafter(kind(0), kind(1))  # subnormal gradients
    np.testing.assert_allclose(found, dx, rtol=limit, atol=limit * np.abs(dx).max() + tiny)
    for name, grad in layer.grads.items():
        bound = limit * np.abs(grads[name]).max()
        np.testing.assert_allclose(grad, grads[name], rtol=limit, atol=bound, err_msg=name)
    if layer.buffers:
        assert all(np.isfinite(value).all() for value in layer.buffers.values())
        # And they are averages of smaller ones soon.
        for _ in range(5):
            layer(x)
        assert all(np.isfinite(value).all() for value in layer.buffers.values())
        assert np.isfinite(layer.eval()(x)).all()


@pytest.mark.parametrize("which", layers(np.float32))
@pytest.mark.parametrize("kind", SCALES)
def test_the_largest_numbers(which, kind):
    layer, shape = layers(kind)[which]
    top = np.finfo(kind).max
    x = np.where(np.random.default_rng(5).random(shape) < 0.3, top, -top).astype(kind)
    y, dx = layer(x), layer.backward(np.ones(shape, kind))
    small = layers(kind)[which][0](np.sign(x))
    bound = 20 * np.finfo(kind).eps * np.abs(small).max()
    np.testing.assert_allclose(y, small, rtol=20 * np.finfo(kind).eps, atol=bound)
    assert np.isfinite(dx).all()
    assert all(np.isfinite(grad).all() for grad in layer.grads.values())
    same = layer(np.full(shape, 0.9 * top, kind))
    bias = layer.params.get("bias", 0)
    bias = np.reshape(bias, (-1, 1, 1)) if which == "images" else bias
    np.testing.assert_array_equal(same, np.broadcast_to(bias, shape).astype(kind))


@pytest.mark.parametrize("which", layers(np.float32))
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(which, bad):
    layer, shape = layers(np.float32)[which]
    x = np.full(shape, 1e30, np.float32)
    x.flat[3] = bad
    assert np.isnan(layer(x)).any()

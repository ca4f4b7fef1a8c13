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


@pytest.mark.parametrize("ratio", [0, 1e2, 1e4, 1e5])
@pytest.mark.parametrize("shape", [(40, 6), (4, 6, 5, 7), (3, 6, 1000)])
@pytest.mark.parametrize("kind", SCALES)
def test_means_far_above_the_deviation(kind, shape, ratio):
    """Outputs and gradients have the digits that the input has, in training and in evaluation."""
    rng = np.random.default_rng(9)
    axes, each = (0, *range(2, len(shape))), (1, -1, *[1] * (len(shape) - 2))
    x = rng.standard_normal(shape) + ratio * rng.uniform(0.5, 2, (1, 6, *each[2:]))
    x = x.astype(kind)
    layer = nn.BatchNorm(6, momentum=1.0, dtype=kind)
    layer.weight, layer.bias = rng.uniform(0.5, 2, (2, 6)).astype(kind)
    dy = rng.standard_normal(shape).astype(kind)
    y, dx = layer(x), layer.backward(dy)
    wide, g = x.astype(np.longdouble), dy.astype(np.longdouble)
    w, b = (p.astype(np.longdouble).reshape(each) for p in (layer.weight, layer.bias))
    mean, var = wide.mean(axes, keepdims=True), wide.var(axes, keepdims=True)
    inverse = 1 / np.sqrt(var + np.longdouble(layer.eps))
    normal = (wide - mean) * inverse
    bound = 100 * np.finfo(kind).eps
    np.testing.assert_allclose(y, (normal * w + b).astype(kind), rtol=0, atol=bound)
    along = (g * normal).mean(axes, keepdims=True)
    expected = (g - g.mean(axes, keepdims=True) - normal * along) * inverse * w
    np.testing.assert_allclose(dx, expected.astype(kind), rtol=0, atol=bound)
    dw = (g * normal).sum(axes)
    limit = bound * np.sqrt(g.size / 6)
    np.testing.assert_allclose(layer.grads["weight"], dw.astype(kind), rtol=0, atol=limit)
    # By the running moments as they are stored.
    count = x.size // 6
    mean, var = (layer.buffers[f"running_{k}"].astype(np.longdouble) for k in ("mean", "var"))
    np.testing.assert_allclose(
        var.astype(kind), wide.var(axes).astype(kind) * (count / (count - 1)), rtol=bound
    )
    inverse = 1 / np.sqrt(var + np.longdouble(layer.eps))
    normal = (wide - mean.reshape(each)) * inverse.reshape(each)
    y = layer.eval()(x)
    np.testing.assert_allclose(y, (normal * w + b).astype(kind), rtol=0, atol=bound)


def test_the_exported_code_subtracts_the_mean_first(tmp_path):
    rng = np.random.default_rng(11)
    x = (rng.standard_normal((30, 5)) + 1e5).astype(np.float32)
    model = nn.Sequential(nn.BatchNorm(5, momentum=1.0), nn.ReLU())
    model(x)
    namespace = {}
    exec(model.eval().export(tmp_path / "model.npz", show=False), namespace)
    np.testing.assert_allclose(namespace["predict"](x), model(x), rtol=1e-5, atol=1e-5)

"""Quantized layers and models."""

import copy
import pickle
import re

import numpy as np
import pytest

import compressrs as cr
from compressrs.nn import FakeQuantizedLinear, Linear, QuantizedLinear, ReLU, Sequential
from compressrs.quantize import Scheme, awq, fake_quantize, quantize, quantize_model


def model(dtype=np.float32):
    return Sequential(Linear(24, 40, rng=0, dtype=dtype), ReLU(), Linear(40, 6, rng=1, dtype=dtype))


def inputs(rows=200, dtype=np.float32):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 24)) @ rng.standard_normal((24, 24))
    return (x * np.exp(rng.standard_normal(24))).astype(dtype)


SCHEMES = [
    Scheme(),
    Scheme(bits=4, granularity="group", group_size=8),
    Scheme(dtype="nf4"),
    Scheme(bits=4, symmetric=False, dtype="uint"),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_layer_is_its_weight_dequantized(scheme, dtype):
    layer, x = Linear(24, 40, rng=0, dtype=dtype), inputs(dtype=dtype)
    small = QuantizedLinear.from_linear(layer, scheme)
    w = quantize(layer.weight, scheme).dequantize()
    np.testing.assert_allclose(small(x), x @ w.T + layer.bias, rtol=1e-4, atol=1e-4)
    dy = np.ones((200, 40), dtype)
    np.testing.assert_allclose(small.backward(dy), dy @ w, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(small.grads["bias"], 200)
    assert small(x.reshape(2, 100, 24)).shape == (2, 100, 40)
    assert small.nbytes == small.weight.nbytes + layer.bias.nbytes
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert other(x).tobytes() == small(x).tobytes()


def test_inputs_in_8_bits():
    layer, x = Linear(24, 40, rng=0), inputs()
    x[3] = 0
    small = QuantizedLinear.from_linear(layer, Scheme(), input="int8")
    q = quantize(layer.weight, Scheme())
    scale = np.maximum(np.abs(x).max(1, keepdims=True) / np.float32(127), 1e-38)
    integers = np.rint(x / scale)
    assert np.abs(integers).max() == 127
    y = (integers.astype(int) @ q.codes.T.astype(int)) * scale * q.scale.T + layer.bias
    np.testing.assert_allclose(small(x), y, rtol=1e-4, atol=1e-5 * np.abs(y).max())
    x[0, 0] = np.nan
    assert np.isnan(small(x)[0]).all() and np.isfinite(small(x)[1:]).all()
    # In float64, and of codes that are no integers, products are those of float.
    wide = QuantizedLinear.from_linear(Linear(24, 40, rng=0, dtype="f8"), Scheme(), input="int8")
    assert "float64" in wide.float_reason and small.float_reason is None
    y = wide(x.astype("f8"))
    assert np.isnan(y[0]).all()
    # Inputs at the middle between two codes may become either.
    np.testing.assert_allclose(y[1:], small(x)[1:], atol=0.01 * np.abs(y[1:]).max())
    for scheme in (Scheme(dtype="nf4"), Scheme(dtype="fp8_e4m3")):
        other = QuantizedLinear.from_linear(layer, scheme, input="int8")
        assert scheme.dtype in other.float_reason
        assert np.isnan(other(x)[0]).all() and np.isfinite(other(x)[1:]).all()


def test_inputs_are_divided_by_their_scale():
    layer, x = Linear(24, 40, rng=0), inputs()
    statistics = cr.prune.InputStatistics(24, gram=True)
    statistics.update(x)
    q, scale = awq(layer.weight, statistics, Scheme(bits=4))
    small = QuantizedLinear(q, layer.bias, input_scale=scale)
    expected = x @ (q.dequantize() / scale).T + layer.bias
    np.testing.assert_allclose(small(x), expected, rtol=1e-3, atol=1e-4)
    dy = np.ones((200, 40), np.float32)
    np.testing.assert_allclose(
        small.backward(dy), dy @ (q.dequantize() / scale), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("scheme", [*SCHEMES, Scheme(bits=3, dtype="codebook")], ids=str)
def test_states_and_files(scheme, tmp_path):
    pytest.importorskip("safetensors")
    dense, x = model(), inputs()
    small = quantize_model(dense, scheme, input="float32")
    state = {name: array.copy() for name, array in small.state_dict().items()}
    assert {"0.weight.codes", "0.weight.scale", "0.bias"} <= state.keys()
    other = quantize_model(Sequential(Linear(24, 40, rng=5), ReLU(), Linear(40, 6, rng=6)), scheme)
    assert (other(x) != small(x)).any()
    other.load_state_dict(state)
    assert other(x).tobytes() == small(x).tobytes()
    small.save(tmp_path / "a")
    assert cr.nn.load(tmp_path / "a")(x).tobytes() == small(x).tobytes()
    other = quantize_model(dense, Scheme(bits=7))
    with pytest.raises(ValueError, match="layer 0"):
        other.load(tmp_path / "a")


def test_layers_refuse():
    layer = Linear(4, 3, rng=0)
    q = quantize(layer.weight, Scheme())
    for call in (
        lambda: QuantizedLinear(layer.weight),
        lambda: QuantizedLinear(quantize(np.ones(4, "f4"), Scheme())),
        lambda: QuantizedLinear(q, np.ones(4, "f4")),
        lambda: QuantizedLinear(q, np.ones(3)),
        lambda: QuantizedLinear(q, input="int4"),
        lambda: QuantizedLinear(q, input_scale=np.zeros(4, "f4")),
        lambda: QuantizedLinear.from_linear(ReLU(), Scheme()),
        lambda: QuantizedLinear(q)(np.ones((2, 3), "f4")),
        lambda: QuantizedLinear(q)(np.ones((2, 4))),
        lambda: FakeQuantizedLinear(ReLU(), Scheme()),
        lambda: FakeQuantizedLinear(layer, "int8"),
        lambda: FakeQuantizedLinear(layer, Scheme(dtype="nf4")),
        lambda: FakeQuantizedLinear(layer, Scheme())(np.ones((2, 3), "f4")),
    ):
        with pytest.raises((TypeError, ValueError)):
            call()
    for fresh in (QuantizedLinear(q), FakeQuantizedLinear(layer, Scheme())):
        with pytest.raises(RuntimeError, match="forward"):
            fresh.backward(np.ones((2, 3), "f4"))


@pytest.mark.parametrize("input", ["float32", "int8"])
def test_training_with_rounding(input):
    layer, x = Linear(24, 6, rng=0), inputs()
    target = x @ np.random.default_rng(1).standard_normal((24, 6)).astype(np.float32)
    training = FakeQuantizedLinear(layer, Scheme(bits=2), input=input)
    y = training(x)
    dy = np.random.default_rng(2).standard_normal(y.shape).astype(np.float32)
    dx = training.backward(dy)
    rounded = fake_quantize(layer.weight, training.scheme, training.scale)
    np.testing.assert_allclose(dx, dy @ rounded, rtol=1e-5)
    opt = cr.optim.Adam(training.params, lr=1e-2)
    losses = []
    for _ in range(300):
        change = training(x) - target
        losses.append(np.square(change).mean())
        training.backward(2 * change / change.size)
        opt.step(training.grads)
    assert losses[-1] < 0.5 * losses[0]
    small = training.quantized()
    np.testing.assert_allclose(small(x), training(x), rtol=1e-4, atol=1e-4)
    # Better than rounding the weights that are right before rounding.
    layer.weight[...] = np.linalg.lstsq(x, target)[0].T
    layer.bias[...] = 0
    plain = cr.nn.QuantizedLinear.from_linear(layer, Scheme(bits=2), input=input)
    assert np.square(small(x) - target).mean() < 0.8 * np.square(plain(x) - target).mean()


@pytest.mark.parametrize("method", ["nearest", "mse", "hqq", "gptq", "awq", "adaround"])
@pytest.mark.parametrize("correct_bias", [False, True])
def test_models_by_every_method(method, correct_bias):
    dense, x = model(), inputs()
    before = [w.tobytes() for group in dense.params.values() for w in group.values()]
    scheme = Scheme(bits=4)
    small = quantize_model(dense, scheme, x, method=method, correct_bias=correct_bias)
    assert [type(layer) for layer in small] == [QuantizedLinear, ReLU, QuantizedLinear]
    assert [w.tobytes() for group in dense.params.values() for w in group.values()] == before
    error = np.square(small(x) - dense(x)).mean()
    nearest = np.square(quantize_model(dense, scheme)(x) - dense(x)).mean()
    assert error < 0.5 * np.square(dense(x)).mean()
    if method in ("gptq", "awq", "adaround"):
        assert error < nearest
    if correct_bias:
        np.testing.assert_allclose(small(x).mean(0), dense(x).mean(0), atol=1e-4)
    batches = quantize_model(dense, scheme, [x[:90], x[90:]], method=method)
    assert batches(x).shape == (200, 6)


def test_rules_by_name():
    dense, x = model(), inputs()
    small = quantize_model(dense, {"0": None, "*": Scheme(bits=8)})
    assert [type(layer) for layer in small] == [Linear, ReLU, QuantizedLinear]
    assert small[0] is not dense[0]
    np.testing.assert_array_equal(small[0](x), dense[0](x))
    small = quantize_model(dense, {"2": Scheme(bits=3, dtype="codebook")})
    assert small[2].weight.codebook.shape == (6, 8) and isinstance(small[0], Linear)
    for bad in ({}, {"7": Scheme()}, {"*": None}, {"*": "int8"}, "int8", None):
        with pytest.raises((TypeError, ValueError), match="scheme"):
            quantize_model(dense, bad)


def test_calibration_without_data():
    dense = model()
    for calibration in (None, [], np.empty((0, 24), np.float32)):
        for arguments in ({"method": "gptq"}, {"correct_bias": True}):
            with pytest.raises(ValueError, match="calibration"):
                quantize_model(dense, Scheme(), calibration, **arguments)
    with pytest.raises(ValueError, match="method"):
        quantize_model(dense, Scheme(), method="best")
    with pytest.raises(ValueError, match="input"):
        quantize_model(dense, Scheme(), input="int4")
    with pytest.raises(TypeError, match="model"):
        quantize_model(Linear(2, 2), Scheme())


def transformer():
    """A model whose layers are nested, with all kinds that have a form in few bits."""
    rng = np.random.default_rng(3)
    nn = cr.nn
    return Sequential(
        nn.Embedding(40, 16, rng=rng),
        nn.Residual(nn.LayerNorm(16), nn.MultiHeadAttention(16, 4, rng=rng)),
        nn.Residual(
            nn.LayerNorm(16),
            Linear(16, 48, rng=rng),
            nn.GELU(),
            Linear(48, 16, rng=rng),
            shortcut=Linear(16, 16, rng=rng),
        ),
        Linear(16, 5, rng=rng),
    )


@pytest.mark.parametrize("method", ["nearest", "mse", "hqq", "gptq", "awq", "adaround"])
@pytest.mark.parametrize("correct_bias", [False, True])
def test_nested_layers_by_every_method(method, correct_bias):
    dense, ids = transformer().eval(), np.random.default_rng(0).integers(0, 40, (30, 7))
    small = quantize_model(dense, Scheme(bits=8), ids, method=method, correct_bias=correct_bias)
    kinds = [type(layer).__name__ for _, layer in small.named_layers()]
    assert [k.removeprefix("Quantized") for k in kinds] == [
        type(layer).__name__ for _, layer in dense.named_layers()
    ]
    assert sum(kind.startswith("Quantized") for kind in kinds) == 6
    y = dense(ids)
    np.testing.assert_allclose(small(ids), y, atol=0.05 * np.abs(y).max())
    if correct_bias:
        np.testing.assert_allclose(small(ids).mean((0, 1)), y.mean((0, 1)), atol=1e-4)
    lengths = np.arange(30) % 7 + 1
    np.testing.assert_allclose(small(ids, lengths), dense(ids, lengths), atol=0.1)


def test_nested_layers_by_name():
    dense = transformer()
    small = quantize_model(dense, {"2.body.*": Scheme(bits=4), "*": None})
    changed = [n for n, layer in small.named_layers() if isinstance(layer, QuantizedLinear)]
    assert changed == ["2.body.1", "2.body.3"]
    with pytest.raises(ValueError, match=r"scheme\['fc1'\] must match a layer.*'1\.body\.1'"):
        quantize_model(dense, {"fc1": Scheme()})


def test_calibration_is_input_of_the_model():
    rng = np.random.default_rng(0)
    conv = Sequential(
        cr.nn.Conv2d(1, 4, 3, rng=rng),
        cr.nn.BatchNorm(4),
        ReLU(),
        cr.nn.Flatten(),
        Linear(4 * 36, 10, rng=rng),
    )
    images = rng.standard_normal((256, 1, 8, 8)).astype(np.float32)
    before = conv.copy().state_dict()
    small = quantize_model(conv, Scheme(bits=4), images, method="gptq")
    assert small.training and isinstance(small[4], QuantizedLinear)
    for name, array in conv.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    np.testing.assert_array_equal(small[1].buffers["running_mean"], 0)
    for bad in (np.ones((3, 16), np.float32), np.ones((3, 1, 8, 8)), np.ones((3, 2, 8, 8), "f4")):
        said = (
            rf"calibration must hold inputs of the model, .* got shape {re.escape(str(bad.shape))}"
        )
        with pytest.raises((TypeError, ValueError), match=said):
            quantize_model(conv, Scheme(bits=4), bad, method="gptq")
    with pytest.raises(ValueError, match=r"calibration\[1\] must hold inputs"):
        quantize_model(conv, Scheme(), [images, images[:, 0]], method="gptq")
    with pytest.raises((TypeError, ValueError), match="calibration"):
        quantize_model(transformer(), Scheme(), np.array([[99]]), method="gptq")


def test_gradients_through_quantized_attention():
    rng = np.random.default_rng(1)
    dense = Sequential(cr.nn.MultiHeadAttention(8, 2, causal=True, rng=rng, dtype="f8"))
    small = quantize_model(dense, Scheme(bits=8))
    x, dy = rng.standard_normal((2, 3, 5, 8))
    small(x)
    dx = small.backward(dy)
    eps = 1e-6
    for at in [(0, 0, 0), (1, 3, 5), (2, 4, 7)]:
        up, down = x.copy(), x.copy()
        up[at] += eps
        down[at] -= eps
        slope = ((small(up) - small(down)) * dy).sum() / (2 * eps)
        np.testing.assert_allclose(dx[at], slope, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(small[0].grads["out_proj.bias"], dy.sum((0, 1)))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_quantized_models_travel(scheme, tmp_path):
    ids = np.random.default_rng(0).integers(0, 40, (3, 7))
    small = quantize_model(transformer(), scheme).eval()
    small.save(tmp_path / "model.safetensors")
    for other in (
        cr.nn.load(tmp_path / "model.safetensors").eval(),
        copy.deepcopy(small),
        pickle.loads(pickle.dumps(small)),
    ):
        assert other(ids).tobytes() == small(ids).tobytes()
        # Parameters are those of the inner layers in the copy as well.
        bias = other["1.body.1"].params["in_proj.bias"]
        bias += 1
        assert not np.array_equal(other(ids), small(ids))
    summary = small.summary((7,))
    assert summary.parameters == transformer().summary((7,)).parameters
    assert summary.nbytes < transformer().summary((7,)).nbytes

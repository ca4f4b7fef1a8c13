"""Quantized convolutions, and inputs with fixed scales."""

import copy
import pickle
import warnings

import numpy as np
import pytest

import compressrs as cr
from compressrs import nn
from compressrs.nn import quantized_conv
from compressrs.prune import CalibrationWarning
from compressrs.quantize import (
    Percentile,
    QuantizedMatrix,
    Scheme,
    fake_quantize,
    quantize,
    quantize_model,
)
from tests.reference import quantize_products as reference
from tests.reference.nn import conv2d

GROUP = {"granularity": "group", "group_size": 10}
SCHEMES = [
    Scheme(),
    Scheme(bits=4, **GROUP),
    Scheme(bits=5, symmetric=False, **GROUP),
    Scheme(bits=6, symmetric=False, granularity="tensor"),
    Scheme(dtype="uint", symmetric=False, granularity="block", group_size=(3, 1000)),
]
#: Images, channels, filters, height, width, kernel, stride, padding, dilation, groups.
SHAPES = [
    (2, 8, 20, 9, 7, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (1, 64, 16, 1, 1, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    (3, 33, 17, 8, 9, (2, 3), (2, 3), (0, 2), (1, 1), 1),
    (2, 16, 34, 7, 8, (3, 5), (1, 2), (3, 0), (2, 1), 2),
    (5, 12, 48, 6, 6, (4, 6), (3, 1), (5, 4), (1, 2), 3),
    (70, 70, 40, 4, 3, (1, 1), (1, 2), (0, 1), (1, 1), 1),
    (0, 8, 16, 5, 5, (3, 3), (1, 1), (0, 0), (1, 1), 1),
]
FIXED = [None, (0.03, 0), (0.02, -11)]


@pytest.fixture
def codes_for_all(monkeypatch):
    """Small layers use the products of codes too."""
    monkeypatch.setattr(quantized_conv, "_LEAST_INTENSITY", 0.0)


def layer_of(shape, dtype=np.float32, bias=True):
    _, channels, filters, _, _, kernel, stride, padding, dilation, groups = shape
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return nn.Conv2d(channels, filters, kernel, dtype=dtype, bias=bias, rng=0, **options)


def images_of(shape, dtype=np.float32):
    n, channels, _, height, width, *_ = shape
    x = np.random.default_rng(1).standard_normal((n, channels, height, width))
    return (x * np.exp(np.arange(n))[:, None, None, None] / 3).astype(dtype)


def options_of(fixed):
    if fixed is None:
        return {}
    return {"activation_scale": fixed[0], "activation_zero_point": fixed[1]}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("fixed", FIXED)
@pytest.mark.usefixtures("codes_for_all")
def test_codes_have_the_bits_of_integer_arithmetic(shape, scheme, fixed):
    layer, x = layer_of(shape), images_of(shape)
    small = nn.QuantizedConv2d.from_conv(layer, scheme, input="int8", **options_of(fixed))
    assert small.float_reason is None
    q, height = small.weight, scheme.block(layer.weight.shape)[0]
    codes, x_scale = reference.image_codes(x, fixed)
    rows = len(q)
    scale, zero = (
        None if a is None else a.repeat(height, axis=0)[:rows] for a in (q.scale, q.zero_point)
    )
    size = scheme.block(q.shape)[1]
    pad = 0 if fixed is None else fixed[1]
    y = reference.conv_in_codes(codes, x_scale, pad, q.codes, scale, zero, size, layer._geometry)
    bias = layer.bias
    if pad:
        w = q.codes.reshape(rows, -1).astype(np.float64)
        group = np.arange(w.shape[1]) // size
        w = (w - (0 if zero is None else zero[:, group].astype(np.float64))) * scale[:, group]
        shift = np.float64(np.float32(fixed[0])) * pad * w.sum(axis=1)
        expected = y + (bias - shift)[:, None, None].astype(np.float32)
        atol = 1e-6 * np.abs(y).max(initial=0)
        np.testing.assert_allclose(small(x), expected, rtol=1e-6, atol=atol)
    else:
        np.testing.assert_array_equal(small(x), y + bias[:, None, None])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("input", ["float32", "int8"])
@pytest.mark.parametrize(
    "scheme", [Scheme(), Scheme(bits=4, **GROUP), Scheme(dtype="nf4")], ids=str
)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.usefixtures("codes_for_all")
def test_layers_and_their_gradients(shape, input, scheme, dtype):
    dense, x = layer_of(shape, dtype), images_of(shape, dtype)
    small = nn.QuantizedConv2d.from_conv(dense, scheme, input=input)
    w = quantize(dense.weight, scheme).dequantize()
    rounded = x
    if input == "int8":
        codes, scale = reference.image_codes(x)
        rounded = codes.astype(dtype) * scale[:, None, None, None]
    y = small(x)
    expected = conv2d(rounded, w, dense.bias, *dense._geometry)
    assert small.output_shape(x.shape[1:]) == y.shape[1:] == expected.shape[1:]
    # Inputs at the middle between two codes may become either in another precision.
    slack = 1e-5 if input == "float32" or dtype == "f4" else 1e-2
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=slack * np.abs(y).max(initial=1))
    dy = np.random.default_rng(2).standard_normal(y.shape).astype(dtype)
    dense.weight = w
    dense(x)
    np.testing.assert_array_equal(small.backward(dy), dense.backward(dy))
    np.testing.assert_allclose(small.grads["bias"], dense.grads["bias"], rtol=1e-4, atol=1e-4)
    assert (small.takes, small.gives) == (dense.takes, dense.gives)
    assert small.multiply_adds(x.shape[1:]) == dense.multiply_adds(x.shape[1:])
    if input == "float32":
        np.testing.assert_array_equal(y, dense(x))


@pytest.mark.usefixtures("codes_for_all")
def test_images_that_are_not_finite_become_nan():
    shape = (4, 16, 16, 6, 6, (3, 3), (1, 1), (1, 1), (1, 1), 1)
    x, layer = images_of(shape), layer_of(shape)
    x[0, 3, 2, 1], x[2, 0, 5, 5], x[3] = np.nan, -np.inf, 0
    for fixed in FIXED:
        for scheme in (Scheme(), Scheme(dtype="nf4")):
            small = nn.QuantizedConv2d.from_conv(layer, scheme, input="int8", **options_of(fixed))
            y = small(x)
            assert np.isnan(y[[0, 2]]).all() and np.isfinite(y[[1, 3]]).all()
            bias = np.broadcast_to(layer.bias[:, None, None], y[3].shape)
            np.testing.assert_allclose(y[3], bias, atol=1e-5)
    # An image is the same whatever is beside it.
    small = nn.QuantizedConv2d.from_conv(layer, Scheme(), input="int8")
    np.testing.assert_array_equal(small(x[1:2]), small(x)[1:2])
    tiny = np.full((1, 16, 6, 6), 1e-44, np.float32)
    np.testing.assert_allclose(small(tiny)[0], bias, atol=1e-5)


def test_reasons_to_stay_in_float():
    def reason(layer, scheme, **options):
        return nn.QuantizedConv2d.from_conv(layer, scheme, **options).float_reason

    layer = nn.Conv2d(32, 64, 3, rng=0)
    assert reason(layer, Scheme(), input="int8") is None
    assert "float32" in reason(layer, Scheme())
    assert "nf4" in reason(layer, Scheme(dtype="nf4"), input="int8")
    assert "float64" in reason(nn.Conv2d(32, 64, 3, dtype="f8"), Scheme(), input="int8")
    assert "27 weights" in reason(nn.Conv2d(3, 64, 3), Scheme(), input="int8")
    assert "1 filters" in reason(nn.Conv2d(16, 16, 3, groups=16), Scheme(), input="int8")
    statistics = cr.prune.InputStatistics(288, gram=True)
    statistics.update(np.random.default_rng(0).standard_normal((400, 288)) ** 3)
    scheme = Scheme(bits=4, **GROUP)
    q = cr.quantize.gptq(layer.weight, statistics, scheme, act_order=True)
    small = nn.QuantizedConv2d(q, layer.bias, input="int8")
    assert "sorted" in small.float_reason
    x = np.random.default_rng(0).standard_normal((2, 32, 5, 5)).astype(np.float32)
    codes, scale = reference.image_codes(x)
    expected = conv2d(codes * scale[:, None, None, None], q.dequantize(), layer.bias)
    np.testing.assert_allclose(small(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("input", ["float32", "int8"])
@pytest.mark.parametrize(
    "scheme", [Scheme(bits=2), Scheme(bits=3, symmetric=False, **GROUP)], ids=str
)
def test_training_with_rounding(input, scheme):
    shape = (40, 4, 6, 6, 5, (3, 3), (1, 2), (1, 0), (1, 1), 2)
    layer, x = layer_of(shape), np.tanh(images_of(shape))
    training = nn.FakeQuantizedConv2d(layer, scheme, input=input)
    y = training(x)
    rounded = fake_quantize(layer.weight, scheme, training.scale, training.zero_point)
    dy = np.random.default_rng(2).standard_normal(y.shape).astype(np.float32)
    dx = training.backward(dy)
    plain = layer.copy()
    plain.weight = rounded
    seen = x
    if input == "int8":
        codes, scale = reference.image_codes(x)
        seen = (codes * scale[:, None, None, None]).astype(np.float32)
    np.testing.assert_allclose(y, plain(seen), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dx, plain.backward(dy), rtol=1e-4, atol=1e-5)
    target = conv2d(
        x,
        3 * np.random.default_rng(3).standard_normal(layer.weight.shape) / 8,
        None,
        *layer._geometry,
    )
    opt, losses = cr.optim.Adam(training.params, lr=1e-2), []
    for _ in range(150):
        change = training(x) - target.astype(np.float32)
        losses.append(np.square(change).mean())
        training.backward(2 * change / change.size)
        opt.step(training.grads)
    assert losses[-1] < 0.7 * losses[0]
    small = training.quantized()
    np.testing.assert_allclose(small(x), training(x), rtol=1e-4, atol=1e-4)


def conv_net(dtype=np.float32):
    rng = np.random.default_rng(0)
    return nn.Sequential(
        nn.Conv2d(3, 20, 3, padding=1, dtype=dtype, rng=rng),
        nn.ReLU(),
        nn.Residual(
            nn.Conv2d(20, 32, 3, padding=1, dtype=dtype, rng=rng),
            nn.ReLU(),
            nn.Conv2d(32, 20, 3, padding=1, groups=2, bias=False, dtype=dtype, rng=rng),
        ),
        nn.MaxPool(2),
        nn.Flatten(),
        nn.Linear(20 * 9, 10, dtype=dtype, rng=rng),
    )


def images(count=300, dtype=np.float32):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((count, 3, 6, 6)) + rng.standard_normal((count, 3, 1, 1))
    return x.astype(dtype)


@pytest.mark.parametrize("method", ["nearest", "mse", "hqq", "gptq", "awq", "adaround"])
@pytest.mark.parametrize("correct_bias", [False, True])
def test_models_by_every_method(method, correct_bias):
    dense, x = conv_net(), images()
    # AdaRound takes seconds for the larger layers.
    scheme = {"0" if method == "adaround" else "*": Scheme(bits=4, **GROUP)}
    small = quantize_model(dense, scheme, x, method=method, correct_bias=correct_bias)
    assert isinstance(small[0], nn.QuantizedConv2d)
    assert isinstance(small[2].body[2], nn.QuantizedConv2d) or method == "adaround"
    error = np.square(small(x) - dense(x)).mean()
    assert error < 0.05 * np.square(dense(x)).mean()
    if method in ("gptq", "adaround"):
        nearest = quantize_model(dense, scheme, x, correct_bias=correct_bias)
        assert error < np.square(nearest(x) - dense(x)).mean()
    if correct_bias and method != "adaround":
        np.testing.assert_allclose(small(x).mean(0), dense(x).mean(0), atol=1e-3)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.usefixtures("codes_for_all")
def test_models_with_fixed_scales_of_inputs(symmetric):
    dense, x = conv_net(), images()
    activations = Scheme(bits=8, granularity="tensor", symmetric=symmetric)
    small = quantize_model(dense, Scheme(), x, activations=activations)
    convs = small[0], small[2].body[0], small[2].body[2]
    for layer in (*convs, small[5]):
        assert layer.input == "int8" and layer.activation_scale.shape == (1,)
    # After ReLU the zero point is at the end of the range.
    assert small[2].body[0].activation_zero_point == (0 if symmetric else -128)
    y = dense(x)
    assert np.square(small(x) - y).mean() < 1e-3 * np.square(y).mean()
    clipped = quantize_model(
        dense, Scheme(), x, activations=activations, observer=lambda: Percentile(percentile=99)
    )
    assert (clipped[0].activation_scale < small[0].activation_scale).all()
    state = {name: array.copy() for name, array in small.state_dict().items()}
    assert "2.body.0.activation_zero_point" in state
    other = quantize_model(conv_net(), Scheme(), 2 * x, activations=activations)
    other.load_state_dict(state)
    assert other(x).tobytes() == small(x).tobytes()
    dynamic = quantize_model(dense, Scheme(), input="int8")
    with pytest.raises(ValueError, match="activation_scale"):
        dynamic.load_state_dict(state)


@pytest.mark.parametrize(
    "scheme", [*SCHEMES, Scheme(dtype="nf4"), Scheme(bits=3, dtype="codebook")], ids=str
)
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.usefixtures("codes_for_all")
def test_models_travel(scheme, fixed, dtype, tmp_path):
    pytest.importorskip("safetensors")
    x = images(20, dtype)
    activations = Scheme(symmetric=False, granularity="tensor") if fixed else None
    small = quantize_model(conv_net(dtype), scheme, x, activations=activations, input="int8")
    small.save(tmp_path / "model")
    for other in (
        nn.load(tmp_path / "model"),
        copy.deepcopy(small),
        copy.copy(small),
        pickle.loads(pickle.dumps(small)),
    ):
        assert other(x).tobytes() == small(x).tobytes()
    fake = nn.Sequential(
        nn.FakeQuantizedConv2d(nn.Conv2d(3, 4, 3, rng=0, dtype=dtype), Scheme(bits=3))
    )
    fake.save(tmp_path / "fake")
    assert nn.load(tmp_path / "fake")(x).tobytes() == fake(x).tobytes()


def test_summary_counts_codes():
    dense = conv_net()
    small = quantize_model(dense, Scheme())
    shape = (3, 6, 6)
    assert small.summary(shape).parameters == dense.summary(shape).parameters
    assert small.summary(shape).multiply_adds == dense.summary(shape).multiply_adds
    assert small.summary(shape).nbytes < 0.3 * dense.summary(shape).nbytes


@pytest.mark.parametrize("scale", [0.02, 0.3])
@pytest.mark.parametrize("zero", [0, -128, 31])
@pytest.mark.parametrize("scheme", [SCHEMES[0], SCHEMES[2]], ids=str)
def test_linear_layers_with_a_fixed_scale(scale, zero, scheme):
    rng = np.random.default_rng(0)
    layer, x = nn.Linear(37, 21, rng=0), rng.standard_normal((9, 37)).astype(np.float32)
    x[4, 7], x[6] = np.nan, 0
    fixed = options_of((scale, zero))
    small = nn.QuantizedLinear.from_linear(layer, scheme, input="int8", **fixed)
    codes = reference.fixed_codes(np.nan_to_num(x), scale, zero)
    x_scale = np.full(9, scale, np.float32)
    q = small.weight
    size = scheme.block(q.shape)[1]
    parts = q.codes, q.scale, q.zero_point, size
    y = reference.integer_linear(codes, x_scale, *parts)
    sums = reference.integer_linear(np.ones((1, 37), np.int8), np.ones(1, np.float32), *parts)
    y = y - np.float32(scale) * zero * sums + layer.bias
    y[4] = np.nan
    np.testing.assert_allclose(small(x), y, rtol=1e-4, atol=2e-5 * np.nanmax(np.abs(y)))
    np.testing.assert_allclose(small(x)[6], layer.bias, atol=2e-4)
    if zero == 0:
        np.testing.assert_array_equal(small(x), y)
    wide = nn.QuantizedLinear(
        quantize(layer.weight.astype("f8"), scheme), layer.bias.astype("f8"), input="int8", **fixed
    )
    np.testing.assert_allclose(wide(x.astype("f8")), y, rtol=1e-2, atol=0.02 * np.nanmax(abs(y)))
    # In products, also with outputs in codes.
    matrix = QuantizedMatrix(q)
    parameters = {"input": "int8", "input_scale": scale, "input_zero_point": zero}
    np.testing.assert_array_equal(matrix.linear(x, layer.bias, **parameters), small(x))
    kept = np.delete(x, 4, axis=0)
    again = matrix.linear(reference.fixed_codes(kept, scale, zero), layer.bias, **parameters)
    np.testing.assert_array_equal(again, small(kept))
    out = matrix.linear(kept, layer.bias, output_scale=0.1, output_zero_point=3, **parameters)
    np.testing.assert_array_equal(out, reference.requantize(again, 0.1, 3))
    with pytest.raises(ValueError, match="x must be finite"):
        matrix.linear(x, layer.bias, output_scale=0.1, **parameters)


def test_fixed_scales_of_attention():
    rng = np.random.default_rng(0)
    dense = nn.Sequential(nn.MultiHeadAttention(16, 4, rng=rng), nn.Linear(16, 3, rng=rng))
    x = rng.standard_normal((20, 6, 16)).astype(np.float32)
    activations = Scheme(granularity="tensor")
    for method in ("nearest", "awq"):
        small = quantize_model(dense, Scheme(), x, method=method, activations=activations)
        y = dense(x)
        assert np.square(small(x) - y).mean() < 1e-3 * np.square(y).mean()
        assert small[0].in_proj.activation_scale != small[0].out_proj.activation_scale
        for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
            assert other(x).tobytes() == small(x).tobytes()


def test_bad_arguments():
    q = quantize(np.ones((4, 2, 3, 3), np.float32), Scheme())
    ok = nn.QuantizedConv2d(q)
    x = np.ones((1, 2, 5, 5), np.float32)
    cases = [
        (lambda: nn.QuantizedConv2d(np.ones((4, 2, 3, 3))), TypeError, "weight"),
        (lambda: nn.QuantizedConv2d(quantize(np.ones((4, 2)), Scheme())), ValueError, "four axes"),
        (lambda: nn.QuantizedConv2d(q, np.ones(4)), TypeError, "bias"),
        (lambda: nn.QuantizedConv2d(q, np.ones(3, "f4")), ValueError, "bias"),
        (lambda: nn.QuantizedConv2d(q, input="int4"), ValueError, "input"),
        (lambda: nn.QuantizedConv2d(q, stride=0), ValueError, "stride"),
        (lambda: nn.QuantizedConv2d(q, padding=-1), ValueError, "padding"),
        (lambda: nn.QuantizedConv2d(q, dilation=(1, 2, 3)), ValueError, "dilation"),
        (lambda: nn.QuantizedConv2d(q, groups=3), ValueError, "groups"),
        (lambda: nn.QuantizedConv2d.from_conv(nn.ReLU(), Scheme()), TypeError, "layer"),
        (lambda: nn.FakeQuantizedConv2d(nn.ReLU(), Scheme()), TypeError, "layer"),
        (lambda: nn.FakeQuantizedConv2d(nn.Conv2d(1, 1, 1), "int8"), TypeError, "scheme"),
        (lambda: nn.QuantizedConv2d(q, activation_scale=0.1), ValueError, "input='int8'"),
        (lambda: ok(x[0]), ValueError, "4 axes"),
        (lambda: ok(x.astype("f8")), TypeError, "x must have dtype float32"),
        (lambda: ok(np.ones((1, 3, 5, 5), "f4")), ValueError, "channels"),
        (lambda: ok(np.ones((1, 2, 2, 5), "f4")), ValueError, "kernel"),
    ]
    for scale in (0, -1.0, np.nan, np.inf, 1e-42, 1e40, "0.1", np.ones(2)):
        for make in (
            lambda scale=scale: nn.QuantizedConv2d(q, input="int8", activation_scale=scale),
            lambda scale=scale: nn.QuantizedLinear(
                quantize(np.ones((4, 2), "f4"), Scheme()), input="int8", activation_scale=scale
            ),
        ):
            cases.append((make, (TypeError, ValueError), "activation_scale"))
    for zero in (128, -129, 0.5):
        options = {"input": "int8", "activation_scale": 0.1, "activation_zero_point": zero}
        cases.append(
            (lambda o=options: nn.QuantizedConv2d(q, **o), (TypeError, ValueError), "zero_point")
        )
    cases.append((lambda: nn.QuantizedConv2d(q, activation_zero_point=1), ValueError, "zero_point"))
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
    with pytest.raises(RuntimeError, match="forward"):
        ok.eval().backward(x)


def test_bad_activations_of_models():
    dense, x = conv_net(), images(10)
    whole = Scheme(granularity="tensor")
    for options, error, message in (
        ({"activations": "int8"}, TypeError, "activations"),
        ({"activations": Scheme()}, ValueError, "activations"),
        ({"activations": Scheme(bits=4, granularity="tensor")}, ValueError, "activations"),
        ({"observer": 3}, TypeError, "observer must be a class or a function .* got 3"),
        ({"observer": "mse"}, TypeError, "such as observer=MSE .* got 'mse'"),
        ({"observer": Percentile()}, TypeError, "got an instance of Percentile"),
        ({"activations": whole, "observer": lambda: 3}, TypeError, "observer"),
        ({"activations": whole, "observer": lambda: Percentile(3)}, ValueError, "observer"),
    ):
        with pytest.raises(error, match=message):
            quantize_model(dense, Scheme(), x, **options)
    with pytest.raises(ValueError, match="calibration must hold inputs for activations"):
        quantize_model(dense, Scheme(), activations=whole)


@pytest.mark.usefixtures("codes_for_all")
def test_buffers_that_others_wrote_are_checked():
    small = quantize_model(
        conv_net(), Scheme(), images(10), activations=Scheme(granularity="tensor")
    )
    for path in ("0.activation_scale", "5.activation_scale"):
        changed = small.copy()
        changed.state_dict()[path][...] = np.nan
        with pytest.raises(ValueError, match="activation_scale must be"):
            changed(images(2))


@pytest.mark.usefixtures("codes_for_all")
def test_codes_that_others_wrote_have_an_effect():
    layer = nn.Conv2d(16, 16, 3, rng=0)
    small = nn.QuantizedConv2d.from_conv(layer, Scheme(), input="int8")
    x = images(2)[:, :1].repeat(16, axis=1)
    before = small(x)
    small.state_dict()["weight.codes"][0] = 0
    after = small(x)
    np.testing.assert_array_equal(after[:, 0], np.full_like(after[:, 0], layer.bias[0]))
    np.testing.assert_array_equal(after[:, 1:], before[:, 1:])


@pytest.mark.usefixtures("codes_for_all")
def test_padding_beyond_memory():
    layer = nn.Conv2d(16, 16, 3, rng=0, padding=2**30, stride=2**30)
    small = nn.QuantizedConv2d.from_conv(layer, Scheme(), input="int8")
    with pytest.raises(MemoryError):
        small(np.ones((1, 16, 3, 3), np.float32))


def test_few_calibration_images_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error", CalibrationWarning)
        with pytest.raises(CalibrationWarning):
            quantize_model(conv_net(), Scheme(bits=4), images(1), method="gptq")

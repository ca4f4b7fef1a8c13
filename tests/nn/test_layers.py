"""Layers against plain NumPy, finite differences, and what PyTorch gave."""

import collections
import itertools
import time
from pathlib import Path

import numpy as np
import pytest

import compressrs as cr
from compressrs import nn
from tests.reference import nn as reference

F64 = {"dtype": np.float64}
DATA = Path(__file__).parents[1] / "data"

#: A layer and the shape of an input, without the batch.
LAYERS = {
    "linear": (lambda: nn.Linear(5, 4, rng=0, **F64), (5,)),
    "linear of sequences": (lambda: nn.Linear(5, 4, rng=0, **F64), (3, 5)),
    "conv": (lambda: nn.Conv2d(2, 3, 3, padding=1, rng=0, **F64), (2, 5, 4)),
    "conv, strided": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 3), rng=0, **F64), (2, 7, 8)),
    "conv, groups": (
        lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2, padding=2, bias=False, rng=0, **F64),
        (4, 6, 6),
    ),
    "conv, depthwise": (lambda: nn.Conv2d(3, 3, 2, groups=3, rng=0, **F64), (3, 4, 4)),
    "batch norm": (lambda: nn.BatchNorm(3, **F64), (3,)),
    "batch norm of images": (lambda: nn.BatchNorm(3, **F64), (3, 4, 5)),
    "layer norm": (lambda: nn.LayerNorm(6, **F64), (2, 6)),
    "gelu": (nn.GELU, (7,)),
    "gelu, tanh": (lambda: nn.GELU("tanh"), (7,)),
    "silu": (nn.SiLU, (7,)),
    "softmax": (nn.Softmax, (7,)),
    "max pool": (lambda: nn.MaxPool(2), (2, 4, 6)),
    "max pool, overlapping": (lambda: nn.MaxPool(3, stride=2, padding=1), (2, 5, 6)),
    "avg pool": (lambda: nn.AvgPool((3, 2), stride=1, padding=1), (2, 5, 4)),
    "flatten": (nn.Flatten, (2, 3)),
    "residual": (lambda: nn.Residual(nn.Linear(4, 4, rng=0, **F64), nn.SiLU()), (4,)),
    "shortcut": (
        lambda: nn.Residual(nn.Linear(4, 3, rng=0, **F64), shortcut=nn.Linear(4, 3, rng=1, **F64)),
        (4,),
    ),
    "attention": (lambda: nn.MultiHeadAttention(6, 2, rng=0, **F64), (4, 6)),
    "attention, causal": (lambda: nn.MultiHeadAttention(6, 3, causal=True, rng=0, **F64), (4, 6)),
    "dropout": (lambda: nn.Dropout(0.5, rng=0), (8,)),
}


def leaves(tree):
    for value in tree.values():
        if isinstance(value, dict):
            yield from leaves(value)
        else:
            yield value


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_agree_with_finite_differences(name):
    make, shape = LAYERS[name]
    layer, rng = make(), np.random.default_rng(1)
    for array in leaves(layer.params):
        array += 0.3 * rng.standard_normal(array.shape)
    x = rng.standard_normal((3, *shape))
    weights = rng.standard_normal(layer(x).shape)

    def loss():
        if "calls" in layer.buffers:
            layer.buffers["calls"][...] = 0
        return float((layer(x) * weights).sum())

    loss()
    dx = layer.backward(weights)
    for array, grad in [(x, dx), *zip(leaves(layer.params), leaves(layer.grads), strict=True)]:
        grad, h = grad.copy(), 1e-6
        for i in np.ndindex(array.shape):
            old = array[i]
            array[i] = old + h
            up = loss()
            array[i] = old - h
            down = loss()
            array[i] = old
            assert (up - down) / (2 * h) == pytest.approx(grad[i], abs=2e-7, rel=1e-5), (name, i)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_convolutions_agree_with_loops(dtype):
    rng = np.random.default_rng(2)
    close = {"rtol": 1e-4, "atol": 2e-4} if dtype == np.float32 else {"rtol": 1e-11, "atol": 1e-11}
    cases = [
        # images, channels, filters, groups, size, kernel, stride, padding, dilation
        (1, 1, 1, 1, (1, 1), (1, 1), (1, 1), (0, 0), (1, 1)),
        (2, 3, 5, 1, (9, 7), (3, 3), (1, 1), (1, 1), (1, 1)),
        (3, 13, 17, 1, (6, 40), (3, 5), (1, 1), (0, 2), (1, 1)),
        (2, 4, 6, 2, (11, 10), (3, 2), (2, 3), (2, 1), (1, 1)),
        (1, 2, 3, 1, (20, 37), (4, 3), (3, 2), (5, 0), (2, 3)),
        (2, 6, 6, 6, (8, 8), (3, 3), (2, 2), (1, 1), (1, 1)),
        (2, 8, 33, 1, (5, 5), (5, 5), (1, 1), (0, 0), (1, 1)),
        (1, 3, 2, 1, (7, 7), (1, 1), (3, 4), (0, 0), (1, 1)),
        (0, 3, 2, 1, (7, 7), (3, 3), (1, 1), (0, 0), (1, 1)),
        (1, 1, 1, 1, (3, 3), (2, 2), (1, 1), (6, 7), (1, 1)),
        (2, 2, 2, 1, (70, 33), (3, 3), (1, 1), (1, 1), (1, 1)),
    ]
    for n, c, f, groups, size, kernel, *rest in cases:
        stride, padding, dilation = rest
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        layer = nn.Conv2d(c, f, kernel, dtype=dtype, rng=rng, **options)
        x = rng.standard_normal((n, c, *size)).astype(dtype)
        y = layer(x)
        expected = reference.conv2d(x, layer.weight, layer.bias, **options)
        np.testing.assert_allclose(y, expected, **close)
        assert layer.output_shape((c, *size)) == y.shape[1:]
        dy = rng.standard_normal(y.shape).astype(dtype)
        dx = layer.backward(dy)
        gradients = reference.conv2d_gradients(x, layer.weight, dy, **options)
        for got, want in zip(
            (dx, layer.grads["weight"], layer.grads["bias"]), gradients, strict=True
        ):
            np.testing.assert_allclose(got, want, **close)


def test_bits_do_not_depend_on_threads():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((6, 8, 30, 30)).astype(np.float32)
    rows = rng.standard_normal((300, 96)).astype(np.float32)
    tokens = rng.standard_normal((8, 40, 96)).astype(np.float32)

    def run():
        found = []
        for layer, given in (
            (nn.Conv2d(8, 24, 3, padding=1, stride=2, rng=0), x),
            (nn.BatchNorm(8), x),
            (nn.Linear(96, 200, rng=0), rows),
            (nn.LayerNorm(96), rows),
            (nn.GELU(), rows),
            (nn.MultiHeadAttention(96, 6, rng=0), tokens),
        ):
            y = layer(given)
            found += [y, layer.backward(y), *layer.grads.values()]
        return [array.tobytes() for array in found]

    before = cr.get_num_threads()
    try:
        cr.set_num_threads(1)
        alone = run()
        cr.set_num_threads(3)
        assert run() == alone
    finally:
        cr.set_num_threads(before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_elementwise_functions_over_the_whole_range(dtype):
    x = np.concatenate([np.linspace(-12, 12, 4001), [0.0, -0.0, 1e-30, -1e-30, 300, -300]])
    x = x.astype(dtype)
    close = 4e-7 if dtype == np.float32 else 2e-15
    with np.errstate(over="ignore"):
        for layer, function in (
            (nn.GELU(), reference.gelu),
            (nn.GELU("tanh"), reference.gelu_tanh),
            (nn.SiLU(), reference.silu),
        ):
            np.testing.assert_allclose(
                layer(x), function(x.astype(np.float64)), atol=close, rtol=close
            )
            special = layer(np.array([np.inf, np.nan], dtype))
            assert special[0] == np.inf and np.isnan(special[1])
            assert layer(np.array([-np.inf], dtype))[0] == 0
            layer(np.array([np.inf, -np.inf], dtype))
            assert layer.backward(np.ones(2, dtype)).tolist() == [1, 0]


def test_norms_and_attention_agree_with_plain_numpy():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((3, 7, 12)) * 5 + 3
    norm = nn.LayerNorm(12, eps=1e-3, **F64)
    norm.weight, norm.bias = rng.standard_normal(12), rng.standard_normal(12)
    expected = reference.layer_norm(x, norm.weight, norm.bias, 1e-3)
    np.testing.assert_allclose(norm(x), expected, rtol=1e-12, atol=1e-12)
    batch = nn.BatchNorm(7, **F64)
    batch.weight = rng.standard_normal(7)
    expected = reference.batch_norm(x, batch.weight, batch.bias, 1e-5)
    np.testing.assert_allclose(batch(x), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(batch.buffers["running_mean"], 0.1 * x.mean((0, 2)), rtol=1e-12)
    var = 0.9 + 0.1 * x.var((0, 2), ddof=1)
    np.testing.assert_allclose(batch.buffers["running_var"], var, rtol=1e-12)
    for causal, lengths in ((False, None), (True, None), (False, [7, 1, 4])):
        layer = nn.MultiHeadAttention(12, 4, causal=causal, rng=0, **F64)
        p = layer.params
        p["in_proj_bias"][...] = rng.standard_normal(36)
        given = [
            p[n] for n in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        ]
        expected = reference.attention(x, *given, 4, causal, lengths)
        np.testing.assert_allclose(layer.forward(x, lengths), expected, rtol=1e-10, atol=1e-12)


def test_pools_agree_with_windows():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, 3, 9, 8))
    for kernel, stride, padding in (((2, 2), (2, 2), (0, 0)), ((3, 2), (2, 1), (1, 1))):
        arguments = {"stride": stride, "padding": padding}
        expected = reference.pool(x, kernel, stride, padding, np.max, -np.inf)
        np.testing.assert_array_equal(nn.MaxPool(kernel, **arguments)(x), expected)
        expected = reference.pool(x, kernel, stride, padding, np.mean, 0)
        np.testing.assert_allclose(nn.AvgPool(kernel, **arguments)(x), expected, rtol=1e-13)
    x[0, 0, 1, 1] = np.nan
    assert np.isnan(nn.MaxPool(2)(x)[0, 0, 0, 0])


@pytest.mark.parametrize("name", [*LAYERS, "sparse linear", "embedding", "embedding, sparse"])
def test_gradients_keep_nothing_of_what_the_caller_gave(name):
    rng = np.random.default_rng(8)
    if name in LAYERS:
        layer, shape = LAYERS[name][0](), LAYERS[name][1]
        x = rng.standard_normal((3, *shape))
    elif name == "sparse linear":
        layer = nn.SparseLinear.from_linear(nn.Linear(5, 4, rng=0, **F64))
        x = rng.standard_normal((3, 5))
    else:
        layer = nn.Embedding(6, 4, rng=0, sparse=name.endswith("sparse"), **F64)
        x = rng.integers(0, 6, (3, 2))

    def gradients():
        return [
            grad.dense(6).tobytes() if isinstance(grad, cr.optim.RowGradient) else grad.tobytes()
            for grad in leaves(layer.grads)
        ]

    y = layer(x)
    dy = rng.standard_normal(y.shape)
    layer.backward(dy)
    before = gradients()
    for array in (x, y, dy):
        array[...] = 0
    assert gradients() == before


def test_embeddings_add_up_gradients_of_the_same_row():
    layer = nn.Embedding(5, 3, rng=0, **F64)
    ids = np.array([[1, 4, 1], [0, 1, 1]])
    np.testing.assert_array_equal(layer(ids), layer.weight[ids])
    dy = np.random.default_rng(6).standard_normal((2, 3, 3))
    layer.backward(dy)
    expected = np.zeros((5, 3))
    np.add.at(expected, ids, dy)
    np.testing.assert_allclose(layer.grads["weight"], expected, rtol=1e-13)
    for bad, error in (
        (np.array([5]), ValueError),
        (np.array([-1]), ValueError),
        ([0.5], TypeError),
    ):
        with pytest.raises(error, match="x must"):
            layer(np.asarray(bad))


def test_dropout_keeps_the_mean_and_can_be_repeated():
    layer = nn.Dropout(0.25, rng=1)
    x = np.ones((400, 50), np.float32)
    first, second = layer(x), layer(x)
    assert 0.73 < (first > 0).mean() < 0.77 and not np.array_equal(first, second)
    again = nn.Dropout(0.25, rng=99)
    state = layer.state_dict()
    again.load_state_dict({**state, "calls": np.array(1)})
    np.testing.assert_array_equal(again(x), second)
    assert layer.eval()(x) is x


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (nn.cross_entropy, np.array([2, 0, -100])),
        (nn.mse_loss, np.random.default_rng(7).standard_normal((3, 4))),
    ],
)
def test_losses_have_the_gradients_of_finite_differences(loss, target):
    z, h = np.random.default_rng(8).standard_normal((3, 4)), 1e-6
    value, grad = loss(z, target)
    assert value > 0
    for i in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[i] += h
        down[i] -= h
        numeric = (loss(up, target)[0] - loss(down, target)[0]) / (2 * h)
        assert numeric == pytest.approx(grad[i], abs=1e-8)


def torch_cases():
    with np.load(DATA / "nn.npz") as data:
        return sorted({key.split("/")[0] for key in data.files})


#: The layers of the recorded cases; see tests/data/README.md.
RECORDED = {
    "attention": lambda: nn.MultiHeadAttention(16, 4, dtype=np.float64),
    "avg_pool": lambda: nn.AvgPool(3, stride=2, padding=1),
    "batch_norm": lambda: nn.BatchNorm(4, dtype=np.float64),
    "conv": lambda: nn.Conv2d(3, 8, 3, padding=1, dtype=np.float64),
    "conv_depthwise": lambda: nn.Conv2d(6, 6, 3, groups=6, padding=1, dtype=np.float64),
    "conv_groups": lambda: nn.Conv2d(4, 8, (3, 2), groups=2, stride=(2, 1), dtype=np.float64),
    "conv_strided": lambda: nn.Conv2d(
        3, 5, 3, stride=2, padding=2, dilation=2, bias=False, dtype=np.float64
    ),
    "embedding": lambda: nn.Embedding(7, 5, dtype=np.float64),
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "layer_norm": lambda: nn.LayerNorm(10, dtype=np.float64),
    "linear": lambda: nn.Linear(6, 4, dtype=np.float64),
    "max_pool": lambda: nn.MaxPool(3, stride=2, padding=1),
    "silu": nn.SiLU,
    "softmax": nn.Softmax,
}


@pytest.mark.parametrize("case", RECORDED)
def test_layers_agree_with_torch(case):
    with np.load(DATA / "nn.npz") as data:
        found = {
            key.split("/", 1)[1]: data[key] for key in data.files if key.startswith(f"{case}/")
        }
    layer = RECORDED[case]()
    state = {key.removeprefix("state/"): v for key, v in found.items() if key.startswith("state/")}
    layer.load_state_dict(state)
    np.testing.assert_allclose(layer(found["x"]), found["y"], rtol=1e-11, atol=1e-11)
    dx = layer.backward(found["dy"])
    if "dx" in found:
        np.testing.assert_allclose(dx, found["dx"], rtol=1e-10, atol=1e-11)
    for name, grad in layer.grads.items():
        np.testing.assert_allclose(grad, found[f"grad/{name}"], rtol=1e-10, atol=1e-11)
    for name, value in layer.buffers.items():
        np.testing.assert_allclose(value, found[f"after/{name}"], rtol=1e-12)
    if "eval" in found:
        np.testing.assert_allclose(layer.eval()(found["x"]), found["eval"], rtol=1e-10, atol=1e-11)


def test_all_cases_of_torch_are_used():
    assert torch_cases() == sorted(RECORDED)


@pytest.mark.parametrize("tick, rounds", [(100.0, 1), (0.0, 7)])
def test_recommend_runs_each_storage_once_when_the_time_is_used_up(monkeypatch, tick, rounds):
    layer = cr.nn.Linear(64, 48, rng=0)
    layer.weight[:, 8:] = 0
    seen, clock = [], itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock) * max(tick, 1e-6))
    for kind in (cr.nn.Linear, cr.nn.SparseLinear, cr.nn.QuantizedLinear):
        forward = kind.forward

        def counted(self, x, forward=forward):
            seen.append((id(self), len(x)))
            return forward(self, x)

        monkeypatch.setattr(kind, "forward", counted)
    found = cr.nn.recommend(layer, 5, seconds=1e-4 if tick else 1.0, scheme=cr.quantize.Scheme())
    assert "quantized" in found.seconds and all(s > 0 for s in found.seconds.values())
    batches = collections.Counter(which for which, rows in seen if rows == 5)
    assert len(batches) == sum(rows == 1 for _, rows in seen) == len(found.seconds) - 1
    assert set(batches.values()) == {1} if rounds == 1 else min(batches.values()) >= 2 * rounds


def test_recommend_measures_the_storages_that_hold_a_layer():
    layer = cr.nn.Linear(64, 48, rng=0)
    layer.weight[:, 8:] = 0
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    found = cr.nn.recommend(layer, 5, seconds=1e-4)
    assert set(found.seconds) == {"dense", "csr", "bsr_4x4", "bsr_1x16", "bsr_16x1"}
    assert found.seconds[found.storage] == min(found.seconds.values()) > 0
    np.testing.assert_allclose(found.layer(x), layer(x), atol=1e-5)
    scattered = cr.nn.Linear(30, 20, rng=0)
    assert set(cr.nn.recommend(scattered, seconds=1e-4).seconds) == {"dense", "csr"}
    for bad, error in (({"batch": 0}, ValueError), ({"seconds": 0}, ValueError)):
        with pytest.raises(error, match=next(iter(bad))):
            cr.nn.recommend(layer, **bad)
    with pytest.raises(TypeError, match="layer"):
        cr.nn.recommend(layer.weight)

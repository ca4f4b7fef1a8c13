"""Models that are resized compute what they did, and go on training."""

import copy

import numpy as np
import pytest

import compressrs as cr
from compressrs import nn
from compressrs.search import resize

X = np.random.default_rng(0).standard_normal((5, 2, 6, 6)).astype(np.float32)


def network(dtype=np.float32):
    """Convolutions with a residual and a depthwise one, normalization and linear layers."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, rng=0, dtype=dtype),
        nn.BatchNorm(6, dtype=dtype),
        nn.ReLU(),
        nn.Residual(nn.Conv2d(6, 6, 3, padding=1, rng=1, dtype=dtype)),
        nn.Conv2d(6, 6, 3, padding=1, groups=6, rng=2, dtype=dtype),
        nn.MaxPool(2),
        nn.Flatten(),
        nn.Linear(54, 10, rng=3, dtype=dtype),
        nn.ReLU(),
        nn.Linear(10, 3, rng=4, dtype=dtype),
    )


def step(model, opt, x=X):
    y = model(x)
    model.backward(np.sin(y))
    opt.step(model.grads)


@pytest.mark.parametrize("sizes", [{0: 9}, {"7": 17}, {0: 7, 7: 11}, {}, {0: 6, 7: 10}])
def test_larger_models_compute_the_same(sizes):
    model = network(np.float64)
    opt = cr.optim.Adam(model.params, lr=1e-2)
    step(model, opt, X.astype(np.float64))
    model.eval()
    before = model(X.astype(np.float64))
    resize(model, sizes, opt, rng=0)
    np.testing.assert_allclose(model(X.astype(np.float64)), before, rtol=1e-12, atol=1e-12)
    channels, hidden = sizes.get(0, 6), sizes.get(7, sizes.get("7", 10))
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert shapes["0.weight"] == (channels, 2, 3, 3)
    assert shapes["1.running_var"] == (channels,)
    assert shapes["3.body.0.weight"] == (channels, channels, 3, 3)
    assert shapes["4.weight"] == (channels, 1, 3, 3)
    assert shapes["7.weight"] == (hidden, 9 * channels)
    assert shapes["9.weight"] == (3, hidden)
    model.train()
    trained = model.state_dict()["9.weight"].copy()
    step(model, opt, X.astype(np.float64))
    assert (model.state_dict()["9.weight"] != trained).any(axis=0).sum() >= hidden // 2


def test_smaller_models_are_those_of_shrink():
    model, twin = network(), network()
    opt, other = cr.optim.Adam(model.params), cr.optim.Adam(twin.params)
    step(model, opt), step(twin, other)
    resize(model, {7: 4}, opt)
    norms = (twin[7].weight.astype(np.float64) ** 2).sum(axis=1)
    keep = norms >= np.sort(norms)[-4]
    cr.prune.shrink(twin, {7: keep}, other)
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        np.testing.assert_array_equal(a, b)
    for i, of_other in other.state_dict()["state"].items():
        np.testing.assert_array_equal(opt.state[i]["exp_avg"], of_other["exp_avg"])


def test_one_layer_grows_while_another_shrinks():
    model = nn.Sequential(
        nn.Linear(4, 6, rng=0), nn.ReLU(), nn.Linear(6, 5, rng=1), nn.ReLU(), nn.Linear(5, 2, rng=2)
    )
    twin = copy.deepcopy(model)
    resize(model, {0: 9, 2: 3}, rng=0)
    resize(twin, {2: 3})
    x = X[:, 0, 0, :4]
    np.testing.assert_allclose(model(x), twin(x), rtol=1e-5, atol=1e-6)
    assert model[2].weight.shape == (3, 9)
    np.testing.assert_array_equal(model[2].weight[:, 6:], 0)


KINDS = ["SGD", "Momentum", "Adam", "AdamW", "Adafactor", "Lion", "Muon", "RMSprop", "Rprop"]


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False, rng=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [1, 6])
def test_the_state_of_old_weights_stays_and_that_of_new_ones_begins(kind, first):
    model = nn.Sequential(linear(4, first), nn.ReLU(), linear(first, 3))
    opt = getattr(cr.optim, kind)(model.params)
    x = X[:, 0, 0, :4]
    for _ in range(3):
        step(model, opt, x)
    before = copy.deepcopy(opt.state_dict()["state"])
    fresh = nn.Sequential(linear(4, 8), nn.ReLU(), linear(8, 3))
    initial = getattr(cr.optim, kind)(fresh.params).state_dict()["state"]
    resize(model, {0: 8}, opt, rng=0)
    now = opt.state_dict()["state"]
    assert now.keys() == before.keys()
    for i, name in [(i, name) for i, buffers in now.items() for name in buffers]:
        old, value = before[i][name], now[i][name]
        place = tuple(slice(0, n) for n in old.shape)
        np.testing.assert_array_equal(value[place], old)
        new = np.ones(value.shape, np.bool_)
        new[place] = False
        np.testing.assert_array_equal(value[new], initial[i][name][new])
    step(model, opt, x)
    assert all(np.isfinite(value).all() for value in model.state_dict().values())


def test_the_same_seed_draws_the_same_weights():
    models = [network(), network()]
    for model in models:
        resize(model, {0: 8}, rng=3)
    np.testing.assert_array_equal(models[0][0].weight, models[1][0].weight)
    bound = 1 / np.sqrt(2 * 9)
    new = models[0][0].weight[6:]
    assert 0.5 * bound < np.abs(new).max() <= bound


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({0: 0}, r"sizes\[0\] must be at least 1"),
        ({0: 1.5}, r"sizes\[0\] must be an integer"),
        ({9: 4}, "sizes must be of layers that feed another"),
        ({"x": 4}, "sizes must be of layers 0 to 9"),
        ({2: 4}, "layer 2 must be a Linear or a Conv2d"),
        ({0: 4, "3.body.0": 5}, "sizes must name units once"),
        ({7: 4, 0: 10**12}, r"sizes\[0\] must be at most"),
        (3, "sizes must be a dict"),
    ],
)
def test_wrong_sizes_change_nothing(sizes, said):
    model = network()
    before = {name: value.copy() for name, value in model.state_dict().items()}
    with pytest.raises((TypeError, ValueError), match=said):
        resize(model, sizes)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_weights_that_are_nan_cannot_be_ranked():
    model = network()
    model[7].weight[0, 0] = np.nan
    with pytest.raises(ValueError, match="the weights of layer 7 in model must not be NaN"):
        resize(model, {7: 3})
    with pytest.raises(TypeError, match="model must be a Sequential"):
        resize(nn.Linear(3, 2), {0: 2})
    with pytest.raises(TypeError, match="optimizer must be an Optimizer"):
        resize(model, {0: 8}, optimizer=3)

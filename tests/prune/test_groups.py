"""Units that go together: masked and shrunk models give the same outputs."""

import numpy as np
import pytest

import compressrs as cr
from compressrs import nn


def residual_network(rng):
    """Filters that residuals tie together, depthwise, strided and flattened ones."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, rng=rng),
        nn.BatchNorm(8),
        nn.ReLU(),
        nn.Residual(
            nn.Conv2d(8, 12, 3, padding=1, rng=rng),
            nn.BatchNorm(12),
            nn.SiLU(),
            nn.Conv2d(12, 8, 3, padding=1, bias=False, rng=rng),
            nn.BatchNorm(8),
        ),
        nn.Conv2d(8, 8, 3, groups=8, padding=1, rng=rng),
        nn.GELU(),
        nn.Residual(
            nn.Conv2d(8, 6, 3, padding=1, stride=2, rng=rng),
            shortcut=nn.Conv2d(8, 6, 1, stride=2, rng=rng),
        ),
        nn.MaxPool(2),
        nn.Flatten(),
        nn.Linear(24, 10, rng=rng),
        nn.ReLU(),
        nn.Linear(10, 3, rng=rng),
    )


X = np.random.default_rng(5).standard_normal((6, 1, 8, 8)).astype(np.float32)
Y = np.array([0, 1, 2, 0, 1, 2])


def step(model, opt, ema=None):
    _, dy = nn.cross_entropy(model(X), Y)
    model.backward(dy)
    opt.step(model.grads)
    if ema is not None:
        ema.update()


def test_what_goes_together():
    model = residual_network(np.random.default_rng(0))
    found = {group.name: group for group in cr.prune.groups(model)}
    assert {name: group.size for name, group in found.items()} == {
        "0": 8,
        "3.body.0": 12,
        "6.body.0": 6,
        "9": 10,
    }
    # The residual ties the first filters to those of the body; the depthwise ones follow.
    tied = found["0"]
    assert set(tied.makers) == {"0", "3.body.3"}
    layers = {(member.layer, member.array, member.axis) for member in tied.members}
    assert {
        ("1", "running_var", 0),
        ("3.body.4", "weight", 0),
        ("4", "weight", 0),
        ("4", "bias", 0),
        ("6.body.0", "weight", 1),
        ("6.shortcut", "weight", 1),
    } <= layers
    assert ("9", "weight", 1) in {(m.layer, m.array, m.axis) for m in found["6.body.0"].members}
    assert [g.name for g in cr.prune.groups(model, outputs=True)][-1] == "11"


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_shrunk_model_gives_what_the_masked_one_gives_and_trains_on(scope):
    model = residual_network(np.random.default_rng(1))
    opt = cr.optim.AdamW(model.params, lr=0.01)
    ema = cr.optim.EMA(model.params, 0.9)
    schedule = cr.prune.LinearSchedule(final=0.5, end=4)
    pruner = cr.prune.GroupPruner(model, schedule, optimizer=opt, scope=scope)
    for _ in range(6):
        step(model, opt, ema)
        pruner.step()
    assert pruner.sparsity == pytest.approx(0.5, abs=0.05)
    # The state of the averages is masked as well once the weights are, up to their memory.
    ema.load_state_dict({"averages": [w.copy() for w in ema._weights], "step_count": 6})
    model.eval()
    masked = model(X)
    before = model.summary((1, 8, 8))
    pruner.shrink(ema=ema)
    np.testing.assert_allclose(model(X), masked, rtol=1e-4, atol=1e-5)
    after = model.summary((1, 8, 8))
    assert after.parameters < 0.6 * before.parameters
    assert after.multiply_adds < before.multiply_adds
    for w, a in zip(ema._weights, ema._averages, strict=True):
        np.testing.assert_array_equal(w, a)
    model.train()
    old = model[9].weight.copy()
    for _ in range(3):
        step(model, opt, ema)
        pruner.step()
    assert (model[9].weight != old).any()
    assert len(opt.state) == len(ema._averages)
    with ema.applied():
        assert model(X).shape == (6, 3)


def test_optimizer_state_of_what_stays_is_kept():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, rng=0), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3, rng=1)
    )
    opt = cr.optim.Adam(model.params)
    step(model, opt)
    keep = np.array([True, False, True, False])
    moment = opt.state[0]["exp_avg"].copy(), opt.state[2]["exp_avg"].copy()
    cr.prune.shrink(model, {"0": keep}, optimizer=opt)
    np.testing.assert_array_equal(opt.state[0]["exp_avg"], moment[0][keep])
    columns = np.repeat(keep, 36)
    np.testing.assert_array_equal(opt.state[2]["exp_avg"], moment[1][:, columns])
    assert int(opt.state[0]["step"]) == 1


def test_pruners_of_single_weights_follow():
    model = nn.Sequential(nn.Linear(6, 8, rng=0), nn.ReLU(), nn.Linear(8, 3, rng=1))
    weights = [model[0].weight, model[2].weight]
    opt = cr.optim.SGD(model.params, lr=0.1)
    pruner = cr.prune.Pruner(
        weights, cr.prune.LinearSchedule(final=0.5, end=9), cr.prune.Movement(), optimizer=opt
    )
    x = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)

    def train():
        model.backward(model(x) - 1)
        opt.step(model.grads)
        pruner.step([model.grads["0"]["weight"], model.grads["2"]["weight"]])

    for _ in range(4):
        train()
    masks = [mask.copy() for mask in pruner.masks]
    keep = np.arange(8) % 2 == 0
    cr.prune.shrink(model, {0: keep}, optimizer=opt, pruner=pruner)
    np.testing.assert_array_equal(pruner.masks[0], masks[0][keep])
    np.testing.assert_array_equal(pruner.masks[1], masks[1][:, keep])
    for _ in range(6):
        train()
    assert 0.4 < pruner.sparsity < 0.6
    assert (model[0].weight[~pruner.masks[0]] == 0).all()


def test_outputs_stay_unless_asked_for():
    model = nn.Sequential(nn.Linear(4, 5, rng=0), nn.ReLU(), nn.Linear(5, 3, rng=1))
    keep = np.array([True, False, True])
    with pytest.raises(ValueError, match="outputs=True removes some"):
        cr.prune.shrink(model, {2: keep})
    expected = model(np.ones((2, 4), np.float32))[:, keep]
    cr.prune.shrink(model, {2: keep}, outputs=True)
    np.testing.assert_array_equal(model(np.ones((2, 4), np.float32)), expected)


def test_what_cannot_be_removed_is_named_and_nothing_changes():
    class Own(nn.Layer):
        def forward(self, x):
            return x

    for reader, reason in (
        (Own(), r"layer 1 \(Own\) is none whose units can be followed"),
        (nn.LayerNorm(4), r"layer 1 \(LayerNorm\) normalizes over them"),
        (nn.Softmax(), "normalizes over them"),
    ):
        model = nn.Sequential(
            nn.Linear(3, 4, rng=0), reader, nn.Linear(4, 4, rng=1), nn.Linear(4, 2)
        )
        before = {name: id(array) for name, array in model.state_dict().items()}
        keep = np.array([True, False, True, True])
        with pytest.raises(TypeError, match=reason):
            cr.prune.shrink(model, {2: keep, 0: keep})
        assert {name: id(array) for name, array in model.state_dict().items()} == before
    model = nn.Sequential(
        nn.Linear(4, 4, rng=0), nn.Residual(nn.Linear(4, 4, rng=1)), nn.Linear(4, 2)
    )
    with pytest.raises(ValueError, match=r"keep must name units once, got 0 and '1.body.0'"):
        cr.prune.shrink(model, {0: keep, "1.body.0": keep})
    with pytest.raises(TypeError, match="layer 1 must be a Linear or a Conv2d, got Residual"):
        cr.prune.shrink(model, {1: keep})
    with pytest.raises(TypeError, match="ema must be of type EMA"):
        cr.prune.shrink(model, {0: keep}, ema=object())
    inputs = nn.Sequential(nn.Residual(nn.Linear(4, 4, rng=1)), nn.Linear(4, 2, rng=0))
    with pytest.raises(TypeError, match="they are the model's inputs"):
        cr.prune.shrink(inputs, {"0.body.0": keep})
    with pytest.raises(ValueError, match="model must have units that can be removed"):
        cr.prune.GroupPruner(inputs, cr.prune.OneShot(0.5))


def test_group_pruners_go_on_from_their_state():
    def make():
        model = residual_network(np.random.default_rng(2))
        opt = cr.optim.AdamW(model.params, lr=0.01)
        schedule = cr.prune.LinearSchedule(final=0.5, end=6)
        return model, opt, cr.prune.GroupPruner(model, schedule, optimizer=opt)

    model, opt, pruner = make()
    other, other_opt, other_pruner = make()
    for i in range(8):
        step(model, opt)
        pruner.step()
        if i == 3:
            other.load_state_dict(model.state_dict())
            other_opt.load_state_dict(opt.state_dict())
            other_pruner.load_state_dict(pruner.state_dict())
        elif i > 3:
            step(other, other_opt)
            other_pruner.step()
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, other.state_dict()[name])
    with pytest.raises(ValueError, match="made_with"):
        state = pruner.state_dict()
        other_pruner.load_state_dict({**state, "made_with": {**state["made_with"], "norm": 1}})

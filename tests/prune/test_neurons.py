"""Neurons that really go, with what an optimizer keeps of them."""

import numpy as np
import pytest

import compressrs as cr

SPARSE = cr.nn.SparseLinear.from_linear(cr.nn.Linear(4, 2, rng=0))


@pytest.mark.parametrize("state_dtype", ["float32", "int8"])
def test_neurons_that_go_take_all_of_theirs_along(state_dtype):
    rng = np.random.default_rng(0)
    w1, b1 = rng.standard_normal((80, 70)), rng.standard_normal(80)
    w2 = rng.standard_normal((60, 80 * 3))
    w1, b1, w2 = (a.astype(np.float32) for a in (w1, b1, w2))
    other = np.ones(3, np.float32)
    opt = cr.optim.Adam({"w1": w1, "rest": [b1, w2, other]}, state_dtype=state_dtype)
    grads = {"w1": w1 + 1, "rest": [b1 + 1, w2 + 1, other + 1]}
    mask = rng.random(w1.shape) < 0.8
    opt.set_masks({"w1": mask, "rest": [None, None, None]})
    opt.step(grads)
    before = {i: {k: v.copy() for k, v in s.items()} for i, s in opt.state.items()}
    keep = rng.random(80) < 0.5
    each = np.repeat(keep, 3)
    (v1, c1), (v2,) = cr.prune.neurons(keep, [w1, b1], [w2], optimizer=opt)
    np.testing.assert_array_equal(v1, w1[keep])
    np.testing.assert_array_equal(c1, b1[keep])
    np.testing.assert_array_equal(v2, w2[:, each])
    assert opt.param_groups[0]["params"][0] is v1
    assert opt.param_groups[0]["params"][3] is other
    assert [int(s["step"]) for s in opt.state.values()] == [1] * 4
    if state_dtype == "float32":
        for name in ("exp_avg", "exp_avg_sq"):
            np.testing.assert_array_equal(opt.state[0][name], before[0][name][keep])
            np.testing.assert_array_equal(opt.state[2][name], before[2][name][:, each])
    opt.step({"w1": v1 + 1, "rest": [c1 + 1, v2 + 1, other + 1]})
    # The masks went along, too.
    assert (v1[~mask[keep]] == 0).all()
    assert (v1[mask[keep]] != 0).all()
    opt.load_state_dict(opt.state_dict())


@pytest.mark.parametrize(("precision", "buffer"), [("kahan", "compensation"), ("master", "master")])
def test_what_belongs_to_weights_in_half_precision_goes_along(precision, buffer):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((8, 6)).astype(np.float16)
    opt = cr.optim.Adam([w], lr=1e-5, precision=precision)
    opt.step([w + 1])
    before = opt.state[0][buffer].copy()
    assert before.any()
    keep = np.arange(8) % 3 == 0
    (v,), _ = cr.prune.neurons(keep, [w], optimizer=opt)
    np.testing.assert_array_equal(opt.state[0][buffer], before[keep])
    opt.step([v + 1])


@pytest.mark.parametrize("rule", ["Adafactor", "Muon", "Lamb"])
def test_rows_and_columns_of_other_state(rule):
    rng = np.random.default_rng(0)
    w1, w2 = rng.standard_normal((8, 6)), rng.standard_normal((5, 8))
    opt = getattr(cr.optim, rule)([w1, w2])
    opt.step([w1 + 1, w2 + 1])
    before = {k: v.copy() for k, v in opt.state[0].items() if v.shape}
    keep = np.arange(8) % 2 == 0
    (v1,), (v2,) = cr.prune.neurons(keep, [w1], [w2], optimizer=opt)
    for name, values in before.items():
        expected = values[keep] if values.shape[0] == 8 else values
        np.testing.assert_array_equal(opt.state[0][name], expected)
    opt.step([v1 + 1, v2 + 1])
    assert opt.state[1].keys() == opt.state[0].keys()


def test_recurrent_weights_and_filters():
    rng = np.random.default_rng(0)
    keep = np.array([True, False, True])
    inner, outer = rng.standard_normal((3, 3)), rng.standard_normal((3, 5))
    (a, b), (c,) = cr.prune.neurons(keep, [outer, inner], [inner])
    np.testing.assert_array_equal(b, inner[np.ix_(keep, keep)])
    assert b is c
    np.testing.assert_array_equal(a, outer[keep])
    kernel, after = rng.standard_normal((3, 2, 5, 5)), rng.standard_normal((4, 3, 3, 3))
    (k,), (f,) = cr.prune.neurons(keep, [kernel], [after])
    np.testing.assert_array_equal(k, kernel[keep])
    np.testing.assert_array_equal(f, after[:, keep])


def test_neurons_refuse_what_does_not_fit():
    w, after = np.ones((4, 3)), np.ones((2, 4))
    opt = cr.optim.SGD([w, after], lr=0.1, momentum=0.9)
    keep = np.array([True, False, True, True])
    for args, error, message in (
        ((keep.astype(int), [w]), TypeError, "keep must be a boolean array of one axis"),
        ((np.zeros(4, bool), [w]), ValueError, "keep must keep at least one neuron of 4"),
        ((keep, [after]), ValueError, r"outputs\[0\] must have 4 rows"),
        ((keep, [w], [w]), ValueError, r"inputs\[0\] must have a multiple of 4 columns"),
        ((keep, [w, w], [after]), ValueError, r"outputs\[1\] must not be given twice"),
        ((keep, [3], [after]), TypeError, r"outputs\[0\] must be a NumPy array"),
        ((keep, [np.array(3.0)]), ValueError, "must have 4 rows"),
    ):
        with pytest.raises(error, match=message):
            cr.prune.neurons(*args, optimizer=opt)
    assert [p.shape for p in opt.param_groups[0]["params"]] == [(4, 3), (2, 4)]
    opt.step([w + 1, after + 1])


def test_a_shrunk_model_is_the_masked_one():
    rng = np.random.default_rng(0)
    model = cr.nn.Sequential(
        cr.nn.Linear(10, 40, rng=0),
        cr.nn.ReLU(),
        cr.nn.Linear(40, 30, rng=1, bias=False),
        cr.nn.ReLU(),
        cr.nn.Linear(30, 5, rng=2),
    )
    opt = cr.optim.Adam(model.params)
    x = rng.standard_normal((7, 10)).astype(np.float32)

    def step():
        model.backward(model(x))
        opt.step(model.grads)

    step()
    keep = {
        0: cr.prune.neuron_mask(model[0].weight, 0, 0.75).any(axis=1),
        2: cr.prune.neuron_mask(model[2].weight, 0, 0.5).any(axis=1),
    }
    model[0].weight[~keep[0]] = 0
    model[0].bias[~keep[0]] = 0
    model[2].weight[~keep[2]] = 0
    y = model(x)
    cr.prune.shrink(model, keep, optimizer=opt)
    assert [model[i].weight.shape for i in (0, 2, 4)] == [(10, 10), (15, 10), (5, 15)]
    assert model[0].bias.shape == (10,)
    np.testing.assert_allclose(model(x), y, rtol=1e-5, atol=1e-6)
    before = model[4].weight.copy()
    step()
    assert (model[4].weight != before).any()
    assert {k: v["weight"].shape for k, v in model.params.items()} == {
        "0": (10, 10),
        "2": (15, 10),
        "4": (5, 15),
    }


def test_what_cannot_be_shrunk():
    model = cr.nn.Sequential(cr.nn.Linear(3, 4, rng=0), cr.nn.ReLU(), SPARSE)
    keep = np.array([True, True, False, True])
    for position, error, message in (
        (2, TypeError, "layer 2 must be a Linear or a Conv2d without groups, got SparseLinear"),
        (5, ValueError, "keep must be of layers 0 to 2"),
        (0, TypeError, r"layer 0 makes units that cannot be removed: layer 2 \(SparseLinear\)"),
        (1, TypeError, "layer 1 must be a Linear or a Conv2d without groups, got ReLU"),
    ):
        with pytest.raises(error, match=message):
            cr.prune.shrink(model, {position: keep})
    assert model[0].weight.shape == (4, 3)
    # All layers or none.
    model = cr.nn.Sequential(*(cr.nn.Linear(4, 4, rng=i) for i in range(3)))
    before = [layer.weight for layer in model]
    for bad, error, message in (
        (keep[:3], ValueError, r"the weight that keep\[1\] is for must have 3 rows"),
        (np.zeros(4, bool), ValueError, r"keep\[1\] must keep at least one"),
        (np.ones(4), TypeError, r"keep\[1\] must be a boolean array"),
    ):
        with pytest.raises(error, match=message):
            cr.prune.shrink(model, {0: keep, 1: bad})
    for layer, w in zip(model, before, strict=True):
        assert layer.weight is w
    cr.prune.shrink(model, {0: keep, 1: keep})
    assert [layer.weight.shape for layer in model] == [(3, 4), (3, 3), (4, 3)]


def test_no_model_or_no_masks_to_shrink():
    model = cr.nn.Sequential(cr.nn.Linear(3, 4, rng=0), cr.nn.Linear(4, 2, rng=1))
    with pytest.raises(TypeError, match="model must be a Sequential, got Linear"):
        cr.prune.shrink(model[0], {})
    with pytest.raises(TypeError, match="keep must be a dict of masks"):
        cr.prune.shrink(model, [np.ones(4, bool)])


def test_what_wraps_an_optimizer_is_none():
    w = np.ones((4, 4))
    wrapped = cr.optim.Lookahead(cr.optim.SGD(w, lr=0.1))
    for call in (
        lambda: cr.prune.MagnitudePruner(w, cr.prune.OneShot(), optimizer=wrapped),
        lambda: cr.prune.neurons(np.arange(4) > 1, [w], optimizer=wrapped),
        lambda: cr.prune.SET(SPARSE, wrapped),
    ):
        with pytest.raises(TypeError, match="got Lookahead; if it wraps one, pass the wrapped"):
            call()


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "int8"])
def test_state_of_masked_weights_stays_0_when_it_is_no_longer_coded(state_dtype):
    """Below 4,096 elements 8-bit state becomes float32; codes of squares have no exact 0."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((50, 100)).astype(np.float32)
    opt = cr.optim.Adagrad(w, state_dtype=state_dtype)
    mask = rng.random(w.shape) < 0.5
    opt.set_masks(mask)
    opt.step(rng.standard_normal(w.shape).astype(np.float32))
    keep = np.arange(50) < 20
    (smaller,), _ = cr.prune.neurons(keep, [w], optimizer=opt)
    assert not opt.state[0]["sum"][~mask[keep]].any()
    other = cr.optim.Adagrad(smaller.copy(), state_dtype=state_dtype)
    other.load_state_dict(opt.state_dict())
    np.testing.assert_array_equal(other.state[0]["sum"], opt.state[0]["sum"])

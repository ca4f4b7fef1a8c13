"""Patterns that change while layers train, tickets, neurons that go, sensitivity."""

import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import compressrs as cr
from tests.reference import prune as reference


def sparse_layer(inputs=12, outputs=9, sparsity=0.7, seed=0, dtype=np.float32):
    dense = cr.nn.Linear(inputs, outputs, rng=seed, dtype=dtype)
    mask = cr.prune.masks(cr.prune.Random(seed).scores(dense.weight), sparsity)[0]
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

    # Codes are decoded, so that what they stand for can be compared.
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
        cr.prune.SET([layer], opt, seed=0, **kwargs)
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
        return layer, opt, cr.prune.SET(layer, opt, frequency=2, seed=1)

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
    again = cr.prune.SET(half, opt, frequency=2, seed=77)
    again.load_state_dict(state)
    train(half, opt, again, 5)
    np.testing.assert_array_equal(half.weight.to_dense(), whole.weight.to_dense())
    for bad in ({}, {"step_count": 1}, {"step_count": "x"}, {"step_count": 1, "rng": 3}):
        with pytest.raises(ValueError, match="state_dict must"):
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
    # No place to grow: nothing changes.
    full = cr.nn.SparseLinear.from_linear(cr.nn.Linear(3, 2, rng=0))
    assert cr.prune.SET(full, cr.optim.SGD(full.params, lr=0.1), frequency=1).step()


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
    model = cr.nn.Sequential(cr.nn.Linear(3, 4, rng=0), cr.nn.ReLU(), sparse_layer(4, 2))
    keep = np.array([True, True, False, True])
    for position, error, message in (
        (2, ValueError, "whose neurons are the model's outputs"),
        (5, ValueError, "keep must be of layers 0 to 2"),
        (0, TypeError, "layer 2 must be a Linear, got SparseLinear"),
        (1, TypeError, "layer 1 must be a Linear, got ReLU"),
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
        lambda: cr.prune.SET(sparse_layer(), wrapped),
    ):
        with pytest.raises(TypeError, match="got Lookahead; of what wraps one, pass the one"):
            call()


@pytest.mark.parametrize("with_optimizer", [True, False])
def test_tickets_go_back_to_where_they_began(with_optimizer):
    rng = np.random.default_rng(0)
    w, bias = rng.standard_normal((5, 4)), np.zeros(5)
    opt = cr.optim.Adam([w, bias])
    opt.step([w + 1, bias + 1])
    start = w.copy(), bias.copy(), opt.state[0]["exp_avg"].copy()
    ticket = cr.prune.LotteryTicket([w, bias], opt if with_optimizer else None)
    for _ in range(3):
        opt.step([w + 1, bias + 1])
    mask = cr.prune.magnitude_mask(w, sparsity=0.5)
    ticket.rewind([mask, None])
    np.testing.assert_array_equal(w, np.where(mask, start[0], 0))
    np.testing.assert_array_equal(bias, start[1])
    if with_optimizer:
        assert int(opt.state[0]["step"]) == 1
        np.testing.assert_array_equal(opt.state[0]["exp_avg"], np.where(mask, start[2], 0))
        opt.step([w + 1, bias + 1])
        assert (w[~mask] == 0).all()
    ticket.rewind()
    np.testing.assert_array_equal(bias, start[1])


def test_bad_tickets():
    w = np.ones((2, 2))
    ticket = cr.prune.LotteryTicket(w)
    w[...] = 2
    with pytest.raises(ValueError, match="masks must be 1, one for each"):
        ticket.rewind([None, None])
    with pytest.raises(TypeError, match="mask of params must be boolean"):
        ticket.rewind(w)
    with pytest.raises(ValueError, match=r"must have shape \(2, 2\)"):
        ticket.rewind(np.ones(4, bool))
    with pytest.raises(ValueError, match="must be a parameter of the optimizer"):
        cr.prune.LotteryTicket(w, cr.optim.SGD(np.ones(3), lr=0.1))
    with pytest.raises(TypeError, match="optimizer must be an Optimizer"):
        cr.prune.LotteryTicket(w, 3)
    assert (w == 2).all()


def test_sensitivity_prunes_each_layer_alone():
    rng = np.random.default_rng(0)
    weights = {"a": rng.standard_normal((20, 30)), "b": rng.standard_normal((10, 20))}
    before = {k: w.copy() for k, w in weights.items()}
    seen = []

    def evaluate():
        seen.append({k: 1 - np.count_nonzero(w) / w.size for k, w in weights.items()})
        return float(sum(np.abs(w).sum() for w in weights.values()))

    scan = cr.prune.sensitivity(weights, evaluate, [0.0, 0.5, 0.9])
    assert scan.names == ["a", "b"]
    assert [round(s["a"], 6) for s in seen] == [0, 0, 0.5, 0.9, 0, 0, 0]
    assert [round(s["b"], 6) for s in seen] == [0, 0, 0, 0, 0, 0.5, 0.9]
    for i, (name, w) in enumerate(before.items()):
        np.testing.assert_array_equal(weights[name], w)
        for j, s in enumerate((0.0, 0.5, 0.9)):
            lost = np.abs(w[~reference.mask(w, s)]).sum()
            assert scan.values[i, j] == pytest.approx(scan.baseline - lost)
    lines = scan.table().splitlines()
    assert lines[0] == "| Layer | 0 | 0.5 | 0.9 |"
    assert len(lines) == 4


def test_sensitivity_by_other_scores_and_its_plot(tmp_path):
    w = np.array([[1.0, 2.0, 3.0, 4.0]])
    score = cr.prune.Movement()
    score.update(w, np.array([[-5.0, 1.0, 1.0, 1.0]]))
    scan = cr.prune.sensitivity(w, lambda: float(w.sum()), [0.75], score)
    assert scan.values[0, 0] == 1
    scan.plot(tmp_path / "scan.svg")
    assert "<svg" in (tmp_path / "scan.svg").read_text()
    groups = cr.prune.Neurons(1)
    assert cr.prune.sensitivity(w, lambda: w.sum(), [0.5], granularity=groups).values[0, 0] == 7


def test_sensitivity_puts_weights_back_whatever_happens():
    w = np.arange(4.0)
    calls = iter([1.0, KeyboardInterrupt()])

    def evaluate():
        value = next(calls)
        if isinstance(value, BaseException):
            raise value
        return value

    with pytest.raises(KeyboardInterrupt):
        cr.prune.sensitivity(w, evaluate, [0.5])
    np.testing.assert_array_equal(w, np.arange(4.0))
    with pytest.raises(ValueError, match="sparsities must be in"):
        cr.prune.sensitivity(w, lambda: 0.0, [1.0])
    with pytest.raises(TypeError, match="evaluate must return a number, got 'x'"):
        cr.prune.sensitivity(w, lambda: "x")
    with pytest.raises(TypeError, match="sparsities must be a sequence"):
        cr.prune.sensitivity(w, lambda: 0.0, 0.5)
    with pytest.raises(TypeError, match="evaluate must be callable"):
        cr.prune.sensitivity(w, 3)
    w.flags.writeable = False
    with pytest.raises(ValueError, match="must be writable"):
        cr.prune.sensitivity(w, lambda: 0.0)


SCORES = {
    "random": lambda: cr.prune.Random(0),
    "snip": cr.prune.Snip,
    "taylor": cr.prune.Taylor,
    "movement": cr.prune.Movement,
    "own": lambda: Own(),
}


class Own(cr.prune.Score):
    def scores(self, weights):
        return [np.arange(w.size, dtype=w.dtype).reshape(w.shape) for w in weights]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    "granularity", [None, cr.prune.NM(2, 8), cr.prune.Blocks((2, 4), "sum"), cr.prune.Neurons(1)]
)
@pytest.mark.parametrize("scope", ["global", "layer", "row", cr.prune.erdos_renyi])
def test_pruners_by_any_score(score, granularity, scope):
    if scope == "row" and granularity and not isinstance(granularity, cr.prune.NM):
        return
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((16, 24)), rng.standard_normal((8, 16))

    def start():
        weights = [a.copy(), b.copy()]
        opt = cr.optim.Adam(weights)
        schedule = cr.prune.LinearSchedule(final=0.75, begin=1, end=9, frequency=2)
        pruner = cr.prune.Pruner(
            weights, schedule, SCORES[score](), scope, opt, granularity=granularity
        )
        return weights, opt, pruner

    def train(weights, opt, pruner, steps):
        removed = [~mask for mask in pruner.masks]
        for t in steps:
            grads = [np.random.default_rng(t).standard_normal(w.shape) for w in weights]
            opt.step(grads)
            pruner.step(grads)
            for w, mask, gone in zip(weights, pruner.masks, removed, strict=True):
                assert (w[~mask] == 0).all()
                assert not (mask & gone).any(), "what was removed stays removed"
                gone |= ~mask

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cr.prune.EmptyLayerWarning)
        weights, opt, pruner = start()
        train(weights, opt, pruner, range(12))
        assert pruner.sparsity == pytest.approx(0.75, abs=0.05)
        first, first_opt, halfway = start()
        train(first, first_opt, halfway, range(5))
        kept = [w.copy() for w in first], first_opt.state_dict(), halfway.state_dict()
        again, again_opt, resumed = start()
        for w, value in zip(again, kept[0], strict=True):
            w[...] = value
        again_opt.load_state_dict(kept[1])
        resumed.load_state_dict(kept[2])
        train(again, again_opt, resumed, range(5, 12))
    for w, truth in zip(again, weights, strict=True):
        np.testing.assert_array_equal(w, truth)


def test_pruners_by_gradients_need_them():
    w = np.arange(1.0, 5.0)
    pruner = cr.prune.Pruner(w, cr.prune.OneShot(0.5), cr.prune.Snip())
    with pytest.raises(TypeError, match=r"step needs grads, of which Snip\(\) is made"):
        pruner.step()
    with pytest.raises(ValueError, match="grads must have the shapes"):
        pruner.step(np.ones(3))
    with pytest.raises(ValueError, match="must be finite, got NaN"):
        pruner.step(np.array([np.nan, 1, 1, 1]))
    assert pruner.step_count == 0
    with pytest.raises(ValueError, match="update must come first"):
        pruner.score.scores(w)
    assert (w == np.arange(1.0, 5.0)).all()
    with pytest.raises(TypeError, match="score must be a Score"):
        cr.prune.Pruner(w, cr.prune.OneShot(), "movement")
    with pytest.raises(TypeError, match="granularity must be a Granularity"):
        cr.prune.Pruner(w, cr.prune.OneShot(), granularity=4)


@pytest.mark.parametrize("steps", [0, 1])
def test_a_step_that_fails_leaves_the_score_as_it_was(steps):
    w = np.arange(1.0, 5.0)
    schedule = cr.prune.OneShot(0.5, begin=steps)

    def two(shapes, sparsity):
        return [sparsity, 0]

    pruner = cr.prune.Pruner(w, schedule, cr.prune.Movement(), two)
    for _ in range(steps):
        pruner.step(np.ones(4))
    before = pruner.state_dict()
    with pytest.raises(ValueError, match="scope must give 1 sparsities"):
        pruner.step(np.ones(4))
    after = pruner.state_dict()
    sums = (state["score_state"]["sums"] for state in (before, after))
    for a, b in zip(*sums, strict=True):
        np.testing.assert_array_equal(a, b)
    assert after["step_count"] == before["step_count"] == steps


def test_schedules_that_fall_or_are_over():
    w = np.arange(1.0, 9.0)
    shares = iter([0.5, 0.25, 0.5, 0.75, 0.0])
    pruner = cr.prune.MagnitudePruner(w, lambda step: next(shares))
    found = []
    for _ in range(5):
        pruner.step()
        found.append(pruner.sparsity)
    assert found == [0.5, 0.5, 0.5, 0.75, 0.75]
    schedule = cr.prune.IterativeSchedule(0.5, 0.75, begin=1, frequency=2)
    # Steps may be asked for in any order; after the end it stays.
    assert [schedule(t) for t in (9999, 0, 3, 1, 2, 3)] == [0.75, 0, 0.75, 0.5, 0.5, 0.75]


@given(st.floats(0.01, 0.9), st.floats(0, 0.98), st.integers(0, 9), st.integers(1, 7))
def test_iterative_schedule(rate, final, begin, frequency):
    schedule = cr.prune.IterativeSchedule(rate, final, begin, frequency)
    for t in range(begin, begin + 12 * frequency):
        assert schedule(t) == pytest.approx(
            reference.iterative(t, rate, final, begin, frequency), abs=1e-12
        )
    assert schedule(schedule.end) == final
    assert schedule.rounds == 1 or schedule(schedule.end - 1) < final
    assert eval(repr(schedule), vars(cr.prune))(begin) == schedule(begin)


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.3, 0.5, 0.7])
def test_rounds_that_come_out_even(rate):
    for rounds in range(1, 9):
        schedule = cr.prune.IterativeSchedule(rate, 1 - (1 - rate) ** rounds, frequency=10)
        assert schedule.rounds == rounds
        assert schedule.end == 10 * (rounds - 1)


def test_bad_iterative_schedules():
    for kwargs, message in (
        ({"rate": 0}, "rate must be"),
        ({"rate": 1}, "rate must be"),
        ({"final": 1}, "final must be"),
        ({"begin": -1}, "begin must be"),
        ({"frequency": 0}, "frequency must be"),
    ):
        with pytest.raises(ValueError, match=message):
            cr.prune.IterativeSchedule(**kwargs)

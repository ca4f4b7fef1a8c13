"""Pruning, sensitivity and calibration of ONNX models, which onnxruntime runs."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import compressrs as cr  # noqa: E402
from compressrs import onnx as conn  # noqa: E402
from tests.onnx.models import Builder, branches, cnn, mlp, normal, run  # noqa: E402

X = normal(50, 6)
WEIGHTS = ("w1", "w2", "w3")


def outputs_first(model):
    """Return the weights of `mlp` with outputs along the first axis."""
    return {n: np.ascontiguousarray(model[n] if n == "w1" else model[n].T) for n in WEIGHTS}


def forward(model, x):
    h = np.maximum(x @ model["w1"].T + model["b1"], 0)
    return np.tanh(h @ model["w2"] + model["b2"]) @ model["w3"] + model["b3"]


GRANULARITIES = {
    "weights": None,
    "2:4": cr.prune.NM(1, 2),
    "blocks": cr.prune.Blocks((1, 2)),
    "neurons": cr.prune.Neurons(0),
    "inputs": cr.prune.Neurons(1),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize(
    ("scope", "granularity"),
    [
        (scope, granularity)
        for scope in ("global", "layer", "row")
        for granularity in GRANULARITIES
        # Whole groups have no rows.
        if scope != "row" or granularity in ("weights", "2:4")
    ],
)
def test_masks_are_those_of_arrays_with_outputs_first(scope, granularity, dtype):
    chosen = GRANULARITIES[granularity]
    model = conn.load(mlp(dtype))
    before = outputs_first(model)
    scores = {name: np.abs(w) for name, w in before.items()}
    expected = cr.prune.masks(scores, 0.3, scope, chosen)
    found = conn.prune(model, 0.3, scope=scope, granularity=chosen)
    assert [*found] == [*WEIGHTS]
    for name, mask in outputs_first(found).items():
        np.testing.assert_array_equal(mask, expected[name])
        assert found[name].shape == model[name].shape
    for name, w in outputs_first(model).items():
        np.testing.assert_array_equal(w, np.where(expected[name], before[name], 0))
    y = run(model.proto(), X.astype(dtype))
    atol = 0.1 if dtype == np.float16 else 1e-4
    np.testing.assert_allclose(y, forward(model, X.astype(dtype)), rtol=atol, atol=atol)


def test_only_weights_with_two_axes_are_pruned_by_default():
    assert [*conn.prune(conn.load(cnn()), 0.5)] == ["c1", "d", "c2", "w3", "w4"]
    assert [*conn.prune(conn.load(cnn()), 0.5, ["w3", "b3"])] == ["w3", "b3"]
    assert sorted(conn.prune(conn.load(branches()), 0.5)) == [
        "choice.else_branch.w", "choice.then_branch.w", "outer",
    ]  # fmt: skip


def test_dtypes_are_compared_in_one():
    """bfloat16 and float16 have no common type but float32."""
    import ml_dtypes

    b = Builder()
    w = {"f": normal(6, 4), "h": normal(6, 4, seed=1).astype(np.float16)}
    w["g"] = normal(6, 4, seed=2).astype(ml_dtypes.bfloat16)
    x, parts = b.input("x", ["n", 6]), []
    for name, values in w.items():
        parts.append(b.node("MatMul", x, b.node("Cast", b.array(name, values), to=1)))
    model = conn.load(b.model(b.node("Sum", *parts)))
    masks = conn.prune(model, 0.5)
    everything = np.abs(np.concatenate([np.ravel(v.astype(np.float32)) for v in w.values()]))
    limit = np.sort(everything)[36]
    for name, values in w.items():
        np.testing.assert_array_equal(masks[name], np.abs(values.astype(np.float32)) >= limit)


def test_calibrated_scores():
    model = conn.load(mlp())
    statistics = conn.input_statistics(model, [X[:20], (X[20:],)])
    assert [*statistics] == [*WEIGHTS] and all(s.count == 50 for s in statistics.values())
    h = np.maximum(X @ model["w1"].T + model["b1"], 0)
    np.testing.assert_allclose(statistics["w1"].norms, np.linalg.norm(X, axis=0), rtol=1e-5)
    np.testing.assert_allclose(statistics["w2"].norms, np.linalg.norm(h, axis=0), rtol=1e-5)
    again = conn.input_statistics(model, X, ["w2"], gram=True)
    np.testing.assert_allclose(again["w2"].gram, h.T @ h, rtol=1e-4)
    by_name = conn.input_statistics(model, [{"x": X}])
    np.testing.assert_allclose(by_name["w3"].norms, statistics["w3"].norms, rtol=1e-5)
    before = outputs_first(model)
    score = cr.prune.Wanda([*statistics.values()])
    expected = cr.prune.masks(score.scores(before), 0.5, "row")
    conn.prune(model, 0.5, [*statistics], score=score, scope="row")
    for name, w in outputs_first(model).items():
        np.testing.assert_array_equal(w, np.where(expected[name], before[name], 0))


def test_statistics_of_shared_weights_are_of_all_inputs():
    b = Builder()
    x, w = b.input("x", ["n", 6]), b.array("w", normal(6, 6))
    h = b.node("MatMul", b.node("MatMul", x, w), w)
    model = conn.load(b.model(h))
    found = conn.input_statistics(model, X)["w"]
    expected = (X**2).sum(0) + ((X @ model["w"]) ** 2).sum(0)
    assert found.count == 100
    np.testing.assert_allclose(found.norms**2, expected, rtol=1e-5)


def test_sensitivity():
    model = conn.load(mlp())
    before = {name: array.copy() for name, array in model.items()}
    target = run(mlp(), X)
    scan = conn.sensitivity(model, lambda f: float(((f(X) - target) ** 2).mean()), [0.25, 0.75])
    assert scan.names == [*WEIGHTS] and scan.baseline == 0
    for i, name in enumerate(WEIGHTS):
        for j, sparsity in enumerate((0.25, 0.75)):
            other = conn.load(mlp())
            conn.prune(other, sparsity, [name])
            expected = ((run(other.proto(), X) - target) ** 2).mean()
            np.testing.assert_allclose(scan.values[i, j], expected, rtol=1e-5)
    for name, array in model.items():
        np.testing.assert_array_equal(array, before[name])


def test_sensitivity_restores_after_an_exception():
    model = conn.load(mlp())
    before = model["w2"].copy()
    calls = []

    def evaluate(f):
        calls.append(f(X))
        if len(calls) == 4:
            raise RuntimeError("stop")
        return 0.0

    with pytest.raises(RuntimeError, match="stop"):
        conn.sensitivity(model, evaluate, [0.5], ["w1", "w2", "w3"])
    np.testing.assert_array_equal(model["w2"], before)


def test_runner():
    b = Builder()
    a, c = b.input("a", ["n", 2]), b.input("c", ["n", 2])
    total, product = b.node("Add", a, c), b.node("Mul", a, c)
    f = conn.Runner(conn.load(b.model(total, product)))
    assert f.inputs == ("a", "c") and len(f.outputs) == 2
    x, y = normal(3, 2), normal(3, 2, seed=1)
    for found in (f(x, y), f(x, c=y), f(c=y, a=x)):
        np.testing.assert_array_equal(found[0], x + y)
        np.testing.assert_array_equal(found[1], x * y)
    with pytest.raises(TypeError, match="takes 2 inputs, got 3"):
        f(x, y, x)
    with pytest.raises(TypeError, match="each once, got a"):
        f(x, a=x)
    with pytest.raises(TypeError, match="each once, got z"):
        f(x, z=y)
    with pytest.raises(TypeError, match="c must be a NumPy array"):
        f(x, [[1, 2]])
    with pytest.raises(ValueError, match="onnxruntime cannot run the model"):
        f(x, y.astype(np.float64))
    with pytest.raises(ValueError, match="onnxruntime cannot run the model"):
        f(x)


def test_defaults_of_inputs_are_pruned_and_may_be_given():
    b = Builder()
    x, w = b.input("x", ["n", 6]), b.input("w", [6, 4])
    b.array(w, normal(6, 4))
    model = conn.load(b.model(b.node("MatMul", x, w)))
    conn.prune(model, 0.5)
    f = conn.Runner(model)
    np.testing.assert_allclose(f(X), X @ model["w"], rtol=1e-4, atol=1e-5)
    assert not f(X, w=np.zeros((6, 4), np.float32)).any()


def test_refused():
    model = conn.load(cnn())
    before = model.proto().SerializeToString()
    for error, match, call in (
        (TypeError, "model must be a compressrs.onnx.Model", lambda: conn.prune(cnn(), 0.5)),
        (TypeError, "names must be a sequence", lambda: conn.prune(model, 0.5, "w3")),
        (ValueError, "at least one array, got none", lambda: conn.prune(model, 0.5, [])),
        (ValueError, "got 'w9'", lambda: conn.prune(model, 0.5, ["w9"])),
        (ValueError, "names must be different", lambda: conn.prune(model, 0.5, ["w3", "w3"])),
        (ValueError, "sparsity must", lambda: conn.prune(model, 1.5)),
        (TypeError, "score must be a Score", lambda: conn.prune(model, 0.5, score=3)),
        (TypeError, "granularity must be", lambda: conn.prune(model, 0.5, granularity=3)),
        (ValueError, "axis must name axes", lambda: conn.prune(
            model, 0.5, granularity=cr.prune.Neurons(5))),
        (TypeError, "evaluate must be callable", lambda: conn.sensitivity(model, 3)),
        (ValueError, "sparsities must", lambda: conn.sensitivity(model, lambda f: 0.0, [2.0])),
        (TypeError, "batches must be", lambda: conn.input_statistics(model, 3)),
        (ValueError, "names must be of weights", lambda: conn.input_statistics(model, X, ["c1"])),
        (TypeError, "options must be", lambda: conn.Runner(model, options=3)),
        (TypeError, "providers must be", lambda: conn.Runner(model, providers="CPU")),
    ):  # fmt: skip
        with pytest.raises(error, match=match):
            call()
    model["w3"][0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        conn.prune(model, 0.5)
    model["w3"][0, 0] = normal(6, 20)[0, 0]
    assert model.proto().SerializeToString() == before


def test_integers_are_no_weights():
    b = Builder()
    h = b.node("Reshape", b.input("x", ["n", 6]), b.array("to", np.array([-1, 3])))
    model = conn.load(b.model(h))
    with pytest.raises(TypeError, match="to must be of floating-point numbers, got int64"):
        conn.prune(model, 0.5, ["to"])
    with pytest.raises(ValueError, match=r"of floating-point numbers .*, got none$"):
        conn.prune(model, 0.5)

"""Measured tables against NumPy, resumed runs, and the whole loop for models and checkpoints."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

import compressrs as cr
from compressrs import search
from compressrs.checkpoint import Rule
from compressrs.quantize import Scheme

OPTIONS = [
    search.Option(),
    search.Option(Scheme(8)),
    search.Option(Scheme(4, granularity="group", group_size=8)),
    search.Option(sparsity=0.75),
    search.Option(nm=(2, 4)),
    search.Option(Scheme(8), sparsity=0.5),
    search.Option(rank=3),
]


def perceptron(seed=0):
    rng = np.random.default_rng(seed)
    return cr.nn.Sequential(
        cr.nn.Linear(16, 24, rng=rng), cr.nn.ReLU(), cr.nn.Linear(24, 8, rng=rng)
    )


def rows(n=200, features=16):
    rng = np.random.default_rng(1)
    mixed = rng.standard_normal((n, features)) @ rng.standard_normal((features, features))
    return mixed.astype(np.float32)


def test_errors_are_those_of_outputs():
    model, x = perceptron(), rows()
    found = search.measure(model, OPTIONS, x)
    assert found.names == ["0", "2"]
    hidden = [x, np.maximum(model[0](x), 0)]
    statistics = [cr.prune.InputStatistics(h.shape[1], gram=True) for h in hidden]
    for layer, h, seen, errors, options in zip(
        (model[0], model[2]), hidden, statistics, found.errors, found.options, strict=True
    ):
        assert options == OPTIONS
        seen.update(h)
        w = layer.weight.astype(np.float64)
        made = [
            w,
            cr.quantize.gptq(layer.weight, seen, OPTIONS[1].scheme).dequantize(),
            cr.quantize.gptq(layer.weight, seen, OPTIONS[2].scheme).dequantize(),
        ]
        sparse = layer.weight.copy()
        cr.prune.sparsegpt(sparse, seen, 0.75)
        made.append(sparse)
        y = h.astype(np.float64) @ w.T
        for new, error in zip(made, errors, strict=False):
            lost = h.astype(np.float64) @ (new - w).T
            assert error == pytest.approx((lost**2).sum() / (y**2).sum(), rel=1e-6, abs=1e-12)


def test_the_rank_is_the_best_for_the_inputs():
    model, x = perceptron(), rows(5000)
    w = model[0].weight.astype(np.float64)
    found = search.measure(model, [search.Option(rank=r) for r in (1, 3, 16)], x)
    y = x @ w.T
    singular = np.linalg.svd(y, compute_uv=False)
    best = [(singular[r:] ** 2).sum() / (singular**2).sum() for r in (1, 3, 16)]
    # Damping moves it a little from the optimum.
    assert found.errors[0] == pytest.approx(best, rel=0.05, abs=1e-9)
    assert found.options[1] == [search.Option(rank=1), search.Option(rank=3)]
    assert found.costs["multiply_adds"][0].tolist() == [40.0, 120.0, 640.0]


def test_costs_are_those_of_the_layers_made():
    model, x = perceptron(), rows()
    found = search.measure(model, OPTIONS, x, latency=2)
    first = dict(zip(OPTIONS, found.costs["bytes"][0], strict=True))
    assert first[OPTIONS[0]] == (16 * 24 + 24) * 4
    assert first[OPTIONS[1]] == 16 * 24 + 24 * 4 + 24 * 4
    assert first[OPTIONS[2]] == 16 * 24 // 2 + 24 * 2 * 4 + 24 * 4
    multiply_adds = dict(zip(OPTIONS, found.costs["multiply_adds"][0], strict=True))
    assert multiply_adds[OPTIONS[0]] == 16 * 24
    assert multiply_adds[OPTIONS[3]] == 16 * 24 / 4
    assert multiply_adds[OPTIONS[4]] == 16 * 24 / 2
    assert all((t > 0).all() for t in found.costs["latency"])
    assert all((n >= 0).all() for n in found.noise)
    within = found.allocate({"bytes": 1500, "multiply_adds": 400})
    assert within.cost[0] <= 1500 and within.cost[1] <= 400
    assert "int4 group 8" in found.table()


def test_layers_in_layers_are_found_and_replaced():
    model = cr.nn.Sequential(
        cr.nn.Linear(16, 8, rng=0),
        cr.nn.Residual(cr.nn.Linear(8, 8, rng=1), cr.nn.ReLU(), cr.nn.Linear(8, 8, rng=2)),
        cr.nn.LayerNorm(8),
    )
    x = rows()
    small = search.compress(model, 700, x)
    assert list(small.options()) == ["0", "1.body.0", "1.body.2", "other layers"]
    assert small.costs["bytes"] <= 700
    assert len({type(layer) for _, layer in small.model.named_layers()} - {cr.nn.Linear}) > 2
    assert "forward" not in vars(model[0])
    np.testing.assert_array_equal(model(x), model(x))
    assert np.corrcoef(small.model(x).ravel(), model(x).ravel())[0, 1] > 0.9


def test_sensitivities_are_losses():
    model, x = perceptron(), rows()
    truth = model(x)
    calls = []

    def loss(changed):
        calls.append(changed)
        return float(((changed(x) - truth) ** 2).sum())

    options = OPTIONS[:4]
    output = search.measure(model, options, x)
    layer = search.measure(model, options, x, evaluate=loss)
    assert len(calls) == 3
    option = search.measure(model, options, x, evaluate=loss, sensitivity="option")
    assert len(calls) == 3 + 1 + 6
    for one, other, every in zip(output.errors, layer.errors, option.errors, strict=True):
        factor = other[-1] / one[-1]
        np.testing.assert_allclose(other, factor * one)
        assert every[-1] == pytest.approx(other[-1])
    # A layer that does not change the loss of these data still has some weight.
    ignored = search.measure(model, options, x, evaluate=lambda m: float(m[0] is model[0]))
    assert all((e[1:] > 0).all() for e in ignored.errors)


def test_a_loss_that_is_not_finite_is_never_chosen():
    model, x = perceptron(), rows()

    def loss(changed):
        return float("nan") if isinstance(changed[0], cr.nn.QuantizedLinear) else 0.0

    options = OPTIONS[:2]
    found = search.measure(model, options, x, evaluate=loss, sensitivity="option")
    assert found.errors[0][1] > 1e5 and found.errors[1][1] == 0
    assert found.allocate(2300).choice == [0, 1]


def test_what_was_measured_is_not_measured_again(tmp_path, monkeypatch):
    model, x, folder = perceptron(), rows(), tmp_path / "cache"
    found = search.measure(model, OPTIONS, x, cache=folder)
    files = sorted(folder.iterdir())
    assert len(files) == 2
    # One file is lost, one is damaged: both are measured again, and agree.
    files[0].unlink()
    files[1].write_text(files[1].read_text()[:-9])
    again = search.measure(model, OPTIONS, x, cache=folder)
    monkeypatch.setattr(search._layers, "build", None)
    kept = search.measure(model, OPTIONS, x, cache=folder)
    for other in (again, kept):
        for a, b in zip(found.errors, other.errors, strict=True):
            np.testing.assert_array_equal(a, b)
    monkeypatch.undo()
    # Other inputs are other measurements.
    search.measure(model, OPTIONS, x[:100], cache=folder)
    assert len(list(folder.iterdir())) == 4


def test_processes_measure_the_same():
    model, x = perceptron(), rows()
    one, two = (search.measure(model, OPTIONS, x, workers=n) for n in (1, 2))
    for a, b in zip(one.errors, two.errors, strict=True):
        np.testing.assert_array_equal(a, b)


KILLED = """
import os, signal, sys
from pathlib import Path

def killed(path):
    os.kill(os.getpid(), signal.SIGKILL)

def killed_once(path):
    if not Path(path).exists():
        Path(path).touch()
        killed(path)
    return 7

if __name__ == "__main__":
    from compressrs import _progress
    from compressrs.search import _jobs

    for name, call in (("ac", killed_once), ("bd", killed)):
        jobs = [_jobs.Job(key, key, call, (sys.argv[1],)) for key in name]
        try:
            advance = _progress.Advance("measuring")
            print(sorted(_jobs.run(jobs, _jobs.Cache(None), 2, advance).items()))
        except RuntimeError as error:
            print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_killed_processes_are_replaced(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    command = [sys.executable, script, tmp_path / "once"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "[('a', 7), ('c', 7)]"
    assert second.startswith("processes were killed 3 times while measuring b, d")


def test_a_full_disk_is_said_and_what_was_kept_stays(tmp_path, monkeypatch):
    from compressrs.search import _jobs

    def full(path, *parts):
        if len(list(path.parent.iterdir())) == 1:
            raise OSError(28, "No space left on device", str(path))
        path.write_bytes(b"".join(parts))

    monkeypatch.setattr(_jobs, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        search.measure(perceptron(), OPTIONS, rows(), cache=tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    assert len(json.loads(kept.read_text())["result"]) == len(OPTIONS)


def test_a_correction_finds_what_errors_hide():
    errors = [np.array([0.0, 1.0])] * 6
    costs = {"bytes": [np.array([2.0, 1.0])] * 6}
    found = search.Measurements(list("abcdef"), [["x", "y"]] * 6, errors, costs)
    weight = np.array([1, 9, 2, 8, 3, 7])

    def loss(choice):
        return float(weight @ choice)

    corrected = search.correct(found, 9, loss, trials=60)
    assert loss(corrected.allocation.choice) == 1 + 2 + 3
    assert corrected.trials[0].choice == tuple(found.allocate(9).choice)
    assert all(t.predicted == 3 for t in corrected.trials)
    again = search.correct(found, 9, loss, trials=60)
    np.testing.assert_array_equal(corrected.coefficients, again.coefficients)
    assert found.allocate(9, coefficients=corrected.coefficients) == corrected.allocation
    assert corrected.table().count("\n") == len(corrected.trials) + 1
    assert math.isnan(search.correct(found, 12, lambda choice: math.nan, trials=3).correlation)


def test_the_rank_correlation_is_spearmans():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    values = np.round(rng.uniform(0, 5, (2, 30)))
    trials = [search.Trial((), a, b) for a, b in values.T]
    found = search.Correction(np.ones(1), None, trials).correlation
    assert found == pytest.approx(stats.spearmanr(*values).statistic)


def digits():
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y


@pytest.fixture(scope="module")
def classifier():
    x, y = digits()
    model = cr.nn.Sequential(cr.nn.Linear(64, 48, rng=0), cr.nn.ReLU(), cr.nn.Linear(48, 10, rng=1))
    opt = cr.optim.Adam(model.params, lr=3e-3)
    rng = np.random.default_rng(0)
    for _ in range(400):
        at = rng.integers(0, 1200, 64)
        _, gradient = cr.nn.cross_entropy(model(x[at]), y[at])
        model.backward(gradient)
        opt.step(model.grads)
    return model.eval()


def accuracy(model, x, y):
    return float((model(x).argmax(axis=1) == y).mean())


def test_a_model_within_a_budget_is_trained_on(classifier):
    x, y = digits()
    before = classifier.copy()
    budget = 3500
    options = [search.Option(sparsity=s) for s in (0.85, 0.9, 0.95)] + [search.Option(Scheme(8))]

    def loss(model):
        return cr.nn.cross_entropy(model(x[1200:]), y[1200:])[0]

    plain = search.compress(classifier, budget, x[:500], evaluate=loss, options=options)
    trained = search.compress(
        classifier, budget, x[:500], evaluate=loss, data=(x[:1200], y[:1200]),
        loss=cr.nn.cross_entropy, epochs=3, measured=plain.measurements,
    )  # fmt: skip
    distilled = search.compress(
        classifier, budget, x[:500], data=(x[:1200], None), loss=cr.distill.kd_loss, epochs=1,
        measured=plain.measurements,
    )  # fmt: skip
    for found in (plain, trained, distilled):
        assert search._layers.nbytes(found.model) == found.costs["bytes"] <= budget
    assert trained.loss_after < plain.loss_after
    assert accuracy(trained.model, x[1200:], y[1200:]) > 0.85
    np.testing.assert_array_equal(classifier[0].weight, before[0].weight)


def test_codes_train_on_from_what_they_are(classifier):
    x, _ = digits()
    options = [search.Option(Scheme(4)), search.Option(Scheme(4, symmetric=False))]
    for option in options:
        arguments = {"options": [option], "data": (x[:64], None), "loss": cr.nn.mse_loss}
        found = search.compress(classifier, 1e6, x[:500], epochs=0, **arguments)
        plain = search.compress(classifier, 1e6, x[:500], options=[option])
        np.testing.assert_allclose(found.model(x), plain.model(x), rtol=1e-4, atol=1e-4)


def test_the_smallest_model_with_a_drop(classifier):
    x, y = digits()

    def loss(model):
        return -accuracy(model, x[1200:], y[1200:])

    found = search.compress(classifier, None, x[:500], evaluate=loss, max_drop=0.02)
    assert found.loss_after - found.loss_before <= 0.02
    assert found.costs["bytes"] < 0.3 * search._layers.nbytes(classifier)
    # What is cheaper and was evaluated lost more.
    cheaper = [value for cost, value in found.evaluated if cost < found.allocation.cost]
    assert cheaper and all(value > found.loss_before + 0.02 for value in cheaper)
    with pytest.raises(ValueError, match="max_drop must allow"):
        options = [search.Option(Scheme(2))]
        search.compress(
            classifier, None, x[:500], evaluate=loss, max_drop=0.0, options=options
        )  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(0)
    arrays = {
        "a.weight": rng.normal(0, 0.05, (96, 64)).astype(np.float32),
        "a.bias": rng.normal(0, 1, 96).astype(np.float32),
        "b.weight": rng.standard_t(3, (48, 96)).astype(np.float32),
        "ids": np.arange(50),
    }
    arrays["tied.weight"] = arrays["a.weight"].copy()
    path = tmp_path / "model.safetensors"
    safetensors.save_file(arrays, path)
    return path, arrays


RULES = [
    Rule(),
    Rule(quantize="int8"),
    Rule(quantize="int4", group_size=16),
    Rule(pattern="3:10"),
    Rule(quantize="int4", method="gptq"),
]


def test_tensors_are_measured_by_the_encoder(checkpoint, tmp_path):
    path, arrays = checkpoint
    found = search.measure(path, RULES, cache=tmp_path / "cache")
    assert found.same == {"tied.weight": "a.weight"}
    assert set(found.names) == {"a.weight", "a.bias", "b.weight", "ids"}
    for name, options, errors in zip(found.names, found.options, found.errors, strict=True):
        if not name.endswith("weight"):
            assert options == [Rule()] and errors.tolist() == [0.0]
            continue
        # Without calibration there is no GPTQ, and 10 does not divide 64 or 96.
        assert options == RULES[:3]
        for rule, error in zip(options, errors, strict=True):
            new = tmp_path / "new.safetensors"
            cr.checkpoint.compress(path, new, cr.checkpoint.Recipe(rule))
            with cr.checkpoint.open(new) as c:
                lost = c[name].astype(np.float64) - arrays[name]
            truth = (lost**2).sum() / (arrays[name].astype(np.float64) ** 2).sum()
            assert error == pytest.approx(truth, rel=1e-6)


def test_calibration_weighs_errors(checkpoint):
    path, arrays = checkpoint
    seen = cr.prune.InputStatistics(64, gram=True)
    x = rows(300, 64)
    seen.update(x)
    found = search.measure(path, RULES, {"a": seen})
    at = found.names.index("a.weight")
    assert found.options[at] == [*RULES[:3], RULES[4]]
    new = cr.checkpoint.Rule(quantize="int8")
    w = arrays["a.weight"]
    q = cr.quantize.quantize(w, Scheme(8)).dequantize()
    y = x.astype(np.float64) @ w.T.astype(np.float64)
    lost = ((x.astype(np.float64) @ (q - w).T.astype(np.float64)) ** 2).sum() / (y**2).sum()
    assert found.errors[at][found.options[at].index(new)] == pytest.approx(lost, rel=0.05)
    with pytest.raises(ValueError, match="features"):
        search.measure(path, RULES, {"b.weight": seen})
    with pytest.raises(TypeError, match="calibration"):
        search.measure(path, RULES, {"b.weight": cr.prune.InputStatistics(96)})


def test_a_checkpoint_is_within_its_budget(checkpoint, tmp_path):
    path, arrays = checkpoint
    whole = path.stat().st_size
    measured = search.measure(path, RULES[:4], latency=1)
    for share in (0.9, 0.5, 0.3, 0.05):
        target = tmp_path / f"{share}.safetensors"
        try:
            found = search.compress(
                path, share * whole, destination=target, options=RULES[:4], measured=measured
            )
        except search.InfeasibleError:
            assert share == 0.05 and not target.exists()
            continue
        size = target.stat().st_size
        assert found.costs["bytes"] == size <= share * whole
        with cr.checkpoint.open(target) as c:
            assert set(c) == set(arrays)
            np.testing.assert_array_equal(c["tied.weight"], c["a.weight"])
            np.testing.assert_array_equal(c["a.bias"], arrays["a.bias"])
    left = {p.name for p in tmp_path.iterdir()} - {"model.safetensors"}
    assert left == {f"{share}.safetensors" for share in (0.9, 0.5, 0.3)}
    fast = search.compress(
        path, {"bytes": whole, "latency": 1.0}, destination=tmp_path / "x.safetensors",
        options=RULES[:4],
    )  # fmt: skip
    assert fast.costs["latency"] > 0 and "int" in fast.table() + "int"


def test_losses_of_checkpoints(checkpoint, tmp_path):
    path, arrays = checkpoint
    x = rows(50, 64)

    def loss(found):
        lost = [np.asarray(found[name], np.float64) - arrays[name] for name in ("a.weight",)]
        return float(sum((x @ d.T).std() for d in lost))

    target = tmp_path / "small.safetensors"
    found = search.compress(
        path, None, destination=target, options=RULES[:4], evaluate=loss, max_drop=0.02,
        sensitivity="layer",
    )  # fmt: skip
    assert found.loss_before == 0 and found.loss_after <= 0.02
    assert found.options()["b.weight"] == RULES[2]
    with pytest.raises(ValueError, match="destination must not exist"):
        search.compress(path, 1e6, destination=tmp_path)
    with pytest.raises(FileNotFoundError):
        search.compress(path, 1e6, destination=tmp_path / "no" / "x.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": None}, "budget or max_drop"),
        ({"max_drop": 0.1}, "budget or max_drop"),
        ({"budget": {"speed": 1}}, "budget must be one of"),
        ({"budget": {}}, "budget must be of at least one cost"),
        ({"trials": 3}, "evaluate must be given"),
        ({"sensitivity": "layer"}, "needs evaluate"),
        ({"destination": "x"}, "destination must be None"),
        ({"data": (np.ones((2, 16)), None)}, "data and loss"),
        ({"calibration": np.ones((3, 7), np.float32)}, "calibration must be inputs"),
        ({"calibration": np.ones((0, 16), np.float32)}, "calibration must hold inputs"),
        ({"options": []}, "options must hold"),
        ({"options": [search.Option(rank=99)]}, "options must have one that applies"),
        ({"workers": 0}, "workers"),
        ({"budget": 10}, "budget must be at least"),
    ],
)
def test_bad_arguments_are_refused_by_name(change, message):
    given = {"model": perceptron(), "budget": 5000, "calibration": rows()}
    with pytest.raises(ValueError, match=message):
        search.compress(**{**given, **change})


@pytest.mark.parametrize(
    ("budget", "error", "message"),
    [
        ("8kB", TypeError, "budget must be a number of bytes, such as 8000 for 8 kB, .* got '8kB'"),
        ({"bytes": "8kB"}, TypeError, r"budget\['bytes'\] must be a number"),
        (-1, ValueError, "budget must be a finite number >= 0, got -1"),
    ],
)
def test_budgets_are_checked_before_anything_is_measured(budget, error, message, monkeypatch):
    monkeypatch.setattr("compressrs.search.compressing.measure", lambda *_, **__: pytest.fail())
    with pytest.raises(error, match=message):
        search.compress(perceptron(), budget, rows())


def test_options_that_exclude_each_other_are_refused():
    for wrong in (
        {"sparsity": 0.5, "nm": (2, 4)},
        {"rank": 2, "sparsity": 0.5},
        {"nm": (5, 4)},
        {"sparsity": 1.0},
        {"scheme": Scheme(dtype="codebook"), "sparsity": 0.5},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong)) if len(wrong) == 1 else "must"):
            search.Option(**wrong)
    with pytest.raises(TypeError, match="options"):
        search.measure(perceptron(), [Rule()], rows())

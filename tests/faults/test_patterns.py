"""Patterns of sparse layers are part of a model's state: they are loaded, all or nothing."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import compressrs as cr
from compressrs import nn
from compressrs.sparse.formats import FORMATS

ROOT = Path(__file__).parents[2]
X = np.random.default_rng(0).standard_normal((32, 12)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 4, 32)


def make(method, follower=None):
    rng = np.random.default_rng(2)

    def sparse(dense):
        mask = cr.prune.masks(cr.prune.Random(3).scores(dense.weight), 0.6)
        return nn.SparseLinear.from_linear(dense, mask=mask)

    model = nn.Sequential(
        sparse(nn.Linear(12, 16, rng=rng)),
        nn.ReLU(),
        nn.Residual(sparse(nn.Linear(16, 16, rng=rng)), nn.ReLU()),
        nn.Linear(16, 4, rng=rng),
    )
    optimizer = cr.optim.Adam(model.params, lr=0.01)
    options = {"rng": 4} if method == "SET" else {}
    dynamic = getattr(cr.prune, method)(model, optimizer, frequency=2, end=31, **options)
    parts = {"model": model, "optimizer": optimizer, "dynamic": dynamic}
    if follower == "ema":
        parts["ema"] = cr.optim.EMA(model.params, 0.9)
    if follower == "Lookahead":
        parts["wrapper"] = cr.optim.Lookahead(optimizer)
    if follower == "pruner":
        weights = [model[0].weight.data, model[3].weight]
        schedule = cr.prune.LinearSchedule(final=0.5, begin=20, end=40)
        parts["a_pruner"] = cr.prune.MagnitudePruner(weights, schedule, optimizer=optimizer)
    return cr.TrainState(**parts)


def train(run, steps):
    p = run.parts
    for _ in range(steps):
        model = p["model"]
        _, dy = nn.cross_entropy(model(X), Y)
        model.backward(dy)
        p["optimizer"].step(model.grads)
        p["dynamic"].step()
        run.step_count += 1


def bits(run):
    return pickle.dumps(
        [
            (name, np.asarray(leaf).tobytes() if isinstance(leaf, np.ndarray) else repr(leaf))
            for part in run.parts.values()
            for name, leaf in cr._arrays.flatten(part.state_dict(), "state")
        ]
    )


@pytest.mark.parametrize("method", ["SET", "RigL"])
def test_a_run_with_changing_patterns_resumes_and_goes_back(tmp_path, method):
    whole = make(method)
    train(whole, 12)
    path = tmp_path / "run.safetensors"
    whole.save(path)
    at_12 = bits(whole)
    train(whole, 12)
    end = bits(whole)

    other = make(method)
    assert not np.array_equal(
        other.parts["model"][0].weight.indices, whole.parts["model"][0].weight.indices
    )
    other.load(path)
    assert bits(other) == at_12
    train(other, 12)
    assert bits(other) == end

    # In the same process, with the optimizer, the layer and the method still connected.
    whole.load(path)
    assert bits(whole) == at_12
    train(whole, 12)
    assert bits(whole) == end
    model = whole.parts["model"]
    assert model[0].weight.data is model.params["0"]["weight"]
    np.testing.assert_allclose(
        model[0](X),
        X @ model[0].weight.to_dense().T + model[0].bias,
        rtol=1e-4,
        atol=1e-5,
    )


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.faults.test_patterns import make, train
run, path = make("RigL"), Path(sys.argv[1])
if list(path.parent.glob("run-*")):
    run.load(path)
print("ready", flush=True)
while run.step_count < 40:
    train(run, 1)
    run.step_count -= 1
    run.every(1, path)
    print(run.step_count, flush=True)
"""


def test_a_killed_run_of_rigl_ends_with_the_same_bits(tmp_path):
    whole = make("RigL")
    train(whole, 40)
    path = tmp_path / "run.safetensors"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for stop in (b"9\n", b"22\n", b""):
        code = CHILD.format(root=str(ROOT))
        with subprocess.Popen(
            [sys.executable, "-c", code, str(path)], env=environment, stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if line == stop:
                    child.kill()
            child.wait()
    assert child.returncode == 0
    resumed = make("RigL")
    resumed.load(path)
    assert resumed.step_count == 40
    assert bits(resumed) == bits(whole)


@pytest.mark.parametrize("follower", ["ema", "Lookahead", "pruner"])
def test_what_holds_a_value_per_entry_follows_a_loaded_pattern(tmp_path, follower):
    run = make("SET", follower)
    train(run, 3)
    holder = next(v for k, v in run.parts.items() if k in ("ema", "wrapper", "a_pruner"))
    run.save(tmp_path / "run.safetensors")
    saved = bits(run)

    def use(run, holder):
        if follower == "ema":
            holder.update()
        elif follower == "pruner":
            holder.step()
        else:
            model = run.parts["model"]
            model.backward(np.ones_like(model(X)))
            holder.step(model.grads)

    # Patterns have changed since it was made: its values belong to other entries.
    with pytest.raises(ValueError, match="rearranged"):
        use(run, holder)
    # Loaded along with the pattern, they belong to this one.
    fresh = make("SET", follower)
    other = fresh.parts[next(k for k, v in run.parts.items() if v is holder)]
    pattern = {k: v.copy() for k, v in fresh.parts["model"].state_dict().items()}
    fresh.load(tmp_path / "run.safetensors")
    assert bits(fresh) == saved
    use(fresh, other)
    # A pattern without the values that belong to it is noticed.
    fresh.parts["model"].load_state_dict(pattern)
    with pytest.raises(ValueError, match="rearranged"):
        use(fresh, other)


def test_schedule_free_runs_are_resumed_with_another_pattern(tmp_path):
    def make(seed):
        dense = nn.Linear(12, 4, rng=0)
        mask = cr.prune.masks(cr.prune.Random(seed).scores(dense.weight), 0.6)
        model = nn.Sequential(nn.SparseLinear.from_linear(dense, mask=mask))
        optimizer = cr.optim.ScheduleFree(model.params, lambda p: cr.optim.Adam(p, lr=0.01))
        return cr.TrainState(model=model, optimizer=optimizer)

    def steps(run):
        model = run.parts["model"]
        for _ in range(3):
            model.backward(nn.cross_entropy(model(X), Y)[1])
            run.parts["optimizer"].step(model.grads)

    run, other = make(0), make(1)
    steps(run)
    run.save(tmp_path / "run.safetensors")
    other.load(tmp_path / "run.safetensors")
    steps(run)
    steps(other)
    assert bits(other) == bits(run)


def test_a_run_that_does_not_fit_leaves_patterns_and_what_follows_them():
    source, run = make("RigL", "ema"), make("RigL", "ema")
    train(source, 8)
    run.parts["other"] = np.zeros(3)
    before = bits(cr.TrainState(**{k: run.parts[k] for k in ("model", "optimizer", "ema")}))
    state = source.state_dict()
    state["parts"]["other"] = {"": np.zeros(4)}
    outside = cr.optim.EMA(run.parts["model"].params)
    with pytest.raises(ValueError, match="the state of other does not fit"):
        run.load_state_dict(state)
    after = bits(cr.TrainState(**{k: run.parts[k] for k in ("model", "optimizer", "ema")}))
    assert after == before
    run.parts["ema"].update()
    outside.update()


def layers():
    dense = np.arange(1, 65, dtype=np.float32).reshape(8, 8)
    for name, cls in FORMATS.items():
        if name == "csr":
            yield (
                name,
                [
                    cls.from_dense(dense, mask=np.eye(8, k=k) + np.eye(8, k=k - 8) > 0)
                    for k in (1, 2)
                ],
            )
        elif name == "bsr":
            blocks = [np.kron(m, np.ones((4, 4), np.float32)) for m in (np.eye(2), 1 - np.eye(2))]
            yield (
                name,
                [cls.from_dense(dense * block.astype(np.float32), (4, 4)) for block in blocks],
            )
        elif name == "nm":
            even = np.tile([True, True, False, False], (8, 2))
            yield name, [cls.from_dense(dense, mask=mask) for mask in (even, ~even)]
        else:
            yield name, []  # a new format fails the test until it is added here


@pytest.mark.parametrize(("name", "matrices"), list(layers()))
def test_patterns_of_every_format_are_loaded(tmp_path, name, matrices):
    assert len(matrices) == 2 and matrices[0].data.shape == matrices[1].data.shape
    source, target = (nn.Sequential(nn.SparseLinear(m)) for m in matrices)
    data = target[0].weight.data
    expected = source[0].weight.to_dense()
    assert not np.array_equal(expected, target[0].weight.to_dense())
    original = {k: v.copy() for k, v in target.state_dict().items()}
    target.load_state_dict(source.state_dict())
    assert target[0].weight.data is data is target.params["0"]["weight"]
    assert np.array_equal(target[0].weight.to_dense(), expected)
    x = np.eye(8, dtype=np.float32)
    assert np.array_equal(target(x), source(x))
    target.load_state_dict(original)
    source.save(tmp_path / "model.safetensors")
    target.load(tmp_path / "model.safetensors")
    assert np.array_equal(target[0].weight.to_dense(), expected)
    # Loading the same pattern again changes nothing but values.
    weight = target[0].weight
    target.load_state_dict(source.state_dict())
    assert target[0].weight is weight

    before = {k: v.tobytes() for k, v in target.state_dict().items()}
    state = {k: v.copy() for k, v in original.items()}
    for key, change in (
        ("0.weight.indices", lambda a: a + 100),
        ("0.weight.indices", lambda a: a - 100),
        ("0.weight.indices", lambda a: a.astype(np.float32)),
        ("0.weight.indices", lambda a: a[:-1]),
        ("0.weight.indptr", lambda a: a[::-1]),
        ("0.weight.indptr", lambda a: a + 1),
        ("0.weight", lambda a: a[:-1]),
    ):
        with pytest.raises((TypeError, ValueError), match="state_dict"):
            target.load_state_dict({**state, key: change(state[key])})
        assert {k: v.tobytes() for k, v in target.state_dict().items()} == before
        assert target[0].weight is weight


def test_index_dtypes_may_differ_and_the_number_of_entries_may_not():
    dense = np.eye(4, dtype=np.float32)
    data, indices, indptr = cr.sparse.CSRMatrix.from_dense(dense)._parts
    wide = cr.sparse.CSRMatrix((data, indices.astype(np.int64), indptr.astype(np.int64)), (4, 4))
    layer = nn.SparseLinear(wide)
    other = nn.SparseLinear(cr.sparse.CSRMatrix.from_dense(dense[::-1].copy()))
    layer.load_state_dict(other.state_dict())
    assert np.array_equal(layer.weight.to_dense(), dense[::-1])
    more = nn.SparseLinear(cr.sparse.CSRMatrix.from_dense(np.tri(4, dtype=np.float32)))
    with pytest.raises(ValueError, match=r"shape \(4,\), got \(10,\).*nn\.load"):
        layer.load_state_dict(more.state_dict())


def test_a_run_saved_after_shrink_says_how_it_is_resumed(tmp_path):
    def make(model=None):
        model = model or nn.Sequential(nn.Linear(12, 16, rng=0), nn.ReLU(), nn.Linear(16, 4, rng=1))
        optimizer = cr.optim.Adam(model.params)
        pruner = cr.prune.GroupPruner(model, cr.prune.OneShot(0.5), optimizer=optimizer)
        return cr.TrainState(model=model, optimizer=optimizer, pruner=pruner)

    def steps(run):
        model = run.parts["model"]
        for _ in range(3):
            model.backward(nn.cross_entropy(model(X), Y)[1])
            run.parts["optimizer"].step(model.grads)

    run = make()
    steps(run)
    run.parts["pruner"].step()
    run.parts["pruner"].shrink()
    steps(run)
    run.save(tmp_path / "run.safetensors")
    run.parts["model"].save(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"compressrs\.nn\.load"):
        make().load(tmp_path / "run.safetensors")
    resumed = make(nn.load(tmp_path / "model.safetensors"))
    resumed.load(tmp_path / "run.safetensors")
    steps(run)
    steps(resumed)
    assert bits(resumed) == bits(run)

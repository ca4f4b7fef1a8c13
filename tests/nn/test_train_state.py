"""Runs that go on from a file as if nothing had happened."""

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import compressrs as cr
from compressrs import nn

ROOT = Path(__file__).parents[2]
X = np.random.default_rng(0).standard_normal((64, 1, 8, 8)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 3, 64)


def make(state_dtype="float32"):
    rng = np.random.default_rng(2)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, rng=rng),
        nn.BatchNorm(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2, rng=rng),
        nn.Linear(512, 40, rng=rng),
        nn.GELU(),
        nn.Linear(40, 3, rng=rng),
    )
    optimizer = cr.optim.AdamW(model.params, lr=0.01, state_dtype=state_dtype)
    scheduler = cr.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    weights = [model[5].weight, model[7].weight]
    pruner = cr.prune.Pruner(
        weights,
        cr.prune.CubicSchedule(final=0.8, begin=2, end=30),
        cr.prune.Movement(),
        optimizer=optimizer,
    )
    return cr.TrainState(
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        ema=cr.optim.EMA(model.params, 0.9, warmup=True),
        pruner=pruner,
        rng=np.random.default_rng(3),
        best=np.zeros(2),
    )


def train(run, steps):
    p = run.parts
    model = p["model"]
    for _ in range(steps):
        rows = p["rng"].permutation(64)[:16]
        loss, dy = nn.cross_entropy(model(X[rows]), Y[rows])
        model.backward(dy)
        p["optimizer"].step(model.grads)
        p["scheduler"].step()
        p["pruner"].step([model.grads["5"]["weight"], model.grads["7"]["weight"]])
        p["ema"].update()
        p["best"][:] = loss, run.step_count
        run.step_count += 1


def leaves(tree):
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in leaves(value)]
    if isinstance(tree, (list, tuple)):
        return [leaf for value in tree for leaf in leaves(value)]
    return [tree]


def same(a, b):
    a, b = leaves(a.state_dict()), leaves(b.state_dict())
    return len(a) == len(b) and all(
        np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("state_dtype", ["float32", "int8"])
def test_a_run_goes_on_to_the_same_bits_with_another_number_of_threads(tmp_path, state_dtype):
    whole, half = make(state_dtype), make(state_dtype)
    threads = cr.get_num_threads()
    try:
        cr.set_num_threads(1)
        train(whole, 25)
        train(half, 12)
        half.save(tmp_path / "run.safetensors")
        cr.set_num_threads(3)
        resumed = make(state_dtype)
        train(resumed, 2)
        resumed.load(tmp_path / "run.safetensors")
        assert resumed.step_count == 12 and same(resumed, half)
        train(resumed, 13)
    finally:
        cr.set_num_threads(threads)
    assert same(resumed, whole)


def test_files_are_rotated_and_the_latest_is_loaded(tmp_path):
    run, path = make(), tmp_path / "run.safetensors"
    written = [run.every(2, path, keep=2) for _ in range(9)]
    assert [file is not None for file in written] == [False, True] * 4 + [False]
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "run-00000006.safetensors",
        "run-00000008.safetensors",
    ]
    resumed = make()
    resumed.load(path)
    assert resumed.step_count == 8
    # One that goes back leaves no later file.
    resumed.load(tmp_path / "run-00000006.safetensors")
    resumed.every(1, path)
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "run-00000006.safetensors",
        "run-00000007.safetensors",
    ]
    for bad in ({"n": 0}, {"n": 1, "keep": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            run.every(path=path, **bad)


def test_what_does_not_fit_changes_nothing(tmp_path):
    run, path = make(), tmp_path / "run.safetensors"
    train(run, 3)
    run.save(path)
    data = path.read_bytes()
    other = make()
    train(other, 2)
    before = make()
    train(before, 2)
    for damaged in (data[:-3], data[:50], b"", data.replace(b'"1"', b'"7"', 1)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"run\.safetensors"):
            other.load(path)
        assert same(other, before)
    path.write_bytes(data)
    fewer = cr.TrainState(model=other.parts["model"])
    with pytest.raises(ValueError, match="must hold a run with the parts"):
        fewer.load(path)
    # The last part is the one that does not fit: those before are put back.
    parts = {**other.parts, "best": np.zeros(3)}
    with pytest.raises(ValueError, match="the state of best does not fit"):
        cr.TrainState(**parts).load(path)
    assert same(other, before)
    with pytest.raises(OSError, match="absent"):
        run.load(tmp_path / "absent.safetensors")
    for parts, error in (
        ({}, ValueError),
        ({"model": 3}, TypeError),
        ({"x": {"a": "b"}}, TypeError),
    ):
        with pytest.raises(error, match="must"):
            cr.TrainState(**parts)


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.nn.test_train_state import make, train
run, path = make(), Path(sys.argv[1])
if list(path.parent.glob("run-*")):
    run.load(path)
print("ready", run.step_count, flush=True)
while run.step_count < 60:
    train(run, 1)
    run.step_count -= 1
    run.every(1, path, keep=2)
run.save(path.with_name("end.safetensors"))
"""


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path):
    whole = make()
    train(whole, 60)
    path, rng = tmp_path / "run.safetensors", np.random.default_rng(4)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = 0
    for _ in range(40):
        code = CHILD.format(root=str(ROOT))
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], env=environment, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stdout.readline().startswith(b"ready")
        if killed < 6:
            time.sleep(float(rng.uniform(0.02, 0.15)))
            child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        killed += child.returncode != 0
        if child.returncode == 0:
            break
    resumed = make()
    resumed.load(tmp_path / "end.safetensors")
    assert same(resumed, whole)
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".")] or killed


def test_arrays_in_foreign_byte_order_are_restored(tmp_path):
    values = np.arange(5.0)
    for dtype in (">f4", "<f4", ">f8", ">i2", ">i8"):
        run = cr.TrainState(a=values.astype(dtype), b=[values.astype(dtype)])
        run.save(tmp_path / "run.safetensors")
        array = np.zeros(5, dtype)
        other = cr.TrainState(a=array, b=[np.zeros(5, np.dtype(dtype).newbyteorder())])
        other.load(tmp_path / "run.safetensors")
        assert np.array_equal(array, values) and array.dtype == dtype
        assert np.array_equal(other.parts["b"][0], values)


def test_a_refused_state_of_a_later_part_leaves_averages():
    """Its masks have been set, which reach averages whose own state has not been loaded yet."""
    run, pruned = (
        cr.TrainState(rng=parts.pop("rng"), **parts) for parts in (make().parts, make().parts)
    )
    train(run, 2)
    train(pruned, 20)
    state = copy.deepcopy(pruned.state_dict())
    state["parts"]["rng"]["bit_generator"] = "MT19937"
    before = copy.deepcopy(run.state_dict())
    with pytest.raises(ValueError, match="the state of rng does not fit"):
        run.load_state_dict(state)
    for ours, expected in zip(leaves(run.state_dict()), leaves(before), strict=True):
        np.testing.assert_array_equal(ours, expected)

"""Checkpoints: written by some ranks, loaded on others, and what a killed writer leaves."""

import copy
import json
import shutil
import warnings

import numpy as np
import pytest

import compressrs as cr
from compressrs.distributed import RankError, ShardedOptimizer, checkpoint, read_state, run_local

from .runs import MICROBATCHES, gradients, parameters, plain, same, shapes_of, sharded

pytest.importorskip("safetensors")

CASES = {
    "Adam": (cr.optim.Adam, {}),
    "Adam-int8": (cr.optim.Adam, {"state_dtype": "int8"}),
    "NAdam": (cr.optim.NAdam, {}),
    "Adafactor": (cr.optim.Adafactor, {}),
    "Muon": (cr.optim.Muon, {}),
}


def masks_of(rule):
    rng = np.random.default_rng(3)
    return {name: rng.random(shape) < 0.7 for name, shape in shapes_of(rule).items()}


def further(opt, params):
    for i in opt.indices:
        opt.accumulate(i, gradients(params, 9, i))
    opt.step(max_grad_norm=0.3)


@pytest.mark.parametrize("case", CASES)
def test_any_number_of_ranks_loads_it(case, tmp_path):
    rule, kwargs = CASES[case]

    def save(comm):
        params = parameters(rule)

        def prepare(opt):
            opt.set_masks(masks_of(rule))

        opt, _ = sharded(rule, params, comm, prepare=prepare, lr=0.02, **kwargs)
        opt.save(tmp_path / "checkpoint", weights=True)
        state = copy.deepcopy(opt.state_dict())
        further(opt, params)
        return state, params

    def load(comm):
        params = {name: np.zeros_like(p) for name, p in parameters(rule).items()}
        opt = ShardedOptimizer(rule, params, comm, microbatches=MICROBATCHES, **kwargs)
        opt.load(tmp_path / "checkpoint")
        state = copy.deepcopy(opt.state_dict())
        further(opt, params)
        return state, params

    for writers in (1, 3):
        shutil.rmtree(tmp_path / "checkpoint", ignore_errors=True)
        state, expected = run_local(save, writers)[0]
        assert same(read_state(tmp_path / "checkpoint"), state)
        for readers in (1, 2, 4):
            for own, params in run_local(load, readers):
                assert same(own, state)
                assert same(params, expected)
        # In one process.
        opt = rule({name: np.zeros_like(p) for name, p in expected.items()}, **kwargs)
        opt.load_state_dict(read_state(tmp_path / "checkpoint"))
        assert same(opt.state_dict(), state)


def test_files_of_the_rule_are_loaded(tmp_path):
    params = parameters(cr.optim.Adam)
    opt, _ = plain(cr.optim.Adam, params)
    opt.save(tmp_path / "opt.safetensors")

    def load(comm):
        own = ShardedOptimizer(cr.optim.Adam, copy.deepcopy(params), comm, microbatches=4)
        own.load(tmp_path / "opt.safetensors")
        return own.state_dict()

    assert all(same(state, opt.state_dict()) for state in run_local(load, 3))


def test_state_is_converted(tmp_path):
    def save(comm):
        params = parameters(cr.optim.Adam)
        opt, _ = sharded(cr.optim.Adam, params, comm, state_dtype="int8")
        opt.save(tmp_path)
        return opt.state_dict()

    state = run_local(save, 3)[0]
    one = cr.optim.Adam(parameters(cr.optim.Adam))
    one.load_state_dict(state)

    def load(comm):
        own = parameters(cr.optim.Adam)
        opt = ShardedOptimizer(cr.optim.Adam, own, comm, microbatches=MICROBATCHES)
        opt.load(tmp_path)
        return opt.state_dict()

    assert all(same(own, one.state_dict()) for own in run_local(load, 2))


def test_a_writer_that_fails_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    save_tensors = checkpoint.save_tensors

    def failing(path, arrays, metadata):
        if "00001-of" in path.name:
            raise OSError(28, "no space")
        save_tensors(path, arrays, metadata)

    def work(comm):
        params = parameters(cr.optim.Adam)
        opt, _ = sharded(cr.optim.Adam, params, comm, steps=1)
        opt.save(tmp_path)
        state = copy.deepcopy(opt.state_dict())
        further(opt, params)
        if comm.rank == 0:
            monkeypatch.setattr(checkpoint, "save_tensors", failing)
        comm.barrier()
        with pytest.raises(OSError if comm.rank == 1 else RankError, match="no space"):
            opt.save(tmp_path)
        comm.barrier()
        if comm.rank == 0:
            monkeypatch.setattr(checkpoint, "save_tensors", save_tensors)
        comm.barrier()
        assert same(read_state(tmp_path), state)
        opt.save(tmp_path)
        return opt.state_dict()

    state = run_local(work, 3)[0]
    assert same(read_state(tmp_path), state)
    # Nothing of the checkpoints before is left.
    assert len(list(tmp_path.iterdir())) == 4


def damaged(tmp_path):
    """Yield a checkpoint that is damaged in a way, and what loading it must say."""

    def save(comm):
        sharded(cr.optim.Adam, parameters(cr.optim.Adam), comm)[0].save(tmp_path / "good")

    run_local(save, 2)
    manifest = json.loads((tmp_path / "good" / "manifest.json").read_text())
    changes = {
        "version": ("2", "format"),
        "parts": (manifest["parts"][:-1], "not all"),
        "files": (["../x"] * 2, "other files"),
        "save": ("0" * 32, "must have save"),
        "shapes": (manifest["shapes"][:-1], "manifest"),
        "param_groups": (3, "manifest"),
    }
    for k, (key, (value, message)) in enumerate(changes.items()):
        folder = tmp_path / str(k)
        shutil.copytree(tmp_path / "good", folder)
        (folder / "manifest.json").write_text(json.dumps({**manifest, key: value}))
        yield folder, message
    folder = tmp_path / "bit"
    shutil.copytree(tmp_path / "good", folder)
    path = folder / manifest["files"][1]
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    yield folder, "damaged"


def test_damaged_checkpoints_are_refused(tmp_path):
    for folder, message in damaged(tmp_path):
        with pytest.raises(ValueError, match=message):
            read_state(folder)

        def load(comm, folder=folder, message=message):
            params = parameters(cr.optim.Adam)
            opt, _ = sharded(cr.optim.Adam, params, comm)
            before = copy.deepcopy((opt.state_dict(), params))
            with pytest.raises((ValueError, RankError), match=message):
                opt.load(folder)
            assert same((opt.state_dict(), params), before)

        run_local(load, 2)


def test_checkpoints_of_others_are_refused(tmp_path):
    cr.distributed.ShardedOptimizer(cr.optim.Adam, [np.ones(3), np.ones(4)]).save(tmp_path)
    groups = [{"params": [np.ones(3)]}, {"params": [np.ones(4)]}]
    for rule, params, need, got in (
        (cr.optim.SGD, [np.ones(3), np.ones(4)], "a SGD", "a Adam"),
        (
            cr.optim.Adam,
            [np.ones(3), np.ones((5, 2))],
            "params[1] of shape (5, 2)",
            "params[1] of shape (4,)",
        ),
        (cr.optim.Adam, [np.ones(3)], "no further parameters", "params[1] of shape (4,)"),
        (
            cr.optim.Adam,
            {"a": np.ones(3), "b": np.ones(4)},
            "params['a'] of shape (3,), params['b'] of shape (4,)",
            "params[0] of shape (3,), params[1] of shape (4,)",
        ),
        (cr.optim.Adam, [np.ones(3) for _ in range(9)], "and 3 others", "params[1] of shape (4,)"),
        (cr.optim.Adam, groups, "params[0][0] of shape (3,)", "params[1] of shape (4,)"),
    ):
        with pytest.raises(ValueError, match="must be of a") as error:
            ShardedOptimizer(rule, params).load(tmp_path)
        before, _, after = str(error.value).partition(", got ")
        assert need in before
        assert got in after
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(FileExistsError, match="something else"):
        ShardedOptimizer(cr.optim.Adam, np.ones(3)).save(tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        ShardedOptimizer(cr.optim.Adam, np.ones(3)).load(tmp_path / "none")


def test_another_number_of_microbatches_is_warned_of(tmp_path):
    def save(comm):
        sharded(cr.optim.Adam, parameters(cr.optim.Adam), comm)[0].save(tmp_path)

    def load(comm, microbatches):
        opt = ShardedOptimizer(
            cr.optim.Adam, parameters(cr.optim.Adam), comm, microbatches=microbatches
        )
        opt.load(tmp_path)
        return opt.state_dict()["state"]

    run_local(save, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        expected = run_local(load, 3, MICROBATCHES)
    assert not caught
    with pytest.warns(UserWarning, match=f"microbatches={MICROBATCHES}, got 4") as caught:
        results = run_local(load, 3, 4)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert same(results, expected)


def test_a_run_resumes(tmp_path):
    params = parameters(cr.optim.Adam)
    opt, _ = sharded(cr.optim.Adam, params)
    run = cr.TrainState(optimizer=opt, params=params)
    run.save(tmp_path / "run.safetensors")
    further(opt, params)
    own = parameters(cr.optim.Adam)
    other = ShardedOptimizer(cr.optim.Adam, own, microbatches=MICROBATCHES)
    cr.TrainState(optimizer=other, params=own).load(tmp_path / "run.safetensors")
    further(other, own)
    assert same(own, params)

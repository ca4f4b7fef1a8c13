"""State in files that are mapped into memory."""

import copy
import gc
import mmap
import os
import pickle
import signal
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import compressrs as cr
from compressrs.distributed import RankError, ShardedOptimizer, read_state, run_local

from .runs import parameters, plain, same, sharded

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="files there have names")


def maps(folder):
    """Return the lines of this process's maps of files in a folder."""
    with open("/proc/self/maps") as file:
        return [line for line in file if str(folder) in line]


def is_mapped(array):
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(getattr(array, "obj", array), mmap.mmap)


KINDS = {
    "float32": (cr.optim.AdamW, np.float32, {}),
    "int8": (cr.optim.Adam, np.float32, {"state_dtype": "int8"}),
    "master": (cr.optim.Adam, ml_dtypes.bfloat16, {"precision": "master"}),
    "whole": (cr.optim.Lamb, np.float32, {}),
    "none": (cr.optim.SGD, np.float32, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_those_in_memory(kind, tmp_path):
    rule, dtype, kwargs = KINDS[kind]
    expected = parameters(rule, dtype)
    reference, _ = plain(rule, expected, **kwargs)

    def work(comm):
        params = parameters(rule, dtype)
        folder = tmp_path / f"{comm.size}-{comm.rank}"
        folder.mkdir()
        opt, _ = sharded(rule, params, comm, offload=folder, **kwargs)
        buffers = [opt._inner._buffers(i) for i in opt._inner._state]
        assert all(is_mapped(a) for b in buffers for a in b.values() if a.size)
        # Its name is gone.
        assert list(folder.iterdir()) == []
        return params, opt.state_dict()

    for size in (1, 3):
        for params, state in run_local(work, size):
            assert same(params, expected)
            assert same(state, reference.state_dict())


def test_conversions_copies_and_checkpoints(tmp_path):
    w, expected = parameters(cr.optim.Adam), parameters(cr.optim.Adam)
    (tmp_path / "state").mkdir()
    opt, _ = sharded(cr.optim.Adam, w, offload=tmp_path / "state")
    twin, _ = sharded(cr.optim.Adam, expected)
    for one in (opt, twin):
        one.convert_state("bfloat16")
    assert same(opt.state_dict(), twin.state_dict())
    copies = [copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
    for own in (opt, *copies):
        assert same(own.state_dict(), twin.state_dict())
        assert all(is_mapped(a) for a in own._inner._buffers(0).values())
    opt.save(tmp_path / "checkpoint")
    assert same(read_state(tmp_path / "checkpoint"), twin.state_dict())
    other = ShardedOptimizer(
        cr.optim.Adam, w, microbatches=6, state_dtype="bfloat16", offload=tmp_path / "state"
    )
    other.load(tmp_path / "checkpoint")
    assert same(other.state_dict(), twin.state_dict())
    assert all(is_mapped(a) for a in other._inner._buffers(0).values())
    assert list((tmp_path / "state").iterdir()) == []


def test_files_are_reserved_where_the_system_cannot_do_it_at_once(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    w, expected = np.ones(400_000), np.ones(400_000)
    opt = ShardedOptimizer(cr.optim.Adam, w, offload=tmp_path)
    twin = cr.optim.Adam(expected)
    for one in (opt, twin):
        one.step(np.ones_like(w))
    assert same(opt.state_dict(), twin.state_dict())


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs /proc")
def test_maps_end_with_the_optimizer(tmp_path):
    opt, _ = sharded(cr.optim.Adam, parameters(cr.optim.Adam), offload=tmp_path)
    assert maps(tmp_path)
    del opt
    gc.collect()
    assert not maps(tmp_path)


def in_child(work):
    """Return the message of what `work` raises in a forked child, or what it returns."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            result = str(work())
        except BaseException as error:
            result = f"{type(error).__name__}: {error}"
        os.write(write, result.encode()[:4000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        answer = file.read().decode()
    os.waitpid(child, 0)
    return answer


USES = {
    "step": lambda opt, w, path: opt.step(np.full_like(w, 5)),
    "accumulate": lambda opt, w, path: opt.accumulate(0, np.full_like(w, 5)),
    "discard": lambda opt, w, path: opt.discard(),
    "state": lambda opt, w, path: opt.state[0]["exp_avg"],
    "state_dict": lambda opt, w, path: opt.state_dict(),
    "load_state_dict": lambda opt, w, path: opt.load_state_dict(cr.optim.Adam(w).state_dict()),
    "save": lambda opt, w, path: opt.save(path / "other"),
    "load": lambda opt, w, path: opt.load(path / "checkpoint"),
    "set_masks": lambda opt, w, path: opt.set_masks(np.zeros(w.shape, bool)),
    "convert_state": lambda opt, w, path: opt.convert_state("bfloat16"),
    "add_param_group": lambda opt, w, path: opt.add_param_group({"params": [np.ones(3)]}),
    "copy": lambda opt, w, path: copy.deepcopy(opt),
    "pickle": lambda opt, w, path: pickle.dumps(opt),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("use", USES)
def test_a_forked_child_cannot_use_what_it_shares(use, tmp_path):
    w = np.ones((30, 30), np.float32)
    opt = ShardedOptimizer(cr.optim.Adam, w, offload=tmp_path)
    opt.step(np.ones_like(w))
    opt.save(tmp_path / "checkpoint")
    before = opt.state_dict()
    answer = in_child(lambda: USES[use](opt, w, tmp_path))
    assert answer.startswith(
        "RuntimeError: a ShardedOptimizer with offload cannot be used in a fork"
    )
    assert same(opt.state_dict(), before)
    # The parent goes on.
    opt.step(np.ones_like(w))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_children_have_optimizers_of_their_own(tmp_path):
    w = np.ones(30, np.float32)
    in_memory = ShardedOptimizer(cr.optim.Adam, w)
    mapped = ShardedOptimizer(cr.optim.Adam, w, offload=tmp_path)
    data = pickle.dumps(mapped)

    def work():
        own = pickle.loads(data)
        own.step(np.ones_like(w))
        in_memory.step(np.ones_like(w))
        return own.state[0]["step"], in_memory.state[0]["step"]

    assert in_child(work) == str((np.asarray(1), np.asarray(1)))
    assert [opt.state[0]["step"] for opt in (in_memory, mapped)] == [0, 0]


PROGRAM = """
import os, signal, sys
import numpy as np
import compressrs as cr

folder, when = sys.argv[1:]
w = np.zeros(200_000, np.float32)
opt = cr.distributed.ShardedOptimizer(cr.optim.Adam, w, offload=folder)
opt.step(np.ones_like(w))
opt.save(folder + "/checkpoint", weights=True)
opt.step(np.ones_like(w))
if when == "save":
    cr.distributed.checkpoint.save_tensors = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    opt.save(folder + "/checkpoint", weights=True)
state = opt.state[0]["exp_avg"]
state[:1000] = np.nan
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["step", "save"])
def test_a_killed_process_leaves_the_checkpoint_and_nothing_else(when, tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path), when])
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    w = np.zeros(200_000, np.float32)
    expected = cr.optim.Adam(w)
    expected.step(np.ones_like(w))
    assert same(read_state(tmp_path / "checkpoint"), expected.state_dict())


def test_folders_that_cannot_be_used(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="offload must be a folder, got"):
        ShardedOptimizer(cr.optim.Adam, np.ones(3), offload=tmp_path / "none")
    with pytest.raises(TypeError, match="offload"):
        ShardedOptimizer(cr.optim.Adam, np.ones(3), offload=3)

    def full(*_):
        raise OSError(28, "No space left on device")

    def work(comm):
        if comm.rank == 1:
            monkeypatch.setattr(cr.distributed.offload, "_reserve", full)
        comm.barrier()
        with pytest.raises((OSError, RankError), match="No space left"):
            ShardedOptimizer(cr.optim.Adam, np.ones(3), comm, offload=tmp_path)

    run_local(work, 2)
    assert list(tmp_path.iterdir()) == []

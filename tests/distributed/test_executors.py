"""Compression on executors: the same bytes as in one process, also if workers are killed."""

import os
import pickle
import subprocess
import sys
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import numpy as np
import pytest

import compressrs as cr
from compressrs.checkpoint import _plan
from compressrs.distributed import executor

from .test_mpi import MPIEXEC, ROOT, environment

save_file = pytest.importorskip("safetensors.numpy").save_file

#: Bytes of memory with which tiles are small.
LIMIT = _plan.MIN_MEMORY + (1 << 21)

RECIPE = cr.checkpoint.Recipe(
    cr.checkpoint.Rule(prune=0.6),
    rules={
        "int4": cr.checkpoint.Rule(quantize="int4", group_size=32),
        "gptq": cr.checkpoint.Rule(quantize="int4", group_size=32, method="gptq"),
    },
    ignore=["lossless", "re:.*bias"],
)


TILED = cr.checkpoint.Recipe(
    cr.checkpoint.Rule(prune=0.6),
    rules={
        "awq": cr.checkpoint.Rule(quantize="int4", group_size=32, method="awq"),
        "gptq": cr.checkpoint.Rule(quantize="int4", group_size=32, method="gptq"),
        "codebook": cr.checkpoint.Rule(prune=0.5, quantize="codebook", entries=16),
        "half": cr.checkpoint.Rule(prune=0.3, dtype="bfloat16"),
        "pattern": cr.checkpoint.Rule(pattern="2:4"),
    },
    ignore=["lossless"],
)


@pytest.fixture(scope="module")
def tiled(tmp_path_factory):
    """Tensors of some tiles, one with many weights of the magnitude up to which it is pruned."""
    folder = tmp_path_factory.mktemp("tiled")
    rng = np.random.default_rng(1)
    tensors = {
        name: rng.standard_normal((2400, 128)).astype(np.float32)
        for name in ("awq", "codebook", "gptq", "half", "lossless", "pattern")
    }
    tensors["ties"] = rng.integers(-3, 4, (300, 1024)).astype(np.float32)
    tensors["small"] = rng.standard_normal((4, 4)).astype(np.float32)
    save_file(tensors, folder / "a.safetensors")
    statistics = {}
    for name in ("awq", "gptq"):
        statistics[name] = cr.prune.InputStatistics(128, gram=True)
        statistics[name].update(rng.standard_normal((200, 128)).astype(np.float32))
    cr.prune.save_statistics(folder / "statistics.safetensors", statistics)
    reports = cr.checkpoint.compress(
        folder / "a.safetensors", folder / "expected.safetensors", TILED, **options(folder)
    )
    return folder, reports


def options(folder):
    return {"calibration": folder / "statistics.safetensors", "memory_limit": LIMIT}


def test_tiles_are_tasks_of_their_own(tiled, tmp_path):
    folder, expected = tiled

    class Here:
        """Runs tasks at once, which are pickled as for another process."""

        def __init__(self):
            self.calls = []

        def submit(self, call, *arguments):
            self.calls.append((call.__name__, arguments[0].name))
            future = Future()
            try:
                call, arguments = pickle.loads(pickle.dumps((call, arguments)))
                future.set_result(pickle.loads(pickle.dumps(call(*arguments))))
            except Exception as error:
                future.set_exception(error)
            return future

    pool = Here()
    target = tmp_path / "a.safetensors"
    reports = cr.checkpoint.compress(
        folder / "a.safetensors", target, TILED, executor=pool, **options(folder)
    )
    assert target.read_bytes() == (folder / "expected.safetensors").read_bytes()
    differing = {"destination": "", "seconds": 0.0, "memory": 0}
    assert replace(reports, **differing) == replace(expected, **differing)
    for name in ("awq", "codebook", "gptq", "half", "lossless", "pattern", "ties"):
        assert pool.calls.count(("prepare", name)) == 1
        assert pool.calls.count(("encode_tile", name)) > 2
    assert pool.calls.count(("encode", "small")) == 1


def test_workers_that_are_killed_among_tiles(tiled, tmp_path):
    folder, _ = tiled
    with executor("processes", 2) as pool:
        for period in (4, 7):
            target = tmp_path / f"{period}.safetensors"
            killing = Killing(pool, 2, period)
            cr.checkpoint.compress(
                folder / "a.safetensors", target, TILED, executor=killing, **options(folder)
            )
            assert killing.left == 0
            assert target.read_bytes() == (folder / "expected.safetensors").read_bytes()


def test_an_error_in_a_tile_is_that_of_one_process(tmp_path):
    x = np.ones((300, 1024), np.float32)
    x[250, 3] = np.nan
    save_file({"a": x}, tmp_path / "a.safetensors")
    with (
        executor("processes", 1) as pool,
        pytest.raises(ValueError, match="'a' holds NaN or infinity"),
    ):
        cr.checkpoint.compress(
            tmp_path / "a.safetensors",
            tmp_path / "b.safetensors",
            cr.checkpoint.Rule(quantize="int8"),
            executor=pool,
            memory_limit=LIMIT,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.standard_normal((96, 128)).astype(np.float32)
        for name in ("pruned", "int4", "gptq", "lossless", "other")
    }
    tensors |= {"bias": np.ones(3, np.float32), "twin": tensors["pruned"], "none": np.zeros((0, 4))}
    save_file(tensors, folder / "a.safetensors")
    statistics = cr.prune.InputStatistics(128, gram=True)
    statistics.update(rng.standard_normal((200, 128)).astype(np.float32))
    cr.prune.save_statistics(folder / "statistics.safetensors", {"gptq": statistics})
    cr.checkpoint.compress(
        folder / "a.safetensors",
        folder / "expected.safetensors",
        RECIPE,
        calibration=folder / "statistics.safetensors",
    )
    return folder


def compress(source, target, pool):
    reports = cr.checkpoint.compress(
        source / "a.safetensors",
        target,
        RECIPE,
        calibration=source / "statistics.safetensors",
        executor=pool,
    )
    assert target.read_bytes() == (source / "expected.safetensors").read_bytes()
    assert reports.after == target.stat().st_size


class Killing:
    """An executor one of whose workers is killed after a few tasks."""

    def __init__(self, pool, times, period=3):
        self.pool, self.left, self.tasks, self.period = pool, times, 0, period

    def submit(self, call, *arguments):
        self.tasks += 1
        if self.left and self.tasks % self.period == 0:
            self.left -= 1
            self.pool.submit(os._exit, 1)
        return self.pool.submit(call, *arguments)

    def restart(self):
        self.pool.restart()


def test_processes_and_workers_that_are_killed(source, tmp_path):
    with executor("processes", 2) as pool:
        compress(source, tmp_path / "a.safetensors", pool)
        compress(source, tmp_path / "b.safetensors", Killing(pool, 2))
        with pytest.raises(RuntimeError, match="killed 3 times"):
            compress(source, tmp_path / "c.safetensors", Killing(pool, 100))
    assert not (tmp_path / "c.safetensors").exists()


def test_errors_of_workers_are_those_of_one_process(source, tmp_path):
    tensors = {"a": np.array([[1.0, np.nan]] * 4000), "b": np.ones((4, 4))}
    save_file(tensors, tmp_path / "a.safetensors")
    rule = cr.checkpoint.Rule(quantize="int8")
    with (
        executor("processes", 1) as pool,
        pytest.raises(ValueError, match="'a' holds NaN or infinity"),
    ):
        cr.checkpoint.compress(
            tmp_path / "a.safetensors", tmp_path / "b.safetensors", rule, executor=pool
        )
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_command_takes_one(source, tmp_path):
    pytest.importorskip("typer")
    command = [sys.executable, "-m", "compressrs", "compress", str(source / "a.safetensors")]
    for name, options in (("a", []), ("b", ["--executor", "processes", "--workers", "2"])):
        output = str(tmp_path / f"{name}.safetensors")
        arguments = ["-o", output, "--quantize", "int8", "--json", *options]
        subprocess.run([*command, *arguments], check=True, capture_output=True, env=environment())
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    wrong = [*command, "-o", str(tmp_path / "c.safetensors"), "--executor", "cloud"]
    done = subprocess.run(wrong, capture_output=True, text=True, env=environment())
    assert done.returncode == 2
    assert "--executor cloud: kind must be one of processes" in done.stderr
    wrong = [*command, "-o", str(tmp_path / "c.safetensors"), "--workers", "3"]
    done = subprocess.run(wrong, capture_output=True, text=True, env=environment())
    assert done.returncode == 2
    assert "need --executor" in done.stderr


def test_the_command_says_that_workers_were_killed(source, tmp_path, capsys, monkeypatch):
    pytest.importorskip("typer")
    from compressrs.cli import main

    def killed(self, *arguments):
        raise BrokenProcessPool("killed")

    monkeypatch.setattr("compressrs.distributed.executors._Processes.submit", killed)
    output = str(tmp_path / "b.safetensors")
    arguments = ["compress", str(source / "a.safetensors"), "-o", output, "--quantize", "int8"]
    assert main([*arguments, "--executor", "processes", "--workers", "2"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("compressrs: workers were killed 3 times")
    assert "Traceback" not in said


@pytest.mark.skipif(MPIEXEC is None, reason="needs mpiexec")
def test_mpi(source, tmp_path):
    pytest.importorskip("mpi4py")
    pytest.importorskip("typer")
    for name, options in (("a", []), ("b", ["--executor", "mpi"])):
        command = [sys.executable, "-m", "compressrs"]
        if options:
            command = [MPIEXEC, "-n", "3", sys.executable, "-m", "mpi4py.futures", "-m"]
            command.append("compressrs")
        command += ["compress", str(source / "a.safetensors"), "--quantize", "int8"]
        command += ["-o", str(tmp_path / f"{name}.safetensors"), *options]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_mpi_without_other_ranks_says_how_to_start(source, tmp_path):
    pytest.importorskip("mpi4py")
    pytest.importorskip("typer")
    target = tmp_path / "a.safetensors"
    command = [sys.executable, "-m", "compressrs", "compress", str(source / "a.safetensors")]
    command += ["--quantize", "int8", "-o", str(target), "--executor", "mpi"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=60
    )
    assert done.returncode == 2
    assert "--executor mpi: kind 'mpi' needs" in done.stderr
    assert "mpiexec -n N python -m mpi4py.futures" in done.stderr
    assert not target.exists()


@pytest.mark.filterwarnings("ignore")
def test_dask(source, tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, protocol="tcp"
    ) as cluster:
        address = cluster.scheduler_address.replace("tcp://", "dask://")
        with executor(address) as pool:
            compress(source, tmp_path / "a.safetensors", pool)
        with executor(address) as pool:
            workers = [worker.process.pid for worker in cluster.workers.values()]
            killing = KillingOfDask(pool, workers[0])
            compress(source, tmp_path / "b.safetensors", killing)
            assert killing.tasks > 3


class KillingOfDask:
    """An executor of Dask one of whose workers is killed from outside after a few tasks."""

    def __init__(self, pool, process):
        self.pool, self.process, self.tasks = pool, process, 0

    def submit(self, call, *arguments):
        self.tasks += 1
        if self.tasks == 3:
            os.kill(self.process, 9)
        return self.pool.submit(call, *arguments)


@pytest.mark.filterwarnings("ignore")
def test_ray(source, tmp_path):
    pytest.importorskip("ray")
    with executor("ray") as pool:
        compress(source, tmp_path / "a.safetensors", pool)


def test_arguments():
    with pytest.raises(ValueError, match="kind must be one of"):
        executor("dask")
    with pytest.raises(ValueError, match="workers"):
        executor("ray", 3)
    with pytest.raises(ValueError, match="workers"):
        executor("processes", 0)
    with pytest.raises(TypeError, match="kind"):
        executor(3)
    with pytest.raises(TypeError, match="executor must have submit"):
        cr.checkpoint.compress("a", "b", executor="processes")

"""Ranks that are processes of MPI, which mpiexec starts."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import compressrs as cr
from compressrs.distributed import read_state

from .runs import parameters, plain, same

ROOT = Path(__file__).parents[2]
#: That of the wheels, in the environment's own folder, before that of the system.
MPIEXEC = shutil.which("mpiexec", path=sysconfig.get_path("scripts")) or shutil.which("mpiexec")
pytestmark = pytest.mark.skipif(
    MPIEXEC is None or importlib.util.find_spec("mpi4py") is None,
    reason="needs mpi4py and mpiexec",
)


def environment():
    """Return the variables for processes that are started."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "COMPRESSRS_NUM_THREADS": "1",
        # Open MPI refuses more ranks than cores, and the root user, unless it is told.
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }


def run(task, ranks, folder):
    """Run a task of program.py on some ranks."""
    program = [sys.executable, "-m", "tests.distributed.program", task, str(folder)]
    return subprocess.run(
        [MPIEXEC, "-n", str(ranks), *program],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_training(ranks, tmp_path):
    done = run("train", ranks, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": ok") == ranks


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_that_disagree(ranks, tmp_path):
    pytest.importorskip("safetensors")
    done = run("disagree", ranks, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": ok") == ranks


def test_a_rank_is_killed_while_it_writes(tmp_path):
    done = run("kill", 2, tmp_path)
    assert done.returncode != 0
    opt, _ = plain(cr.optim.Adam, parameters(cr.optim.Adam), steps=2)
    assert same(read_state(tmp_path), opt.state_dict())


@pytest.mark.slow
def test_messages_beyond_31_bits(tmp_path):
    done = run("large", 2, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": ok") == 2


@pytest.mark.parametrize("level", ["single", "funneled"])
def test_threads_of_mpi(level, tmp_path):
    done = run(level, 2, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr

"""Whether processes can send each other messages by MPI."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from typing import NamedTuple

#: What each of two ranks runs: a sum over both, by compressrs's own communicator.
_PROGRAM = """
import numpy as np
from mpi4py import MPI
from compressrs.distributed import as_communicator
comm = as_communicator(MPI.COMM_WORLD)
parts = comm.allgather(np.array([comm.rank + 1.0]))
assert comm.size == 2 and float(sum(map(sum, parts))) == 3.0, (comm.size, parts)
if comm.rank == 0:
    print(MPI.Get_library_version().splitlines()[0].strip())
"""


class Mpi(NamedTuple):
    """What MPI does here."""

    #: Two processes have added up their numbers.
    works: bool
    #: The library's version, or what is wrong.
    said: str


def mpi(timeout: float = 60) -> Mpi | None:
    """Start two processes by ``mpiexec`` that send each other a number.

    Returns
    -------
    Mpi or None
        None if mpi4py is not installed.
    """
    if importlib.util.find_spec("mpi4py") is None:
        return None
    # That of the wheels lies in the environment's own folder, before that of the system.
    launcher = shutil.which("mpiexec", path=sysconfig.get_path("scripts"))
    launcher = launcher or shutil.which("mpiexec")
    if launcher is None:
        return Mpi(False, "mpiexec is not on the path: pip install mpich, or one of the system's")
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    # Open MPI refuses more ranks than cores unless it is told.
    allowed = {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
    command = [launcher, "-n", "2", sys.executable, "-c", _PROGRAM]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **allowed, "PYTHONPATH": paths, "COMPRESSRS_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return Mpi(False, f"{launcher} -n 2 did not end in {timeout:g} s")
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        return Mpi(False, f"{launcher} -n 2 failed: {said[-1] if said else 'it said nothing'}")
    return Mpi(True, done.stdout.strip())

"""Memory that there is not: MemoryError, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import compressrs as cr

#: Calls everything with ever less memory, and once more with enough of it.
_SCRIPT = """
import resource, sys, threading
from tests.faults import kernels

def address_space():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

def attempt(case, margin):
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + margin, hard))
    try:
        case()
        return True
    except MemoryError:
        return False
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))

refused = set()

def attempt_all():
    for case in kernels.cases(int(sys.argv[1])):
        before = [(path, array.tobytes()) for path, array in case.leaves()]
        for margin in (1 << 18, 1 << 20, 1 << 22):
            given = case.replaced({})
            if attempt(given, margin):
                continue
            refused.add(case.name)
            if case.function == "Stepper.step":
                after = [(path, array.tobytes()) for path, array in given.leaves()]
                assert after == before, case.name
        case.replaced({})()
    done.append(True)

# The main thread's stack grows when it is used, which the limit would forbid.
done = []
threading.stack_size(64 << 20)
thread = threading.Thread(target=attempt_all)
thread.start()
thread.join()
assert done
print(*sorted(refused))
"""


#: Has the C library return memory to the system, where the limit counts it.
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
    "MALLOC_ARENA_MAX": "1",
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS is Linux's")
@pytest.mark.parametrize("threads", ["1", "2"])
def test_kernels_that_run_out_of_memory_say_so(threads: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, "64"],
        env={**_environment(), **_MALLOC, "COMPRESSRS_NUM_THREADS": threads},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    refused = set(done.stdout.split())
    # Not an empty proof: these need more than the least that is left to them.
    assert {
        "Factor.inverse",
        "Stepper.step[muon,float64]",
        "accumulate_inputs[gram]",
        "csr_from_dense[threshold]",
        "dist_loss",
        "reconstruct",
    } <= refused


#: Starts the helper threads with ever more memory, each time in a new process.
_THREADS = """
import os, resource, sys
import numpy as np, compressrs as cr
cr.set_num_threads(4)
w = np.ones(1 << 18, np.float32)
opt, grad = cr.optim.SGD(w, lr=0.5), np.ones_like(w)
for margin in [0, 1 << 12, 1 << 16, *(k << 20 for k in range(1, 24))]:
    child = os.fork()
    if not child:
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + margin,) * 2)
        opt.step(grad)
        os._exit(int(w[0] != 0.5 or w[-1] != 0.5))
    status = os.waitpid(child, 0)[1]
    assert status == 0, (margin, status)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS is Linux's")
def test_kernels_run_without_helper_threads_where_these_cannot_start() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _THREADS],
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _environment() -> dict[str, str]:
    paths = [*sys.path, os.getcwd()]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


@pytest.mark.parametrize("shape", [(10**6, 10**9), (3, 2**40), (3, 2**61), (10**6, 2**61)])
def test_shapes_that_no_memory_holds(shape: tuple[int, int]) -> None:
    rows, columns = shape
    parts = np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(rows + 1, np.int32)
    a = cr.sparse.CSRMatrix(parts, shape)
    for dense in (a.to_dense, a.T.to_dense):
        with pytest.raises(MemoryError):
            dense()
    if columns < 2**40:
        return
    with pytest.raises(MemoryError):
        a.transpose()
    # Arrays of that many columns that have no memory of their own.
    if columns == 2**40:
        x = np.broadcast_to(np.float32(1), (columns, 5))
        products = [
            lambda: a @ x,
            lambda: a.T @ np.ones((rows, 1), np.float32),
            lambda: cr.sparse.sddmm(a, np.zeros((rows, 1), np.float32), x[:, :1].T),
            lambda: cr.sparse.sddmm(a, np.zeros((rows, 5), np.float32), x.T),
        ]
        for product in products:
            with pytest.raises(MemoryError):
                product()

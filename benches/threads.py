"""Two threads against one, for kernels that follow one another and for kernels that are rare.

::

    python -m benches.threads            # two threads
    python -m benches.threads -n 4

For each kernel and each pause between two calls, in which the calling thread computes something
else: the time of a call with one thread and with so many, their ratio, and the CPU time of a call
and the pause after it, in which threads that look for work spend some. Quartiles of rounds that
alternate, the lower ones, since others may use the machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

import compressrs as cr

#: Microseconds between two calls.
PAUSES = (0, 50, 150, 1000)

#: Times that one thread and several take turns, and seconds of each.
ROUNDS, SECONDS = 10, 0.04


def kernels() -> dict[str, Callable[[], object]]:
    """Return calls that take 20 us to 1 ms on one thread."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((1536, 384)).astype(np.float32)
    a = cr.sparse.CSRMatrix.from_dense(w * cr.prune.magnitude_mask(w, sparsity=0.9))
    calls: dict[str, Callable[[], object]] = {}
    for n in (8, 32, 128):
        x = rng.standard_normal((384, n)).astype(np.float32)
        out = np.empty((1536, n), np.float32)
        calls[f"CSR 1536 x 384 @ {n} columns"] = lambda x=x, out=out: a.matmul(x, out=out)
    for n in (32_768, 65_536, 1_000_000):
        opt = cr.optim.AdamW(np.ones(n, np.float32))
        g = rng.standard_normal(n).astype(np.float32)
        calls[f"AdamW, {n:,} weights"] = lambda opt=opt, g=g: opt.step(g)
    z, t, out = (rng.standard_normal((128, 1000)).astype(np.float32) for _ in range(3))
    calls["kd_loss, 128 x 1000"] = lambda: cr.distill.kd_loss(z, t, 4.0, out=out)
    return calls


def busy(microseconds: float) -> None:
    """Compute for so long."""
    end = time.perf_counter() + microseconds * 1e-6
    while time.perf_counter() < end:
        pass


def quartile(times: list[float]) -> float:
    """Return the lower quartile in microseconds."""
    return 1e6 * sorted(times)[len(times) // 4]


def measure(call: Callable[[], object], pause: int, threads: int) -> str:
    """Return the cells of a row."""
    walls: dict[int, list[float]] = {1: [], threads: []}
    cpus: dict[int, list[float]] = {1: [], threads: []}
    for n in [1, threads] * ROUNDS:
        cr.set_num_threads(n)
        for _ in range(20):
            call()
        start, cpu, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() < start + SECONDS:
            busy(pause)
            begin = time.perf_counter()
            call()
            walls[n].append(time.perf_counter() - begin)
            count += 1
        cpus[n].append((time.process_time() - cpu) / count - pause * 1e-6)
    one, many = quartile(walls[1]), quartile(walls[threads])
    cpu_one, cpu_many = quartile(cpus[1]), quartile(cpus[threads])
    return f"{one:8.1f} {many:8.1f} {one / many:6.2f} {cpu_one:8.1f} {cpu_many:8.1f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", "--threads", type=int, default=2)
    threads = parser.parse_args().threads
    print(f"{'us':30} pause   1 thread {threads:2} threads, ratio; CPU")
    for name, call in kernels().items():
        for pause in PAUSES:
            print(f"{name:30} {pause:5} {measure(call, pause, threads)}", flush=True)


if __name__ == "__main__":
    main()

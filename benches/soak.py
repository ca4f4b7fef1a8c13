"""Soak: many small steps and many forks with flat memory; or everything, for hours.

::

    python -m benches.soak                        # 10 million steps and 1,000 forks
    python -m benches.soak --minutes 60           # everything in turn, for an hour

Memory is the resident set. What is taken in the first tenth is warm-up; from then on it must not
grow by more than 2 MB, nor the number of open files. Needs Linux's /proc.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import compressrs as cr

#: Bytes by which memory may grow.
SLACK = 2 << 20


def resident() -> int:
    """Return the bytes of memory that this process has in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def open_files() -> int:
    """Return the number of open files."""
    return len(os.listdir("/proc/self/fd"))


def flat(name: str, times: int, call: Callable[[int], object]) -> bool:
    """Make a call many times, and say whether memory and files are as after a tenth of them."""
    start, warm = time.monotonic(), max(1, times // 10)
    for i in range(warm):
        call(i)
    before = resident(), open_files()
    for i in range(warm, times):
        call(i)
    grown, files = resident() - before[0], open_files() - before[1]
    good = grown <= SLACK and files <= 0
    took = time.monotonic() - start
    print(
        f"{name}: {times:,} times in {took:.0f} s, memory {before[0] / 1e6:.1f} MB "
        f"{grown / 1e3:+.0f} kB, files {files:+d}: {'flat' if good else 'GROWS'}",
        flush=True,
    )
    return good


def small_step() -> Callable[[int], object]:
    """Return a step of Adam on ten weights."""
    opt = cr.optim.Adam(np.zeros(10, np.float32))
    grad = np.ones(10, np.float32)
    return lambda _: opt.step(grad)


def fork() -> Callable[[int], object]:
    """Return a fork whose child takes a step in a pool of its own."""
    cr.set_num_threads(2)
    w, g = np.zeros(300_000, np.float32), np.ones(300_000, np.float32)
    opt = cr.optim.Adam(w)
    opt.step(g)

    def call(_: int) -> None:
        child = os.fork()
        if not child:
            status = 1
            try:
                opt.step(g)
                status = 0
            finally:
                os._exit(status)
        status = os.waitpid(child, 0)[1]
        if status:
            raise SystemExit(f"a child ended with {status}")

    return call


def training(folder: Path) -> Callable[[int], object]:
    """Return a round of a run: train, prune, convert, save, load."""
    model = cr.nn.Sequential(cr.nn.Linear(64, 64, rng=0), cr.nn.ReLU(), cr.nn.Linear(64, 9, rng=1))
    opt = cr.optim.AdamW(model.params, lr=1e-3)
    pruner = cr.prune.MagnitudePruner(
        model[0].weight, cr.prune.CubicSchedule(final=0.9, end=10_000), optimizer=opt
    )
    ema = cr.optim.EMA(model.params)
    run = cr.TrainState(model=model, optimizer=opt, pruner=pruner, ema=ema)
    rng = np.random.default_rng(0)
    teacher = rng.standard_normal((32, 9)).astype(np.float32)

    def call(i: int) -> None:
        y = model(rng.standard_normal((32, 64)).astype(np.float32))
        model.backward(cr.distill.kd_loss(y, teacher, 4.0)[1])
        opt.step(model.grads, max_grad_norm=1.0)
        pruner.step()
        ema.update()
        if i % 100 == 0:
            opt.convert_state("bfloat16" if i % 200 else "float32")
            run.save(folder / "run")
            run.load(folder / "run")

    return call


def matrices() -> Callable[[int], object]:
    """Return a round of sparse matrices and quantized ones: made, multiplied, forgotten."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((128, 128)).astype(np.float32)
    x = rng.standard_normal((128, 8)).astype(np.float32)
    scheme = cr.quantize.Scheme(bits=4, granularity="group", group_size=32)

    def call(_: int) -> None:
        a = cr.sparse.CSRMatrix.from_dense(w, 1.0)
        cr.sparse.sddmm(a, a @ x, x.T)
        a.transpose().with_pattern(a.transpose())
        q = cr.quantize.quantize(w, scheme)
        cr.quantize.QuantizedMatrix(q).linear(x.T.copy())
        q.dequantize()

    return call


def refusals() -> Callable[[int], object]:
    """Return calls that fail: errors must not keep arrays alive."""
    w = np.ones((300, 100), np.float32)
    opt = cr.optim.Adam(w)

    def call(_: int) -> None:
        for bad in (w[:, :50], w[:10], np.full_like(w, np.nan)):
            try:
                opt.step(bad, nonfinite="raise")
            except ValueError:
                continue
            raise SystemExit("a bad gradient was taken")

    return call


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benches.soak", description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000_000)
    parser.add_argument("--forks", type=int, default=1000)
    parser.add_argument("--minutes", type=float, help="do everything in turn for so long")
    options = parser.parse_args()
    if not os.path.exists("/proc/self/statm"):
        parser.error("needs Linux's /proc, from which memory in use is read")
    if options.minutes is None:
        good = flat("small steps", options.steps, small_step())
        good &= flat("forks", options.forks, fork())
        return int(not good)
    end, good, rounds = time.monotonic() + 60 * options.minutes, True, 0
    with tempfile.TemporaryDirectory() as folder:
        parts = {
            "small steps": (200_000, small_step()),
            "training": (2_000, training(Path(folder))),
            "matrices": (1_000, matrices()),
            "refusals": (5_000, refusals()),
            "forks": (100, fork()),
        }
        whole = 0
        while time.monotonic() < end:
            for name, (times, call) in parts.items():
                good &= flat(name, times, call)
                if time.monotonic() >= end:
                    break
            rounds += 1
            # Over all rounds too, of which each may grow by less than what is tolerated.
            if rounds == 1:
                whole = resident()
        grown = resident() - whole if rounds > 1 else 0
        print(f"{rounds} rounds, memory {grown / 1e3:+.0f} kB since the first")
        good &= grown <= 4 * SLACK
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())

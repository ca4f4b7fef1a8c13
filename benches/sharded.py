"""Sharded optimizers: overhead, bytes and state, beside PyTorch's ZeroRedundancyOptimizer.

``python -m benches.sharded [--millions 10] [--ranks 1 2 4]`` starts ``mpiexec`` for compressrs, and
processes over gloo for PyTorch where it is installed, in turn, a few rounds of both. Times are
medians; on a machine with fewer cores than ranks they show what the ranks' work costs together,
not a speed-up. ``python -m benches.sharded --memory`` shows what stages of ZeRO, and state in
files, take.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from statistics import median

import numpy as np

STEPS = 7


def parameters(millions: float) -> list[np.ndarray]:
    """Four tensors, of which the ranks' parts are not whole ones."""
    n = int(millions * 1e6 / 4)
    return [np.full(n, 0.01 * i, np.float32) for i in range(4)]


def compressrs_rank(millions: float) -> None:
    from mpi4py import MPI

    import compressrs as cr

    w = parameters(millions)
    grads = [np.full_like(a, 1e-3) for a in w]
    opt = cr.distributed.ShardedOptimizer(
        cr.optim.AdamW, w, MPI.COMM_WORLD, microbatches=MPI.COMM_WORLD.size
    )
    times = []
    for _ in range(STEPS):
        opt.comm.barrier()
        opt.comm.bytes = 0
        started = time.perf_counter()
        opt.step(grads)
        opt.comm.barrier()
        times.append(time.perf_counter() - started)
    state = sum(a.nbytes for buffers in opt.state.values() for a in buffers.values())
    if opt.comm.rank == 0:
        print(json.dumps({"ms": 1e3 * median(times), "bytes": opt.comm.bytes, "state": state}))


#: What `--memory` compares.
KINDS = {
    "stage 1": {},
    "stage 2": {"stage": 2},
    "stage 2, state in files": {"stage": 2, "offload": True},
}


def resident() -> dict[str, float]:
    """Return MB of this process: those of its own, and those of files that are in memory."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return {name: int(fields[name].split()[0]) / 1e3 for name in ("RssAnon", "RssFile")}


def memory_rank(millions: float) -> None:
    """Print what an optimizer takes besides parameters and gradients, 4 micro-batches a rank."""
    from mpi4py import MPI

    import compressrs as cr

    options = dict(KINDS[os.environ["BENCH_KIND"]])
    with tempfile.TemporaryDirectory() as folder:
        if options.get("offload"):
            options["offload"] = folder
        w = parameters(millions)
        grads = [np.full_like(a, 1e-3) for a in w]
        comm = MPI.COMM_WORLD
        before = resident()
        opt = cr.distributed.ShardedOptimizer(
            cr.optim.AdamW, w, comm, microbatches=4 * comm.size, **options
        )
        times = []
        for _ in range(3):
            started = time.perf_counter()
            opt.comm.bytes = 0
            for i in opt.indices:
                opt.accumulate(i, grads)
            opt.step()
            times.append(time.perf_counter() - started)
        after = resident()
    if comm.rank == 0:
        taken = {name: after[name] - before[name] for name in after}
        print(json.dumps({**taken, "ms": 1e3 * median(times), "bytes": opt.comm.bytes}))


def plain(millions: float) -> None:
    import compressrs as cr

    w = parameters(millions)
    grads = [np.full_like(a, 1e-3) for a in w]
    opt = cr.optim.AdamW(w)
    times = []
    for _ in range(STEPS):
        started = time.perf_counter()
        opt.step(grads)
        times.append(time.perf_counter() - started)
    state = sum(a.nbytes for buffers in opt.state.values() for a in buffers.values())
    print(json.dumps({"ms": 1e3 * median(times), "bytes": 0, "state": state}))


def torch_rank(millions: float) -> None:
    """Gradients averaged by all_reduce, as DistributedDataParallel does, then the step."""
    import torch
    import torch.distributed as dist
    from torch.distributed.optim import ZeroRedundancyOptimizer

    torch.set_num_threads(int(os.environ["COMPRESSRS_NUM_THREADS"]))
    dist.init_process_group("gloo")
    w = [torch.nn.Parameter(torch.from_numpy(a)) for a in parameters(millions)]
    grads = [torch.full_like(a, 1e-3) for a in w]
    opt = ZeroRedundancyOptimizer(w, torch.optim.AdamW, lr=1e-3, fused=True)
    size = dist.get_world_size()
    times = []
    for _ in range(STEPS):
        for parameter, grad in zip(w, grads):
            parameter.grad = grad.clone()
        dist.barrier()
        started = time.perf_counter()
        for parameter in w:
            dist.all_reduce(parameter.grad)
            parameter.grad /= size
        opt.step()
        dist.barrier()
        times.append(time.perf_counter() - started)
    state = sum(
        x.numel() * x.element_size()
        for buffers in opt.optim.state.values()
        for x in buffers.values()
    )
    if dist.get_rank() == 0:
        print(json.dumps({"ms": 1e3 * median(times), "bytes": None, "state": state}))
    dist.destroy_process_group()


def launch(kind: str, ranks: int, millions: float, **variables: str) -> dict[str, float]:
    """Run one of the functions above on some ranks; return what rank 0 prints."""
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    environment = {**os.environ, "COMPRESSRS_NUM_THREADS": str(threads), **variables}
    command = [sys.executable, "-m", "benches.sharded", "--run", kind, "--millions", str(millions)]
    if kind in ("compressrs_rank", "memory_rank"):
        scripts = sysconfig.get_path("scripts")
        mpiexec = shutil.which("mpiexec", path=scripts) or shutil.which("mpiexec")
        command = [mpiexec or "mpiexec", "-n", str(ranks), *command]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    processes = [
        subprocess.Popen(command, env={**environment, "RANK": str(r)}, stdout=subprocess.PIPE)
        for r in range(ranks)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"{kind} failed")
    return json.loads(outputs[0].splitlines()[-1])


def memory(millions: float, ranks: int) -> None:
    print(f"AdamW, {millions:g} M float32 parameters, {ranks} ranks with 4 micro-batches each")
    print("| | memory, MB | of files, MB | ms a step | sent a rank, MB |")
    print("|---|---:|---:|---:|---:|")
    for kind in KINDS:
        found = launch("memory_rank", ranks, millions, BENCH_KIND=kind)
        print(
            f"| {kind} | {found['RssAnon']:.0f} | {found['RssFile']:.0f} | {found['ms']:.0f} | "
            f"{found['bytes'] / 1e6:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--millions", type=float, default=10)
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        globals()[given.run](given.millions)
        return
    if given.memory:
        memory(given.millions, given.ranks[-1])
        return
    kinds = ["compressrs_rank"]
    if importlib.util.find_spec("torch") is not None:
        kinds.append("torch_rank")
    print(f"AdamW, {given.millions:g} M float32 parameters")
    print("| ranks | one process, ms | ms a step | ratio | sent a rank, MB | ideal, MB | "
          "state a rank, MB | ZeroRedundancyOptimizer, ms | ratio to it |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for ranks in given.ranks:
        times: dict[str, list[float]] = {kind: [] for kind in ("plain", *kinds)}
        for _ in range(given.rounds):
            times["plain"].append(launch("plain", 1, given.millions)["ms"])
            for kind in kinds:
                found = launch(kind, ranks, given.millions)
                times[kind].append(found["ms"])
                if kind == "compressrs_rank":
                    own = found
        base, ours, *peer = (median(of) for of in times.values())
        ideal = 2 * 4 * given.millions * (ranks - 1) / ranks
        other = f"{peer[0]:.1f} | {ours / peer[0]:.2f}" if peer else "- | -"
        print(
            f"| {ranks} | {base:.1f} | {ours:.1f} | {ours / base:.2f} | "
            f"{own['bytes'] / 1e6:.1f} | {ideal:.1f} | {own['state'] / 1e6:.1f} | {other} |"
        )


if __name__ == "__main__":
    main()

"""Sharded optimizers: overhead, bytes and state, beside PyTorch's ZeroRedundancyOptimizer.

``python -m benches.sharded [--millions 10] [--ranks 1 2 4]`` starts ``mpiexec`` for compressrs, and
processes over gloo for PyTorch where it is installed, one after the other. Times are medians; on a
machine with fewer cores than ranks they show what the ranks' work costs together, not a speed-up.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
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


def launch(kind: str, ranks: int, millions: float) -> dict[str, float]:
    """Run one of the functions above on some ranks; return what rank 0 prints."""
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    environment = {**os.environ, "COMPRESSRS_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "benches.sharded", "--run", kind, "--millions", str(millions)]
    if kind == "compressrs_rank":
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=float, default=10)
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--run", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        globals()[given.run](given.millions)
        return
    base = launch("plain", 1, given.millions)["ms"]
    print(f"AdamW, {given.millions:g} M float32 parameters; one process: {base:.1f} ms")
    print("| ranks | ms a step | x one process | sent a rank, MB | ideal, MB | state a rank, MB |"
          " ZeroRedundancyOptimizer, ms |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    try:
        import torch  # noqa: F401

        peer = True
    except ModuleNotFoundError:
        peer = False
    for ranks in given.ranks:
        own = launch("compressrs_rank", ranks, given.millions)
        ideal = 2 * 4 * given.millions * (ranks - 1) / ranks
        other = f"{launch('torch_rank', ranks, given.millions)['ms']:.1f}" if peer else "-"
        print(
            f"| {ranks} | {own['ms']:.1f} | {own['ms'] / base:.2f} | {own['bytes'] / 1e6:.1f} | "
            f"{ideal:.1f} | {own['state'] / 1e6:.1f} | {other} |"
        )


if __name__ == "__main__":
    main()

"""A model of time and memory of a sharded step on 1 to 1,024 ranks: ``python -m benches.scale``.

Nothing is trained: `partition` and `tree` of compressrs.distributed divide transformers of 1, 10
and 100 billion parameters among simulated ranks, which gives the bytes that each rank keeps, sends
and adds; bandwidths give times. The memory bandwidth is measured here, by a step of AdamW; the
network's is given. docs/scale.md states the assumptions.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

import compressrs as cr
from compressrs import _core
from compressrs.distributed.partition import (
    Part,
    distribute,
    piece_count,
    shares,
    split_in_pieces,
    whole_in_pieces,
)
from compressrs.distributed.tree import cover

#: Width and layers of transformers with 12 width^2 parameters a layer, and 32,000 tokens.
MODELS = {"1 B": (2048, 19), "10 B": (4608, 39), "100 B": (10240, 79)}
RANKS = (1, 2, 4, 8, 16, 64, 256, 1024)

#: Numbers read and written for each parameter by a step of AdamW, and by an addition.
STEP_ACCESSES, ADD_ACCESSES = 7, 3


def shapes(model: str) -> list[tuple[int, ...]]:
    """Return the shapes of a transformer's parameters."""
    width, layers = MODELS[model]
    found: list[tuple[int, ...]] = [(32_000, width)]
    for _ in range(layers):
        found += [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
        found += [(width,), (width,)]
    return found


class Load(NamedTuple):
    """What the busiest rank has and does in a step."""

    parameters: int
    state: int
    #: Bytes sent, and numbers added, where the most are.
    sent: int
    added: int
    messages: int
    #: Bytes with stage 1 of ZeRO, and with stage 2.
    memory: int
    memory_2: int


def parts_of(
    sizes: list[int], ranks: int, whole: bool, pieces: int
) -> tuple[list[Part], list[int]]:
    """Return parts and their pieces."""
    if whole:
        costs = [4 * n for n in sizes]
        parts = distribute(sizes, costs, ranks)
        return parts, whole_in_pieces(parts, costs, pieces)
    return split_in_pieces(sizes, [4] * len(sizes), ranks, _core.NORM_BLOCK, pieces)


def load(model: str, ranks: int, microbatches: int, whole: bool = False) -> Load:
    """Return the load of a step, by the code that divides and adds."""
    sizes = [int(np.prod(shape, dtype=np.int64)) for shape in shapes(model)]
    total = sum(sizes)
    pieces = piece_count(total, ranks) if ranks > 1 else 1
    own, of_piece = [0] * ranks, Counter[tuple[int, int]]()
    for part, k in zip(*parts_of(sizes, ranks, whole, pieces), strict=True):
        own[part.owner] += part.stop - part.start
        of_piece[part.owner, k] += part.stop - part.start
    assert sum(own) == total
    batches = shares(microbatches, ranks)
    nodes = [len(cover(b.start, b.stop, microbatches)) for b in batches]
    sent, added, messages, memory, memory_2 = [], [], [], [], []
    rounds = -(-microbatches // ranks)
    for r in range(ranks):
        reduce = nodes[r] * (total - own[r])
        gather = own[r] * (ranks - 1)
        received = sum(nodes) - nodes[r]
        sent.append(4 * (reduce + gather))
        added.append(max(len(batches[r]) - nodes[r], 0) * total + (sum(nodes) - 1) * own[r])
        messages.append((nodes[r] + 1) * (ranks - 1) * pieces)
        # Parameters, sums of micro-batches, two pieces of what is received, state.
        piece = max(of_piece[r, k] for k in range(pieces))
        sums = max(1, len(batches[r]).bit_length())
        memory.append(4 * total * (1 + sums) + 8 * received * piece + 8 * own[r])
        # Parameters, one gradient, sums of own parts, two pieces, state.
        own_sums = 4 * rounds.bit_length() * own[r]
        memory_2.append(8 * total + own_sums + 8 * (ranks - 1) * piece + 8 * own[r])
    tops = map(max, (sent, added, messages, memory, memory_2))
    return Load(total, 8 * max(own), *tops)


def seconds(found: Load, ranks: int, memory: float, network: float, latency: float) -> float:
    """Return the time of a step: additions, messages, the rule, one after the other."""
    own = found.state / 8
    traffic = 4 * (ADD_ACCESSES * found.added + STEP_ACCESSES * own)
    agreement = 2 * latency * (ranks - 1).bit_length()
    return traffic / memory + found.sent / network + found.messages * latency + agreement


def measured_bandwidth() -> float:
    """Return bytes a second of a step of AdamW on this machine."""
    w = np.zeros(1 << 24, np.float32)
    g = np.ones_like(w)
    opt = cr.optim.AdamW(w)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        opt.step(g)
        times.append(time.perf_counter() - started)
    return STEP_ACCESSES * w.nbytes / sorted(times)[2]


def rows(memory: float, network: float, latency: float, microbatches: int) -> Iterator[str]:
    yield (
        "| parameters | ranks | state a rank, GB | memory a rank, GB | with stage 2 | "
        "sent a rank, GB | x ideal | s a step | speed-up | Muon: largest part / mean |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for model in MODELS:
        alone = None
        for ranks in RANKS:
            found = load(model, ranks, max(microbatches, ranks))
            took = seconds(found, ranks, memory, network, latency)
            alone = took if alone is None else alone
            ideal = 8 * found.parameters * (ranks - 1) / ranks
            whole = load(model, ranks, max(microbatches, ranks), whole=True)
            balance = whole.state / 8 / (found.parameters / ranks)
            yield (
                f"| {model} | {ranks:,} | {found.state / 1e9:.3g} | {found.memory / 1e9:.4g} | "
                f"{found.memory_2 / 1e9:.4g} | "
                f"{found.sent / 1e9:.4g} | {found.sent / ideal if ideal else 1:.3f} | {took:.3g} | "
                f"{alone / took:.3g} | {balance:.2f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", type=float, help="GB/s of memory; measured by default")
    parser.add_argument("--network", type=float, default=12.5, help="GB/s sent by a rank")
    parser.add_argument("--latency", type=float, default=10, help="microseconds of a message")
    parser.add_argument("--microbatches", type=int, default=64)
    given = parser.parse_args()
    memory = given.memory * 1e9 if given.memory else measured_bandwidth()
    print(
        f"memory {memory / 1e9:.1f} GB/s, network {given.network:g} GB/s, latency "
        f"{given.latency:g} us, {given.microbatches} micro-batches (at least one a rank)\n"
    )
    for row in rows(memory, given.network * 1e9, given.latency * 1e-6, given.microbatches):
        print(row, flush=True)


if __name__ == "__main__":
    main()

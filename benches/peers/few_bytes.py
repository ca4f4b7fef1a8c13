"""Adam with 8-bit state and in bfloat16, against float32 and other 8-bit optimizers."""

import importlib.util

import ml_dtypes
import numpy as np

import compressrs as cr
from benches.peers.measure import medians, moved, operations, record, target, torch
from benches.peers.optim import OPERATIONS

LARGE = 50_000_000
SMALL = 65_536

#: Weights and gradients, state, and the bytes that a step reads and writes for each element:
#: weights and both moments twice, gradients.
STORAGES = {
    "float32": ("float32", "float32", 28),
    "bfloat16 state": ("float32", "bfloat16", 20),
    "8 bits": ("float32", "8 bits", 16),
    "bfloat16": ("bfloat16, stochastic", "bfloat16", 14),
    "bfloat16, to nearest": ("bfloat16, to nearest", "bfloat16", 14),
    "bfloat16, 8 bits": ("bfloat16, stochastic", "8 bits", 10),
}
TARGETS = {
    LARGE: {"8 bits": 1 / 1.4, "bfloat16": 1 / 1.6},
    SMALL: {"8 bits": 2, "bfloat16": 2},
}
#: At least this many times our time with state in 8 bits.
OTHERS = 40


def ours(p, g, **storage):
    opt = cr.optim.Adam(p, **storage)
    return lambda: opt.step(g)


def tensor(p, g):
    made = torch.nn.Parameter(torch.from_numpy(p.copy()))
    made.grad = torch.from_numpy(g)
    return made


def others(p, g):
    """Return the steps of the other 8-bit Adam optimizers that are installed."""
    contenders = {}
    if torch and importlib.util.find_spec("bitsandbytes"):
        import bitsandbytes

        contenders["bitsandbytes, 8 bits"] = bitsandbytes.optim.Adam8bit([tensor(p, g)]).step
    if torch and importlib.util.find_spec("torchao"):
        from torchao.optim import Adam8bit

        contenders["torchao, 8 bits"] = Adam8bit([tensor(p, g)]).step
    return contenders


def storages(n, theirs):
    """Compare all storages, and other optimizers with state in 8 bits, in one alternation."""
    rng = np.random.default_rng(0)
    p, g = (rng.standard_normal(n, np.float32) for _ in range(2))
    half_p, half_g = (x.astype(ml_dtypes.bfloat16) for x in (p, g))
    few = {"state_dtype": "bfloat16", "precision": "stochastic"}
    contenders = {
        "8 bits": ours(p.copy(), g, state_dtype="int8"),
        "float32": ours(p.copy(), g),
        "bfloat16 state": ours(p.copy(), g, state_dtype="bfloat16"),
        "bfloat16": ours(half_p, half_g, **few),
        "bfloat16, to nearest": ours(half_p.copy(), half_g, state_dtype="bfloat16"),
        "bfloat16, 8 bits": ours(half_p.copy(), half_g, **few | {"state_dtype": "int8"}),
    }
    peers = theirs(p, g)
    times = medians(contenders | peers, inner=max(1, 100_000 // n))
    for name, (weights, state, size) in STORAGES.items():
        seconds = {"compressrs": times[name]}
        if name != "float32":
            seconds["compressrs, all float32"] = times["float32"]
        if name == "8 bits":
            seconds |= {peer: times[peer] for peer in peers}
        record(
            f"{n:,} weights in {weights}, state in {state}",
            seconds,
            (moved(size * n), operations(OPERATIONS["Adam"] * n)),
            dot=f"Adam, {name}" if n == LARGE and name in ("8 bits", "bfloat16") else None,
        ).show()
        if ratio := TARGETS[n].get(name):
            target("float32", times[name] / times["float32"], ratio)
    for peer in peers:
        target(peer, times["8 bits"] / times[peer], 1 / OTHERS)


def few_bytes():
    storages(LARGE, others)
    storages(SMALL, lambda p, g: {})

"""Adam with 8-bit state and in bfloat16, against float32 and other 8-bit optimizers."""

import importlib.util

import ml_dtypes
import numpy as np

import compressrs as cr
from benches.peers.measure import Target, Work, compare, torch

LARGE = 50_000_000

#: Bytes that a step reads and writes for each element: weights and both moments twice, gradients.
BYTES = {
    "8 bits": 16,
    "float32": 28,
    "bfloat16 state": 20,
    "bfloat16": 14,
    "bfloat16, to nearest": 14,
    "bfloat16, 8 bits": 10,
}


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


def storages(n, targets):
    rng = np.random.default_rng(0)
    p, g = (rng.standard_normal(n, np.float32) for _ in range(2))
    half_p, half_g = (x.astype(ml_dtypes.bfloat16) for x in (p, g))
    few = {"state_dtype": "bfloat16", "precision": "stochastic"}
    by_name = {
        "8 bits": ours(p.copy(), g, state_dtype="int8"),
        "float32": ours(p.copy(), g),
        "bfloat16 state": ours(p.copy(), g, state_dtype="bfloat16"),
        "bfloat16": ours(half_p, half_g, **few),
        "bfloat16, to nearest": ours(half_p.copy(), half_g, state_dtype="bfloat16"),
        "bfloat16, 8 bits": ours(half_p.copy(), half_g, **few | {"state_dtype": "int8"}),
    }
    names = [*by_name]
    for first, ratio in targets.items():
        order = [first, *(name for name in names if name != first)]
        compare(
            f"Adam, {n:,} elements, by storage, from {first}",
            {name: by_name[name] for name in order},
            (Target("float32", ratio),),
            inner=max(1, 100_000 // n),
            work=Work("copy", BYTES[first] * n),
        )
    return p, g


def few_bytes():
    p, g = storages(LARGE, {"8 bits": 1 / 1.4, "bfloat16": 1 / 1.6})
    compare(
        f"Adam with state in 8 bits, {LARGE:,} elements",
        {"compressrs": ours(p.copy(), g, state_dtype="int8"), **others(p, g)},
        (Target("bitsandbytes, 8 bits", 1 / 40), Target("torchao, 8 bits", 1 / 40)),
        work=Work("copy", BYTES["8 bits"] * LARGE),
    )
    storages(65_536, {"8 bits": 2, "bfloat16": 2})

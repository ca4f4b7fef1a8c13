"""A short training run on any number of ranks, and the same in one process."""

import numpy as np

import compressrs as cr
from tests.reference.distributed import tree_mean

#: More elements than a part has, several tensors of which are divided, and an empty one.
SHAPES = {"a": (40, 1100), "b": (33,), "c": (70, 1000), "d": (0, 4), "e": ()}
MATRICES = {"a": (40, 50), "b": (60, 30), "c": (20, 20), "d": (0, 4)}
MICROBATCHES = 6


def shapes_of(rule):
    return MATRICES if rule is cr.optim.Muon else SHAPES


def parameters(rule, dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = shapes_of(rule).items()
    return {name: np.asarray(rng.standard_normal(s), dtype=dtype) for name, s in shapes}


def gradients(params, step, index):
    rng = np.random.default_rng([step, index])
    return {
        name: np.asarray(rng.standard_normal(p.shape), np.float32) for name, p in params.items()
    }


def sharded(rule, params, comm=None, steps=3, prepare=None, step=None, **kwargs):
    """Train on ranks; return the optimizer and what the steps returned."""
    opt = cr.distributed.ShardedOptimizer(rule, params, comm, microbatches=MICROBATCHES, **kwargs)
    after = prepare(opt) if prepare else None
    results = []
    for t in range(steps):
        for i in opt.indices:
            opt.accumulate(i, without(gradients(params, t, i), t))
        results.append(opt.step(**(step or {})))
        if after:
            after()
    return opt, results


def plain(rule, params, steps=3, prepare=None, step=None, **kwargs):
    """Train in one process with the rule's own optimizer."""
    opt = rule(params, **kwargs)
    after = prepare(opt) if prepare else None
    results = []
    for t in range(steps):
        all_of = [gradients(params, t, i) for i in range(MICROBATCHES)]
        mean = {name: tree_mean([g[name] for g in all_of]) for name in all_of[0]}
        results.append(opt.step(without(mean, t), **(step or {})))
        if after:
            after()
    return opt, results


def without(grads, step):
    """A tensor without gradients in the second step."""
    return {**grads, "b": None} if step == 1 else grads


def same(a, b):
    """Whether nested dicts and lists hold the same bits."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b

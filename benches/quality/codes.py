"""Errors that 8-bit state causes in the steps of Adam, compared with full precision.

Adam with each storage format of its moments receives the gradients of one training run in
full precision; the resulting steps are compared.
"""

import ml_dtypes
import numpy as np

import compressrs as cr
from benches.quality.tasks import Language

BLOCK = 256
GOLDEN = 0x9E3779B9
STEPS, EVERY = 2500, 50


class Moments:
    """Adam's moments, rounded by `store` to a storage format after each step."""

    def __init__(self, shape, store):
        self.m, self.v = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.store = store

    def step(self, g, t, beta1=0.9, beta2=0.999, eps=1e-8):
        m = self.m + np.float32(1 - beta1) * (g - self.m)
        v = np.float32(beta2) * self.v + np.float32(1 - beta2) * g * g
        self.m, self.v = self.store(m, v, t)
        return m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)


def dynamic_levels(signed):
    """Return the levels of Dettmers et al. (arXiv 2110.02861), as in bitsandbytes."""
    levels = [0.0, 1.0]
    for i in range(7):
        fractions = 2**i + 1 if signed else 2 ** (i + 1) + 1
        edges = np.linspace(0.1, 1, fractions)
        means = 10.0 ** (i - 6) * (edges[:-1] + edges[1:]) / 2
        levels += [*means, *(-means if signed else ())]
    return np.sort(np.array(levels, np.float32))


class Table:
    """Table-based codes with the largest magnitude of a block as its scale."""

    def __init__(self, levels, dithered):
        self.levels, self.dithered = levels, dithered
        self.offsets = None

    def __call__(self, x, t):
        flat = np.pad(x.ravel(), (0, -x.size % BLOCK)).reshape(-1, BLOCK)
        greatest = np.abs(flat).max(axis=1, keepdims=True)
        scaled = flat / np.where(greatest > 0, greatest, 1)
        below = np.searchsorted(self.levels, scaled, side="right") - 1
        below = np.clip(below, 0, len(self.levels) - 2)
        low, high = self.levels[below], self.levels[below + 1]
        threshold = 0.5
        if self.dithered:
            if self.offsets is None:
                self.offsets = np.random.default_rng(0).integers(0, 2**32, flat.shape)
            threshold = 1 - (self.offsets + t * GOLDEN) % 2**32 / 2**32
        code = below + ((scaled - low) / (high - low) > threshold)
        return (self.levels[code] * greatest).ravel()[: x.size].reshape(x.shape)


def tables(dithered):
    first, second = Table(dynamic_levels(True), dithered), Table(dynamic_levels(False), dithered)
    return lambda m, v, t: (first(m, t), second(v, t))


def nearest_bf16(m, v, t):
    return tuple(x.astype(ml_dtypes.bfloat16).astype(np.float32) for x in (m, v))


class Ours:
    """The step of compressrs' Adam."""

    def __init__(self, shape, state_dtype):
        self.w = np.zeros(shape, np.float32)
        self.opt = cr.optim.Adam(self.w, lr=1.0, state_dtype=state_dtype)

    def step(self, g, t):
        self.w[...] = 0
        self.opt.step(g)
        return -self.w


def contenders(shape):
    return {
        "bfloat16, to nearest": Moments(shape, nearest_bf16),
        "bfloat16, ours": Ours(shape, "bfloat16"),
        "8 bits, dynamic, to nearest": Moments(shape, tables(False)),
        "8 bits, dynamic, stochastic": Moments(shape, tables(True)),
        "8 bits, ours": Ours(shape, "int8"),
    }


def measure(advance):
    """Return the errors by contender and parameter; `advance` is called after each step."""
    task, rng = Language(0), np.random.default_rng(0)
    large = [i for i, w in enumerate(task.weights) if w.ndim == 2]
    exact = {i: Ours(task.weights[i].shape, "float32") for i in large}
    others = {i: contenders(task.weights[i].shape) for i in large}
    opt = cr.optim.Adam(task.weights, lr=1e-3)
    errors = {}
    for t in range(1, STEPS + 1):
        grads = task.gradients(rng)
        for i in large:
            truth = exact[i].step(grads[i], t)
            for name, contender in others[i].items():
                step = contender.step(grads[i], t)
                if t > STEPS // 2 and t % EVERY == 0:
                    error = np.linalg.norm(step - truth) / np.linalg.norm(truth)
                    along = np.vdot(step, truth) / np.vdot(truth, truth)
                    worst = np.abs(step - truth).max()
                    errors.setdefault(name, {}).setdefault(i, []).append((error, along, worst))
        opt.step(grads)
        advance()
    names = dict(zip(large, ("embedding", "hidden layer", "output layer")))
    return {
        name: {names[i]: (*np.mean(e, axis=0)[:2], np.max(e, axis=0)[2]) for i, e in by.items()}
        for name, by in errors.items()
    }

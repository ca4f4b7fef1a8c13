"""Quantizing arrays at the speed of memory; GPTQ."""

import numpy as np

import compressrs as cr
from benches.peers.measure import Target, compare, moved, operations

GROUPS = cr.quantize.Scheme(bits=4, granularity="group", group_size=128)


def quantize():
    w = np.random.default_rng(0).standard_normal(50_000_000, np.float32).reshape(-1, 4000)
    to = np.empty_like(w)
    # Quantizing reads 4 bytes and writes 1 where copying reads 4 and writes 4.
    least = 5 / 8
    q = cr.quantize.quantize(w, GROUPS)

    def in_numpy():
        groups = w[:, :3968].reshape(len(w), -1, 128)
        scale = np.abs(groups).max(axis=2, keepdims=True) / np.float32(7.5)
        return np.clip(np.rint(groups / scale), -8, 7).astype(np.int8)

    compare(
        "quantize, 4 bits in groups of 128, 50,000,000 values",
        {
            "compressrs": lambda: cr.quantize.quantize(w, GROUPS),
            "copy": lambda: np.copyto(to, w),
            "NumPy": in_numpy,
        },
        (Target("copy", least / 0.8),),
        # Magnitude, maximum, product, rounding, two limits.
        work=(moved(5 * w.size), operations(6 * w.size)),
        dot="quantize, 4 bits",
    )
    compare(
        "dequantize the same",
        {
            "compressrs": lambda: q.dequantize(out=to),
            "codes times scales in NumPy": lambda: np.multiply(
                q.codes, np.repeat(q.scale, 128, axis=1)[:, :4000], out=to
            ),
        },
        work=(moved(5 * w.size), operations(w.size)),
        dot="dequantize, 4 bits",
    )


def gptq(n=4096, block=128):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((n, n)).astype(np.float32)
    x = rng.standard_normal((2 * n, n)).astype(np.float32)
    statistics = cr.prune.InputStatistics(n, gram=True)
    statistics.update(x)
    scheme = cr.quantize.Scheme(bits=4)

    def in_numpy():
        """Loop over columns as the authors do, with LAPACK's factors."""
        h = statistics.gram + 0.01 * np.mean(np.diag(statistics.gram)) * np.eye(n)
        u = np.linalg.cholesky(np.linalg.inv(h)).T
        rest = w.astype(np.float64)
        scale = np.abs(rest).max(axis=1) / 7.5
        codes = np.empty(w.shape, np.int8)
        for left in range(0, n, block):
            right = left + block
            errors = np.empty((n, block))
            for j in range(left, right):
                codes[:, j] = np.clip(np.rint(rest[:, j] / scale), -8, 7)
                errors[:, j - left] = (rest[:, j] - codes[:, j] * scale) / u[j, j]
                rest[:, j:right] -= np.outer(errors[:, j - left], u[j, j:right])
            rest[:, right:] -= errors @ u[left:right, right:]
        return codes

    compare(
        f"GPTQ, 4 bits, {n} x {n}",
        {"compressrs": lambda: cr.quantize.gptq(w, statistics, scheme), "NumPy": in_numpy},
        (Target("NumPy", 1 / 3),),
        rounds=2,
        once=("NumPy",),
    )

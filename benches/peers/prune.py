"""Exact thresholds."""

import numpy as np

import compressrs as cr
from benches.peers.measure import compare


def prune():
    w = np.random.default_rng(0).standard_normal(50_000_000, np.float32)

    def partition():
        k = round(0.9 * w.size)
        return np.partition(np.abs(w), k)[k]

    compare(
        "exact 90 % quantile of |w|, 50,000,000 values",
        {"compressrs": lambda: cr.prune.magnitude_threshold(w, 0.9), "np.partition": partition},
    )

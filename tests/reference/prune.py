"""Pruning by sorting."""

import numpy as np


def threshold(arrays, sparsity):
    magnitudes = np.sort(np.concatenate([np.abs(a).ravel() for a in arrays]))
    k = round(sparsity * magnitudes.size)
    return magnitudes[k] if k < magnitudes.size else np.inf


def mask(w, sparsity):
    """Removes the smallest; of equal ones those that come first."""
    k = round(sparsity * w.size)
    order = np.argsort(np.abs(w).ravel(), kind="stable")
    keep = np.ones(w.size, bool)
    keep[order[:k]] = False
    return keep.reshape(w.shape)


def cubic(t, s_i, s_f, t0, n, dt):
    """Zhu & Gupta's equation 1, at a pruning step."""
    return s_f + (s_i - s_f) * (1 - (t - t0) / (n * dt)) ** 3

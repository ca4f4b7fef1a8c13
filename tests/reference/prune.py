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


def linear(t, s_i, s_f, t0, n, dt):
    return s_i + (s_f - s_i) * (t - t0) / (n * dt)


def exponential(t, s_i, s_f, t0, n, dt):
    """The share of what is left that every pruning step removes, as often as there were."""
    kept = ((1 - s_f) / (1 - s_i)) ** (1 / n)
    density = 1 - s_i
    for _ in range((t - t0) // dt):
        density *= kept
    return 1 - density

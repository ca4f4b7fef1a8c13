"""The mean of micro-batches' gradients, by the definition of its tree."""

import numpy as np


def tree_sum(leaves):
    """Sum over leaves: the left child is the largest power of two that leaves something."""
    if len(leaves) == 1:
        return leaves[0]
    left = 1
    while 2 * left < len(leaves):
        left *= 2
    return tree_sum(leaves[:left]) + tree_sum(leaves[left:])


def tree_mean(leaves):
    return tree_sum(leaves) / len(leaves)


def weighted_mean(arrays, weights):
    """Return the mean of arrays with weights, in float64."""
    total = sum(w * np.asarray(a, np.float64) for a, w in zip(arrays, weights, strict=True))
    return total / sum(weights)

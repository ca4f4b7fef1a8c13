"""Pruning by sorting."""

import numpy as np


def threshold(arrays, sparsity):
    magnitudes = np.sort(np.concatenate([np.abs(a).ravel() for a in arrays]))
    k = round(sparsity * magnitudes.size)
    return magnitudes[k] if k < magnitudes.size else np.inf


def mask(w, sparsity):
    """Remove the k smallest; among equal values, the first."""
    k = round(sparsity * w.size)
    order = np.argsort(np.abs(w).ravel(), kind="stable")
    keep = np.ones(w.size, bool)
    keep[order[:k]] = False
    return keep.reshape(w.shape)


def cubic(t, s_i, s_f, t0, n, dt):
    """Return Zhu & Gupta's equation 1 at a pruning step."""
    return s_f + (s_i - s_f) * (1 - (t - t0) / (n * dt)) ** 3


def linear(t, s_i, s_f, t0, n, dt):
    return s_i + (s_f - s_i) * (t - t0) / (n * dt)


def exponential(t, s_i, s_f, t0, n, dt):
    """Remove the same fraction of the remaining weights at every pruning step so far."""
    kept = ((1 - s_f) / (1 - s_i)) ** (1 / n)
    density = 1 - s_i
    for _ in range((t - t0) // dt):
        density *= kept
    return 1 - density


def iterative(t, rate, final, begin, frequency):
    """Apply rounds one by one, each removing a fraction of the remaining weights."""
    left = 1.0
    for _ in range(begin, t + 1, frequency):
        left = max(left * (1 - rate), 1 - final)
    return 1 - left


def lowest(scores, k):
    """Return masks without the k lowest over all arrays; among equal scores, without the first."""
    flat = np.concatenate([np.ravel(s) for s in scores])
    keep = np.ones(flat.size, bool)
    keep[np.argsort(flat, kind="stable")[:k]] = False
    parts = np.split(keep, np.cumsum([np.size(s) for s in scores])[:-1])
    return [part.reshape(np.shape(s)) for part, s in zip(parts, scores, strict=True)]


def lowest_of_rows(scores, k):
    rows = scores.reshape(len(scores), -1)
    return np.array([lowest([row], k)[0] for row in rows]).reshape(scores.shape)


def n_of_m(w, n, m, axis):
    groups = np.moveaxis(np.abs(w), axis, -1)
    masks = lowest_of_rows(groups.reshape(-1, m), m - n)
    return np.moveaxis(masks.reshape(groups.shape), -1, axis)


def norm(values, kind):
    return values.sum() if kind == "sum" else np.linalg.norm(values.ravel(), kind)


def blocks(w, block, sparsity, kind=2):
    """One block after another."""
    h, v = block
    tiles = [
        (slice(i, i + h), slice(j, j + v))
        for i in range(0, w.shape[0], h)
        for j in range(0, w.shape[1], v)
    ]
    (keep,) = lowest([np.array([norm(w[t], kind) for t in tiles])], round(sparsity * len(tiles)))
    mask = np.empty(w.shape, bool)
    for tile, kept in zip(tiles, keep, strict=True):
        mask[tile] = kept
    return mask


def slices(w, axes, sparsity, kind=2):
    """One slice after another."""
    places = list(np.ndindex(*(w.shape[a] for a in axes)))
    indices = []
    for place in places:
        index = [slice(None)] * w.ndim
        for a, i in zip(axes, place, strict=True):
            index[a] = i
        indices.append(tuple(index))
    norms = np.array([norm(w[index], kind) for index in indices])
    (keep,) = lowest([norms], round(sparsity * len(indices)))
    mask = np.empty(w.shape, bool)
    for index, kept in zip(indices, keep, strict=True):
        mask[index] = kept
    return mask


def snip(w, grads):
    return np.abs(w * np.sum(grads, axis=0))


def taylor(w, grads):
    return np.sum([(w * g) ** 2 for g in grads], axis=0)


def movement(w, grads):
    return -np.sum([w * g for g in grads], axis=0)


def wanda(w, x):
    """Return the score of Sun et al., equation 1, with the loops of the paper's figure."""
    scores = np.empty(w.shape)
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            scores[i, j] = abs(w[i, j]) * np.sqrt(np.sum(x[:, j] ** 2))
    return scores


def erdos_renyi(shapes, sparsity, kernel):
    """Find the factor that gives the total sparsity by bisection; densities are capped at 1."""
    sizes = np.array([np.prod(s) for s in shapes], float)
    raw = np.array(
        [sum(s) / np.prod(s) if kernel else (s[0] + s[1]) / (s[0] * s[1]) for s in shapes]
    )
    low, high = 0.0, 1 / raw.min()
    for _ in range(200):
        factor = (low + high) / 2
        if np.sum(np.minimum(1, factor * raw) * sizes) < (1 - sparsity) * sizes.sum():
            low = factor
        else:
            high = factor
    return 1 - np.minimum(1, high * raw)


def sparsegpt(w, x, sparsity=None, nm=None, damping=0.01, block=128):
    """Algorithm 1 of Frantar & Alistarh with the inverse Hessian itself, weight by weight.

    The paper's first form: where weight j of a row goes, the row changes by
    -w_j / [H^-1]_jj H^-1_j, and j leaves the inverse by Gaussian elimination, row by row
    of the matrix; the Cholesky factor holds the same numbers.
    """
    w = np.array(w, float)
    rows, columns = w.shape
    h = x.T @ x
    idle = np.diag(h) == 0
    mean = np.mean(np.diag(h)) or 1.0
    h[idle, idle] = 1
    w[:, idle] = 0
    h += damping * mean * np.eye(columns)
    inverses = [np.linalg.inv(h[j:, j:]) for j in range(columns)]
    mask = np.ones(w.shape, bool)
    removed = 0
    for left in range(0, columns, block):
        right = min(columns, left + block)
        if nm is None:
            loss = np.stack([w[:, j] ** 2 / inverses[j][0, 0] for j in range(left, right)], 1)
            k = int(np.floor(round(sparsity * w.size) * right / columns + 0.5)) - removed
            mask[:, left:right] = lowest([loss], k)[0]
            removed += k
        for j in range(left, right):
            if nm is not None and j % nm[1] == 0:
                part = range(j, j + nm[1])
                loss = np.stack([w[:, c] ** 2 / inverses[c][0, 0] for c in part], 1)
                mask[:, j : j + nm[1]] = lowest_of_rows(loss, nm[1] - nm[0])
            for i in range(rows):
                if not mask[i, j]:
                    inverse = inverses[j]
                    w[i, j:] -= w[i, j] / inverse[0, 0] * inverse[0]
                    w[i, j] = 0
    return w, mask


def rewire(w, stored, growth, count):
    """Drop and grow entries one by one; return the matrix and the pattern."""
    w, stored = w.copy(), stored.copy()
    places = [tuple(p) for p in np.argwhere(stored)]
    dropped = sorted(places, key=lambda p: abs(w[p]))[:count]
    for p in dropped:
        stored[p] = False
    free = [tuple(p) for p in np.argwhere(~stored)]
    # Of equal ones the last, as the first are the first to go.
    grown = sorted(free, key=lambda p: growth[p], reverse=False)[len(free) - count :]
    for p in grown:
        stored[p] = True
    return np.where(stored, w, 0), stored

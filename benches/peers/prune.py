"""Exact thresholds and masks; SparseGPT."""

import numpy as np

import compressrs as cr
from benches.peers.measure import Target, compare, moved, operations, torch


def prune():
    w = np.random.default_rng(0).standard_normal(50_000_000, np.float32)
    layers = np.split(w, np.cumsum(np.full(99, 500_000)))
    k = round(0.9 * w.size)

    contenders = {
        "compressrs": lambda: cr.prune.magnitude_threshold(w, 0.9),
        "compressrs, 100 tensors": lambda: cr.prune.magnitude_threshold(layers, 0.9),
        "np.partition": lambda: np.partition(np.abs(w), k)[k],
        "np.partition, 100 tensors": lambda: np.partition(np.abs(np.concatenate(layers)), k)[k],
    }
    if torch:
        tensor = torch.from_numpy(w)
        contenders["torch.kthvalue"] = lambda: torch.kthvalue(tensor.abs(), k + 1)
    compare(
        "exact 90 % quantile of |w|, 50,000,000 values",
        contenders,
        (Target("np.partition", 1 / 6), Target("np.partition, 100 tensors", 1 / 6)),
        # Each value is read and compared.
        work=(moved(w.nbytes), operations(2 * w.size)),
        dot="threshold",
    )

    w = w[: 4096 * 4096].reshape(4096, 4096)
    masked = (moved(w.nbytes + w.size), operations(2 * w.size))

    def pairs():
        groups = np.abs(w).reshape(-1, 4)
        mask = np.ones(groups.shape, bool)
        np.put_along_axis(mask, np.argpartition(groups, 2, axis=1)[:, :2], False, axis=1)
        return mask.reshape(w.shape)

    compare(
        "2:4 mask, 4096 x 4096",
        {"compressrs": lambda: cr.prune.nm_mask(w, 2, 4), "np.argpartition": pairs},
        work=masked,
        dot="2:4 mask",
    )

    def rows():
        mask = np.ones(w.shape, bool)
        order = np.argpartition(np.abs(w), 2048, axis=1)[:, :2048]
        np.put_along_axis(mask, order, False, axis=1)
        return mask

    scores = np.abs(w)
    compare(
        "half of each row, 4096 x 4096",
        {"compressrs": lambda: cr.prune.masks(scores, 0.5, "row"), "np.argpartition": rows},
        work=masked,
    )

    def blocks():
        norms = np.square(w).reshape(1024, 4, 1024, 4).sum(axis=(1, 3))
        keep = norms >= np.partition(norms.ravel(), norms.size // 2)[norms.size // 2]
        return keep.repeat(4, axis=0).repeat(4, axis=1)

    compare(
        "half of the 4 x 4 blocks, 4096 x 4096",
        {"compressrs": lambda: cr.prune.block_mask(w, (4, 4), 0.5), "np.partition": blocks},
        work=masked,
    )


def reconstruction():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4096, 1024), np.float32)
    w = rng.standard_normal((1024, 1024), np.float32)
    seen = cr.prune.InputStatistics(1024, gram=True)
    seen.update(x)

    def gram():
        wide = x.astype(np.float64)
        return wide.T @ wide

    compare(
        "X'X in double precision, 4,096 inputs of 1,024 features",
        {"compressrs": lambda: seen.update(x), "NumPy (OpenBLAS)": gram},
    )
    seen = cr.prune.InputStatistics(1024, gram=True)
    seen.update(x)

    compare(
        "SparseGPT, 1,024 x 1,024, half of the weights, blocks of 128 columns",
        {
            "compressrs": lambda: cr.prune.sparsegpt(w.copy(), seen, 0.5),
            "NumPy (OpenBLAS, LAPACK)": lambda: sparsegpt(w.astype(np.float64), seen.gram, 0.5),
        },
    )


def sparsegpt(w, gram, sparsity, damping=0.01, block=128):
    """Algorithm 1 of arXiv 2301.00774, column by column, vectorized over rows."""
    columns = w.shape[1]
    hessian = gram + damping * np.diagonal(gram).mean() * np.eye(columns)
    u = np.linalg.cholesky(np.linalg.inv(hessian)).T
    for left in range(0, columns, block):
        right = min(columns, left + block)
        part, errors = w[:, left:right], np.zeros((len(w), right - left))
        losses = np.square(part / np.diagonal(u)[left:right])
        k = round(sparsity * losses.size)
        removed = losses < np.partition(losses.ravel(), k)[k]
        for j in range(right - left):
            row = u[left + j, left:right]
            errors[:, j] = np.where(removed[:, j], part[:, j] / row[j], 0)
            part[:, j:] -= np.outer(errors[:, j], row[j:])
        part[removed] = 0
        w[:, right:] -= errors @ u[left:right, right:]
    return w

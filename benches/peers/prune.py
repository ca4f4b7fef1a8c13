"""Exact thresholds and masks."""

import numpy as np

import compressrs as cr
from benches.peers.measure import Target, compare, torch


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
    )

    w = w[: 4096 * 4096].reshape(4096, 4096)

    def pairs():
        groups = np.abs(w).reshape(-1, 4)
        mask = np.ones(groups.shape, bool)
        np.put_along_axis(mask, np.argpartition(groups, 2, axis=1)[:, :2], False, axis=1)
        return mask.reshape(w.shape)

    compare(
        "2:4 mask, 4096 x 4096",
        {"compressrs": lambda: cr.prune.nm_mask(w, 2, 4), "np.argpartition": pairs},
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
    )

    def blocks():
        norms = np.square(w).reshape(1024, 4, 1024, 4).sum(axis=(1, 3))
        keep = norms >= np.partition(norms.ravel(), norms.size // 2)[norms.size // 2]
        return keep.repeat(4, axis=0).repeat(4, axis=1)

    compare(
        "half of the 4 x 4 blocks, 4096 x 4096",
        {"compressrs": lambda: cr.prune.block_mask(w, (4, 4), 0.5), "np.partition": blocks},
    )

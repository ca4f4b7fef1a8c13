"""Cost in bytes, and in loss, of means that send less: ``python -m benches.traffic``.

Four ranks train a network on the digits of scikit-learn, each on batches of its own rows, for 300
steps; 5 seeds. Bytes are those that a rank sends, in all.
"""

from __future__ import annotations

from statistics import mean, stdev

import numpy as np
from sklearn.datasets import load_digits

import compressrs as cr
from compressrs import distributed

STEPS, RANKS = 300, 4

KINDS = {
    "ExactMean": lambda comm: distributed.ExactMean(comm),
    'RoundedMean("bfloat16")': lambda comm: distributed.RoundedMean(comm, "bfloat16"),
    'RoundedMean("int8")': lambda comm: distributed.RoundedMean(comm, "int8"),
    "TopKMean(density=0.05)": lambda comm: distributed.TopKMean(comm, 0.05),
    "PowerSGD(rank=4)": lambda comm: distributed.PowerSGD(comm, 4),
    "DiLoCo(every=20)": None,
}


def work(comm: distributed.Communicator, kind: str, seed: int) -> tuple[float, float, int]:
    """Return the loss and the accuracy on held-out rows, and the bytes sent."""
    data = load_digits()
    x = (data.data / 16).astype(np.float32)
    y = data.target
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = x[order], y[order]
    held, rows = np.arange(400), np.arange(400, len(x))[comm.rank :: RANKS]
    model = cr.nn.Sequential(
        cr.nn.Linear(64, 128, rng=seed), cr.nn.ReLU(), cr.nn.Linear(128, 10, rng=seed + 1)
    )
    opt = cr.optim.Adam(model.params, lr=3e-3)
    make = KINDS[kind]
    reduce = None if make is None else make(comm)
    local = distributed.DiLoCo(opt, comm, every=20) if reduce is None else None
    comm.bytes = 0
    rng = np.random.default_rng([seed, comm.rank])
    for _ in range(STEPS):
        batch = rng.choice(rows, 16)
        _, gradient = cr.nn.cross_entropy(model(x[batch]), y[batch])
        model.backward(gradient)
        if local is not None:
            local.step(model.grads)
        else:
            opt.step(reduce.mean(dict(model.grads)))
    logits = model(x[held])
    loss, _ = cr.nn.cross_entropy(logits, y[held])
    return float(loss), float(np.mean(logits.argmax(axis=1) == y[held])), comm.bytes


def main() -> None:
    print("| | MB sent by a rank | loss | accuracy, % |")
    print("|---|---|---|---|")
    for kind in KINDS:
        runs = [distributed.run_local(work, RANKS, kind, seed)[0] for seed in range(5)]
        losses, accuracies, sent = zip(*runs)
        print(
            f"| `{kind}` | {mean(sent) / 1e6:.2f} | {mean(losses):.3f} ± {stdev(losses):.3f} | "
            f"{100 * mean(accuracies):.1f} ± {100 * stdev(accuracies):.1f} |"
        )


if __name__ == "__main__":
    main()

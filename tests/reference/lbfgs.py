"""Smooth losses with their gradients, and PyTorch's L-BFGS iterates on them.

``python -m tests.reference.lbfgs`` records the iterates to tests/data/lbfgs.npz (with PyTorch 2.15
for the file in the repository).
"""

import itertools
from pathlib import Path

import numpy as np

DATA = Path(__file__).parents[1] / "data" / "lbfgs.npz"
STEPS = 4


def rosenbrock(x):
    """Return the loss and its gradient."""
    bend, rest = x[1:] - x[:-1] ** 2, 1 - x[:-1]
    gradient = np.zeros_like(x)
    gradient[1:] += 200 * bend
    gradient[:-1] -= 400 * x[:-1] * bend + 2 * rest
    return float(100 * (bend**2).sum() + (rest**2).sum()), gradient


def logistic(x):
    """Return the loss of a regularized logistic regression of 40 rows, and its gradient."""
    rng = np.random.default_rng(len(x))
    rows, labels = rng.standard_normal((40, len(x))), rng.random(40) < 0.5
    z = rows @ x
    p = 1 / (1 + np.exp(-z))
    loss = np.mean(np.logaddexp(0, z) - labels * z) + 0.01 * x @ x
    return float(loss), rows.T @ (p - labels) / 40 + 0.02 * x


def quadratic(x):
    """Return the loss of a badly conditioned quadratic, and its gradient."""
    scale = np.geomspace(1, 1e4, len(x))
    return float(0.5 * (scale * x**2).sum()), scale * x


#: Name, loss, size, and the settings.
CASES = {
    f"{loss.__name__}-{size}-{line_search}-{iterations}-{history}": (
        loss,
        size,
        {
            "lr": 1.0 if line_search else 1e-4,
            "max_iter": iterations,
            "history_size": history,
            "line_search_fn": line_search,
        },
    )
    for loss, size, line_search, iterations, history in itertools.product(
        (rosenbrock, logistic, quadratic), (2, 7), (None, "strong_wolfe"), (1, 5), (2, 10)
    )
}


def start(size):
    """Return where all cases of a size begin."""
    return np.random.default_rng(size).standard_normal(size)


def record():
    """Record PyTorch's iterates and numbers of evaluations."""
    import torch

    found = {}
    for name, (loss, size, settings) in CASES.items():
        x = torch.tensor(start(size), requires_grad=True)
        optimizer = torch.optim.LBFGS([x], **settings)

        def closure(x=x, loss=loss):
            value, gradient = loss(x.detach().numpy())
            x.grad = torch.from_numpy(gradient)
            return torch.tensor(value, dtype=torch.float64)

        iterates, evaluations = [], []
        for _ in range(STEPS):
            optimizer.step(closure)
            iterates.append(x.detach().numpy().copy())
            evaluations.append(optimizer.state[x]["func_evals"])
        found[f"{name}/x"], found[f"{name}/evaluations"] = np.array(iterates), np.array(evaluations)
    np.savez_compressed(DATA, **found)


if __name__ == "__main__":
    record()

"""Cost of low-precision storage in quality: tables and a plot for docs/few_bytes.md.

python -m benches.quality              # everything, about 20 minutes
python -m benches.quality --codes      # only the errors of codes
"""

import argparse
import importlib.util
from pathlib import Path

import ml_dtypes
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress

import compressrs as cr
from benches.quality import codes
from benches.quality.report import save
from benches.quality.tasks import TASKS

SEEDS = range(5)
POINTS = 60


def with_ours(weights, task, **storage):
    opt = cr.optim.AdamW(weights, lr=task.lr, weight_decay=task.weight_decay, **storage)

    def step(grads, lr):
        opt.param_groups[0]["lr"] = lr
        opt.step(grads)

    return step


def with_bitsandbytes(weights, task):
    """Return a step of bitsandbytes' 8-bit AdamW."""
    import bitsandbytes
    import torch

    tensors = [torch.nn.Parameter(torch.from_numpy(w)) for w in weights]
    opt = bitsandbytes.optim.AdamW8bit(tensors, lr=task.lr, weight_decay=task.weight_decay)

    def step(grads, lr):
        for tensor, g in zip(tensors, grads):
            tensor.grad = torch.from_numpy(np.ascontiguousarray(g))
        opt.param_groups[0]["lr"] = lr
        opt.step()

    return step


BF16 = ml_dtypes.bfloat16

#: Name, dtype of the weights, and a function that returns the step.
VARIANTS = {
    "float32": (np.float32, lambda w, t, seed: with_ours(w, t)),
    "8-bit state": (np.float32, lambda w, t, seed: with_ours(w, t, state_dtype="int8", seed=seed)),
    "bfloat16, stochastic": (
        BF16,
        lambda w, t, seed: with_ours(
            w, t, state_dtype="bfloat16", precision="stochastic", seed=seed
        ),
    ),
    "bfloat16, 8-bit state, stochastic": (
        BF16,
        lambda w, t, seed: with_ours(w, t, state_dtype="int8", precision="stochastic", seed=seed),
    ),
    "bfloat16, to nearest": (BF16, lambda w, t, seed: with_ours(w, t, state_dtype="bfloat16")),
}
if importlib.util.find_spec("bitsandbytes"):
    VARIANTS["bitsandbytes, 8-bit state"] = (
        np.float32,
        lambda w, t, seed: with_bitsandbytes(w, t),
    )


def train(task, dtype, make, seed, advance):
    """Return the loss at `POINTS` points of the training, the last being the final loss."""
    rng = np.random.default_rng(1000 + seed)
    weights = [w if dtype == np.float32 else w.astype(dtype) for w in task.weights]
    step = make(weights, task, seed)
    losses = []
    for i in range(task.steps):
        for computed, stored in zip(task.weights, weights):
            if computed is not stored:
                computed[...] = stored
        step(task.gradients(rng), task.lr * 0.5 * (1 + np.cos(np.pi * i / task.steps)))
        advance()
        if (i + 1) % (task.steps // POINTS) == 0:
            for computed, stored in zip(task.weights, weights):
                computed[...] = stored
            losses.append(task.loss())
    return losses


def table(results):
    names = list(TASKS)
    print(f"| | {' | '.join(names)} |\n|---|{'---:|' * len(names)}")
    for variant in VARIANTS:
        cells = []
        for task in names:
            final = np.array([losses[-1] for losses in results[task][variant]])
            base = np.mean([losses[-1] for losses in results[task]["float32"]])
            change = f" ({(final.mean() / base - 1) * 100:+.2f} %)" if variant != "float32" else ""
            cells.append(f"{final.mean():.4f} ± {final.std(ddof=1):.4f}{change}")
        print(f"| {variant} | {' | '.join(cells)} |")


def plot(results, path):
    figure = Figure((10, 3.4), layout="constrained")
    for axes, (task, by_variant) in zip(figure.subplots(1, len(results)), results.items()):
        for variant, runs in by_variant.items():
            mean = np.mean(runs, axis=0)
            steps = TASKS[task].steps * np.arange(1, len(mean) + 1) / len(mean)
            axes.plot(steps, mean, label=variant, linewidth=1.2)
        axes.set(title=task, xlabel="step", ylabel="held-out loss", yscale="log")
    figure.axes[0].legend(fontsize=6)
    save(figure, path)


def main():
    parser = argparse.ArgumentParser(
        prog="python -m benches.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--codes", action="store_true", help="only the errors of codes")
    parser.add_argument("--plot", type=Path, default=Path("docs/few_bytes.svg"), metavar="FILE")
    arguments = parser.parse_args()
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("codes", total=codes.STEPS)
        errors = codes.measure(lambda: progress.advance(bar))
        results = {task: {} for task in TASKS}
        for name, task in () if arguments.codes else TASKS.items():
            for variant, (dtype, make) in VARIANTS.items():
                bar = progress.add_task(f"{name}: {variant}", total=task.steps * len(SEEDS))
                results[name][variant] = [
                    train(task(seed), dtype, make, seed, lambda: progress.advance(bar))
                    for seed in SEEDS
                ]
    parameters = list(next(iter(errors.values())))
    print(f"| State | {' | '.join(parameters)} |\n|---|{'---:|' * len(parameters)}")
    for name, by in errors.items():
        cells = [f"{e:.3f}, {along:.3f}, {worst:.2f}" for e, along, worst in by.values()]
        print(f"| {name} | {' | '.join(cells)} |")
    if not arguments.codes:
        print()
        table(results)
        plot(results, arguments.plot)


main()

"""Cost of pruning in accuracy, by method and sparsity: tables and a plot for docs/pruning.md.

python -m benches.quality.pruning     # a few minutes

Digits, a network of 300 and 100 hidden units, 5 seeds, each with its own split. All methods
use the same total number of training steps: methods that prune a trained network divide them
between training and pruning with fine-tuning; dynamic sparse training uses all of them.
"""

import functools

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress

import compressrs as cr
from benches.quality.report import CONFIDENCE, arguments, interval, save
from compressrs.demo import HIDDEN, Data, Training, clone, mlp, weights

SEEDS = range(5)
EPOCHS, TUNING = 30, 120
SPARSITIES = (0.8, 0.9, 0.95, 0.98)
#: Fraction of the tuning phase in which a schedule prunes or a pattern changes.
PRUNING_PART = 0.7
LR = 1e-3
#: The claim of Han et al.
FACTOR = 12


class Run:
    """The data and the trained network of one seed."""

    def __init__(self, seed):
        self.seed = seed
        self.data = Data.digits(seed)
        self.training = Training(self.data, np.random.default_rng(seed), Progress(disable=True))
        self.start = mlp(HIDDEN, np.random.default_rng(seed))
        self.dense = clone(self.start)
        self.train(self.dense, EPOCHS)
        self.steps = TUNING * self.training.batches

    def train(self, model, epochs, optimizer=None, after_step=lambda: None):
        self.training.rng = np.random.default_rng(self.seed)
        loss = self.training.hard_loss
        self.training.run(
            "", model, epochs, loss, lr=LR, optimizer=optimizer, after_step=after_step
        )

    def gradual(self, sparsity, score):
        """Prune a trained network along a schedule and fine-tune it."""
        model = clone(self.dense)
        optimizer = cr.optim.Adam(model.params)
        schedule = cr.prune.CubicSchedule(
            final=sparsity, end=int(PRUNING_PART * self.steps), frequency=self.training.batches
        )
        pruner = cr.prune.Pruner(weights(model), schedule, score, optimizer=optimizer)
        grads = [model.grads[key]["weight"] for key in model.grads]
        self.train(model, TUNING, optimizer, lambda: pruner.step(grads))
        return None, self.data.accuracy(model)

    def at_once(self, sparsity, prune):
        """Prune a trained network in one shot and fine-tune it."""
        model = clone(self.dense)
        shares = cr.prune.erdos_renyi([w.shape for w in weights(model)], sparsity)
        masks = prune(self, model, shares)
        optimizer = cr.optim.Adam(model.params)
        optimizer.set_masks(
            {
                key: {"weight": mask, "bias": None}
                for key, mask in zip(model.params, masks, strict=True)
            }
        )
        before = self.data.accuracy(model)
        self.train(model, TUNING, optimizer)
        return before, self.data.accuracy(model)

    def sparse(self, sparsity, evolve):
        """Train a sparse network from scratch."""
        dense = clone(self.start)
        shares = cr.prune.erdos_renyi([w.shape for w in weights(dense)], sparsity)
        scores = cr.prune.Random(self.seed).scores(weights(dense))
        masks = iter(cr.prune.masks(scores, shares))
        layers = [
            cr.nn.SparseLinear.from_linear(layer, mask=next(masks))
            if isinstance(layer, cr.nn.Linear)
            else layer
            for layer in dense
        ]
        model = cr.nn.Sequential(*layers)
        optimizer = cr.optim.Adam(model.params)
        steps = (EPOCHS + TUNING) * self.training.batches
        dynamic = evolve(model, optimizer, int(PRUNING_PART * steps), self.seed)
        self.train(model, EPOCHS + TUNING, optimizer, dynamic.step)
        return None, self.data.accuracy(model)


def by_random(run, model, shares):
    return cr.prune.masks(cr.prune.Random(run.seed).scores(weights(model)), shares)


def by_magnitude(run, model, shares):
    return cr.prune.masks(cr.prune.Magnitude().scores(weights(model)), shares)


def by_wanda(run, model, shares):
    """Prune the same number of weights in each row."""
    statistics = cr.prune.input_statistics(model, run.data.x)
    return cr.prune.masks(cr.prune.Wanda(statistics).scores(weights(model)), shares, "row")


def by_sparsegpt(run, model, shares):
    """Prune layer by layer, with calibration inputs computed by the pruned layers before."""
    masks = []
    for i, (w, share) in enumerate(zip(weights(model), shares, strict=True)):
        statistics = cr.prune.input_statistics(model, run.data.x, gram=True)[i]
        masks.append(cr.prune.sparsegpt(w, statistics, share, block=16))
    return masks


def rigl(model, optimizer, end, seed):
    return cr.prune.RigL(model, optimizer, end=end, frequency=100)


def evolutionary(model, optimizer, end, seed):
    return cr.prune.SET(model, optimizer, end=end, frequency=100, rng=seed)


METHODS = {
    "magnitude, gradually": lambda run, s: run.gradual(s, cr.prune.Magnitude()),
    "movement, gradually": lambda run, s: run.gradual(s, cr.prune.Movement()),
    "magnitude, one-shot": lambda run, s: run.at_once(s, by_magnitude),
    "Wanda, one-shot": lambda run, s: run.at_once(s, by_wanda),
    "SparseGPT, one-shot": lambda run, s: run.at_once(s, by_sparsegpt),
    "random, one-shot": lambda run, s: run.at_once(s, by_random),
    "RigL, from scratch": lambda run, s: run.sparse(s, rigl),
    "SET, from scratch": lambda run, s: run.sparse(s, evolutionary),
}


def han(run):
    """Return the accuracies of the dense network and of one with a twelfth of the weights."""
    dense = clone(run.dense)
    run.train(dense, TUNING)
    _, pruned = run.gradual(1 - 1 / FACTOR, cr.prune.Magnitude())
    return run.data.accuracy(dense), pruned


def scan(run):
    """Return the sensitivity of each layer of the first seed's network."""
    model = clone(run.dense)
    arrays = {f"layer {i + 1}": w for i, w in enumerate(weights(model))}
    return cr.prune.sensitivity(arrays, functools.partial(run.data.accuracy, model))


def cell(values):
    """Format mean and standard deviation as percentages."""
    percent = 100 * np.array(values)
    return f"{percent.mean():.2f} ± {percent.std(ddof=1):.2f}"


def table(results, kind):
    print(f"| Method | {' | '.join(f'{s:.0%}' for s in SPARSITIES)} |")
    print(f"|---|{'---:|' * len(SPARSITIES)}")
    for method in METHODS:
        columns = [[pair[kind] for pair in results[method, s]] for s in SPARSITIES]
        if None not in columns[0]:
            print(f"| {method} | {' | '.join(map(cell, columns))} |")


def plot(results, dense, path):
    figure = Figure((7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(100 * np.mean(dense), color="gray", linestyle="--", label="dense")
    for i, method in enumerate(METHODS):
        runs = 100 * np.array([[pair[1] for pair in results[method, s]] for s in SPARSITIES])
        axes.errorbar(
            np.arange(len(SPARSITIES)) + (i - len(METHODS) / 2) / 20,
            runs.mean(axis=1),
            runs.std(axis=1, ddof=1),
            marker="osD^v<>P"[i],
            markersize=4,
            capsize=2,
            linewidth=1,
            label=method,
        )
    axes.set_xticks(range(len(SPARSITIES)), [f"{s:.0%}" for s in SPARSITIES])
    axes.set(xlabel="zeros", ylabel="test accuracy, %")
    axes.legend(fontsize=8)
    save(figure, path)


def main():
    parsed = arguments(
        "python -m benches.quality.pruning",
        __doc__,
        len(SEEDS),
        "docs/pruning.svg",
        "a standard deviation",
    )
    results, claims = {}, []
    total = parsed.seeds * (1 + len(METHODS) * len(SPARSITIES))
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("networks", total=total)
        for seed in range(parsed.seeds):
            run = Run(seed)
            if seed == 0:
                found = scan(run)
            claims.append(han(run))
            progress.advance(bar)
            for method, prune in METHODS.items():
                for s in SPARSITIES:
                    results.setdefault((method, s), []).append(prune(run, s))
                    progress.advance(bar)
    dense, pruned = np.array(claims).T
    change = 100 * (pruned - dense)
    print(f"Dense: {cell(dense)} %. {FACTOR} times fewer connections: {cell(pruned)} %.")
    within = f"{interval(change):.2f} points ({CONFIDENCE:.0%} interval)"
    print(f"Change: {change.mean():+.2f} ± {within}\n")
    table(results, 1)
    print("\nWithout fine-tuning:\n")
    table(results, 0)
    print(f"\nSensitivity, seed 0, baseline {found.baseline:.4f}:\n")
    print(found.table())
    plot(results, dense, parsed.plot)


if __name__ == "__main__":
    main()

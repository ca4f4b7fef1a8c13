"""Benefit of distillation for small students: a table and a plot for docs/distillation.md.

python -m benches.quality.students     # a few minutes

Digits, 10 seeds, each with its own split and teacher. Students are given a fraction of the
labels. They are trained on these labels alone; distilled on the labelled rows; and distilled on
all rows, where unlabelled rows use only the teacher. All take the same number of steps.
"""

import functools
import itertools

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from sklearn.model_selection import train_test_split

import compressrs as cr
from benches.quality.report import arguments, interval, save
from compressrs.demo import Data

SEEDS = range(10)
HIDDEN = (8, 16)
LABELLED = (0.1, 0.3, 1.0)
TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
STEPS, BATCH, LR, ALPHA = 4000, 32, 1e-2, 0.5
TEACHER = (300, 100)
ALONE, SAME, ALL = "labels alone", "distilled, same rows", "distilled, all rows"


def mlp(hidden, seed):
    layers = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise((64, *hidden, 10))):
        layers += [cr.nn.Linear(inputs, outputs, rng=1000 * seed + i), cr.nn.ReLU()]
    return cr.nn.Sequential(*layers[:-1])


def train(model, x, y, seed, *, teacher=None, temperature=1.0, lr=LR):
    """Train with soft targets and labels, or on labels alone, for the same number of steps."""
    optimizer = cr.optim.Adam(model.params, lr=lr)
    epochs = round(STEPS / -(-len(x) // BATCH))
    total = epochs * -(-len(x) // BATCH)
    distiller = cr.distill.Distiller(
        model,
        np.zeros((len(x), 10), np.float32) if teacher is None else teacher,
        optimizer,
        temperature=temperature,
        alpha=0.0 if teacher is None else ALPHA,
        scheduler=cr.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total),
        batch_size=BATCH,
        rng=seed,
    )
    distiller.fit(x, y, epochs=epochs)
    return model


def run(seed, advance):
    """Yield (hidden, labelled, method, temperature) and the accuracy of each student."""
    data = Data.digits(seed)
    x, y, accuracy = data.x, data.y, data.accuracy
    teacher = train(mlp(TEACHER, seed), x, y, seed, lr=1e-3)
    yield "teacher", accuracy(teacher)
    logits = teacher(x)
    for hidden, part in itertools.product(HIDDEN, LABELLED):
        rows = np.arange(len(x))
        if part < 1:
            rows, _ = train_test_split(rows, train_size=part, random_state=seed, stratify=y)
        hidden_labels = np.full(len(x), -100)
        hidden_labels[rows] = y[rows]
        start = functools.partial(mlp, (hidden,), 100 + seed)
        yield (hidden, part, ALONE, None), accuracy(train(start(), x[rows], y[rows], seed))
        advance()
        for t in TEMPERATURES:
            student = train(start(), x[rows], y[rows], seed, teacher=logits[rows], temperature=t)
            yield (hidden, part, SAME, t), accuracy(student)
            advance()
            if part < 1:
                student = train(start(), x, hidden_labels, seed, teacher=logits, temperature=t)
                yield (hidden, part, ALL, t), accuracy(student)
                advance()


def table(results):
    teacher = 100 * np.array(results["teacher"])
    print(f"Teacher: {teacher.mean():.2f} ± {interval(teacher):.2f} %\n")
    print(
        "| Hidden units | Labels | Training | T | Accuracy, % | Gain over labels alone | Better |"
    )
    print("|---:|---:|---|---:|---:|---:|---|")
    for hidden, part in itertools.product(HIDDEN, LABELLED):
        base = 100 * np.array(results[hidden, part, ALONE, None])
        for key, values in results.items():
            if key[:2] != (hidden, part):
                continue
            values, t = 100 * np.array(values), key[3]
            gain, width = (values - base).mean(), interval(values - base)
            verdict = "yes" if gain > width else "**no**" if gain < -width else "not significant"
            cells = f"{gain:+.2f} ± {width:.2f} | {verdict}" if t else "|"
            print(
                f"| {hidden} | {part:.0%} | {key[2]} | {t or '':g} | "
                if t
                else f"| {hidden} | {part:.0%} | {key[2]} | | ",
                f"{values.mean():.2f} ± {interval(values):.2f} | {cells} |",
                sep="",
            )


def plot(results, path):
    figure = Figure((9, 5.4), layout="constrained")
    grid = figure.subplots(len(HIDDEN), len(LABELLED), sharex=True, sharey="col")
    for (i, hidden), (j, part) in itertools.product(enumerate(HIDDEN), enumerate(LABELLED)):
        axes = grid[i, j]
        base = 100 * np.array(results[hidden, part, ALONE, None])
        axes.axhline(base.mean(), color="gray", label=ALONE)
        axes.axhspan(
            base.mean() - interval(base), base.mean() + interval(base), color="gray", alpha=0.2
        )
        for shift, method in ((0.97, SAME), (1.03, ALL)):
            runs = [results.get((hidden, part, method, t)) for t in TEMPERATURES]
            if runs[0] is not None:
                runs = 100 * np.array(runs)
                axes.errorbar(
                    shift * np.array(TEMPERATURES),
                    runs.mean(axis=1),
                    [interval(values) for values in runs],
                    marker="o",
                    markersize=3,
                    capsize=2,
                    linewidth=1,
                    label=method,
                )
        axes.set_xscale("log", base=2)
        axes.set_xticks(TEMPERATURES, [f"{t:g}" for t in TEMPERATURES])
        axes.set_title(f"{hidden} hidden units, {part:.0%} of the labels", fontsize=9)
    figure.supxlabel("temperature", fontsize=9)
    figure.supylabel("test accuracy, %", fontsize=9)
    grid[0, 0].legend(fontsize=7)
    save(figure, path)


def main():
    parsed = arguments(
        "python -m benches.quality.students",
        __doc__,
        len(SEEDS),
        "docs/distillation.svg",
        "an interval",
    )
    students = len(HIDDEN) * sum(
        1 + len(TEMPERATURES) * (2 if part < 1 else 1) for part in LABELLED
    )
    results = {}
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("students", total=parsed.seeds * students)
        for seed in range(parsed.seeds):
            for key, accuracy in run(seed, lambda: progress.advance(bar)):
                results.setdefault(key, []).append(accuracy)
    table(results)
    plot(results, parsed.plot)


if __name__ == "__main__":
    main()

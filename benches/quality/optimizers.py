"""Optimizers compared at equal tuning: docs/optimizers/comparison.md.

pip install mnist1d --no-deps
python -m benches.quality.optimizers --cache FOLDER            # about 20 minutes on one core
python -m benches.quality.optimizers --cache FOLDER --task conv --rule AdamW Muon
python -m benches.quality.optimizers --cache FOLDER --times    # seconds of a step, a minute
python -m benches.quality.optimizers --cache FOLDER --write docs/optimizers    # table and plot

Every rule gets 20 trials of a random search, whose draws are the same for all: the learning rate
in three decades around a usual one, weight decay, and the decay rate of the first moment. The
trial with the least loss on validation data is run again with 5 other seeds, whose loss on test
data counts. All follow a cosine schedule. Weights are float32; Muon leaves vectors, embeddings
and output layers to AdamW. Seconds are steps times the least CPU time of a step of one thread
over some runs, gradients included: losses do not depend on the machine, and need not be computed
again where times are measured.
"""

import argparse
import functools
import itertools
import json
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import compressrs as cr
from benches.quality.report import kept, save
from benches.quality.tasks import Language, cross_entropy
from compressrs.nn import Conv2d, Flatten, Linear, MaxPool, ReLU, Sequential

TRIALS, SEEDS = 20, range(100, 105)

#: Points of a curve.
POINTS = 10

#: Learning rates that ranges are centred at, and what else is searched.
RULES = {
    "SGD": (3e-2, ("weight_decay", "momentum")),
    "RMSprop": (1e-3, ("weight_decay", "momentum")),
    "Adagrad": (3e-2, ("weight_decay",)),
    "Adam": (3e-3, ("weight_decay", "betas")),
    "AdamW": (3e-3, ("weight_decay", "betas")),
    "NAdam": (3e-3, ("weight_decay", "betas")),
    "RAdam": (3e-3, ("weight_decay", "betas")),
    "Adamax": (3e-3, ("weight_decay", "betas")),
    "Lion": (3e-4, ("weight_decay", "betas")),
    "Lamb": (1e-2, ("weight_decay", "betas")),
    "Adafactor": (3e-2, ("weight_decay", "beta1")),
    "Muon": (2e-2, ("weight_decay", "momentum")),
    "Shampoo": (3e-3, ("weight_decay", "betas")),
    "SOAP": (3e-3, ("weight_decay", "betas")),
}

#: Weight decay of these is multiplied by the learning rate.
DECOUPLED = {"AdamW", "Lion", "Lamb", "Adafactor", "Muon", "Shampoo", "SOAP"}


class Classes:
    """A network that tells classes apart: its data is split into training, validation, test."""

    batch = 64

    def __init__(self, model, x, y):
        self.model = model
        self.weights = [p for layer in model for p in layer.params.values()]
        self.grads = [g for layer in model for g in layer.grads.values()]
        order = np.random.default_rng(0).permutation(len(x))
        cuts = len(x) * np.array([6, 8]) // 10
        self.parts = [(x[rows], y[rows]) for rows in np.split(order, cuts)]

    def gradients(self, rng):
        x, y = self.parts[0]
        rows = rng.integers(0, len(x), self.batch)
        self.model.backward(cross_entropy(self.model(x[rows]), y[rows])[1])
        return self.grads

    def loss(self, part):
        x, y = self.parts[part]
        return cross_entropy(self.model(x), y)[0]


class Digits(Classes):
    """Handwritten digits: 64, 100 and 100 units."""

    steps = 300

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        layers = [Linear(64, 100, rng=rng), ReLU(), Linear(100, 100, rng=rng), ReLU()]
        x, y = load_digits(return_X_y=True)
        model = Sequential(*layers, Linear(100, 10, rng=rng))
        super().__init__(model, (x / 16).astype(np.float32), y)


class Conv(Classes):
    """Handwritten digits: two convolutions of 8 and 16 channels."""

    steps = 300

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        model = Sequential(
            Conv2d(1, 8, 3, padding=1, rng=rng),
            ReLU(),
            MaxPool(2),
            Conv2d(8, 16, 3, padding=1, rng=rng),
            ReLU(),
            MaxPool(2),
            Flatten(),
            Linear(64, 10, rng=rng),
        )
        x, y = load_digits(return_X_y=True)
        super().__init__(model, (x / 16).astype(np.float32).reshape(-1, 1, 8, 8), y)


@functools.cache
def signals():
    """Make the data of MNIST-1D from its seed; nothing is downloaded."""
    import mnist1d.data

    made = mnist1d.data.make_dataset(mnist1d.data.get_dataset_args())
    x = np.concatenate([made["x"], made["x_test"]]).astype(np.float32)
    return x, np.concatenate([made["y"], made["y_test"]])


class Signals(Classes):
    """MNIST-1D (Greydanus & Kobak, arXiv 2011.14439): 40 samples of a signal, 10 classes."""

    steps = 400

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        layers = [Linear(40, 100, rng=rng), ReLU(), Linear(100, 100, rng=rng), ReLU()]
        super().__init__(Sequential(*layers, Linear(100, 10, rng=rng)), *signals())


class Characters(Language):
    """The character model of `benches.quality.tasks`, with a hidden layer of 64."""

    steps = 300
    width, hidden = 16, 64

    def loss(self, part):
        count = len(self.text) - self.context - self.train
        middle = self.train + count // 2
        first, last = ((self.train, middle), (middle, self.train + count))[part - 1]
        return self.run(np.arange(first, last, 8), backward=False)


TASKS = {"digits": Digits, "conv": Conv, "characters": Characters, "signals": Signals}
TITLES = {
    "digits": "digits, dense",
    "conv": "digits, convolutions",
    "characters": "characters",
    "signals": "MNIST-1D",
}


def settings(rule, draw):
    """Return the hyperparameters of a rule for three draws from [0, 1)."""
    centre, others = RULES[rule]
    rate, decay, memory = draw
    found = {"lr": centre * 10 ** (3 * rate - 1.5)}
    if "weight_decay" in others:
        low, high = (-3, 0) if rule in DECOUPLED else (-6, -2)
        found["weight_decay"] = 10 ** (low + (high - low) * decay)
    beta = 1 - 10 ** (-0.7 - 1.3 * memory)  # 0.8 to 0.99
    if "momentum" in others:
        found["momentum"] = beta
    if "beta1" in others:
        found["beta1"] = beta
    if "betas" in others:
        found["betas"] = (beta, 0.99)
    return found


def flat(x):
    """Return a view with two axes of what has more."""
    return x.reshape(len(x), -1) if x.ndim > 2 else x


def made(rule, work, given):
    """Return optimizers with the indices of what they train."""
    weights = [flat(w) for w in work.weights]
    cls, everything = getattr(cr.optim, rule), range(len(weights))
    if rule != "Muon":
        return [(cls(weights, **given), everything)]
    matrices = [i for i in everything if weights[i].ndim == 2]
    # Not the output layer, nor embeddings.
    inner = matrices[isinstance(work, Language) : -1]
    rest = [i for i in everything if i not in inner]
    adamw = {"lr": 0.15 * given["lr"], "weight_decay": given["weight_decay"]}
    return [
        (cls([weights[i] for i in inner], **given), inner),
        (cr.optim.AdamW([weights[i] for i in rest], **adamw), rest),
    ]


def run(task, rule, given, seed, part, points=1):
    """Return the losses of a part of the data over a run, and the CPU time of its steps."""
    work = TASKS[task](seed)
    optimizers = made(rule, work, given)
    schedules = [
        cr.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=work.steps) for opt, _ in optimizers
    ]
    rng = np.random.default_rng(seed)
    losses, spent = [], 0.0
    marks = {work.steps * (i + 1) // points for i in range(points)}
    with np.errstate(all="ignore"):
        for step in range(1, work.steps + 1):
            begin = time.process_time()
            grads = work.gradients(rng)
            for opt, indices in optimizers:
                opt.step([flat(grads[i]) for i in indices], nonfinite="skip")
            spent += time.process_time() - begin
            for schedule in schedules:
                schedule.step()
            if step in marks:
                loss = float(work.loss(part))
                losses.append(loss if np.isfinite(loss) else 1e9)
    return losses, spent


def compared(task, rule):
    """Tune a rule, and run the best setting with other seeds."""
    draws = np.random.default_rng(0).random((TRIALS, 3))
    trials = []
    for draw in draws:
        given = settings(rule, draw)
        trials.append((run(task, rule, given, 0, part=1)[0][-1], given))
    best = min(trials, key=lambda trial: trial[0])[1]
    runs = [run(task, rule, best, seed, part=2, points=POINTS) for seed in SEEDS]
    print(
        f"{task:12} {rule:10} {np.mean([losses[-1] for losses, _ in runs]):.4f}  {best}", flush=True
    )
    return {
        "settings": best,
        "trials": [loss for loss, _ in trials],
        "losses": [losses for losses, _ in runs],
    }


def time_of_steps(results):
    """Return the least CPU time of a step by task and rule, in seconds."""
    times = {}
    for task, rule in results:
        given = results[task, rule]["settings"]
        times[f"{task}-{rule}"] = min(
            run(task, rule, given, seed, part=1)[1] / TASKS[task].steps for seed in range(3)
        )
    return times


def curve(found, task):
    """Return the steps of the points of a curve, and the mean losses there."""
    steps = TASKS[task].steps * np.arange(1, POINTS + 1) / POINTS
    return steps, np.mean(found["losses"], axis=0)


def table(results, times):
    """Return lines of Markdown: losses over steps, and at the time that AdamW takes."""
    lines = []
    for task in TASKS:
        rows = {rule: results[task, rule] for rule in RULES if (task, rule) in results}
        if not rows:
            continue
        final = {rule: np.array(found["losses"])[:, -1] for rule, found in rows.items()}
        order = sorted(rows, key=lambda rule: final[rule].mean())
        lines += [
            f"## {TITLES[task]}: {TASKS[task].steps} steps",
            "",
            "| Rule | Test loss | After half of the steps | In AdamW's time | us a step |",
            "|---|---|---|---|---|",
        ]
        for rule in order:
            steps, losses = curve(rows[rule], task)
            own, usual = (times.get(f"{task}-{name}") for name in (rule, "AdamW"))
            cells = ["", ""]
            if own and usual:
                # A slower rule has taken fewer steps by then, of a schedule that goes on.
                cells = [
                    f"{np.interp(steps[-1] * usual / own, steps, losses):.4f}",
                    f"{1e6 * own:.0f}",
                ]
            name = f"**{rule}**" if rule == order[0] else rule
            lines.append(
                f"| {name} | {final[rule].mean():.4f} ± {final[rule].std(ddof=1):.4f} "
                f"| {losses[POINTS // 2 - 1]:.4f} | {' | '.join(cells)} |"
            )
        lines.append("")
    return lines


def verdicts(results):
    """Return a sentence for each task: which rule won, and whether SGD or AdamW come close."""
    for task in TASKS:
        final = {r: np.array(f["losses"])[:, -1] for (t, r), f in results.items() if t == task}
        if not final:
            continue
        order = sorted(final, key=lambda rule: final[rule].mean())
        best = final[order[0]]

        def error(rule, best=best, final=final):
            """Return the standard error of the difference from the best."""
            return np.hypot(best.std(ddof=1), final[rule].std(ddof=1)) / np.sqrt(len(best))

        near = [rule for rule in order[1:] if final[rule].mean() - best.mean() < 2 * error(rule)]
        plain = [rule for rule in ("SGD", "AdamW") if rule in (order[0], *near)]
        text = f"- {TITLES[task]}: {order[0]} has the least loss"
        text += f"; within two standard errors: {', '.join(near)}" if near else ", by far"
        text += f". {' and '.join(plain)} would do." if plain else "."
        yield text


def plot(results, times, path):
    shown = ["SGD", "AdamW", "Lion", "Muon", "Shampoo", "SOAP"]
    tasks = [task for task in TASKS if any(key[0] == task for key in results)]
    figure = Figure(figsize=(3 * len(tasks), 5.5), layout="constrained")
    axes = figure.subplots(2, len(tasks), squeeze=False)
    for column, task in enumerate(tasks):
        for rule in shown:
            if (task, rule) not in results:
                continue
            steps, losses = curve(results[task, rule], task)
            axes[0, column].plot(steps, losses, label=rule)
            seconds = times.get(f"{task}-{rule}")
            if seconds:
                axes[1, column].plot(steps * seconds, losses, label=rule)
        axes[0, column].set(title=TITLES[task], xlabel="steps", yscale="log")
        axes[1, column].set(xlabel="seconds of one CPU", yscale="log")
    axes[0, 0].set_ylabel("test loss")
    axes[1, 0].set_ylabel("test loss")
    axes[0, 0].legend(fontsize=7)
    save(figure, path)


MARKS = ("<!-- results -->", "<!-- end of results -->")


def write(results, times, folder):
    page = folder / "comparison.md"
    text = page.read_text()
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    lines = [MARKS[0], "", *verdicts(results), "", *table(results, times), MARKS[1]]
    page.write_text(before + "\n".join(lines) + after)
    plot(results, times, folder / "comparison.svg")


def main():
    parser = argparse.ArgumentParser(prog="python -m benches.quality.optimizers")
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--task", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--rule", nargs="+", default=list(RULES), choices=RULES)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--times", action="store_true", help="measure the time of steps")
    parser.add_argument("--write", type=Path, help="folder of comparison.md")
    given = parser.parse_args()
    cr.set_num_threads(1)
    results = {}
    for rule, task in itertools.product(given.rule, given.task):
        name = f"{task}-{rule}"
        only_cached = given.write or given.times
        if not only_cached or (given.cache / f"{name}.json").exists():
            results[task, rule] = kept(given.cache, name, functools.partial(compared, task, rule))
    file = given.cache / "times.json"
    if given.times:
        file.write_text(json.dumps(time_of_steps(results)))
    times = json.loads(file.read_text()) if file.exists() else {}
    print("\n".join([*verdicts(results), "", *table(results, times)]))
    if given.write:
        write(results, times, given.write)


if __name__ == "__main__":
    main()

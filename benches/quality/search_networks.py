"""Small networks under 5, 10 and 20 kB: what is searched against what is set by hand.

Digits, and the next letter of the descriptions of scikit-learn's data sets, given five. All
networks are trained for as long, and as long again once compressed.
"""

import functools
import itertools
import re

import numpy as np
from sklearn import datasets
from sklearn.model_selection import train_test_split

import compressrs as cr
from benches.quality.report import kept
from compressrs.search import Option, measure
from compressrs.search.options import OPTIONS as DEFAULT

OPTIONS = (*DEFAULT, Option(sparsity=0.97), Option(sparsity=0.99))
#: Of networks whose widths are searched, each of which is measured.
FEWER = tuple(o for o in OPTIONS if o.sparsity in (None, 0.9, 0.97) and o != Option())
SEEDS = range(5)
BUDGETS = (5_000, 10_000, 20_000)
EPOCHS, LR, BATCH = 15, 2e-3, 32
#: Choices that random search and corrections evaluate; designs of widths that searches train.
CHOICES, DESIGNS = 20, 12
#: Sparsities among which the least that fits is taken for Erdos-Renyi.
SPARSITIES = np.linspace(0.5, 0.99, 50)


def digits():
    x, y = datasets.load_digits(return_X_y=True)
    return (x / 8 - 1).astype(np.float32), y


def letters():
    """Return five letters of the data sets' descriptions, one-hot, and the next one."""
    data = datasets.load_digits, datasets.load_wine, datasets.load_breast_cancer
    data += datasets.load_diabetes, datasets.load_iris, datasets.load_linnerud
    text = " ".join(re.sub("[^a-z]+", " ", load().DESCR.lower()) for load in data)
    codes = np.array([0 if c == " " else ord(c) - ord("a") + 1 for c in text])
    starts = np.random.default_rng(0).permutation(len(codes) - 5)[:4000]
    x = np.eye(27, dtype=np.float32)[codes[starts[:, None] + np.arange(5)]]
    return x.reshape(len(starts), -1), codes[starts + 5]


#: With the widths of the network whose layers are compressed.
DATA = {"digits": (digits, (128, 64)), "letters": (letters, (64, 32))}


class Task:
    """Data of a seed: to train, to select by, and to test."""

    def __init__(self, name, seed):
        x, y = DATA[name][0]()
        x, self.x_test, y, self.y_test = train_test_split(x, y, test_size=0.25, random_state=seed)
        self.x, self.x_valid, self.y, self.y_valid = train_test_split(
            x, y, test_size=0.25, random_state=seed
        )
        self.seed, self.classes = seed, len(set(y))

    def network(self, widths):
        """Return a trained network."""
        sizes = [self.x.shape[1], *widths, self.classes]
        layers = []
        for k, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            layers += [cr.nn.Linear(inputs, outputs, rng=10 * self.seed + k), cr.nn.ReLU()]
        model = cr.nn.Sequential(*layers[:-1])
        opt, rng = cr.optim.Adam(model.params, lr=LR), np.random.default_rng(self.seed)
        for _ in range(EPOCHS):
            order = rng.permutation(len(self.x))
            for start in range(0, len(order), BATCH):
                rows = order[start : start + BATCH]
                _, gradient = cr.nn.cross_entropy(model(self.x[rows]), self.y[rows])
                model.backward(gradient)
                opt.step(model.grads)
        return model.eval()

    def compressed(self, model, found, budget, train=True, **more):
        """Return a model with what is allocated from measured tables, trained on."""
        more |= {"data": (self.x, self.y), "loss": cr.nn.cross_entropy} if train else {}
        return cr.search.compress(
            model, budget, self.x, measured=found, epochs=EPOCHS, lr=LR, rng=self.seed, **more
        ).model

    def accuracy(self, model, which="test"):
        x, y = (self.x_test, self.y_test) if which == "test" else (self.x_valid, self.y_valid)
        return float((model(x).argmax(axis=1) == y).mean())


def only(found, choice):
    """Return tables with one option a layer."""
    return cr.search.Measurements(
        found.names,
        [[options[k]] for options, k in zip(found.options, choice)],
        [errors[k : k + 1] for errors, k in zip(found.errors, choice)],
        {
            name: [cost[k : k + 1] for cost, k in zip(table, choice)]
            for name, table in found.costs.items()
        },
    )


def allocated(task, model, found, budget):
    return task.compressed(model, found, budget)


def corrected(task, model, found, budget):
    """Return the allocation after as many evaluations as random search has."""

    def loss(made):
        return cr.nn.cross_entropy(made(task.x_valid), task.y_valid)[0]

    return task.compressed(model, found, budget, evaluate=loss, trials=CHOICES)


def uniform(task, model, found, budget):
    """Return the best by validation of all options for all layers that fit."""
    best = None
    for option in OPTIONS:
        if found.cost("bytes", found.uniform(option)) <= budget:
            made = task.compressed(model, only(found, found.uniform(option)), budget)
            valid = task.accuracy(made, "valid")
            best = max(best or (valid, made), (valid, made), key=lambda one: one[0])
    return None if best is None else best[1]


def erdos_renyi(task, model, found, budget):
    """Return a model of CSR layers of the least sparsity that fits."""
    shapes = [layer.weight.shape for layer in model if isinstance(layer, cr.nn.Linear)]
    for sparsity in SPARSITIES:
        each = [Option(sparsity=s) for s in cr.prune.erdos_renyi(shapes, float(sparsity))]
        # CSR of float32 with 4 bytes an index, and a bias.
        size = sum(
            8 * round((1 - o.sparsity) * a * b) + 4 * (a + 1) + 4 * a
            for o, (a, b) in zip(each, shapes)
        )
        if size <= 1.02 * budget:
            tables = measure(model, list(dict.fromkeys(each)), task.x)
            tables = only(tables, [tables.options[k].index(o) for k, o in enumerate(each)])
            if tables.cost("bytes", [0] * len(shapes)) <= budget:
                return task.compressed(model, tables, budget)
    return None


def at_random(task, model, found, budget):
    """Return the best of random choices within the budget, compared without training."""
    rng, best = np.random.default_rng(task.seed), None
    for _ in range(CHOICES):
        for _ in range(100_000):
            choice = [int(rng.integers(len(options))) for options in found.options]
            if found.cost("bytes", choice) <= budget:
                break
        else:
            return None
        tables = only(found, choice)
        valid = task.accuracy(task.compressed(model, tables, budget, train=False), "valid")
        best = max(best or (valid, tables), (valid, tables), key=lambda one: one[0])
    return task.compressed(model, best[1], budget)


METHODS = {
    "allocated": allocated,
    "corrected": corrected,
    "uniform": uniform,
    "Erdos-Renyi, CSR": erdos_renyi,
    "random choices": at_random,
}


@functools.cache
def least(inputs, outputs):
    """Return the least bytes of a layer of this shape."""
    model = cr.nn.Sequential(cr.nn.Linear(inputs, outputs, rng=0))
    return float(min(measure(model, FEWER).costs["bytes"][0]))


def widths(task, budget):
    """Return the accuracies of what a search over widths and random search choose."""
    inputs, classes = task.x.shape[1], task.classes

    def costs(design):
        sizes = [inputs, design["first"], design["second"], classes]
        return {"bytes": sum(least(a, b) for a, b in itertools.pairwise(sizes))}

    @functools.cache
    def made(first, second):
        model = task.network((first, second))
        return task.compressed(model, measure(model, FEWER, task.x), budget)

    def sampler(seed):
        from optuna.samplers import TPESampler

        return TPESampler(seed=seed, n_startup_trials=4)

    found = cr.search.optimize(
        lambda candidate: task.accuracy(made(**candidate.design), "valid"),
        cr.search.Space({
            "first": cr.search.Int(8, 128, log=True), "second": cr.search.Int(8, 64, log=True),
        }),
        DESIGNS, directions="maximize", sampler=sampler, costs=costs, budget={"bytes": budget},
        rng=task.seed,
    )  # fmt: skip
    return [task.accuracy(made(**study.best.design)) for study in (found, found.random)]


def of_seed(name, seed, budget):
    """Return the accuracies of all methods, None for what does not fit."""
    task = Task(name, seed)
    model = task.network(DATA[name][1])
    tables = measure(model, OPTIONS, task.x)
    found = {}
    for label, method in METHODS.items():
        made = method(task, model, tables, budget)
        found[label] = None if made is None else task.accuracy(made)
    found["widths searched"], found["widths at random"] = widths(task, budget)
    return {**found, "dense": task.accuracy(model), "dense bytes": 4 * size(model)}


def networks(cache):
    """Print accuracies of small networks."""
    heads = [*METHODS, "widths searched", "widths at random", "dense"]
    print(f"Test accuracy in %, mean and standard deviation of {len(SEEDS)} seeds.\n")
    print(f"| Data | Budget, kB | {' | '.join(heads)} |\n|---|{'---:|' * (len(heads) + 1)}")
    for name in DATA:
        for budget in BUDGETS:
            label = f"networks {name} {budget}"
            runs = [
                kept(cache, f"{label} {seed}", functools.partial(of_seed, name, seed, budget))
                for seed in SEEDS
            ]
            cells = [cell([run[head] for run in runs]) for head in heads]
            cells[-1] += f", {runs[0]['dense bytes'] / 1000:.0f} kB"
            print(f"| {name} | {budget / 1000:g} | {' | '.join(cells)} |", flush=True)


def size(model):
    return sum(array.size for array in model.state_dict().values())


def cell(column):
    fitting = [100 * value for value in column if value is not None]
    if len(fitting) < len(column):
        return f"fits in {len(fitting)} of {len(column)}"
    return f"{np.mean(fitting):.1f} ± {np.std(fitting, ddof=1):.1f}"

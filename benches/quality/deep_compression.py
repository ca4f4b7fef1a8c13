"""Deep Compression (Han et al., arXiv 1510.00149) of a network of 300 and 100 hidden units.

    python -m benches.quality.deep_compression

On scikit-learn's digits, five seeds, some minutes: prune and train on, share values and train
these, code. The size is that of the file, with codebooks, positions, biases and headers; it
is compared with all weights and biases in float32. The table has the form of the paper's table 2.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from safetensors.numpy import save_file

from compressrs import checkpoint
from compressrs.demo import HIDDEN, Data, Training, mlp, weights
from compressrs.optim import Adam
from compressrs.prune import CubicSchedule, MagnitudePruner
from compressrs.quantize import Scheme, codebook_gradient, kmeans

SPARSITY = 0.96
EPOCHS, PRUNING_EPOCHS, SHARING_EPOCHS = 100, 300, 60
SHARING_LR = 1e-3
#: Of a codebook of weights, one value being 0, and of biases.
BITS, BIAS_BITS = 3, 3
RECIPE = checkpoint.Recipe(
    rules=[
        ("re:.*weight", checkpoint.Rule(quantize="codebook", entries=2**BITS)),
        *(
            (f"ip{i}.bias", checkpoint.Rule(quantize="codebook", entries=2**BIAS_BITS))
            for i in (1, 2, 3)
        ),
    ]
)


class Shared:
    """A model each of whose arrays has few values, which are trained."""

    def __init__(self, model):
        self.model = model
        self.arrays = arrays(model)
        self.codes = {
            name: kmeans(
                array,
                Scheme(BITS if array.ndim == 2 else BIAS_BITS, granularity="tensor",
                       dtype="codebook"),
                keep_zero=array.ndim == 2,
            )
            for name, array in self.arrays.items()
        }  # fmt: skip
        self.params = {name: q.codebook for name, q in self.codes.items()}
        self.decode()

    def decode(self):
        for name, q in self.codes.items():
            self.arrays[name][...] = q.dequantize()

    def __call__(self, x):
        return self.model(x)

    def backward(self, gradient):
        self.model.backward(gradient)

    @property
    def grads(self):
        """The gradients of the values; what is pruned stays 0."""
        given = arrays(self.model, "grads")
        found = {name: codebook_gradient(q, given[name]) for name, q in self.codes.items()}
        for name, gradient in found.items():
            if self.arrays[name].ndim == 2:
                gradient[self.params[name] == 0] = 0
        return found


def arrays(model, kind="params"):
    """Return a model's arrays, or their gradients, by name."""
    linear = [layer for layer in model if layer.params]
    return {
        f"ip{i + 1}.{name}": array
        for i, layer in enumerate(linear)
        for name, array in getattr(layer, kind).items()
    }


def one(seed, folder):
    """Return accuracies, bytes before and after, and the rows of the layers."""
    data = Data.digits(seed)
    rng = np.random.default_rng(seed)
    training = Training(data, rng, Progress(console=Console(file=io.StringIO())))
    dense = mlp(HIDDEN, rng)
    training.run("dense", dense, EPOCHS, training.hard_loss)
    pruned = dense.copy()
    optimizer = Adam(pruned.params)
    end = PRUNING_EPOCHS * training.batches // 2
    schedule = CubicSchedule(final=SPARSITY, begin=0, end=end, frequency=20)
    pruner = MagnitudePruner(weights(pruned), schedule, optimizer=optimizer)
    # The dense network teaches the one that it becomes.
    training.run(
        "pruning",
        pruned,
        PRUNING_EPOCHS,
        training.soft_loss(dense(data.x)),
        optimizer=optimizer,
        after_step=pruner.step,
    )
    shared = pruned.copy()
    values = Shared(shared)
    training.run(
        "sharing",
        values,
        SHARING_EPOCHS,
        training.soft_loss(dense(data.x)),
        lr=SHARING_LR,
        after_step=values.decode,
    )
    plain, small = folder / "a.safetensors", folder / "b.safetensors"
    save_file(arrays(shared), plain)
    checkpoint.compress(plain, small, RECIPE)
    layers = {}
    with checkpoint.open(small) as c:
        for name, array in arrays(shared).items():
            assert np.array_equal(c[name], array), "the file has other values than were trained"
            array[...] = c[name]
        for name in c:
            d = c.description(name)
            layer, kind = name.split(".")
            row = layers.setdefault(layer, {"bytes": 0, "size": 0})
            row["bytes"] += c.nbytes(name)
            row["size"] += d.size
            if kind == "weight":
                lengths = dict(zip(d.streams, np.sum(d.lengths, axis=0), strict=True))
                kept = d.counts[0][1]
                row["kept"] = kept / d.size
                row["code"] = 8 * int(lengths["codes"]) / kept
                row["index"] = 8 * int(lengths.get("gaps", lengths.get("bits", 0))) / kept
    before = 4 * sum(array.size for array in arrays(dense).values())
    accuracy = [data.accuracy(model) for model in (dense, pruned, shared)]
    return accuracy, before, small.stat().st_size, layers


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    with tempfile.TemporaryDirectory() as folder:
        results = [one(seed, Path(folder)) for seed in seeds]
    print("| seed | dense | pruned | shared | bytes before | bytes of the file | times smaller |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for seed, (accuracy, before, after, _) in zip(seeds, results, strict=True):
        shown = " | ".join(f"{a:.2%}" for a in accuracy)
        print(f"| {seed} | {shown} | {before:,} | {after:,} | {before / after:.1f} |")
    mean = np.mean([accuracy for accuracy, *_ in results], axis=0)
    ratio = np.mean([before / after for _, before, after, _ in results])
    print(f"| mean | {' | '.join(f'{a:.2%}' for a in mean)} | | | {ratio:.1f} |")
    print("\n| layer | weights | kept | bits a weight | bits an index | rate |")
    print("|---|---:|---:|---:|---:|---:|")
    for layer in results[0][3]:
        rows = [r[3][layer] for r in results]
        kept, code, index = (
            np.mean([row[key] for row in rows]) for key in ("kept", "code", "index")
        )
        rate = np.mean([row["bytes"] / (4 * row["size"]) for row in rows])
        size = f"{rows[0]['size']:,}"
        print(
            f"| {layer} | {size} | {kept:.1%} | {BITS}, {code:.1f} | 8, {index:.1f} | {rate:.2%} |"
        )


if __name__ == "__main__":
    main()

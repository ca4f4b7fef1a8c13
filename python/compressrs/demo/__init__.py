"""The main job: train, prune, fine-tune, sparsify, distill, predict.

On scikit-learn's bundled handwritten digits, every figure being computed by the
run. Needs the extra ``demo``.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from compressrs._arrays import flatten
from compressrs._progress import Lines
from compressrs.demo import report
from compressrs.demo.report import Report, Row
from compressrs.distill import kd_loss
from compressrs.nn import (
    BatchNorm,
    Conv2d,
    Flatten,
    Linear,
    MaxPool,
    ReLU,
    Sequential,
    SparseLinear,
    fold_batch_norm,
)
from compressrs.optim import Adam, Optimizer
from compressrs.prune import CubicSchedule, GroupPruner, MagnitudePruner

Floats = npt.NDArray[np.float32]

SPARSITY = 0.95
HIDDEN = (300, 100)
STUDENT_HIDDEN = (16,)
BATCH = 32
TEMPERATURE = 4.0
ALPHA = 0.5
#: Learning rates: of the dense network, while fine-tuning in CSR form, of a student.
DENSE_LR, SPARSE_LR, STUDENT_LR = 1e-3, 3e-4, 1e-2
#: Epochs of each phase as a multiple of the dense network's.
PRUNING_EPOCHS, SPARSE_EPOCHS, STUDENT_EPOCHS = 4, 2, 3
#: Part of the pruning phase that the schedule takes; the rest is fine-tuning.
PRUNING_PART = 0.7
#: Filters of the convolutional network, and the share of them that is removed.
FILTERS = (32, 64)
REMOVED = 0.5


@dataclass(frozen=True)
class Data:
    """Pixels in [0, 1] and classes."""

    x: Floats
    y: npt.NDArray[np.int64]
    x_test: Floats
    y_test: npt.NDArray[np.int64]

    @classmethod
    def digits(cls, seed: int) -> Data:
        """Load the digits and split off a quarter for testing, class by class."""
        pixels, classes = load_digits(return_X_y=True)
        x, x_test, y, y_test = train_test_split(
            (pixels / 16).astype(np.float32),
            classes.astype(np.int64),
            test_size=0.25,
            random_state=seed,
            stratify=classes,
        )
        return cls(x, y, x_test, y_test)

    def accuracy(self, model: Sequential) -> float:
        """Return the share of the test rows that are classified right."""
        hits = model.eval()(self.x_test).argmax(axis=1) == self.y_test
        model.train()
        return float(np.mean(hits))

    def images(self) -> Data:
        """Return the same rows as images of one channel."""
        shape = (-1, 1, 8, 8)
        return replace(self, x=self.x.reshape(shape), x_test=self.x_test.reshape(shape))


#: Loss and gradient of a batch, given the logits and the rows they are for.
Loss = Callable[[Floats, npt.NDArray[np.intp]], tuple[float, Floats]]


@dataclass
class Training:
    """Trains models on the same data, one phase after another."""

    data: Data
    rng: np.random.Generator
    progress: Progress | Lines
    losses: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def batches(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.data.x) // BATCH)

    def run(
        self,
        phase: str,
        model: Sequential,
        epochs: int,
        loss: Loss,
        *,
        lr: float = DENSE_LR,
        optimizer: Optimizer | None = None,
        after_step: Callable[[], None] = lambda: None,
        after_epoch: Callable[[], None] = lambda: None,
    ) -> None:
        """Train a model with Adam; the learning rate falls to 0 along a cosine."""
        opt = optimizer or Adam(model.params)
        total = epochs * self.batches
        losses = self.losses[phase] = []
        task = self.progress.add_task(phase, total=total)
        paused = 0.0
        start = time.perf_counter()
        for _ in range(epochs):
            for rows in np.array_split(self.rng.permutation(len(self.data.x)), self.batches):
                angle = np.pi * len(losses) / total
                opt.param_groups[0]["lr"] = lr * 0.5 * (1 + np.cos(angle))
                value, gradient = loss(model(self.data.x[rows]), rows)
                model.backward(gradient)
                opt.step(model.grads)
                after_step()
                losses.append(value)
                self.progress.advance(task)
            # What is only measured for the plots is not part of the training.
            before = time.perf_counter()
            after_epoch()
            paused += time.perf_counter() - before
        self.seconds[phase] = time.perf_counter() - start - paused

    def hard_loss(self, logits: Floats, rows: npt.NDArray[np.intp]) -> tuple[float, Floats]:
        """Cross-entropy with the labels."""
        return kd_loss(logits, logits, 1.0, self.data.y[rows], alpha=0.0)

    def soft_loss(self, teacher: Floats) -> Loss:
        """Return the distillation loss against the teacher's logits for all rows."""

        def loss(logits: Floats, rows: npt.NDArray[np.intp]) -> tuple[float, Floats]:
            return kd_loss(logits, teacher[rows], TEMPERATURE, self.data.y[rows], alpha=ALPHA)

        return loss


def mlp(hidden: tuple[int, ...], rng: np.random.Generator) -> Sequential:
    """Return a network of 64 inputs, hidden layers with ReLU, and 10 outputs."""
    sizes = (64, *hidden, 10)
    layers: list[Linear | ReLU] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [Linear(inputs, outputs, rng=rng), ReLU()]
    return Sequential(*layers[:-1])


def convnet(rng: np.random.Generator) -> Sequential:
    """Return a network of two convolutions for images of 8 x 8 places, and 10 outputs."""
    first, second = FILTERS
    return Sequential(
        Conv2d(1, first, 3, padding=1, bias=False, rng=rng),
        BatchNorm(first),
        ReLU(),
        MaxPool(2),
        Conv2d(first, second, 3, padding=1, bias=False, rng=rng),
        BatchNorm(second),
        ReLU(),
        MaxPool(2),
        Flatten(),
        Linear(4 * second, 10, rng=rng),
    )


def weights(model: Sequential) -> list[Floats]:
    """Return the weight arrays of the dense layers."""
    return [layer.weight for layer in model if isinstance(layer, Linear)]


def sparsify(model: Sequential) -> Sequential:
    """Return the model with its dense layers in CSR form."""
    return Sequential(
        *(
            SparseLinear.from_linear(layer) if isinstance(layer, Linear) else layer
            for layer in model
        )
    )


def stored_values(model: Sequential) -> int:
    """Return the number of weights and biases that are stored and not 0."""
    return sum(int(np.count_nonzero(array)) for _, array in flatten(model.params))


def bytes_on_disk(model: Sequential, folder: Path) -> int:
    """Save a model as an uncompressed ``.npz`` file and return the file's size."""
    path = folder / "model.npz"
    np.savez(path, **model.state_dict())  # type: ignore[arg-type]
    return path.stat().st_size


def rows_for(model: Sequential, data: Data) -> Data:
    """Return the data as images, if the model begins with a convolution."""
    return data.images() if isinstance(model[0], Conv2d) else data


def latency(model: Sequential, rows: Floats) -> float:
    """Return the median time in milliseconds to predict 1,000 rows."""
    batch = np.resize(rows, (1000, *rows.shape[1:]))
    model.eval()
    times: list[float] = []
    while len(times) < 5 or (len(times) < 50 and sum(times) < 1.0):
        start = time.perf_counter()
        model(batch).argmax(axis=1)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3


def run(seed: int, epochs: int, progress: Progress | Lines) -> Report:
    """Do the whole job and return its figures."""
    data = Data.digits(seed)
    rng = np.random.default_rng(seed)
    training = Training(data, rng, progress)

    dense = mlp(HIDDEN, rng)
    training.run("dense", dense, epochs, training.hard_loss)

    pruned = dense.copy()
    accuracy_over_sparsity: list[tuple[float, float]] = []
    optimizer = Adam(pruned.params)
    steps = PRUNING_EPOCHS * epochs * training.batches
    end = max(1, int(PRUNING_PART * steps))
    schedule = CubicSchedule(final=SPARSITY, begin=0, end=end, frequency=max(1, end // 50))
    pruner = MagnitudePruner(weights(pruned), schedule, optimizer=optimizer)
    training.run(
        "pruning",
        pruned,
        PRUNING_EPOCHS * epochs,
        training.hard_loss,
        optimizer=optimizer,
        after_step=pruner.step,
        after_epoch=lambda: accuracy_over_sparsity.append((pruner.sparsity, data.accuracy(pruned))),
    )

    sparse = sparsify(pruned)
    training.run("sparse", sparse, SPARSE_EPOCHS * epochs, training.hard_loss, lr=SPARSE_LR)

    student = mlp(STUDENT_HIDDEN, rng)
    alone = student.copy()
    teacher_logits = dense(data.x)
    student_epochs = STUDENT_EPOCHS * epochs
    for phase, model, loss in (
        ("student, distilled", student, training.soft_loss(teacher_logits)),
        ("student, alone", alone, training.hard_loss),
    ):
        training.run(phase, model, student_epochs, loss, lr=STUDENT_LR)

    images = replace(training, data=data.images())
    network = convnet(rng)
    images.run("convolutional", network, epochs, images.hard_loss)
    smaller = network.copy()
    optimizer = Adam(smaller.params)
    end = max(1, int(PRUNING_PART * PRUNING_EPOCHS * epochs * images.batches))
    schedule = CubicSchedule(final=REMOVED, begin=0, end=end, frequency=max(1, end // 20))
    filters = GroupPruner(smaller, schedule, optimizer=optimizer, scope="layer")
    images.run(
        "filters",
        smaller,
        PRUNING_EPOCHS * epochs,
        images.hard_loss,
        optimizer=optimizer,
        after_step=filters.step,
    )
    filters.shrink()
    smaller = fold_batch_norm(smaller.eval())

    seconds = training.seconds
    before_sparse = seconds["dense"] + seconds["pruning"]
    models = [
        ("dense", dense, seconds["dense"]),
        ("pruned, dense file", pruned, before_sparse),
        ("sparse, CSR file", sparse, before_sparse + seconds["sparse"]),
        ("student, distilled", student, seconds["dense"] + seconds["student, distilled"]),
        ("student, alone", alone, seconds["student, alone"]),
        ("convolutional", network, seconds["convolutional"]),
        ("filters removed", smaller, seconds["convolutional"] + seconds["filters"]),
    ]
    with tempfile.TemporaryDirectory() as folder:
        table = [
            Row(
                name,
                stored_values(model),
                bytes_on_disk(model, Path(folder)),
                rows_for(model, data).accuracy(model),
                latency(model, rows_for(model, data).x_test),
                duration,
            )
            for name, model, duration in models
        ]
    return Report(
        table, training.losses, accuracy_over_sparsity, seed=seed, epochs=epochs, sparsity=SPARSITY
    )


@contextmanager
def progress_bars(console: Console) -> Iterator[Progress | Lines]:
    """Show a bar for each phase, or write lines if there is no terminal."""
    if not console.is_terminal:
        yield Lines()
        return
    columns = (
        TextColumn("{task.description:20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield progress


def main(seed: int, epochs: int, output: Path, show: Callable[[Table], None]) -> Path:
    """Run the job, show its table, and write its report; return the report's path.

    The table comes first, since a disk may be full after all.

    Raises
    ------
    OSError
        If `output` cannot be written; found out before the work, where possible.
    """
    output = report.prepare(output)
    with progress_bars(Console(stderr=True)) as progress:
        result = run(seed, epochs, progress)
    # Without lines between columns, whose headings then fit 80 characters.
    table = Table(title=f"Handwritten digits, seed {seed}, {epochs} epochs", box=box.SIMPLE_HEAD)
    for i, heading in enumerate(report.HEADINGS):
        name = i == 0
        table.add_column(
            heading,
            justify="left" if name else "right",
            no_wrap=name,
            min_width=max(map(len, heading.split())),
        )
    for row in result.rows:
        table.add_row(*row.cells())
    show(table)
    report.write(output, result.html())
    return output

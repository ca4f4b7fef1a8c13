"""The whole loop: measure, allocate, compress, train on, report."""

from __future__ import annotations

import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from compressrs._arrays import Array
from compressrs._checks import count, file_path, function, number
from compressrs._files import publish
from compressrs._paths import require_distinct, require_replaceable
from compressrs._text import markdown_table
from compressrs.checkpoint import Recipe, Report, Rule
from compressrs.checkpoint import compress as compress_checkpoint
from compressrs.checkpoint import open as open_checkpoint
from compressrs.nn import FakeQuantizedLinear, Layer, Linear, QuantizedLinear
from compressrs.nn.layer import RandomState
from compressrs.search import _layers
from compressrs.search._training import train
from compressrs.search.allocation import Allocation
from compressrs.search.correction import Correction, correct
from compressrs.search.measurements import Measurements, limits_of
from compressrs.search.measuring import identity, measure
from compressrs.search.options import Option, rule_label


@dataclass(frozen=True)
class Compressed:
    """What `compress` made.

    Attributes
    ----------
    model : layer or path
        The new model, or the path of the new checkpoint.
    measurements : Measurements
    allocation : Allocation
    costs : dict of str to float
        Of the result: "bytes" are those of its arrays, or of the checkpoint's files.
    loss_before, loss_after : float or None
        What `evaluate` returns for the model given, and for the result.
    correction : Correction or None
    report : checkpoint.Report or None
        Of a checkpoint; its `seconds` are those of measuring, choosing and writing.
    recipe : checkpoint.Recipe or None
        That of the new checkpoint.
    """

    model: Any
    measurements: Measurements
    allocation: Allocation
    costs: dict[str, float]
    loss_before: float | None = None
    loss_after: float | None = None
    correction: Correction | None = None
    report: Report | None = None
    recipe: Recipe | None = None
    #: Losses of the choices that a search for the largest drop evaluated, by bytes.
    evaluated: list[tuple[float, float]] = field(default_factory=list)

    def options(self) -> dict[str, Any]:
        """Return what became of each layer."""
        return self.measurements.chosen(self.allocation.choice)

    def table(self) -> str:
        """Return what became of each layer, with its costs, as a Markdown table."""
        costs = list(self.measurements.costs)
        lines = [["Layer", "Option", "error", *costs]]
        found = self.measurements
        for i, (name, k) in enumerate(zip(found.names, self.allocation.choice, strict=True)):
            option = found.options[i][k]
            label = option.label if isinstance(option, Option) else rule_label(option)
            numbers = [found.errors[i][k], *(found.costs[c][i][k] for c in costs)]
            lines.append([name, label, *(f"{x:.6g}" for x in numbers)])
        return markdown_table(lines, 2)


def compress(
    model: Layer | str | os.PathLike[str],
    budget: float | Mapping[str, float] | None = None,
    calibration: Any = None,
    *,
    destination: str | os.PathLike[str] | None = None,
    options: Sequence[Option] | Sequence[Rule] | None = None,
    evaluate: Callable[[Any], float] | None = None,
    sensitivity: str = "output",
    max_drop: float | None = None,
    trials: int = 0,
    data: tuple[Array, Array | None] | None = None,
    loss: Callable[[Array, Array], tuple[float, Array]] | None = None,
    epochs: int = 5,
    lr: float = 1e-3,
    latency: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    workers: int = 1,
    measured: Measurements | None = None,
    rng: RandomState = 0,
    progress: bool = False,
) -> Compressed:
    """Return the best model within a budget: measure, allocate, compress, and train on.

    Each linear layer becomes what the exact allocation says. Layers of a model are compressed
    one after another, each calibrated with the inputs that the compressed layers before it
    give, by `compressrs.quantize.gptq` and `compressrs.prune.sparsegpt`.

    Parameters
    ----------
    model, calibration, options, evaluate, sensitivity, latency, cache, workers, progress
        See `measure`. A "latency" in the budget is measured for `latency` rows, 1 by default.
    budget : float, or dict of str to float, optional
        Bytes, or budgets by the name of the cost: "bytes" of the whole model, "multiply_adds"
        of its linear layers, "latency" of these (in seconds). Other layers, such as
        convolutions, stay as they are; their bytes count.
    destination : path, optional
        Of the new checkpoint, if `model` is one.
    max_drop : float, optional
        Instead of a budget: the smallest result whose loss, in the unit in which `evaluate`
        returns it (smaller is better: return an error, or minus an accuracy), is by at most
        this larger. Found by bisection along the frontier of errors and bytes.
    trials : int, default 0
        Trials of `correct`, with `evaluate`.
    data : pair of array, optional
        Inputs and targets to train the compressed model on with; targets None are what the
        model given returns for the inputs (distillation). Not for checkpoints.
    loss : callable, optional
        Of outputs and targets, with its gradient, as `compressrs.nn.cross_entropy`. Layers in
        int and uint codes train with rounding, what is sparse keeps its pattern, other codes
        stay. With `evaluate`, the result is the better of those before and after.
    measured : Measurements, optional
        Of this model, instead of measuring now.
    epochs, lr : int and float, default 5 and 1e-3
        Of Adam, batches of 32.
    rng : int, Generator or None, default 0
        Of trials and batches.

    Returns
    -------
    Compressed

    Raises
    ------
    TypeError, ValueError
        If an argument is none of these, or as `measure`; if not even the smallest result has
        such a loss; if `destination` exists as a folder, or is a file of
        the checkpoint.
    InfeasibleError
        If no choice is within the budgets; the message says what the least is.
    OSError
        If a file cannot be read or written, or `destination` is a device or a pipe.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> layers = cr.nn.Linear(64, 32, rng=0), cr.nn.ReLU(), cr.nn.Linear(32, 4, rng=1)
    >>> model = cr.nn.Sequential(*layers)
    >>> x = np.random.default_rng(0).standard_normal((200, 64)).astype(np.float32)
    >>> small = cr.search.compress(model, 2500, x)
    >>> small.costs["bytes"] <= 2500
    True
    >>> bool(np.corrcoef(small.model(x).ravel(), model(x).ravel())[0, 1] > 0.98)
    True
    """
    if (budget is None) == (max_drop is None):
        given = "none" if budget is None else "both"
        raise ValueError(
            "give either budget or max_drop with evaluate, such as budget=8000 for 8 kB, not both, "
            f"got {given}"
        )
    started = time.perf_counter()
    if budget is not None:
        limits_of(budget)
    if max_drop is not None:
        max_drop = number(max_drop, "max_drop", 0)
    trials = count(trials, "trials")
    if evaluate is not None:
        function(evaluate, "evaluate")
    elif trials or max_drop is not None:
        raise ValueError("evaluate must be given with trials and with max_drop")
    if isinstance(budget, Mapping) and "latency" in budget and latency is None:
        latency = 1
    maker: _Maker
    if isinstance(model, Layer):
        if destination is not None:
            raise ValueError("destination must be None for a model, which has a save of its own")
        if (data is None) != (loss is None):
            raise ValueError("data and loss must be given together, or neither")
        maker = _OfModel(model, calibration)
    else:
        path = file_path(model, "model")
        if data is not None or loss is not None:
            raise ValueError(
                "data and loss must be None where model is a checkpoint, which does not train"
            )
        if destination is None:
            raise ValueError("destination must be given where model is a checkpoint")
        maker = _OfCheckpoint(path, file_path(destination, "destination"), calibration)
    if measured is not None and not isinstance(measured, Measurements):
        raise TypeError(f"measured must be Measurements, got {type(measured).__name__}")
    found = measured or measure(
        model, options, calibration, evaluate=evaluate, sensitivity=sensitivity,
        latency=latency, cache=cache, workers=workers, progress=progress,
    )  # fmt: skip
    before = None if evaluate is None else number(evaluate(maker.given()), "evaluate of the model")
    correction: Correction | None = None
    evaluated: list[tuple[float, float]] = []

    def loss_of(choice: Sequence[int]) -> float:
        assert evaluate is not None
        return evaluate(maker.made(found.chosen(choice)))

    if max_drop is not None:
        assert before is not None
        allocation = _bisect(found, loss_of, before + max_drop, evaluated)
    else:
        assert budget is not None
        allocation = found.allocate(budget)
        if trials:
            correction = correct(found, budget, loss_of, trials=trials, rng=rng)
            allocation = correction.allocation
    most = budget.get("bytes") if isinstance(budget, Mapping) else budget
    coefficients = None if correction is None else correction.coefficients
    result, allocation, size = maker.make(found, allocation, budget, most, coefficients)
    if data is not None and loss is not None:
        options_of = found.chosen(allocation.choice)
        trained = _trained(result, options_of, model, data, loss, epochs, lr, rng)
        if evaluate is None or not evaluate(trained) > evaluate(result):
            result = trained
    after = None if evaluate is None else float(evaluate(maker.shown(result)))
    report = maker.report
    if report is not None:
        # What the user waited for, of which writing is the least.
        report = replace(report, seconds=time.perf_counter() - started)
    costs = {name: found.cost(name, allocation.choice) for name in found.costs}
    costs["bytes"] = float(size)
    return Compressed(
        result, found, allocation, costs, before, after, correction, report, maker.recipe,
        evaluated,
    )  # fmt: skip


def _bisect(
    found: Measurements,
    loss_of: Callable[[Sequence[int]], float],
    most: float,
    evaluated: list[tuple[float, float]],
) -> Allocation:
    """Return the cheapest point of the frontier whose loss is at most `most`."""
    frontier = found.pareto("bytes")
    low, high = 0, len(frontier) - 1

    def fits(point: int) -> bool:
        value = float(loss_of(frontier.choice(point)))
        evaluated.append((float(frontier.cost[point]), value))
        return value <= most

    if not fits(high):
        raise ValueError(
            f"max_drop must allow the choice of least error, whose loss is {evaluated[0][1]:g}, "
            f"more than {most:g}"
        )
    while low < high:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle + 1
    return frontier.within(math.nextafter(float(frontier.cost[high]), math.inf))


class _Maker:
    """Makes models from what was chosen."""

    report: Report | None = None
    recipe: Recipe | None = None

    def given(self) -> Any:
        """Return the model given, as `evaluate` takes it."""
        raise NotImplementedError

    def made(self, chosen: Mapping[str, Any]) -> Any:
        """Return a model as `evaluate` takes it."""
        raise NotImplementedError

    def make(
        self,
        found: Measurements,
        allocation: Allocation,
        budget: Any,
        most: float | None,
        coefficients: Any,
    ) -> tuple[Any, Allocation, int]:
        """Return the result, the allocation that it has, and its bytes."""
        raise NotImplementedError

    def shown(self, result: Any) -> Any:
        """Return the result as `evaluate` takes it."""
        return result


class _OfModel(_Maker):
    def __init__(self, model: Layer, calibration: Any) -> None:
        self.model = model
        self.batches = None if calibration is None else _layers.calibration_batches(calibration)

    def given(self) -> Any:
        return self.model

    def made(self, chosen: Mapping[str, Any]) -> Any:
        layers = _layers.linear_layers(self.model)
        made = _layers.replaced(self.model, {})
        for name, layer in layers.items():
            if chosen[name] == Option():
                continue
            if self.batches is None:
                seen = identity(layer.weight.shape[1])
            else:
                # What the layers before give now.
                seen = _layers.statistics(made, self.batches, [name])[name]
            made = _layers.replaced(made, {name: _layers.build(layer, chosen[name], seen)})
        return made

    def make(
        self,
        found: Measurements,
        allocation: Allocation,
        budget: Any,
        most: float | None,
        coefficients: Any,
    ) -> tuple[Any, Allocation, int]:
        result = self.made(found.chosen(allocation.choice))
        return result, allocation, _layers.nbytes(result)


class _OfCheckpoint(_Maker):
    def __init__(self, path: Path, destination: Path, calibration: Any) -> None:
        self.path, self.calibration = path, calibration
        self.destination = Path(os.path.realpath(destination))
        if self.destination.is_dir():
            raise ValueError(f"destination must not exist as a folder: {destination}")
        require_replaceable(self.destination)
        with open_checkpoint(path) as c:
            require_distinct({"destination": self.destination}, {"model": c.files.paths})
        if not self.destination.parent.is_dir():
            raise FileNotFoundError(
                f"the folder {self.destination.parent} of the destination does not exist"
            )

    def given(self) -> Any:
        return _arrays(self.path)

    def made(self, chosen: Mapping[str, Any]) -> Any:
        with tempfile.TemporaryDirectory(dir=self.destination.parent) as folder:
            target = Path(folder) / self.destination.name
            self._compress(target, chosen)
            return _arrays(target)

    def shown(self, result: Any) -> Any:
        return _arrays(result)

    def _compress(self, target: Path, chosen: Mapping[str, Any]) -> Report:
        return compress_checkpoint(
            self.path, target, _recipe(chosen), calibration=self.calibration or None
        )

    def make(
        self,
        found: Measurements,
        allocation: Allocation,
        budget: Any,
        most: float | None,
        coefficients: Any,
    ) -> tuple[Any, Allocation, int]:
        with tempfile.TemporaryDirectory(dir=self.destination.parent) as folder:
            first = Path(folder, "0") / self.destination.name
            first.parent.mkdir()
            report = self._compress(first, self._with_same(found, allocation))
            best = first, allocation, report
            if most is not None:
                # One header is shorter than many: what it saves is used.
                spare = found.cost("bytes", allocation.choice) - report.after
                more = {**(budget if isinstance(budget, Mapping) else {}), "bytes": most + spare}
                other = found.allocate(more, coefficients=coefficients)
                if other.choice != allocation.choice:
                    second = Path(folder, "1") / self.destination.name
                    second.parent.mkdir()
                    report = self._compress(second, self._with_same(found, other))
                    if report.after <= most:
                        best = second, other, report
                if best[2].after > most:
                    raise RuntimeError(f"{best[2].after} bytes exceed the budget of {most:g}")
            publish(best[0], self.destination)
        self.report = replace(best[2], destination=os.fspath(self.destination))
        self.recipe = _recipe(self._with_same(found, best[1]))
        return self.destination, best[1], best[2].after

    def _with_same(self, found: Measurements, allocation: Allocation) -> dict[str, Any]:
        chosen = found.chosen(allocation.choice)
        return {**chosen, **{name: chosen[first] for name, first in (found.same or {}).items()}}


def _recipe(chosen: Mapping[str, Any]) -> Recipe:
    return Recipe(rules=tuple((f"re:{re.escape(name)}", rule) for name, rule in chosen.items()))


def _arrays(path: Path) -> dict[str, Any]:
    with open_checkpoint(path) as c:
        return {name: c[name] for name in c}


def _trained(
    result: Any,
    chosen: Mapping[str, Any],
    model: Any,
    data: tuple[Array, Array | None],
    loss: Callable[[Array, Array], tuple[float, Array]],
    epochs: int,
    lr: float,
    rng: RandomState,
) -> Any:
    """Return the model after training; codes of int and uint train with rounding."""
    layers: dict[str, Any] = dict(result.named_layers())
    fake = {
        name: _fake(layers[name])
        for name, option in chosen.items()
        if name in layers
        and option.scheme is not None
        and option.scheme.dtype in ("int", "uint")
        and not option.prunes
    }
    student: Any = _layers.replaced(result, fake)
    train(student, model.copy().eval(), data, loss, epochs, lr, rng)
    trained: dict[str, Any] = dict(student.named_layers())
    return _layers.replaced(student, {name: trained[name].quantized() for name in fake})


def _fake(layer: QuantizedLinear) -> FakeQuantizedLinear:
    """Return a layer that trains with rounding, and starts with the codes of a layer."""
    bias = None if layer.bias is None else layer.bias.copy()
    dense = Linear.from_arrays(np.ascontiguousarray(layer.weight.dequantize()), bias)
    fake = FakeQuantizedLinear(dense, layer.weight.scheme, input=layer.input)
    fake.scale = layer.weight.scale
    if layer.weight.zero_point is not None:
        fake.buffers["zero_point"][...] = layer.weight.zero_point
    return fake

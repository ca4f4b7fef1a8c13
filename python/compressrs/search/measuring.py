"""Measurement of errors, losses, bytes and latencies of the options of layers."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compressrs import __version__
from compressrs._arrays import Array, as_array
from compressrs._checks import choice as checked_choice
from compressrs._checks import file_path, flag, function, number, sequence, whole
from compressrs._progress import progress_bar
from compressrs.checkpoint import open as open_checkpoint
from compressrs.checkpoint._source import Files
from compressrs.checkpoint.recipe import CALIBRATED, Rule
from compressrs.nn import Layer, Linear
from compressrs.prune import InputStatistics
from compressrs.search import _layers, _tensors
from compressrs.search._jobs import Cache, Job, run
from compressrs.search._tables import Floats
from compressrs.search.measurements import Measurements
from compressrs.search.options import OPTIONS, RULES, Option

#: What errors of options may be.
SENSITIVITIES = ("output", "layer", "option")

#: The least factor of a layer's errors, as a share of the mean factor.
LEAST = 0.01

#: Rounds in which latencies are measured, one call of each option after another.
ROUNDS = 31


def measure(
    model: Layer | str | os.PathLike[str],
    options: Sequence[Option] | Sequence[Rule] | None = None,
    calibration: Any = None,
    *,
    evaluate: Callable[[Any], float] | None = None,
    sensitivity: str | None = None,
    latency: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    workers: int = 1,
    progress: bool = False,
) -> Measurements:
    r"""Return the error and the costs of each option of each layer.

    The error of an option is that of the layer's output,
    :math:`\mathrm{tr}(D G D^\top) / \mathrm{tr}(W G W^\top)` with :math:`D` the change of the
    weight and :math:`G` the Gram matrix of the layer's calibration inputs: the squared error
    relative to the output. Without calibration :math:`G` is the identity.

    Parameters
    ----------
    model : Sequential or other layer made of layers, or path
        Of a model the linear layers have options. Or a checkpoint, as for
        `compressrs.checkpoint.compress`: its floating-point tensors of two axes or more.
    options : sequence of Option, or of checkpoint.Rule, optional
        For a model, or a checkpoint. Those that do not apply to a layer, as patterns that do
        not divide its rows, are left out there.
    calibration : array, iterable of array, or dict of str to InputStatistics, optional
        Inputs of the model; of a checkpoint the statistics of layers, with ``gram=True``, by
        the name of the weight, with or without ``.weight``.
    evaluate : callable, optional
        Returns the loss of a model; for a checkpoint it is given a dict of all tensors.
    sensitivity : {"output", "layer", "option"}, optional
        What errors are. "output": those above, the default without `evaluate`. "layer", the
        default with it: these, multiplied by what the layer's last option adds to the loss,
        divided by its error; at least 1 % of the mean factor, since a loss of few data does
        not show that a layer does not matter. "option": what each option adds to the loss, at
        least 0; takes an evaluation an option.
    latency : int, optional
        Rows of a batch for which the time of each option is measured on this machine, with
        the threads in use: the options of a layer in turn, the median of 31 rounds.
    cache : path, optional
        A folder in which errors and bytes are kept by a hash of what they depend on: what was
        measured is not measured again, also after the process was killed.
    workers : int, default 1
        Processes that measure errors and bytes. They import the main module, which must be
        importable, as for `multiprocessing` with "spawn".
    progress : bool, default False
        Whether to show a progress bar; requires rich.

    Returns
    -------
    Measurements

    Raises
    ------
    TypeError, ValueError
        If an argument is none of these, calibration does not fit the model, or `evaluate`
        returns NaN for the unchanged model.
    OSError
        If a file cannot be read, or a result not be kept; those before are kept.
    RuntimeError
        If processes are killed again and again.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> layers = cr.nn.Linear(16, 8, rng=0), cr.nn.ReLU(), cr.nn.Linear(8, 4, rng=1)
    >>> model = cr.nn.Sequential(*layers)
    >>> x = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
    >>> options = [cr.search.Option(), cr.search.Option(cr.quantize.Scheme(bits=4))]
    >>> found = cr.search.measure(model, options, x)
    >>> [c.tolist() for c in found.costs["bytes"]]
    [[544.0, 128.0], [144.0, 48.0]]
    >>> found.allocate(600).choice
    [1, 0]
    """
    workers = whole(workers, "workers", 1)
    if evaluate is not None:
        function(evaluate, "evaluate")
    if sensitivity is None:
        sensitivity = "output" if evaluate is None else "layer"
    checked_choice(sensitivity, "sensitivity", SENSITIVITIES)
    if evaluate is None and sensitivity != "output":
        raise ValueError(f"sensitivity {sensitivity!r} needs evaluate, got None")
    if latency is not None:
        latency = whole(latency, "latency", 1, 2**31)
    kept = Cache(None if cache is None else file_path(cache, "cache"))
    if isinstance(model, Layer):
        chosen = _options(options, OPTIONS, Option)
        task: _Task = _Model(model, chosen, calibration)
    else:
        chosen = _options(options, RULES, Rule)
        task = _Checkpoint(file_path(model, "model"), chosen, calibration)
    jobs = task.jobs()
    total = len(jobs)
    with progress_bar("measuring", total, flag(progress, "progress")) as advance:
        results = run(jobs, kept, workers, advance)
    found = task.collect(results)
    if evaluate is not None and sensitivity != "output":
        found = found.with_errors(_losses(task, found, evaluate, sensitivity == "option"))
    if latency is not None:
        found = task.timed(found, latency)
    return found


def _options(given: Any, default: tuple[Any, ...], kind: type) -> list[Any]:
    if given is None:
        return list(default)
    if isinstance(given, (str, bytes, Mapping)):
        raise TypeError(f"options must be a sequence of {kind.__name__}, got {given!r}")
    found = sequence(given, "options")
    for i, option in enumerate(found):
        if not isinstance(option, kind):
            raise TypeError(
                f"options[{i}] must be a {kind.__name__} for this model, "
                f"got {type(option).__name__}"
            )
    if not found:
        raise ValueError("options must hold at least one option, got none")
    return list(dict.fromkeys(found))


class _Task:
    """What is measured: jobs, their results as tables, and models with one layer changed."""

    def jobs(self) -> list[Job]:
        raise NotImplementedError

    def collect(self, results: Mapping[str, Any]) -> Measurements:
        raise NotImplementedError

    def whole(self) -> Any:
        """Return the unchanged model as `evaluate` takes it."""
        raise NotImplementedError

    def changed(self, name: str, option: Any) -> Any:
        """Return the model with one layer changed."""
        raise NotImplementedError

    def timed(self, found: Measurements, rows: int) -> Measurements:
        raise NotImplementedError


class _Model(_Task):
    def __init__(self, model: Layer, options: list[Option], calibration: Any) -> None:
        self.model, self.options = model, options
        self.layers = _layers.linear_layers(model)
        if calibration is None:
            # As inputs that are independent and equally large.
            self.seen = {name: identity(x.weight.shape[1]) for name, x in self.layers.items()}
        else:
            batches = _layers.calibration_batches(calibration)
            self.seen = _layers.statistics(model, batches, self.layers)

    def jobs(self) -> list[Job]:
        return [
            Job(
                name,
                self._key(layer, self.seen[name]),
                _measured,
                (layer, self.options, self.seen[name]),
            )
            for name, layer in self.layers.items()
        ]

    def _key(self, layer: Linear, seen: InputStatistics) -> str:
        text = f"{__version__} {layer.config()} {seen.count} {self.options}"
        found = hashlib.blake2b(text.encode(), digest_size=16)
        for array in (layer.weight, seen.gram):
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    def collect(self, results: Mapping[str, Any]) -> Measurements:
        names: list[str] = []
        options: list[list[Any]] = []
        errors: list[Floats] = []
        costs: dict[str, list[Floats]] = {"bytes": [], "multiply_adds": []}
        for job in self.jobs():
            _gather(job.name, self.options, results[job.key], names, options, errors, costs)
        rest = [x for name, x in self.model.named_layers() if name not in self.layers]
        fixed = sum(map(_layers.nbytes, rest))
        if fixed:
            names.append("other layers")
            options.append([Option()])
            errors.append(np.zeros(1))
            costs["bytes"].append(np.array([float(fixed)]))
            costs["multiply_adds"].append(np.zeros(1))
        return Measurements(names, options, errors, costs)

    def whole(self) -> Any:
        return self.model

    def changed(self, name: str, option: Any) -> Any:
        layer = _layers.build(self.layers[name], option, self.seen[name])
        return _layers.replaced(self.model, {name: layer})

    def timed(self, found: Measurements, rows: int) -> Measurements:
        medians, noise = [], []
        for name, options in zip(found.names, found.options, strict=True):
            if name not in self.layers:
                medians.append(np.zeros(1))
                noise.append(np.zeros(1))
                continue
            layer = self.layers[name]
            made = [_layers.build(layer, option, self.seen[name]) for option in options]
            x = _inputs(rows, layer.weight.shape[1], layer.weight.dtype)
            median, spread = latencies(made, x)
            medians.append(median)
            noise.append(spread)
        return _with_latency(found, medians, noise)


class _Checkpoint(_Task):
    def __init__(self, path: Path, rules: list[Rule], calibration: Any) -> None:
        if calibration is not None and not isinstance(calibration, Mapping):
            raise TypeError(
                "calibration must be a dict of InputStatistics for a checkpoint, "
                f"got {type(calibration).__name__}"
            )
        for name, seen in (calibration or {}).items():
            if not isinstance(seen, InputStatistics) or seen.gram is None:
                raise TypeError(f"calibration[{name!r}] must be InputStatistics with gram=True")
        self.path, self.rules, self.calibration = os.fspath(path), rules, calibration
        self._arrays: dict[str, Array] | None = None
        self.digests: dict[str, str] = {}
        self.same: dict[str, str] = {}
        first: dict[str, str] = {}
        with Files(self.path) as files:
            self.entries = {name: located.entry for name, located in files.tensors.items()}
        for name in self.entries:
            digest = _tensors.digest(self.path, name)
            if digest in first:
                self.same[name] = first[digest]
            else:
                first[digest] = name
                self.digests[name] = digest

    def _rules(self, name: str) -> list[Rule]:
        if not _tensors.chosen(name, self.entries[name]):
            return [Rule()]
        seen = _tensors.statistics_of(name, self.calibration)
        return [r for r in self.rules if seen is not None or r.method not in CALIBRATED]

    def jobs(self) -> list[Job]:
        jobs = []
        for name, digest in self.digests.items():
            rules, seen = self._rules(name), _tensors.statistics_of(name, self.calibration)
            key = _tensors.key_of(digest, rules, seen)
            jobs.append(Job(name, key, _tensors.measure, (self.path, name, rules, seen)))
        return jobs

    def collect(self, results: Mapping[str, Any]) -> Measurements:
        names: list[str] = []
        options: list[list[Any]] = []
        errors: list[Floats] = []
        costs: dict[str, list[Floats]] = {"bytes": []}
        for job in self.jobs():
            rules = self._rules(job.name)
            _gather(job.name, rules, results[job.key], names, options, errors, costs)
        return Measurements(names, options, errors, costs, same=self.same)

    def whole(self) -> Any:
        if self._arrays is None:
            with open_checkpoint(self.path) as c:
                self._arrays = {name: c[name] for name in c}
        return dict(self._arrays)

    def changed(self, name: str, option: Any) -> Any:
        new = _tensors.decoded(
            self.path, name, option, _tensors.statistics_of(name, self.calibration)
        )
        others = [other for other, first in self.same.items() if first == name]
        return {**self.whole(), **dict.fromkeys([name, *others], new)}

    def timed(self, found: Measurements, rows: int) -> Measurements:
        medians, noise = [], []
        for name, rules in zip(found.names, found.options, strict=True):
            entry = self.entries[name]
            matrix = len(entry.shape) == 2 and name.endswith(".weight")
            if not (matrix and _tensors.chosen(name, entry)):
                medians.append(np.zeros(len(rules)))
                noise.append(np.zeros(len(rules)))
                continue
            seen = _tensors.statistics_of(name, self.calibration)
            made = [_tensors.layer(self.path, name, rule, seen) for rule in rules]
            dtype = np.dtype("float64" if entry.dtype == "F64" else "float32")
            median, spread = latencies(made, _inputs(rows, entry.shape[1], dtype))
            medians.append(median)
            noise.append(spread)
        return _with_latency(found, medians, noise)


def identity(features: int) -> InputStatistics:
    """Return statistics of inputs whose Gram matrix is the identity."""
    seen = InputStatistics(features, gram=True)
    seen.update(np.eye(features))
    return seen


def _measured(
    layer: Linear, options: Sequence[Option], seen: InputStatistics
) -> list[dict[str, Any]]:
    """Return what is measured of each option of a layer of a model."""
    found: list[dict[str, Any]] = []
    for option in options:
        try:
            made = _layers.build(layer, option, seen)
        except ValueError as error:
            found.append({"refused": str(error)})
            continue
        new = _layers.weight_of(made)
        found.append(
            {
                "error": _layers.relative_error(layer.weight, new, seen.gram),
                "bytes": _layers.nbytes(made),
                "multiply_adds": _layers.multiply_adds(made),
            }
        )
    return found


def _gather(
    name: str,
    options: Sequence[Any],
    results: Sequence[Mapping[str, Any]],
    names: list[str],
    found: list[list[Any]],
    errors: list[Floats],
    costs: dict[str, list[Floats]],
) -> None:
    """Add the options of a layer that apply to it."""
    applying = [(o, r) for o, r in zip(options, results, strict=True) if "refused" not in r]
    if not applying:
        said = results[0]["refused"] if results else "they need calibration"
        raise ValueError(f"options must have one that applies to {name!r}: {said}")
    names.append(name)
    found.append([option for option, _ in applying])
    errors.append(np.array([float(r["error"]) for _, r in applying]))
    for cost, table in costs.items():
        table.append(np.array([float(r[cost]) for _, r in applying]))


def _losses(
    task: _Task, found: Measurements, evaluate: Callable[[Any], float], every: bool
) -> list[Floats]:
    """Return errors in units of the loss."""
    baseline = number(evaluate(task.whole()), "evaluate of the unchanged model")
    errors = []
    if every:
        for name, options, error in zip(found.names, found.options, found.errors, strict=True):
            added = np.zeros(len(options))
            for k in np.flatnonzero(error > 0):
                added[k] = _added(task, name, options[k], evaluate, baseline)
            errors.append(added)
        return errors
    factors = np.full(len(found.names), np.nan)
    for i, (name, error) in enumerate(zip(found.names, found.errors, strict=True)):
        lossy = np.flatnonzero(error > 0)
        if len(lossy):
            last = int(lossy[-1])
            added_by_last = _added(task, name, found.options[i][last], evaluate, baseline)
            factors[i] = added_by_last / error[last]
    known = factors[~np.isnan(factors)]
    if len(known) == 0 or known.max() == 0:
        return found.errors
    factors = np.maximum(np.where(np.isnan(factors), 0.0, factors), LEAST * known.mean())
    return [factor * error for factor, error in zip(factors, found.errors, strict=True)]


def _added(
    task: _Task, name: str, option: Any, evaluate: Callable[[Any], float], baseline: float
) -> float:
    loss = number(evaluate(task.changed(name, option)), f"evaluate of {name}", finite=False)
    if not np.isfinite(loss):
        # No choice should have it, and sums must stay finite.
        return 1e6 * max(abs(baseline), 1.0)
    # An improvement by noise of rounding is none.
    return max(loss - baseline, 0.0)


def _inputs(rows: int, features: int, dtype: np.dtype[Any]) -> Array:
    x = np.random.default_rng(0).standard_normal((rows, features))
    return x.astype(dtype)


def latencies(layers: Sequence[Layer], x: Array) -> tuple[Floats, Floats]:
    """Return the median time of each layer in seconds, and half the range of the quartiles."""
    x = as_array(x, "x")
    for layer in layers:
        layer.eval()
        layer.forward(x)
    times = np.empty((ROUNDS, len(layers)))
    for row in times:
        for k, layer in enumerate(layers):
            started = time.perf_counter()
            layer.forward(x)
            row[k] = time.perf_counter() - started
    low, median, high = np.quantile(times, (0.25, 0.5, 0.75), axis=0)
    return median, (high - low) / 2


def _with_latency(found: Measurements, medians: list[Floats], noise: list[Floats]) -> Measurements:
    costs = {**found.costs, "latency": medians}
    return Measurements(found.names, found.options, found.errors, costs, noise, found.same)

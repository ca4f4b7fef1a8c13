"""All public names, found by introspection, and an example instance of every public class."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import compressrs
from compressrs import (
    TrainState,
    checkpoint,
    distill,
    distributed,
    nn,
    optim,
    prune,
    quantize,
    search,
    sparse,
)
from compressrs.optim import lr_scheduler


def packages() -> Iterator[tuple[str, ModuleType]]:
    """Yield every public module: those that a package's ``__all__`` names, at any depth."""

    yield from _below("compressrs", importlib.import_module("compressrs"))


def extras() -> Iterator[tuple[str, ModuleType]]:
    """Yield the public modules of the frameworks that are installed."""
    for extra in compressrs._EXTRAS:
        if importlib.util.find_spec(extra) is not None:
            yield from _below(f"compressrs.{extra}", getattr(compressrs, extra))


def _below(name: str, module: ModuleType) -> Iterator[tuple[str, ModuleType]]:
    yield name, module
    for child in module.__all__:
        found = getattr(module, child)
        if inspect.ismodule(found):
            yield from _below(f"{name}.{child}", found)


def names(
    modules: Callable[[], Iterator[tuple[str, ModuleType]]] = packages,
) -> dict[str, Any]:
    """Return every public object but modules by its name without ``compressrs.``."""
    return {
        f"{package}.{name}".removeprefix("compressrs."): getattr(module, name)
        for package, module in modules()
        for name in module.__all__
        if not inspect.ismodule(getattr(module, name))
    }


def classes() -> dict[str, type]:
    """Return every public class by its name."""
    return {name: value for name, value in names().items() if inspect.isclass(value)}


class Example(NamedTuple):
    """An object, with objects that belong to it, and a function whose result shows its state."""

    make: Callable[[], Any]
    use: Callable[[Any], Any]
    #: Of what a layer is given.
    shape: tuple[int, ...] | None = None
    dtype: Any = np.float64


#: Abstract bases and protocols, which are not instantiated.
ABSTRACT = {
    "distributed.Communicator",
    "distributed.GradientMean",
    "distributed.federated.Strategy",
    "nn.Affine",
    "nn.Layer",
    "optim.Optimizer",
    "optim.lr_scheduler.LRScheduler",
    "quantize.Observer",
    "sparse.SparseMatrix",
}


class Weights(nn.Layer):
    """Arrays in an object: of arrays in a dict joblib makes two where two hold them."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.params = {"a": rng.standard_normal((8, 16)), "b": rng.standard_normal((4, 16))}

    def gradients(self) -> dict[str, Any]:
        return {name: np.cos(value) for name, value in self.params.items()}

    def copies(self) -> list[Any]:
        return [value.copy() for value in self.params.values()]


def dense() -> Any:
    w = np.random.default_rng(1).standard_normal((16, 32))
    w[:, ::2] = 0
    return w


def train(objects: tuple[Any, ...]) -> list[Any]:
    opt, model = objects
    opt.step(model.gradients())
    return model.copies()


def optimizer(kind: Callable[[Any], Any]) -> Example:
    def make() -> Any:
        model = Weights()
        return kind(model.params), model

    return Example(make, train)


def by_closure(kind: Callable[[Any], Any]) -> Example:
    def make() -> Any:
        model = Weights()
        return kind(model.params), model

    def use(objects: Any) -> Any:
        found, model = objects
        found.step(lambda: half_square(model.params))
        return model.copies()

    return Example(make, use)


def half_square(params: Any) -> Any:
    loss = sum(0.5 * float(np.square(w).sum()) for w in params.values())
    return loss, {name: w.copy() for name, w in params.items()}


def schedule(make: Callable[[Any], Any]) -> Example:
    def both() -> Any:
        opt = optim.SGD(Weights().params, lr=1.0, momentum=0.5)
        return make(opt), opt

    def use(objects: Any) -> Any:
        scheduler, opt = objects
        metric = (1.0,) if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else ()
        scheduler.step(*metric)
        return [opt.param_groups[0]["lr"], opt.param_groups[0]["momentum"]]

    return Example(both, use)


def matrix(make: Callable[[], Any]) -> Example:
    def use(a: Any) -> Any:
        y = a.matmul(np.linspace(-1, 1, a.shape[1]))
        data = getattr(a, "T", a).data if isinstance(a, sparse.TransposedMatrix) else a.data
        data *= 2
        return [y, a.to_dense()]

    return Example(make, use)


def layer(
    make: Callable[[], Any], shape: tuple[int, ...] = (2, 32), dtype: Any = np.float64
) -> Example:
    def both() -> Any:
        model = make()
        return model, optim.Adam(model.params) if model.params else None

    def use(objects: Any) -> Any:
        model, opt = objects
        y = model.forward(np.linspace(-1, 1, 64, dtype=dtype).reshape(shape))
        dx = model.backward(np.sin(y))
        if opt is not None:
            opt.step(model.grads)
        return [y, dx]

    return Example(both, use, shape, dtype)


def score(make: Callable[[], Any]) -> Example:
    def use(found: Any) -> Any:
        params = Weights().copies()
        found.update(params, [np.cos(w) for w in params])
        return found.scores(params)

    return Example(make, use)


def wanda() -> Any:
    statistics = [prune.InputStatistics(16), prune.InputStatistics(16)]
    for i, one in enumerate(statistics):
        one.update(dense()[:, i : 16 + i])
    return prune.Wanda(statistics)


def pruner(kind: Callable[..., Any]) -> Example:
    def make() -> Any:
        model = Weights()
        opt, schedule = optim.Adam(model.params), prune.CubicSchedule(final=0.5, end=4)
        return kind(model.params, schedule, optimizer=opt), opt, model

    def use(objects: Any) -> Any:
        found, opt, model = objects
        opt.step(model.gradients())
        found.step(model.gradients())
        return [*model.copies(), found.sparsity]

    return Example(make, use)


def sparse_training(kind: Callable[..., Any]) -> Example:
    def make() -> Any:
        model = nn.SparseLinear(sparse.CSRMatrix.from_dense(dense()))
        opt = optim.Adam(model.params)
        return kind(model, opt, frequency=1, end=100), model, opt

    def use(objects: Any) -> Any:
        found, model, opt = objects
        model.backward(np.sin(model(np.linspace(-1, 1, 64).reshape(2, 32))))
        opt.step(model.grads)
        found.step()
        return [model.weight.to_dense(), opt.state[0]["exp_avg"].copy()]

    return Example(make, use)


def with_params(make: Callable[[Any], Any], use: Callable[[Any, Any], Any]) -> Example:
    def both() -> Any:
        model = Weights()
        return make(model.params), model

    def using(objects: Any) -> Any:
        found, model = objects
        for w in model.params.values():
            w *= 1.5
        use(found, model.params)
        return model.copies()

    return Example(both, using)


def use_ema(ema: Any, params: Any) -> None:
    ema.update()
    with ema.applied():
        applied = [w.copy() for w in params.values()]
    for w, average, a in zip(params.values(), ema.average.values(), applied, strict=True):
        assert (average == a).all()
        w += average


def use_accumulator(accumulator: Any) -> Any:
    return [accumulator.add(np.arange(3.0)) is None, accumulator.add(np.arange(3.0))]


def use_rows(gradient: Any) -> Any:
    return [gradient.rows, gradient.values, gradient.dense(3)]


def statistics_use(statistics: Any) -> Any:
    statistics.update(np.linspace(-1, 1, 8).reshape(2, 4))
    return [statistics.count, statistics.norms, statistics.gram.copy()]


def distiller() -> Any:
    student = nn.Linear(4, 3, rng=0)
    opt = optim.Adam(student.params)
    logits = np.random.default_rng(2).standard_normal((8, 3)).astype(np.float32)
    return distill.Distiller(student, logits, opt, batch_size=4), student


def use_distiller(objects: Any) -> Any:
    found, student = objects
    x = np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4)
    y = np.arange(8) % 3
    found.fit(x, y, epochs=len(found.history) + 1)
    return [student.weight.copy(), found.history[-1].loss]


def parallel_distiller() -> Any:
    student = nn.Linear(4, 3, rng=0)
    opt = distributed.ShardedOptimizer(optim.Adam, student.params, microbatches=2)
    logits = np.random.default_rng(2).standard_normal((8, 3)).astype(np.float32)
    return distributed.DataParallelDistiller(student, logits, opt, batch_size=4), student


def local_steps() -> Any:
    model = Weights()
    return distributed.DiLoCo(optim.Adam(model.params), every=2), model


def federated_rounds(make: Callable[[Any, Any, Any], Any]) -> Example:
    """A strategy of a model, with a client; or, for None, the client."""
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((8, 4)).astype(np.float32), np.arange(8) % 3

    def start() -> Any:
        own, model = nn.Linear(4, 3, rng=0), nn.Linear(4, 3, rng=1)
        client = distributed.federated.Client(own, optim.Adam(own.params), x, y, public=x)
        return make(model, optim.Adam(model.params), x) or client, client

    def use(objects: Any) -> Any:
        found, client = objects
        if found is client:
            return list(client.answer("logits", {}).arrays.values())
        distributed.federated.simulate(found, [client], 1)
        return [*client.model.params.values(), *found.request().values()]

    return Example(start, use)


def mean_of(make: Callable[[], Any]) -> Example:
    def use(found: Any) -> Any:
        grads = Weights().gradients()
        return [mean for _ in range(2) for mean in found.mean(grads).values()]

    return Example(make, use)


def classifier() -> Any:
    from sklearn.linear_model import LogisticRegression

    x, y = dense()[:, 1:9:2], np.arange(16) % 2
    found = distill.DistilledClassifier(LogisticRegression(), (4,), epochs=2, random_state=0)
    return found.fit(x, y)


def use_classifier(found: Any) -> Any:
    return [found.predict_proba(dense()[:, 1:9:2]), found.classes_]


def regressor() -> Any:
    from sklearn.linear_model import Ridge

    x = dense()[:, 1:9:2]
    return distill.DistilledRegressor(Ridge(), (4,), epochs=2, random_state=0).fit(x, x[:, 0])


def use_embedding(model: Any) -> Any:
    y = model(np.array([1, 3, 1]))
    model.backward(y)
    model.weight -= model.grads["weight"]
    return [y, model.weight.copy()]


def perceptron() -> Any:
    return nn.Sequential(nn.Linear(4, 8, rng=0), nn.ReLU(), nn.Linear(8, 3, rng=1))


def group_pruner() -> Any:
    return prune.GroupPruner(perceptron(), prune.CubicSchedule(end=3))


def use_group_pruner(found: Any) -> Any:
    found.step()
    return [found.sparsity, *found.keep.values(), *found._model.state_dict().values()]


def list_of_group(group: Any) -> Any:
    return [group.name, group.size, *group.members, group.scores(perceptron())]


def run() -> Any:
    model = perceptron()
    return TrainState(model=model, optimizer=optim.Adam(model.params), rng=np.random.default_rng(0))


def use_run(found: Any) -> Any:
    model = found.parts["model"]
    x = found.parts["rng"].standard_normal((2, 4)).astype(np.float32)
    model.backward(model(x))
    found.parts["optimizer"].step(model.grads)
    return [found.step_count, *(x.copy() for x in model.state_dict().values())]


@functools.cache
def folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def weights_file() -> Any:
    path = Path(folder().name) / "w.safetensors"
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    return checkpoint.open(path)


def cache() -> Any:
    x = np.random.default_rng(3).standard_normal((6, 3)).astype(np.float32)
    return distill.TeacherCache.write(Path(folder().name) / "cache", lambda rows: rows, x)


def options() -> Any:
    errors = [np.array([0.0, 1.0])] * 2
    kinds = [[search.Option(), search.Option(sparsity=0.5)]] * 2
    return search.Measurements(["a", "b"], kinds, errors, {"bytes": [np.array([2.0, 1.0])] * 2})


def space() -> Any:
    return search.Space({"a": search.Int(1, 3), "b": search.Choice(["x"], when={"a": 2})})


def study() -> Any:
    done = [
        search.Evaluation(k, {"a": k}, "complete", {"value": 1 / k, "bytes": float(k)})
        for k in (1, 3)
    ]
    failed = search.Evaluation(3, {"a": 2, "b": "x"}, "failed", error="ValueError")
    directions = {"value": "minimize", "bytes": "minimize"}
    return search.Study(space(), directions, "random", [*done, failed])


def call(times: int = 4) -> Callable[[Any], Any]:
    return lambda found: [found(step) for step in range(times)]


def masks_of(granularity: Any) -> Any:
    return [prune.masks(np.abs(dense()), 0.5, "layer", granularity), repr(granularity)]


def sensitivity() -> Any:
    w = {"a": np.arange(4.0)}
    return prune.sensitivity(w, lambda: float(w["a"].sum()), [0.5])


def quantized(**scheme: Any) -> Example:
    def make() -> Any:
        found = quantize.Scheme(**scheme)
        return (quantize.kmeans if found.dtype == "codebook" else quantize.quantize)(dense(), found)

    def use(q: Any) -> Any:
        q.scale *= 2
        return [q.codes, q.scale, q.zero_point, q.dequantize(), repr(q)]

    return Example(make, use)


def observer(make: Callable[[], Any]) -> Example:
    def use(found: Any) -> Any:
        found.update((found.count + 1) * dense())
        return [found.count, *found.range()]

    return Example(make, use)


EXAMPLES: dict[str, Example] = {
    "distributed.DataParallelDistiller": Example(parallel_distiller, use_distiller),
    "distributed.DiLoCo": Example(local_steps, train),
    "distributed.ExactMean": mean_of(distributed.ExactMean),
    "distributed.PowerSGD": mean_of(lambda: distributed.PowerSGD(rank=1)),
    "distributed.RoundedMean": mean_of(lambda: distributed.RoundedMean(dtype="int8")),
    "distributed.TopKMean": mean_of(distributed.TopKMean),
    "distributed.federated.Client": federated_rounds(lambda model, opt, x: None),
    "distributed.federated.FedAvg": federated_rounds(
        lambda model, opt, x: distributed.federated.FedAvg(model)
    ),
    "distributed.federated.FedDF": federated_rounds(distributed.federated.FedDF),
    "distributed.federated.FedMD": federated_rounds(
        lambda model, opt, x: distributed.federated.FedMD(x, 3)
    ),
    "distributed.federated.Reply": Example(
        lambda: distributed.federated.Reply(1, {"logits": np.ones((2, 3))}, 2),
        lambda reply: [reply.rows, *reply.arrays.values()],
    ),
    "distributed.LocalCommunicator": Example(
        distributed.LocalCommunicator, lambda comm: comm.allgather(comm.rank)
    ),
    "distributed.RankError": Example(
        lambda: distributed.RankError("failed", 2), lambda error: [str(error), error.rank]
    ),
    "distributed.ShardedOptimizer": optimizer(
        lambda params: distributed.ShardedOptimizer(optim.Adam, params)
    ),
    # Every subclass of Optimizer, so that new rules need no entry here.
    **{
        f"optim.{kind.__name__}": optimizer(kind)
        for kind in map(functools.partial(getattr, optim), optim.__all__)
        if inspect.isclass(kind)
        and issubclass(kind, optim.Optimizer)
        and kind is not optim.Optimizer
    },
    "optim.EMA": with_params(optim.EMA, use_ema),
    "optim.Lookahead": optimizer(lambda params: optim.Lookahead(optim.Adam(params), k=2)),
    "optim.ScheduleFree": optimizer(
        lambda params: optim.ScheduleFree(params, lambda z: optim.SGD(z, lr=0.1))
    ),
    "optim.SWA": with_params(optim.SWA, use_ema),
    "optim.SAM": by_closure(lambda params: optim.SAM(optim.Adam(params))),
    "optim.LBFGS": by_closure(lambda params: optim.LBFGS(params, max_iter=3)),
    "optim.Found": Example(lambda: optim.Found(1.0, [2.0, 1.0]), repr),
    "optim.LRRange": Example(
        lambda: optim.LRRange([0.1, 0.2, 0.4], [3.0, 1.0, 2.0]),
        lambda found: [*found.smoothed, found.suggestion, repr(found)],
    ),
    "optim.RowGradient": Example(
        lambda: optim.RowGradient([2, 0, 2], np.arange(6.0).reshape(3, 2)), use_rows
    ),
    "optim.GradientAccumulator": Example(lambda: optim.GradientAccumulator(2), use_accumulator),
    "optim.NonFiniteGradientError": Example(lambda: optim.NonFiniteGradientError("a"), str),
    "optim.lr_scheduler.ChainedScheduler": schedule(
        lambda opt: lr_scheduler.ChainedScheduler(
            [lr_scheduler.StepLR(opt, 2), lr_scheduler.ExponentialLR(opt, 0.9)]
        )
    ),
    "optim.lr_scheduler.ConstantLR": schedule(lr_scheduler.ConstantLR),
    "optim.lr_scheduler.CosineAnnealingLR": schedule(
        lambda opt: lr_scheduler.CosineAnnealingLR(opt, 5)
    ),
    "optim.lr_scheduler.CosineAnnealingWarmRestarts": schedule(
        lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 3)
    ),
    "optim.lr_scheduler.CyclicLR": schedule(lambda opt: lr_scheduler.CyclicLR(opt, 0.1, 1.0, 3)),
    "optim.lr_scheduler.ExponentialLR": schedule(lambda opt: lr_scheduler.ExponentialLR(opt, 0.9)),
    "optim.lr_scheduler.LambdaLR": schedule(
        lambda opt: lr_scheduler.LambdaLR(opt, prune.OneShot(0.5, begin=2))
    ),
    "optim.lr_scheduler.LinearLR": schedule(lr_scheduler.LinearLR),
    "optim.lr_scheduler.MultiStepLR": schedule(lambda opt: lr_scheduler.MultiStepLR(opt, [1, 3])),
    "optim.lr_scheduler.MultiplicativeLR": schedule(
        lambda opt: lr_scheduler.MultiplicativeLR(opt, prune.OneShot(0.5))
    ),
    "optim.lr_scheduler.OneCycleLR": schedule(
        lambda opt: lr_scheduler.OneCycleLR(opt, 1.0, total_steps=9)
    ),
    "optim.lr_scheduler.PolynomialLR": schedule(lr_scheduler.PolynomialLR),
    "optim.lr_scheduler.ReduceLROnPlateau": schedule(
        lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=1)
    ),
    "optim.lr_scheduler.SequentialLR": schedule(
        lambda opt: lr_scheduler.SequentialLR(
            opt, [lr_scheduler.ConstantLR(opt), lr_scheduler.ExponentialLR(opt, 0.9)], [2]
        )
    ),
    "optim.lr_scheduler.StepLR": schedule(lambda opt: lr_scheduler.StepLR(opt, 1)),
    "sparse.CSRMatrix": matrix(lambda: sparse.CSRMatrix.from_dense(dense())),
    "sparse.BSRMatrix": matrix(lambda: sparse.BSRMatrix.from_dense(dense(), (4, 4))),
    "sparse.NMMatrix": matrix(lambda: sparse.NMMatrix.from_dense(dense())),
    "sparse.TransposedMatrix": matrix(lambda: sparse.CSRMatrix.from_dense(dense()).T),
    "nn.Linear": layer(lambda: nn.Linear(32, 4, dtype=np.float64, rng=0)),
    "nn.ReLU": layer(nn.ReLU),
    "nn.GELU": layer(nn.GELU),
    "nn.SiLU": layer(nn.SiLU),
    "nn.Softmax": layer(nn.Softmax),
    "nn.Dropout": layer(lambda: nn.Dropout(0.5, rng=0)),
    "nn.Flatten": layer(nn.Flatten, (2, 4, 8)),
    "nn.BatchNorm": layer(lambda: nn.BatchNorm(32, dtype=np.float64)),
    "nn.LayerNorm": layer(lambda: nn.LayerNorm(32, dtype=np.float64)),
    "nn.Conv2d": layer(lambda: nn.Conv2d(2, 3, 3, dtype=np.float64, rng=0), (2, 2, 4, 4)),
    "nn.MaxPool": layer(lambda: nn.MaxPool(2), (2, 2, 4, 4)),
    "nn.AvgPool": layer(lambda: nn.AvgPool(2), (2, 2, 4, 4)),
    "nn.MultiHeadAttention": layer(
        lambda: nn.MultiHeadAttention(8, 2, dtype=np.float64, rng=0), (2, 4, 8)
    ),
    "nn.Residual": layer(lambda: nn.Residual(nn.Linear(32, 32, dtype=np.float64, rng=0))),
    "nn.Embedding": Example(lambda: nn.Embedding(4, 3, rng=0), use_embedding),
    "nn.Summary": Example(lambda: nn.Linear(3, 2, rng=0).summary(), str),
    "nn.Recommendation": Example(
        lambda: nn.Recommendation("dense", {"dense": 1e-3}, nn.Linear(3, 2, rng=0)),
        lambda found: (found.storage, found.seconds, found.layer.weight),
    ),
    "TrainState": Example(run, use_run),
    "nn.SparseLinear": layer(
        lambda: nn.SparseLinear(sparse.CSRMatrix.from_dense(dense()), np.zeros(16))
    ),
    "nn.Sequential": layer(
        lambda: nn.Sequential(
            nn.SparseLinear(sparse.NMMatrix.from_dense(dense()), np.zeros(16)),
            nn.ReLU(),
            nn.Linear(16, 3, dtype=np.float64, rng=0),
        )
    ),
    "nn.QuantizedLinear": layer(
        lambda: nn.QuantizedLinear.from_linear(
            nn.Linear(32, 4, dtype=np.float64, rng=0), quantize.Scheme(bits=4), input="int8"
        )
    ),
    "nn.QuantizedSparseLinear": layer(
        lambda: nn.QuantizedSparseLinear.from_linear(
            nn.Linear(32, 4, rng=0), quantize.Scheme(bits=4), threshold=0.1
        ),
        dtype=np.float32,
    ),
    "nn.QuantizedMultiHeadAttention": layer(
        lambda: quantize.quantize_model(
            nn.Sequential(nn.MultiHeadAttention(8, 2, dtype=np.float64, rng=0)),
            quantize.Scheme(bits=8),
        )[0],
        (2, 4, 8),
    ),
    "nn.QuantizedEmbedding": Example(
        lambda: nn.QuantizedEmbedding.from_embedding(
            nn.Embedding(4, 3, rng=0), quantize.Scheme(bits=8)
        ),
        lambda layer: [layer(np.array([1, 3, 1]))],
    ),
    "nn.FakeQuantizedLinear": layer(
        lambda: nn.FakeQuantizedLinear(
            nn.Linear(32, 4, dtype=np.float64, rng=0), quantize.Scheme(bits=2)
        )
    ),
    "nn.QuantizedConv2d": layer(
        lambda: nn.QuantizedConv2d.from_conv(
            nn.Conv2d(2, 3, 3, dtype=np.float64, rng=0),
            quantize.Scheme(bits=4),
            input="int8",
            activation_scale=0.1,
            activation_zero_point=3,
        ),
        (2, 2, 4, 4),
    ),
    "nn.FakeQuantizedConv2d": layer(
        lambda: nn.FakeQuantizedConv2d(
            nn.Conv2d(2, 3, 3, dtype=np.float64, rng=0), quantize.Scheme(bits=2)
        ),
        (2, 2, 4, 4),
    ),
    "quantize.Scheme": Example(lambda: quantize.Scheme(bits=4), repr),
    "quantize.QuantizedTensor": quantized(bits=4, symmetric=False),
    "quantize.QuantizedMatrix": Example(
        lambda: quantize.QuantizedMatrix(quantize.quantize(dense(), quantize.Scheme(bits=4))),
        lambda found: [found.codes, found.scale, found.linear(np.ones((2, 32), np.float32))],
    ),
    "quantize.QuantizedCSRMatrix": Example(
        lambda: quantize.QuantizedCSRMatrix.from_csr(sparse.CSRMatrix.from_dense(dense())),
        lambda found: [found.codes, found.scale, found @ np.ones(32, np.float32), found.to_dense()],
    ),
    "quantize.Scaled": Example(lambda: quantize.Scaled(dense(), dense()[0]), list),
    "quantize.MinMax": observer(lambda: quantize.MinMax(32)),
    "quantize.MovingAverage": observer(quantize.MovingAverage),
    "quantize.Histogram": observer(quantize.Histogram),
    "quantize.Percentile": observer(lambda: quantize.Percentile(32, percentile=90)),
    "quantize.MSE": observer(quantize.MSE),
    "quantize.Entropy": observer(lambda: quantize.Entropy(bits=4, bins=64)),
    "quantize.HadamardRotation": Example(
        lambda: quantize.HadamardRotation(32, rng=0), lambda found: found(dense())
    ),
    "prune.Pruner": pruner(
        lambda params, schedule, optimizer: prune.Pruner(
            params, schedule, prune.Taylor(), optimizer=optimizer
        )
    ),
    "prune.MagnitudePruner": pruner(prune.MagnitudePruner),
    "prune.SET": sparse_training(functools.partial(prune.SET, rng=0)),
    "prune.RigL": sparse_training(prune.RigL),
    "prune.LotteryTicket": with_params(prune.LotteryTicket, lambda ticket, params: ticket.rewind()),
    "prune.InputStatistics": Example(lambda: prune.InputStatistics(4, gram=True), statistics_use),
    "prune.OneShot": Example(lambda: prune.OneShot(0.5, begin=2), call()),
    "prune.CubicSchedule": Example(lambda: prune.CubicSchedule(end=3), call()),
    "prune.LinearSchedule": Example(lambda: prune.LinearSchedule(end=3), call()),
    "prune.ExponentialSchedule": Example(lambda: prune.ExponentialSchedule(end=3), call()),
    "prune.IterativeSchedule": Example(lambda: prune.IterativeSchedule(frequency=2), call()),
    "prune.GroupPruner": Example(group_pruner, use_group_pruner),
    "prune.Group": Example(lambda: prune.groups(perceptron())[0], list_of_group),
    "prune.Member": Example(lambda: prune.Member("0", "weight", 0), list),
    "prune.Score": Example(prune.Score, repr),
    "prune.Magnitude": score(prune.Magnitude),
    "prune.Random": score(lambda: prune.Random(0)),
    "prune.Snip": score(prune.Snip),
    "prune.Taylor": score(prune.Taylor),
    "prune.Movement": score(prune.Movement),
    "prune.Wanda": score(wanda),
    "prune.Granularity": Example(prune.Granularity, masks_of),
    "prune.Blocks": Example(prune.Blocks, masks_of),
    "prune.Neurons": Example(prune.Neurons, masks_of),
    "prune.NM": Example(prune.NM, masks_of),
    "prune.Sensitivity": Example(sensitivity, lambda found: [found.values, found.table()]),
    "prune.EmptyLayerWarning": Example(lambda: prune.EmptyLayerWarning("a"), str),
    "prune.CalibrationWarning": Example(lambda: prune.CalibrationWarning("a"), str),
    "distill.TopK": Example(
        lambda: distill.top_k(dense(), 3), lambda found: [found.logits.to_dense(), found.rest]
    ),
    "checkpoint.Checkpoint": Example(weights_file, lambda found: [found["w"], list(found)]),
    "checkpoint.Recipe": Example(checkpoint.Recipe, lambda found: found),
    "checkpoint.Rule": Example(lambda: checkpoint.Rule(prune=0.5), lambda found: found),
    "checkpoint.ExportReport": Example(
        lambda: checkpoint.ExportReport("a", "b", "npz"), lambda found: found
    ),
    "checkpoint.Report": Example(lambda: checkpoint.Report("a", "b"), lambda found: found),
    "search.Allocation": Example(
        lambda: search.allocate([[0.0, 1.0]], [[2, 1]], 1), lambda found: [found, found.gap]
    ),
    "search.Compressed": Example(
        lambda: search.compress(perceptron(), 120),
        lambda found: [found.costs, found.table(), found.model(dense()[:, :4].astype("f4"))],
    ),
    "search.Correction": Example(
        lambda: search.correct(options(), 3, sum, trials=2),
        lambda found: [found.coefficients, found.table()],
    ),
    "search.Measurements": Example(
        options, lambda found: [found.allocate(3), found.errors, found.table()]
    ),
    "search.Option": Example(lambda: search.Option(nm=(2, 4)), repr),
    "search.Candidate": Example(
        lambda: search.Candidate(1, {"a": 2}), lambda found: [found["a"], found.folder]
    ),
    "search.Choice": Example(lambda: search.Choice(["a", 1]), repr),
    "search.Int": Example(lambda: search.Int(1, 8, log=True), repr),
    "search.Float": Example(lambda: search.Float(0, 1), repr),
    "search.Space": Example(space, lambda found: [found.sample(0), found.size, repr(found)]),
    "search.Evaluation": Example(lambda: study().best, repr),
    "search.Pruned": Example(lambda: search.Pruned("a"), str),
    "search.Study": Example(study, lambda found: [found.table(), found.frontier, repr(found)]),
    "search.Trial": Example(lambda: search.Trial((0,), 1.0, 2.0), repr),
    "search.Frontier": Example(
        lambda: search.pareto([[0.0, 1.0]], [[2, 1]]),
        lambda found: [found.cost, found.error, found.choice(0), found.within(2)],
    ),
    "search.InfeasibleError": Example(lambda: search.InfeasibleError("a"), str),
    "search.UnprovenWarning": Example(lambda: search.UnprovenWarning("a"), str),
    "distill.TeacherCache": Example(cache, lambda found: [found[:], len(found)]),
    "distill.Distiller": Example(distiller, use_distiller),
    "distill.DistilledClassifier": Example(classifier, use_classifier),
    "distill.DistilledRegressor": Example(regressor, lambda f: f.predict(dense()[:, 1:9:2])),
    "distill.Epoch": Example(lambda: distill.Epoch("soft", 1.0, None), list),
}

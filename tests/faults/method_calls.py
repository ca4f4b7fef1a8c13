"""Valid arguments of methods that whole families share, and which methods are exempt."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from compressrs import checkpoint, nn, prune, quantize
from tests.faults import public
from tests.faults.calls import A, distiller, folder, model, run
from tests.faults.optim_calls import Method, sgd, w
from tests.faults.quantize_calls import scheme, sparse_codes


def _layers() -> dict[str, Method]:
    """Return entries for the public layers, found by introspection."""
    found: dict[str, Method] = {}
    for name, example in public.EXAMPLES.items():
        if example.shape is None or not name.startswith("nn."):
            continue

        def make(example: public.Example = example) -> Any:
            return example.make()[0]

        def after(example: public.Example = example) -> Any:
            layer = example.make()[0]
            layer(np.ones(example.shape, example.dtype))
            return layer

        x: np.ndarray[Any, Any] = np.ones(example.shape, example.dtype)
        y = make()(x)
        found |= {
            f"{name}()": (make, "__call__", lambda x=x: dict(x=x)),
            f"{name}.backward": (after, "backward", lambda y=y: dict(dy=np.ones_like(y))),
        }
        for method in ("output_shape", "multiply_adds"):
            found[f"{name}.{method}"] = make, method, lambda x=x: dict(shape=x.shape[1:])
    return found


def _embedding() -> Any:
    return nn.Embedding(4, 3, rng=0)


def _path(name: str) -> Any:
    return f"{folder().name}/{name}"


def _saved(make: Callable[[], Any], save: Callable[[Any, Any], Any]) -> Any:
    path = _path(f"{type(make()).__name__}.safetensors")
    save(make(), path)
    return dict(path=path)


def _files(make: Callable[[], Any]) -> dict[str, Method]:
    def load() -> dict[str, Any]:
        return _saved(make, lambda made, path: made.save(path))

    name = type(make()).__name__
    return {
        f"{name}.save": (make, "save", lambda: dict(path=_path("saved"))),
        f"{name}.load": (make, "load", load),
    }


def _linear() -> Any:
    return nn.Linear(3, 2, rng=0)


def _opened() -> Any:
    path = _path("w.safetensors")
    _linear().save(path)
    return checkpoint.open(path)


def _quantized_embedding() -> Any:
    return nn.QuantizedEmbedding.from_embedding(_embedding(), scheme())


def _looked_up() -> Any:
    layer = _quantized_embedding()
    layer(np.array([1, 2]))
    return layer


def _named(method: str) -> Method:
    return _opened, method, lambda: dict(name="weight")


def _sensitivity() -> Any:
    weights = {"a": np.arange(4.0)}
    return prune.sensitivity(weights, lambda: float(weights["a"].sum()), [0.5])


def _packed() -> Any:
    return quantize.QuantizedMatrix(quantize.quantize(w(), scheme()))


def _observed() -> Any:
    found = quantize.MinMax(8)
    found.update(w().T)
    return found


def _updated() -> Any:
    found = prune.Snip()
    found.update(w(), w())
    return found


def _toml() -> dict[str, Any]:
    path = _path("recipe.toml")
    Path(path).write_text(checkpoint.Recipe().to_toml())
    return dict(path=path)


METHODS: dict[str, Method] = {
    **_layers(),
    "QuantizedEmbedding.backward": (
        _looked_up,
        "backward",
        lambda: dict(dy=np.ones((2, 3), "f")),
    ),
    "QuantizedEmbedding.output_shape": (
        _quantized_embedding,
        "output_shape",
        lambda: dict(shape=(2,)),
    ),
    "Container.forward": (
        lambda: nn.Sequential(nn.MultiHeadAttention(4, 2, rng=0)),
        "forward",
        lambda: dict(x=np.ones((2, 3, 4), "f"), lengths=np.array([3, 2])),
    ),
    "QuantizedMultiHeadAttention.train": (
        lambda: public.EXAMPLES["nn.QuantizedMultiHeadAttention"].make()[0],
        "train",
        lambda: dict(mode=False),
    ),
    "Embedding.output_shape": (_embedding, "output_shape", lambda: dict(shape=(2,))),
    "Embedding.multiply_adds": (_embedding, "multiply_adds", lambda: dict(shape=(2,))),
    "Linear.train": (_linear, "train", lambda: dict(mode=True)),
    "Linear.named_layers": (_linear, "named_layers", lambda: dict(prefix="")),
    "Linear.from_arrays": (
        lambda: nn.Linear,
        "from_arrays",
        lambda: dict(weight=np.ones((2, 3)), bias=np.ones(2)),
    ),
    "Linear.export": (
        _linear,
        "export",
        lambda: dict(path=_path("a.npz"), show=False, standardize=(np.zeros(3), np.ones(3))),
    ),
    **_files(_linear),
    **_files(sgd),
    **_files(distiller),
    **_files(run),
    "TrainState.every": (run, "every", lambda: dict(n=1, path=_path("run"), keep=1)),
    "CSR[]": (A, "__getitem__", lambda: dict(rows=slice(0, 2))),
    "CSR+": (A, "__add__", lambda: dict(other=A())),
    "CSR@": (A, "__matmul__", lambda: dict(x=np.ones(16))),
    "@CSR": (A, "__rmatmul__", lambda: dict(y=np.ones(8))),
    "Gradual()": (
        lambda: prune.CubicSchedule(final=0.5, end=4),
        "__call__",
        lambda: dict(step=1),
    ),
    "Iterative()": (
        lambda: prune.IterativeSchedule(0.2, 0.5),
        "__call__",
        lambda: dict(step=1),
    ),
    "Score.update": (prune.Magnitude, "update", lambda: dict(weights=w(), grads=w())),
    "Snip.scores": (_updated, "scores", lambda: dict(weights=w())),
    "Sensitivity.plot": (_sensitivity, "plot", lambda: dict(path=_path("plot.png"))),
    "GroupPruner.shrink": (
        lambda: prune.GroupPruner(model(), prune.OneShot(0.5)),
        "shrink",
        lambda: dict(ema=None),
    ),
    "Rotation.inverse": (lambda: quantize.HadamardRotation(16), "inverse", lambda: dict(x=w())),
    "Observer.parameters": (_observed, "parameters", lambda: dict(scheme=scheme())),
    **{
        f"Scheme.{name}": (scheme, name, lambda: dict(shape=(8, 16)))
        for name in ("matrix", "block", "scale_shape")
    },
    "Scheme.nbytes": (scheme, "nbytes", lambda: dict(shape=(8, 16), scale_itemsize=4)),
    "QuantizedCSRMatrix.from_csr": (
        lambda: quantize.QuantizedCSRMatrix,
        "from_csr",
        lambda: dict(matrix=A(), scheme=quantize.Scheme()),
    ),
    "QuantizedCSRMatrix.save": (
        sparse_codes,
        "save",
        lambda: dict(path=_path("codes.npz"), compressed=False),
    ),
    "QuantizedCSRMatrix.load": (
        lambda: quantize.QuantizedCSRMatrix,
        "load",
        lambda: dict(path=_saved(sparse_codes, lambda q, path: q.save(path))["path"] + ".npz"),
    ),
    "QuantizedMatrix.from_codes": (
        lambda: quantize.QuantizedMatrix,
        "from_codes",
        lambda: dict(
            codes=np.ones((2, 4), np.uint8),
            scale=np.ones((2, 2), "f"),
            zero_point=np.ones((2, 2), np.uint8),
            bits=4,
            group_size=2,
            levels=None,
        ),
    ),
    "QuantizedMatrix.linear": (
        _packed,
        "linear",
        lambda: dict(
            x=np.ones((2, 16), "f"),
            bias=np.ones(8, "f"),
            activation="relu",
            input="float32",
            out=None,
            input_scale=None,
            output_scale=None,
            output_zero_point=0,
            input_zero_point=0,
        ),
    ),
    **{
        f"Checkpoint.{name}": _named(name)
        for name in (
            "__getitem__",
            "check",
            "description",
            "dtype",
            "home",
            "is_alias",
            "nbytes",
            "numpy_dtype",
            "shape",
            "tiles",
        )
    },
    "Recipe.load": (lambda: checkpoint.Recipe, "load", _toml),
    "Recipe.unused": (checkpoint.Recipe, "unused", lambda: dict(names=["a"])),
}

#: No functions here.
CALLS: dict[str, Any] = {}
LEFT_OUT: set[str] = set()

#: Methods without an entry, by the class that defines them, and why.
EXEMPT = {
    **({} if find_spec("optuna") and find_spec("plotly") else {"Study.report": "needs Optuna"}),
    "Checkpoint.__contains__": "any object may be looked up",
    "MovingAverage.merge": "refuses every argument",
    **dict.fromkeys(
        (
            "Distilled.set_params",
            "DistilledClassifier.export",
            "DistilledClassifier.fit",
            "DistilledClassifier.predict",
            "DistilledClassifier.predict_proba",
            "DistilledRegressor.export",
            "DistilledRegressor.fit",
            "DistilledRegressor.predict",
        ),
        "scikit-learn checks their arguments, in its own terms",
    ),
    **dict.fromkeys(
        ("Layer.backward", "Layer.forward", "Score.scores", "Strategy.check", "Strategy.receive"),
        "abstract",
    ),
}

#: The formulas of a schedule, which `step` calls with numbers it has checked.
FORMULAS = {"factor", "momentum", "rate"}

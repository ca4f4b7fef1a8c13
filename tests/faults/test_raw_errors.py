"""Wrong arguments raise errors that name them, never raw errors of Python or NumPy."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import compressrs as cr
from compressrs import distill, nn, optim, prune, quantize, sparse
from tests.faults.public import names

pytest.importorskip("scipy")

#: Values that are invalid for most arguments; some are valid for a few.
WRONG: list[Any] = [
    None,
    "x",
    b"x",
    3,
    -1,
    1.5,
    float("nan"),
    True,
    10**30,
    [],
    {},
    (),
    [1, "x"],
    [[1, 2], [3]],
    {1, 2},
    {"a": 1},
    object(),
    np.array(0.5),
    np.zeros(0),
    np.zeros((2, 2, 2)),
    np.zeros((3, 3), np.float32),
    np.zeros(3, complex),
    np.array("x"),
    np.array([None]),
]


def w() -> Any:
    return np.random.default_rng(0).standard_normal((8, 16))


def A() -> Any:
    return sparse.CSRMatrix.from_dense(w())


def st() -> Any:
    found = prune.InputStatistics(16, gram=True)
    found.update(np.random.default_rng(1).standard_normal((40, 16)))
    return found


def model() -> Any:
    return nn.Sequential(nn.Linear(16, 8, rng=0), nn.ReLU(), nn.Linear(8, 2, rng=1))


def withopt(make: Callable[[Any, Any], Any]) -> Any:
    layer = nn.SparseLinear(A())
    return make(layer, optim.Adam(layer.params))


def scheme() -> Any:
    return quantize.Scheme(bits=4)


def codebook() -> Any:
    return quantize.kmeans(w(), quantize.Scheme(bits=2, dtype="codebook"))


def ones() -> Any:
    return np.ones((8, 1))


#: Valid arguments of public functions and classes.
CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    "prune.magnitude_threshold": lambda: dict(arrays=w(), sparsity=0.5),
    "prune.magnitude_mask": lambda: dict(w=w(), sparsity=0.5),
    "prune.nm_mask": lambda: dict(w=w(), n=2, m=4, axis=-1),
    "prune.block_mask": lambda: dict(w=w(), block=(2, 2), sparsity=0.5, norm=2),
    "prune.neuron_mask": lambda: dict(w=w(), axis=0, sparsity=0.5, norm=2),
    "prune.masks": lambda: dict(scores=w(), sparsity=0.5, scope="global", granularity=None),
    "prune.neurons": lambda: dict(
        keep=np.ones(8, bool), outputs=[w()], inputs=[w().T.copy()], optimizer=None
    ),
    "prune.shrink": lambda: dict(model=model(), keep={0: np.arange(8) > 3}, optimizer=None),
    "prune.rewire": lambda: dict(matrix=A(), growth=w(), count=0, optimizer=None),
    "prune.sensitivity": lambda: dict(
        params=w(), evaluate=lambda: 0.0, sparsities=[0.5], score=None, granularity=None
    ),
    "prune.sparsegpt": lambda: dict(w=w(), statistics=st(), sparsity=0.5, damping=0.01, block=4),
    "prune.input_statistics": lambda: dict(model=model(), batches=np.zeros((3, 16), "f")),
    "prune.erdos_renyi": lambda: dict(shapes=[(3, 4)], sparsity=0.5),
    "prune.erdos_renyi_kernel": lambda: dict(shapes=[(3, 4)], sparsity=0.5),
    "prune.Pruner": lambda: dict(
        params=w(),
        schedule=prune.OneShot(0.5),
        score=None,
        scope="global",
        optimizer=None,
        granularity=None,
    ),
    "prune.MagnitudePruner": lambda: dict(
        params=w(), schedule=prune.OneShot(0.5), scope="global", optimizer=None, granularity=None
    ),
    "prune.SET": lambda: withopt(
        lambda a, o: dict(layers=a, optimizer=o, fraction=0.3, frequency=1, end=5, rng=0)
    ),
    "prune.RigL": lambda: withopt(
        lambda a, o: dict(layers=a, optimizer=o, end=5, fraction=0.3, frequency=1)
    ),
    "prune.LotteryTicket": lambda: dict(params=w(), optimizer=None),
    "prune.Random": lambda: dict(rng=0),
    "prune.Wanda": lambda: dict(statistics=st()),
    "prune.InputStatistics": lambda: dict(features=4),
    "prune.OneShot": lambda: dict(final=0.5, begin=0),
    "prune.CubicSchedule": lambda: dict(initial=0.0, final=0.5, begin=0, end=10, frequency=1),
    "prune.LinearSchedule": lambda: dict(initial=0.0, final=0.5, begin=0, end=10, frequency=1),
    "prune.ExponentialSchedule": lambda: dict(initial=0.0, final=0.5, begin=0, end=10, frequency=1),
    "prune.IterativeSchedule": lambda: dict(rate=0.2, final=0.5, begin=0, frequency=1),
    "prune.Blocks": lambda: dict(block=(4, 4), norm=2),
    "prune.Neurons": lambda: dict(axis=0, norm=2),
    "prune.NM": lambda: dict(n=2, m=4, axis=0),
    "sparse.CSRMatrix": lambda: dict(arrays=(A().data, A().indices, A().indptr), shape=(8, 16)),
    "sparse.CSRMatrix.from_dense": lambda: dict(w=w(), threshold=0.0, mask=None, index_dtype=None),
    "sparse.BSRMatrix.from_dense": lambda: dict(w=w(), block=(4, 4), threshold=0.0, mask=None),
    "sparse.NMMatrix.from_dense": lambda: dict(w=w(), n=2, m=4, mask=None),
    "sparse.CSRMatrix.from_scipy": lambda: dict(matrix=A().to_scipy()),
    "sparse.BSRMatrix.from_scipy": lambda: dict(
        matrix=sparse.BSRMatrix.from_dense(w(), (4, 4)).to_scipy()
    ),
    "sparse.sddmm": lambda: dict(pattern=A(), u=np.ones((8, 2)), v=np.ones((2, 16)), out=None),
    "sparse.carry": lambda: dict(values=A().data, old=A(), new=A(), fill=0.0),
    "nn.Linear": lambda: dict(in_features=3, out_features=2, dtype=np.float32, rng=0),
    "sparse.BSRMatrix": lambda: dict(
        arrays=sparse.BSRMatrix.from_dense(w(), (4, 4))._parts, shape=(8, 16)
    ),
    "sparse.NMMatrix": lambda: dict(
        arrays=(np.ones((8, 8)), sparse.NMMatrix.from_dense(w()).positions), shape=(8, 16), n=2, m=4
    ),
    "nn.SparseLinear": lambda: dict(weight=A(), bias=None),
    "nn.SparseLinear.from_linear": lambda: dict(layer=nn.Linear(3, 2), threshold=0.0, mask=None),
    "nn.QuantizedLinear": lambda: dict(
        weight=quantize.quantize(w(), scheme()), bias=None, input="int8", input_scale=None
    ),
    "nn.QuantizedLinear.from_linear": lambda: dict(
        layer=nn.Linear(3, 2), scheme=scheme(), input="int8"
    ),
    "nn.FakeQuantizedLinear": lambda: dict(layer=nn.Linear(3, 2), scheme=scheme(), input="float32"),
    "quantize.Scheme": lambda: dict(
        bits=4, symmetric=True, granularity="group", group_size=4, dtype="int"
    ),
    "quantize.QuantizedTensor": lambda: dict(
        codes=np.zeros((8, 16), np.int8),
        scale=ones(),
        zero_point=None,
        scheme=scheme(),
        codebook=None,
        group_index=None,
        dtype="f4",
    ),
    "quantize.quantize": lambda: dict(w=w(), scheme=scheme(), scale=ones(), zero_point=None),
    "quantize.parameters": lambda: dict(low=-ones(), high=ones(), scheme=scheme()),
    "quantize.kmeans": lambda: dict(w=w(), scheme=codebook().scheme, keep_zero=False, rounds=10),
    "quantize.codebook_gradient": lambda: dict(q=codebook(), dw=w()),
    "quantize.fake_quantize": lambda: dict(
        x=w(), scheme=scheme(), scale=ones(), zero_point=None, out=None
    ),
    "quantize.fake_quantize_backward": lambda: dict(
        x=w(), dy=w(), scheme=scheme(), scale=ones(), zero_point=None, lsq=True, out=None
    ),
    "quantize.lsq_scale": lambda: dict(w=w(), scheme=scheme()),
    "quantize.mse_scale": lambda: dict(w=w(), scheme=scheme(), steps=2, least=0.5),
    "quantize.hqq": lambda: dict(w=w(), scheme=scheme(), p=0.7, beta=10.0, kappa=1.01, rounds=2),
    "quantize.gptq": lambda: dict(
        w=w(),
        statistics=st(),
        scheme=scheme(),
        scale=None,
        zero_point=None,
        act_order=False,
        static_groups=False,
        damping=0.01,
        block=4,
    ),
    "quantize.prune_and_quantize": lambda: dict(
        w=w(), statistics=st(), scheme=scheme(), sparsity=0.5, damping=0.01, block=4
    ),
    "quantize.adaround": lambda: dict(
        w=w(),
        statistics=st(),
        scheme=scheme(),
        scale=None,
        zero_point=None,
        steps=3,
        lr=0.01,
        strength=1.0,
    ),
    "quantize.awq": lambda: dict(w=w(), statistics=st(), scheme=scheme(), steps=2),
    "quantize.smooth_scale": lambda: dict(weights=w(), ranges=np.ones(16), alpha=0.5),
    "quantize.equalize": lambda: dict(first=w(), bias=None, second=w().T.copy()),
    "quantize.bias_correction": lambda: dict(
        w=w(), q=quantize.quantize(w(), scheme()), mean=np.ones(16), bias=None
    ),
    "quantize.quantize_model": lambda: dict(
        model=model(),
        scheme=scheme(),
        calibration=np.ones((3, 16), "f"),
        method="nearest",
        input="int8",
        correct_bias=True,
    ),
    "quantize.HadamardRotation": lambda: dict(n=4, rng=0),
    "quantize.Observer": lambda: dict(channels=3),
    "quantize.MinMax": lambda: dict(channels=3),
    "quantize.MovingAverage": lambda: dict(channels=3, momentum=0.1),
    "quantize.Histogram": lambda: dict(channels=3, bins=64),
    "quantize.Percentile": lambda: dict(channels=3, percentile=99.0, bins=64),
    "quantize.MSE": lambda: dict(channels=3, bits=4, symmetric=True, bins=64),
    "quantize.Entropy": lambda: dict(channels=3, bits=4, bins=64),
    "distill.top_k": lambda: dict(z=w(), k=2, temperature=1.0),
    "distill.softmax": lambda: dict(z=w(), temperature=1.0, axis=-1),
    "distill.log_softmax": lambda: dict(z=w(), temperature=1.0, axis=-1),
    "distill.logsumexp": lambda: dict(z=w(), temperature=1.0, axis=-1),
    "distill.TopK": lambda: dict(logits=A(), rest=np.zeros(8), temperature=1.0),
}

#: Valid arguments of methods, with the object they belong to.
METHODS: dict[str, tuple[Callable[[], Any], str, Callable[[], dict[str, Any]]]] = {
    "CSR.matmul": (A, "matmul", lambda: dict(x=np.ones(16), out=None, bias=None)),
    "CSR.rmatmul": (A, "rmatmul", lambda: dict(y=np.ones(8), out=None, bias=None)),
    "CSR.with_data": (A, "with_data", lambda: dict(data=A().data)),
    "CSR.astype": (A, "astype", lambda: dict(dtype="f4")),
    "CSR.scale_rows": (A, "scale_rows", lambda: dict(factors=np.ones(8))),
    "CSR.scale_columns": (A, "scale_columns", lambda: dict(factors=np.ones(16))),
    "CSR.with_pattern": (A, "with_pattern", lambda: dict(pattern=A(), fill=0.0)),
    "CSR.union": (A, "union", lambda: dict(other=A())),
    "CSR.intersection": (A, "intersection", lambda: dict(other=A())),
    "NM.with_data": (
        lambda: sparse.NMMatrix.from_dense(w()),
        "with_data",
        lambda: dict(data=np.ones((8, 8))),
    ),
    "Linear.forward": (lambda: nn.Linear(3, 2), "forward", lambda: dict(x=np.ones((2, 3), "f"))),
    "Sequential.forward": (model, "forward", lambda: dict(x=np.ones((2, 16), "f"))),
    "Sequential[]": (model, "__getitem__", lambda: dict(index=0)),
    "Stat.update": (st, "update", lambda: dict(x=np.ones((2, 16)))),
    "Snip.update": (prune.Snip, "update", lambda: dict(weights=w(), grads=w())),
    "Magn.scores": (prune.Magnitude, "scores", lambda: dict(weights=w())),
    "Random.scores": (prune.Random, "scores", lambda: dict(weights=w())),
    "Random.lsd": (
        prune.Random,
        "load_state_dict",
        lambda: dict(state_dict=prune.Random(0).state_dict()),
    ),
    "Snip.lsd": (prune.Snip, "load_state_dict", lambda: dict(state_dict=prune.Snip().state_dict())),
    "Wanda.scores": (lambda: prune.Wanda(st()), "scores", lambda: dict(weights=w())),
    "Pruner.step": (
        lambda: prune.Pruner(w(), prune.OneShot(0.5), prune.Snip()),
        "step",
        lambda: dict(grads=w()),
    ),
    "Pruner.lsd": (
        lambda: prune.Pruner(w(), prune.OneShot(0.5)),
        "load_state_dict",
        lambda: dict(state_dict=prune.Pruner(w(), prune.OneShot(0.5)).state_dict()),
    ),
    "SET.lsd": (
        lambda: prune.SET(**CALLS["prune.SET"]()),
        "load_state_dict",
        lambda: dict(state_dict=prune.SET(**CALLS["prune.SET"]()).state_dict()),
    ),
    "Ticket.rewind": (lambda: prune.LotteryTicket(w()), "rewind", lambda: dict(masks=None)),
    "Quantized.dequantize": (codebook, "dequantize", lambda: dict(out=None)),
    "Quantized.rows": (codebook, "rows", lambda: dict(indices=[0, 1], out=None)),
    "QuantizedLinear.forward": (
        lambda: nn.QuantizedLinear(codebook()),
        "forward",
        lambda: dict(x=np.ones((2, 16))),
    ),
    "FakeQuantizedLinear.forward": (
        lambda: nn.FakeQuantizedLinear(nn.Linear(3, 2), scheme()),
        "forward",
        lambda: dict(x=np.ones((2, 3), "f")),
    ),
    "Rotation()": (lambda: quantize.HadamardRotation(16), "__call__", lambda: dict(x=w())),
    "Observer.update": (
        lambda: quantize.MSE(16),
        "update",
        lambda: dict(x=w(), mask=np.ones(8, bool)),
    ),
    "Observer.merge": (quantize.MinMax, "merge", lambda: dict(other=quantize.MinMax())),
    "OneShot()": (prune.OneShot, "__call__", lambda: dict(step=0)),
}

#: Arguments that messages refer to by another name.
ALSO = {
    "y": "X must",
    "x": "must",
    "z": "axis",
    "batches": "x must",
    "masks": "the mask of",
    "scores": "the list of arrays",
    "begin": "end must",
    "arrays": "must",
    "shape": "indptr",
    "n": "data must",
    "m": "data must",
    "u": "U must",
    "v": "V must",
}

#: Without arguments, not created by users, or about files, which have their own tests.
LEFT_OUT = {
    "nn.Affine",
    "nn.Layer",
    "nn.ReLU",
    "nn.Sequential",
    "prune.CalibrationWarning",
    "prune.EmptyLayerWarning",
    "prune.Granularity",
    "prune.Magnitude",
    "prune.Movement",
    "prune.Score",
    "prune.Sensitivity",
    "prune.Snip",
    "prune.Taylor",
    "quantize.QuantizedMatrix",
    "quantize.Scaled",
    "quantize.matmul_integer",
    "sparse.SparseMatrix",
    "sparse.TransposedMatrix",
    "sparse.load_npz",
    "sparse.save_npz",
}


def test_every_public_name_is_tried() -> None:
    public = {
        name
        for name, value in names().items()
        if name.split(".")[0] in ("nn", "prune", "quantize", "sparse")
        and (inspect.isclass(value) or inspect.isroutine(value))
    }
    assert public == {name for name in CALLS if name in public} | LEFT_OUT


def public(name: str) -> Any:
    found: Any = cr
    for part in name.split("."):
        found = getattr(found, part)
    return found


def attempts() -> Iterator[tuple[str, Callable[[], Any], Callable[[], dict[str, Any]]]]:
    for name, arguments in CALLS.items():
        yield name, lambda name=name: public(name), arguments
    for name, (make, method, arguments) in METHODS.items():
        yield name, lambda make=make, method=method: getattr(make(), method), arguments


ATTEMPTS = list(attempts())


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=[name for name, *_ in ATTEMPTS])
def test_wrong_arguments_are_refused_by_name(attempt: Any) -> None:
    name, function, arguments = attempt
    function()(**arguments())
    for argument in arguments():
        for wrong in WRONG:
            given = {**arguments(), argument: wrong}
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    function()(**given)
            except (TypeError, ValueError, MemoryError) as error:
                said = str(error)
                known = argument in said or ALSO.get(argument, "\0") in said
                assert known, f"{name}({argument}={wrong!r}): {error!r}"
            except IndexError as error:
                # IndexError is right for indexing, as for a list.
                assert function().__name__ == "__getitem__", repr(error)
                assert argument in str(error), repr(error)


def test_keys_of_shrink_are_positions() -> None:
    keep = np.arange(8) > 3
    with pytest.raises(TypeError, match="keep must be an integer, got str"):
        prune.shrink(model(), {"0": keep})


def test_one_hidden_layer_may_be_a_number() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    x, y = w(), np.arange(8) % 2
    found = distill.DistilledClassifier(linear.LogisticRegression(), 3, epochs=1, random_state=0)
    assert found.fit(x, y).student_[0].weight.shape == (3, 16)

"""Arrays without elements and sizes that no memory holds: results, or errors with a name."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import compressrs as cr
from compressrs import nn, quantize, sparse
from tests.faults.test_raw_errors import ATTEMPTS, ENTRIES, mentioned

NAMES = [name for name, *_ in ATTEMPTS]

#: Parameters that an array is made as large as: with sizes whose memory no machine has.
SIZES = {
    "batch",
    "channels",
    "features",
    "in_channels",
    "in_features",
    "num_embeddings",
    "out_channels",
    "out_features",
}


def with_size(value: Any, size: int) -> Iterator[Any]:
    """Yield arguments with a size in the place of an integer, or of one in a list or tuple."""
    if type(value) is int:
        yield size
    elif isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        for i, entry in enumerate(value):
            for twin in with_size(entry, size):
                yield type(value)([*value[:i], twin, *value[i + 1 :]])


OF_SIZES = [
    pytest.param(attempt, argument, id=f"{attempt[0]}-{argument}")
    for attempt in ATTEMPTS
    for argument, value in attempt[2]().items()
    if next(with_size(value, 0), None) is not None
]


@pytest.mark.parametrize(("attempt", "argument"), OF_SIZES)
def test_sizes_that_no_memory_holds(
    attempt: Any, argument: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, function, arguments = attempt
    for size in (*([2**48] if argument in SIZES else []), 2**62, 2**63 - 1, 2**63, 2**64, -1):
        for given in with_size(arguments()[argument], size):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    function()(**{**arguments(), argument: given})
            except MemoryError:
                continue
            except (TypeError, ValueError) as error:
                # Of a size and an array that do not fit, either may be named.
                known = any(
                    mentioned(one, str(error))
                    for own in arguments()
                    for one in (own, *ENTRIES.get(own, ()))
                )
                assert known, f"{name}({argument}={given}): {error!r}"
            except IndexError as error:
                assert mentioned(argument, str(error)), f"{name}({argument}={given}): {error!r}"


def test_sizes_are_found() -> None:
    tried = {case.id for case in OF_SIZES}
    assert {
        "RowGradient.dense-n",
        "nn.Conv2d-kernel_size",
        "nn.Linear-in_features",
        "optim.lr_range_test-steps",
        "prune.erdos_renyi-shapes",
        "quantize.Scheme-bits",
        "sparse.CSRMatrix-shape",
    } <= tried
    assert len(tried) > 150


@pytest.mark.parametrize("columns", [2**40, 2**62 - 1])
def test_results_that_no_memory_holds(columns: int) -> None:
    """A matrix with one value may have more columns than a result of its products can."""
    arrays = np.ones(1), np.zeros(1, np.int32), np.array([0, 1])
    a = sparse.CSRMatrix(arrays, (1, columns))
    for make in (a.to_dense, lambda: a.T @ np.ones(1), lambda: np.ones((2, 1)) @ a):
        with pytest.raises(MemoryError):
            make()


def without_elements(value: Any) -> Iterator[Any]:
    """Yield copies of an argument in which axes of one array have length 0."""
    if type(value) is np.ndarray and value.ndim:
        for axes in range(1, 1 << value.ndim):
            axis = (slice(0) if axes >> i & 1 else slice(None) for i in range(value.ndim))
            yield value[tuple(axis)].copy()
    elif type(value) is list:
        for i, entry in enumerate(value):
            for twin in without_elements(entry):
                yield [*value[:i], twin, *value[i + 1 :]]


def all_without(arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield arguments whose arrays have no rows, no columns, or neither, if there are arrays."""
    if not any(type(value) is np.ndarray for value in arguments.values()):
        return
    for of in (lambda v: v[:0], lambda v: v[..., :0], lambda v: v[(slice(0),) * v.ndim]):
        yield {
            key: of(value).copy() if type(value) is np.ndarray and value.ndim else value
            for key, value in arguments.items()
        }


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=NAMES)
def test_arrays_without_elements(
    attempt: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, function, arguments = attempt
    given = [
        {argument: twin}
        for argument, value in arguments().items()
        for twin in without_elements(value)
    ]
    for changed in [*given, *all_without(arguments())]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                function()(**{**arguments(), **changed})
        except (TypeError, ValueError) as error:
            # Of two arrays that do not fit, either may be named.
            known = any(mentioned(argument, str(error)) for argument in arguments())
            assert known, f"{name}({changed}): {error!r}"
        except IndexError as error:
            assert function().__name__ == "__getitem__", repr(error)


OBSERVERS = [kind for kind in vars(quantize).values() if isinstance(kind, type)]
OBSERVERS = [
    kind
    for kind in OBSERVERS
    if issubclass(kind, quantize.Observer) and kind is not quantize.Observer
]


@pytest.mark.parametrize("kind", OBSERVERS)
@pytest.mark.parametrize("shape", [(0,), (4, 0), (0, 0), (2, 3, 0), (0, 4)])
def test_observers_take_nothing_from_nothing(kind: Any, shape: tuple[int, ...]) -> None:
    observer = kind()
    observer.update(np.ones((2, 3)))
    before = observer.low.copy(), observer.high.copy(), observer.count
    observer.update(np.zeros(shape))
    after = observer.low, observer.high, observer.count
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("inputs", [0, 4])
@pytest.mark.parametrize("outputs", [0, 4])
@pytest.mark.parametrize("batch", [0, 2])
def test_weights_without_elements(inputs: int, outputs: int, batch: int) -> None:
    w, bias = np.zeros((outputs, inputs), np.float32), np.ones(outputs, np.float32)
    layers: list[nn.Layer] = [nn.SparseLinear(sparse.CSRMatrix.from_dense(w), bias)]
    for scheme in (quantize.Scheme(), quantize.Scheme(granularity="group", group_size=2)):
        for kind in ("float32", "int8"):
            layers.append(nn.QuantizedLinear(quantize.quantize(w, scheme), bias, input=kind))
        table = nn.QuantizedEmbedding(quantize.quantize(w, scheme))
        assert table(np.zeros((batch, 0), np.int64)).shape == (batch, 0, inputs)
    for layer in layers:
        y = layer(np.ones((batch, 3, inputs), np.float32))
        np.testing.assert_array_equal(y, np.ones((batch, 3, outputs)))
        assert layer.backward(y).shape == (batch, 3, inputs)
    first, second = np.ones((outputs, inputs)), np.ones((3, outputs))
    quantize.equalize(first, None, second)
    np.testing.assert_array_equal(second, np.ones((3, outputs)))


def test_linear_layers_and_their_parts_without_rows() -> None:
    """Products with few outputs, which go through dot products, and with many."""
    for outputs in (1, 2, 8, 9, 40):
        layer = nn.Linear(3, outputs, rng=0)
        dx = layer.backward(layer(np.zeros((0, 3), np.float32)))
        assert dx.shape == (0, 3) and not layer.grads["weight"].any()
    assert cr.nn.Linear(3, 2, rng=0)(np.zeros((0, 5, 3), np.float32)).shape == (0, 5, 2)

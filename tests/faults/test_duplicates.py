"""Functions that write to arrays reject duplicate and overlapping arrays."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compressrs import distributed, nn, optim, prune, sparse
from tests.faults.public import names

SCHEDULE = prune.OneShot(0.5)

#: By public name: creates the object from the arrays that it will write to, or calls it.
WRITERS: dict[str, Callable[[Any], Any]] = {
    **{
        f"optim.{name}": getattr(optim, name)
        for name in optim.__all__
        if optim.Optimizer in getattr(getattr(optim, name), "__mro__", ())[1:]
    },
    "distributed.ShardedOptimizer": lambda w: distributed.ShardedOptimizer(optim.SGD, w),
    "optim.EMA": optim.EMA,
    "optim.SWA": optim.SWA,
    "optim.LBFGS": optim.LBFGS,
    "optim.ScheduleFree": lambda w: optim.ScheduleFree(w, lambda z: optim.SGD(z, lr=0.1)),
    "optim.clip_grad_norm_": lambda w: optim.clip_grad_norm_(w, 1.0),
    "optim.clip_grad_value_": lambda w: optim.clip_grad_value_(w, 1.0),
    "prune.Pruner": lambda w: prune.Pruner(w, SCHEDULE),
    "prune.MagnitudePruner": lambda w: prune.MagnitudePruner(w, SCHEDULE),
    "prune.LotteryTicket": prune.LotteryTicket,
    "prune.sensitivity": lambda w: prune.sensitivity(w, lambda: 0.0, [0.5]),
}

#: Functions whose ``params`` and ``grads`` are only read, or that report overlap otherwise.
READERS = {"optim.Optimizer", "nn.Affine"}


def test_every_public_name_that_takes_params_is_looked_at() -> None:
    taking = {
        name
        for name, value in names().items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and not (inspect.isclass(value) and issubclass(value, Exception))
        and next(iter(inspect.signature(value).parameters), "") in ("params", "grads")
    }
    assert taking - READERS <= set(WRITERS)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("how", ["same", "view", "overlap", "nested"])
def test_shared_memory_is_refused_before_anything_changes(name: str, how: str) -> None:
    whole = np.linspace(-3, 3, 40).reshape(10, 4)
    before = whole.copy()
    given: Any = {
        "same": [whole, whole],
        "view": [whole, whole.view()],
        "overlap": [whole[:6], whole[5:]],
        "nested": {"a": {"b": whole}, "c": [whole[2:3]]},
    }[how]
    with pytest.raises(ValueError, match="memory"):
        WRITERS[name](given)
    np.testing.assert_array_equal(whole, before)
    # Adjacent slices of one buffer do not overlap.
    WRITERS[name]([whole[:5], whole[5:]])


def matrix(data: Any) -> Any:
    pattern = sparse.CSRMatrix.from_dense(np.eye(4))
    return pattern.with_data(data)


@pytest.mark.parametrize("kind", [prune.SET, prune.RigL])
@pytest.mark.parametrize("how", ["layer", "matrix", "data"])
def test_layers_whose_pattern_changes_are_given_once(kind: Any, how: str) -> None:
    data = np.arange(1.0, 5.0)
    first = nn.SparseLinear(matrix(data))
    layers = {
        "layer": [first, first],
        "matrix": [first, nn.SparseLinear(first.weight)],
        "data": [first, nn.SparseLinear(matrix(data.view()))],
    }[how]
    opt = optim.Adam(first.params)
    with pytest.raises(ValueError, match="memory"):
        kind(layers, opt, frequency=1, end=10)
    assert first.weight.data is data


def test_a_model_holds_a_layer_once() -> None:
    layer = nn.Linear(4, 4, rng=0)
    with pytest.raises(ValueError, match=r"layer 2 must not be in the model twice"):
        nn.Sequential(layer, nn.ReLU(), layer)

"""Wrong arguments raise errors that name them, never raw errors of Python or NumPy."""

from __future__ import annotations

import inspect
import itertools
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compressrs as cr
from compressrs import distill, optim, prune
from tests.faults import (
    calls,
    checkpoint_calls,
    distributed_calls,
    federated_calls,
    method_calls,
    optim_calls,
    quantize_calls,
    search_calls,
)
from tests.faults.calls import model, w
from tests.faults.public import classes, names

pytest.importorskip("scipy")

#: A list that holds itself.
LOOP: list[Any] = []
LOOP.append(LOOP)

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
    10**400,
    "\ud800",  # has no UTF-8
    LOOP,
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


#: The names of the entries of an argument that is a tuple of arrays.
ENTRIES = {"arrays": ("data", "indices", "indptr", "positions")}


#: Arguments that are names of files, of which the system's errors tell what is wrong.
PATHS = ("path", "src", "dst", "a", "b", "calibration")
TABLES = (
    calls,
    checkpoint_calls,
    distributed_calls,
    federated_calls,
    method_calls,
    optim_calls,
    quantize_calls,
    search_calls,
)
CALLS = {name: call for table in TABLES for name, call in table.CALLS.items()}
METHODS = {name: method for table in TABLES for name, method in table.METHODS.items()}
LEFT_OUT = {name for table in TABLES for name in table.LEFT_OUT}
PACKAGES = (
    "TrainState",
    "checkpoint",
    "distill",
    "distributed",
    "nn",
    "optim",
    "prune",
    "quantize",
    "search",
    "sparse",
)


def test_every_public_name_is_tried() -> None:
    public = {
        name
        for name, value in names().items()
        if name.split(".")[0] in PACKAGES and (inspect.isclass(value) or inspect.isroutine(value))
    }
    assert public - set(CALLS) == LEFT_OUT


def test_every_public_method_is_tried() -> None:
    tried = {method_of(make(), name) for make, name, _ in METHODS.values()}
    for name in CALLS:
        owner = public(name.rpartition(".")[0]) if "." in name else None
        if inspect.isclass(owner):
            tried.add(method_of(owner, name.rpartition(".")[2]))
    missing = {
        function.__qualname__
        for kind in classes().values()
        for name, function in methods_of(kind)
        if function not in tried and name not in method_calls.FORMULAS
    }
    assert missing == set(method_calls.EXEMPT)


def method_of(owner: Any, name: str) -> Any:
    """Return the function that defines a method of a class or an object."""
    found = inspect.getattr_static(owner if inspect.isclass(owner) else type(owner), name)
    return inspect.unwrap(getattr(found, "__func__", found))


#: Python's own protocols, whose arguments Python passes.
PROTOCOLS = set(dir(object)) | {
    "__copy__",
    "__deepcopy__",
    "__exit__",
    "__setstate__",
}


def methods_of(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods of a class that take arguments, and are defined in compressrs."""
    for name in dir(kind):
        own = not name.startswith("_") or (name.startswith("__") and name not in PROTOCOLS)
        function = method_of(kind, name)
        if own and inspect.isfunction(function) and function.__module__.startswith("compressrs"):
            bound = not isinstance(inspect.getattr_static(kind, name), staticmethod)
            if len(inspect.signature(function).parameters) > bound:
                yield name, function


@pytest.mark.parametrize("name", sorted(CALLS))
def test_every_argument_is_tried(name: str) -> None:
    parameters = inspect.signature(public(name)).parameters.values()
    own = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    assert own <= set(CALLS[name]())


def test_every_argument_of_a_method_is_tried() -> None:
    tried: dict[Any, set[str]] = {}
    for make, name, arguments in METHODS.values():
        tried.setdefault(method_of(make(), name), set()).update(arguments())
    for function, names_ in tried.items():
        kinds = {p.name: p.kind for p in inspect.signature(function).parameters.values()}
        own = {n for n, k in kinds.items() if k not in (k.VAR_POSITIONAL, k.VAR_KEYWORD)}
        assert own - {"self", "cls"} <= names_, function.__qualname__


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


def mentioned(name: str, text: str) -> bool:
    """Whether a text has a name as a word, so that ``n`` is not found in any message."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", text) is not None


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=[name for name, *_ in ATTEMPTS])
def test_wrong_arguments_are_refused_by_name(
    attempt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # "x" is a valid path
    name, function, arguments = attempt
    function()(**arguments())
    for argument in arguments():
        for wrong in WRONG:
            given = {**arguments(), argument: wrong}
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    function()(**given)
            except MemoryError:
                assert wrong in (10**30, 10**400), f"{name}({argument}={wrong!r})"
            except OSError as error:
                assert argument in PATHS, repr(error)
                assert error.filename or mentioned(argument, str(error)), repr(error)
            except (TypeError, ValueError) as error:
                said = str(error)
                known = any(mentioned(n, said) for n in (argument, *ENTRIES.get(argument, ())))
                assert known, f"{name}({argument}={wrong!r}): {error!r}"
            except KeyError as error:
                # KeyError is right for names, as for a dict.
                said = ascii(str(error))
                assert argument == "name" and ascii(wrong).strip("'") in said, repr(error)
            except IndexError as error:
                # IndexError is right for indexing, as for a list.
                assert function().__name__ == "__getitem__", repr(error)
                assert argument in str(error), repr(error)


def test_layers_of_shrink_are_positions_or_names() -> None:
    keep = np.arange(8) > 3
    by_position, by_name = model(), model()
    prune.shrink(by_position, {0: keep})
    prune.shrink(by_name, {"0": keep})
    np.testing.assert_array_equal(by_position[0].weight, by_name[0].weight)
    for wrong in (1.5, "x", 9, None):
        with pytest.raises(ValueError, match="keep must be of layers 0 to 2"):
            prune.shrink(model(), {wrong: keep})


def test_one_hidden_layer_may_be_a_number() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    x, y = w(), np.arange(8) % 2
    found = distill.DistilledClassifier(linear.LogisticRegression(), 3, epochs=1, random_state=0)
    assert found.fit(x, y).student_[0].weight.shape == (3, 16)


PAIRS = {
    "betas": (optim.Adam, optim.AdamW, optim.Adamax, optim.Lamb, optim.Lion, optim.NAdam),
    "eps": (optim.Adafactor,),
    "etas": (optim.Rprop,),
    "ns_coefficients": (optim.Muon,),
    "step_sizes": (optim.Rprop,),
}


@pytest.mark.parametrize("name", PAIRS)
def test_only_the_needed_elements_of_an_iterable_are_read(name: str) -> None:
    for kind in PAIRS[name]:
        for wrong in (range(10**12), [0.9] * 1000):
            with pytest.raises(TypeError, match=f"{name} must be . numbers"):
                kind(np.ones((2, 2)), **{name: wrong})
        with pytest.raises(TypeError, match=f"{name} must be . numbers, got count"):
            kind(np.ones((2, 2)), **{name: itertools.count(1)})


def test_numbers_beyond_float64_are_values_not_types() -> None:
    for wrong in (10**400, -(10**400)):
        with pytest.raises(ValueError, match="lr must be a finite number"):
            optim.SGD(np.ones(2), lr=wrong)
        with pytest.raises(ValueError, match="decay must be a finite number"):
            optim.EMA(np.ones(2), decay=wrong)


def masked_twins(value: Any) -> Iterator[Any]:
    """Yield copies of an argument in which one array has a mask."""
    if isinstance(value, np.ndarray):
        yield np.ma.masked_array(value, np.arange(value.size).reshape(value.shape) == 0)
    elif isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        for i, entry in enumerate(value):
            for twin in masked_twins(entry):
                yield type(value)([*value[:i], twin, *value[i + 1 :]])
    elif type(value) is dict:
        for key, entry in value.items():
            for twin in masked_twins(entry):
                yield {**value, key: twin}


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=[name for name, *_ in ATTEMPTS])
def test_no_mask_of_a_masked_array_is_ignored(
    attempt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, function, arguments = attempt
    if name == "Score.update":
        return  # of a score without gradients, which looks at nothing
    for argument, value in arguments().items():
        for twin in masked_twins(value):
            with pytest.raises((TypeError, ValueError), match=r"without a mask"):
                function()(**{**arguments(), argument: twin})

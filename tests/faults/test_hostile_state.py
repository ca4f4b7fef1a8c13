"""Every entry of every state dict, replaced by what it cannot be: all is refused by name."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from compressrs import _state
from tests.faults.public import ABSTRACT, EXAMPLES, classes

STATEFUL = sorted(
    name
    for name, kind in classes().items()
    if hasattr(kind, "load_state_dict") and name not in ABSTRACT
)

#: What no entry may be, unless it is in the place of something alike.
HOSTILE: list[Any] = [
    None,
    math.nan,
    math.inf,
    -math.inf,
    -5,
    -0.5,
    1.5,
    10**400,
    2**70,
    "x",
    b"x",
    True,
    [],
    [None],
    [[1.0], [2.0, 3.0]],
    {},
    {"x": {"y": [None]}},
    {1: 2},
    object(),
    np.zeros((7, 7)),
    np.zeros(3, complex),
    np.array("x"),
    np.array(None),
]


def parts(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield path and value of everything in nested dicts and lists, itself too."""
    yield path, value
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from parts(child, (*path, key))
    elif isinstance(value, (list, tuple)):
        for i, child in enumerate(value):
            yield from parts(child, (*path, i))


def replaced(tree: Any, path: tuple[Any, ...], change: Any) -> Any:
    """Return a copy of a tree in which `change` was applied to what is at a path."""
    if not path:
        return change(tree)
    if isinstance(tree, Mapping):
        return {k: replaced(v, path[1:], change) if k == path[0] else v for k, v in tree.items()}
    return [replaced(v, path[1:], change) if i == path[0] else v for i, v in enumerate(tree)]


def same(a: Any, b: Any) -> bool:
    """Whether all values are the same; lists and tuples, and numbers of any type, are alike."""
    if isinstance(a, Mapping) or isinstance(b, Mapping):
        both = isinstance(a, Mapping) and isinstance(b, Mapping)
        return both and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        array, other = (a, b) if isinstance(a, np.ndarray) else (b, a)
        return array.ndim == 0 and is_number(other) and bool(array == other)
    return type(a) is type(b) and (a == b or (a != a and b != b))


def everything(objects: Any) -> Any:
    """Return copies of all that the objects of an example hold."""
    found = []
    for value in objects if isinstance(objects, tuple) else (objects,):
        if hasattr(value, "state_dict"):
            found.append(copy.deepcopy(value.state_dict()))
        if hasattr(value, "params"):
            found.append(copy.deepcopy(value.params))
        for group in getattr(value, "param_groups", ()):
            found.append(copy.deepcopy(dict(group)))
    return found


def example(name: str) -> tuple[Any, Any]:
    objects = EXAMPLES[name].make()
    EXAMPLES[name].use(objects)
    return objects, objects[0] if isinstance(objects, tuple) else objects


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and abs(value) < 1e300


def may_be(path: tuple[Any, ...], good: Any, wrong: Any) -> bool:
    """Whether an entry may be taken over, if it then is what was given."""
    if "param_groups" in path:
        # Hyperparameters: the core refuses those out of range.
        return (
            not {"params", "param_names"} & set(path) and len(path) > path.index("param_groups") + 2
        )
    if path[-1:] == ("sums",):
        return isinstance(wrong, list) and not wrong  # of a score that has seen nothing
    if path[-1:] == ("best",):
        return is_number(wrong) or (isinstance(wrong, float) and math.isinf(wrong))
    if path[-1:] == ("last_epoch",) and isinstance(wrong, float) and wrong == 1.5:
        return True  # CosineAnnealingWarmRestarts takes fractions
    if isinstance(good, np.ndarray):
        # State of any value, even NaN, is what a run can have.
        return (path[-1] != "step" and good.ndim == 0 and is_number(wrong)) or wrong is None
    if isinstance(good, float):
        return is_number(wrong) and wrong >= 0
    if isinstance(good, int) and "rng" in path:
        return isinstance(wrong, int)
    return isinstance(good, int) and wrong is True


def attempts(good: Any) -> Iterator[tuple[tuple[Any, ...], Any, str, bool]]:
    """Yield a path, a bad state dict, what is wrong with it, and whether that may be taken."""
    for path, value in parts(good):
        for wrong in HOSTILE:
            if same(value, wrong):
                continue
            bad = replaced(good, path, lambda _, wrong=wrong: wrong)
            yield path, bad, repr(wrong), may_be(path, value, wrong)
        if isinstance(value, Mapping):
            # PyTorch's groups and what PyTorch keeps no state for may lack some.
            lenient = "param_groups" in path
            for key in value:
                rest = {k: v for k, v in value.items() if k != key}
                lacking = replaced(good, path, lambda _, rest=rest: rest)
                optional = key in ("param_names", "masks", "initial_lr", "class") or path[-1:] == (
                    "masks",
                )
                yield path, lacking, f"without {key!r}", lenient or optional
                renamed = replaced(
                    good,
                    path,
                    lambda _, rest=rest, key=key, v=value: {**rest, f"{key}_": v[key]},
                )
                yield path, renamed, f"{key!r} renamed", False
            more = replaced(good, path, lambda v: {**v, "extra": 1})
            yield path, more, "another entry", False
        elif isinstance(value, list) and value:
            for wrong_list in (value[:-1], [*value, value[-1]], [*value, None]):
                bad = replaced(good, path, lambda _, wrong=wrong_list: wrong)
                yield path, bad, f"{len(wrong_list)} values", False
        elif isinstance(value, np.ndarray):
            for array in (value[..., None], value.astype(complex), value.astype(str)):
                yield path, replaced(good, path, lambda _, a=array: a), str(array.dtype), False


def test_classes_with_state_share_the_mechanism() -> None:
    assert len(STATEFUL) > 40
    for name in STATEFUL:
        kind = classes()[name]
        if not name.startswith("nn.") and name != "TrainState":
            assert issubclass(kind, _state.Stateful), name


@pytest.mark.parametrize("name", STATEFUL)
def test_every_entry_is_checked_before_anything_changes(name: str) -> None:
    objects, found = example(name)
    good = copy.deepcopy(found.state_dict())
    before = everything(objects)
    faults = []
    tried = 0
    for path, bad, what, may in attempts(good):
        where = f"{path} {what}"
        tried += 1
        try:
            found.load_state_dict(bad)
        except (TypeError, ValueError) as error:
            said = str(error)
            # By the name of the entry, or of what it is in.
            keys = [str(key) for key in path if isinstance(key, str)]
            if not any(key in said for key in [*keys, "state_dict"]):
                faults.append(f"{where} was refused by {said!r}")
        except Exception as error:
            faults.append(f"{where} raised {error!r}")
        else:
            if not may and not same(copy.deepcopy(found.state_dict()), good):
                faults.append(f"{where} was taken over")
            found.load_state_dict(copy.deepcopy(good))
        if not same(everything(objects), before):
            faults.append(f"{where} changed something")
            found.load_state_dict(copy.deepcopy(good))
    assert not faults
    assert tried > 20


class Interrupt(BaseException):
    """Stands for Ctrl-C."""


@pytest.mark.parametrize("name", STATEFUL)
def test_an_interrupted_load_changes_nothing(name: str, monkeypatch: Any) -> None:
    """The load is cut short after each of its writes in turn."""
    if not issubclass(classes()[name], _state.Stateful):
        pytest.skip("does not use Undo")
    source = example(name)
    EXAMPLES[name].use(source[0])
    state = copy.deepcopy(source[1].state_dict())
    objects, found = example(name)
    before = everything(objects)
    write = _state.Undo.remember
    for last in range(100):
        count = 0

        def remember(undo: Any, *arrays: Any, last: int = last) -> None:
            nonlocal count
            write(undo, *arrays)
            count += 1
            if count > last:
                raise Interrupt

        monkeypatch.setattr(_state.Undo, "remember", remember)
        try:
            found.load_state_dict(copy.deepcopy(state))
        except Interrupt:
            assert same(everything(objects), before), f"after {last} writes"
            continue
        break
    monkeypatch.undo()
    assert same(copy.deepcopy(found.state_dict()), state)

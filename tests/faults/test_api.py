"""Names, signatures and `dir` of the whole public API."""

from __future__ import annotations

import inspect
import typing
from typing import Any

import numpy as np
import pytest

import compressrs as cr
from tests.faults.public import extras, names, packages

# Type aliases, such as prune.Schedule, are excluded.
CALLABLES = {
    name: value
    for name, value in {**names(), **names(extras)}.items()
    if inspect.isclass(value) or inspect.isroutine(value)
}


def functions() -> dict[str, Any]:
    """Return public functions, and methods and constructors of public classes."""
    found = {}
    for name, value in CALLABLES.items():
        if not inspect.isclass(value):
            found[name] = value
            continue
        for attribute, method in inspect.getmembers(value):
            public = not attribute.startswith("_") or attribute == "__init__"
            ours = getattr(method, "__module__", None) or ""
            ours = inspect.isroutine(method) and ours.startswith("compressrs")
            if public and ours:
                found[f"{name}.{attribute}"] = method
    return found


@pytest.mark.parametrize("name", functions())
def test_type_hints_can_be_looked_up(name: str) -> None:
    hints = typing.get_type_hints(functions()[name])
    for parameter in inspect.signature(functions()[name]).parameters.values():
        if parameter.name not in ("self", "cls"):
            assert parameter.name in hints, f"{name} has no hint for {parameter.name}"


@pytest.mark.parametrize(
    "name", [name for name, value in CALLABLES.items() if isinstance(value, type)]
)
def test_type_hints_of_attributes_can_be_looked_up(name: str) -> None:
    typing.get_type_hints(CALLABLES[name])


def test_dir_lists_everything_public() -> None:
    for name, module in (*packages(), *extras()):
        assert set(module.__all__) <= set(dir(module)), name
        assert len(set(module.__all__)) == len(module.__all__), name


def test_a_seed_is_called_rng() -> None:
    for name, function in functions().items():
        for parameter in inspect.signature(function).parameters:
            if parameter == "random_state":
                assert name in (
                    "distill.DistilledClassifier.__init__",
                    "distill.DistilledRegressor.__init__",
                )
            # For optimizers it is a hyperparameter, stored in groups and files.
            assert parameter not in ("seed", "generator"), name


@pytest.mark.parametrize("kind", [cr.prune.Random, cr.nn.Linear])
def test_rng_takes_a_seed_or_a_generator(kind: Any) -> None:
    def draw(rng: Any) -> Any:
        if kind is cr.nn.Linear:
            return kind(3, 2, rng=rng).weight
        return kind(rng=rng).scores(np.ones(4))

    np.testing.assert_array_equal(draw(7), draw(np.random.default_rng(7)))


def test_sparsity_is_taken_by_position() -> None:
    w = np.arange(1.0, 9.0).reshape(2, 4)
    np.testing.assert_array_equal(cr.prune.magnitude_mask(w, 0.5), w > 4)
    for name, function in functions().items():
        parameter = inspect.signature(function).parameters.get("sparsity")
        if parameter is not None:
            assert parameter.kind is not inspect.Parameter.KEYWORD_ONLY, name


@pytest.mark.parametrize("sparsity", [0.5, np.float32(0.5), np.array(0.5), np.array([0.5]), [0.5]])
def test_sparsity_may_be_any_number_or_one_for_each_layer(sparsity: Any) -> None:
    w = [np.arange(1.0, 9.0)]
    assert cr.prune.masks(w, sparsity)[0].sum() == 4


TREES = {
    "array": lambda a, b: a,
    "list": lambda a, b: [a, b],
    "dict": lambda a, b: {"x": a, "y": {"z": b}},
}


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("kind", ["Magnitude", "Random", "Snip", "Taylor", "Movement", "Wanda"])
def test_scores_and_masks_have_the_structure_of_the_weights(kind: str, tree: str) -> None:
    weights = TREES[tree](np.arange(1.0, 9.0).reshape(2, 4), np.arange(8.0, 0, -1).reshape(2, 4))
    if kind == "Wanda":
        statistics = [cr.prune.InputStatistics(4) for _ in range(1 if tree == "array" else 2)]
        for one in statistics:
            one.update(np.ones((3, 4)))
        score = cr.prune.Wanda(statistics)
    else:
        score = getattr(cr.prune, kind)()
    score.update(weights, weights)
    found = score.scores(weights)
    pruner = cr.prune.Pruner(weights, cr.prune.OneShot(0.5))
    for result in (found, cr.prune.masks(found, 0.5), pruner.masks):
        shape = {
            "array": lambda r: r.shape,
            "list": lambda r: r[1].shape,
            "dict": lambda r: r["y"]["z"].shape,
        }[tree](result)
        assert shape == (2, 4)
    opt = cr.optim.SGD(weights)
    opt.set_masks(pruner.masks)


@pytest.mark.parametrize(("name", "package"), [*packages(), *extras()])
def test_dir_lists_nothing_that_is_not_public(name: str, package: Any) -> None:
    listed = {entry for entry in dir(package) if not entry.startswith("_")}
    assert {entry for entry in listed if not is_module(package, entry)} <= set(package.__all__), (
        name
    )


def is_module(package: Any, entry: str) -> bool:
    try:
        return inspect.ismodule(getattr(package, entry))
    except ModuleNotFoundError:
        # A subpackage whose extra is not installed.
        return True


@pytest.mark.parametrize("name", [n for n, value in CALLABLES.items() if inspect.isclass(value)])
def test_every_class_says_what_it_is(name: str) -> None:
    assert CALLABLES[name].__repr__ is not object.__repr__


def test_descriptions_give_the_settings() -> None:
    ema = cr.optim.EMA(np.ones(2), 0.9)
    assert repr(ema) == "<EMA(decay=0.9, warmup=False, step_count=0)>"
    optimizer = cr.optim.SGD(np.ones(2), lr=0.5)
    schedule = cr.optim.lr_scheduler.StepLR(optimizer, 3)
    assert "step_size=3" in repr(schedule) and "last_epoch=0" in repr(schedule)

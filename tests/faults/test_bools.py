"""A bool is never a number: every parameter that takes numbers refuses True."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.faults.test_raw_errors import ATTEMPTS, mentioned

#: Bools of Python and NumPy; an array without axes stands for its element.
BOOLS = (True, False, np.True_, np.array(True))


#: Choices, of which numbers are some: a bool is none of them, as any other value.
CHOICES = {"norm", "block"}

#: Other arguments that a number needs, or that exclude it.
WITH: dict[str, dict[str, Any]] = {
    "OneCycleLR-epochs": {"total_steps": None, "steps_per_epoch": 3},
    "OneCycleLR-steps_per_epoch": {"total_steps": None, "epochs": 3},
    "QuantizedMatrix.linear-input_scale": {"input": "int8"},
    "QuantizedMatrix.linear-output_zero_point": {"input": "int8", "output_scale": 0.1},
    "prune.magnitude_mask-threshold": {"sparsity": None},
    "prune.sparsegpt-nm": {"sparsity": None},
    "quantize.prune_and_quantize-nm": {"sparsity": None},
    "search.Option-nm": {"sparsity": None},
    "search.compress-max_drop": {"budget": None},
}

#: What is converted to an array, as whose elements bools are numbers, or may be anything.
ARRAYS = {"coefficients", "costs", "errors", "indices"}
ANYTHING = {
    "Communicator.agree-value",
    "Communicator.allgather-value",
    "Communicator.broadcast-value",
    "search.Choice-options",
    "search.Choice-when",
    "search.Int-when",
    # Records, made of what was measured.
    "optim.Found-loss",
    "optim.Found-losses",
    "optim.LRRange-losses",
    "optim.LRRange-rates",
}


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def with_bools(value: Any, annotation: str) -> Iterator[Any]:
    """Yield bools in the place of a number, or of one of the numbers of a list, tuple or dict."""
    if is_number(value) or (value is None and takes_numbers(annotation)):
        yield from BOOLS
    elif value is None and ("tuple[int, int]" in annotation or "Pair" in annotation):
        yield from ((wrong, 2) for wrong in BOOLS)
    elif isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        for i, entry in enumerate(value):
            for twin in with_bools(entry, ""):
                yield type(value)([*value[:i], twin, *value[i + 1 :]])
    elif type(value) is dict and not annotation.startswith("Mapping[str, Any]"):
        for key, entry in value.items():
            for twin in with_bools(entry, ""):
                yield {**value, key: twin}


def takes_numbers(annotation: str) -> bool:
    """Whether a parameter with None as its default may be a number instead."""
    kinds = {kind.strip() for kind in re.sub(r"\[.*\]", "", annotation).split("|")}
    return bool(kinds & {"float", "int", "Seed", "Number"}) and not kinds & {"bool", "Any"}


def annotations(function: Any) -> dict[str, str]:
    parameters = inspect.signature(function).parameters
    return {name: str(parameter.annotation) for name, parameter in parameters.items()}


def cases() -> Iterator[Any]:
    for attempt in ATTEMPTS:
        name, function, arguments = attempt
        found = annotations(function())
        for argument, value in arguments().items():
            case = f"{name}-{argument}"
            if argument in ARRAYS or case in ANYTHING:
                continue
            if next(with_bools(value, found.get(argument, "")), None) is not None:
                yield pytest.param(attempt, argument, id=case)


CASES = list(cases())


@pytest.mark.parametrize(("attempt", "argument"), CASES)
def test_bools_are_no_numbers(
    attempt: Any, argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, function, arguments = attempt
    others = next((v for k, v in WITH.items() if f"{name}-{argument}".endswith(k)), {})
    value, annotation = arguments()[argument], annotations(function()).get(argument, "")
    refusals = (TypeError, ValueError) if argument in CHOICES else TypeError
    for wrong in with_bools(value, annotation):
        with pytest.raises(refusals) as caught:
            function()(**{**arguments(), **others, argument: wrong})
        assert mentioned(argument, str(caught.value)), f"{name}({argument}={wrong!r})"


def test_numbers_are_found() -> None:
    tried = {case.id for case in CASES}
    assert {
        "distill.kd_loss-temperature",
        "optim.Adam-betas",
        "optim.EMA-decay",
        "optim.SAM-rho",
        "prune.erdos_renyi-shapes",
        "quantize.Scheme-bits",
        "search.allocate-budget",
    } <= tried
    assert len(tried) > 500


def flags() -> Iterator[Any]:
    for attempt in ATTEMPTS:
        for argument, value in attempt[2]().items():
            if isinstance(value, bool):
                yield pytest.param(attempt, argument, id=f"{attempt[0]}-{argument}")


@pytest.mark.parametrize(("attempt", "argument"), list(flags()))
def test_flags_are_bools(
    attempt: Any, argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, function, arguments = attempt
    for flag in (arguments()[argument], np.bool_(arguments()[argument])):
        function()(**{**arguments(), argument: flag})
    for wrong in (0, 1.0):
        with pytest.raises(TypeError) as caught:
            function()(**{**arguments(), argument: wrong})
        assert mentioned(argument, str(caught.value)), f"{name}({argument}={wrong!r})"

"""What an objective is given, and what became of it."""

from __future__ import annotations

import math
import os
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from compressrs._checks import number, string, whole


class Pruned(Exception):
    """Raised by `Candidate.report` where a trial is ended early; the search records it."""


@dataclass
class Candidate:
    """A design that an objective evaluates.

    Attributes
    ----------
    number : int
        The number of the trial.
    design : dict
        The values by the names of the parameters; also ``candidate["width"]``.
    rng : int
        A seed of this trial's own, the same whenever the search is run.
    costs : dict of str to float
        What the `costs` of the search gave.
    folder : Path or None
        An existing folder for the files of this trial, as its weights, if the search has one.
    parent : int or None
        The trial whose design was mutated, where the sampler has parents.
    parent_folder : Path or None
        Its folder: `resize` makes its model one of this design.
    """

    number: int
    design: dict[str, Any]
    rng: int = 0
    costs: dict[str, float] = field(default_factory=dict)
    folder: Path | None = None
    parent: int | None = None
    parent_folder: Path | None = None

    def __getitem__(self, name: str) -> Any:
        return self.design[string(name, "name")]

    def report(self, step: int, value: float) -> None:
        """Record the objective after a step, as an epoch; the search may end the trial here.

        Parameters
        ----------
        step : int
            At least 1 for pruners of `optimize`.
        value : float

        Raises
        ------
        Pruned
            If the trial is ended.
        TypeError, ValueError
            If `step` is no number of steps, or `value` no number.
        """
        step, value = whole(step, "step", 0), number(value, "value", finite=False)
        if self._ends is not None and self._ends(step, value):
            raise Pruned(f"trial {self.number} was ended after step {step}")

    #: Whether the trial is ended, for a step and the value after it.
    _ends: Callable[[int, float], bool] | None = field(default=None, repr=False, compare=False)


class Outcome(NamedTuple):
    """What a call of an objective led to."""

    #: "complete", "pruned" or "failed".
    state: str
    #: Values by name, or one without, if complete.
    values: dict[str, float] | float | None
    error: str | None
    seconds: float


def call(objective: Callable[[Candidate], Any], candidate: Candidate) -> Outcome:
    """Call an objective; what it raises is part of the outcome."""
    started = time.perf_counter()
    state, values, error = "complete", None, None
    try:
        if candidate.folder is not None:
            candidate.folder.mkdir(parents=True, exist_ok=True)
        values = _values(objective(candidate))
    except Pruned:
        state = "pruned"
    except Exception as raised:
        state, error = "failed", _described(raised)
    return Outcome(state, values, error, time.perf_counter() - started)


def _values(result: Any) -> dict[str, float] | float:
    if isinstance(result, Mapping):
        return {str(name): _finite(value, repr(name)) for name, value in result.items()}
    return _finite(result, "the value")


def _finite(value: Any, name: str) -> float:
    found = number(value, f"{name} that the objective returned", finite=False)
    if not math.isfinite(found):
        raise ValueError(f"{name} that the objective returned is {found}")
    return found


def _described(error: Exception) -> str:
    """Return an exception in a line, with the place where it was raised."""
    text = f"{type(error).__name__}: {error}".strip().rstrip(":")
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if os.path.abspath(f.filename) != os.path.abspath(__file__)]
    return f"{text} ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else text


@dataclass(frozen=True)
class Evaluation:
    """A trial of a search.

    Attributes
    ----------
    number : int
    design : dict
    state : {"complete", "pruned", "failed"}
    values : dict of str to float
        The objectives; empty unless complete.
    costs : dict of str to float
    steps : dict of int to float
        What was reported.
    error : str or None
        Why it failed: what was raised, that time was over, how the process ended.
    seconds : float
    refused : int
        Designs over budget that were drawn before this one, none of which was evaluated.
    parent : int or None
    """

    number: int
    design: dict[str, Any]
    state: str
    values: dict[str, float] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    steps: dict[int, float] = field(default_factory=dict)
    error: str | None = None
    seconds: float = 0.0
    refused: int = 0
    parent: int | None = None

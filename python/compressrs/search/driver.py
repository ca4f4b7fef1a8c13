"""The loop of a search: ask for designs, have them evaluated, record what became of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from compressrs._checks import number, whole
from compressrs.search import sampling, storage
from compressrs.search._workers import Here, Processes
from compressrs.search.allocation import InfeasibleError
from compressrs.search.candidates import Candidate, Evaluation, Outcome
from compressrs.search.results import Study
from compressrs.search.space import Design, Space

#: The attribute of a trial with what became of it.
TOLD = "told"

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


class Driver:
    """One search, of which trials may be in a storage already."""

    def __init__(
        self,
        space: Space,
        directions: dict[str, str],
        sampler: sampling.Sampler,
        label: str,
        pruner: optuna.pruners.BasePruner | None,
        costs: Callable[[Design], Mapping[str, float]] | None,
        budget: dict[str, float],
        seed: int,
        repeats: bool,
        before: Study | None,
        folder: Path | None,
    ) -> None:
        self.space, self.directions, self.label, self.pruner = space, directions, label, pruner
        self.costs, self.budget, self.seed, self.repeats = costs, budget, seed, repeats
        self.folder = folder
        self.sampler = sampling.WithinBudget(space, sampler, seed, self._accepts)
        #: What another search found out about designs.
        self._known = {_key(t.design): t for t in before.complete} if before else {}
        self._costs: dict[Any, dict[str, float]] = {}
        self._seen: set[Any] = set()
        self._refused = 0
        self._asked: dict[int, optuna.Trial] = {}
        self._steps: dict[int, dict[int, float]] = {}
        self.exhausted = False

    def open(self, kept: optuna.storages.BaseStorage, key: str, made_with: dict[str, Any]) -> None:
        """Take up the trials of a storage.

        Raises
        ------
        ValueError
            If they are of a search with other settings.
        """
        self.study = storage.study_of(
            kept, key, self.directions, self.sampler, self.pruner, made_with
        )
        trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            self._require_whole(trial)
        self._seen = {_key(self.space.check(t.params)) for t in trials if t.state in _STATES}
        self._interrupted = [t for t in trials if t.state == TrialState.RUNNING]
        #: Steps that interrupted trials have reported.
        self._before = {t.number: set(t.intermediate_values) for t in self._interrupted}
        self._total = len(trials)

    def _require_whole(self, trial: FrozenTrial) -> None:
        """Raise a ValueError unless a trial of a journal is one that a search recorded."""
        asked = trial.user_attrs.get(sampling.ASKED)
        try:
            if trial.state in _STATES:
                self._evaluation(trial)
            elif asked is not None:
                self.space.check(asked["design"])
                whole(asked["refused"], "refused", 0)
                if asked["parent"] is not None:
                    whole(asked["parent"], "parent", 0)
        except (LookupError, AttributeError, TypeError, ValueError, OverflowError) as error:
            where = "" if self.folder is None else f"folder {self.folder.parent} has "
            raise ValueError(
                f"{where}a damaged journal: of trial {trial.number}, {error!r}"
            ) from None

    def run(
        self, pool: Here | Processes, trials: int, workers: int, advance: Callable[[], None]
    ) -> Study:
        """Evaluate until there are as many trials."""
        for _ in range(min(trials, self._total - len(self._interrupted))):
            advance()
        untold: list[int] = []
        outcomes: dict[int, Outcome] = {}
        while True:
            # In the order of their numbers: what a trial is drawn from is not a matter of time.
            while len(untold) < workers and (candidate := self._next(trials)) is not None:
                untold.append(candidate.number)
                known = self._known.get(_key(candidate.design))
                if known is None:
                    pool.start(candidate)
                else:
                    outcomes[candidate.number] = Outcome("complete", known.values, None, 0.0)
            if not untold:
                return self._result(trials)
            while untold[0] not in outcomes:
                outcomes.update(pool.finished())
            first = untold.pop(0)
            self._tell(first, outcomes.pop(first))
            advance()

    def _next(self, trials: int) -> Candidate | None:
        """Return the next candidate, or None if there is none."""
        if self.exhausted:
            return None
        self._refused = 0
        if self._interrupted:
            frozen = self._interrupted.pop(0)
            trial = optuna.Trial(self.study, frozen._trial_id)
        elif self._total < trials:
            trial = self.study.ask()
            self._total += 1
        else:
            return None
        try:
            design = self.space.check(trial.relative_params)
        except sampling.Exhausted:
            # It stays unfinished, as if the search had been interrupted here.
            self.exhausted = True
            self._require_some()
            return None
        asked = trial.user_attrs.get(sampling.ASKED)
        if asked is None:
            # Before its parameters, so that it is drawn as a whole or not at all.
            asked = {
                "design": design,
                "refused": self._refused,
                "parent": self.sampler.parents.pop(trial.number, None),
            }
            trial.set_user_attr(sampling.ASKED, asked)
        sampling.suggest(trial, self.space)
        self._seen.add(_key(design))
        self._asked[trial.number] = trial
        number, parent = trial.number, asked["parent"]
        return Candidate(
            number, design, sampling.seed_of(self.seed, number), dict(self._costs_of(design)),
            self._folder(number), parent, None if parent is None else self._folder(parent),
        )  # fmt: skip

    def _folder(self, number: int) -> Path | None:
        return None if self.folder is None else self.folder / str(number)

    def _accepts(self, design: Design) -> bool:
        if not self.repeats and _key(design) in self._seen:
            return False
        costs = self._costs_of(design)
        fits = all(costs[name] <= most for name, most in self.budget.items())
        self._refused += not fits
        return fits

    def _costs_of(self, design: Design) -> dict[str, float]:
        key = _key(design)
        if self.costs is None or key in self._costs:
            return self._costs.get(key, {})
        found = self.costs(dict(design))
        if not isinstance(found, Mapping):
            raise TypeError(f"costs must return a dict, got {type(found).__name__}")
        if lacking := [name for name in self.budget if name not in found]:
            raise ValueError(f"costs must return {lacking[0]!r}, which budget limits")
        checked = {
            str(name): number(value, f"{name!r} that costs returned", 0)
            for name, value in found.items()
        }
        self._costs[key] = checked
        return checked

    def _require_some(self) -> None:
        """Raise an error if no design at all is within the budget."""
        if self._seen or not self._costs:
            return
        least = {name: min(costs[name] for costs in self._costs.values()) for name in self.budget}
        raise InfeasibleError(
            f"budget must be at least that of some design: of {len(self._costs)} drawn, none is "
            "within "
            + ", ".join(f"{name} <= {most:g}" for name, most in self.budget.items())
            + "; the least are "
            + ", ".join(f"{name} {value:g}" for name, value in least.items())
        )

    def ends(self, number: int, step: int, value: float) -> bool:
        """Record a step of a trial; return whether it ends here."""
        trial = self._asked[number]
        steps = self._steps.setdefault(number, {})
        new, steps[step] = step not in steps, value
        if len(self.directions) > 1:
            return False
        if new and step not in self._before.get(number, ()):
            trial.report(value, step)
        return self.pruner is not None and trial.should_prune()

    def _tell(self, number: int, outcome: Outcome) -> None:
        """Record what became of a trial."""
        trial = self._asked.pop(number)
        state, error, values = outcome.state, outcome.error, {}
        design = self.space.check(trial.params)
        if state == "complete":
            try:
                values = self._objectives(outcome.values, self._costs_of(design))
            except ValueError as wrong:
                state, error = "failed", str(wrong)
        trial.set_user_attr(
            TOLD,
            {
                "seconds": outcome.seconds,
                "error": error,
                "costs": self._costs_of(design),
                "steps": list(self._steps.pop(number, {}).items()),
            },
        )
        if state == "complete":
            self.study.tell(trial, [values[name] for name in self.directions])
        else:
            failed = TrialState.FAIL if state == "failed" else TrialState.PRUNED
            self.study.tell(trial, state=failed)

    def _objectives(self, given: Any, costs: Mapping[str, float]) -> dict[str, float]:
        """Return the objectives by name, of what an objective returned."""
        if not isinstance(given, Mapping):
            given = {next(iter(self.directions)): given}
        found = {**{n: v for n, v in costs.items() if n in self.directions}, **given}
        if lacking := [name for name in self.directions if name not in found]:
            raise ValueError(f"the objective did not return {lacking[0]!r}")
        if extra := [name for name in found if name not in self.directions]:
            raise ValueError(f"the objective returned {extra[0]!r}, which directions do not name")
        return found

    def _result(self, trials: int) -> Study:
        ended = [t for t in self.study.get_trials(deepcopy=False) if t.state in _STATES]
        return Study(
            self.space, dict(self.directions), self.label,
            [self._evaluation(trial) for trial in ended[:trials]], dict(self.budget),
            exhausted=self.exhausted,
        )  # fmt: skip

    def _evaluation(self, trial: FrozenTrial) -> Evaluation:
        asked, told = trial.user_attrs[sampling.ASKED], trial.user_attrs[TOLD]
        state = _STATES[trial.state]
        values = {}
        if state == "complete":
            values = dict(zip(self.directions, trial.values, strict=True))
        return Evaluation(
            trial.number, self.space.check(trial.params), state, values, told["costs"],
            {int(step): float(value) for step, value in told["steps"]}, told["error"],
            told["seconds"], asked["refused"], asked["parent"],
        )  # fmt: skip


def _key(design: Design) -> Any:
    return tuple(design.items())

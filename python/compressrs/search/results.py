"""Results of searches: trials, the best of them, and the trade-offs."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from compressrs._text import markdown_table
from compressrs.search.candidates import Evaluation
from compressrs.search.space import Space

#: Shares of the trials after which tables show the best so far.
SHARES = (0.25, 0.5, 1.0)

#: What tables say where there is nothing to compare with.
ALONE = "Random search was not run."


def nondominated(values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Return which rows no other row dominates, all columns being minimized."""
    kept = np.ones(len(values), np.bool_)
    for i, row in enumerate(values):
        if kept[i]:
            kept &= ~((row <= values).all(axis=1) & (row < values).any(axis=1))
    return kept


def require_optuna() -> None:
    """Raise a ModuleNotFoundError that says what to install if there is no Optuna."""
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "searches need Optuna: pip install 'compressrs[search]'", name="optuna"
        ) from None


@dataclass(frozen=True)
class Study:
    """What `optimize` found.

    Attributes
    ----------
    space : Space
    directions : dict of str to str
        "minimize" or "maximize" of each objective.
    sampler : str
    trials : list of Evaluation
        In the order of their numbers.
    budget : dict of str to float
    random : Study or None
        A random search of as many trials under the same budget.
    exhausted : bool
        Whether it ended early because no design was left.
    """

    space: Space
    directions: dict[str, str]
    sampler: str
    trials: list[Evaluation] = field(repr=False)
    budget: dict[str, float] = field(default_factory=dict)
    random: Study | None = field(default=None, repr=False)
    exhausted: bool = False

    def _beside(self, random: Study) -> Study:
        """Return this study with a random search to compare with."""
        return replace(self, random=random)

    @property
    def complete(self) -> list[Evaluation]:
        """The trials that have values."""
        return [trial for trial in self.trials if trial.state == "complete"]

    @property
    def best(self) -> Evaluation:
        """The trial of the best value; with several objectives, of the first.

        Raises
        ------
        ValueError
            If no trial is complete.
        """
        return self._best_of(next(iter(self.directions)), self._some())

    @property
    def frontier(self) -> list[Evaluation]:
        """The trials that no other is better than in all objectives, by the first."""
        some = self._some()
        first = next(iter(self.directions))
        kept = nondominated(self._losses(some))
        found = [trial for trial, keep in zip(some, kept, strict=True) if keep]
        return sorted(found, key=lambda trial: self._sign(first) * trial.values[first])

    def _losses(self, trials: list[Evaluation]) -> npt.NDArray[np.float64]:
        """Return a row of objectives a trial, with signs so that less is better."""
        rows = [[self._sign(n) * trial.values[n] for n in self.directions] for trial in trials]
        return np.array(rows, np.float64).reshape(len(trials), len(self.directions))

    def _some(self) -> list[Evaluation]:
        found = self.complete
        if not found:
            errors = [trial.error for trial in self.trials if trial.error]
            first = f"; the first failed with {errors[0]}" if errors else ""
            raise ValueError(f"no trial of {len(self.trials)} is complete{first}")
        return found

    def _sign(self, name: str) -> int:
        return -1 if self.directions[name] == "maximize" else 1

    def _best_of(self, name: str, trials: list[Evaluation]) -> Evaluation:
        return min(trials, key=lambda trial: self._sign(name) * trial.values[name])

    def table(self) -> str:
        """Return the search beside random search as a Markdown table."""
        text = markdown_table(self._comparison())
        if self.random is None and self.sampler != "random":
            text += f"\n\n{ALONE}"
        return text

    def _comparison(self) -> list[list[str]]:
        """Return the cells of `table`."""
        studies = [self] if self.random is None else [self, self.random]
        heads = ["search (" + self.sampler + ")", "random search"][: len(studies)]
        rows = [["", *heads]]
        for label, states in (
            ("trials", ("complete", "pruned", "failed")),
            ("pruned", ("pruned",)),
            ("failed", ("failed",)),
        ):
            counts = [sum(t.state in states for t in study.trials) for study in studies]
            if label == "trials" or any(counts):
                rows.append([label, *map(str, counts)])
        if self.budget:
            refused = (sum(t.refused for t in study.trials) for study in studies)
            rows.append(["refused before training", *map(str, refused)])
        for name in self.directions:
            for share in SHARES:
                label = f"best {name}" if share == 1 else f"after {share:.0%} of the trials"
                rows.append([label, *(study._best_after(name, share) for study in studies)])
        if len(self.directions) > 1 and all(study.complete for study in studies):
            rows.append(["frontier", *(str(len(study.frontier)) for study in studies)])
            if self.random is not None:
                beaten = self._dominated_by(self.random), self.random._dominated_by(self)
                rows.append(["of these dominated by the other", *map(str, beaten)])
        return rows

    def _best_after(self, name: str, share: float) -> str:
        first = self.trials[: round(share * len(self.trials))]
        complete = [trial for trial in first if trial.state == "complete"]
        return f"{self._best_of(name, complete).values[name]:.6g}" if complete else "none"

    def _dominated_by(self, other: Study) -> int:
        own, theirs = self._losses(self.frontier), self._losses(other.frontier)
        return sum(
            bool(((theirs <= row).all(axis=1) & (theirs < row).any(axis=1)).any()) for row in own
        )

    def importances(self) -> dict[str, float]:
        """Return how much of the good trials' distinction is due to each parameter.

        By PED-ANOVA, as Optuna has it, for the first objective; the sum is 1.

        Raises
        ------
        ModuleNotFoundError
            If Optuna is not installed.
        ValueError
            If less than two trials are complete.
        """
        require_optuna()
        from compressrs.search.report import importances

        return importances(self)

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write an HTML page that needs no network: history, coordinates, frontier, importance.

        Parameters
        ----------
        path : path

        Raises
        ------
        ModuleNotFoundError
            If plotly or Optuna is not installed (``pip install 'compressrs[search]'``).
        OSError
            If the file cannot be written.
        """
        require_optuna()
        from compressrs.search.report import write

        write(self, path)

"""Regularized evolution, which Optuna lacks, as one of its samplers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from compressrs.search.results import nondominated
from compressrs.search.space import Design, Space


class RegularizedEvolution(BaseSampler):  # type: ignore[misc]
    """Mutates the best of a few trials that are drawn from the last ones.

    The population are the last `population` complete trials: the oldest are removed, not the
    worst, so that a design survives by descendants that are good again. Of `tournament` of
    them the best is mutated; with several objectives, one at random of those that no other
    of these dominates. Unlike in the paper, a tenth of the children differ in more than one
    parameter: where all neighbours of a design are known, others are still reached.

    Parameters
    ----------
    space : Space
    seed : int
        Of one trial.

    References
    ----------
    Real et al., "Regularized Evolution for Image Classifier Architecture Search",
    arXiv 1802.01548.
    """

    #: Best on NAS-Bench-201 among 10 to 50 and 3 to 25 for 200 trials; docs/search.md.
    population, tournament = 20, 10

    #: The probability that one more parameter is changed.
    further = 0.1

    def __init__(self, space: Space, seed: int) -> None:
        self.space = space
        self._rng = np.random.default_rng(seed)
        #: The number of the trial that was mutated.
        self.parent: int | None = None

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return nothing: whole designs are drawn, whatever their parameters."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> Design:
        """Return a child."""
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not complete:
            self.parent = None
            return self.space.sample(self._rng)
        last = sorted(complete, key=lambda one: one.number)[-self.population :]
        size = min(self.tournament, len(last))
        drawn = [last[i] for i in self._rng.choice(len(last), size, replace=False)]
        signs = [1 if d == StudyDirection.MINIMIZE else -1 for d in study.directions]
        values = np.array([np.multiply(signs, one.values) for one in drawn])
        best = np.flatnonzero(nondominated(values))
        parent = drawn[best[self._rng.integers(len(best))]]
        self.parent = parent.number
        child = self.space.mutate(parent.params, self._rng)
        while self._rng.random() < self.further:
            child = self.space.mutate(child, self._rng)
        return child

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw a parameter at random."""
        return self.space.parameters[param_name]._sample(self._rng)

"""Samplers and pruners by name, of Optuna where it has them, within a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler

from compressrs._checks import choice
from compressrs.search.evolution import RegularizedEvolution
from compressrs.search.space import Choice, Design, Float, Int, Space

#: Draws of a sampler before designs are drawn at random instead, and the most of these.
DRAWS, RANDOM_DRAWS = 200, 10_000

#: The attribute of a trial with its design.
ASKED = "asked"

#: Spaces of up to as many designs are listed where drawing finds none that is left.
LISTED = 100_000


class Sampler(NamedTuple):
    """How to make a sampler, and how many trials are random draws before."""

    make: Callable[[Space, int], BaseSampler]
    startup: int = 0


#: By name. Those that draw the first trials at random draw the same as "random".
SAMPLERS: dict[str, Sampler] = {
    "random": Sampler(lambda space, seed: optuna.samplers.RandomSampler(seed)),
    "evolution": Sampler(RegularizedEvolution, RegularizedEvolution.population),
    "tpe": Sampler(
        lambda space, seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=1), 10
    ),
    "nsga2": Sampler(
        lambda space, seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=20)
    ),
}

#: By name. Both compare trials that have reported as many steps.
PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    "asha": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=1, reduction_factor=3),
}


def sampler_of(given: Any) -> tuple[str, Sampler]:
    """Return a sampler and its name.

    Raises
    ------
    TypeError, ValueError
        If it is neither the name of one nor makes one of Optuna.
    """
    if isinstance(given, str):
        return given, SAMPLERS[choice(given, "sampler", tuple(SAMPLERS))]
    if not callable(given) or isinstance(given, BaseSampler):
        raise TypeError(
            f"sampler must be one of {', '.join(map(repr, SAMPLERS))}, or a function that makes "
            f"a sampler of Optuna from a seed, got {type(given).__name__}"
        )
    made = given(0)
    if not isinstance(made, BaseSampler):
        raise TypeError(f"sampler must make a sampler of Optuna, got {type(made).__name__}")
    return type(made).__name__, Sampler(lambda space, seed: given(seed))


def pruner_of(given: Any) -> optuna.pruners.BasePruner | None:
    """Return a pruner of Optuna.

    Raises
    ------
    TypeError, ValueError
        If it is neither the name of one nor one.
    """
    if given is None or isinstance(given, optuna.pruners.BasePruner):
        return given
    if not isinstance(given, str):
        raise TypeError(
            f"pruner must be None, one of {', '.join(map(repr, PRUNERS))} or a pruner of Optuna, "
            f"got {type(given).__name__}"
        )
    return PRUNERS[choice(given, "pruner", tuple(PRUNERS))]()


def distribution(parameter: Choice | Int | Float) -> BaseDistribution:
    """Return a parameter as Optuna's."""
    if isinstance(parameter, Choice):
        return CategoricalDistribution(parameter.options)
    if isinstance(parameter, Int):
        return IntDistribution(parameter.low, parameter.high, parameter.log, parameter.step)
    return FloatDistribution(parameter.low, parameter.high, parameter.log)


def suggest(trial: optuna.Trial, space: Space) -> None:
    """Record the design that the study's sampler drew for a trial as the trial's parameters."""
    design: Design = {}
    for name, p in space.parameters.items():
        if not space._exists(name, design):
            continue
        if isinstance(p, Choice):
            design[name] = trial.suggest_categorical(name, p.options)
        elif isinstance(p, Int):
            design[name] = trial.suggest_int(name, p.low, p.high, step=p.step, log=p.log)
        else:
            design[name] = trial.suggest_float(name, p.low, p.high, log=p.log)


def seed_of(seed: int, number: int) -> int:
    """Return the seed of a trial, so that it depends on no draws of others."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


class Exhausted(Exception):
    """No design is left that fits."""


class WithinBudget(BaseSampler):  # type: ignore[misc]
    """Draws whole designs by another sampler until one is accepted.

    Unlike constraints of samplers, which only make designs over budget less likely, none of
    these is ever proposed (TabNAS, Yang et al., arXiv 2204.07615).

    Parameters
    ----------
    space : Space
    sampler : Sampler
        Made anew for each trial with a seed of the trial's own, so that a search that was
        interrupted goes on as if it had not been.
    seed : int
    accepts : callable
        Whether a design fits and may be evaluated.
    """

    def __init__(
        self, space: Space, sampler: Sampler, seed: int, accepts: Callable[[Design], bool]
    ) -> None:
        self.space, self.sampler, self.seed, self.accepts = space, sampler, seed, accepts
        self._distributions = {n: distribution(p) for n, p in space.parameters.items()}
        self._made: dict[int, BaseSampler] = {}
        #: The parents of trials, where the sampler has them.
        self.parents: dict[int, int | None] = {}

    def _sampler_of(self, number: int) -> BaseSampler:
        if number not in self._made:
            seed = seed_of(self.seed, number)
            at_random = number < self.sampler.startup
            sampler = SAMPLERS["random"] if at_random else self.sampler
            self._made[number] = sampler.make(self.space, seed)
        return self._made[number]

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return all parameters."""
        return self._distributions

    def sample_relative(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        search_space: Mapping[str, BaseDistribution],
    ) -> Design:
        """Return a design that is accepted.

        Raises
        ------
        Exhausted
            If none is found.
        """
        if ASKED in trial.user_attrs:
            # Drawn before the search was interrupted.
            design = self.space.check(trial.user_attrs[ASKED]["design"])
            return design
        inner = self._sampler_of(trial.number)
        for _ in range(DRAWS):
            design = self._drawn(inner, study, trial)
            if self.accepts(design):
                self.parents[trial.number] = getattr(inner, "parent", None)
                return design
        rng = np.random.default_rng(seed_of(self.seed, trial.number))
        for _ in range(RANDOM_DRAWS):
            design = self.space.sample(rng)
            if self.accepts(design):
                return design
        if self.space.size <= LISTED:
            left = [design for design in self.space.designs() if self.accepts(design)]
            if left:
                return left[rng.integers(len(left))]
        raise Exhausted

    def _drawn(
        self, inner: BaseSampler, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> Design:
        together = inner.infer_relative_search_space(study, trial)
        values = inner.sample_relative(study, trial, together)
        design: Design = {}
        for name in self.space.parameters:
            if self.space._exists(name, design):
                design[name] = (
                    values[name]
                    if name in values
                    else inner.sample_independent(study, trial, name, self._distributions[name])
                )
        return self.space.check(design)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Raise an error: all parameters are drawn together."""
        raise RuntimeError(f"{param_name} is not in the space")

    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """Tell the sampler."""
        self._sampler_of(trial.number).before_trial(study, trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        state: optuna.trial.TrialState,
        values: Any,
    ) -> None:
        """Tell the sampler."""
        self._sampler_of(trial.number).after_trial(study, trial, state, values)
        del self._made[trial.number]

"""Valid arguments of the public callables of `search`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np

from compressrs import nn, optim, quantize, search
from tests.faults.optim_calls import Arguments, Method
from tests.faults.public import perceptron, space, study

CALLS: dict[str, Arguments] = {
    "search.allocate": lambda: dict(
        errors=[[0.0, 1.0], [0.0, 3.0]],
        costs=[[8, 4], [8, 4]],
        budget=20,
        ties=[[0, 1]],
        tolerance=0.0,
        max_labels=100,
    ),
    "search.pareto": lambda: dict(
        errors=[[0.0, 1.0], [0.0, 3.0]], costs=[[8, 4], [8, 4]], ties=[[0, 1]], points=100
    ),
}


def options() -> Any:
    return [search.Option(), search.Option(quantize.Scheme(bits=4))]


def tables() -> Any:
    errors = [np.array([0.0, 1.0])] * 2
    return search.Measurements(
        ["a", "b"], [options()] * 2, errors, {"bytes": [np.array([2.0, 1.0])] * 2}
    )


def loss(made: Any) -> float:
    return 1.0


def measuring() -> Any:
    return dict(
        # One layer is one job, for which no processes are started.
        model=nn.Sequential(nn.Linear(16, 2, rng=0)),
        options=options(),
        calibration=np.ones((20, 16), np.float32),
        evaluate=loss,
        sensitivity="output",
        latency=None,
        cache=None,
        workers=1,
        progress=False,
    )


CALLS |= {
    "search.Option": lambda: dict(scheme=quantize.Scheme(bits=8), sparsity=0.5, nm=None, rank=None),
    "search.measure": measuring,
    "search.correct": lambda: dict(measurements=tables(), budget=3, evaluate=sum, trials=2, rng=0),
    "search.compress": lambda: dict(
        measuring(),
        budget=10_000,
        destination=None,
        max_drop=None,
        trials=0,
        data=(np.ones((4, 16), np.float32), None),
        loss=nn.mse_loss,
        epochs=1,
        lr=0.1,
        measured=None,
        rng=0,
    ),
}

CALLS |= {
    "search.Choice": lambda: dict(options=["a", 1, None], when={"b": 1}),
    "search.Int": lambda: dict(low=1, high=9, step=1, log=True, when={"b": (1, 2)}),
    "search.Float": lambda: dict(low=0.1, high=9.0, log=True, when=None),
    "search.resize": lambda: dict(
        model=perceptron(), sizes={0: 5}, optimizer=optim.SGD(np.ones(2)), rng=0
    ),
    "search.Space": lambda: dict(parameters={"a": search.Int(1, 3)}),
}


def searching() -> Any:
    return dict(
        objective=loss,
        space=space(),
        trials=1,
        directions="minimize",
        sampler="random",
        pruner=None,
        costs=lambda design: {"bytes": 1},
        budget={"bytes": 1},
        rng=0,
        workers=1,
        timeout=None,
        folder=None,
        baseline=False,
        repeats=True,
        progress=False,
    )


METHODS: dict[str, Method] = {
    "search.Space.sample": (space, "sample", lambda: dict(rng=0)),
    "search.Space.mutate": (space, "mutate", lambda: dict(design={"a": 1}, rng=0)),
    "search.Space.check": (space, "check", lambda: dict(design={"a": 1})),
    "search.Candidate.report": (
        lambda: search.Candidate(1, {"a": 2}),
        "report",
        lambda: dict(step=1, value=2.0),
    ),
    "search.Candidate.get": (
        lambda: search.Candidate(1, {"a": 2}),
        "__getitem__",
        lambda: dict(name="a"),
    ),
    "search.Frontier.choice": (
        lambda: search.pareto([[0.0, 1.0]], [[2, 1]]),
        "choice",
        lambda: dict(point=1),
    ),
    "search.Measurements.allocate": (
        tables,
        "allocate",
        lambda: dict(budget={"bytes": 3}, coefficients=[1.0, 2.0]),
    ),
    "search.Measurements.pareto": (
        tables,
        "pareto",
        lambda: dict(cost="bytes", coefficients=[1.0, 2.0], points=10),
    ),
    "search.Measurements.weighted": (
        tables,
        "weighted",
        lambda: dict(coefficients=[1.0, 2.0]),
    ),
    "search.Measurements.chosen": (tables, "chosen", lambda: dict(choice=[0, 1])),
    "search.Measurements.cost": (tables, "cost", lambda: dict(name="bytes", choice=[0, 1])),
    "search.Measurements.uniform": (tables, "uniform", lambda: dict(option=options()[0])),
    "search.Measurements.with_errors": (
        tables,
        "with_errors",
        lambda: dict(errors=[[0.0, 1.0], [0.0, 2.0]]),
    ),
    "search.Frontier.within": (
        lambda: search.pareto([[0.0, 1.0]], [[2, 1]]),
        "within",
        lambda: dict(budget=2),
    ),
}

LEFT_OUT = {
    # Results, and what is raised.
    "search.Allocation",
    "search.Candidate",
    "search.Compressed",
    "search.Correction",
    "search.Evaluation",
    "search.Frontier",
    "search.InfeasibleError",
    "search.Measurements",
    "search.Pruned",
    "search.Study",
    "search.Trial",
    "search.UnprovenWarning",
}

if find_spec("optuna") is None:
    LEFT_OUT.add("search.optimize")
else:
    CALLS["search.optimize"] = searching
if find_spec("optuna") is not None and find_spec("plotly") is not None:
    METHODS["search.Study.report"] = (study, "report", lambda: dict(path="search.html"))

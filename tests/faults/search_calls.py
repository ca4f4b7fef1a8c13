"""Valid arguments of the public callables of `search`."""

from __future__ import annotations

from compressrs import search
from tests.faults.optim_calls import Arguments, Method

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

METHODS: dict[str, Method] = {
    "search.Frontier.choice": (
        lambda: search.pareto([[0.0, 1.0]], [[2, 1]]),
        "choice",
        lambda: dict(point=1),
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
    "search.Frontier",
    "search.InfeasibleError",
    "search.UnprovenWarning",
}

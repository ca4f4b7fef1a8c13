"""What each option of each layer costs, measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compressrs._arrays import Array
from compressrs._checks import choice as checked_choice
from compressrs._checks import converted, number
from compressrs.search._tables import Floats
from compressrs.search.allocation import Allocation, allocate
from compressrs.search.frontier import POINTS, Frontier, pareto
from compressrs.search.options import Option, rule_label


@dataclass(frozen=True)
class Measurements:
    """Tables of errors and costs of the options of layers, as `measure` returns them.

    Attributes
    ----------
    names : list of str
        Layers of a model, or tensors of a checkpoint. What is not chosen for, as biases, has
        one option.
    options : list of list of Option or checkpoint.Rule
        Those that apply to each layer.
    errors : list of array of float64
        The relative squared output error of each option; the increase of the loss where
        `measure` was given `evaluate`.
    costs : dict of str to list of array of float64
        "bytes"; for models "multiply_adds" of one row; "latency" in seconds if measured.
    noise : list of array of float64, or None
        Half the range between the quartiles of the latencies.
    same : dict of str to str
        Tensors with the bytes of another, which are stored once: they become what that does.
    """

    names: list[str]
    options: list[list[Any]]
    errors: list[Floats]
    costs: dict[str, list[Floats]]
    noise: list[Floats] | None = None
    same: dict[str, str] | None = None

    def allocate(
        self,
        budget: float | Mapping[str, float],
        *,
        coefficients: Array | Sequence[float] | None = None,
    ) -> Allocation:
        """Return the best option of each layer within budgets, see `compressrs.search.allocate`.

        Parameters
        ----------
        budget : float, or dict of str to float
            Bytes, or budgets by the name of the cost.
        coefficients : array, shape (layers,), optional
            What the errors of each layer are multiplied by, see `correct`.

        Raises
        ------
        TypeError, ValueError
            If a budget is of no cost that was measured, or as `compressrs.search.allocate`.
        InfeasibleError
            If no choice is within the budgets.
        """
        given = dict(budget) if isinstance(budget, Mapping) else {"bytes": budget}
        if not given:
            raise ValueError(f"budget must be of {', '.join(self.costs)}, got none")
        for name in given:
            checked_choice(name, "budget", tuple(self.costs))
        limits = [number(value, f"budget[{name!r}]", 0) for name, value in given.items()]
        tables = [
            np.stack(columns, axis=1)
            for columns in zip(*(self.costs[name] for name in given), strict=True)
        ]
        return allocate(self.weighted(coefficients), tables, limits)

    def pareto(
        self,
        cost: str = "bytes",
        *,
        coefficients: Array | Sequence[float] | None = None,
        points: int = POINTS,
    ) -> Frontier:
        """Return the trade-off between error and one cost, see `compressrs.search.pareto`.

        Raises
        ------
        TypeError, ValueError
            If the cost was not measured, or as `compressrs.search.pareto`.
        """
        checked_choice(cost, "cost", tuple(self.costs))
        return pareto(self.weighted(coefficients), self.costs[cost], points=points)

    def weighted(self, coefficients: Array | Sequence[float] | None = None) -> list[Floats]:
        """Return the errors, multiplied by a coefficient a layer.

        Raises
        ------
        TypeError, ValueError
            If coefficients are not one finite number of at least 0 a layer.
        """
        if coefficients is None:
            return self.errors
        factors = converted(coefficients, "coefficients")
        if factors.dtype.kind not in "fiu":
            raise TypeError(f"coefficients must be numbers, got dtype {factors.dtype}")
        if factors.shape != (len(self.names),):
            raise ValueError(
                f"coefficients must be one a layer, {len(self.names)}, got {factors.shape}"
            )
        if not (np.isfinite(factors) & (factors >= 0)).all():
            raise ValueError("coefficients must be finite and at least 0")
        return [float(c) * e for c, e in zip(factors, self.errors, strict=True)]

    def chosen(self, choice: Sequence[int]) -> dict[str, Any]:
        """Return the option of each layer by name, for a choice of `allocate`."""
        return {
            name: options[k]
            for name, options, k in zip(self.names, self.options, choice, strict=True)
        }

    def cost(self, name: str, choice: Sequence[int]) -> float:
        """Return the sum of a cost for a choice."""
        return math.fsum(c[k] for c, k in zip(self.costs[name], choice, strict=True))

    def uniform(self, option: Any) -> list[int]:
        """Return the choice of one option everywhere; the first where it does not apply."""
        return [found.index(option) if option in found else 0 for found in self.options]

    def table(self) -> str:
        """Return all numbers as a Markdown table."""
        costs = list(self.costs)
        lines = [
            ["Layer", "Option", "error", *costs],
            ["---", "---", *("---:" for _ in ("error", *costs))],
        ]
        for i, name in enumerate(self.names):
            for k, option in enumerate(self.options[i]):
                label = option.label if isinstance(option, Option) else rule_label(option)
                numbers = [self.errors[i][k], *(self.costs[c][i][k] for c in costs)]
                lines.append([name, label, *(f"{x:.6g}" for x in numbers)])
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def with_errors(self, errors: Sequence[Array]) -> Measurements:
        """Return the same costs with other errors.

        Raises
        ------
        ValueError
            If they are not one an option.
        """
        found = [np.asarray(e, np.float64) for e in errors]
        if [len(e) for e in found] != [len(e) for e in self.errors]:
            raise ValueError("errors must be one an option of each layer")
        return replace(self, errors=found)

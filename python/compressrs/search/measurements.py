"""What each option of each layer costs, measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compressrs._arrays import Array
from compressrs._checks import choice as checked_choice
from compressrs._checks import converted, number, sequence, whole
from compressrs._text import markdown_table
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
        given = limits_of(budget)
        for name in given:
            checked_choice(name, "budget", tuple(self.costs))
        tables = [
            np.stack(columns, axis=1)
            for columns in zip(*(self.costs[name] for name in given), strict=True)
        ]
        return allocate(self.weighted(coefficients), tables, list(given.values()))

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
        """Return the option of each layer by name, for a choice of `allocate`.

        Raises
        ------
        TypeError, ValueError
            If `choice` is not the index of an option for each layer.
        """
        indices = self._indices(choice)
        return {
            name: options[k]
            for name, options, k in zip(self.names, self.options, indices, strict=True)
        }

    def cost(self, name: str, choice: Sequence[int]) -> float:
        """Return the sum of a cost for a choice.

        Raises
        ------
        TypeError, ValueError
            If the cost was not measured, or `choice` is not the index of an option for each
            layer.
        """
        checked_choice(name, "name", tuple(self.costs))
        indices = self._indices(choice)
        return math.fsum(c[k] for c, k in zip(self.costs[name], indices, strict=True))

    def _indices(self, choice: Sequence[int]) -> list[int]:
        indices = [whole(k, f"choice[{i}]", 0) for i, k in enumerate(sequence(choice, "choice"))]
        counts = [len(options) for options in self.options]
        if len(indices) != len(counts):
            raise ValueError(
                f"choice must have an option for each of {len(counts)} layers, got {len(indices)}"
            )
        for i, (k, count) in enumerate(zip(indices, counts, strict=True)):
            if k >= count:
                raise ValueError(f"choice[{i}] must be less than {count}, got {k}")
        return indices

    def uniform(self, option: Any) -> list[int]:
        """Return the choice of one option everywhere; the first where it does not apply.

        Raises
        ------
        TypeError, ValueError
            If it is not an option, or applies to no layer.
        """
        kinds = {type(own) for found in self.options for own in found}
        if type(option) not in kinds:
            names = " or ".join(sorted(kind.__name__ for kind in kinds))
            raise TypeError(f"option must be an {names}, got {type(option).__name__}")
        if not any(option in found for found in self.options):
            raise ValueError(f"option must apply to at least one layer, got {option!r}")
        return [found.index(option) if option in found else 0 for found in self.options]

    def table(self) -> str:
        """Return all numbers as a Markdown table."""
        costs = list(self.costs)
        lines = [["Layer", "Option", "error", *costs]]
        for i, name in enumerate(self.names):
            for k, option in enumerate(self.options[i]):
                label = option.label if isinstance(option, Option) else rule_label(option)
                numbers = [self.errors[i][k], *(self.costs[c][i][k] for c in costs)]
                lines.append([name, label, *(f"{x:.6g}" for x in numbers)])
        return markdown_table(lines, 2)

    def with_errors(self, errors: Sequence[Array]) -> Measurements:
        """Return the same costs with other errors.

        Raises
        ------
        ValueError
            If they are not one an option.
        """
        found = []
        for i, error in enumerate(sequence(errors, "errors")):
            array = converted(error, f"errors[{i}]")
            if array.dtype.kind not in "fiu":
                raise TypeError(f"errors[{i}] must be numbers, got dtype {array.dtype}")
            found.append(array.astype(np.float64))
        if [e.shape for e in found] != [e.shape for e in self.errors]:
            raise ValueError(
                f"errors must have a number for each option of {len(self.errors)} layers, got "
                f"shapes {[e.shape for e in found]}"
            )
        return replace(self, errors=found)


def limits_of(budget: Any) -> dict[str, float]:
    """Return budgets by the name of the cost, of a number of bytes or a dict.

    Raises
    ------
    TypeError, ValueError
        If it is neither, empty, or a budget is no finite number of at least 0.
    """
    if isinstance(budget, Mapping):
        if not budget:
            raise ValueError("budget must be of at least one cost, such as 'bytes', got none")
        return {name: number(value, f"budget[{name!r}]", 0) for name, value in budget.items()}
    try:
        return {"bytes": number(budget, "budget", 0)}
    except TypeError:
        raise TypeError(
            "budget must be a number of bytes, such as 8000 for 8 kB, or a dict of budgets by "
            f"the name of the cost, got {budget!r}"
        ) from None

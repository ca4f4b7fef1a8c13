"""Units along an axis of a value, and the operators that keep them apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from compressrs.prune.dependencies import Space


class Member(NamedTuple):
    """An array that has one or more consecutive entries for each unit along an axis."""

    #: The name of the array in the model.
    array: str
    axis: int
    #: Entries of each unit: more than one where feature maps were flattened.
    each: int = 1


@dataclass(frozen=True)
class Value:
    """A value with an entry, or several consecutive ones, for each unit along an axis."""

    space: Space
    axis: int
    each: int = 1
    #: Whether a unit whose arrays are masked is exactly 0 here.
    zero: bool = True


@dataclass(frozen=True)
class Change:
    """A number of units that stands in a node, and follows their removal."""

    node: Any
    space: Space
    #: For ``Reshape`` the elements of each unit; None for the attribute ``group``.
    each: int | None = None


class Lost(Exception):
    """Raised by what cannot follow units through a node, with the reason."""


#: Operators that map each element by itself, and 0 to 0.
ELEMENTWISE_ZERO = frozenset(
    {
        "Abs",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "Cast",
        "Ceil",
        "Celu",
        "Dropout",
        "Elu",
        "Erf",
        "Floor",
        "Gelu",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Mish",
        "Neg",
        "Relu",
        "Round",
        "Selu",
        "Sign",
        "Sin",
        "Sinh",
        "Softsign",
        "Sqrt",
        "Swish",
        "Tan",
        "Tanh",
        "ThresholdedRelu",
    }
)
#: Others that map each element by itself.
ELEMENTWISE = frozenset(
    {"Cos", "Cosh", "Exp", "HardSigmoid", "Log", "Reciprocal", "Sigmoid", "Softplus"}
)
#: Operators of each channel by itself; a channel of zeros stays one.
CHANNELWISE = frozenset(
    {"AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool"}
)

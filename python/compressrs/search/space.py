"""Spaces of designs: what a model may be built from, and with which settings it may train."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from compressrs._checks import flag, generator, number, sequence, whole
from compressrs.nn.layer import RandomState

#: The values of a design by the names of their parameters.
Design: TypeAlias = dict[str, Any]

#: Standard deviation of a small mutation, as a share of the range.
STEP = 0.1


class _Parameter:
    """What parameters share: the condition under which they exist."""

    when: Mapping[str, Sequence[Any]] | None

    def _check_when(self) -> None:
        if self.when is None:
            return
        if not isinstance(self.when, Mapping):
            raise TypeError(
                "when must be a dict of the values of another parameter under which this one "
                f"exists, as {{'depth': (2, 3)}}, got {type(self.when).__name__}"
            )
        values = {
            name: (found,) if _is_value(found) else tuple(sequence(found, f"when[{name!r}]"))
            for name, found in self.when.items()
        }
        object.__setattr__(self, "when", values)

    def _sample(self, rng: np.random.Generator) -> Any:
        """Draw a value."""
        raise NotImplementedError

    def _mutate(self, value: Any, rng: np.random.Generator) -> Any:
        """Draw another value than the one given, where there is one."""
        raise NotImplementedError

    def _checked(self, value: Any, name: str) -> Any:
        """Return a value after checking that it is one of this parameter's."""
        raise NotImplementedError

    def _values(self) -> Sequence[Any] | None:
        """Return all values, or None if they are uncountable."""
        raise NotImplementedError


@dataclass(frozen=True)
class Choice(_Parameter):
    """One of several values without an order.

    Parameters
    ----------
    options : sequence of str, int, float, bool or None
        At least one, all different.
    when : dict of str to value or sequence, optional
        The parameter only exists in designs where each of these parameters has one of these
        values.

    Raises
    ------
    TypeError, ValueError
        If there are no options, two are equal, or one is of another type.

    Examples
    --------
    >>> import compressrs as cr
    >>> cr.search.Choice(["relu", "gelu"])
    Choice(options=('relu', 'gelu'), when=None)
    """

    options: Sequence[Any]
    when: Mapping[str, Sequence[Any]] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.options, (str, bytes, Mapping)):
            raise TypeError(f"options must be a sequence of values, got {self.options!r}")
        found = tuple(_plain(option) for option in sequence(self.options, "options"))
        for i, option in enumerate(found):
            if not _is_value(option) or (isinstance(option, float) and not math.isfinite(option)):
                raise TypeError(
                    f"options[{i}] must be a str, a bool, a finite number or None, which files "
                    f"can hold, got {option!r}"
                )
        if not found:
            raise ValueError("options must hold at least one value, got none")
        if len(set(found)) < len(found):
            raise ValueError(f"options must be different, got {found}")
        object.__setattr__(self, "options", found)
        self._check_when()

    def _sample(self, rng: np.random.Generator) -> Any:
        """Draw a value."""
        return self.options[int(rng.integers(len(self.options)))]

    def _mutate(self, value: Any, rng: np.random.Generator) -> Any:
        """Draw another value."""
        if len(self.options) == 1:
            return value
        place = self.options.index(value) + 1 + int(rng.integers(len(self.options) - 1))
        return self.options[place % len(self.options)]

    def _checked(self, value: Any, name: str) -> Any:
        """Return a value after checking that it is one of the options."""
        value = _plain(value)
        if not _is_value(value) or value not in self.options:
            raise ValueError(f"{name} must be one of {self.options}, got {value!r}")
        return self.options[self.options.index(value)]

    def _values(self) -> Sequence[Any]:
        """Return all values."""
        return self.options


@dataclass(frozen=True)
class Int(_Parameter):
    """A whole number from `low` to `high`, both included.

    Parameters
    ----------
    low, high : int
    step : int, default 1
        Values are `low`, `low + step` and so on.
    log : bool, default False
        Whether small values are drawn as often as large ones by ratio; `low` must be at least
        1, `step` 1.
    when : dict, optional
        As for `Choice`.

    Raises
    ------
    TypeError, ValueError
        If the range is empty, or an argument of another type.
    """

    low: int
    high: int
    step: int = 1
    log: bool = False
    when: Mapping[str, Sequence[Any]] | None = None

    def __post_init__(self) -> None:
        low = whole(self.low, "low", -(2**53), 2**53)
        high = whole(self.high, "high", -(2**53), 2**53)
        step = whole(self.step, "step", 1, 2**53)
        log = flag(self.log, "log")
        if high < low:
            raise ValueError(f"high must be at least low, {low}, got {high}")
        if log and low < 1:
            raise ValueError(f"low must be at least 1 with log, got {low}")
        if log and step != 1:
            raise ValueError(f"step must be 1 with log, got {step}")
        high -= (high - low) % step
        for name, value in (("low", low), ("high", high), ("step", step), ("log", log)):
            object.__setattr__(self, name, value)
        self._check_when()

    def _sample(self, rng: np.random.Generator) -> int:
        """Draw a value."""
        if self.log:
            # As if all numbers that round to a value were as likely as it.
            drawn = rng.uniform(math.log(self.low - 0.5), math.log(self.high + 0.5))
            return self._nearest(math.exp(drawn))
        return self.low + self.step * int(rng.integers(1 + (self.high - self.low) // self.step))

    def _mutate(self, value: Any, rng: np.random.Generator) -> int:
        """Draw another value, near the one given or anywhere."""
        if self.low == self.high:
            return self.low
        if rng.integers(2):
            if self.log:
                width = STEP * math.log(self.high / self.low)
                found = self._nearest(value * math.exp(rng.normal(0, width)))
            else:
                found = self._nearest(rng.normal(value, STEP * (self.high - self.low)))
            if found == value:
                found = value + self.step * (1 if rng.integers(2) else -1)
            if self.low <= found <= self.high:
                return found
        while (found := self._sample(rng)) == value:
            pass
        return found

    def _nearest(self, value: float) -> int:
        found = self.low + self.step * round((value - self.low) / self.step)
        return min(max(found, self.low), self.high)

    def _checked(self, value: Any, name: str) -> int:
        """Return a value after checking that it is in the range."""
        found = whole(value, name, self.low, self.high)
        if (found - self.low) % self.step:
            raise ValueError(f"{name} must be {self.low} plus a multiple of {self.step}")
        return found

    def _values(self) -> Sequence[int]:
        """Return all values."""
        return range(self.low, self.high + 1, self.step)


@dataclass(frozen=True)
class Float(_Parameter):
    """A number from `low` to `high`.

    Parameters
    ----------
    low, high : float
    log : bool, default False
        Whether small values are drawn as often as large ones by ratio; `low` must be above 0.
    when : dict, optional
        As for `Choice`.

    Raises
    ------
    TypeError, ValueError
        If the range is empty or not finite, or an argument of another type.
    """

    low: float
    high: float
    log: bool = False
    when: Mapping[str, Sequence[Any]] | None = None

    def __post_init__(self) -> None:
        low, high = number(self.low, "low"), number(self.high, "high")
        log = flag(self.log, "log")
        if high < low:
            raise ValueError(f"high must be at least low, {low:g}, got {high:g}")
        if log and low <= 0:
            raise ValueError(f"low must be above 0 with log, got {low:g}")
        if not math.isfinite(high - low):
            raise ValueError(f"high must be at most low + 1.8e308, got {low:g} and {high:g}")
        for name, value in (("low", low), ("high", high), ("log", log)):
            object.__setattr__(self, name, value)
        self._check_when()

    def _sample(self, rng: np.random.Generator) -> float:
        """Draw a value."""
        if self.log:
            return self._within(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return self._within(rng.uniform(self.low, self.high))

    def _mutate(self, value: Any, rng: np.random.Generator) -> float:
        """Draw another value, near the one given or anywhere."""
        if not rng.integers(2):
            return self._sample(rng)
        if self.log:
            width = STEP * (math.log(self.high) - math.log(self.low))
            return self._within(value * math.exp(rng.normal(0, width)))
        return self._within(rng.normal(value, STEP * (self.high - self.low)))

    def _within(self, value: float) -> float:
        return min(max(float(value), self.low), self.high)

    def _checked(self, value: Any, name: str) -> float:
        """Return a value after checking that it is in the range."""
        found = number(value, name, self.low)
        if found > self.high:
            raise ValueError(f"{name} must be at most {self.high:g}, got {found:g}")
        return found

    def _values(self) -> Sequence[float] | None:
        """Return the value, if there is one only."""
        return (self.low,) if self.low == self.high else None


class Space:
    """The designs that a search may choose from.

    Parameters
    ----------
    parameters : dict of str to Choice, Int or Float
        A parameter with a condition (``when=``) only exists in designs where it holds, and
        comes after those that its condition names.

    Raises
    ------
    TypeError, ValueError
        If a parameter is none of these, there are none, or a condition names a parameter that
        is not before it, or values that this one cannot have.

    Examples
    --------
    >>> import compressrs as cr
    >>> space = cr.search.Space({
    ...     "depth": cr.search.Int(1, 2),
    ...     "width": cr.search.Int(8, 64, step=8),
    ...     "second": cr.search.Int(8, 64, step=8, when={"depth": 2}),
    ...     "activation": cr.search.Choice(["relu", "gelu"]),
    ... })
    >>> space.size
    144
    >>> design = space.sample(rng=0)
    >>> design == space.check(design)
    True
    """

    def __init__(self, parameters: Mapping[str, Choice | Int | Float]) -> None:
        if not isinstance(parameters, Mapping):
            raise TypeError(
                "parameters must be a dict of Choice, Int and Float by name, "
                f"got {type(parameters).__name__}"
            )
        if not parameters:
            raise ValueError("parameters must hold at least one, got none")
        before: dict[str, _Parameter] = {}
        for name, parameter in parameters.items():
            if not isinstance(name, str):
                raise TypeError(f"names of parameters must be strings, got {name!r}")
            if not isinstance(parameter, _Parameter):
                raise TypeError(
                    f"parameters[{name!r}] must be a Choice, an Int or a Float, "
                    f"got {type(parameter).__name__}"
                )
            for other, values in (parameter.when or {}).items():
                if other not in before:
                    raise ValueError(
                        f"parameters[{name!r}] must come after {other!r}, which its condition names"
                    )
                for value in values:
                    before[other]._checked(value, f"a value of {other!r} in when of {name!r}")
            before[name] = parameter
        self.parameters: dict[str, Choice | Int | Float] = dict(parameters)

    def __repr__(self) -> str:
        return f"Space({self.parameters!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and list(self.parameters.items()) == list(
            other.parameters.items()
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def size(self) -> float:
        """The number of designs; infinite with a `Float`."""
        named: dict[str, list[Any]] = {}
        for parameter in self.parameters.values():
            for name, values in (parameter.when or {}).items():
                named.setdefault(name, []).extend(values)
        return self._count({}, list(self.parameters), named)

    def _count(self, begun: Design, names: list[str], named: Mapping[str, list[Any]]) -> float:
        """Return the number of designs that begin so."""
        if not names:
            return 1
        name, rest = names[0], names[1:]
        if not self._exists(name, begun):
            return self._count(begun, rest, named)
        values = self.parameters[name]._values()
        each: float = math.inf if values is None else len(values)
        total: float = 0
        # Values that no condition names are alike.
        for value in dict.fromkeys(named.get(name, ())):
            total += self._count({**begun, name: value}, rest, named)
            each -= 1
        return total + each * self._count(begun, rest, named) if each else total

    def _exists(self, name: str, design: Design) -> bool:
        """Whether a parameter exists in a design, of which those before it are known."""
        return all(
            other in design and design[other] in values
            for other, values in (self.parameters[name].when or {}).items()
        )

    def sample(self, rng: RandomState = None) -> Design:
        """Draw a design: each parameter by itself, in order.

        Parameters
        ----------
        rng : int, Generator or None, optional
        """
        return self._completed({}, generator(rng))

    def mutate(self, design: Mapping[str, Any], rng: RandomState = None) -> Design:
        """Return a design with another value of one parameter, drawn at random.

        Parameters that exist due to the new value are drawn too.

        Parameters
        ----------
        design : dict
        rng : int, Generator or None, optional

        Raises
        ------
        TypeError, ValueError
            If it is no design of this space.
        """
        found, draw = self.check(design), generator(rng)
        name = list(found)[int(draw.integers(len(found)))]
        found[name] = self.parameters[name]._mutate(found[name], draw)
        return self._completed(found, draw)

    def _completed(self, known: Mapping[str, Any], rng: np.random.Generator) -> Design:
        """Return a design with known values where they exist, others being drawn."""
        design: Design = {}
        for name, parameter in self.parameters.items():
            if self._exists(name, design):
                design[name] = known[name] if name in known else parameter._sample(rng)
        return design

    def check(self, design: Mapping[str, Any]) -> Design:
        """Return a design with its values in the order of the parameters.

        Parameters
        ----------
        design : dict

        Raises
        ------
        TypeError, ValueError
            If a value is missing, is none of its parameter's, or no parameter exists for it.
        """
        if not isinstance(design, Mapping):
            raise TypeError(f"design must be a dict, got {type(design).__name__}")
        found: Design = {}
        for name, parameter in self.parameters.items():
            if self._exists(name, found):
                if name not in design:
                    raise ValueError(f"design must have a value of {name!r}")
                found[name] = parameter._checked(design[name], f"design[{name!r}]")
        if extra := [name for name in design if name not in found]:
            raise ValueError(f"design must not have a value of {extra[0]!r}, which it is not for")
        return found

    def designs(self) -> Iterator[Design]:
        """Yield all designs of a space without `Float`.

        Raises
        ------
        ValueError
            If a parameter has no list of values.
        """
        for name, parameter in self.parameters.items():
            if parameter._values() is None:
                raise ValueError(f"the values of {name!r} cannot be listed")
        return self._designs({}, list(self.parameters))

    def _designs(self, begun: Design, names: list[str]) -> Iterator[Design]:
        if not names:
            yield begun
            return
        name, rest = names[0], names[1:]
        if not self._exists(name, begun):
            yield from self._designs(begun, rest)
            return
        for value in self.parameters[name]._values() or ():
            yield from self._designs({**begun, name: value}, rest)


def _is_value(value: Any) -> bool:
    return value is None or isinstance(value, (str, bool, int, float))


def _plain(value: Any) -> Any:
    """Return a NumPy number as Python's."""
    return value.item() if isinstance(value, np.generic) else value

"""Recipes: how tensors are compressed."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib import import_module
from types import ModuleType
from typing import Any

from compressrs._checks import choice, file_path, sequence, share, string, whole
from compressrs._paths import read_regular

INTEGERS = tuple(f"int{bits}" for bits in range(8, 1, -1))
QUANTIZE = (*INTEGERS, "nf4", "codebook")
DTYPES = ("float16", "bfloat16")
#: Those that need the statistics of a layer's inputs.
CALIBRATED = ("gptq", "awq")
METHODS = ("rtn", "nearest", "mse", "hqq", *CALIBRATED)
_PATTERN = re.compile(r"([1-9]\d*):([1-9]\d*)")


@dataclass(frozen=True)
class Rule:
    """How a tensor is compressed. Lossless by default.

    Parameters
    ----------
    quantize : {'int8', ..., 'int2', 'nf4', 'codebook'}, optional
        Store codes with this number of bits, or indices into a codebook of `entries` values.
        Codes are entropy-coded: they take fewer bits than these.
    group_size : int, optional
        Elements of a row that share a scale; by default all of a row.
    method : {'rtn', 'nearest', 'mse', 'hqq', 'gptq', 'awq'}, default 'rtn'
        Rounding to nearest (also called "nearest"), with scales from the largest magnitude or of
        the least squared error (`compressrs.quantize.mse_scale`); half-quadratic splitting, with
        zero points (`compressrs.quantize.hqq`, slow); with calibration, GPTQ in the order of
        activations with scales of the least squared error (`compressrs.quantize.gptq`), and
        scaled inputs (`compressrs.quantize.awq`).
    entries : int, default 32
        Size of the codebook, up to 256.
    prune : float, optional
        Fraction of the weights to set to 0, by magnitude, in [0, 1).
    pattern : str, optional
        Alternatively, a pattern: ``"2:4"`` prunes two of every four along a row.
    dtype : {'float16', 'bfloat16'}, optional
        Dtype to which floating-point tensors are rounded.
    """

    quantize: str | None = None
    group_size: int | None = None
    method: str = "rtn"
    entries: int = 32
    prune: float | None = None
    pattern: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.quantize is not None:
            choice(self.quantize, "quantize", QUANTIZE)
        if self.group_size is not None:
            whole(self.group_size, "group_size", 1, 2**31 - 1)
            if not self.has_scales:
                raise ValueError(
                    f"group_size needs quantize to be int2 to int8 or nf4, got {self.quantize!r}"
                )
        choice(self.method, "method", METHODS)
        if self.method == "nearest":
            object.__setattr__(self, "method", "rtn")
        if self.method == "hqq" and (self.quantize not in INTEGERS or self.prunes):
            raise ValueError("method 'hqq' needs quantize to be int2 to int8, without pruning")
        if self.method == "mse" and not self.has_scales:
            raise ValueError("method 'mse' needs quantize to be int2 to int8 or nf4")
        if self.calibrated and (not self.has_scales or self.prunes):
            raise ValueError(
                f"method {self.method!r} needs quantize to be int2 to int8 or nf4, without pruning"
            )
        if whole(self.entries, "entries", 2) > 256:
            raise ValueError(f"entries must be at most 256, got {self.entries}")
        if self.prune is not None and share(self.prune, "prune") == 1:
            raise ValueError("prune must be less than 1, which would leave nothing")
        if self.pattern is not None:
            self.kept_of()
            if self.prune is not None:
                raise ValueError("give either prune or pattern, not both")
        if self.dtype is not None:
            choice(self.dtype, "dtype", DTYPES)

    def kept_of(self) -> tuple[int, int]:
        """Return n and m of the pattern ``n:m``.

        Raises
        ------
        ValueError
            If it is not one.
        """
        match = _PATTERN.fullmatch(string(self.pattern, "pattern"))
        if match is None or int(match[1]) > int(match[2]):
            raise ValueError(f"pattern must be n:m with n <= m, as in 2:4, got {self.pattern!r}")
        return int(match[1]), int(match[2])

    @property
    def lossless(self) -> bool:
        """Whether compression is lossless."""
        return self.quantize is None and not self.prunes and self.dtype is None

    @property
    def prunes(self) -> bool:
        """Whether weights are set to 0."""
        return bool(self.prune) or self.pattern is not None

    @property
    def has_scales(self) -> bool:
        """Whether codes are stored with scales of rows or groups."""
        return self.quantize in (*INTEGERS, "nf4")

    @property
    def calibrated(self) -> bool:
        """Whether the method needs the statistics of inputs."""
        return self.method in CALIBRATED

    @staticmethod
    def from_text(text: str) -> Rule:
        """Parse a rule from a string.

        ``int8``, ``codebook``, ``float16``, ``lossless`` and assignments to parameters, separated
        by commas: ``int4,group_size=32,prune=0.5``.

        Raises
        ------
        ValueError
            If the string is not a valid rule.
        """
        given: dict[str, Any] = {}
        for part in string(text, "text").split(","):
            name, found, value = part.strip().partition("=")
            if found:
                given[name.strip()] = _value(value.strip())
            elif name in QUANTIZE:
                given["quantize"] = name
            elif name in DTYPES:
                given["dtype"] = name
            elif name != "lossless":
                choices = ("lossless", *QUANTIZE, *DTYPES)
                raise ValueError(
                    f"the text of a rule must be one of {', '.join(choices)}, got {name!r}"
                )
        return _rule(given, "a rule")


@dataclass(frozen=True)
class Recipe:
    """How the tensors of a checkpoint are compressed.

    Parameters
    ----------
    default : Rule, optional
        For weights, that is, floating-point tensors with two or more axes. For other tensors
        only its `dtype` applies.
    rules : sequence of (str, Rule) or dict of str to Rule, optional
        For tensors whose name matches a pattern; the last match applies. A pattern is a name,
        or ``re:`` and a regular expression that must match the whole name. To
        what an expression matches, as to the default, only `dtype` applies if it has fewer than two
        axes.
    ignore : sequence of str, optional
        Patterns of tensors that are always stored losslessly.
    calibration : path, optional
        A file of `compressrs.prune.save_statistics`, which the methods "gptq" and "awq" need.

    Raises
    ------
    TypeError, ValueError
        If a part of the recipe is invalid.

    Examples
    --------
    >>> from compressrs.checkpoint import Recipe, Rule
    >>> recipe = Recipe(Rule(quantize="int4", group_size=32), ignore=["re:.*embed.*"])
    >>> recipe.rule("model.embed.weight", 2).lossless
    True
    >>> Recipe.from_toml(recipe.to_toml()) == recipe
    True
    """

    default: Rule = Rule()
    rules: tuple[tuple[str, Rule], ...] = ()
    ignore: tuple[str, ...] = ()
    calibration: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        _require_rule(self.default, "default")
        object.__setattr__(self, "rules", tuple(_pair(pair) for pair in _pairs(self.rules)))
        ignore = self.ignore
        if isinstance(ignore, (str, bytes)):
            raise TypeError(f"ignore must be a list of patterns, got {ignore!r}")
        patterns = tuple(string(p, "ignore[...]") for p in sequence(ignore, "ignore"))
        object.__setattr__(self, "ignore", patterns)
        if self.calibration is not None:
            path = file_path(self.calibration, "calibration")
            object.__setattr__(self, "calibration", os.fspath(path))
        for pattern in (*self.ignore, *(pattern for pattern, _ in self.rules)):
            matches(pattern, "")

    def rule(self, name: str, ndim: int) -> Rule:
        """Return the rule for a floating-point tensor with this name and number of axes."""
        name, ndim = string(name, "name"), whole(ndim, "ndim", 0)
        if any(matches(pattern, name) for pattern in self.ignore):
            return Rule()
        for pattern, rule in reversed(self.rules):
            if matches(pattern, name):
                # An expression may match biases besides: those are named where they are meant.
                if ndim < 2 and pattern.startswith("re:"):
                    return Rule(dtype=rule.dtype)
                return rule
        return self.default if ndim >= 2 else Rule(dtype=self.default.dtype)

    def unused(self, names: Iterable[str]) -> list[str]:
        """Return the patterns that match none of the names."""
        known = sequence(names, "names")
        patterns = (*self.ignore, *(pattern for pattern, _ in self.rules))
        return [p for p in patterns if not any(matches(p, name) for name in known)]

    def to_toml(self) -> str:
        """Return the recipe as TOML, which `from_toml` parses."""
        lines = []
        if self.ignore:
            lines += [f"ignore = {json.dumps(list(self.ignore))}", ""]
        if self.calibration is not None:
            lines += [f"calibration = {json.dumps(os.fspath(self.calibration))}", ""]
        lines += ["[default]", *_assignments(self.default), ""]
        for pattern, rule in self.rules:
            lines += ["[[set]]", f"names = {json.dumps(pattern)}"]
            lines += [*_assignments(rule), ""]
        return "\n".join(lines)

    @staticmethod
    def from_toml(text: str) -> Recipe:
        """Parse a recipe from TOML.

        Raises
        ------
        ValueError
            If it is not valid TOML, or contains unknown keys.
        ModuleNotFoundError
            If Python is older than 3.11 and tomli is not installed.
        """
        try:
            content: dict[str, Any] = _toml().loads(string(text, "text"))
        except RecursionError:
            raise ValueError("the text of the recipe is nested too deep") from None
        except ValueError as error:
            raise ValueError(f"the text of the recipe is not TOML: {error}") from None
        unknown = set(content) - {"default", "set", "ignore", "calibration"}
        if unknown:
            raise ValueError(
                f"a recipe has default, set, ignore and calibration, got {sorted(unknown)}"
            )
        calibration = content.get("calibration")
        if calibration is not None and not isinstance(calibration, str):
            raise ValueError(f"calibration must be a path, got {calibration!r}")
        default, rules = content.get("default", {}), content.get("set", [])
        ignore = content.get("ignore", [])
        if not isinstance(ignore, list) or not all(isinstance(p, str) for p in ignore):
            raise ValueError(f"ignore must be a list of patterns, got {ignore!r}")
        if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
            raise ValueError("set must be a list of tables: write [[set]]")
        pairs = []
        for given in rules:
            names = given.pop("names", None)
            patterns = [names] if isinstance(names, str) else names
            if not isinstance(patterns, list) or not all(isinstance(p, str) for p in patterns):
                raise ValueError(f"[[set]] must have names, a pattern or a list, got {names!r}")
            rule = _rule(given, f"[[set]] of {names!r}")
            pairs += [(pattern, rule) for pattern in patterns]
        return Recipe(_rule(default, "[default]"), tuple(pairs), tuple(ignore), calibration)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Recipe:
        """Load a recipe from a TOML file; see `from_toml`.

        A relative path of the calibration is relative to the file's folder.
        """
        file = file_path(path)
        try:
            recipe = Recipe.from_toml(read_regular(file).decode("utf-8"))
            if recipe.calibration is None:
                return recipe
            return replace(recipe, calibration=os.path.join(file.parent, recipe.calibration))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    def with_rule(self, assignment: str) -> Recipe:
        """Return the recipe with ``PATTERN=RULE`` added, such as ``re:.*attention.*=int8``.

        Raises
        ------
        ValueError
            If it is not a valid pattern and rule.
        """
        at, reason = string(assignment, "assignment").find("="), ValueError("it has no =")
        # Whether an error is of what begins as a rule does.
        known = False
        # A regular expression may contain = as well: use the first = followed by a valid rule.
        while at >= 0:
            try:
                rule = Rule.from_text(assignment[at + 1 :])
                return replace(self, rules=(*self.rules, (assignment[:at], rule)))
            except (TypeError, ValueError) as error:
                first = assignment[at + 1 :].partition(",")[0].partition("=")[0].strip()
                if first in (*QUANTIZE, *DTYPES, *(f.name for f in fields(Rule))) or not known:
                    reason, known = ValueError(str(error)), first in QUANTIZE or known
            at = assignment.find("=", at + 1)
        raise ValueError(
            f"the assignment of set must be PATTERN=RULE, got {assignment!r}: {reason}"
        )


def _require_rule(rule: Any, name: str) -> None:
    if not isinstance(rule, Rule):
        raise TypeError(f"{name} must be a Rule, got {type(rule).__name__}")


def _pairs(rules: Any) -> list[Any]:
    return list(rules.items()) if isinstance(rules, Mapping) else sequence(rules, "rules")


def _pair(pair: Any) -> tuple[str, Rule]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"rules must be pairs of a pattern and a Rule, got {pair!r}")
    pattern = string(pair[0], "the pattern in rules")
    _require_rule(pair[1], f"rules of {pattern!r}")
    return pattern, pair[1]


class RecipeError(ValueError):
    """A recipe that cannot be applied to a checkpoint."""


def matches(pattern: str, name: str) -> bool:
    """Whether a name matches a pattern, which is a name or ``re:`` and an expression.

    Raises
    ------
    ValueError
        If the regular expression is invalid.
    """
    if not pattern.startswith("re:"):
        return pattern == name
    try:
        return re.fullmatch(pattern[3:], name) is not None
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _rule(given: Mapping[str, Any], what: str) -> Rule:
    if not isinstance(given, Mapping):
        raise ValueError(f"{what} must be a table, got {given!r}")
    known = [field.name for field in fields(Rule)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"{what} has {', '.join(known)}, got {', '.join(unknown)}")
    try:
        return Rule(**given)
    except TypeError as error:
        raise ValueError(f"{what}: {error}") from None


def _assignments(rule: Rule) -> list[str]:
    plain = asdict(Rule())
    given = {name: value for name, value in asdict(rule).items() if value != plain[name]}
    return [f"{name} = {json.dumps(value)}" for name, value in given.items()]


def _toml() -> ModuleType:
    try:
        return import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "recipes need tomli on Python 3.10: pip install 'compressrs[cli]'"
        ) from None

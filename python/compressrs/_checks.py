"""Validation of numbers and choices, with error messages that name the argument."""

from __future__ import annotations

import math
import operator
import os
import reprlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def is_bool(value: Any) -> bool:
    """Whether a value is a bool of Python, NumPy or another framework, which is no number."""
    if isinstance(value, bool):
        return True
    dtype = getattr(value, "dtype", None)
    return dtype is not None and str(dtype).rpartition(".")[2] == "bool"


class _Short(reprlib.Repr):
    """Arguments for messages: long ones are shortened."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 100

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to print huge integers."""
        bits = x.bit_length()
        return repr(x) if bits <= 128 else f"an integer of {bits} bits"


#: What a message shows of an argument.
shown = _Short().repr


def number(
    value: Any,
    name: str,
    low: float = -math.inf,
    *,
    below: float | None = None,
    finite: bool = True,
) -> float:
    """Return `value` as a float after checking that it is finite, >= `low` and < `below`.

    If not `finite`, any number is accepted, including NaN.

    Raises
    ------
    TypeError
        If it is not a number; a bool is none.
    ValueError
        If it is out of range; the message gives the range.
    """
    try:
        dtype = getattr(value, "dtype", None)
        if isinstance(value, (str, bytes)) or getattr(dtype, "kind", "f") in "cSUO":
            raise TypeError
        if is_bool(value):
            raise TypeError
        x = float(value)
    except OverflowError:
        raise ValueError(
            f"{name} must be a finite number, got one beyond the range of float64"
        ) from None
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {shown(value)}") from None
    if finite and not (math.isfinite(x) and x >= low and (below is None or x < below)):
        bounds = "" if low == -math.inf else f" >= {low:g}"
        need = f"a finite number{bounds}" if below is None else f"in [{low:g}, {below:g})"
        raise ValueError(f"{name} must be {need}, got {shown(value)}")
    return x


def returned_number(value: Any, name: str, need: str = "a number") -> float:
    """Return what the function `name` of the user's returned as a float, which may be NaN.

    Raises
    ------
    TypeError
        If it is not a number.
    """
    try:
        return number(value, name, finite=False)
    except TypeError:
        raise TypeError(f"{name} must return {need}, got {shown(value)}") from None


def numbers(value: Any, name: str, length: int, low: float = -math.inf) -> list[float]:
    """Return a list of finite numbers of at least `low` as floats.

    Raises
    ------
    TypeError
        If it is not a list or tuple of numbers.
    ValueError
        If it is of another length, or a number is out of range.
    """
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name} must be a list of {length} numbers, got {type(value).__name__}")
    if len(value) != length:
        raise ValueError(f"{name} must be a list of {length} numbers, got {len(value)}")
    return [number(x, f"{name}[{i}]", low) for i, x in enumerate(value)]


def threshold_of(dtype: np.dtype[Any], value: Any, name: str = "threshold") -> float:
    """Return `value`, finite and not negative, rounded to the dtype of what is compared with it.

    As in NumPy, where ``np.abs(w) >= 0.1`` holds for the number that 0.1 becomes in `w`.
    """
    x = number(value, name, 0)
    if dtype.itemsize >= 8 or dtype.kind in "biu":
        return x
    with np.errstate(over="ignore"):
        return float(dtype.type(x))


def positive(value: Any, name: str) -> float:
    """Return `value` as a float after checking that it is finite and greater than 0."""
    x = number(value, name)
    if x <= 0:
        raise ValueError(f"{name} must be a finite number > 0, got {shown(value)}")
    return x


def share(value: Any, name: str) -> float:
    """Return `value` as a float after checking that it is in [0, 1]."""
    x = number(value, name, 0)
    if x > 1:
        raise ValueError(f"{name} must be in [0, 1], got {shown(value)}")
    return x


def whole(value: Any, name: str, low: int, high: int = 2**63 - 1) -> int:
    """Return `value` as an int after checking its type and that it is in [`low`, `high`]."""
    found = integer(value, name)
    if found < low:
        raise ValueError(f"{name} must be at least {low}, got {shown(found)}")
    if found > high:
        raise ValueError(f"{name} must be at most {high}, got {shown(found)}")
    return found


def integer(value: Any, name: str, need: str = "an integer") -> int:
    """Return `value` as an int.

    Raises
    ------
    TypeError
        If it is not an integer; a bool is none.
    """
    try:
        if is_bool(value):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be {need}, got {type(value).__name__}") from None


def count(value: Any, name: str) -> int:
    """Return `value` as an int, if it is a possible number of steps.

    Raises
    ------
    TypeError
        If it is not an integer.
    ValueError
        If it is negative, or at least 2**53.
    """
    found = whole(value, name, 0)
    if found >= 2**53:
        raise ValueError(f"{name} must be below 2**53, got one of {found.bit_length()} bits")
    return found


def flag(value: Any, name: str) -> bool:
    """Return `value`, if it is True or False."""
    if value is True or value is False:
        return value
    if not isinstance(value, np.bool_):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__}")
    return bool(value)


def floating(value: Any, name: str) -> np.dtype[Any]:
    """Return `value` as a dtype after checking that it is float32 or float64."""
    try:
        dtype: np.dtype[Any] | None = np.dtype(value)
    except (TypeError, ValueError):
        dtype = None
    if value is None or dtype is None or dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} must be float32 or float64, got {shown(value)}")
    return dtype


def generator(rng: Any, name: str = "rng") -> np.random.Generator:
    """Return a generator for a seed, a generator or None (seeded by the system)."""
    if rng is None or isinstance(rng, np.random.Generator):
        return np.random.default_rng(rng)
    seed = integer(rng, name, "an integer, a numpy.random.Generator or None")
    if seed < 0:
        raise ValueError(f"{name} must be at least 0, got {seed}")
    return np.random.default_rng(seed)


def sequence(value: Any, name: str) -> list[Any]:
    """Return an iterable as a list.

    Raises
    ------
    TypeError
        If it is not iterable, for example a number or a 0-d array.
    """
    try:
        return list(value)
    except TypeError:
        raise TypeError(f"{name} must be a sequence, got {type(value).__name__}") from None


def strings(value: Any, name: str) -> list[str]:
    """Return a sequence of strings as a list after checking it.

    Raises
    ------
    TypeError
        If it is none, or a single string.
    """
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be a sequence of strings, got {type(value).__name__}")
    for one in value:
        if not isinstance(one, str):
            raise TypeError(f"{name} must hold strings, got {type(one).__name__}")
    return list(value)


def dimensions(value: Any, name: str) -> tuple[int, ...]:
    """Return a shape as a tuple of ints after checking that they are at least 0.

    Raises
    ------
    TypeError
        If it is not a sequence of integers.
    ValueError
        If one is negative.
    """
    return tuple(whole(n, f"{name}[{i}]", 0) for i, n in enumerate(sequence(value, name)))


def choice(value: Any, name: str, choices: tuple[str, ...]) -> str:
    """Return `value` after checking that it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, choices))}, got {shown(value)}"
        )
    return value


def string(value: Any, name: str) -> str:
    """Return `value` after checking that it is a string."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {type(value).__name__}")
    return value


def function(value: Any, name: str) -> Callable[..., Any]:
    """Return `value` after checking that it can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {type(value).__name__}")
    checked: Callable[..., Any] = value
    return checked


def require_unmasked(value: Any, name: str) -> None:
    """Raise a TypeError for a masked array, whose mask would be ignored."""
    # Whoever has made one has imported its module, which takes milliseconds.
    module = None if type(value) is np.ndarray else sys.modules.get("numpy.ma")
    if module is not None and isinstance(value, module.MaskedArray):
        raise TypeError(
            f"{name} must be an array without a mask (fill masked elements with "
            "a.filled(value)), got a masked array"
        )


def converted(value: Any, name: str, dtype: Any = None) -> np.ndarray[Any, Any]:
    """Return `value`, such as a list of numbers, as an array.

    Raises
    ------
    TypeError
        If it is not rectangular, or cannot be converted to `dtype`.
    """
    require_unmasked(value, name)
    try:
        return np.asarray(value, dtype)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name} must be an array, got {type(value).__name__}") from None


def with_length(value: Any, name: str) -> tuple[Any, int]:
    """Return an array or a sequence, and its number of rows.

    An array of a subclass of `ndarray` is returned as a plain one.

    Raises
    ------
    TypeError
        If it is neither, or a masked array.
    """
    require_unmasked(value, name)
    try:
        if not hasattr(value, "__getitem__") or isinstance(value, dict):
            raise TypeError
        return (np.asarray(value) if isinstance(value, np.ndarray) else value), len(value)
    except TypeError:
        raise TypeError(f"{name} must be an array or a sequence, got {shown(value)}") from None


def file_path(value: Any, name: str = "path") -> Path:
    """Return `value` as a path after checking its type."""
    try:
        path = Path(value)
        encoded = os.fsencode(path)
    except TypeError:
        raise TypeError(f"{name} must be a string or a path, got {type(value).__name__}") from None
    except UnicodeEncodeError:
        raise ValueError(
            f"{name} must not contain characters without an encoding, got {shown(value)}"
        ) from None
    if b"\0" in encoded:
        raise ValueError(f"{name} must not contain a null character, got {str(path)!r}")
    return path

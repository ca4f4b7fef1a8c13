"""Subclasses of `ndarray` are plain arrays to every function, whatever their operators do."""

import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.faults.test_raw_errors import ATTEMPTS


class Own(np.ndarray):
    """An array whose methods and operators give something else than those of `ndarray`."""


def _foreign(name: str) -> Any:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"a method of a subclass is called: {name}")

    return method


#: What NumPy itself needs to take them as plain arrays.
NEEDED = {"__array_finalize__", "__setitem__", "__buffer__", "__len__", "__class_getitem__"}
NEEDED |= {
    "__dlpack__",
    "__dlpack_device__",
    "__array_interface__",
    "__array_struct__",
    "__sizeof__",
}
for _name in set(dir(np.ndarray)) - set(dir(object)) - NEEDED:
    if callable(getattr(np.ndarray, _name)):
        setattr(Own, _name, _foreign(_name))


def twins(value: Any) -> Iterator[Any]:
    """Yield arguments in which one array is of a subclass."""
    if type(value) is np.ndarray:
        if value.ndim == 2:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PendingDeprecationWarning)
                yield np.asmatrix(value.copy())
        yield value.copy().view(Own)
    elif isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        for i, entry in enumerate(value):
            for twin in twins(entry):
                yield type(value)([*value[:i], twin, *value[i + 1 :]])
    elif type(value) is dict:
        for key, entry in value.items():
            for twin in twins(entry):
                yield {**value, key: twin}


def plain(value: Any) -> Any:
    """Return a result, and what an object holds, as something that can be compared."""
    if isinstance(value, np.ndarray):
        value = np.asarray(value)
        return value.shape, value.dtype.str, value.tobytes() if value.dtype != object else None
    if isinstance(value, np.generic):
        return plain(np.asarray(value))
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if hasattr(value, "state_dict"):
        return plain(value.state_dict())
    if hasattr(value, "to_dense"):
        return plain(value.to_dense())
    if hasattr(value, "dequantize"):
        return plain(value.dequantize())
    return value if isinstance(value, (bool, int, float, str, type(None))) else type(value).__name__


def called(attempt: Any, given: dict[str, Any]) -> Any:
    """Return the result of a call, and the state of the object whose method it is."""
    function = attempt[1]()
    result = function(**given)
    owner = getattr(function, "__self__", None)
    state = None if owner is None or inspect.isclass(owner) else plain(owner)
    arrays = {key: value for key, value in given.items() if not hasattr(value, "state_dict")}
    return plain(result), state, plain(arrays)


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=[name for name, *_ in ATTEMPTS])
def test_arrays_of_subclasses_are_taken_as_plain_ones(
    attempt: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, _, arguments = attempt
    for argument, value in arguments().items():
        for i, twin in enumerate(twins(value)):
            expected = called(attempt, arguments())
            is_random = called(attempt, arguments()) != expected
            where = f"{argument}, {i}: {type(twin).__name__}"
            try:
                found = called(attempt, {**arguments(), argument: twin})
            except (TypeError, ValueError) as error:
                raise AssertionError(where) from error
            assert is_random or found == expected, where

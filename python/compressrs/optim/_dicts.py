"""Dicts for groups and state in which every assignment takes effect or raises."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from compressrs import _core
from compressrs._arrays import Array, FixedList, Views, is_number
from compressrs._assignment import CheckedDict
from compressrs._checks import flag, require_unmasked

#: Keys of a group that are not hyperparameters of the rule.
OF_GROUPS = frozenset(("params", "frozen", "initial_lr"))


def frozen_parameters(groups: Iterable[Mapping[str, Any]]) -> list[bool]:
    """Return for each parameter whether its group is frozen.

    Raises
    ------
    TypeError
        If the ``"frozen"`` of a group is neither True nor False.
    """
    frozen: list[bool] = []
    for group in groups:
        frozen += [flag(group.get("frozen", False), "frozen")] * len(group["params"])
    return frozen


def require_known(keys: Iterable[str], known: frozenset[str], name: str) -> None:
    """Raise a ValueError if a group has an unknown key."""
    if unknown := sorted(map(str, set(keys) - known)):
        raise ValueError(f"{name} must have keys among {sorted(known)}, got {unknown[0]!r}")


class ParamGroup(CheckedDict):
    """Parameters with their hyperparameters, all of those that the core's rule `rule` has."""

    def __init__(self, values: Mapping[str, Any], known: frozenset[str], rule: str) -> None:
        require_known(values, known, "a group")
        super().__init__(values)
        self._known = known
        self._rule = rule

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "params":
            raise ValueError(
                "params of a group cannot be replaced; write into its arrays, or use "
                "add_param_group, prune.neurons or prune.shrink"
            )
        require_known((key,), self._known, "a group")
        # Their ranges are checked at the step, since one may depend on another that is assigned
        # after it.
        _core.rule_types(self._rule, {**self, key: value})
        super().__setitem__(key, value)

    def replace(self, values: Mapping[str, Any]) -> None:
        """Replace all items of the group, including its parameters."""
        dict.clear(self)
        dict.update(self, values)

    def replace_params(self, params: Views) -> None:
        """Replace the parameters; the optimizer must be notified separately."""
        super().__setitem__("params", params)


class ParamGroups(FixedList):
    """The groups of an optimizer."""

    _instead = "use add_param_group, or change values, as in param_groups[0]['lr'] = 0.1"

    def __setitem__(self, index: Any, value: Any) -> None:
        # Augmented assignment, as in ``param_groups[0] |= {"lr": 0.1}``, has written already.
        if value is not self[index]:
            self._refuse()


class ParameterState(CheckedDict):
    """The state of a parameter; assignments copy into its arrays."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        super().__init__(arrays)

    def __setitem__(self, name: str, value: Any) -> None:
        target = self._target(name)
        target[...] = checked(target, value, name)

    def _target(self, name: str) -> Array:
        if name not in self:
            raise ValueError(f"the state must be one of {list(self)}, got {name!r}")
        array: Array = self[name]
        return array


class State(CheckedDict):
    """The states of all parameters."""

    def __init__(self, states: Mapping[int, ParameterState]) -> None:
        super().__init__(states)

    def __setitem__(self, index: int, value: Any) -> None:
        if index not in self:
            raise ValueError(f"the parameter must be one of {list(self)}, got {index!r}")
        own = self[index]
        if not isinstance(value, Mapping) or set(value) != set(own):
            raise ValueError(f"state[{index}] must be a dict with the keys {list(own)}")
        new = {name: checked(own[name], x, name) for name, x in value.items()}
        for name, array in new.items():
            own[name][...] = array


def checked(target: Array, value: Any, name: str) -> Array:
    """Return a copy of `value` after checking that it can be written to `target`."""
    require_unmasked(value, name)
    array = np.array(value)
    if array.shape != target.shape or not is_number(array.dtype):
        raise ValueError(
            f"{name!r} must be numbers of shape {target.shape}, got {array.dtype} of shape "
            f"{array.shape}"
        )
    if name != "step" and target.dtype.kind in "iu" and array.dtype != target.dtype:
        raise ValueError(f"{name!r} must be codes of {target.dtype}, got {array.dtype}")
    if name == "step" and not (0 <= array < 2**53 and array == int(array)):
        raise ValueError(f"'step' must be a whole number >= 0, got {value}")
    return array

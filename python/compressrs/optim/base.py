"""What all optimizers share: parameters, groups, state, and the step."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from operator import itemgetter
from typing import Any, ClassVar

import numpy as np

from compressrs import _core
from compressrs._arrays import Array, ArrayTree, as_array, flatten, flatten_like, same_memory


class Optimizer:
    """Base class of the optimizers; use one of its subclasses.

    Parameters
    ----------
    params : array, list, nested dict of arrays, or list of group dicts
        float32 or float64, C-contiguous and writable. They are updated in place,
        so they must not share memory. NumPy arrays, memory maps, and what gives a
        view of its memory through DLPack or the buffer protocol (a CPU tensor of
        PyTorch). A group dict has a key ``"params"`` and hyperparameters of its own.
    defaults : dict
        Hyperparameters of groups that do not give them.

    Attributes
    ----------
    param_groups : list of dict
        Each with ``"params"``, a list of arrays, and the hyperparameters, which
        may be changed between steps: ``opt.param_groups[0]["lr"] = 1e-4``.
    state : dict of dict of array
        By index of the parameter: ``"step"``, the number of steps taken, and the
        buffers of the rule. They may be written to.

    Raises
    ------
    TypeError
        If a parameter is not such an array or a hyperparameter not a number.
    ValueError
        If a parameter is read-only, not contiguous, or shares memory with another,
        or a hyperparameter is out of range.
    """

    #: Name of the rule in the core.
    _rule: ClassVar[str]
    #: Hyperparameters in the order in which the core takes them.
    _hyperparameters: ClassVar[tuple[str, ...]]

    def __init__(self, params: ArrayTree, defaults: dict[str, Any]) -> None:
        self._lock = threading.Lock()
        self._select = itemgetter(*self._hyperparameters)
        self.defaults = defaults
        _core.rule_states(self._rule, self._select(defaults))
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[int, dict[str, Array]] = {}
        self._paths: list[str] = []
        self._masks: list[Array | None] = []
        self._steps = np.zeros(0, np.int64)
        self._grouped = _is_groups(params)
        self._structure: ArrayTree
        if self._grouped:
            self._structure = [_skeleton(group["params"]) for group in params]
            for i, group in enumerate(params):
                self._append_group(f"[{i}]", group)
        else:
            self._structure = _skeleton(params)
            self._append_group("", {"params": params})
        if not self._paths:
            raise ValueError("params must hold at least one array, got none")
        self._prepare()
        _optimizers.add(self)

    def step(self, grads: ArrayTree) -> None:
        """Update every parameter in place.

        Parameters
        ----------
        grads : array, or list or nested dict of arrays
            Gradients in the structure in which the parameters were given (for
            groups: a list with one entry a group), of their parameters' dtypes and
            shapes. None leaves a parameter and its state as they are. Gradients
            that are not C-contiguous are copied. NaN and infinities reach the
            parameters.

        Raises
        ------
        TypeError
            If a gradient is not an array or of another dtype than its parameter.
        ValueError
            If a gradient is of another shape than its parameter or shares memory
            with a parameter or its state, or a hyperparameter is out of range.
            After any exception all parameters and states are what they were.
        """
        with self._lock:
            self._stepper.step(
                flatten_like(self._structure, grads, "grads"),
                [self._select(group) for group in self.param_groups],
            )

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add a group of parameters; `step` then takes one entry more.

        Parameters
        ----------
        group : dict
            ``"params"`` and, if they differ from the defaults, hyperparameters.

        Raises
        ------
        TypeError, ValueError
            As when an optimizer is made; nothing is added then.
        """
        with self._lock:
            before = self.__getstate__()
            self.param_groups = list(self.param_groups)
            self.state = dict(self.state)
            self._masks = list(self._masks)
            self._paths = [p if self._grouped else f"[0]{p}" for p in self._paths]
            try:
                self._append_group(f"[{len(self.param_groups)}]", group)
                own = self._structure if self._grouped else [self._structure]
                self._structure = [*own, _skeleton(group["params"])]
                self._grouped = True
                self._prepare()
            except BaseException:
                self.__dict__.update(before)
                self._prepare()
                raise

    def set_masks(self, masks: ArrayTree | None) -> None:
        """Keep masked weights and their state exactly 0, from now on.

        Parameters
        ----------
        masks : array, or list or nested dict of arrays, or None
            Boolean arrays in the structure of the parameters, True where a weight
            is kept; None for a parameter without a mask, or for all. They are
            copied. What they mask is set to 0 at once.

        Raises
        ------
        TypeError
            If a mask is not boolean.
        ValueError
            If a mask is not of its parameter's shape.
        """
        flat = [None] * len(self._paths)
        if masks is not None:
            flat = flatten_like(self._structure, masks, "masks")
        self._set_masks(flat)

    def _set_masks(self, masks: list[Any]) -> None:
        with self._lock:
            before = self._masks
            self._masks = [
                None if mask is None else _as_mask(mask, f"masks{path}")
                for mask, path in zip(masks, self._paths, strict=True)
            ]
            try:
                self._prepare()
            except BaseException:
                self._masks = before
                self._prepare()
                raise
            for i, (mask, array) in enumerate(zip(self._masks, self._arrays(), strict=True)):
                if mask is None:
                    continue
                for buffer in (array, *self._buffers(i).values()):
                    _core.apply_mask(buffer, mask, f"params{self._paths[i]}")

    def state_dict(self) -> dict[str, Any]:
        """Return state and hyperparameters in the form of PyTorch.

        The arrays are the optimizer's own, not copies: copy them if the optimizer
        goes on while they are kept (``copy.deepcopy``).

        Returns
        -------
        dict
            ``"state"``: by index of the parameter, and ``"param_groups"``: with
            these indices in place of the parameters.
        """
        groups, first = [], 0
        for group in self.param_groups:
            last = first + len(group["params"])
            groups.append({**group, "params": list(range(first, last))})
            first = last
        return {"state": {i: dict(s) for i, s in self.state.items()}, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over state and hyperparameters that `state_dict` returned.

        The values are copied into the optimizer's own arrays.

        Raises
        ------
        ValueError
            If it is not the state of such an optimizer over such parameters;
            nothing is changed then.
        """
        try:
            groups, state = list(state_dict["param_groups"]), dict(state_dict["state"])
        except (TypeError, KeyError, ValueError):
            raise ValueError(
                "state_dict must be a dict with 'param_groups' and 'state', as state_dict() returns"
            ) from None
        with self._lock:
            own = self.state_dict()
            lengths = [len(group["params"]) for group in own["param_groups"]]
            given = [len(group.get("params", ())) for group in groups]
            if given != lengths:
                raise ValueError(
                    f"state_dict must have groups of {lengths} parameters, got {given}"
                )
            for group in groups:
                if missing := set(self._hyperparameters) - set(group):
                    raise ValueError(
                        f"state_dict must give {sorted(missing)} for a {type(self).__name__}; "
                        "is it that of another optimizer?"
                    )
                _core.rule_states(self._rule, self._select(group))
            copies = []
            for i, buffers in self.state.items():
                source = state.get(i, {})
                if source.keys() != buffers.keys():
                    raise ValueError(
                        f"state_dict['state'][{i}] must hold {sorted(buffers)}, "
                        f"got {sorted(source)}"
                    )
                for name, target in buffers.items():
                    value = np.asarray(source[name])
                    path = f"state_dict['state'][{i}][{name!r}]"
                    if value.shape != target.shape or value.dtype.kind not in "iuf":
                        raise ValueError(
                            f"{path} must be numbers of shape {target.shape}, "
                            f"got {value.dtype} of shape {value.shape}"
                        )
                    if name == "step" and not (value >= 0 and value == int(value)):
                        raise ValueError(f"{path} must be a whole number >= 0, got {value}")
                    # Copied now, since a source may be a view of another target.
                    copies.append((target, value.astype(target.dtype)))
            for target, value in copies:
                target[...] = value
            for group, source in zip(self.param_groups, groups, strict=True):
                group.update({k: v for k, v in source.items() if k != "params"})

    def _append_group(self, path: str, group: Mapping[str, Any]) -> None:
        if "params" not in group:
            raise ValueError(f"a group must have the key 'params', got {sorted(group)}")
        leaves = [(path + step, leaf) for step, leaf in flatten(group["params"])]
        arrays = [as_array(leaf, f"params{p}") for p, leaf in leaves]
        group = {**self.defaults, **group, "params": arrays}
        names = _core.rule_states(self._rule, self._select(group))
        for (leaf_path, _), array in zip(leaves, arrays, strict=True):
            if array.dtype not in (np.float32, np.float64):
                raise TypeError(
                    f"params{leaf_path} must have dtype float32 or float64, got {array.dtype}"
                )
            state = {name: np.zeros(array.shape, array.dtype) for name in names}
            self.state[len(self._paths)] = state
            self._paths.append(leaf_path)
            self._masks.append(None)
        self.param_groups.append(group)

    def _arrays(self) -> list[Array]:
        return [array for group in self.param_groups for array in group["params"]]

    def _buffers(self, i: int) -> dict[str, Array]:
        return {name: array for name, array in self.state[i].items() if name != "step"}

    def _prepare(self) -> None:
        """Have the core check all arrays and remember them."""
        steps = np.zeros(len(self._paths), np.int64)
        steps[: len(self._steps)] = self._steps[: len(steps)]
        self._steps = steps
        for i in range(len(steps)):
            # A view, so that writing to it counts.
            self.state[i] = {"step": steps[i : i + 1].reshape(()), **self._buffers(i)}
        groups = [g for g, group in enumerate(self.param_groups) for _ in group["params"]]
        slots = [
            (path, array, list(self._buffers(i).values()), self._masks[i], groups[i])
            for i, (path, array) in enumerate(zip(self._paths, self._arrays(), strict=True))
        ]
        self._stepper = _core.Stepper(self._rule, slots, steps)

    def _index_of(self, array: Array) -> int | None:
        """Return the index of the parameter that is this array, if any."""
        for i, own in enumerate(self._arrays()):
            if same_memory(own, array):
                return i
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_stepper")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        self._prepare()
        _optimizers.add(self)

    def __repr__(self) -> str:
        groups = "; ".join(
            ", ".join(f"{k}={group[k]!r}" for k in self._hyperparameters)
            for group in self.param_groups
        )
        return f"{type(self).__name__}({len(self._paths)} parameters; {groups})"


#: For giving them new locks in a forked child: a lock that another thread held
#: would stay locked there.
_optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()


def _renew_locks() -> None:
    for optimizer in _optimizers:
        optimizer._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


def _is_groups(params: object) -> bool:
    return (
        isinstance(params, (list, tuple))
        and len(params) > 0
        and all(isinstance(group, Mapping) and "params" in group for group in params)
    )


def _skeleton(tree: ArrayTree) -> ArrayTree:
    """Return the branches of a tree without holding on to its arrays."""
    if isinstance(tree, dict):
        return {key: _skeleton(child) for key, child in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_skeleton(child) for child in tree]
    return None


def _as_mask(mask: object, name: str) -> Array:
    array = np.array(mask, order="C")
    if array.dtype != np.bool_:
        raise TypeError(f"{name} must be boolean, got {array.dtype}")
    return array

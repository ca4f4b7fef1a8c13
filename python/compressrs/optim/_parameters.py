"""What an optimizer holds: parameters in groups, their state and their masks."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from compressrs import _core
from compressrs._arrays import Array, ArrayTree, flatten, same_memory
from compressrs._checks import converted
from compressrs._state import Undo, all_or_nothing
from compressrs.optim._complex import ParameterViews, gradient_pairs, repeated
from compressrs.optim._dicts import (
    OF_GROUPS,
    ParameterState,
    ParamGroup,
    ParamGroups,
    State,
    require_known,
)
from compressrs.optim._guard import Guarded
from compressrs.optim._moments import Buffer, narrowed, widened
from compressrs.optim._weights import (
    holds_masks,
    masks_changed,
    masks_set,
    packed,
    structure_changed,
    unpacked,
)
from compressrs.sparse import CSRMatrix


class Parameters(Guarded):
    """Parameters in groups, their state and masks, and their step in the core.

    All changes but those of values go through `_transaction`, and end with `_prepare`, which
    has the core check everything.

    Parameters
    ----------
    params : tree of array, or list of group dicts
        See `Optimizer`.
    defaults : dict
        Default hyperparameters of the groups.
    """

    #: Name of the rule in the core.
    _rule: ClassVar[str]
    #: Hyperparameters that the class fixes, such as AdamW's decoupled weight decay.
    _fixed: ClassVar[dict[str, Any]] = {}
    #: Whether a step of a parameter depends on the gradients of all others.
    _of_all_parameters: ClassVar[bool] = False
    #: Why complex parameters are refused, if they are: pairs would mean something else.
    _only_real: ClassVar[str | None] = None
    #: The indices of the complex parameters, which are views as pairs.
    _complex: frozenset[int] = frozenset()
    #: The tensor that each parameter is a part of, if they are parts: its number, the element
    #: that the part begins with, and its number of elements.
    _parts: list[tuple[int, int, int]] | None = None

    def __init__(self, params: ArrayTree, defaults: dict[str, Any]) -> None:
        super().__init__()
        self.defaults = defaults
        self._scalar_names = _core.rule_scalars(self._rule, defaults)
        self._known = frozenset(defaults) | frozenset(self._fixed) | OF_GROUPS
        self._groups = ParamGroups()
        self._state: dict[int, dict[str, Array]] = {}
        self._paths: list[str] = []
        self._masks: list[Array | None] = []
        self._steps = np.zeros(0, np.int64)
        self._scalars = np.zeros((0, _core.MAX_SCALARS))
        params = _listed(params)
        self._grouped = _is_groups(params)
        self._structure: ArrayTree
        if self._grouped:
            params = [{**group, "params": _listed(group["params"])} for group in params]
            for i, group in enumerate(params):
                self._append_group(f"[{i}]", group)
            self._structure = [_skeleton(group["params"]) for group in params]
        else:
            self._append_group("", {"params": params})
            self._structure = _skeleton(params)
        if not self._paths:
            raise ValueError("params must hold at least one array, got none")
        self._prepare()
        holds_masks(self)

    @property
    def param_groups(self) -> list[ParamGroup]:
        """The groups; values of theirs may be assigned to, groups only added."""
        return self._groups

    @property
    def state(self) -> dict[int, dict[str, Array]]:
        """The state by index of the parameter; its arrays may be written to."""
        return self._state

    @property
    def _kind(self) -> str:
        """The name of the rule's class, which state dicts record."""
        return type(self).__name__

    def _add_group(self, group: Mapping[str, Any]) -> None:
        """Add a group to those that a tree or a list of groups gave."""
        self._paths = [p if self._grouped else f"[0]{p}" for p in self._paths]
        if "params" in group:
            group = {**group, "params": _listed(group["params"])}
        self._append_group(f"[{len(self._groups)}]", group)
        own = self._structure if self._grouped else [self._structure]
        self._structure = [*own, _skeleton(group["params"])]
        self._grouped = True
        self._prepare()

    def _append_group(self, path: str, group: Mapping[str, Any]) -> None:
        if "params" not in group:
            raise ValueError(f"a group must have the key 'params', got {sorted(group)}")
        named = list(flatten(group["params"], f"params{path}"))
        leaves = [(name.removeprefix("params"), leaf) for name, leaf in named]
        arrays = ParameterViews((leaf for _, leaf in named), (name for name, _ in named))
        for (name, _), is_complex in zip(named, arrays.complex, strict=True):
            if is_complex and self._only_real is not None:
                raise TypeError(
                    f"{name} must be real for {type(self).__name__}, {self._only_real}; got "
                    "complex numbers"
                )
        require_known(group, self._known, "a group")
        given = {**self.defaults, **{k: v for k, v in group.items() if k != "params"}}
        _core.rule_scalars(self._rule, given)
        # Copied, since the caller may change a list of betas later.
        given = copy.deepcopy(given)
        group = ParamGroup({**given, "params": arrays}, self._known, self._rule)
        for (leaf_path, _), array in zip(leaves, arrays, strict=True):
            i = len(self._paths)
            self._paths.append(leaf_path)
            self._masks.append(None)
            self._state[i] = self._initial(self._wanted(group, array, i))
        first = len(self._paths) - len(arrays)
        self._complex |= {first + k for k, is_complex in enumerate(arrays.complex) if is_complex}
        self._groups = ParamGroups([*self._groups, group])

    def _arrays(self) -> list[Array]:
        return [array for group in self._groups for array in group["params"]]

    def _views(self) -> ParameterViews:
        """Return views of the parameters for a wrapper, which are copied with them."""
        sources = [
            source if i in self._complex else array
            for i, (array, source) in enumerate(
                pair
                for group in self._groups
                for pair in zip(group["params"], group["params"].sources, strict=True)
            )
        ]
        return ParameterViews(sources, self._names)

    def _gradient(self, i: int, leaf: object, array: Array) -> Any:
        """Return the gradient of parameter `i`, the array given, as the step takes it."""
        if i not in self._complex:
            return leaf
        path = self._paths[i]
        return gradient_pairs(leaf, array, f"grads{path}", f"params{path}")

    @property
    def _names(self) -> list[str]:
        return [f"params{path}" for path in self._paths]

    def _buffers(self, i: int) -> dict[str, Array]:
        """Return the state arrays of a parameter without the scalars."""
        numbers = ("step", *self._scalar_names)
        return {name: array for name, array in self._state[i].items() if name not in numbers}

    def _wanted(self, group: dict[str, Any], array: Array, i: int) -> list[Buffer]:
        """Return the buffers that parameter `i`, with the values `array`, of a group requires."""
        elements = None if self._parts is None else self._parts[i][2]
        return _core.rule_buffers(self._rule, group, array, self._names[i], elements)

    def _initial(self, wanted: list[Buffer]) -> dict[str, Array]:
        """Return new buffers with their initial values."""
        return narrowed(wanted, {})

    def _index_of(self, array: Array) -> int | None:
        """Return the index of the parameter that is this array, or None."""
        for i, own in enumerate(self._arrays()):
            if same_memory(own, array):
                return i
        return None

    def _prepare(self) -> None:
        """Validate all arrays and hand them to the core; nothing changes if that fails."""
        n = len(self._paths)
        steps, scalars = np.zeros(n, np.int64), np.zeros((n, _core.MAX_SCALARS))
        steps[: len(self._steps)] = self._steps[:n]
        scalars[: len(self._scalars)] = self._scalars[:n]
        buffers = [self._buffers(i) for i in range(n)]
        groups = [g for g, group in enumerate(self._groups) for _ in group["params"]]
        slots = [
            (path, array, list(buffers[i].values()), self._masks[i], groups[i])
            for i, (path, array) in enumerate(zip(self._paths, self._arrays(), strict=True))
        ]
        self._stepper = _core.Stepper(self._rule, slots, self._groups, steps, scalars, self._parts)
        self._steps, self._scalars = steps, scalars
        state = {}
        for i in range(n):
            # Views, so that writes to them take effect.
            numbers: dict[str, Array] = {"step": steps[i : i + 1].reshape(())}
            for k, name in enumerate(self._scalar_names):
                numbers[name] = scalars[i, k : k + 1].reshape(())
            state[i] = ParameterState({**numbers, **buffers[i]})
        self._state = State(state)
        # Fast path: the common structures need no traversal in every step.
        structure = self._structure
        is_flat = isinstance(structure, list) and all(child is None for child in structure)
        self._flat_length = n if is_flat else -1

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Undo all changes of groups, state, masks and structure if the block raises."""
        with all_or_nothing() as undo:
            self._remember(undo)
            yield

    def _remember(self, undo: Undo) -> None:
        """Have groups, state, masks and structure restored if a change fails, not arrays."""
        for group in self._groups:
            undo.on_failure(functools.partial(group.replace, dict(group)))
        undo.remember_attributes(self, without=("_doing",))
        self._state = dict(self._state)
        self._masks, self._paths = list(self._masks), list(self._paths)

    def _configure(self, changes: list[dict[str, Any]], what: str) -> None:
        """Change hyperparameters of the groups, and the state buffers that they require."""
        with self._changing(what):
            with self._transaction():
                i = 0
                for group, change in zip(self._groups, changes, strict=True):
                    group.update(change)
                    for array in group["params"]:
                        wanted = self._wanted(group, array, i)
                        values = widened(self._buffers(i))
                        self._state[i] = {
                            "step": self._state[i]["step"],
                            **narrowed(wanted, values),
                        }
                        i += 1
                self._prepare()
            for i in range(len(self._paths)):
                self._clear_masked_state(i)

    def _replace(
        self,
        new: Mapping[int, Array],
        move: Callable[[int, Array, float, tuple[int, ...]], Array],
    ) -> None:
        """Replace parameters by other arrays, all or none, and convert their state.

        ``move(i, values, fill, shape)`` converts a state buffer or mask of parameter `i`, in
        full precision, with one value per weight, row or column, to the shape that the new
        array needs; `fill` is the initial value for new weights.
        """
        with self._changing("a change of its parameters"):
            old = {i: array for i, array in enumerate(self._arrays()) if i in new}
            with self._transaction():
                i = 0
                for group in self._groups:
                    changed: dict[int, Array] = {}
                    for k, array in enumerate(group["params"]):
                        if i in new:
                            self._move(group, i, array, new[i], move)
                            changed[k] = new[i]
                        i += 1
                    group.replace_params(group["params"].replaced(changed))
                self._prepare()
                for i in new:
                    # Of which 8-bit codes have no exact 0.
                    self._clear_masked_state(i)
            structure_changed(array for i, array in old.items() if new[i] is not array)
            structure_changed(
                (array for i, array in old.items() if new[i] is array), replaced=False
            )
            masks_changed()

    def _move(
        self,
        group: ParamGroup,
        i: int,
        old: Array,
        new: Array,
        move: Callable[[int, Array, float, tuple[int, ...]], Array],
    ) -> None:
        """Convert the state and the mask of a replaced array for the new one."""
        initial = {name: fill for name, *_, fill in self._wanted(group, old, i)}
        wanted = self._wanted(group, new, i)
        shapes = {name: tuple(shape) for name, shape, *_ in wanted}
        moved = {
            name: move(i, values, initial[name], shapes[name])
            for name, values in widened(self._buffers(i)).items()
        }
        self._state[i] = {"step": self._state[i]["step"], **narrowed(wanted, moved)}
        bits = self._masks[i]
        if bits is not None:
            self._masks[i] = packed(move(i, unpacked(bits, old.shape), 1, new.shape))

    def _set_masks(self, masks: Mapping[int, Any], undo: Undo) -> None:
        """Set the masks of the parameters with these indices."""
        arrays = self._arrays()
        checked = {
            i: None if mask is None else self._checked_mask(mask, i, arrays[i].shape)
            for i, mask in masks.items()
        }
        masked = [i for i, mask in checked.items() if mask is not None]
        with self._changing("set_masks"):
            # Changes nothing; rejects arrays that cannot be changed in place.
            _core.clamp([arrays[i] for i in masked], [self._names[i] for i in masked], np.inf)
            self._remember(undo)
            for i, mask in checked.items():
                self._masks[i] = packed(mask)
            self._prepare()
            self._apply_masks(masked, undo)
            masks_set([arrays[i] for i in checked], undo)

    def _checked_mask(self, mask: object, i: int, shape: tuple[int, ...]) -> Array:
        """Return the mask of parameter `i`; both parts of a complex number have the same."""
        if i in self._complex:
            return repeated(_checked_mask(mask, self._paths[i], shape[:-1]))
        return _checked_mask(mask, self._paths[i], shape)

    def _apply_masks(self, indices: Iterable[int], undo: Undo) -> None:
        """Set masked elements of these parameters, and their state, to 0."""
        arrays = self._arrays()
        undo.on_failure(masks_changed)
        for i in indices:
            bits = self._masks[i]
            if bits is not None:
                undo.remember(arrays[i], *self._buffers(i).values())
                _core.apply_mask(arrays[i], unpacked(bits, arrays[i].shape), self._names[i])
                self._clear_masked_state(i)
        masks_changed()

    def _clear_masked_state(self, i: int) -> None:
        """Set the state of masked weights to 0."""
        bits, shape = self._masks[i], self._arrays()[i].shape
        if bits is None:
            return
        masked = ~unpacked(bits, shape)
        for buffer in self._buffers(i).values():
            # Means over rows and columns have no masked elements.
            if buffer.shape == shape:
                buffer[masked] = 0

    def _held_masks(self) -> Iterator[tuple[Array, Array]]:
        for array, bits in zip(self._arrays(), self._masks, strict=True):
            if bits is not None:
                yield array, unpacked(bits, array.shape)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_stepper"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        own = [ParamGroup(group, self._known, self._rule) for group in self._groups]
        self._groups = ParamGroups(own)
        self._prepare()
        holds_masks(self)


def _is_groups(params: object) -> bool:
    return (
        isinstance(params, (list, tuple))
        and len(params) > 0
        and all(isinstance(group, Mapping) and "params" in group for group in params)
    )


def _listed(params: ArrayTree) -> ArrayTree:
    """Return a list for an iterator such as torch.nn.Module.parameters()."""
    return list(params) if isinstance(params, Iterator) else params


def _skeleton(tree: ArrayTree) -> ArrayTree:
    """Return the structure of a tree without references to its arrays."""
    if isinstance(tree, dict):
        return {key: _skeleton(child) for key, child in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_skeleton(child) for child in tree]
    return None


def _checked_mask(mask: object, path: str, shape: tuple[int, ...]) -> Array:
    array = mask.pattern() if isinstance(mask, CSRMatrix) else converted(mask, f"masks{path}")
    if array.dtype != np.bool_:
        raise TypeError(f"masks{path} must be boolean, got {array.dtype}")
    if array.shape != shape:
        raise ValueError(
            f"masks{path} must have the shape {shape} of params{path}, got {array.shape}"
        )
    return np.array(array, order="C")

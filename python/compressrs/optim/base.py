"""Base class of the optimizers: parameters, groups, state, and the step."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, TypeAlias, TypedDict

import numpy as np

from compressrs import _core
from compressrs._arrays import (
    Array,
    ArrayTree,
    Views,
    flatten,
    flatten_like,
    same_memory,
)
from compressrs._checks import converted, file_path
from compressrs._state import Stateful, Take, Undo, all_or_nothing
from compressrs.optim import storage as files
from compressrs.optim._dicts import OF_GROUPS, ParameterState, ParamGroup, ParamGroups, State
from compressrs.optim._guard import Guarded
from compressrs.optim._loading import plan
from compressrs.optim._moments import (
    CODES,
    Buffer,
    has_codes,
    narrowed,
    widened,
)
from compressrs.optim._weights import (
    holds_masks,
    masks_changed,
    masks_set,
    structure_changed,
    unpacked,
)
from compressrs.sparse import CSRMatrix

StateDtype: TypeAlias = Literal["float32", "bfloat16", "int8"]
Precision: TypeAlias = Literal["nearest", "stochastic", "kahan", "master"]


class Storage(TypedDict, total=False):
    """Keyword arguments that say how state and weights are stored; see `Optimizer`."""

    state_dtype: StateDtype
    precision: Precision
    seed: int


#: Defaults of `Storage`.
_STORAGE: dict[str, Any] = {"state_dtype": "float32", "precision": "nearest", "seed": 0}


class Optimizer(Guarded, Stateful):
    """Base class of the optimizers; use one of its subclasses.

    Parameters
    ----------
    params : array, list, nested dict of arrays, or list of group dicts
        float32, float64, float16 or bfloat16 (of ml_dtypes), C-contiguous and
        writable. They are updated in place, so they must not share memory. Accepted are
        NumPy arrays, memory maps, and objects that export their memory through DLPack or
        the buffer protocol, such as PyTorch's CPU tensors. An iterator is treated as a
        list. A group dict has a key ``"params"`` and may override hyperparameters.
    defaults : dict
        Default hyperparameters of the groups.
    storage : dict, optional
        How state and weights are stored. Subclasses take these as keyword arguments;
        groups may override them.

        state_dtype : {"float32", "bfloat16", "int8"}, default "float32"
            Precision of the moments. "float32" means float64 for float64 parameters.
            "bfloat16" takes half of the memory, "int8" a quarter: 8-bit codes with one
            scale per block of 256. Both are stochastically rounded, so that small
            updates are not lost. Under "int8", parameters with fewer than 4,096 elements
            keep float32 state, and so do row and column means, step sizes, and the two
            moments that centered RMSprop subtracts.
        precision : {"nearest", "stochastic", "kahan", "master"}, default "nearest"
            How float16 and bfloat16 parameters, whose updates are computed in float32,
            are rounded: "nearest" loses updates smaller than half a unit in the last
            place; "stochastic" is unbiased; "kahan" rounds to nearest and stores the
            rounding error (2 more bytes per element); "master" stores float32 weights (4
            more bytes per element). Other dtypes are not affected.
        seed : int, default 0
            Seed of the stochastic rounding. The same seed gives bit-identical results for
            any number of threads and any vector width.

    Attributes
    ----------
    param_groups : list of dict
        Each has ``"params"``, a list of arrays, and the hyperparameters, which may be
        changed between steps: ``opt.param_groups[0]["lr"] = 1e-4``. A group whose
        ``"frozen"`` is True is not updated, nor is its state. Assigning to an entry of
        ``"params"`` copies into the array that is trained; groups and arrays can be added
        by `add_param_group` only.
    state : dict of dict of array
        By index of the parameter: ``"step"``, the number of steps taken, and the
        rule's buffers, named as in PyTorch. The arrays may be written to.

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
    #: Hyperparameters that the class fixes, such as AdamW's decoupled weight decay.
    _fixed: ClassVar[dict[str, Any]] = {}
    # A step changes parameters and state in a single call of the core; signal handlers run
    # before or after it.
    _consistent = frozenset(("step", "save", "state_dict"))

    def __init__(
        self, params: ArrayTree, defaults: dict[str, Any], storage: Storage | None = None
    ) -> None:
        super().__init__()
        if unknown := set(storage or ()) - set(_STORAGE):
            raise TypeError(
                f"{type(self).__name__} has no parameter {sorted(unknown)[0]!r}; "
                f"it takes {', '.join([*defaults, *_STORAGE])}"
            )
        self.defaults = defaults = {**defaults, **_STORAGE, **(storage or {})}
        self._scalar_names = _core.rule_scalars(self._rule, defaults)
        self._known = frozenset(defaults) | frozenset(self._fixed) | OF_GROUPS
        self._groups = ParamGroups()
        self._state: dict[int, dict[str, Array]] = {}
        self._paths: list[str] = []
        self._masks: list[Array | None] = []
        self._steps = np.zeros(0, np.int64)
        self._scalars = np.zeros((0, 2))
        params = _listed(params)
        self._grouped = _is_groups(params)
        self._structure: ArrayTree
        if self._grouped:
            params = [{**group, "params": _listed(group["params"])} for group in params]
            self._structure = [_skeleton(group["params"]) for group in params]
            for i, group in enumerate(params):
                self._append_group(f"[{i}]", group)
        else:
            self._structure = _skeleton(params)
            self._append_group("", {"params": params})
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

    def step(
        self,
        grads: ArrayTree,
        *,
        max_grad_norm: float | None = None,
        grad_scale: float = 1.0,
        nonfinite: Literal["raise", "skip", "ignore"] = "ignore",
    ) -> float | None:
        r"""Update every parameter in place.

        Parameters
        ----------
        grads : array, or list or nested dict of arrays
            Gradients in the structure of the parameters (for groups: a list with one
            entry per group), with the parameters' shapes and any floating-point dtype.
            None leaves a parameter and its state unchanged. Gradients that are not
            C-contiguous are copied.
        max_grad_norm : float, optional
            Scales the gradients by ``min(1, max_grad_norm / (norm + 1e-6))``, where
            `norm` is their total 2-norm, as `clip_grad_norm_` does, but without writing
            to them.
        grad_scale : float, default 1.0
            Factor applied to all gradients before clipping: the inverse of a loss scale.
        nonfinite : {"ignore", "raise", "skip"}, default "ignore"
            What to do if a gradient contains NaN or infinity, or, after scaling and
            clipping, a number beyond the range of the type that its parameter is computed
            in: apply it regardless, raise NonFiniteGradientError, or skip the step.
            Gradients of masked weights are not considered.

        Returns
        -------
        float or None
            The total norm of the gradients times `grad_scale`, before clipping, if
            `max_grad_norm` is given or `nonfinite` is not "ignore". NaN or infinite if
            the step was skipped. Also infinite if the norm is beyond the range of
            float64; the gradients are clipped correctly even then.

        Raises
        ------
        TypeError
            If a gradient is not an array of a floating-point dtype.
        NonFiniteGradientError
            A ValueError that names the gradient; see `nonfinite`.
        ValueError
            If a gradient does not have its parameter's shape or shares memory with a
            parameter or its state, or a hyperparameter is out of range. After any
            exception all parameters and states are unchanged.
        """
        if not isinstance(nonfinite, str):
            raise TypeError(
                f"nonfinite must be 'raise', 'skip' or 'ignore', got {type(nonfinite).__name__}"
            )
        with self._lock:
            self._require_idle("step")
            try:
                self._doing = "step"
                structure = self._structure
                if structure is None:
                    flat = [grads]
                elif type(grads) is list and len(grads) == self._flat_length:
                    flat = grads
                else:
                    flat = flatten_like(structure, grads, "grads")
                return self._stepper.step(
                    flat,
                    self._groups,
                    max_grad_norm,
                    grad_scale,
                    nonfinite,
                )
            finally:
                self._doing = None

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add a group of parameters; `step` then expects one more entry.

        Parameters
        ----------
        group : dict
            ``"params"`` and hyperparameters that differ from the defaults.

        Raises
        ------
        TypeError, ValueError
            As for the constructor; nothing is added in that case.
        """
        if not isinstance(group, Mapping):
            raise TypeError(f"group must be a dict, got {type(group).__name__}")
        with self._changing("add_param_group"), self._transaction():
            self._paths = [p if self._grouped else f"[0]{p}" for p in self._paths]
            if "params" in group:
                group = {**group, "params": _listed(group["params"])}
            self._append_group(f"[{len(self.param_groups)}]", group)
            own = self._structure if self._grouped else [self._structure]
            self._structure = [*own, _skeleton(group["params"])]
            self._grouped = True
            self._prepare()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Undo all changes of groups, state, masks and structure if the block raises."""
        with all_or_nothing() as undo:
            self._remember(undo)
            yield

    def _remember(self, undo: Undo) -> None:
        """Have groups, state, masks and structure restored if a change fails, not arrays."""
        for group in self.param_groups:
            undo.on_failure(functools.partial(group.replace, dict(group)))
        undo.remember_attributes(self, without=("_doing",))
        self._state = dict(self._state)
        self._masks, self._paths = list(self._masks), list(self._paths)

    def set_masks(self, masks: ArrayTree | None) -> None:
        """Set masked weights and their state to exactly 0, and keep them there.

        Parameters
        ----------
        masks : array, or list or nested dict of arrays, or None
            Boolean arrays in the structure of the parameters, True where a weight is
            kept, or `CSRMatrix` patterns, whose stored entries are kept. None removes the
            mask of one parameter, or all masks. Masks are copied, as one bit per weight,
            and are part of state dicts and files. Masked weights are set to 0 at once.

        Raises
        ------
        TypeError
            If a mask is not boolean.
        ValueError
            If a mask does not have its parameter's shape.
        """
        flat = [None] * len(self._paths)
        if masks is not None:
            flat = flatten_like(self._structure, masks, "masks")
        with all_or_nothing() as undo:
            self._set_masks(dict(enumerate(flat)), undo)

    def _set_masks(self, masks: Mapping[int, Any], undo: Undo) -> None:
        """Set the masks of the parameters with these indices."""
        arrays = self._arrays()
        checked = {
            i: None if mask is None else _as_mask(mask, self._paths[i], arrays[i].shape)
            for i, mask in masks.items()
        }
        masked = [i for i, mask in checked.items() if mask is not None]
        with self._changing("set_masks"):
            # Changes nothing; rejects arrays that cannot be changed in place.
            _core.clamp([arrays[i] for i in masked], [self._names[i] for i in masked], np.inf)
            self._remember(undo)
            for i, mask in checked.items():
                self._masks[i] = _packed(mask)
            self._prepare()
            self._apply_masks(masked, undo)
            masks_set([arrays[i] for i in checked], undo)

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

    def _held_masks(self) -> Iterator[tuple[Array, Array]]:
        for array, bits in zip(self._arrays(), self._masks, strict=True):
            if bits is not None:
                yield array, unpacked(bits, array.shape)

    @property
    def _names(self) -> list[str]:
        return [f"params{path}" for path in self._paths]

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

    def _replace(
        self, new: Mapping[int, Array], move: Callable[[int, Array, float], Array]
    ) -> None:
        """Replace parameters by other arrays, all or none, and convert their state.

        ``move(i, values, fill)`` converts a state buffer or mask of parameter `i`, in full
        precision, with one value per weight, row or column, to the shape of the new array;
        `fill` is the initial value for new weights.
        """
        with self._changing("a change of its parameters"):
            old = {i: array for i, array in enumerate(self._arrays()) if i in new}
            with self._transaction():
                i = 0
                for group in self.param_groups:
                    changed: dict[int, Array] = {}
                    for k, array in enumerate(group["params"]):
                        if i in new:
                            self._move(group, i, array, new[i], move)
                            changed[k] = new[i]
                        i += 1
                    group.replace_params(group["params"].replaced(changed))
                self._prepare()
            structure_changed(old.values())
            masks_changed()

    def _move(
        self,
        group: ParamGroup,
        i: int,
        old: Array,
        new: Array,
        move: Callable[[int, Array, float], Array],
    ) -> None:
        """Convert the state and the mask of a replaced array for the new one."""
        initial = {name: fill for name, *_, fill in self._wanted(group, old, "")}
        wanted = self._wanted(group, new, self._paths[i])
        moved = {
            name: move(i, values, initial[name])
            for name, values in widened(self._buffers(i)).items()
        }
        self._state[i] = {"step": self._state[i]["step"], **narrowed(wanted, moved)}
        bits = self._masks[i]
        if bits is not None:
            self._masks[i] = _packed(move(i, unpacked(bits, old.shape), 1))

    def convert_state(
        self, state_dtype: StateDtype | None = None, precision: Precision | None = None
    ) -> None:
        """Convert the state and weights to another storage precision.

        Parameters
        ----------
        state_dtype, precision : str, optional
            See `Optimizer`; None leaves a setting unchanged. The conversion rounds
            moments to nearest.

        Raises
        ------
        ValueError
            If a setting is invalid; nothing is changed in that case.

        Examples
        --------
        >>> import numpy as np, compressrs as cr
        >>> w = np.zeros(4096, np.float32)
        >>> opt = cr.optim.Adam(w)
        >>> opt.step(np.ones_like(w))
        >>> sum(a.nbytes for a in opt.state[0].values())
        32776
        >>> opt.convert_state("int8")
        >>> sum(a.nbytes for a in opt.state[0].values())
        8328
        """
        given = {"state_dtype": state_dtype, "precision": precision}
        changes = {key: value for key, value in given.items() if value is not None}
        self._configure([changes] * len(self.param_groups), "convert_state")

    def _configure(self, changes: list[dict[str, Any]], what: str) -> None:
        """Change hyperparameters of the groups, and the state buffers that they require."""
        with self._changing(what):
            with self._transaction():
                i = 0
                for group, change in zip(self.param_groups, changes, strict=True):
                    group.update(change)
                    for array in group["params"]:
                        wanted = self._wanted(group, array, self._paths[i])
                        values = widened(self._buffers(i))
                        self._state[i] = {
                            "step": self._state[i]["step"],
                            **narrowed(wanted, values),
                        }
                        i += 1
                self._prepare()
            for i in range(len(self._paths)):
                self._clear_masked_state(i)

    def _wanted(self, group: dict[str, Any], array: Array, path: str) -> list[Buffer]:
        """Return the buffers that a parameter of a group requires."""
        return _core.rule_buffers(self._rule, group, array, f"params{path}")

    def state_dict(self) -> dict[str, Any]:
        """Return state, hyperparameters and masks in PyTorch's format.

        The arrays are the optimizer's own, not copies. Use ``copy.deepcopy`` to keep them
        while training continues.

        Returns
        -------
        dict
            ``"state"``: by index of the parameter, and ``"param_groups"``: with
            these indices in place of the parameters. With 8-bit state also ``"codes"``,
            the version of the code format; the scales of ``"exp_avg"``, for example, are
            in ``"exp_avg_scale"``.
        """
        with self._reading("state_dict"):
            groups, first = [], 0
            for group in self.param_groups:
                indices = list(range(first, first + len(group["params"])))
                values = {k: copy.deepcopy(v) for k, v in group.items() if k != "params"}
                names = [self._names[i] for i in indices]
                groups.append({**values, "params": indices, "param_names": names})
                first += len(indices)
            state = {i: dict(buffers) for i, buffers in self._state.items()}
            shapes = [array.shape for array in self._arrays()]
            masks = {
                i: unpacked(bits, shapes[i])
                for i, bits in enumerate(self._masks)
                if bits is not None
            }
            codes = {"codes": dict(CODES)} if has_codes(state) else {}
            return {
                "class": type(self).__name__,
                "state": state,
                "param_groups": groups,
                "masks": masks,
                **codes,
            }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the state, hyperparameters and masks that `state_dict` returned.

        Values are copied into the optimizer's own arrays, and converted if `state_dtype`
        differs. State dicts of the PyTorch optimizer of the same name, with CPU tensors, are
        accepted as well.

        Raises
        ------
        ValueError
            If it does not match the optimizer or its parameters; nothing is changed in
            that case.
        """
        super().load_state_dict(state_dict)

    def _checked(self, state_dict: Mapping[str, Any]) -> Take:
        updates, copies, masks = plan(self, state_dict)
        arrays = self._arrays()
        masked = [i for i, mask in enumerate(masks or []) if mask is not None]
        # Changes nothing; rejects arrays that cannot be changed in place.
        _core.clamp([arrays[i] for i in masked], [self._names[i] for i in masked], np.inf)

        def take(undo: Undo) -> None:
            with self._changing("load_state_dict"):
                self._remember(undo)
                if masks is not None:
                    self._masks = [_packed(mask) for mask in masks]
                for group, update in zip(self.param_groups, updates, strict=True):
                    group.update(update)
                self._prepare()
                for name, i, value in copies:
                    undo.write(self._state[i][name], value)
                self._apply_masks(range(len(arrays)), undo)
                if masks is not None:
                    masks_set(arrays, undo)

        return take

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save state, hyperparameters and masks to one safetensors file.

        The file is written under a temporary name and then renamed, so an existing file is
        only replaced by a complete one. Requires the package safetensors
        (``pip install 'compressrs[save]'``).

        Raises
        ------
        OSError
            If the file cannot be written.
        TypeError
            If a group holds a value that JSON cannot represent.
        """
        with self._reading("save"):
            files.save(file_path(path), type(self).__name__, self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Load state, hyperparameters and masks from a file that `save` wrote.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it is corrupt, of another format, rule or version, or does not match the
            parameters; nothing is changed in that case.
        """
        self.load_state_dict(files.load(file_path(path), type(self).__name__))

    def _append_group(self, path: str, group: Mapping[str, Any]) -> None:
        if "params" not in group:
            raise ValueError(f"a group must have the key 'params', got {sorted(group)}")
        leaves = [(path + step, leaf) for step, leaf in flatten(group["params"])]
        arrays = Views((leaf for _, leaf in leaves), (f"params{p}" for p, _ in leaves))
        # Copied, since the caller may change a list of betas later.
        given = {k: copy.deepcopy(v) for k, v in group.items() if k != "params"}
        own = copy.deepcopy(self.defaults)
        group = ParamGroup({**own, **given, "params": arrays}, self._known)
        _core.rule_scalars(self._rule, group)
        for (leaf_path, _), array in zip(leaves, arrays, strict=True):
            wanted = self._wanted(group, array, leaf_path)
            self._state[len(self._paths)] = narrowed(wanted, {})
            self._paths.append(leaf_path)
            self._masks.append(None)
        self._groups = ParamGroups([*self._groups, group])

    def _arrays(self) -> list[Array]:
        return [array for group in self.param_groups for array in group["params"]]

    def _buffers(self, i: int) -> dict[str, Array]:
        """Return the state arrays of a parameter without the scalars."""
        numbers = ("step", *self._scalar_names)
        return {name: array for name, array in self._state[i].items() if name not in numbers}

    def _prepare(self) -> None:
        """Validate all arrays and hand them to the core; nothing changes if that fails."""
        n = len(self._paths)
        steps, scalars = np.zeros(n, np.int64), np.zeros((n, 2))
        steps[: len(self._steps)] = self._steps[:n]
        scalars[: len(self._scalars)] = self._scalars[:n]
        buffers = [self._buffers(i) for i in range(n)]
        groups = [g for g, group in enumerate(self.param_groups) for _ in group["params"]]
        slots = [
            (path, array, list(buffers[i].values()), self._masks[i], groups[i])
            for i, (path, array) in enumerate(zip(self._paths, self._arrays(), strict=True))
        ]
        self._stepper = _core.Stepper(self._rule, slots, self.param_groups, steps, scalars)
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

    def _index_of(self, array: Array) -> int | None:
        """Return the index of the parameter that is this array, or None."""
        for i, own in enumerate(self._arrays()):
            if same_memory(own, array):
                return i
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_stepper"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._groups = ParamGroups(ParamGroup(group, self._known) for group in self._groups)
        self._prepare()
        holds_masks(self)

    def __repr__(self) -> str:
        groups = "; ".join(
            ", ".join(
                f"{k}={group[k]!r}"
                for k in self.defaults
                if k not in _STORAGE or group[k] != _STORAGE[k]
            )
            for group in self.param_groups
        )
        return f"{type(self).__name__}({len(self._paths)} parameters; {groups})"


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


def _as_mask(mask: object, path: str, shape: tuple[int, ...]) -> Array:
    array = mask.pattern() if isinstance(mask, CSRMatrix) else converted(mask, f"masks{path}")
    if array.dtype != np.bool_:
        raise TypeError(f"masks{path} must be boolean, got {array.dtype}")
    if array.shape != shape:
        raise ValueError(
            f"masks{path} must have the shape {shape} of params{path}, got {array.shape}"
        )
    return np.array(array, order="C")


def _packed(mask: Array | None) -> Array | None:
    """Return a mask packed to one bit per weight."""
    return None if mask is None else np.packbits(mask, bitorder="little")

"""Validation of state dicts, and what an optimizer loads from one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from compressrs import _core
from compressrs._arrays import Array, as_array, is_number, pairs
from compressrs.optim._dicts import OF_GROUPS, require_known
from compressrs.optim._moments import (
    CODES,
    OF_WEIGHTS,
    SCALE,
    Buffer,
    has_codes,
    narrowed,
    widened,
)
from compressrs.optim._parameters import Parameters

#: What to write: buffer name, index of the parameter, value.
Copy: TypeAlias = tuple[str, int, Array]


def plan(
    optimizer: Parameters, state_dict: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[Copy], list[Array | None] | None]:
    """Return what an optimizer loads from a state dict, after checking all of it.

    Parameters are matched by name; by position if there are no names, as in PyTorch's state
    dicts, or only one parameter.

    Returns
    -------
    updates : list of dict
        The hyperparameters of each group.
    copies : list of Copy
        All values of the state.
    masks : list of array or None, or None
        The mask of each parameter, or None to leave the masks unchanged.

    Raises
    ------
    ValueError
        If the state dict is invalid or does not match the optimizer.
    """
    try:
        groups, state = list(state_dict["param_groups"]), dict(state_dict["state"])
        given = [list(group["params"]) for group in groups]
        indices = [i for group in given for i in group]
        whole = all(isinstance(i, (int, np.integer)) for i in indices)
        if not whole or len(set(indices)) != len(indices):
            raise ValueError
    except (TypeError, LookupError, ValueError, OverflowError):
        raise ValueError(
            "state_dict must be a dict with 'param_groups' and 'state', as state_dict() returns"
        ) from None
    kind = optimizer._kind
    known = {"class", "state", "param_groups", "masks", "codes", "complex"}
    if "class" in state_dict and (unknown := set(state_dict) - known):
        raise ValueError(
            f"state_dict must have the keys {sorted(known)}, got "
            f"{sorted(map(str, unknown))[0]!r} as well"
        )
    named = state_dict.get("class", kind)
    if not isinstance(named, str) or named != kind:
        raise ValueError(f"state_dict must be of a {kind}, got one of {state_dict['class']!r}")
    if not all(
        isinstance(buffers, Mapping) and all(isinstance(name, str) for name in buffers)
        for buffers in state.values()
    ):
        raise ValueError("state_dict['state'] must hold a dict for each parameter")
    if has_codes(state) and state_dict.get("codes") != CODES:
        raise ValueError(
            f"state_dict must have 8-bit codes {CODES}, got {state_dict.get('codes')}; "
            "convert it with the version that wrote it: opt.convert_state('float32')"
        )
    lengths = [len(group["params"]) for group in optimizer.param_groups]
    if [len(group) for group in given] != lengths:
        raise ValueError(
            f"state_dict must have groups of {lengths} parameters, got {[len(g) for g in given]}"
        )
    order = parameter_order(groups, given, optimizer._names, lengths, "class" in state_dict)
    if "class" in state_dict:
        of_pairs = sorted(order[i] for i in optimizer._complex)
        if state_dict.get("complex", []) != of_pairs:
            raise ValueError(
                f"state_dict['complex'] must be {of_pairs}, the complex parameters, got "
                f"{state_dict.get('complex')!r}"
            )
    lacking = set()
    if "class" in state_dict:  # PyTorch's have no state before the first step
        lacking = {i for i in order if all(x is None for x in state.get(i, {}).values())}
    if lacking or set(state) - set(order):
        raise ValueError(
            f"state_dict['state'] must be of the parameters {sorted(order)}, got {list(state)}"
        )
    updates, copies = [], []
    i = 0
    for group, own in zip(groups, optimizer.param_groups, strict=True):
        update = group_update(group, optimizer.defaults, optimizer._fixed, kind)
        _core.rule_scalars(optimizer._rule, {**optimizer.defaults, **update})
        updates.append(update)
        for array in own["params"]:
            names = list(optimizer._buffers(i))
            wanted = optimizer._wanted({**own, **update}, array, i)
            if [name for name, *_ in wanted] != names:
                raise ValueError(
                    f"state_dict must have hyperparameters that need {names} for "
                    f"params{optimizer._paths[i]}, got some that need "
                    f"{[name for name, *_ in wanted]}"
                )
            buffers = optimizer._buffers(i)
            if any(shape != buffers[name].shape for name, shape, *_ in wanted):
                raise ValueError(
                    "state_dict['param_groups'] must have the block_size of the optimizer, whose "
                    f"state has the shape of blocks, got {group.get('block_size')!r}"
                )
            source = dict(state.get(order[i], {}))
            if i in optimizer._complex:
                source = {name: _in_pairs(value, name) for name, value in source.items()}
            if optimizer._rule == "sgd" and any(v is not None for v in source.values()):
                # PyTorch keeps no count of steps for SGD.
                source.setdefault("step", 1)
            values = loaded(optimizer._state[i], source, wanted, array.shape, order[i])
            copies += [(name, i, value) for name, value in values.items()]
            i += 1
    return updates, copies, _masks(optimizer, state_dict, order)


def _in_pairs(value: Any, name: str) -> Any:
    """Return complex state, such as PyTorch's, as pairs."""
    if "complex" in str(getattr(value, "dtype", "")):
        return pairs(as_array(value, f"state_dict's {name}"), name)
    return value


def parameter_order(
    groups: Sequence[Mapping[str, Any]],
    given: list[list[int]],
    names: list[str],
    lengths: list[int],
    own: bool,
) -> list[int]:
    """Return each parameter's index in the state dict."""
    theirs = [group.get("param_names") for group in groups]
    ours = all(
        isinstance(group, (list, tuple))
        and all(isinstance(name, str) and name.startswith("params") for name in group)
        for group in theirs
    )
    if own and not ours and any(group is not None for group in theirs):
        raise ValueError(f"state_dict must have param_names like {names}, got {theirs}")
    if not ours or len(names) == 1:
        return [i for group in given for i in group]
    order, first = [], 0
    for indices, their, length in zip(given, theirs, lengths, strict=True):
        need = names[first : first + length]
        if sorted(their) != sorted(need):  # type: ignore[arg-type]
            raise ValueError(f"state_dict must be of the parameters {need}, got {their}")
        by_name = dict(zip(their, indices, strict=True))  # type: ignore[arg-type]
        order += [by_name[name] for name in need]
        first += length
    return order


def _masks(
    optimizer: Parameters, state_dict: Mapping[str, Any], order: list[int]
) -> list[Array | None] | None:
    """Return the mask of each parameter, or None if the state dict has no masks."""
    if "masks" not in state_dict:
        return None
    masks = state_dict["masks"]
    if not isinstance(masks, Mapping) or set(masks) - set(order):
        raise ValueError("state_dict['masks'] must be a dict by index of the parameter")
    result: list[Array | None] = []
    for index, array in zip(order, optimizer._arrays(), strict=True):
        mask = None if masks.get(index) is None else np.array(masks[index])
        if mask is not None and (mask.dtype != np.bool_ or mask.shape != array.shape):
            raise ValueError(
                f"state_dict['masks'][{index}] must be boolean of shape {array.shape}, got "
                f"{mask.dtype} of shape {mask.shape}"
            )
        result.append(mask)
    return result


#: Keys of PyTorch's groups that choose an implementation, not a result.
TORCH_SWITCHES = frozenset(
    ("foreach", "fused", "capturable", "differentiable", "param_names", "name")
)
#: Keys that PyTorch's schedules add to groups.
_TORCH_SCHEDULES = frozenset(("max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr"))
#: Hyperparameters that a state dict may lack, since not every version of PyTorch has them, or
#: none does.
_NEWER = frozenset(
    (
        "beta1",
        "cautious",
        "decoupled_weight_decay",
        "maximize",
        "precision",
        "seed",
        "state_dtype",
    )
)
#: Storage settings, which are not loaded with the state.
_OWN = ("state_dtype", "precision")


def group_update(
    group: Mapping[str, Any],
    defaults: Mapping[str, Any],
    fixed: Mapping[str, Any],
    optimizer: str,
) -> dict[str, Any]:
    """Return the hyperparameters that a group loads from a group of a state dict.

    Raises
    ------
    ValueError
        If a hyperparameter is missing, or one of `fixed` has another value.
    """
    if missing := set(defaults) - set(group) - _NEWER:
        raise ValueError(
            f"state_dict must give {sorted(missing)} for a {optimizer}; "
            "is it that of another optimizer?"
        )
    for name, value in fixed.items():
        got = group.get(name, value)
        if not isinstance(got, (bool, int, float, str)) or got != value:
            raise ValueError(
                f"state_dict must have {name}={value} for {optimizer}, "
                f"got {group[name]!r}; is it that of another optimizer?"
            )
    dropped = {"params", *TORCH_SWITCHES, *_TORCH_SCHEDULES, *_OWN}
    update = {k: copy.deepcopy(v) for k, v in group.items() if k not in dropped}
    require_known(update, frozenset(defaults) | frozenset(fixed) | OF_GROUPS, "state_dict's groups")
    return {k: v for k, v in update.items() if k not in fixed}


def loaded(
    own: Mapping[str, Array],
    source: Mapping[str, Any],
    wanted: list[Buffer],
    shape: tuple[int, ...],
    index: int,
) -> dict[str, Array]:
    """Return the values to load into the buffers of a parameter.

    Parameters
    ----------
    own : dict of array
        The parameter's state in the optimizer.
    source : dict
        The parameter's state in the state dict.
    wanted : list of Buffer
        The buffers required by the hyperparameters to be loaded.
    shape : tuple of int
        Shape of the parameter.
    index : int
        Index of the parameter, for messages.

    Raises
    ------
    ValueError
        If a buffer is missing, unknown, not numeric, or of the wrong shape.
    """
    # PyTorch keeps nothing for a parameter that was never updated, and None for a
    # buffer that is not used.
    source = {name: value for name, value in source.items() if value is not None}
    if not source:
        initial = narrowed(wanted, {})
        return {name: initial.get(name, np.asarray(0.0)) for name in own}
    # Scales are loaded with their codes; buffers of half-precision weights are optional.
    scales = {name + SCALE for name, *_ in wanted}
    optional = scales | {*OF_WEIGHTS}
    if set(own) - optional - set(source) or set(source) - set(own) - optional:
        raise ValueError(
            f"state_dict['state'][{index}] must hold {sorted(set(own) - optional)}, "
            f"got {sorted(source)}"
        )
    values = {}
    for name, value in source.items():
        path = f"state_dict['state'][{index}][{name!r}]"
        codes = own.get(name.removesuffix(SCALE)) if name in scales else None
        if codes is not None:
            need: tuple[int, ...] = (-(-codes.size // _core.CODE_BLOCK),)
        else:
            need = own[name].shape if name in own else shape
        try:
            array = as_array(value, path) if hasattr(value, "detach") else np.asarray(value)
        except ValueError as error:
            raise ValueError(f"{path} must be numbers of shape {need}: {error}") from None
        if array.shape != need or not is_number(array.dtype):
            raise ValueError(
                f"{path} must be numbers of shape {need}, got {array.dtype} of shape {array.shape}"
            )
        if name + SCALE in scales and (array.dtype in (np.int8, np.uint8)) != (
            name + SCALE in source
        ):
            raise ValueError(f"{path} must be codes with their {name + SCALE!r}, or neither")
        if name == "step" and not (0 <= array < 2**53 and array == int(array)):
            raise ValueError(f"{path} must be a whole number >= 0, got {value}")
        if name in own and not own[name].ndim and not np.isfinite(array):
            raise ValueError(f"{path} must be finite, got {value}")
        values[name] = array
    new = {**values, **narrowed(wanted, widened(values))}
    for name, _, dtype, _ in wanted:
        if dtype in ("int8", "uint8") and values[name].dtype == dtype:
            # Copied as they are, without decoding and encoding them again.
            new[name], new[name + SCALE] = values[name], values[name + SCALE]
    return {name: new[name].astype(target.dtype) for name, target in own.items()}

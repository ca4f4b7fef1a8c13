"""State dicts of others: what an optimizer takes over from one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from compressrs import _core
from compressrs._arrays import Array, as_array, is_number
from compressrs.optim._moments import OF_WEIGHTS, SCALE, Buffer, narrowed, widened

#: Keys of PyTorch's groups that choose an implementation, not a result.
_TORCH_SWITCHES = frozenset(("foreach", "fused", "capturable", "differentiable"))
#: Hyperparameters that a state dict need not have: not every version of PyTorch's does.
_NEWER = frozenset(("maximize", "decoupled_weight_decay", "state_dtype", "precision", "seed"))
#: How numbers are stored, which an optimizer does not take over with a state.
_OWN = ("state_dtype", "precision")


def group_update(
    group: Mapping[str, Any],
    defaults: Mapping[str, Any],
    fixed: Mapping[str, Any],
    optimizer: str,
) -> dict[str, Any]:
    """Return what a group takes over from one of a state dict.

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
        if group.get(name, value) != value:
            raise ValueError(
                f"state_dict must have {name}={value} for {optimizer}, "
                f"got {group[name]!r}; is it that of another optimizer?"
            )
    dropped = {"params", *_TORCH_SWITCHES, *_OWN}
    return {k: v for k, v in group.items() if k not in dropped}


def loaded(
    own: Mapping[str, Array],
    source: Mapping[str, Any],
    wanted: list[Buffer],
    shape: tuple[int, ...],
    index: int,
) -> list[tuple[Array, Array]]:
    """Return the buffers of a parameter with the values that they shall have.

    Parameters
    ----------
    own : dict of array
        The optimizer's state of the parameter.
    source : dict
        That of the state dict.
    wanted : list of Buffer
        What is needed with the hyperparameters to come.
    shape : tuple of int
        The parameter's.
    index : int
        Its index, for messages.

    Raises
    ------
    ValueError
        If something is missing, unknown, or no number of the right shape.
    """
    # PyTorch keeps nothing for a parameter that was never updated, and None for a
    # buffer that is not used.
    source = {name: value for name, value in source.items() if value is not None}
    if not source:
        initial = narrowed(wanted, {})
        return [(own[name], initial.get(name, np.asarray(0.0))) for name in own]
    # Codes come with their scales; what belongs to a weight makes up for itself.
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
        array = as_array(value, path) if hasattr(value, "detach") else np.asarray(value)
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
        values[name] = array
    new = {**values, **narrowed(wanted, widened(values))}
    for name, _, dtype, _ in wanted:
        if dtype in ("int8", "uint8") and values[name].dtype == dtype:
            # As they are, rather than decoded and encoded.
            new[name], new[name + SCALE] = values[name], values[name + SCALE]
    return [(target, new[name].astype(target.dtype)) for name, target in own.items()]

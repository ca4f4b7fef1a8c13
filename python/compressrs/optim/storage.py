"""Optimizer files: one safetensors file for all state, with a JSON header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compressrs._arrays import Array
from compressrs._files import load_tensors, save_tensors
from compressrs._json import parse_json

FORMAT = "compressrs.optim"
#: Version of the file format. Version 1 had no names, masks or checksum and is rejected.
VERSION = "2"


def save(path: Path, rule: str, state_dict: dict[str, Any]) -> None:
    """Write a state dict of the optimizer class named `rule`."""
    arrays, rest = pack(state_dict)
    metadata = {"format": FORMAT, "version": VERSION, "rule": rule}
    metadata |= {name: json.dumps(value) for name, value in rest.items()}
    save_tensors(path, arrays, metadata)


def load(path: Path, rule: str) -> dict[str, Any]:
    """Read a state dict of the optimizer class named `rule`.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not such a file.
    """
    arrays, metadata = load_tensors(path, {"format": FORMAT, "version": VERSION, "rule": rule})
    try:
        keys = ("class", "param_groups", "codes", "complex")
        rest = {key: parse_json(metadata[key]) for key in keys if key in metadata}
        return unpack(arrays, rest)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a valid optimizer file: {error}") from error


def pack(state_dict: Mapping[str, Any]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Split a state dict into its arrays by name and the remainder, which JSON can hold."""
    arrays = {
        f"state.{i}.{name}": np.asarray(array)
        for i, buffers in state_dict["state"].items()
        for name, array in buffers.items()
    }
    arrays |= {f"mask.{i}": mask for i, mask in state_dict["masks"].items()}
    return arrays, {k: v for k, v in state_dict.items() if k not in ("state", "masks")}


def unpack(arrays: Mapping[str, Array], rest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state dict that `pack` split.

    Raises
    ------
    ValueError
        If a name was not made by `pack`.
    """
    state: dict[int, dict[str, Array]] = {}
    masks: dict[int, Array] = {}
    for key, array in arrays.items():
        kind, index, *name = key.split(".")
        if kind == "mask" and not name:
            masks[int(index)] = array
        elif kind == "state" and len(name) == 1:
            state.setdefault(int(index), {})[name[0]] = array
        else:
            raise ValueError(f"{key!r} is not the name of an optimizer's array")
    return {"state": state, "masks": masks, **rest}

"""Optimizers in files: one safetensors file for all state, with a JSON header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compressrs._files import load_tensors, save_tensors

FORMAT = "compressrs.optim"
VERSION = "1"


def save(path: Path, rule: str, state_dict: dict[str, Any]) -> None:
    """Write a state dict of the optimizer class named `rule`."""
    arrays = {
        f"state.{i}.{name}": array
        for i, buffers in state_dict["state"].items()
        for name, array in buffers.items()
    }
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "rule": rule,
        "param_groups": json.dumps(state_dict["param_groups"]),
    }
    if "codes" in state_dict:
        metadata["codes"] = json.dumps(state_dict["codes"])
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
    state: dict[int, dict[str, Any]] = {}
    try:
        groups = json.loads(metadata["param_groups"])
        for key, array in arrays.items():
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = array
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} holds no state of an optimizer: {error}") from error
    loaded = {"state": state, "param_groups": groups}
    if "codes" in metadata:
        loaded["codes"] = json.loads(metadata["codes"])
    return loaded

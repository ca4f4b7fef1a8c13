"""Optimizers in files: one safetensors file for all state, with a JSON header."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from compressrs._arrays import dtype_of
from compressrs._files import write_atomically

FORMAT = "compressrs.optim"
VERSION = "1"

#: Names of dtypes in the format and in NumPy.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I8": "int8",
    "U8": "uint8",
}


def save(path: Path, rule: str, state_dict: dict[str, Any]) -> None:
    """Write a state dict of the optimizer class named `rule`."""
    numpy_format = _safetensors()
    arrays = {
        f"state.{i}.{name}": np.asarray(array, order="C")
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
    write_atomically(path, numpy_format.save(arrays, metadata))


def load(path: Path, rule: str) -> dict[str, Any]:
    """Read a state dict of the optimizer class named `rule`.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not such a file.
    """
    _safetensors()
    import safetensors

    data = path.read_bytes()
    try:
        # Not with its reader of NumPy arrays, which does not know bfloat16.
        arrays = {
            name: np.frombuffer(view["data"], dtype_of(_DTYPES[view["dtype"]])).reshape(
                view["shape"]
            )
            for name, view in safetensors.deserialize(data)  # type: ignore[no-untyped-call]
        }
        # Its own reader of metadata wants a file; the format is 8 bytes of length,
        # then JSON, and has been checked just now.
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
    for key, need in (("format", FORMAT), ("version", VERSION), ("rule", rule)):
        if metadata.get(key) != need:
            raise ValueError(
                f"{path} must have {key} {need!r} to be loaded here, got {metadata.get(key)!r}"
            )
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


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "saving and loading optimizers needs safetensors: pip install 'compressrs[save]'"
        ) from None
    module: ModuleType = safetensors.numpy
    return module

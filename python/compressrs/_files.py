"""Writing files so that nothing is lost, and safetensors files with metadata."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np

from compressrs._arrays import Array, dtype_of

#: Names of dtypes in safetensors and in NumPy.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file, all of it or nothing: under another name, then renamed.

    Raises
    ------
    OSError
        If it could not be written; what was there before still is.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def save_tensors(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, all of it or nothing.

    Raises
    ------
    OSError
        If it could not be written; what was there before still is.
    ModuleNotFoundError
        If safetensors is not installed.
    """
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    write_atomically(path, _safetensors().save(contiguous, dict(metadata)))


def load_tensors(path: Path, need: Mapping[str, str]) -> tuple[dict[str, Array], dict[str, str]]:
    """Read arrays, which cannot be written to, and metadata from a safetensors file.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not complete, or its metadata lacks what is in `need`.
    ModuleNotFoundError
        If safetensors is not installed.
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
        metadata = header(data)[0].get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
    require(path, metadata, need)
    return arrays, metadata


def require(path: Path, metadata: Mapping[str, str], need: Mapping[str, str]) -> None:
    """Raise a ValueError if the file's metadata lack what is in `need`."""
    for key, value in need.items():
        if metadata.get(key) != value:
            raise ValueError(
                f"{path} must have {key} {value!r} to be loaded here, got {metadata.get(key)!r}"
            )


def header(data: bytes | memoryview) -> tuple[dict[str, dict[str, str]], int]:
    """Return a safetensors file's header, whose own reader wants a file, and its end.

    The format is 8 bytes of length, then JSON.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    content: dict[str, dict[str, str]] = json.loads(bytes(data[8:end]))
    return content, end


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "files of arrays need safetensors: pip install 'compressrs[save]'"
        ) from None
    module: ModuleType = safetensors.numpy
    return module

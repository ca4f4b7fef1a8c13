"""Tensors of ONNX as arrays, and arrays as tensors; data inside and outside of the file."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

from compressrs._arrays import Array, dtype_of
from compressrs._paths import open_regular, require_regular

#: Dtypes of ONNX that are dtypes of NumPy as well, or bfloat16.
DTYPES = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT8: "int8",
    TensorProto.INT16: "int16",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.UINT8: "uint8",
    TensorProto.UINT16: "uint16",
    TensorProto.UINT32: "uint32",
    TensorProto.UINT64: "uint64",
    TensorProto.BOOL: "bool",
}

#: Fields of a tensor that may hold its numbers.
_DATA = (
    "raw_data",
    "float_data",
    "double_data",
    "int32_data",
    "int64_data",
    "uint64_data",
    "string_data",
)

#: Bytes that are copied at a time.
_CHUNK = 1 << 24

#: Data outside of the model begin at multiples of this, so that readers can map them.
_PAGE = 4096


@dataclass(frozen=True)
class External:
    """Where the data of a tensor are, outside of the model."""

    path: Path
    offset: int
    length: int

    @contextlib.contextmanager
    def opened(self) -> Iterator[Any]:
        """Open the file at the first byte.

        Raises
        ------
        OSError
            If it cannot be read.
        ValueError
            If it is shorter than the tensor needs.
        """
        with open_regular(self.path) as file:
            size = os.fstat(file.fileno()).st_size
            if size < self.offset + self.length:
                raise ValueError(
                    f"{self.path} must have {self.offset + self.length} bytes, as the model says, "
                    f"got {size}"
                )
            file.seek(self.offset)
            yield file

    def chunks(self) -> Iterator[bytes]:
        """Yield the data piece by piece.

        Raises
        ------
        OSError, ValueError
            If the file cannot be read, or is shorter than the tensor needs.
        """
        with self.opened() as file:
            left = self.length
            while left:
                part = file.read(min(left, _CHUNK))
                if not part:
                    raise ValueError(f"{self.path} was truncated while it was read")
                left -= len(part)
                yield part

    def read(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the data as bytes, which can be written to."""
        with self.opened() as file:
            data = np.empty(self.length, np.uint8)
            if file.readinto(data) != self.length:
                raise ValueError(f"{self.path} was truncated while it was read")
        return data


@dataclass
class Stored:
    """A tensor of a model that is read when it is needed, and kept as an array from then on."""

    name: str
    tensor: Any
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    external: External | None = None
    array: Array | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Array:
        """Return the array; what is written into it is what the model has from now on.

        Raises
        ------
        OSError, ValueError
            If its data cannot be read.
        """
        if self.array is None:
            self.array, self.external = self.decoded(), None
            # From now on, the array has the data.
            for field in _DATA:
                self.tensor.ClearField(field)
        return self.array

    def decoded(self) -> Array:
        """Return an array of its own with the data."""
        if self.array is not None:
            copied: Array = self.array.copy()
            return copied
        if self.external is not None:
            data = self.external.read()
        elif self.tensor.HasField("raw_data"):
            data = np.frombuffer(bytearray(self.tensor.raw_data), np.uint8)
        else:
            array: Array = np.array(numpy_helper.to_array(self.tensor), self.dtype)
            shaped: Array = array.reshape(self.shape)
            return shaped
        decoded: Array = data.view(self.dtype).reshape(self.shape)
        return decoded

    def parts(self) -> Iterator[bytes | memoryview]:
        """Yield the data piece by piece, as they are stored outside of a model."""
        if self.array is None and self.external is not None:
            yield from self.external.chunks()
        elif self.array is None and self.tensor.HasField("raw_data"):
            yield self.tensor.raw_data
        else:
            array = self.decoded() if self.array is None else self.array
            flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            yield memoryview(flat)


def stored(tensor: Any, name: str, folder: Path | None) -> Stored | str:
    """Return a tensor after checking it, or the reason why it cannot be an array.

    Raises
    ------
    ValueError
        If it is damaged: its data are not as long as its shape says, or are not where it says.
    """
    shape = tuple(tensor.dims)
    if any(length < 0 for length in shape):
        raise ValueError(f"{name} must have lengths of 0 or more, got the shape {shape}")
    if tensor.HasField("segment"):
        return "a tensor in segments"
    kind = tensor.data_type
    if kind not in DTYPES:
        known = TensorProto.DataType.values()
        if kind not in known or kind == TensorProto.UNDEFINED:
            raise ValueError(f"{name} must have a data type that onnx knows, got number {kind}")
        return f"of data type {TensorProto.DataType.Name(kind)}"
    dtype = dtype_of(DTYPES[kind])
    need = math.prod(shape) * dtype.itemsize
    if tensor.data_location == TensorProto.EXTERNAL:
        external = _external(tensor, name, folder, need)
        return Stored(name, tensor, shape, dtype, external)
    given = [field for field in _DATA if len(getattr(tensor, field))]
    if len(given) > 1:
        raise ValueError(f"{name} must have its data once, got {given}")
    if given == ["raw_data"] or (not given and tensor.HasField("raw_data")):
        got = len(tensor.raw_data)
        if got != need:
            raise ValueError(
                f"{name} must have {need} bytes of data, {dtype} of shape {shape}, got {got}"
            )
        return Stored(name, tensor, shape, dtype)
    count = len(getattr(tensor, given[0])) if given else 0
    if count != math.prod(shape) or (given and given[0] != _field(kind)):
        raise ValueError(
            f"{name} must have {math.prod(shape)} numbers, {dtype} of shape {shape}, "
            f"got {count}" + (f" in {given[0]}" if given else "")
        )
    return Stored(name, tensor, shape, dtype)


def _field(kind: int) -> str:
    """Return the field in which numbers of a type are, if they are not bytes."""
    fields = {
        TensorProto.FLOAT: "float_data",
        TensorProto.DOUBLE: "double_data",
        TensorProto.INT64: "int64_data",
        TensorProto.UINT32: "uint64_data",
        TensorProto.UINT64: "uint64_data",
    }
    return fields.get(kind, "int32_data")


def _external(tensor: Any, name: str, folder: Path | None, need: int) -> External:
    given = {entry.key: entry.value for entry in tensor.external_data}
    location = given.get("location", "")
    if folder is None:
        raise ValueError(
            f"{name} has external data, in {location!r}; load the model by its path, or read them "
            "with onnx.load_external_data_for_model first"
        )
    if not isinstance(location, str) or "\0" in location:
        raise ValueError(f"{name} must have its data in a file, got the location {location!r}")
    path = Path(location)
    # A model from elsewhere must not name the files of the machine that it is read on.
    inside = location and not path.is_absolute() and ".." not in path.parts
    target = folder / path
    root = os.path.realpath(folder)
    if not inside or os.path.commonpath([root, os.path.realpath(target)]) != root:
        raise ValueError(
            f"{name} must have its data in the folder of the model, got the location {location!r}"
        )
    try:
        offset, length = int(given.get("offset", 0)), int(given.get("length", need))
    except ValueError:
        raise ValueError(f"{name} must have offset and length in numbers, got {given}") from None
    if offset < 0 or length != need:
        raise ValueError(f"{name} must have {need} bytes of data, got {length} at offset {offset}")
    try:
        before = target.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"{target}, with the data of {name}, does not exist") from None
    require_regular(before.st_mode, target, f", with the data of {name}")
    size = before.st_size
    if offset + length > size:
        raise ValueError(
            f"{target} must have {offset + length} bytes, for {name}, got {size}: it is truncated"
        )
    return External(target, offset, length)


def data_type(dtype: np.dtype[Any]) -> int:
    """Return ONNX's number of a dtype."""
    return next(int(kind) for kind, name in DTYPES.items() if name == dtype.name)


def embed(tensor: Any, source: Stored) -> None:
    """Write the data into a tensor of another copy of the model."""
    if source.array is None and source.external is None:
        return
    clear(tensor)
    tensor.raw_data = b"".join(source.parts())


def refer(tensor: Any, location: str, offset: int, length: int) -> None:
    """Have a tensor say where its data are."""
    clear(tensor)
    tensor.data_location = TensorProto.EXTERNAL
    place: Mapping[str, Any] = {"location": location, "offset": offset, "length": length}
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))


def clear(tensor: Any) -> None:
    """Remove the data of a tensor, and where they are."""
    for field in (*_DATA, "external_data", "data_location"):
        tensor.ClearField(field)


def aligned(offset: int) -> int:
    """Return the next offset at which the data of a tensor may begin."""
    return -(-offset // _PAGE) * _PAGE

"""Writing files so that nothing is lost, and safetensors files with metadata and a checksum."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from compressrs._arrays import Array, dtype_of

try:
    import fcntl
except ModuleNotFoundError:  # on Windows
    fcntl = None  # type: ignore[assignment]

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

#: Key of the checksum in a file's metadata: BLAKE2b of the whole file, with zeros in its place.
CHECKSUM = "blake2b"
_NO_CHECKSUM = "0" * 32

#: What names of files that are being written begin and end with.
_TEMPORARY = ".compressrs-", ".tmp"


def write_atomically(path: Path, *parts: bytes | memoryview, exclusive: bool = False) -> None:
    """Write a file, all of it or nothing: under another name, then renamed.

    A symbolic link is followed, and a file that is replaced keeps its permissions. What
    a process that was killed had begun to write is removed by the next one that writes to
    the same path.

    Parameters
    ----------
    path : path
    parts : bytes
        The content, piece by piece.
    exclusive : bool, default False
        Raise FileExistsError, instead of replacing a file that is there.

    Raises
    ------
    OSError
        If it could not be written, or `path` is a device, a pipe or a folder; what was
        there before still is.
    """
    path = Path(os.path.realpath(path))
    try:
        before = os.stat(path)
    except FileNotFoundError:
        before = None
    if before is not None and not stat.S_ISREG(before.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    # A short name, since the file's own may be as long as names can be.
    digest = hashlib.blake2b(os.fsencode(path.name), digest_size=8).hexdigest()
    prefix = f"{_TEMPORARY[0]}{digest}-"
    _remove_abandoned(path.parent, prefix)
    with _temporary(path.parent, prefix) as (name, file):
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
        if before is not None:
            # Where the system has permissions, those of the file that is replaced.
            os.chmod(name, stat.S_IMODE(before.st_mode))
        if fcntl is None:
            file.close()  # Windows renames no file that is open.
        if exclusive:
            _rename_exclusively(name, path)
        else:
            os.replace(name, path)
    _sync_folder(path.parent)


@contextlib.contextmanager
def _temporary(folder: Path, prefix: str) -> Iterator[tuple[Path, BinaryIO]]:
    """Make a file to write to, locked while it is open; it must be renamed."""
    while True:
        name = folder / f"{prefix}{secrets.token_hex(8)}{_TEMPORARY[1]}"
        # The system takes the process's umask off the permissions of a new file.
        with open(name, "xb") as file:
            try:
                locked = _lock(file)
            except OSError:  # a file system without locks
                locked = True
            # Until it is locked, another writer may take it for abandoned.
            if not (locked and name.exists()):
                continue
            try:
                yield name, file
            except BaseException:
                file.close()
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise
            return


def _remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove files of processes that were killed while they wrote."""
    for name in folder.glob(f"{prefix}*{_TEMPORARY[1]}"):
        # What another process removes first, or is not ours to remove, is passed over.
        with contextlib.suppress(OSError):
            if fcntl is None:
                os.unlink(name)  # Windows removes no file that is open.
                continue
            with open(name, "rb") as file:
                if _lock(file):
                    os.unlink(name)


def _lock(file: BinaryIO) -> bool:
    """Lock a file until it is closed; return whether no other process has it locked."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _rename_exclusively(name: Path, path: Path) -> None:
    """Rename a file to a name that must not be taken."""
    try:
        os.link(name, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
        os.replace(name, path)
    else:
        os.unlink(name)


def _sync_folder(folder: Path) -> None:
    """Have a folder's new entry outlast a power failure, where folders can be synced."""
    if os.name == "posix":
        # The file is complete under its name by now; not all file systems sync folders.
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def save_tensors(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, all of it or nothing, with a checksum of all its bytes.

    Raises
    ------
    OSError
        If it could not be written; what was there before still is.
    ModuleNotFoundError
        If safetensors is not installed.
    """
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    data = require_safetensors().save(contiguous, {**metadata, CHECKSUM: _NO_CHECKSUM})
    start, end = _checksum_place(data, _NO_CHECKSUM)
    view = memoryview(data)
    checksum = hashlib.blake2b(data, digest_size=16).hexdigest().encode()
    write_atomically(path, view[:start], checksum, view[end:])


def load_tensors(path: Path, need: Mapping[str, str]) -> tuple[dict[str, Array], dict[str, str]]:
    """Read arrays, which cannot be written to, and metadata from a safetensors file.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not complete, its metadata lacks what is in `need`, or its checksum is
        another.
    ModuleNotFoundError
        If safetensors is not installed.
    """
    require_safetensors()
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
        metadata = _metadata(header(data)[0])
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
    require(path, metadata, need)
    require_checksum(path, data, metadata)
    return arrays, metadata


def map_tensors(
    path: Path, layout: Mapping[str, tuple[tuple[int, ...], Any]], need: Mapping[str, str]
) -> dict[str, Array]:
    """Map arrays of these shapes and dtypes (-1: any length) into memory, not to be written to.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        As `load_tensors`, or if an array has another shape or dtype.
    """
    try:
        data = np.memmap(path, np.uint8, mode="r")
        content, start = header(data.data)
        metadata = _metadata(content)
        arrays = {}
        for name, (shape, dtype) in layout.items():
            entry = content[name]
            low, high = entry["data_offsets"]
            if dtype_of(_DTYPES[entry["dtype"]]) != dtype:
                raise ValueError(f"{name} has the dtype {entry['dtype']}, not {dtype}")
            arrays[name] = data[start + low : start + high].view(dtype).reshape(shape)
            if arrays[name].shape != tuple(entry["shape"]):
                raise ValueError(f"{name} has the shape {entry['shape']}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    require(path, metadata, need)
    require_checksum(path, data.data, metadata)
    return arrays


def require(path: Path, metadata: Mapping[str, Any], need: Mapping[str, str]) -> None:
    """Raise a ValueError if the file's metadata lack what is in `need`."""
    for key, value in need.items():
        if metadata.get(key) != value:
            raise ValueError(
                f"{path} must have {key} {value!r} to be loaded here, got {metadata.get(key)!r}"
            )


def require_checksum(path: Path, data: bytes | memoryview, metadata: Mapping[str, str]) -> None:
    """Raise a ValueError if a file's bytes have another checksum than its metadata say."""
    try:
        start, end = _checksum_place(data, metadata[CHECKSUM])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is damaged: it has no checksum") from None
    view = memoryview(data)
    digest = hashlib.blake2b(view[:start], digest_size=16)
    digest.update(_NO_CHECKSUM.encode())
    digest.update(view[end:])
    if digest.hexdigest() != metadata[CHECKSUM]:
        raise ValueError(f"{path} is damaged: its checksum is another")


def _checksum_place(data: bytes | memoryview, checksum: str) -> tuple[int, int]:
    """Return where in a safetensors file its checksum begins and ends."""
    end = 8 + int.from_bytes(data[:8], "little")
    entry = f'"{CHECKSUM}":"{checksum}"'.encode()
    start = bytes(data[:end]).find(entry)
    if start < 0 or len(checksum) != len(_NO_CHECKSUM):
        raise ValueError("no checksum")
    return start + len(entry) - 1 - len(checksum), start + len(entry) - 1


def header(data: bytes | memoryview) -> tuple[dict[str, Any], int]:
    """Return a safetensors file's header, whose own reader wants a file, and its end.

    The format is 8 bytes of length, then JSON.

    Raises
    ------
    ValueError
        If it is not a JSON object.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    content = parse_json(bytes(data[8:end]))
    if not isinstance(content, dict):
        raise ValueError("the header is not an object")
    return content, end


def parse_json(text: str | bytes) -> Any:
    """Return what JSON says.

    Raises
    ------
    ValueError
        If it is none, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def _metadata(content: Mapping[str, Any]) -> dict[str, str]:
    metadata = content.get("__metadata__")
    if not isinstance(metadata, dict):
        raise ValueError("it has no metadata")
    return metadata


def require_safetensors() -> ModuleType:
    """Return safetensors' functions for NumPy.

    Raises
    ------
    ModuleNotFoundError
        If safetensors is not installed.
    """
    try:
        import safetensors.numpy
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "files of arrays need safetensors: pip install 'compressrs[save]'"
        ) from None
    module: ModuleType = safetensors.numpy
    return module

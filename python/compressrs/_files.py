"""Atomic file writes, and safetensors files with metadata and a checksum."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from compressrs._arrays import Array, dtype_of
from compressrs._json import parse_json
from compressrs._paths import open_regular, read_regular, require_replaceable

try:
    import fcntl
except ModuleNotFoundError:  # on Windows
    fcntl = None  # type: ignore[assignment]

#: Dtype names in safetensors, and their NumPy equivalents.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}

#: Key of the checksum in a file's metadata: BLAKE2b of the whole file, with zeros in its place.
CHECKSUM = "blake2b"
_NO_CHECKSUM = "0" * 32

#: Prefix and suffix of the names of temporary files.
_TEMPORARY = ".compressrs-", ".tmp"


def write_atomically(path: Path, *parts: bytes | memoryview, exclusive: bool = False) -> None:
    """Write a file atomically: to a temporary file, which is then renamed.

    Symbolic links are followed, and a replaced file keeps its permissions. Temporary files of
    killed processes are removed by the next process that writes to the same path.

    Parameters
    ----------
    path : path
    parts : bytes
        The content in consecutive pieces.
    exclusive : bool, default False
        Raise FileExistsError instead of replacing an existing file.

    Raises
    ------
    OSError
        If it could not be written, or `path` is a device, a pipe or a folder; an existing
        file is then unchanged.
    """
    stream_atomically(path, parts, exclusive=exclusive)


def stream_atomically(
    path: Path, parts: Iterable[bytes | memoryview], *, exclusive: bool = False
) -> None:
    """Write a file as `write_atomically` does, of parts that are made one after another."""
    given, path = path, Path(os.path.realpath(path))
    try:
        _write(path, parts, exclusive)
    except OSError as error:
        # Name the given file instead of the temporary one.
        raise OSError(error.errno, error.strerror, str(given)) from None


def _write(path: Path, parts: Iterable[bytes | memoryview], exclusive: bool) -> None:
    require_replaceable(path)
    # A short name, since the file's own name may already have the maximum length.
    digest = hashlib.blake2b(os.fsencode(path.name), digest_size=8).hexdigest()
    prefix = f"{_TEMPORARY[0]}{digest}-"
    _remove_abandoned(path.parent, prefix)
    with _temporary(path.parent, prefix) as (name, file):
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
        if fcntl is None:
            file.close()  # Windows cannot rename an open file.
        publish(name, path, exclusive=exclusive)


def publish(name: Path, path: Path, *, exclusive: bool = False) -> None:
    """Rename a synced file or folder, keeping the permissions of a file that it replaces.

    Raises
    ------
    OSError
        If it cannot be renamed, or what is at `path` is not a regular file; with `exclusive`,
        FileExistsError if `path` exists.
    """
    before = require_replaceable(path)
    if before is not None:
        os.chmod(name, stat.S_IMODE(before.st_mode))
    if exclusive:
        _rename_exclusively(name, path)
    else:
        os.replace(name, path)
    sync_folder(path.parent)


@contextlib.contextmanager
def _temporary(folder: Path, prefix: str) -> Iterator[tuple[Path, BinaryIO]]:
    """Yield a temporary file, locked while it is open; the caller must rename it."""
    while True:
        name = folder / f"{prefix}{secrets.token_hex(8)}{_TEMPORARY[1]}"
        # The system applies the process's umask to the permissions of a new file.
        with open(name, "xb") as file:
            try:
                locked = lock(file)
            except OSError:  # a file system without locks
                locked = True
            # Before it is locked, another writer may consider it abandoned.
            if not (locked and name.exists()):
                continue
            try:
                yield name, file
            except BaseException:
                # Closing writes what is left, which a full disk refuses once more.
                with contextlib.suppress(OSError):
                    file.close()
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise
            return


def _remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove temporary files of processes that were killed while writing."""
    for name in folder.glob(f"{prefix}*{_TEMPORARY[1]}"):
        # Files that another process removes first, or that may not be removed, are skipped.
        with contextlib.suppress(OSError):
            if fcntl is None:
                os.unlink(name)  # Windows cannot remove an open file.
                continue
            with open_regular(name) as file:
                if lock(file):
                    os.unlink(name)


def lock(file: BinaryIO | int) -> bool:
    """Lock an open file until it is closed; return False if another process holds the lock."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sync(path: Path) -> None:
    """Make the content of a file, or of a folder with all that is in it, durable.

    Raises
    ------
    OSError
        If a file could not be written.
    """
    if path.is_dir():
        for part in path.iterdir():
            sync(part)
        sync_folder(path)
        return
    # Windows syncs only what is open for writing.
    with open_regular(path, "rb" if os.name == "posix" else "rb+") as file:
        os.fsync(file.fileno())


def _rename_exclusively(name: Path, path: Path) -> None:
    """Rename a file, raising FileExistsError if the new name exists."""
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


def sync_folder(folder: Path) -> None:
    """Make a folder's new entry durable, where folders can be synced."""
    if os.name == "posix":
        # The file is already complete under its name; not all file systems sync folders.
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def save_tensors(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically, with a checksum over all its bytes.

    Files of the same arrays and metadata have the same bytes.

    Raises
    ------
    OSError
        If it could not be written; an existing file is then unchanged.
    ModuleNotFoundError
        If safetensors is not installed.
    """
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    data = require_safetensors().save(contiguous, {**metadata, CHECKSUM: _NO_CHECKSUM})
    head, body = _with_sorted_metadata(data)
    start, end = _checksum_place(head, _NO_CHECKSUM)
    digest = hashlib.blake2b(head, digest_size=16)
    digest.update(body)
    write_atomically(path, head[:start], digest.hexdigest().encode(), head[end:], body)


def _with_sorted_metadata(data: bytes) -> tuple[bytes, memoryview]:
    """Return header and data of a safetensors file; safetensors writes metadata in any order."""
    content, start = header(data)
    content["__metadata__"] = dict(sorted(_metadata(content).items()))
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    # The data begins at a multiple of 8.
    text = text.ljust(-(-len(text) // 8) * 8)
    return len(text).to_bytes(8, "little") + text, memoryview(data)[start:]


def load_tensors(path: Path, need: Mapping[str, str]) -> tuple[dict[str, Array], dict[str, str]]:
    """Return the arrays, which are read-only, and the metadata of a safetensors file.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is incomplete, its metadata does not match `need`, or its checksum does not
        match.
    ModuleNotFoundError
        If safetensors is not installed.
    """
    require_safetensors()
    import safetensors

    data = read_regular(path)
    if known := other_format(data):
        raise ValueError(f"{path} is not a complete safetensors file: it is {known}")
    try:
        # Not with safetensors.numpy, which does not support bfloat16.
        arrays = {
            name: np.frombuffer(view["data"], dtype_of(_DTYPES[view["dtype"]])).reshape(
                view["shape"]
            )
            for name, view in safetensors.deserialize(data)  # type: ignore[no-untyped-call]
        }
        content = header(data)[0]
        # Files that other programs write often have none.
        metadata = _metadata(content) if "__metadata__" in content else {}
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
    require(path, metadata, need)
    require_checksum(path, data, metadata)
    return arrays, metadata


#: First bytes of files that are taken for safetensors files.
_FORMATS = {
    b"PK\x03\x04": "a zip archive, as NumPy's .npz and PyTorch's .pt; np.load or torch.load read "
    "its arrays, and load_state_dict or safetensors.numpy.save_file take them",
    b"\x93NUMPY": "a NumPy .npy, which np.load reads",
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file",
    b"\x80\x02": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
}


def other_format(data: bytes) -> str | None:
    """Return what a file is whose header is none of safetensors, by its first bytes."""
    # A header of safetensors begins with its length, then a brace.
    if data[8:9] == b"{":
        return None
    return next((known for start, known in _FORMATS.items() if data.startswith(start)), None)


def map_tensors(
    path: Path, layout: Mapping[str, tuple[tuple[int, ...], Any]], need: Mapping[str, str]
) -> dict[str, Array]:
    """Return read-only memory maps of arrays with these shapes (-1: any length) and dtypes.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        As for `load_tensors`, or if an array has another shape or dtype.
    """
    try:
        with open_regular(path) as file:
            data = np.memmap(file, np.uint8, mode="r")
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
    """Raise a ValueError if the file's metadata does not match `need`."""
    for key, value in need.items():
        if metadata.get(key) != value:
            got = metadata.get(key)
            raise ValueError(
                f"{path} must have {key} {value!r} in its metadata to be loaded here, got "
                + (repr(got) if key in metadata else "none: something else has written it")
            )


def require_checksum(
    path: Path,
    data: bytes | memoryview,
    metadata: Mapping[str, str],
    rest: Iterable[memoryview] = (),
) -> None:
    """Raise a ValueError if a file's bytes do not match the checksum in its metadata.

    `data` is the file, or its header if `rest` is what follows.
    """
    try:
        start, end = _checksum_place(data, metadata[CHECKSUM])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is damaged: it has no checksum") from None
    view = memoryview(data)
    digest = hashlib.blake2b(view[:start], digest_size=16)
    digest.update(_NO_CHECKSUM.encode())
    digest.update(view[end:])
    for part in rest:
        digest.update(part)
    if digest.hexdigest() != metadata[CHECKSUM]:
        raise ValueError(f"{path} is damaged: its checksum is another")


def restore_checksum(path: Path, start: int) -> None:
    """Write the checksum of a file whose content was changed, with a header up to `start`.

    Raises
    ------
    OSError
        If it cannot be read or written.
    ValueError
        If it has no checksum.
    """
    with open_regular(path, "rb+") as file:
        data = file.read(start)
        old = _metadata(header(data)[0])[CHECKSUM]
        begin, end = _checksum_place(data, old)
        digest = hashlib.blake2b(data[:begin], digest_size=16)
        digest.update(_NO_CHECKSUM.encode())
        digest.update(data[end:])
        while part := file.read(1 << 24):
            digest.update(part)
        file.seek(begin)
        file.write(digest.hexdigest().encode())


def _checksum_place(data: bytes | memoryview, checksum: str) -> tuple[int, int]:
    """Return the start and end offset of the checksum in a safetensors file."""
    end = 8 + int.from_bytes(data[:8], "little")
    entry = f'"{CHECKSUM}":"{checksum}"'.encode()
    start = bytes(data[:end]).find(entry)
    if start < 0 or len(checksum) != len(_NO_CHECKSUM):
        raise ValueError("no checksum")
    return start + len(entry) - 1 - len(checksum), start + len(entry) - 1


def header(data: bytes | memoryview) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file in memory, and its end offset.

    The format is 8 bytes of length, then JSON. safetensors' own reader requires a file.

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


def _metadata(content: Mapping[str, Any]) -> dict[str, str]:
    metadata = content.get("__metadata__")
    if not isinstance(metadata, dict):
        raise ValueError("it has no metadata")
    return metadata


def require_safetensors() -> ModuleType:
    """Return the module of safetensors' functions for NumPy.

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

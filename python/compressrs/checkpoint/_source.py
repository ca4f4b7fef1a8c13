"""Sources of tensors: a file, an index with its shards, or a folder."""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressrs._checks import file_path
from compressrs._json import parse_json
from compressrs._paths import descriptor_of, open_regular
from compressrs.checkpoint import _format
from compressrs.checkpoint._format import Entry, Header

INDEX = ".safetensors.index.json"
SUFFIX = ".safetensors"

#: Suffixes of weight files, in this and other formats.
WEIGHTS = (SUFFIX, INDEX, ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx")

#: Maximum size of an index; that of a model with a million tensors is 100 MB.
MAX_INDEX = 1 << 28

Bytes = NDArray[np.uint8]


class File:
    """An open safetensors file that any thread can read from.

    Parameters
    ----------
    path : path
    mapped : bool, default False
        Map the file into memory. This is faster for repeated reads, but if another process
        truncates the file, this one is killed (SIGBUS), whereas pread raises an error.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not a complete safetensors file.
    """

    def __init__(self, path: Path, mapped: bool = False) -> None:
        self.path = path
        self._map: mmap.mmap | None = None
        self._descriptor = descriptor_of(path, os.O_RDONLY)
        try:
            self._state = self._stat()
            self.header: Header = _format.parse(path, self._descriptor, self._state[0])
            if mapped:
                self._map = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        # One that was opened again in another process is closed by nobody else.
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()

    def _stat(self) -> tuple[int, int, int]:
        state = os.fstat(self._descriptor)
        return state.st_size, state.st_mtime_ns, state.st_ino

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return self._state[0]

    @property
    def fingerprint(self) -> list[int]:
        """Size and modification time, which identify the file's version."""
        return list(self._state[:2])

    def read(self, begin: int, end: int) -> Bytes:
        """Return a range of bytes, relative to the start of the data.

        Raises
        ------
        OSError
            If they cannot be read.
        ValueError
            If the file has become shorter.
        """
        if self._descriptor < 0:
            raise ValueError(f"{self.path} was closed, and cannot be read")
        start = self.header.start
        if self._map is not None:
            part = np.frombuffer(self._map, np.uint8, end - begin, start + begin)
            part.flags.writeable = False
            return part
        out = np.empty(end - begin, np.uint8)
        view = out.data
        done = 0
        while done < len(view):
            n = os.preadv(self._descriptor, [view[done:]], start + begin + done)
            if n == 0:
                raise ValueError(f"{self.path} was truncated while it was read")
            done += n
        return out

    def raw_header(self) -> bytes:
        """Return the header's bytes, including the length prefix."""
        return _format.read_at(self._descriptor, 0, self.header.start)

    def check_unchanged(self) -> None:
        """Raise a ValueError if the file has been modified since it was opened."""
        if self._stat() != self._state:
            raise ValueError(f"{self.path} was changed while it was read")

    def __reduce__(self) -> tuple[Any, ...]:
        # Opened again where it is needed, which must be the same version of it.
        return _reopened, (self.path.absolute(), self._map is not None, self.fingerprint)

    def close(self) -> None:
        """Close the file. Arrays that are views of its mapping stay valid."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        # The mapping is released with the last array that refers to it.
        self._map = None


def _reopened(path: Path, mapped: bool, fingerprint: list[int]) -> File:
    file = File(path, mapped)
    if file.fingerprint != fingerprint:
        file.close()
        raise ValueError(f"{path} was changed while it was read, or is another file here")
    return file


@dataclass(frozen=True)
class Located:
    """A tensor and the file that contains it."""

    file: File
    entry: Entry


def equal(a: Located, b: Located) -> bool:
    """Whether two tensors have the same bytes."""
    n, step = a.entry.nbytes, 1 << 24
    return n == b.entry.nbytes and all(
        np.array_equal(
            a.file.read(a.entry.begin + i, a.entry.begin + min(n, i + step)),
            b.file.read(b.entry.begin + i, b.entry.begin + min(n, i + step)),
        )
        for i in range(0, n, step)
    )


class Files:
    """The open safetensors files of a checkpoint, and its side files.

    Parameters
    ----------
    path : path
        A file, the index of a sharded checkpoint, or a folder that contains either. Weight
        files in the folder that the index does not name are an error.
    mapped : bool, default False
    name : str, default "path"
        What the argument is called in errors.

    Raises
    ------
    OSError
        If something cannot be read.
    ValueError
        If a file is damaged, or files, index and folder contradict each other.
    """

    def __init__(
        self, path: str | os.PathLike[str], mapped: bool = False, name: str = "path"
    ) -> None:
        self.path = file_path(path, name)
        self.files: list[File] = []
        self.index: Path | None = None
        #: Metadata of the index.
        self.index_metadata: dict[str, object] = {}
        self.tensors: dict[str, Located] = {}
        try:
            self._open(mapped)
        except BaseException:
            self.close()
            raise

    def _open(self, mapped: bool) -> None:
        if self.path.is_dir():
            paths, weights = self._of_folder()
        elif self.path.name.endswith(".json"):
            paths, weights = self._of_index(self.path)
        else:
            paths, weights = [self.path], None
        for path in paths:
            try:
                file = File(path, mapped)
            except FileNotFoundError as error:
                if self.index is None:
                    raise
                raise ValueError(f"{self.index} names the file {path.name}, missing") from error
            self.files.append(file)
            for entry in file.header.entries:
                if weights is not None and weights.get(entry.name) != path.name:
                    said = weights.get(entry.name)
                    raise ValueError(
                        f"{path.name} holds {entry.name!r}, which {self.index} says is "
                        + ("nowhere" if said is None else f"in {said}")
                    )
                if entry.name in self.tensors:
                    other = self.tensors[entry.name].file.path.name
                    raise ValueError(f"both {other} and {path.name} hold {entry.name!r}")
                self.tensors[entry.name] = Located(file, entry)
        for name, shard in (weights or {}).items():
            if name not in self.tensors:
                raise ValueError(
                    f"{self.index} says that {shard} holds {name!r}, which it does not"
                )

    def _of_folder(self) -> tuple[list[Path], dict[str, str] | None]:
        names = sorted(path for path in self.path.iterdir() if not path.name.startswith("."))
        found = [path for path in names if path.name.endswith(SUFFIX)]
        indexes = [path for path in names if path.name.endswith(INDEX)]
        if len(indexes) > 1:
            raise ValueError(f"{self.path} holds several indexes; name one: {_listed(indexes)}")
        if not indexes:
            if not found:
                raise ValueError(f"{self.path} holds no safetensors file")
            return found, None
        paths, weights = self._of_index(indexes[0])
        stray = [path for path in found if path not in paths]
        if stray:
            raise ValueError(
                f"{self.path} holds {_listed(stray)}, which {indexes[0].name} does not name; "
                "pass the index itself to leave them out"
            )
        return paths, weights

    def _of_index(self, index: Path) -> tuple[list[Path], dict[str, str]]:
        self.index = index
        with open_regular(index) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_INDEX:
                raise ValueError(f"{index} is longer than {MAX_INDEX} bytes")
            data = file.read(size)
        try:
            content = parse_json(data)
        except ValueError as error:
            raise ValueError(f"{index} is not JSON: {error}") from None
        weights = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(weights, dict) or not weights:
            raise ValueError(f"{index} must have a weight_map of names to files")
        for name, shard in weights.items():
            if not isinstance(shard, str) or not _is_plain(shard):
                raise ValueError(
                    f"{index} says that {name!r} is in {shard!r}, which is no safetensors file "
                    "in its own folder"
                )
        metadata = content.get("metadata", {})
        self.index_metadata = metadata if isinstance(metadata, dict) else {}
        return [index.parent / shard for shard in sorted(set(weights.values()))], weights

    @property
    def paths(self) -> list[Path]:
        """The index, if there is one, and the files of tensors."""
        index = [] if self.index is None else [self.index]
        return [*index, *(file.path for file in self.files)]

    @property
    def folder(self) -> Path | None:
        """The folder, if the checkpoint was given as a folder."""
        if self.path.is_dir():
            return self.path
        return None if self.index is None else self.index.parent

    def side_files(self) -> Iterator[Path]:
        """Yield relative paths of the other files of the folder: configuration, tokenizer, licence.

        Hidden files and weights in other formats are excluded.
        """
        if self.folder is None:
            return
        for top, folders, names in os.walk(self.folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                path = Path(top, name)
                if not name.startswith(".") and not name.endswith(WEIGHTS) and path.is_file():
                    yield path.relative_to(self.folder)

    def copy_side_files(self, target: Path) -> None:
        """Copy the side files to another folder."""
        for path in self.side_files():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.folder / path if self.folder else path, target / path)

    def check_unchanged(self) -> None:
        """Raise a ValueError if a file has been modified since it was opened."""
        for file in self.files:
            file.check_unchanged()

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            file.close()

    def __enter__(self) -> Files:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _is_plain(name: str) -> bool:
    """Whether a name is a plain file name with the safetensors suffix, on every platform."""
    return name.endswith(SUFFIX) and not name.startswith(".") and not set(name) & set("/\\:\0")


def _listed(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)

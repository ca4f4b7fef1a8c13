"""State in files that are mapped into memory, for more state than there is memory."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from compressrs._arrays import Array

#: Arrays begin at multiples of this, as vectors do.
_ALIGNMENT = 64

#: Zeros that are written at once where files cannot be reserved.
_CHUNK = 1 << 20


def checked_folder(path: Path) -> Path:
    """Return the path of a folder.

    Raises
    ------
    ValueError
        If there is none.
    """
    if not path.is_dir():
        raise ValueError(f"offload must be a folder, got {path}")
    return path


def offloaded(buffers: Sequence[Mapping[str, Array]], folder: Path) -> list[dict[str, Array]]:
    """Return copies of arrays in one file, which is mapped into memory.

    The file has no name once it is mapped, or is removed with the last array: nothing is left
    behind, and nothing reads it after a process was killed.

    Parameters
    ----------
    buffers : sequence of dict of array
    folder : path

    Raises
    ------
    OSError
        If the file cannot be made, or the file system has no room for it.
    """
    places, size = [], 0
    for arrays in buffers:
        for array in arrays.values():
            places.append(size)
            size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    if size == 0:
        return [dict(arrays) for arrays in buffers]
    memory = _mapped(size, folder)
    where = iter(places)
    copies = []
    for arrays in buffers:
        copied: dict[str, Array] = {}
        for name, array in arrays.items():
            start = next(where)
            if array.nbytes == 0:
                copied[name] = array
                continue
            copied[name] = np.ndarray(array.shape, array.dtype, memory, start)
            copied[name][...] = array
        copies.append(copied)
    return copies


def _mapped(size: int, folder: Path) -> mmap.mmap:
    number, path = tempfile.mkstemp(prefix=".compressrs-state-", dir=folder)
    try:
        # A write to a map that the disk has no room for would end the process.
        _reserve(number, size)
        memory = mmap.mmap(number, size)
    except BaseException:
        os.close(number)
        os.unlink(path)
        raise
    os.close(number)
    try:
        os.unlink(path)
    except OSError:  # Windows removes no file that is open
        weakref.finalize(memory, _remove, path)
    return memory


def _reserve(number: int, size: int) -> None:
    """Give a file its size, with room on the disk for all of it."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(number, 0, size)
        return
    written = 0
    while written < size:
        written += os.write(number, bytes(min(_CHUNK, size - written)))


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)

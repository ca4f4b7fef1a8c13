"""What a path leads to: only regular files are opened or replaced, and none that is read."""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

_KINDS = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


def open_regular(path: str | os.PathLike[str], mode: str = "rb") -> BinaryIO:
    """Open a file in a binary mode, without waiting for a pipe.

    Raises
    ------
    OSError
        If it cannot be opened, or is not a regular file, such as a folder or a pipe.
    """
    return cast("BinaryIO", open(path, mode, opener=_opened))


def descriptor_of(path: str | os.PathLike[str], flags: int) -> int:
    """Open a file as `os.open` does, with the errors of `open_regular`; the caller closes it."""
    return _opened(os.fspath(path), flags | getattr(os, "O_BINARY", 0))


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a file, with the errors of `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def require_replaceable(path: Path) -> os.stat_result | None:
    """Return the state of the regular file that a new one will replace, None without one.

    Raises
    ------
    OSError
        If there is something else at `path`, such as a folder, a device or a pipe.
    """
    try:
        state = os.stat(path)
    except FileNotFoundError:
        return None
    require_regular(state.st_mode, path)
    return state


def require_regular(mode: int, path: str | os.PathLike[str], about: str = "") -> None:
    """Raise an error unless the mode of what is at `path` is that of a regular file.

    Raises
    ------
    OSError
        Which says what it is instead, then `about`.
    """
    if stat.S_ISREG(mode):
        return
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "special file")
    number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
    raise OSError(number, f"not a regular file but a {kind}{about}", os.fspath(path))


def require_distinct(
    written: Mapping[str, str | os.PathLike[str]],
    read: Mapping[str, Iterable[str | os.PathLike[str]]],
    kept: Mapping[str, str | os.PathLike[str]] | None = None,
) -> None:
    """Raise an error if a file to be written is one that is read, or is written for another reason.

    Links of both kinds are followed. Names that differ by case alone are the same.

    Parameters
    ----------
    written : dict of str to path
        Files and folders that are made anew, by the names of their parameters.
    read : dict of str to list of path
        What each parameter leads to, none of which may be written.
    kept : dict of str to path, optional
        Folders that files of names of their own are added to.

    Raises
    ------
    ValueError
        Which names both parameters.
    """
    seen = {_identity(path): name for name, paths in read.items() for path in paths}
    for name, path in (*written.items(), *(kept or {}).items()):
        first = seen.setdefault(_identity(path), name)
        if first != name:
            raise ValueError(f"{name} must be another file than {first}, got {os.fspath(path)}")
    inner = {**written, **(kept or {})}
    for outer, folder in written.items():
        for name, path in inner.items():
            if Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents:
                raise ValueError(
                    f"{name} must not be in {outer}, which is made anew, got {os.fspath(path)}"
                )


def _identity(path: str | os.PathLike[str]) -> tuple[Any, ...]:
    """Return what is equal for two paths to the same file, be it made already or not."""
    real = Path(os.path.realpath(path))
    try:
        state = os.stat(real)
    except OSError:
        # Some file systems take names that differ by case, or by how accents are put, as one.
        name = unicodedata.normalize("NFC", real.name).casefold()
        return (None, name) if real == real.parent else (_identity(real.parent), name)
    return state.st_dev, state.st_ino


def _opened(path: str, flags: int) -> int:
    try:
        # Neither a pipe nor a device is waited for.
        descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
    except OSError as error:
        # Folders that would be written to, sockets, and pipes that nobody reads.
        if error.errno not in (errno.EISDIR, errno.ENXIO, errno.EACCES):
            raise
        require_replaceable(Path(path))
        raise
    try:
        require_regular(os.fstat(descriptor).st_mode, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor

"""The work folder beside the destination: unfinished files, a journal, and publication."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compressrs import _files
from compressrs._json import parse_json
from compressrs._paths import descriptor_of, read_regular, require_replaceable

#: Bytes of a file's name at most.
_LONGEST = 255

#: Bytes that a run needs to begin.
_STARTING = 1 << 12


class Work:
    """The folder to which a run writes before its output is published atomically.

    Parameters
    ----------
    destination : path
        The file or folder to be created.
    fingerprint : dict
        Source, recipe and settings of the run. Only an identical run can be resumed.
    resume : bool
        Resume an interrupted run, if there is one. Otherwise its files are removed.

    Raises
    ------
    OSError
        If the folder cannot be created, another run is using it, or `destination` is there and
        not a regular file.
    ValueError
        If the run to resume was a different one.
    """

    def __init__(self, destination: Path, fingerprint: dict[str, Any], resume: bool) -> None:
        require_replaceable(destination)
        self.destination = destination
        self.folder = work_folder(destination)
        said = json.dumps(fingerprint, sort_keys=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = descriptor_of(self.folder / "lock", os.O_RDWR | os.O_CREAT)
        try:
            self._acquire()
            with disk_full_said(destination, lambda: _STARTING):
                self._begin(said, resume)
        except BaseException:
            os.close(self._lock)
            raise

    def _begin(self, said: str, resume: bool) -> None:
        resume = resume and (self.folder / "journal").exists()
        try:
            self.records = self._resume(said) if resume else self._start(said)
            self._journal = descriptor_of(self.folder / "journal", os.O_WRONLY | os.O_APPEND)
        except OSError:
            if not resume:
                shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _acquire(self) -> None:
        if not _files.lock(self._lock):
            raise OSError(
                errno.EBUSY, f"another run is writing {self.destination}; wait until it ends"
            )

    def _start(self, said: str) -> list[dict[str, Any]]:
        for path in self.folder.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.folder / "journal").write_text(said + "\n", encoding="utf-8")
        return []

    def _resume(self, said: str) -> list[dict[str, Any]]:
        path = self.folder / "journal"
        lines = read_regular(path).split(b"\n")
        if not lines or lines[0].decode("utf-8", "replace") != said:
            raise ValueError(
                f"the interrupted run to {self.destination} had another source, recipe or "
                "settings; repeat those, or start anew without resume"
            )
        records = []
        length = len(lines[0]) + 1
        # The last line may be truncated; its operation then did not complete.
        for line in lines[1:-1]:
            try:
                records.append(parse_json(line))
            except ValueError:
                break
            length += len(line) + 1
        os.truncate(path, length)
        return records

    def keep(self, records: list[dict[str, Any]]) -> None:
        """Truncate the journal to these records."""
        path = self.folder / "journal"
        lines = read_regular(path).split(b"\n")[: 1 + len(records)]
        os.truncate(path, sum(len(line) + 1 for line in lines))

    def record(self, what: dict[str, Any]) -> None:
        """Append a record to the journal."""
        line = json.dumps(what, separators=(",", ":")).encode() + b"\n"
        view = memoryview(line)
        while view:
            view = view[os.write(self._journal, view) :]

    def publish(self, path: Path) -> None:
        """Move a file or folder to the destination after syncing it to disk."""
        _files.sync(path)
        _files.publish(path, self.destination)

    def close(self, remove: bool) -> None:
        """Release the folder, and remove it unless the run can be resumed."""
        os.close(self._journal)
        if remove:
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def work_folder(destination: Path) -> Path:
    """Return the folder for the unfinished files of a destination, beside it."""
    name = f".{destination.name}.compressrs"
    if len(os.fsencode(name)) > _LONGEST:
        digest = hashlib.blake2b(os.fsencode(destination.name), digest_size=8)
        name = f".{digest.hexdigest()}.compressrs"
    return destination.parent / name


@contextmanager
def disk_full_said(
    destination: Path, needed: Callable[[], int], then: str = "start anew"
) -> Iterator[None]:
    """Add the required and the available space, and what to do then, to disk-full errors."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(destination.parent).free
        raise OSError(
            error.errno,
            f"the disk of {destination.parent} is full: about {needed():,} bytes are needed, "
            f"{free:,} are free; make room and {then}",
        ) from error

"""The work folder beside the destination: unfinished files, a journal, and publication."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class Work:
    """The folder to which a run writes before its output is published atomically.

    Parameters
    ----------
    destination : path
        The file or folder to be created.
    fingerprint : dict
        Source, recipe and settings of the run. Only an identical run can be resumed.
    resume : bool
        Resume an interrupted run. Otherwise its files are removed.

    Raises
    ------
    OSError
        If the folder cannot be created, or another run is using it.
    ValueError
        If there is no run to resume, or it was a different one.
    """

    def __init__(self, destination: Path, fingerprint: dict[str, Any], resume: bool) -> None:
        self.destination = destination
        self.folder = destination.parent / f".{destination.name}.compressrs"
        said = json.dumps(fingerprint, sort_keys=True)
        if resume and not (self.folder / "journal").exists():
            raise ValueError(f"there is no interrupted run to {destination} to resume")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._acquire()
            self.records = self._resume(said) if resume else self._start(said)
            self._journal = os.open(self.folder / "journal", os.O_WRONLY | os.O_APPEND)
        except BaseException:
            os.close(self._lock)
            raise

    def _acquire(self) -> None:
        try:
            import fcntl
        except ModuleNotFoundError:  # on Windows, concurrent runs are not detected
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OSError(
                errno.EBUSY, f"another run is writing {self.destination}; wait until it ends"
            ) from error

    def _start(self, said: str) -> list[dict[str, Any]]:
        for path in self.folder.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.folder / "journal").write_text(said + "\n", encoding="utf-8")
        return []

    def _resume(self, said: str) -> list[dict[str, Any]]:
        path = self.folder / "journal"
        lines = path.read_bytes().split(b"\n")
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
                records.append(json.loads(line))
            except ValueError:
                break
            length += len(line) + 1
        os.truncate(path, length)
        return records

    def keep(self, records: list[dict[str, Any]]) -> None:
        """Truncate the journal to these records."""
        path = self.folder / "journal"
        lines = path.read_bytes().split(b"\n")[: 1 + len(records)]
        os.truncate(path, sum(len(line) + 1 for line in lines))

    def record(self, what: dict[str, Any]) -> None:
        """Append a record to the journal."""
        line = json.dumps(what, separators=(",", ":")).encode() + b"\n"
        view = memoryview(line)
        while view:
            view = view[os.write(self._journal, view) :]

    def publish(self, path: Path, mode: int | None = None) -> None:
        """Move a file or folder to the destination after syncing it to disk."""
        if path.is_dir():
            for part in path.rglob("*"):
                sync(part)
        elif mode is not None:
            os.chmod(path, mode)
        sync(path)
        os.replace(path, self.destination)
        sync(self.destination.parent)

    def close(self, remove: bool) -> None:
        """Release the folder, and remove it unless the run can be resumed."""
        os.close(self._journal)
        if remove:
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def sync(path: Path) -> None:
    """Sync a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot sync folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def new_mode(destination: Path) -> int:
    """Return the permissions of an existing file, or those of a new file."""
    if destination.is_file():
        return destination.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


@contextmanager
def disk_full_said(destination: Path, needed: Callable[[], int]) -> Iterator[None]:
    """Add the required and the available space to disk-full errors."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(destination.parent).free
        raise OSError(
            error.errno,
            f"the disk of {destination.parent} is full: about {needed():,} bytes are needed, "
            f"{free:,} are free; make room and resume",
        ) from error


def ahead(calls: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yield the results of calls, running the next call in another thread meanwhile."""
    with ThreadPoolExecutor(1, "compressrs-read") as pool:
        waiting: Future[T] | None = None
        for call in calls:
            following = pool.submit(call)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


class Background:
    """Runs calls in order in another thread, with a queue of at most two."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "compressrs-write")
        self._waiting: list[Future[None]] = []

    def submit(self, call: Callable[[], None]) -> None:
        """Queue a call; raise the exception of an earlier call, if any."""
        if len(self._waiting) >= 2:
            self._waiting.pop(0).result()
        self._waiting.append(self._pool.submit(call))

    def wait(self) -> None:
        """Wait for all calls; raise the first exception, if any."""
        while self._waiting:
            self._waiting.pop(0).result()

    def close(self) -> None:
        """Stop the thread after the queued calls."""
        self._pool.shutdown(wait=True, cancel_futures=True)

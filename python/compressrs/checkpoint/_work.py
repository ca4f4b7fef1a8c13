"""A folder of work beside the destination: unfinished files, a journal, and their publication."""

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
    """The folder that a run writes to before its output appears as a whole.

    Parameters
    ----------
    destination : path
        The file or folder that comes to be.
    fingerprint : dict
        What the run is: source, recipe, settings. Another run's work is not resumed.
    resume : bool
        Go on with what an interrupted run left. Otherwise that is removed.

    Raises
    ------
    OSError
        If the folder cannot be made, or another run is at work in it.
    ValueError
        If what is to be resumed is of another run, or there is nothing.
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
        except ModuleNotFoundError:  # Windows, where two runs at once are not told apart
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
        # The last line may be cut off: what it was to say has not happened then.
        for line in lines[1:-1]:
            try:
                records.append(json.loads(line))
            except ValueError:
                break
            length += len(line) + 1
        os.truncate(path, length)
        return records

    def keep(self, records: list[dict[str, Any]]) -> None:
        """Forget all records but the first of these."""
        path = self.folder / "journal"
        lines = path.read_bytes().split(b"\n")[: 1 + len(records)]
        os.truncate(path, sum(len(line) + 1 for line in lines))

    def record(self, what: dict[str, Any]) -> None:
        """Note in the journal what is done."""
        line = json.dumps(what, separators=(",", ":")).encode() + b"\n"
        view = memoryview(line)
        while view:
            view = view[os.write(self._journal, view) :]

    def publish(self, path: Path, mode: int | None = None) -> None:
        """Put a file or folder of the work at the destination, once it is on the disk."""
        if path.is_dir():
            for part in path.rglob("*"):
                sync(part)
        elif mode is not None:
            os.chmod(path, mode)
        sync(path)
        os.replace(path, self.destination)
        sync(self.destination.parent)

    def close(self, remove: bool) -> None:
        """Stop working, and remove the folder unless the run is to be resumed."""
        os.close(self._journal)
        if remove:
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems do not sync folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def new_mode(destination: Path) -> int:
    """Return the permissions of a file to be written: those it has, or a new file's."""
    if destination.is_file():
        return destination.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


@contextmanager
def disk_full_said(destination: Path, needed: Callable[[], int]) -> Iterator[None]:
    """Say of an error that the disk is full how much the run needs and how much there is."""
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
    """Yield the results of calls, of which the next runs meanwhile in another thread."""
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
    """Runs calls in order in another thread, two at most waiting."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "compressrs-write")
        self._waiting: list[Future[None]] = []

    def submit(self, call: Callable[[], None]) -> None:
        """Run a call once those before it are done; raise what one of those raised."""
        if len(self._waiting) >= 2:
            self._waiting.pop(0).result()
        self._waiting.append(self._pool.submit(call))

    def wait(self) -> None:
        """Wait for all calls; raise what one raised."""
        while self._waiting:
            self._waiting.pop(0).result()

    def close(self) -> None:
        """End the thread once what waits is done."""
        self._pool.shutdown(wait=True, cancel_futures=True)

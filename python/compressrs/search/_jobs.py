"""Jobs whose results are kept in a folder by content, over several processes."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from compressrs._errors import WorkersKilledError
from compressrs._files import write_atomically
from compressrs._json import parse_json
from compressrs._paths import read_regular
from compressrs._progress import Advance

#: How often jobs are given to new processes after one was killed.
ATTEMPTS = 3


class Job(NamedTuple):
    """A call whose result is JSON, and the hash of all that the result depends on."""

    name: str
    key: str
    call: Callable[..., Any]
    arguments: tuple[Any, ...]


class Cache:
    """Results in a folder, one file each; without a folder nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> Any:
        """Return a result, or None if there is none that is intact."""
        if self.folder is None:
            return None
        try:
            found = parse_json(read_regular(self.folder / f"{key}.json"))
            return found["result"] if found["key"] == key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, result: Any) -> None:
        """Keep a result, atomically."""
        if self.folder is not None:
            text = json.dumps({"key": key, "result": result})
            write_atomically(self.folder / f"{key}.json", text.encode())


def run(jobs: Sequence[Job], cache: Cache, workers: int, advance: Advance) -> dict[str, Any]:
    """Return the result of each job by key; those in the cache are not run.

    Raises
    ------
    RuntimeError
        If processes keep being killed; results so far are in the cache.
    """
    results: dict[str, Any] = {}
    for job in jobs:
        found = cache.get(job.key)
        if found is not None:
            results[job.key] = found
            advance()
    for attempt in range(ATTEMPTS):
        left = {job.key: job for job in jobs if job.key not in results}
        if not left:
            break
        try:
            for key, result in _calls(list(left.values()), workers, advance.begin):
                cache.put(key, result)
                results[key] = result
                advance()
        except BrokenProcessPool as error:
            if attempt == ATTEMPTS - 1:
                names = [job.name for job in left.values() if job.key not in results]
                raise WorkersKilledError(
                    f"processes were killed {ATTEMPTS} times while measuring {', '.join(names[:5])}"
                    "; with less memory used by fewer workers they may not be"
                ) from error
    return results


def _calls(
    jobs: list[Job], workers: int, begin: Callable[[str], None]
) -> Iterator[tuple[str, Any]]:
    """Yield the result of each job by key, as they are ready."""
    if workers == 1 or len(jobs) == 1:
        for job in jobs:
            begin(job.name)
            yield job.key, job.call(*job.arguments)
        return
    # A new interpreter: nothing of this one's threads is in an undefined state there.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        waiting = {pool.submit(job.call, *job.arguments): job for job in jobs}
        try:
            # Of many at once, the first that is not ready is shown.
            begin(jobs[0].name)
            for done in as_completed(waiting):
                yield waiting[done].key, done.result()
                left = next((job for future, job in waiting.items() if not future.done()), None)
                if left is not None:
                    begin(left.name)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise

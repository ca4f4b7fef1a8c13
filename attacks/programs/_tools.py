"""What the scripts share."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: What a program of the user's may see: errors of its own arguments, and of arrays that change.
ERRORS = (TypeError, ValueError, RuntimeError)


def seconds() -> float:
    """Return for how long to attack: the first argument of the script, by default 2 seconds."""
    return float(sys.argv[1]) if len(sys.argv) > 1 else 2.0


@contextmanager
def writers(*changes: Callable[[], object]) -> Iterator[None]:
    """Repeat each change in a thread of its own while the block runs."""
    stop = threading.Event()
    failed: list[BaseException] = []

    def repeat(change: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                change()
                time.sleep(1e-5)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=repeat, args=(change,)) for change in changes]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]


def attack(*calls: Callable[[], object], least: int = 1) -> dict[str, int]:
    """Make the calls for some time, at least some rounds; return how many succeeded, and failed."""
    counts = {"done": 0, "refused": 0}
    end, rounds = time.monotonic() + seconds(), 0
    while rounds < least or time.monotonic() < end:
        rounds += 1
        for call in calls:
            try:
                call()
                counts["done"] += 1
            except ERRORS:
                counts["refused"] += 1
    return counts


def report(counts: dict[str, int], **needed: bool) -> None:
    """Print what happened; require what `needed` says."""
    print(counts)
    for name, wanted in needed.items():
        assert bool(counts[name]) == wanted, (name, counts)


def in_fork(call: Callable[[], Any]) -> None:
    """Make a call in a forked child, which must end well within a minute."""
    child = os.fork()
    if not child:
        status = 1
        try:
            call()
            status = 0
        finally:
            os._exit(status)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, f"the child ended with {status}"
            return
        time.sleep(1e-3)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")

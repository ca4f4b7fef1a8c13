"""Processes that evaluate candidates, of which any may be killed, or take too long."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any

from compressrs._threads import get_num_threads, set_num_threads
from compressrs.search.candidates import Candidate, Outcome, call

#: The longest wait at once, in seconds; the system's clocks have limits.
LONGEST = 3600.0

#: Whether a trial ends early: its number, a step and the value after it.
Ends = Callable[[int, int, float], bool]


class Here:
    """Evaluates candidates in this process, one at a time."""

    def __init__(self, objective: Callable[[Candidate], Any], ends: Ends) -> None:
        self.objective, self.ends = objective, ends
        self._given: list[Candidate] = []

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, candidate: Candidate) -> None:
        """Take a candidate."""
        self._given.append(candidate)

    def finished(self) -> Iterator[tuple[int, Outcome]]:
        """Yield the outcomes of the candidates taken."""
        for candidate in self._given:
            number = candidate.number
            candidate._ends = lambda step, value, number=number: self.ends(number, step, value)
            yield number, call(self.objective, candidate)
        self._given.clear()


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    number: int | None = None
    started: bool = False
    since: float = 0.0


class Processes:
    """Evaluates candidates in processes of its own.

    Raises
    ------
    TypeError
        If the objective cannot be sent to another process.
    """

    def __init__(
        self,
        objective: Callable[[Candidate], Any],
        ends: Ends,
        workers: int,
        timeout: float | None,
    ) -> None:
        try:
            self._objective = pickle.dumps(objective)
        except Exception as error:
            raise TypeError(
                "objective must be a function of a module, which other processes can import, "
                f"with workers > 1 or timeout: {error}"
            ) from None
        self.ends, self.timeout = ends, timeout
        self._threads = max(1, get_num_threads() // workers)
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            self._end(worker)

    def start(self, candidate: Candidate) -> None:
        """Give a candidate to an idle process, or to a new one."""
        for worker in [w for w in self._workers if w.number is None]:
            try:
                worker.connection.send(candidate)
            except OSError:  # it was killed while idle
                self._end(worker)
                continue
            worker.number, worker.started = candidate.number, False
            return
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(theirs, self._objective, self._threads), daemon=True
        )
        process.start()
        # Only the process itself holds the other end then, which closes when it is killed.
        theirs.close()
        worker = _Worker(process, ours, candidate.number)
        self._workers.append(worker)
        with contextlib.suppress(OSError):  # seen when its result is waited for
            ours.send(candidate)

    def finished(self) -> Iterator[tuple[int, Outcome]]:
        """Wait, and yield outcomes that there are.

        Raises
        ------
        RuntimeError
            If processes cannot be started.
        """
        busy = [w for w in self._workers if w.number is not None]
        limits = [w.since + self.timeout for w in busy if w.started and self.timeout is not None]
        rest = max(0.0, min([LONGEST, *(limit - time.monotonic() for limit in limits)]))
        ready = set(wait([w.connection for w in busy], rest))
        for worker in busy:
            assert worker.number is not None
            number = worker.number
            if worker.connection in ready:
                outcome = self._answer(worker, number)
            elif (
                self.timeout is not None
                and worker.started
                and time.monotonic() >= worker.since + self.timeout
            ):
                self._end(worker)
                text = f"timed out after {self.timeout:g} s"
                outcome = Outcome("failed", None, text, self.timeout)
            else:
                continue
            if outcome is not None:
                worker.number = None
                yield number, outcome

    def _answer(self, worker: _Worker, number: int) -> Outcome | None:
        """Read a message of a process; return the outcome if it has one."""
        try:
            kind, *content = worker.connection.recv()
            if kind == "started":
                worker.started, worker.since = True, time.monotonic()
                return None
            if kind == "step":
                worker.connection.send(self.ends(number, *content))
                return None
            return Outcome(*content)
        except (EOFError, OSError):
            pass
        seconds = time.monotonic() - worker.since if worker.started else 0.0
        worker.process.join()
        code = worker.process.exitcode or 0
        self._end(worker)
        if not worker.started:
            raise RuntimeError(
                f"a process ended with exit code {code} before it could evaluate anything; the "
                'main module must be importable, as for multiprocessing with "spawn"'
            )
        how = f"exit code {code}" if code >= 0 else f"signal {_name(-code)}"
        return Outcome("failed", None, f"the process ended with {how}", seconds)

    def _end(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.join()
        worker.connection.close()
        if worker in self._workers:
            self._workers.remove(worker)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _serve(connection: Connection, objective: bytes, threads: int) -> None:
    """Evaluate candidates until the connection closes."""
    # The process that started this one decides what an interrupt means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    set_num_threads(threads)
    function = pickle.loads(objective)

    def ends(step: int, value: float) -> bool:
        connection.send(("step", step, value))
        return bool(connection.recv())

    with contextlib.suppress(EOFError, OSError):
        while True:
            candidate: Candidate = connection.recv()
            connection.send(("started",))
            candidate._ends = ends
            connection.send(("done", *call(function, candidate)))


def _end_with_parent() -> None:
    """End this process when the one that started it has ended, as by a kill."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

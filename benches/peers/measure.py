"""Interleaved timing, since only ratios within a run are meaningful on a shared machine."""

import importlib.util
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

torch = importlib.import_module("torch") if importlib.util.find_spec("torch") else None

# Threads of OpenBLAS and OpenMP spin for up to 100 ms after their work is done and would
# occupy a CPU during the next measurement.
SETTLE = 0.12
WARM_UP = 0.02
TURN = 0.03
ROUNDS = 9

_clock = time.perf_counter


def use_thread_time() -> None:
    """Measure the CPU time of this thread, which other processes hardly change."""
    global _clock
    _clock = time.thread_time


class Target(NamedTuple):
    """A target: our time divided by the peer's is at most `ratio`."""

    peer: str
    ratio: float


def turn(function: Callable[[], object], inner: int) -> list[float]:
    """Return the times of one round of calls, after other threads settled and a warm-up call."""
    time.sleep(SETTLE)
    start = _clock()
    while True:
        function()
        if _clock() - start > WARM_UP:
            break
    times = []
    end = _clock() + TURN
    while True:
        start = _clock()
        for _ in range(inner):
            function()
        now = _clock()
        times.append((now - start) / inner)
        if now > end:
            return times


def medians(
    contenders: dict[str, Callable[[], object]], *, rounds: int = ROUNDS, inner: int = 1
) -> dict[str, float]:
    """Run the contenders in alternation and return the median time of each in seconds."""
    return {name: float(np.median(t)) for name, t in _times(contenders, rounds, inner).items()}


def _times(
    contenders: dict[str, Callable[[], object]], rounds: int, inner: int
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, function in contenders.items():
            times[name] += turn(function, inner)
    return times


def compare(
    title: str,
    contenders: dict[str, Callable[[], object]],
    targets: tuple[Target, ...] = (),
    *,
    inner: int = 1,
) -> dict[str, float]:
    """Run the contenders in alternation and print medians and ratios; the first is ours.

    `inner` calls are timed together, for functions too short for the clock.
    """
    times = _times(contenders, ROUNDS, inner)
    middle = {name: float(np.median(t)) for name, t in times.items()}
    ours = next(iter(middle.values()))
    print(f"\n{title}")
    for name, median in middle.items():
        calls = len(times[name]) * inner
        print(f"  {name:28} {median * 1e6:14,.2f} us {median / ours:8.2f} x ours {calls:>9,} calls")
    for target in targets:
        if target.peer in middle:
            got = ours / middle[target.peer]
            verdict = "met" if got <= target.ratio else "MISSED"
            print(f"  target: at most {target.ratio:.3g} of {target.peer}; {got:.3g}: {verdict}")
    return middle

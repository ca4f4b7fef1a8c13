"""Interleaved timing, since only ratios within a run are meaningful on a shared machine."""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import numpy as np

from compressrs.doctor import Peaks

torch = importlib.import_module("torch") if importlib.util.find_spec("torch") else None

_clock = time.perf_counter


@dataclass
class _Plan:
    """How long is measured."""

    #: Threads of OpenBLAS and OpenMP spin for up to 100 ms after their work is done and would
    #: occupy a CPU during the next measurement.
    settle: float = 0.12
    warm_up: float = 0.02
    turn: float = 0.03
    rounds: int = 9


_plan = _Plan()


def use_thread_time() -> None:
    """Measure the CPU time of this thread, which other processes hardly change."""
    global _clock
    _clock = time.thread_time


def be_quick() -> None:
    """Take fewer and shorter rounds: enough to see that nothing is slow by a factor."""
    _plan.warm_up, _plan.turn, _plan.rounds = 0.0, 0.01, 3


class Target(NamedTuple):
    """A target: our time divided by the peer's is at most `ratio`."""

    peer: str
    ratio: float


class Work(NamedTuple):
    """What a call does at least, of what binds it: a field of `Peaks` and an amount.

    Bytes that are read or written, each counted once, or multiply-adds.
    """

    binds: str
    amount: float


@dataclass
class Result:
    """One comparison, as it is kept in JSON."""

    title: str
    #: Median seconds, ours first.
    seconds: dict[str, float]
    calls: dict[str, int]
    targets: list[dict[str, object]] = field(default_factory=list)
    #: The part of the ceiling that our time reached, and the ceiling's name.
    binds: str | None = None
    fraction: float | None = None


#: The comparisons of this run, by benchmark.
results: dict[str, list[Result]] = {}
_benchmark = ""
_peaks: Peaks | None = None


def begin(benchmark: str, peaks: Peaks) -> None:
    """Keep the comparisons that follow under this name, and compare them with these peaks."""
    global _benchmark, _peaks
    _benchmark, _peaks = benchmark, peaks
    results[benchmark] = []


def current() -> list[dict[str, object]]:
    """Return the comparisons of the current benchmark."""
    return [asdict(result) for result in results[_benchmark]]


def peaks() -> dict[str, float]:
    """Return the peaks that this run is compared with, by name."""
    return _peaks._asdict() if _peaks else {}


def record(title: str, seconds: dict[str, float], work: tuple[Work, ...]) -> None:
    """Keep a comparison whose times were taken elsewhere, ours first.

    Of what it has to do at least, that counts of which it reaches the largest part of the peak.
    """
    result = Result(title, seconds, {})
    ours = next(iter(seconds.values()))
    if _peaks:
        parts = {each.binds: each.amount / ours / getattr(_peaks, each.binds) for each in work}
        result.binds = max(parts, key=lambda name: parts[name])
        result.fraction = parts[result.binds]
    results.setdefault(_benchmark, []).append(result)


def as_dicts() -> dict[str, list[dict[str, object]]]:
    """Return the comparisons of this run."""
    return {name: [asdict(result) for result in found] for name, found in results.items()}


def turn(function: Callable[[], object], inner: int) -> list[float]:
    """Return the times of one round of calls, after other threads settled and a warm-up call."""
    time.sleep(_plan.settle)
    start = _clock()
    while True:
        function()
        if _clock() - start > _plan.warm_up:
            break
    times = []
    end = _clock() + _plan.turn
    while True:
        start = _clock()
        for _ in range(inner):
            function()
        now = _clock()
        times.append((now - start) / inner)
        if now > end:
            return times


def medians(
    contenders: dict[str, Callable[[], object]], *, rounds: int | None = None, inner: int = 1
) -> dict[str, float]:
    """Run the contenders in alternation and return the median time of each in seconds."""
    times = _times(contenders, rounds or _plan.rounds, inner)
    return {name: float(np.median(t)) for name, t in times.items()}


def _once(function: Callable[[], object]) -> float:
    """Return the time of one call."""
    time.sleep(_plan.settle)
    start = _clock()
    function()
    return _clock() - start


def _times(
    contenders: dict[str, Callable[[], object]], rounds: int, inner: int
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(min(rounds, _plan.rounds)):
        for name, function in contenders.items():
            times[name] += turn(function, inner)
    return times


def compare(
    title: str,
    contenders: dict[str, Callable[[], object]],
    targets: tuple[Target, ...] = (),
    *,
    inner: int = 1,
    work: Work | None = None,
    rounds: int | None = None,
    once: tuple[str, ...] = (),
) -> dict[str, float]:
    """Run the contenders in alternation and print medians and ratios; the first is ours.

    `inner` calls are timed together, for functions too short for the clock. Those named in
    `once` take so long that a single call is enough. Ours is shown as a fraction of the ceiling
    that `work` names.
    """
    several = {name: f for name, f in contenders.items() if name not in once}
    times = _times(several, rounds or _plan.rounds, inner)
    times |= {name: [_once(contenders[name])] for name in once}
    middle = {name: float(np.median(t)) for name, t in times.items()}
    result = Result(title, middle, {name: len(t) * inner for name, t in times.items()})
    results.setdefault(_benchmark, []).append(result)
    ours = next(iter(middle.values()))
    print(f"\n{title}")
    for name, median in middle.items():
        calls = result.calls[name]
        print(f"  {name:28} {median * 1e6:14,.2f} us {median / ours:8.2f} x ours {calls:>9,} calls")
    if work and _peaks:
        result.binds = work.binds
        result.fraction = work.amount / ours / getattr(_peaks, work.binds)
        print(f"  {result.fraction:.2f} of the peak of {work.binds.replace('_', ' ')}")
    for target in targets:
        if target.peer in middle:
            got = ours / middle[target.peer]
            met = got <= target.ratio
            result.targets.append({**target._asdict(), "got": got, "met": met})
            verdict = "met" if met else "MISSED"
            print(f"  target: at most {target.ratio:.3g} of {target.peer}; {got:.3g}: {verdict}")
    return middle

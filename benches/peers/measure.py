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
    _plan.warm_up, _plan.turn, _plan.rounds = 0.0, 0.01, 2


class Target(NamedTuple):
    """A target: our time divided by the peer's is at most `ratio`."""

    peer: str
    ratio: float


class Work(NamedTuple):
    """What a call does at least: a field of `Peaks` and an amount.

    Bytes that are read or written, each counted once, or multiply-adds.
    """

    binds: str
    amount: float


def moved(size: float) -> Work:
    """Return the work of reading or writing this many bytes."""
    return Work("copy", size)


def operations(count: float) -> Work:
    """Return the work of operations on float32, two of which are a multiply-add.

    The formula's additions, multiplications, divisions, comparisons, roots and exponentials
    count as one each, however many instructions they take.
    """
    return Work("multiply_adds", count / 2)


@dataclass
class Result:
    """One comparison, as it is kept in JSON."""

    title: str
    #: Median seconds, ours first.
    seconds: dict[str, float]
    calls: dict[str, int]
    #: What a call does at least, by the names of `Peaks`.
    work: dict[str, float] = field(default_factory=dict)
    #: The name of the peak that would take the longest, and the fraction of it that we reached.
    binds: str | None = None
    fraction: float | None = None
    #: The name in the roofline picture, if it is there.
    dot: str | None = None
    #: What each makes of a byte, of coders.
    sizes: dict[str, float] | None = None
    #: Of tables with several columns of cases: which case it is.
    case: dict[str, object] | None = None

    def compare_with(self, peaks: Peaks) -> None:
        """Fill in what binds, and how much of that our time reached."""
        ours = next(iter(self.seconds.values()))
        parts = {name: amount / ours / getattr(peaks, name) for name, amount in self.work.items()}
        if parts:
            self.binds = max(parts, key=lambda name: parts[name])
            self.fraction = parts[self.binds]

    def show(self) -> None:
        """Print times, ratios, and the fraction of the peak."""
        ours = next(iter(self.seconds.values()))
        print(f"\n{self.title}")
        for name, median in self.seconds.items():
            calls = f"{self.calls[name]:>9,} calls" if name in self.calls else ""
            print(f"  {name:28} {median * 1e6:14,.2f} us {median / ours:8.2f} x ours {calls}")
        if self.binds:
            print(f"  {self.fraction:.2f} of the peak of {self.binds.replace('_', ' ')}")


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


def record(
    title: str,
    seconds: dict[str, float],
    work: tuple[Work, ...] = (),
    *,
    calls: dict[str, int] | None = None,
    dot: str | None = None,
    sizes: dict[str, float] | None = None,
    case: dict[str, object] | None = None,
) -> Result:
    """Keep a comparison whose times, ours first, are these."""
    amounts = {each.binds: each.amount for each in work}
    result = Result(title, seconds, calls or {}, amounts, dot=dot, sizes=sizes, case=case)
    if _peaks:
        result.compare_with(_peaks)
    results.setdefault(_benchmark, []).append(result)
    return result


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
    work: tuple[Work, ...] = (),
    rounds: int | None = None,
    once: tuple[str, ...] = (),
    dot: str | None = None,
) -> dict[str, float]:
    """Run the contenders in alternation and print medians and ratios; the first is ours.

    `inner` calls are timed together, for functions too short for the clock. Those named in
    `once` take so long that a single call is enough. Ours is shown as a fraction of what binds
    it by its `work`, in the roofline picture under the name `dot`.
    """
    several = {name: f for name, f in contenders.items() if name not in once}
    times = _times(several, rounds or _plan.rounds, inner)
    times |= {name: [_once(contenders[name])] for name in once}
    middle = {name: float(np.median(times[name])) for name in contenders}
    calls = {name: len(times[name]) * inner for name in contenders}
    result = record(title, middle, work, calls=calls, dot=dot)
    result.show()
    ours = next(iter(middle.values()))
    for peer, ratio in targets:
        if peer in middle:
            target(peer, ours / middle[peer], ratio)
    return middle


def target(peer: str, got: float, ratio: float) -> None:
    """Print whether a fraction of a peer's time is at most this."""
    verdict = "met" if got <= ratio else "MISSED"
    print(f"  target: at most {ratio:.3g} of {peer}; {got:.3g}: {verdict}")

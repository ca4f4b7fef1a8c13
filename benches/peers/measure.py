"""Interleaved timing: only ratios within one run mean anything on a shared machine."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Target(NamedTuple):
    """Our time over the peer's must be at most `ratio`."""

    peer: str
    ratio: float


def compare(
    title: str,
    contenders: dict[str, Callable[[], object]],
    targets: tuple[Target, ...] = (),
    *,
    seconds: float = 4.0,
    inner: int = 1,
) -> dict[str, float]:
    """Time the contenders in turns, print medians and ratios; the first is ours.

    `inner` calls are timed together, for what is too short for the clock.
    """
    for function in contenders.values():
        for _ in range(3):
            function()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(times))]) < 5:
        for name, function in contenders.items():
            start = time.perf_counter()
            for _ in range(inner):
                function()
            times[name].append((time.perf_counter() - start) / inner)
    medians = {name: float(np.median(t)) for name, t in times.items()}
    ours = next(iter(medians.values()))
    print(f"\n{title}  ({len(times[next(iter(times))])} rounds)")
    for name, median in medians.items():
        print(f"  {name:32} {median * 1e6:14,.2f} us   {median / ours:8.2f} x ours")
    for target in targets:
        if target.peer in medians:
            got = ours / medians[target.peer]
            verdict = "met" if got <= target.ratio else "MISSED"
            print(f"  target: at most {target.ratio:.3g} of {target.peer}; {got:.3g}: {verdict}")
    return medians

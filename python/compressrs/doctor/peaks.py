"""What this machine can do at most: the ceilings that kernels are compared with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from compressrs import _core

#: Bytes of each of the two arrays of a copy: beyond the last cache of most machines.
_COPY = 1 << 28
_ROUNDS = 5


class Peaks(NamedTuple):
    """Ceilings, at the instruction set and with the threads in use."""

    #: Bytes a second that a copy reads and writes.
    copy: float
    #: Multiply-adds of float32 a second, in registers.
    multiply_adds: float
    #: Multiply-adds of bytes a second, with operands in the first cache.
    dot_products: float


def peaks() -> Peaks:
    """Measure the ceilings, in about a second: medians of five rounds.

    Returns
    -------
    Peaks
        A copy is `numpy.copyto` by as many threads as kernels use.

    Examples
    --------
    >>> from compressrs.doctor import peaks
    >>> found = peaks()
    >>> found.copy > 0 and found.multiply_adds > 0
    True
    """
    return Peaks(
        _copy(), _per_second(_core.peak_multiply_adds), _per_second(_core.peak_dot_products)
    )


def _per_second(work: Callable[[int], int], seconds: float = 0.03) -> float:
    """Return how much work is done a second, in rounds of about this length."""
    rounds, taken = 1000, 0.0
    while taken < seconds / 4:
        rounds *= 4
        start = time.perf_counter()
        work(rounds)
        taken = time.perf_counter() - start
    rates = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        done = work(rounds)
        rates.append(done / (time.perf_counter() - start))
    return statistics.median(rates)


def _copy() -> float:
    threads = _core.get_num_threads()
    source = np.ones(_COPY, np.uint8)
    target = np.ones(_COPY, np.uint8)
    parts = [slice(i * _COPY // threads, (i + 1) * _COPY // threads) for i in range(threads)]
    rates = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            list(pool.map(lambda part: np.copyto(target[part], source[part]), parts))
            rates.append(2 * _COPY / (time.perf_counter() - start))
    return statistics.median(rates)

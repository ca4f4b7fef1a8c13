"""How fast a few kernels are, as fractions of what binds them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from compressrs import distill, optim, quantize, sparse
from compressrs.doctor.peaks import Peaks

_ROUNDS = 5


class Kernel(NamedTuple):
    """A kernel's time, and the part of a ceiling that it reached."""

    name: str
    seconds: float
    #: The field of `Peaks` that it is compared with.
    binds: str
    #: Work done, in the unit of the ceiling.
    work: float
    fraction: float


def kernels(ceilings: Peaks) -> list[Kernel]:
    """Measure a few kernels, in about three seconds: medians of five rounds.

    Parameters
    ----------
    ceilings : Peaks
        Of `peaks`, from the same moment: on a shared machine they change.

    Returns
    -------
    list of Kernel
        A fraction above 1 means that the data were in a cache.
    """
    found = []
    for name, binds, work, run in _calls():
        run()
        times = []
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        seconds = statistics.median(times)
        fraction = work / seconds / getattr(ceilings, binds)
        found.append(Kernel(name, seconds, binds, work, fraction))
    return found


def _calls() -> list[tuple[str, str, float, Callable[[], object]]]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return rng.standard_normal(shape, np.float32)

    n = 10_000_000
    weights, gradient = normal(n), normal(n)
    adam = optim.AdamW(weights)
    few = optim.AdamW(weights.copy(), state_dtype="int8")
    logits, teacher = normal(1000, 1000), normal(1000, 1000)
    size = 1024
    matrix, x = normal(size, size), normal(size, size)
    int8 = quantize.QuantizedMatrix(quantize.quantize(matrix, quantize.Scheme(bits=8)))
    csr = sparse.CSRMatrix.from_dense(np.where(rng.random((size, size)) < 0.1, matrix, 0))
    return [
        # Reads weights, gradient and two moments; writes all but the gradient.
        ("AdamW, 10 M weights", "copy", 28.0 * n, lambda: adam.step(gradient)),
        ("AdamW, state in 8 bits", "copy", 16.0 * n, lambda: few.step(gradient)),
        (
            "kd_loss, 1,000 x 1,000",
            "copy",
            12.0 * logits.size,
            lambda: distill.kd_loss(logits, teacher, 4.0),
        ),
        ("CSR 1024 x 1024, 90 %, @ 1024", "multiply_adds", csr.nnz * size, lambda: csr @ x),
        (
            "int8 1024 x 1024, 1024 rows",
            "dot_products",
            size**3,
            lambda: int8.linear(x, input="int8"),
        ),
    ]

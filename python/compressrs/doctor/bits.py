"""Whether results have the same bits at every instruction set and number of threads."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressrs import _core, distill, nn, optim, prune, quantize, sparse
from compressrs.optim.base import StateDtype

#: A digest of results for each family.
Digests = dict[str, str]

_STATES: tuple[StateDtype, ...] = ("float32", "int8")
# Enough elements that several threads take part.
_N = 300_000


def digests() -> Digests:
    """Return a digest of the results of each family, at the level and threads in use.

    Inputs are made by exact operations from a bit generator whose stream NumPy guarantees, so
    that only compressrs decides the bits.

    Examples
    --------
    >>> from compressrs.doctor import digests
    >>> sorted(digests())
    ['codec', 'distill', 'nn', 'optim', 'prune', 'quantize', 'sparse']
    """
    found = {}
    for name, results in _FAMILIES.items():
        digest = hashlib.sha256()
        for result in results():
            digest.update(np.ascontiguousarray(result).tobytes())
        found[name] = digest.hexdigest()[:16]
    return found


def check() -> dict[tuple[str, int], Digests]:
    """Return the digests at each level of this machine, with one thread and with three.

    Each is made in a process of its own, since the level is chosen once for a process.

    Raises
    ------
    RuntimeError
        If such a process fails; the message has what it wrote.
    """
    return {
        (level, threads): _in_process(level, threads)
        for level in _core.simd_levels()
        for threads in (1, 3)
    }


def _in_process(level: str, threads: int) -> Digests:
    settings = {"COMPRESSRS_SIMD": level, "COMPRESSRS_NUM_THREADS": str(threads)}
    code = "import json; from compressrs.doctor import digests; print(json.dumps(digests()))"
    # What this process can import, the other can.
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    child = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **settings, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    if child.returncode:
        raise RuntimeError(f"{level} with {threads} thread(s) failed: {child.stderr.strip()}")
    found: Digests = json.loads(child.stdout)
    return found


def _values(*shape: int, seed: int = 0, dtype: type = np.float32) -> NDArray[Any]:
    """Return numbers of [-1, 1), multiples of 2**-23."""
    raw = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    values: NDArray[Any] = (raw >> np.uint64(40)).astype(dtype) / 2**23 - 1
    return values.reshape(shape)


def _optim() -> Iterator[NDArray[Any]]:
    for rule in (optim.SGD, optim.Adam, optim.Lion, optim.Adagrad, optim.RMSprop, optim.Lamb):
        for state in _STATES:
            weights = [_values(_N), _values(70, 30, seed=1)]
            optimizer = rule(weights, lr=0.01, state_dtype=state)
            for step in range(2):
                optimizer.step([_values(*w.shape, seed=step + 2) for w in weights])
            yield from weights


def _prune() -> Iterator[NDArray[Any]]:
    weights = _values(500, 600)
    yield prune.magnitude_mask(weights, sparsity=0.9)
    yield prune.nm_mask(weights, 2, 4)
    statistics = prune.InputStatistics(600, gram=True)
    statistics.update(_values(700, 600, seed=1))
    prune.sparsegpt(weights, statistics, sparsity=0.5)
    yield weights


def _sparse() -> Iterator[NDArray[Any]]:
    weights = _values(500, 600)
    matrix = sparse.CSRMatrix.from_dense(weights, threshold=0.9)
    for columns in (1, 8, 100):
        yield matrix @ _values(600, columns, seed=1)
        yield matrix.T @ _values(500, columns, seed=2)
    yield sparse.sddmm(matrix, _values(500, 40, seed=3), _values(40, 600, seed=4))
    half = matrix.astype(np.float16)
    codes = quantize.QuantizedCSRMatrix.from_csr(matrix)
    blocks = sparse.BSRMatrix.from_dense(weights, (4, 4), 0.999)
    for n in (1, 40):
        x = _values(600, n, seed=5)
        yield half @ x.astype(np.float16)
        yield codes @ x
        yield sparse.sddmm(blocks, weights[:, :n], x.T)


def _distill() -> Iterator[NDArray[Any]]:
    student, teacher = 9 * _values(300, 1000), 9 * _values(300, 1000, seed=1)
    labels = np.arange(300) % 1000
    yield distill.softmax(student, temperature=3.0)
    for loss in (distill.kd_loss, distill.dkd_loss):
        value, gradient = loss(student, teacher, 4.0, labels)
        yield np.float64(value)
        yield gradient


def _quantize() -> Iterator[NDArray[Any]]:
    weights, x = _values(500, 512), _values(40, 512, seed=1)
    for scheme in (
        quantize.Scheme(bits=8),
        quantize.Scheme(bits=4, granularity="group", group_size=32),
    ):
        codes = quantize.quantize(weights, scheme)
        yield codes.dequantize()
        matrix = quantize.QuantizedMatrix(codes)
        yield matrix.linear(x, input="float32")
        yield matrix.linear(x, input="int8")


def _nn() -> Iterator[NDArray[Any]]:
    for layer, x in (
        (nn.Linear(300, 200), _values(100, 300)),
        (nn.Conv2d(6, 26, 3, padding=1), _values(3, 6, 21, 18)),
        (nn.LayerNorm(300), _values(100, 300)),
        (nn.GELU(), _values(_N)),
        (nn.MultiHeadAttention(40, 5), _values(3, 11, 40)),
    ):
        layer.load_state_dict(
            {
                name: _values(*value.shape, seed=i + 1, dtype=value.dtype.type) / 8
                for i, (name, value) in enumerate(layer.state_dict().items())
            }
        )
        y = layer(x)
        yield y
        yield layer.backward(y)


def _codec() -> Iterator[NDArray[Any]]:
    data = _values(_N).view(np.uint8)
    coded = np.frombuffer(_core.encode_planes(data, 4, True), np.uint8)
    yield coded
    decoded = np.empty_like(data)
    _core.decode_planes(coded, 4, True, decoded)
    if not np.array_equal(data, decoded):
        raise RuntimeError("decoding does not give back what was encoded")


_FAMILIES = {
    "codec": _codec,
    "distill": _distill,
    "nn": _nn,
    "optim": _optim,
    "prune": _prune,
    "quantize": _quantize,
    "sparse": _sparse,
}

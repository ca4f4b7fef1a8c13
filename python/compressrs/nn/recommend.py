"""Which storage of a pruned layer is the fastest on this machine."""

from __future__ import annotations

import time
from typing import NamedTuple, TypeAlias

import numpy as np

from compressrs._arrays import Array
from compressrs._checks import number, whole
from compressrs._state import restoring
from compressrs.nn.layer import uniform
from compressrs.nn.linear import Linear, SparseLinear
from compressrs.nn.quantized import QuantizedLinear
from compressrs.nn.quantized_sparse import QuantizedSparseLinear
from compressrs.quantize.scheme import Scheme
from compressrs.quantize.sparse import is_sparse_scheme
from compressrs.sparse import BSRMatrix, CSRMatrix, SparseMatrix

#: Rounds in which all storages are timed in turn, while time is left; the median counts.
_ROUNDS = 7

#: Seconds in all, at most.
_LONGEST = 60

#: A storage is tried if it holds at most so many values for each that is not 0.
_FILL = 4

_BLOCKS = {"bsr_4x4": (4, 4), "bsr_1x16": (1, 16), "bsr_16x1": (16, 1)}


_Stored: TypeAlias = Linear | SparseLinear | QuantizedLinear | QuantizedSparseLinear


class Recommendation(NamedTuple):
    """What `recommend` found.

    Attributes
    ----------
    storage : str
        The fastest: ``"dense"``, ``"csr"``, ``"bsr_4x4"``, ``"bsr_1x16"`` or ``"bsr_16x1"``; with
        a scheme also ``"quantized"`` or ``"quantized_csr"``.
    seconds : dict of float
        The time of a forward pass by storage, of all that were tried.
    layer : Linear, SparseLinear, QuantizedLinear or QuantizedSparseLinear
        The layer in the fastest storage: the given one if that is dense, otherwise a copy.
    """

    storage: str
    seconds: dict[str, float]
    layer: _Stored


def recommend(
    layer: Linear,
    batch: int = 64,
    *,
    threshold: float = 0.0,
    mask: Array | None = None,
    seconds: float = 0.5,
    scheme: Scheme | None = None,
) -> Recommendation:
    """Measure the forward pass in each storage of a layer's weights, by default those without loss.

    Which storage is the fastest depends on the shape, the batch, the positions of the zeros and
    the machine, so it is measured with the current number of threads. Blocks are tried if they
    hold at most four values for each that is kept.

    Parameters
    ----------
    layer : Linear
        A pruned layer. Unchanged.
    batch : int, default 64
        Rows of the inputs, which are random.
    threshold, mask
        What to keep, as in `SparseLinear.from_linear`. Not applied to the dense layer.
    seconds : float, default 0.5
        How long to measure in all, at most 60. Each storage is run in seven rounds; when the time
        is used up, those that were run go no further and the others are run once. Storages are
        made before that, which takes as long as it takes.
    scheme : Scheme, optional
        Also try the weights rounded, dense and sparse: a `QuantizedLinear` and, if the layer is in
        float32 and the scheme one of `compressrs.quantize.QuantizedCSRMatrix`, a
        `QuantizedSparseLinear`.

    Returns
    -------
    Recommendation

    Raises
    ------
    TypeError
        If `layer` is not a `Linear`, or another argument of another type.
    ValueError
        If `batch` is below 1, or `seconds` not above 0 or over 60; for `threshold` and `mask` see
        `CSRMatrix.from_dense <compressrs.sparse.CSRMatrix.from_dense>`.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> layer = cr.nn.Linear(256, 128, rng=0)
    >>> layer.weight[:, 16:] = 0
    >>> found = cr.nn.recommend(layer, batch=32, seconds=0.01)
    >>> sorted(found.seconds)
    ['bsr_16x1', 'bsr_1x16', 'bsr_4x4', 'csr', 'dense']
    >>> found.seconds[found.storage] == min(found.seconds.values())
    True
    """
    if not isinstance(layer, Linear):
        raise TypeError(f"layer must be a Linear, got {type(layer).__name__}")
    batch = whole(batch, "batch", 1)
    seconds = number(seconds, "seconds")
    if not 0 < seconds <= _LONGEST:
        raise ValueError(f"seconds must be above 0 and at most {_LONGEST}, got {seconds}")
    layers: dict[str, _Stored] = {"dense": layer}
    sparse = SparseLinear.from_linear(layer, threshold, mask=mask)
    layers["csr"] = sparse
    for name, weight in _blocks(sparse.weight).items():
        layers[name] = SparseLinear(weight, sparse.bias)
    if scheme is not None:
        layers |= _quantized(layer, sparse, scheme)
    x = uniform(0, 1, (batch, layer.weight.shape[1]), layer.weight.dtype)
    times: dict[str, list[float]] = {name: [] for name in layers}
    turn = seconds / (_ROUNDS * len(layers))
    with restoring() as undo:
        # What a `backward` after this needs of the `forward` before it.
        undo.remember_attributes(layer)
        for candidate in layers.values():
            # Packs the weights that are packed at first.
            candidate.forward(x[:1])
        end = time.perf_counter() + seconds
        for _ in range(_ROUNDS):
            for name, candidate in layers.items():
                if not times[name] or time.perf_counter() < end:
                    times[name].append(_time(candidate, x, turn, end))
    medians = {name: float(np.median(some)) for name, some in times.items()}
    best = min(medians, key=lambda name: medians[name])
    return Recommendation(best, medians, layers[best])


def _quantized(layer: Linear, sparse: SparseLinear, scheme: Scheme) -> dict[str, _Stored]:
    """Return the layer with its weights in codes, dense and, if there are such codes, sparse."""
    if not isinstance(scheme, Scheme):
        raise TypeError(f"scheme must be a Scheme, got {type(scheme).__name__}")
    found: dict[str, _Stored] = {"quantized": QuantizedLinear.from_linear(layer, scheme)}
    if is_sparse_scheme(scheme) and layer.weight.dtype == np.float32:
        found["quantized_csr"] = QuantizedSparseLinear.from_sparse(sparse, scheme)
    return found


def _blocks(weight: CSRMatrix) -> dict[str, SparseMatrix]:
    """Return the matrix in blocks, where these hold few values more."""
    found: dict[str, SparseMatrix] = {}
    dense, pattern = weight.to_dense(), weight.pattern()
    for name, (rows, columns) in _BLOCKS.items():
        if weight.shape[0] % rows or weight.shape[1] % columns:
            continue
        blocks = pattern.reshape(
            weight.shape[0] // rows, rows, weight.shape[1] // columns, columns
        ).any(axis=(1, 3))
        if int(blocks.sum()) * rows * columns <= _FILL * weight.nnz:
            mask = blocks.repeat(rows, axis=0).repeat(columns, axis=1)
            found[name] = BSRMatrix.from_dense(dense, (rows, columns), mask=mask)
    return found


def _time(layer: _Stored, x: Array, seconds: float, end: float) -> float:
    """Return the median time of a forward pass, after one that counts only if none follows.

    None is begun after `end`.
    """
    start = time.perf_counter()
    layer.forward(x)
    now = time.perf_counter()
    first, start = now - start, now
    times: list[float] = []
    while now < end and (not times or now - start < seconds):
        before = time.perf_counter()
        layer.forward(x)
        now = time.perf_counter()
        times.append(now - before)
    return float(np.median(times or [first]))

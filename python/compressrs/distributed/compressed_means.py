"""Means of gradients that cost fewer bytes than the gradients have."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from compressrs import prune
from compressrs._arrays import Array, bfloat16
from compressrs._checks import choice, positive, share, whole
from compressrs.distributed.averaging import (
    GradientMean,
    finite_mean,
    mean_in_place,
    mean_of,
    saturated,
)
from compressrs.distributed.communicator import array_descriptions, prepared
from compressrs.distributed.partition import shares
from compressrs.distributed.pieces import gather_arrays

#: Elements with a common scale in 8 bits.
BLOCK = 256


class RoundedMean(GradientMean):
    r"""The mean of gradients that are sent in bfloat16 or in 8 bits, stochastically rounded.

    Gradients are rounded before they are added, and their mean before it is sent back. What
    rounding leaves is added to the next gradient (error feedback), so that it is not lost:

    .. math:: s_t = \text{round}(g_t + e_t), \quad e_{t+1} = g_t + e_t - s_t

    In 8 bits, blocks of 256 elements have a common scale, their largest magnitude by 127. Values
    that would round beyond the largest finite one become this one. If there are float64 gradients
    all are computed in float64, and what a rank sends to another in bfloat16 has a common power of
    two, since bfloat16 has the range of float32.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or Communicator, optional
    dtype : {"bfloat16", "int8"}, default "bfloat16"
        2 bytes, or 1 byte and 1/64, for each element, instead of 4.
    rng : int, default 0
        Seed of the rounding.

    References
    ----------
    Alistarh et al., "QSGD", arXiv 1610.02132; Karimireddy et al., "Error feedback fixes SignSGD",
    arXiv 1901.09847.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> rounded = cr.distributed.RoundedMean(dtype="int8")
    >>> g = np.linspace(-1, 1, 5, dtype=np.float32)
    >>> bool(abs(rounded.mean(g) - g).max() <= 1 / 127)
    True
    """

    def __init__(
        self, comm: Any = None, dtype: Literal["bfloat16", "int8"] = "bfloat16", *, rng: int = 0
    ) -> None:
        super().__init__(comm)
        self.dtype = choice(dtype, "dtype", ("bfloat16", "int8"))
        if self.dtype == "bfloat16":
            bfloat16()
        self.rng = whole(rng, "rng", 0)

    def _mean(self, arrays: list[Array]) -> list[Array]:
        comm = self.comm
        dtype = self._dtype(arrays)
        others = [r for r in range(comm.size) if r != comm.rank]
        with prepared(comm, "mean"):
            flat = np.concatenate([a.reshape(-1).astype(dtype) for a in arrays])
            residual, of_mean = self._errors(flat.size, dtype)
            # Parts of whole blocks.
            blocks = shares(-(-flat.size // BLOCK), comm.size)
            parts = [slice(b.start * BLOCK, min(b.stop * BLOCK, flat.size)) for b in blocks]
            own = parts[comm.rank]
            random = np.random.default_rng([self.rng, self.step_count, comm.rank])
            flat = _plus_error(flat, residual)
            sent = [self._round(flat[part], random) for part in parts]
            with np.errstate(invalid="ignore"):
                for part, codes in zip(parts, sent, strict=True):
                    residual[part] = flat[part] - self._decode(codes, part.stop - part.start, dtype)
            received = [sent[comm.rank]] * comm.size
            for r in others:
                received[r] = self._empty(own.stop - own.start, dtype)
        comm.start_exchange(
            [sent[r] if r in others else [] for r in range(comm.size)],
            [received[r] if r in others else [] for r in range(comm.size)],
        )()
        with prepared(comm, "mean"):
            decoded = [self._decode(codes, own.stop - own.start, dtype) for codes in received]
            mean = _plus_error(mean_of(decoded), of_mean[own])
            codes = self._round(mean, random)
            with np.errstate(invalid="ignore"):
                of_mean[own] = mean - self._decode(codes, mean.size, dtype)
            for errors in (residual, of_mean):
                # What was not finite is in the mean, and shall not stay.
                errors[~np.isfinite(errors)] = 0
            all_codes = [
                codes if r == comm.rank else self._empty(part.stop - part.start, dtype)
                for r, part in enumerate(parts)
            ]
        gather_arrays(comm, [(r, a) for r, each in enumerate(all_codes) for a in each])
        means, start = [], 0
        with prepared(comm, "mean"):
            for part, each in zip(parts, all_codes, strict=True):
                flat[part] = self._decode(each, part.stop - part.start, dtype)
            for array in arrays:
                values = flat[start : start + array.size].reshape(array.shape)
                with np.errstate(over="ignore"):
                    narrowed = values.astype(array.dtype)
                means.append(saturated(narrowed, np.isfinite(values)))
                start += array.size
        return means

    @staticmethod
    def _dtype(arrays: list[Array]) -> np.dtype[Any]:
        """Return the dtype in which all gradients are computed."""
        return np.result_type(np.float32, *{a.dtype for a in arrays})

    def _errors(self, size: int, dtype: np.dtype[Any]) -> tuple[Array, Array]:
        """Return what is left of the gradients, and of their mean."""
        errors = self._kept.setdefault("errors", [np.zeros(size, dtype) for _ in range(2)])
        return errors[0], errors[1]

    def _check_kept(self, arrays: list[Array]) -> None:
        if "errors" not in self._kept:
            return
        kept = self._kept["errors"][0]
        size = sum(a.size for a in arrays)
        if (kept.size, kept.dtype) != (size, self._dtype(arrays)):
            raise ValueError(
                f"grads must have {kept.size} elements, computed in {kept.dtype}, as in the first "
                f"call, got {size}, computed in {self._dtype(arrays)}"
            )

    def _empty(self, size: int, dtype: np.dtype[Any]) -> list[Array]:
        if self.dtype == "int8":
            return [np.empty(size, np.int8), np.empty(-(-size // BLOCK), dtype)]
        exponent = [np.empty(1, np.int16)] if dtype == np.float64 else []
        return [np.empty(size, np.uint16), *exponent]

    def _round(self, values: Array, random: np.random.Generator) -> list[Array]:
        """Return codes, and scales or, of float64 in bfloat16, a common power of two."""
        with np.errstate(invalid="ignore", over="ignore", divide="ignore", under="ignore"):
            if self.dtype == "bfloat16":
                return self._round_to_bfloat16(values, random)
            padded = np.zeros(-(-values.size // BLOCK) * BLOCK, values.dtype)
            padded[: values.size] = values
            rows = padded.reshape(-1, BLOCK)
            scales = abs(rows).max(axis=1, initial=0) / values.dtype.type(127)
            scaled = rows / np.where(scales > 0, scales, values.dtype.type(1))[:, None]
            codes = np.floor(scaled + random.random(rows.shape, np.float32))
            codes = np.clip(np.nan_to_num(codes, nan=0), -127, 127).astype(np.int8)
            return [codes.reshape(-1)[: values.size].copy(), scales]

    @staticmethod
    def _round_to_bfloat16(values: Array, random: np.random.Generator) -> list[Array]:
        exponent = []
        finite = np.isfinite(values)
        if values.dtype == np.float64:
            largest = np.max(abs(values), where=finite, initial=0)
            # The largest magnitude is from 1/2 to 1 then.
            exponent = [np.frexp([largest])[1].astype(np.int16)]
            values = np.ldexp(values, -exponent[0].astype(np.int32))
        bits = values.astype(np.float32).view(np.uint32)
        noise = random.integers(0, 1 << 16, bits.size, np.uint32)
        rounded = (bits + np.where(finite, noise, 0)) >> np.uint32(16)
        # Beyond the largest finite one.
        rounded -= finite & ((rounded & 0x7FFF) == 0x7F80)
        # NaN whose bits are all below would become infinite.
        return [np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16), *exponent]

    def _decode(self, codes: Sequence[Array], size: int, dtype: np.dtype[Any]) -> Array:
        if self.dtype == "bfloat16":
            upper: Array = codes[0].astype(np.uint32) << np.uint32(16)
            values = upper.view(np.float32).astype(dtype, copy=False)
            if dtype == np.float64:
                with np.errstate(over="ignore", under="ignore"):
                    values = np.ldexp(values, codes[1].astype(np.int32))
            return saturated(values, np.isfinite(upper.view(np.float32)))
        scales = np.repeat(codes[1], BLOCK)[:size]
        with np.errstate(invalid="ignore", over="ignore"):
            # A scale that is not finite makes its block NaN.
            decoded: Array = codes[0] * np.where(np.isfinite(scales), scales, np.nan)
        return saturated(decoded.astype(dtype, copy=False), np.isfinite(scales))


def _plus_error(values: Array, error: Array) -> Array:
    """Return what is rounded: values, plus what was left before."""
    with np.errstate(over="ignore", invalid="ignore"):
        return saturated(values + error, np.isfinite(values))


class TopKMean(GradientMean):
    r"""The mean of the largest elements of each rank's gradients, with their positions.

    What is not sent is added to the next gradient (error feedback).

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or Communicator, optional
    density : float, default 0.01
        Fraction of each gradient that is sent, in (0, 1]; at least one element.

    References
    ----------
    Stich, Cordonnier & Jaggi, "Sparsified SGD with memory", arXiv 1809.07599.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> largest = cr.distributed.TopKMean(density=0.25)
    >>> g = np.array([1.0, -4.0, 2.0, 3.0])
    >>> largest.mean(g), largest.mean(g)
    (array([ 0., -4.,  0.,  0.]), array([0., 0., 0., 6.]))
    """

    def __init__(self, comm: Any = None, density: float = 0.01) -> None:
        super().__init__(comm)
        self.density = share(positive(density, "density"), "density")

    def _mean(self, arrays: list[Array]) -> list[Array]:
        comm, means = self.comm, []
        with prepared(comm, "mean"):
            residuals = self._residuals(arrays)
        for array, residual in zip(arrays, residuals, strict=True):
            with prepared(comm, "mean"):
                residual[...] = _plus_error(array, residual)
                values = residual.reshape(-1)
                kept = max(1, round(self.density * values.size)) if values.size else 0
                chosen = _largest(values, kept)
                own, ranks = values[chosen], range(comm.size)
                indices = [chosen if r == comm.rank else np.empty_like(chosen) for r in ranks]
                sent = [own if r == comm.rank else np.empty_like(own) for r in ranks]
            gather_arrays(comm, [(r, a) for r in ranks for a in (indices[r], sent[r])])
            with prepared(comm, "mean"):
                mean = finite_mean(functools.partial(_scattered, values, indices, sent), comm.size)
            values[chosen] = 0
            means.append(mean.reshape(array.shape))
        return means


def _scattered(
    like: Array, indices: Sequence[Array], sent: Sequence[Array], factor: float
) -> Array:
    """Return the sum of the ranks' elements at their positions, times a factor."""
    total = np.zeros_like(like)
    for places, values in zip(indices, sent, strict=True):
        total[places] += values * values.dtype.type(factor)
    return total


def _largest(values: Array, kept: int) -> Array:
    """Return the positions of the largest magnitudes, those that are not finite first."""
    dtype = np.int32 if values.size < 2**31 else np.int64
    infinite = ~np.isfinite(values)
    if infinite.any():
        order = np.argsort(~infinite, kind="stable")[:kept]
        return np.sort(order).astype(dtype)
    if kept == values.size:
        return np.arange(kept, dtype=dtype)
    mask = prune.magnitude_mask(values, 1 - kept / values.size, allow_empty=True)
    found = np.flatnonzero(mask)
    # The share of a number may be rounded to another number.
    if found.size != kept:
        found = np.sort(np.argsort(-abs(values), kind="stable")[:kept])
    return found.astype(dtype)


class PowerSGD(GradientMean):
    r"""The mean of gradients in low rank, by one step of a power iteration.

    .. math:: P = \text{mean}((G + E) Q), \quad P \leftarrow \text{orthonormal}(P), \quad
        Q = \text{mean}((G + E)^\top P), \quad \hat G = P Q^\top, \quad E \leftarrow G + E - \hat G

    Gradients with two axes or more are seen as matrices of their first axis and the rest; those
    that would not become smaller, such as biases, are averaged exactly.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or Communicator, optional
    rank : int, default 4
        Columns of P and Q, at least 1.
    rng : int, default 0
        Seed of the first Q.

    Notes
    -----
    The products and the QR factorization are NumPy's: on machines with other BLAS libraries the
    last bits of ranks may differ.

    References
    ----------
    Vogels, Karimireddy & Jaggi, "PowerSGD", arXiv 1905.13727, algorithms 1 and 2.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> g = np.outer(np.arange(1.0, 9.0), np.ones(8))
    >>> low = cr.distributed.PowerSGD(rank=1)
    >>> bool(np.allclose(low.mean(g), g))
    True
    """

    def __init__(self, comm: Any = None, rank: int = 4, *, rng: int = 0) -> None:
        super().__init__(comm)
        self.rank = whole(rank, "rank", 1)
        self.rng = whole(rng, "rng", 0)

    def _description(self) -> dict[str, str]:
        factors = self._kept.get("q", [])
        names = [f"factor {i} of mean" for i in range(len(factors))]
        return {**super()._description(), **array_descriptions(names, factors)}

    def _mean(self, arrays: list[Array]) -> list[Array]:
        low = [i for i, a in enumerate(arrays) if self._is_low(a.shape)]
        exact = [a for i, a in enumerate(arrays) if i not in low]
        with prepared(self.comm, "mean"):
            residuals = self._residuals(arrays)
            if "q" not in self._kept:
                self._kept["q"] = [
                    np.random.default_rng([self.rng, i])
                    .standard_normal((arrays[i].size // arrays[i].shape[0], self.rank))
                    .astype(arrays[i].dtype)
                    for i in low
                ]
            matrices = []
            for i in low:
                residuals[i] += arrays[i]
                matrices.append(residuals[i].reshape(residuals[i].shape[0], -1))
            before = self._kept["q"]
            left = [m @ q for m, q in zip(matrices, before, strict=True)]
        mean_in_place(self.comm, [*left, *exact])
        with prepared(self.comm, "mean"):
            left = [np.linalg.qr(p)[0] for p in left]
            right = [m.T @ p for m, p in zip(matrices, left, strict=True)]
        mean_in_place(self.comm, right)
        with prepared(self.comm, "mean"):
            for i, m, p, q in zip(low, matrices, left, right, strict=True):
                approximation = p @ q.T
                m -= approximation
                m[~np.isfinite(m)] = 0
                arrays[i] = approximation.reshape(arrays[i].shape)
            # A factor that is not finite would never be again.
            finite = [np.isfinite(q).all() for q in right]
        self._kept["q"] = [q if ok else b for q, b, ok in zip(right, before, finite, strict=True)]
        return arrays

    def _is_low(self, shape: tuple[int, ...]) -> bool:
        if len(shape) < 2 or 0 in shape:
            return False
        rows, columns = shape[0], int(np.prod(shape[1:]))
        return self.rank * (rows + columns) < rows * columns

"""Means of the ranks' gradients, and means that cost fewer bytes than the gradients have."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from compressrs import prune
from compressrs._arrays import (
    Array,
    ArrayTree,
    as_gradient,
    bfloat16,
    compute_dtype,
    flatten,
    rebuild,
)
from compressrs._checks import choice, count, positive, share, whole
from compressrs._state import Stateful, Take, Undo, require_keys
from compressrs.distributed.communicator import Communicator, together
from compressrs.distributed.mpi import as_communicator
from compressrs.distributed.partition import shares
from compressrs.distributed.pieces import gather_arrays
from compressrs.distributed.tree import TreeSum

#: Elements with a common scale in 8 bits.
BLOCK = 256


class GradientMean(Stateful, abc.ABC):
    """Base class of means over ranks.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or Communicator, optional
        The ranks; by default this process alone.

    Attributes
    ----------
    comm : Communicator
        ``comm.bytes`` counts the bytes that this rank has sent.
    step_count : int
        Number of calls of `mean`.
    """

    def __init__(self, comm: Any = None) -> None:
        self.comm: Communicator = as_communicator(comm)
        self.step_count = 0
        #: What has not been sent yet of each gradient, and what else is kept, by name.
        self._kept: dict[str, list[Array]] = {}

    def mean(self, grads: ArrayTree) -> ArrayTree:
        """Return the mean of the ranks' gradients, the same bits on all ranks.

        Collective.

        Parameters
        ----------
        grads : array, or list or nested dict of arrays
            float32, float64, float16 or bfloat16, with the same structure and shapes on all
            ranks and in all calls. Half precision is averaged in float32.

        Returns
        -------
        array, list or dict
            New arrays in the structure of `grads`.

        Raises
        ------
        TypeError
            If a gradient is not an array of such a dtype.
        ValueError
            If shapes differ from those of another rank or of the first call.
        RankError
            If another rank fails.
        """
        with together(self.comm, "mean"):
            leaves = [(path, as_gradient(leaf, path)) for path, leaf in flatten(grads, "grads")]
            for path, leaf in leaves:
                if leaf.dtype.kind != "f" and leaf.dtype.name != "bfloat16":
                    raise TypeError(f"{path} must be of a floating-point dtype, got {leaf.dtype}")
            arrays = [leaf.astype(compute_dtype(leaf.dtype), order="C") for _, leaf in leaves]
            self._check_kept(arrays)
        self.comm.require_same({f"shape of {path}": f"{a.dtype} {a.shape}" for path, a in leaves})
        means = self._mean(arrays)
        self.step_count += 1
        return rebuild(grads, iter(means))

    @abc.abstractmethod
    def _mean(self, arrays: list[Array]) -> list[Array]:
        """Return the means; the arrays may be overwritten."""

    def _check_kept(self, arrays: list[Array]) -> None:
        for name, kept in self._kept.items():
            if name == "residuals" and [a.shape for a in kept] != [a.shape for a in arrays]:
                raise ValueError(
                    f"grads must have the shapes {[a.shape for a in kept]} of the first call, got "
                    f"{[a.shape for a in arrays]}"
                )

    def _residuals(self, arrays: list[Array]) -> list[Array]:
        """Return what previous calls have not sent."""
        return self._kept.setdefault("residuals", [np.zeros_like(a) for a in arrays])

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this rank, which differs from that of others; not copied."""
        kept = {name: list(arrays) for name, arrays in self._kept.items()}
        return {"step_count": self.step_count, "kept": kept}

    def _checked(self, state_dict: Mapping[str, Any]) -> Take:
        require_keys(state_dict, ("step_count", "kept"))
        steps = count(state_dict["step_count"], "step_count")
        kept = state_dict["kept"]
        if not isinstance(kept, Mapping) or not all(
            isinstance(name, str)
            and isinstance(arrays, (list, tuple))
            and all(isinstance(a, np.ndarray) and a.dtype.kind == "f" for a in arrays)
            for name, arrays in kept.items()
        ):
            raise ValueError("kept must be a dict of lists of arrays of a floating-point dtype")
        if self._kept and {k: [a.shape for a in v] for k, v in kept.items()} != {
            k: [a.shape for a in v] for k, v in self._kept.items()
        }:
            raise ValueError("kept must have the shapes of the gradients so far")
        copied = {name: [np.array(a) for a in arrays] for name, arrays in kept.items()}

        def take(undo: Undo) -> None:
            undo.remember_attributes(self)
            self.step_count, self._kept = steps, copied

        return take

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]} over {self.comm.size} ranks>"


class ExactMean(GradientMean):
    """The mean of the ranks' gradients: with which the others are compared.

    Added in a fixed tree over the ranks by one rank for each part, as by a reduce-scatter, and
    gathered.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or Communicator, optional

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> def work(comm):
    ...     return cr.distributed.ExactMean(comm).mean(np.full(2, float(comm.rank))).tolist()
    >>> cr.distributed.run_local(work, 3)
    [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """

    def _mean(self, arrays: list[Array]) -> list[Array]:
        mean_in_place(self.comm, arrays)
        return arrays


def mean_in_place(comm: Communicator, arrays: Sequence[Array]) -> None:
    """Replace arrays by the means of those of all ranks."""
    for dtype in sorted({a.dtype for a in arrays}, key=str):
        own = [a for a in arrays if a.dtype == dtype]
        flat = np.concatenate([a.reshape(-1) for a in own])
        _mean_of_flat(comm, flat)
        start = 0
        for array in own:
            array[...] = flat[start : start + array.size].reshape(array.shape)
            start += array.size


def _mean_of_flat(comm: Communicator, flat: Array) -> None:
    if comm.size == 1:
        return
    parts = [slice(r.start, r.stop) for r in shares(flat.size, comm.size)]
    own = parts[comm.rank]
    others = [r for r in range(comm.size) if r != comm.rank]
    received = {r: np.empty(own.stop - own.start, flat.dtype) for r in others}
    comm.exchange(
        [[flat[parts[r]]] if r in received else [] for r in range(comm.size)],
        [[received[r]] if r in received else [] for r in range(comm.size)],
    )
    sums: TreeSum[Array] = TreeSum(comm.size, lambda a, b: np.add(a, b, out=a))
    for r in range(comm.size):
        sums.insert((r, r + 1), flat[own].copy() if r == comm.rank else received[r])
    np.divide(sums.result(), comm.size, out=flat[own])
    gather_arrays(comm, [(r, flat[part]) for r, part in enumerate(parts)])


class RoundedMean(GradientMean):
    r"""The mean of gradients that are sent in bfloat16 or in 8 bits, stochastically rounded.

    Gradients are rounded before they are added, and their mean before it is sent back. What
    rounding leaves is added to the next gradient (error feedback), so that it is not lost:

    .. math:: s_t = \text{round}(g_t + e_t), \quad e_{t+1} = g_t + e_t - s_t

    In 8 bits, blocks of 256 elements have a common scale, their largest magnitude by 127.

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
        flat = np.concatenate([a.reshape(-1).astype(np.float32) for a in arrays])
        residual, of_mean = self._errors(flat.size)
        # Parts of whole blocks.
        blocks = shares(-(-flat.size // BLOCK), comm.size)
        parts = [slice(b.start * BLOCK, min(b.stop * BLOCK, flat.size)) for b in blocks]
        own = parts[comm.rank]
        random = np.random.default_rng([self.rng, self.step_count, comm.rank])
        sent = [self._round(flat[part] + residual[part], random) for part in parts]
        for part, codes in zip(parts, sent, strict=True):
            residual[part] += flat[part] - self._decode(codes, part.stop - part.start)
        received = [sent[comm.rank]] * comm.size
        others = [r for r in range(comm.size) if r != comm.rank]
        for r in others:
            received[r] = self._empty(own.stop - own.start)
        comm.exchange(
            [sent[r] if r in others else [] for r in range(comm.size)],
            [received[r] if r in others else [] for r in range(comm.size)],
        )
        sums: TreeSum[Array] = TreeSum(comm.size, lambda a, b: np.add(a, b, out=a))
        for r, codes in enumerate(received):
            sums.insert((r, r + 1), self._decode(codes, own.stop - own.start))
        mean = sums.result() / np.float32(comm.size) + of_mean[own]
        codes = self._round(mean, random)
        of_mean[own] = mean - self._decode(codes, mean.size)
        for errors in (residual, of_mean):
            # What was not finite is in the mean, and shall not stay.
            errors[~np.isfinite(errors)] = 0
        all_codes = [
            codes if r == comm.rank else self._empty(part.stop - part.start)
            for r, part in enumerate(parts)
        ]
        gather_arrays(comm, [(r, a) for r, each in enumerate(all_codes) for a in each])
        for part, each in zip(parts, all_codes, strict=True):
            flat[part] = self._decode(each, part.stop - part.start)
        means, start = [], 0
        for array in arrays:
            values = flat[start : start + array.size].reshape(array.shape)
            means.append(values.astype(array.dtype))
            start += array.size
        return means

    def _errors(self, size: int) -> tuple[Array, Array]:
        """Return what is left of the gradients, and of their mean."""
        errors = self._kept.setdefault("errors", [np.zeros(size, np.float32) for _ in range(2)])
        return errors[0], errors[1]

    def _check_kept(self, arrays: list[Array]) -> None:
        size = sum(a.size for a in arrays)
        if "errors" in self._kept and self._kept["errors"][0].size != size:
            raise ValueError(
                f"grads must have {self._kept['errors'][0].size} elements as in the first call, "
                f"got {size}"
            )

    def _empty(self, size: int) -> list[Array]:
        if self.dtype == "bfloat16":
            return [np.empty(size, np.uint16)]
        return [np.empty(size, np.int8), np.empty(-(-size // BLOCK), np.float32)]

    def _round(self, values: Array, random: np.random.Generator) -> list[Array]:
        """Return codes, and scales."""
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            if self.dtype == "bfloat16":
                bits = values.astype(np.float32).view(np.uint32)
                noise = random.integers(0, 1 << 16, bits.size, np.uint32)
                rounded = (bits + np.where(np.isfinite(values), noise, 0)) >> np.uint32(16)
                # NaN whose bits are all below would become infinite.
                nan = np.isnan(values)
                return [np.where(nan, 0x7FC0, rounded).astype(np.uint16)]
            padded = np.zeros(-(-values.size // BLOCK) * BLOCK, np.float32)
            padded[: values.size] = values
            rows = padded.reshape(-1, BLOCK)
            scales = abs(rows).max(axis=1, initial=0) / np.float32(127)
            scaled = rows / np.where(scales > 0, scales, np.float32(1))[:, None]
            codes = np.floor(scaled + random.random(rows.shape, np.float32))
            codes = np.clip(np.nan_to_num(codes, nan=0), -127, 127).astype(np.int8)
            return [codes.reshape(-1)[: values.size].copy(), scales]

    def _decode(self, codes: Sequence[Array], size: int) -> Array:
        if self.dtype == "bfloat16":
            upper: Array = codes[0].astype(np.uint32) << np.uint32(16)
            return upper.view(np.float32)
        scales = np.repeat(codes[1], BLOCK)[:size]
        with np.errstate(invalid="ignore"):
            # A scale that is not finite makes its block NaN.
            decoded: Array = codes[0] * np.where(np.isfinite(scales), scales, np.nan)
        return decoded.astype(np.float32)


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
        for array, residual in zip(arrays, self._residuals(arrays), strict=True):
            residual += array
            values = residual.reshape(-1)
            kept = max(1, round(self.density * values.size)) if values.size else 0
            chosen = _largest(values, kept)
            own = values[chosen]
            indices = [chosen if r == comm.rank else np.empty_like(chosen) for r in _ranks(comm)]
            sent = [own if r == comm.rank else np.empty_like(own) for r in _ranks(comm)]
            gather_arrays(comm, [(r, a) for r in _ranks(comm) for a in (indices[r], sent[r])])
            mean = np.zeros_like(values)
            for r in _ranks(comm):
                mean[indices[r]] += sent[r]
            np.divide(mean, comm.size, out=mean)
            values[chosen] = 0
            means.append(mean.reshape(array.shape))
        return means


def _ranks(comm: Communicator) -> range:
    return range(comm.size)


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

    def _mean(self, arrays: list[Array]) -> list[Array]:
        low = [i for i, a in enumerate(arrays) if self._is_low(a.shape)]
        exact = [a for i, a in enumerate(arrays) if i not in low]
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
        left = [np.linalg.qr(p)[0] for p in left]
        right = [m.T @ p for m, p in zip(matrices, left, strict=True)]
        mean_in_place(self.comm, right)
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

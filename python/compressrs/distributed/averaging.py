"""Means of the ranks' gradients."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from compressrs._arrays import (
    Array,
    ArrayTree,
    as_gradient,
    compute_dtype,
    flatten,
    is_floating,
    rebuild,
)
from compressrs._checks import count
from compressrs._state import Stateful, Take, Undo, require_keys
from compressrs.distributed.communicator import Communicator, prepared, together
from compressrs.distributed.mpi import as_communicator
from compressrs.distributed.partition import shares
from compressrs.distributed.pieces import gather_arrays
from compressrs.distributed.tree import TreeSum


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
            ranks and in all calls. Half precision is averaged in float32. None, on all ranks,
            is no gradient, as for `Optimizer.step`.

        Returns
        -------
        array, list or dict
            New arrays in the structure of `grads`, and None where that has None.

        Raises
        ------
        TypeError
            If a gradient is not an array of such a dtype.
        ValueError
            If ranks disagree on shapes, on the class or an option of the mean, or on the number
            of calls; if shapes differ from those of the first call. The message names a rank.
        RankError
            If another rank fails.
        """
        with together(self.comm, "mean"):
            named = [(path, leaf) for path, leaf in flatten(grads, "grads")]
            leaves = [(path, as_gradient(x, path)) for path, x in named if x is not None]
            for path, leaf in leaves:
                if not is_floating(leaf.dtype):
                    raise TypeError(f"{path} must be of a floating-point dtype, got {leaf.dtype}")
            arrays = [leaf.astype(compute_dtype(leaf.dtype), order="C") for _, leaf in leaves]
            self._check_kept(arrays)
        shapes = {f"shape of {path}": f"{a.dtype} {a.shape}" for path, a in leaves}
        self.comm.require_same(
            {**self._description(), "number of calls": str(self.step_count), **shapes}
        )
        means = iter(self._mean(arrays) if arrays else [])
        self.step_count += 1
        return rebuild(grads, iter([None if x is None else next(means) for _, x in named]))

    def _description(self) -> dict[str, str]:
        """Return all options, which must be the same on all ranks: messages depend on them."""
        options = {
            name: value
            for name, value in vars(self).items()
            if not name.startswith("_") and isinstance(value, (bool, int, float, str))
        }
        options.pop("step_count")
        shown = {f"{name} of mean": repr(value) for name, value in options.items()}
        return {"class of mean": type(self).__name__, **shown}

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
        with prepared(comm, "mean"):
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
    with prepared(comm, "mean"):
        received = {r: np.empty_like(flat[own]) for r in others}
        values = [received.get(r, flat[own]) for r in range(comm.size)]
    comm.start_exchange(
        [[flat[parts[r]]] if r in others else [] for r in range(comm.size)],
        [[values[r]] if r in others else [] for r in range(comm.size)],
    )()
    with prepared(comm, "mean"):
        flat[own] = mean_of(values)
    gather_arrays(comm, [(r, flat[part]) for r, part in enumerate(parts)])


def mean_of(values: Sequence[Array]) -> Array:
    """Return the mean of arrays, one of each rank, which are added in a fixed tree."""

    def total(factor: float) -> Array:
        sums: TreeSum[Array] = TreeSum(len(values), np.add)
        for r, one in enumerate(values):
            sums.insert((r, r + 1), one if factor == 1 else one * one.dtype.type(factor))
        return sums.result()

    return finite_mean(total, len(values))


def finite_mean(total: Callable[[float], Array], count: int) -> Array:
    """Return a mean that is finite where all that is added up is, even if its sum is not.

    Parameters
    ----------
    total : callable
        ``total(factor)`` returns the sum of what is added up, times a power of two.
    count : int
    """
    with np.errstate(over="ignore", invalid="ignore"):
        found = total(1.0)
        # Not in place: the tree of a single value returns this value.
        mean: Array = found / found.dtype.type(count)
        wrong = ~np.isfinite(mean)
        if wrong.any():
            factor = 0.5 ** (count - 1).bit_length()
            parts = total(factor)
            scaled = parts / parts.dtype.type(count) / parts.dtype.type(factor)
            mean = np.where(wrong, saturated(scaled, np.isfinite(parts)), mean)
    return mean


def saturated(values: Array, finite: Array) -> Array:
    """Return values, with the largest of their dtype instead of infinities where `finite`."""
    largest = np.finfo(values.dtype).max
    return np.where(finite & np.isinf(values), np.copysign(largest, values), values)

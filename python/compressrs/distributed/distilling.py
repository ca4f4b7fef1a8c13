"""Distillation on many ranks: the teacher's logits, and the training of a student."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs._arrays import Array, rebuild
from compressrs._checks import flag
from compressrs.distill import Distiller, TeacherCache
from compressrs.distributed.communicator import together
from compressrs.distributed.mpi import as_communicator
from compressrs.distributed.sharded import ShardedOptimizer


def write_teacher(
    path: str | os.PathLike[str],
    teacher: Callable[[Any], Array],
    x: Any,
    comm: Any = None,
    *,
    k: int | None = None,
    temperature: float = 1.0,
    dtype: str = "float32",
    batch_size: int = 256,
    shard_rows: int = 4096,
    progress: bool = False,
) -> TeacherCache:
    """Evaluate a teacher on many ranks, each of which writes some files of one cache.

    Collective; see `distill.TeacherCache.write`. The files are the same as those of one process,
    and an interrupted call is resumed on any number of ranks.

    Parameters
    ----------
    path : path
        A folder on a file system that all ranks share.
    teacher : callable
    x : array or sequence
        The whole data set, of which each rank reads the rows of its files.
    comm : mpi4py.MPI.Comm or Communicator, optional
        The ranks; by default this process alone.
    k, temperature, dtype, batch_size, shard_rows, progress
        As for `distill.TeacherCache.write`; the same on all ranks.

    Returns
    -------
    TeacherCache

    Raises
    ------
    OSError, TypeError, ValueError, ModuleNotFoundError
        As for `distill.TeacherCache.write`.
    RankError
        If another rank fails. Files that are complete are kept.

    Examples
    --------
    >>> import numpy as np, compressrs as cr, tempfile
    >>> x = np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32)
    >>> folder = tempfile.mkdtemp()
    >>> def work(comm):
    ...     return cr.distributed.write_teacher(
    ...         folder, lambda rows: rows[:, :3], x, comm, shard_rows=10
    ...     )
    >>> cr.distributed.run_local(work, 2)[1]
    <TeacherCache of shape (100, 3), all logits>
    """
    own = as_communicator(comm)
    with together(own, "write_teacher"):
        shown = flag(progress, "progress") and own.rank == 0
        options = (k, temperature, dtype, batch_size, shard_rows, shown)
        TeacherCache._write(
            path, teacher, x, *options, lambda number: number % own.size == own.rank
        )
    with together(own, "write_teacher"):
        return TeacherCache(path)


class DataParallelDistiller(Distiller):
    """Trains a student on a teacher, with each batch divided among ranks.

    Each batch is divided into the optimizer's micro-batches, whose losses and gradients are
    averaged: the student is the same, to the bit, for any number of ranks. `fit` is collective:
    all ranks call it with the same data, of which each computes its micro-batches.

    Parameters
    ----------
    student : layer, or pair of callables
    teacher : callable, array, TopK, TeacherCache, or list of these
        See `distill.Distiller`. A callable is called with micro-batches.
    optimizer : ShardedOptimizer
        Of the student's parameters; its ranks are used.
    **options
        As for `distill.Distiller`; the same on all ranks.

    Raises
    ------
    TypeError, ValueError
        As for `distill.Distiller`; or if the student has buffers, as `BatchNorm` has: its
        statistics would be those of a rank's micro-batches. A pruner's score must not need
        gradients.

    Notes
    -----
    With ``fit(checkpoint=)`` all ranks write the same file; an epoch that fails on one rank is
    reverted on all.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> x = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    >>> def work(comm):
    ...     student = cr.nn.Linear(4, 3, rng=0)
    ...     opt = cr.distributed.ShardedOptimizer(
    ...         cr.optim.Adam, student.params, comm, microbatches=4, lr=0.1
    ...     )
    ...     distiller = cr.distributed.DataParallelDistiller(
    ...         student, lambda rows: 3 * rows[:, :3], opt, alpha=1.0
    ...     )
    ...     return distiller.fit(x, epochs=3)[-1].loss
    >>> len(set(cr.distributed.run_local(work, 1) + cr.distributed.run_local(work, 4)))
    1
    """

    def __init__(
        self, student: Any, teacher: Any, optimizer: ShardedOptimizer, **options: Any
    ) -> None:
        if not isinstance(optimizer, ShardedOptimizer):
            raise TypeError(f"optimizer must be a ShardedOptimizer, got {type(optimizer).__name__}")
        super().__init__(student, teacher, optimizer, **options)
        self._sharded = optimizer
        if buffers := [name for name in self._arrays() if name not in self._names()]:
            raise ValueError(
                f"student must have no buffers, whose values would be those of a rank, got "
                f"{buffers[0]!r}"
            )
        if getattr(getattr(self._pruner, "score", None), "needs_gradients", False):
            raise ValueError("pruner must have a score that needs no gradients here")

    def _names(self) -> list[str]:
        return self._optimizer._names

    def _learn(
        self,
        phase: str,
        x: Array,
        y: Array | None,
        weight: Array | None,
        rows: npt.NDArray[np.intp],
    ) -> float:
        opt = self._sharded
        total = float(len(rows)) if weight is None else float(weight[rows].sum())
        losses: dict[int, float] = {}
        try:
            parts = np.array_split(rows, opt.microbatches)
            for i in opt.indices:
                part = parts[i]
                share = (len(part) if weight is None else weight[part].sum()) / total
                if share:
                    loss, gradient = self._loss_of(phase, x, y, weight, part)
                    losses[i] = share * float(loss)
                    # The mean over all micro-batches is that over the batch.
                    gradient = gradient * gradient.dtype.type(share * opt.microbatches)
                    opt.accumulate(i, self._backward(gradient))
                else:
                    nothing = iter([None] * len(opt._paths))
                    opt.accumulate(i, rebuild(opt._structure, nothing))
        except BaseException as error:
            opt.discard()
            opt.comm.tell("step", error)
            raise
        self._step(None)
        every: dict[int, float] = {}
        for own in opt.comm.allgather(losses):
            every |= own
        return sum(every[i] for i in sorted(every))

    def _update(self, gradients: Any) -> None:
        self._sharded.step()
        if self._scheduler is not None:
            self._scheduler.step()

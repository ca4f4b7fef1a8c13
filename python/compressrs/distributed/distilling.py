"""Distillation on many ranks: the teacher's logits, and the training of a student."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs._arrays import Array, rebuild
from compressrs._checks import flag
from compressrs.distill import Distiller, TeacherCache, kd_loss
from compressrs.distill._calling import ByName
from compressrs.distributed.communicator import array_descriptions, together
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
    averaged: the student is the same, to the bit, for any number of ranks. For any number of
    micro-batches loss and gradients are those of `distill.Distiller`, but for rounding. `fit` is
    collective: all ranks call it with the same data, of which each computes its micro-batches.

    Parameters
    ----------
    student : layer, or pair of callables
    teacher : callable, array, TopK, TeacherCache, or list of these
        See `distill.Distiller`. A callable is called with micro-batches.
    optimizer : ShardedOptimizer
        Of the student's parameters; its ranks are used.
    **options
        As for `distill.Distiller`; the same on all ranks. A `loss` must be a mean over rows, as
        `kd_loss` is: one that compares rows, as `dist_loss` does, sees those of a micro-batch. With
        rows that have no label it must be ``alpha`` times a mean over all rows plus
        ``1 - alpha`` times a mean over those that have one.

    Raises
    ------
    TypeError, ValueError
        As for `distill.Distiller`; or if the student has buffers, as `BatchNorm` has: its
        statistics would be those of a rank's micro-batches. A pruner's score must not need
        gradients.

    Notes
    -----
    `fit` is given the same on all ranks; it raises a ValueError on all if it is not, and a
    `RankError` where another rank fails: the epoch is then reverted on all. With
    ``fit(checkpoint=)`` all ranks write the same file.

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

    def _together(self, what: str) -> AbstractContextManager[None]:
        return self._sharded.comm.together(what)

    def _begin(
        self, x: Any, y: Array | None, weight: Array | None, settings: tuple[Any, ...]
    ) -> None:
        temperature, alpha = self._at(self.step_count)
        epochs, hard_epochs, patience, unvalidated = settings
        what = {
            "epochs": epochs,
            "hard_epochs": hard_epochs,
            "patience": patience,
            "validation": "none" if unvalidated else "some",
            "batch_size": self.batch_size,
            "rng": self.seed,
            "loss": _name(self._loss),
            "temperature": temperature,
            "alpha": alpha,
            "scheduler": type(self._scheduler).__name__,
            "pruner": type(self._pruner).__name__,
            "ema": type(self._ema).__name__,
            "number of epochs so far": len(self.history),
            "number of steps so far": self.step_count,
            "number of rows of x": len(x),
        }
        given = {name: a for name, a in (("y", y), ("sample_weight", weight)) if a is not None}
        arrays = [np.ascontiguousarray(a) for a in given.values()]
        self._sharded.comm.require_same(
            {name: str(value) for name, value in what.items()}
            | array_descriptions(list(given), arrays)
        )

    @contextmanager
    def _reverting(self) -> Iterator[None]:
        # All ranks are told first, since to revert is collective as well.
        with super()._reverting(), self._sharded.comm.together("epoch"):
            yield

    def _learn(
        self,
        phase: str,
        x: Array,
        y: Array | None,
        weight: Array | None,
        rows: npt.NDArray[np.intp],
    ) -> float:
        opt = self._sharded
        parts = np.array_split(rows, opt.microbatches)
        shares = self._shares(phase, y, weight, parts)
        losses: dict[int, float] = {}
        for i in opt.indices:
            share, alpha = shares[i]
            if share:
                loss, gradient = self._loss_of(phase, x, y, weight, parts[i], alpha)
                losses[i] = share * float(loss)
                # The mean over all micro-batches is that over the batch.
                gradient = gradient * gradient.dtype.type(share * opt.microbatches)
                opt.accumulate(i, self._backward(gradient))
            else:
                nothing = iter([None] * len(opt._paths))
                opt.accumulate(i, rebuild(opt._structure, nothing))
        self._step(None)
        every: dict[int, float] = {}
        for own in opt.comm.agree("losses of a step", value=losses):
            every |= own
        return sum(every[i] for i in sorted(every))

    def _shares(
        self,
        phase: str,
        y: Array | None,
        weight: Array | None,
        parts: Sequence[npt.NDArray[np.intp]],
    ) -> list[tuple[float, float | None]]:
        r"""Return what each micro-batch's loss is multiplied by, and the alpha of this loss.

        The loss of a batch has two means, over rows and over labelled rows, of which micro-batch m
        has the fractions s and h. Its own loss, with an alpha of its own, is weighted by w:

        .. math:: w_m = \alpha s_m + (1 - \alpha) h_m, \quad \alpha_m = \alpha s_m / w_m
        """
        soft = _fractions([float(len(p)) if weight is None else weight[p].sum() for p in parts])
        alpha = 0.0 if phase == "hard" else self._at(self.step_count)[1]
        if y is None or alpha == 1:
            return [(s, None) for s in soft]
        ignored, classes = _options(phase, self._loss)
        labelled = []
        for part in parts:
            known = part[y[part] != ignored]
            rows = np.ones(len(known)) if weight is None else weight[known]
            if classes is not None:
                # A label that is out of range is refused by the loss.
                rows = rows * classes.take(y[known], mode="clip")
            labelled.append(rows.sum())
        hard = _fractions(labelled)
        shares: list[tuple[float, float | None]] = []
        for s, h in zip(soft, hard, strict=True):
            share = alpha * s + (1 - alpha) * h
            # Where both fractions are the same, alpha is to the bit.
            shares.append((s, None) if s == h else (share, alpha * s / share if share else None))
        # Nothing has a loss: the step is one with gradients that are 0.
        return shares if any(share for share, _ in shares) else [(s, None) for s in soft]

    def _update(self, gradients: Any) -> None:
        self._sharded.step()
        if self._scheduler is not None:
            self._scheduler.step()


def _fractions(sizes: Sequence[float]) -> list[float]:
    total = sum(sizes)
    return [float(size / total) if total else 0.0 for size in sizes]


def _options(phase: str, loss: Any) -> tuple[int, Array | None]:
    """Return the label of unlabelled rows, and weights of classes."""
    keywords: dict[str, Any] = {}
    if isinstance(loss, ByName) and not loss.weighted:
        loss = loss.loss
    while isinstance(loss, functools.partial) and phase == "soft":
        keywords = {**loss.keywords, **keywords}
        loss = loss.func
    # The cross-entropy beside another loss has none of its options.
    if loss is not kd_loss:
        keywords = {}
    classes = keywords.get("class_weight")
    return keywords.get("ignore_index", -100), None if classes is None else np.ravel(classes)


def _name(function: Any) -> str:
    """Return the name of a loss, and the names of options that are set."""
    names = []
    if isinstance(function, ByName):
        function = function.loss
    while isinstance(function, functools.partial):
        names += sorted(function.keywords)
        function = function.func
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{name} with {', '.join(names)}" if names else name

"""Optimizers whose state is divided among ranks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any, Literal

import numpy as np

from compressrs import _core
from compressrs._arrays import Array, ArrayTree
from compressrs._checks import file_path, whole
from compressrs._warnings import warn
from compressrs.distributed.communicator import prepared, together
from compressrs.distributed.gradients import Given, checked_gradients, overlap
from compressrs.distributed.layout import Flat
from compressrs.distributed.mpi import as_communicator
from compressrs.distributed.offload import checked_folder
from compressrs.distributed.pieces import gather_arrays, gather_buffers, start_gather
from compressrs.distributed.stored import StoredOptimizer
from compressrs.optim._dicts import frozen_parameters
from compressrs.optim._parameters import Parameters
from compressrs.optim.base import Optimizer


class ShardedOptimizer(StoredOptimizer):
    """An optimizer whose state is divided among ranks (ZeRO), with the same results.

    Each rank computes the gradients of some micro-batches. `step` adds them up in a tree that
    depends on the number of micro-batches alone, sends each part of the sum to the rank that
    owns the part, which updates its parameters with the rule, and sends these to all ranks.
    Parameters are the same bits as those of ``rule(params).step(mean)`` in one process, where
    `mean` is that of the micro-batches' gradients in this tree, for any number of ranks.

    Parameters
    ----------
    rule : type
        A class of `compressrs.optim`, such as `AdamW`.
    params : array, list, nested dict of arrays, or list of group dicts
        See `Optimizer`; the same on all ranks, values included.
    comm : mpi4py.MPI.Comm or Communicator, optional
        The ranks; by default this process alone.
    microbatches : int, optional
        Gradients that a step takes the mean of, over all ranks; by default one of each rank.
        Choose a number that does not change with the number of ranks, and a multiple of it:
        with fewer micro-batches than ranks some have no gradients to compute.
    stage : {1, 2}, default 1
        That of ZeRO. 1: a rank adds up the gradients of its micro-batches, for all parameters, and
        `step` reduces them. 2: `accumulate`, which is then collective, reduces each micro-batch at
        once, and a rank keeps the sums of its own parts alone: less memory, and a reduction for
        each micro-batch instead of one for each step. The results are the same to the bit.
    offload : path, optional
        A folder, on a disk of this rank's: state is kept in a file there, which is mapped into
        memory, so that the system can write parts of it to the disk when memory is short. The file
        has no name and ends with the process; it is no checkpoint. Ranks may have other folders.
    **hyperparameters
        Those of the rule, the same on all ranks.

    Attributes
    ----------
    indices : range
        The micro-batches of this rank.
    comm : Communicator
        ``comm.bytes`` counts the bytes that this rank has sent.
    param_groups : list of dict
        As in `Optimizer`; changes, of a learning rate for example, are made on all ranks.
    state : dict of dict of array
        The state of the parts that this rank owns, by their number.

    Raises
    ------
    TypeError
        If `rule` is not such a class, or an argument of another type.
    ValueError
        If ranks disagree on parameters, hyperparameters or seeds; the message names a rank. If
        `offload` is no folder, or `rule` is `Prodigy`, which looks at all parameters at once.
    OSError
        If there is no room for the state in `offload`.
    RuntimeError
        If an optimizer with `offload` is used in a forked child, which shares the file.
    RankError
        If another rank fails. After any error parameters and state are unchanged on all ranks.

    Warns
    -----
    UserWarning
        On rank 0, if there are fewer micro-batches than ranks.

    Notes
    -----
    Rules that update each element by itself are divided into ranges of elements; `Lamb`,
    `Adafactor`, `Muon`, `Shampoo` and `SOAP`, which look at whole tensors, by tensors. `step`,
    `state_dict`, `load_state_dict`, `save`, `load`, `set_masks`, `convert_state` and
    `add_param_group` are collective: all ranks call them. Schedules and `EMA` are used as in one
    process, on each rank; so are `SAM` and `lr_range_test`, which raise on all ranks what is raised
    on one.

    Gradients are added up in float32, or in float64 for float64 parameters.

    References
    ----------
    Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models",
    arXiv 1910.02054.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> def train(comm):
    ...     w = np.zeros(2)
    ...     opt = cr.distributed.ShardedOptimizer(cr.optim.SGD, w, comm, microbatches=4, lr=1.0)
    ...     for i in opt.indices:
    ...         opt.accumulate(i, np.array([i, 1.0]))
    ...     opt.step()
    ...     return w.tolist()
    >>> cr.distributed.run_local(train, 2)
    [[-1.5, -1.0], [-1.5, -1.0]]
    """

    def __init__(
        self,
        rule: type[Optimizer],
        params: ArrayTree,
        comm: Any = None,
        microbatches: int | None = None,
        *,
        stage: Literal[1, 2] = 1,
        offload: str | os.PathLike[str] | None = None,
        **hyperparameters: Any,
    ) -> None:
        self.comm = as_communicator(comm)
        with together(self.comm, "ShardedOptimizer"):
            if not (isinstance(rule, type) and issubclass(rule, Optimizer)) or not hasattr(
                rule, "_rule"
            ):
                raise TypeError(f"rule must be a class of cr.optim, such as AdamW, got {rule!r}")
            if rule._of_all_parameters:
                raise ValueError(
                    f"rule must step each parameter by itself, but {rule.__name__} estimates its "
                    "rate from all parameters, of which a rank has a part"
                )
            self.rule = rule
            self._rule, self._fixed = rule._rule, rule._fixed  # type: ignore[misc]
            # A small instance knows the defaults, and refuses what the rule does not take.
            self._arguments = hyperparameters
            defaults = rule(np.zeros((1, 1), np.float32), **hyperparameters).defaults
            ranks = self.comm.size
            self.microbatches = (
                ranks if microbatches is None else whole(microbatches, "microbatches", 1)
            )
            self.stage = whole(stage, "stage", 1, 2)
            self.offload = (
                None if offload is None else checked_folder(file_path(offload, "offload"))
            )
            Parameters.__init__(self, params, defaults)
            self._build()
        self.comm.require_same(self._description())
        if self.microbatches < ranks and self.comm.rank == 0:
            warn(
                f"microbatches={self.microbatches} is fewer than the {ranks} ranks: "
                f"{ranks - self.microbatches} of them have no gradients to compute",
                UserWarning,
            )

    @property
    def indices(self) -> range:
        """The micro-batches whose gradients this rank computes."""
        return self._sums.shares[self.comm.rank]

    def accumulate(self, index: int, grads: ArrayTree) -> None:
        """Add the gradients of a micro-batch; they may be overwritten afterwards.

        Not collective. Gradients are added as they come, so that memory is that of the
        gradients times the logarithm of the number of this rank's micro-batches.

        With ``stage=2`` it is collective: all ranks call it for their first micro-batch, then for
        their second, and so on.

        Parameters
        ----------
        index : int
            One of `indices`, each once before a step, best in their order; with ``stage=2`` in
            their order.
        grads : array, or list or nested dict of arrays
            As for `Optimizer.step`. None counts as zeros; a parameter without a gradient in
            all micro-batches is left unchanged.

        Raises
        ------
        TypeError
            If a gradient is not an array of a floating-point dtype.
        ValueError
            If `index` is not one of `indices` or was added before, or a gradient does not have
            its parameter's shape. The step then fails on all ranks: what was accumulated is
            dropped.
        """
        with self._changing("accumulate"):
            with self._failing("accumulate"):
                i = whole(index, "index", 0)
                if i not in self.indices:
                    raise ValueError(f"index must be one of this rank's {self.indices}, got {i}")
                if i in self._sums.done:
                    raise ValueError(f"index {i} was accumulated before; step first")
                flat = checked_gradients(self._structure, grads, self._arrays(), self._paths)
                if self.stage == 1:
                    self._sums.add(i, flat)
                    return
                if i != (due := self.indices[len(self._sums.done)]):
                    raise ValueError(f"index must be {due}, the next one of stage 2, got {i}")
                given = Given(self._layout, flat)
                self._sums.allocate(copies=True)
            self._reduce_round(given)

    def _reduce_round(self, given: Given | None) -> None:
        """Reduce a micro-batch of each rank."""
        with self._failing("accumulate"):
            self.comm.agree(f"round {self._sums.rounds} of micro-batches")
            self._sums.add_round(given)

    def discard(self) -> None:
        """Drop the gradients that were accumulated since the last step.

        Not collective: all ranks discard, or none. An error in `accumulate`, in `step`, or
        within ``with opt.comm.together():`` discards by itself, on all ranks.
        """
        with self._changing("discard"):
            self._sums.release()

    def step(
        self,
        grads: ArrayTree = None,
        *,
        max_grad_norm: float | None = None,
        grad_scale: float = 1.0,
        nonfinite: Literal["raise", "skip", "ignore"] = "ignore",
    ) -> float | None:
        """Update the parameters on all ranks with the mean of the micro-batches' gradients.

        Parameters
        ----------
        grads : array, or list or nested dict of arrays, optional
            The gradients of this rank's micro-batch, if it has a single one that was not
            accumulated.
        max_grad_norm : float, optional
        grad_scale : float, default 1.0
        nonfinite : {"ignore", "raise", "skip"}, default "ignore"
            As for `Optimizer.step`, applied to the mean; the same on all ranks.

        Returns
        -------
        float or None
            As `Optimizer.step`; the same on all ranks.

        Raises
        ------
        NonFiniteGradientError
            On all ranks; see `nonfinite`.
        ValueError
            If a micro-batch was not accumulated, a hyperparameter is out of range, or ranks
            disagree on one.
        RankError
            If another rank failed, in `accumulate` for example. After any exception parameters
            and state are unchanged on all ranks, and what was accumulated is dropped.
        """
        with self._lock:
            self._require_idle("step")
            with self._failing("step"):
                if grads is not None:
                    self._accumulate_all(grads)
                if missing := [i for i in self.indices if i not in self._sums.done]:
                    raise ValueError(
                        f"step needs the grads of micro-batch {missing[0]} first: call "
                        f"accumulate({missing[0]}, grads)"
                    )
                self._rehearse(max_grad_norm, grad_scale, nonfinite)
            try:
                self._doing = "step"
                if self.stage == 2 and self._sums.rounds * self.comm.size < self.microbatches:
                    self._reduce_round(None)  # of ranks that have one more
                self._agree_on_step(max_grad_norm, grad_scale, nonfinite)
                return self._reduce_and_step(max_grad_norm, grad_scale, nonfinite)
            finally:
                self._doing = None
                self._sums.release()

    def _accumulate_all(self, grads: ArrayTree) -> None:
        """Take the gradients of this rank's only micro-batch where they are, if that can be."""
        if len(self.indices) != 1 or self._sums.done:
            raise ValueError(
                "grads must be given to accumulate(index, grads), since this rank has "
                f"the micro-batches {self.indices}"
            )
        arrays = self._arrays()
        flat = checked_gradients(self._structure, grads, arrays, self._paths)
        if self.stage == 2 or overlap(flat, arrays):
            self.accumulate(self.indices[0], grads)
            return
        self._sums.allocate(copies=True)
        self._sums.add_given(self.indices[0], Given(self._layout, flat))

    def _step(
        self, flat: list[Any], max_grad_norm: float | None, grad_scale: float, nonfinite: Any
    ) -> float | None:
        raise NotImplementedError("a ShardedOptimizer steps with accumulate and step")

    def _rehearse(self, max_grad_norm: Any, grad_scale: Any, nonfinite: Any) -> None:
        """Find what a step of this rank could fail by, its memory included."""
        if not isinstance(nonfinite, str):
            raise TypeError(
                f"nonfinite must be 'raise', 'skip' or 'ignore', got {type(nonfinite).__name__}"
            )
        _core.gradient_scale(lambda unit: [], [], [], max_grad_norm, grad_scale, nonfinite)
        layout = self._layout
        self._sync()
        self._sums.allocate()
        if self._grads is None:
            self._grads = self._layout.empty_of(self.comm.rank)
        if self._packed is None:
            self._packed = [
                gather_buffers(self.comm, [(p.owner, self._view(p)) for p in layout.parts_of(k)])
                for k in range(layout.count)
            ]
        views = [
            view
            for k in range(layout.count)
            for view in self._views_of(k, layout.of_own_piece(self.comm.rank, k, self._grads))
        ]
        self._inner._stepper.step(views or [None], self._inner._groups, None, 1.0, "ignore", True)

    def _views_of(self, k: int, flat: Flat) -> list[Array | None]:
        """Return the views of a piece's parts, in their shapes."""
        return self._shaped(k, [*self._layout.views_of_piece(self.comm.rank, k, flat)])

    def _shaped(self, k: int, views: list[Array | None]) -> list[Array | None]:
        """Return the views of a piece's parts in the shapes of the parts."""
        parts = [self._own[place] for place in self._pieces[k]]
        return [
            None if view is None else view.reshape(self._view(part).shape)
            for view, part in zip(views, parts, strict=True)
        ]

    def _agree_on_step(self, *arguments: Any) -> None:
        """Find out which tensors have gradients, and whether the ranks step alike."""
        settings = {**self._settings(), "arguments of step": repr(arguments)}
        digest = blake2b(repr(settings).encode(), digest_size=16).digest()
        entries = self.comm.agree("step", value=(digest, np.packbits(self._sums.given)))
        if len({digest for digest, _ in entries}) > 1:
            self.comm.require_same(settings)
        bits = np.bitwise_or.reduce([given for _, given in entries])
        self._sums.given = np.unpackbits(bits, count=len(self._paths)).astype(np.bool_)

    def _reduce_and_step(
        self, max_grad_norm: float | None, grad_scale: float, nonfinite: str
    ) -> float | None:
        frozen = frozen_parameters(self._groups)
        given = [bool(x) and not f for x, f in zip(self._sums.given, frozen, strict=True)]
        active = [i for i, one in enumerate(given) if one]
        means = self._means(given)
        grads: list[Array | None] = [None] * max(1, len(self._own))
        factor, norm = 1.0, None
        if max_grad_norm is None and nonfinite == "ignore" and grad_scale == 1:
            pieces = means
        else:
            # All of it first: the norm is that of all parts.
            kept = [self._kept(k, views) for k, views in means]
            for k, views in enumerate(kept):
                for place, view in zip(self._pieces[k], views, strict=True):
                    grads[place] = view
            found, norm = _core.gradient_scale(
                lambda unit: self._partials(unit, grads, active),
                [self._paths[i] for i in active],
                [self._layout.examples[i] for i in active],
                max_grad_norm,
                grad_scale,
                nonfinite,
            )
            if found is None:
                return norm
            factor = found
            pieces = iter(enumerate(kept))
        self._step_pieces(pieces, factor, given)
        return norm

    def _means(self, given: list[bool]) -> Iterator[tuple[int, list[Array | None]]]:
        """Yield the pieces of the mean over all micro-batches, None where there is none."""
        for k, views in self._sums.pieces():
            tensors = [self._own[place].tensor for place in self._pieces[k]]
            if self._sums.count != 1:
                for view in views:
                    np.divide(view, self._sums.count, out=view)  # type: ignore[arg-type]
            pairs = zip(views, tensors, strict=True)
            yield k, self._shaped(k, [view if given[i] else None for view, i in pairs])

    def _kept(self, k: int, views: list[Array | None]) -> list[Array | None]:
        """Return the values of a piece where the next ones do not overwrite them."""
        if self.comm.size == 1 or self.stage == 2:
            return views
        assert self._grads is not None
        flat = self._layout.of_own_piece(self.comm.rank, k, self._grads)
        own = self._views_of(k, flat)
        for target, view in zip(own, views, strict=True):
            if target is not None and view is not None:
                target[...] = view
        return [None if view is None else t for t, view in zip(own, views, strict=True)]

    def _step_pieces(
        self,
        pieces: Iterable[tuple[int, list[Array | None]]],
        factor: float,
        given: list[bool],
    ) -> None:
        """Step each piece, and send its parameters while the next one is reduced and stepped."""
        layout = self._layout
        assert self._packed is not None
        ends = []
        for k, views in pieces:
            grads: list[Array | None] = [None] * max(1, len(self._own))
            for place, view in zip(self._pieces[k], views, strict=True):
                grads[place] = view
                if view is not None and np.isnan(factor):
                    # What NaN times a gradient is; the step itself takes finite factors. Of
                    # several ranks the gradients are in memory of their own by now, see `_kept`.
                    grads[place] = nan = np.empty_like(view) if self.comm.size == 1 else view
                    nan[...] = np.nan
            if self._pieces[k]:
                scale = 1.0 if np.isnan(factor) else factor
                self._inner._stepper.step(grads, self._inner._groups, None, scale, "ignore")
            changed = [(p.owner, self._view(p)) for p in layout.parts_of(k) if given[p.tensor]]
            ends.append(start_gather(self.comm, changed, self._packed[k]))
        for end in ends:
            end()

    def _partials(
        self, unit: float | None, grads: list[Array | None], active: list[int]
    ) -> list[list[float]]:
        """Return partial sums of squares, or largest magnitudes, of all active tensors."""
        block = _core.NORM_BLOCK
        chosen = set(active)
        parts = [part for part in self._layout.parts if part.tensor in chosen]
        with prepared(self.comm, "the norm"):
            sums = [np.empty(-(-(part.stop - part.start) // block)) for part in parts]
            own = iter(zip(grads, self._inner._masks, strict=True))
            owned = {part: next(own) for part in self._own}
            for part, partial in zip(parts, sums, strict=True):
                if part in owned:
                    grad, mask = owned[part]
                    partial[...] = _core.partial_norms(grad, "grads", mask, unit)  # type: ignore[arg-type]
        gather_arrays(self.comm, [(p.owner, s) for p, s in zip(parts, sums, strict=True)])
        # A tensor's parts are in order, since their owners are.
        found: dict[int, list[float]] = {i: [] for i in active}
        for part, partial in zip(parts, sums, strict=True):
            found[part.tensor] += partial.tolist()
        return list(found.values())

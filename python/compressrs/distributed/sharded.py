"""Optimizers whose state is divided among ranks."""

from __future__ import annotations

import os
from hashlib import blake2b
from typing import Any, Literal

import numpy as np

from compressrs import _core
from compressrs._arrays import Array, ArrayTree
from compressrs._checks import file_path, flag, whole
from compressrs._state import Undo, all_or_nothing
from compressrs._warnings import warn
from compressrs.distributed import checkpoint
from compressrs.distributed.communicator import together
from compressrs.distributed.gradients import checked_gradients
from compressrs.distributed.layout import Flat
from compressrs.distributed.mpi import as_communicator
from compressrs.distributed.partitioned import PartitionedOptimizer
from compressrs.distributed.pieces import gather_arrays
from compressrs.optim._loading import group_update, parameter_order
from compressrs.optim._moments import has_codes
from compressrs.optim._parameters import Parameters
from compressrs.optim.base import Optimizer


class ShardedOptimizer(PartitionedOptimizer):
    """An optimizer whose state is divided among ranks (ZeRO, stage 1), with the same results.

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
        If ranks disagree on parameters, hyperparameters or seeds; the message names a rank.
    RankError
        If another rank fails. After any error parameters and state are unchanged on all ranks.

    Warns
    -----
    UserWarning
        On rank 0, if there are fewer micro-batches than ranks.

    Notes
    -----
    Rules that update each element by itself are divided into ranges of elements; `Lamb`,
    `Adafactor` and `Muon`, which look at whole tensors, by tensors. `step`, `state_dict`,
    `load_state_dict`, `save`, `load`, `set_masks` and `add_param_group` are collective: all
    ranks call them. Schedules and `EMA` are used as in one process, on each rank.

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
        **hyperparameters: Any,
    ) -> None:
        self.comm = as_communicator(comm)
        with together(self.comm, "ShardedOptimizer"):
            if not (isinstance(rule, type) and issubclass(rule, Optimizer)) or not hasattr(
                rule, "_rule"
            ):
                raise TypeError(f"rule must be a class of cr.optim, such as AdamW, got {rule!r}")
            self.rule = rule
            self._rule, self._fixed = rule._rule, rule._fixed  # type: ignore[misc]
            # A small instance knows the defaults, and refuses what the rule does not take.
            self._arguments = hyperparameters
            defaults = rule(np.zeros((1, 1), np.float32), **hyperparameters).defaults
            ranks = self.comm.size
            self.microbatches = (
                ranks if microbatches is None else whole(microbatches, "microbatches", 1)
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

        Parameters
        ----------
        index : int
            One of `indices`, each once before a step, best in their order.
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
        with self._changing("accumulate"), self._failing("accumulate"):
            i = whole(index, "index", 0)
            if i not in self.indices:
                raise ValueError(f"index must be one of this rank's {self.indices}, got {i}")
            if i in self._sums.done:
                raise ValueError(f"index {i} was accumulated before; step first")
            self._sums.add(
                i, checked_gradients(self._structure, grads, self._arrays(), self._paths)
            )

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
                    if len(self.indices) != 1 or self._sums.done:
                        raise ValueError(
                            "grads must be given to accumulate(index, grads), since this rank has "
                            f"the micro-batches {self.indices}"
                        )
                    self.accumulate(self.indices[0], grads)
                if missing := [i for i in self.indices if i not in self._sums.done]:
                    raise ValueError(
                        f"step needs the grads of micro-batch {missing[0]} first: call "
                        f"accumulate({missing[0]}, grads)"
                    )
                self._rehearse(max_grad_norm, grad_scale, nonfinite)
            try:
                self._doing = "step"
                self._agree_on_step(max_grad_norm, grad_scale, nonfinite)
                return self._reduce_and_step(max_grad_norm, grad_scale, nonfinite)
            finally:
                self._doing = None
                self._sums.release()

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
        self._sync()
        self._sums.allocate()
        if self._grads is None:
            self._grads = self._layout.empty_of(self.comm.rank)
        views = self._shaped(self._grads)
        self._inner._stepper.step(views, self._inner._groups, None, 1.0, "ignore", True)

    def _shaped(self, flat: Flat) -> list[Array | None]:
        """Return the views of this rank's parts, in their shapes."""
        views = self._layout.own_views(self.comm.rank, flat)
        shaped = [v.reshape(self._view(p).shape) for v, p in zip(views, self._own, strict=True)]
        return [*shaped] if self._own else [None]

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
        flat = self._sums.reduce()
        if self.microbatches > 1:
            for values in flat.values():
                np.divide(values, self.microbatches, out=values)
        frozen = [bool(g.get("frozen")) for g in self._groups for _ in g["params"]]
        given = [bool(x) and not f for x, f in zip(self._sums.given, frozen, strict=True)]
        grads = self._shaped(flat)
        for k, part in enumerate(self._own):
            if not given[part.tensor]:
                grads[k] = None
        active = [i for i, one in enumerate(given) if one]
        factor, norm = _core.gradient_scale(
            lambda unit: self._partials(unit, grads, active),
            [self._paths[i] for i in active],
            # Of half precision parameters the gradients are float32.
            [np.empty(0, self._layout.dtypes[i]) for i in active],
            max_grad_norm,
            grad_scale,
            nonfinite,
        )
        if factor is None:
            return norm
        if np.isnan(factor):
            # What NaN times a gradient is; the step itself takes finite factors.
            for grad in grads:
                if grad is not None:
                    grad[...] = np.nan
            factor = 1.0
        self._inner._stepper.step(grads, self._inner._groups, None, factor, "ignore")
        changed = [part for part in self._layout.parts if given[part.tensor]]
        gather_arrays(self.comm, [(part.owner, self._view(part)) for part in changed])
        return norm

    def _partials(
        self, unit: float | None, grads: list[Array | None], active: list[int]
    ) -> list[list[float]]:
        """Return partial sums of squares, or largest magnitudes, of all active tensors."""
        block = _core.NORM_BLOCK
        parts = [part for part in self._layout.parts if part.tensor in set(active)]
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

    def save(self, path: str | os.PathLike[str], *, weights: bool = False) -> None:
        """Save state, hyperparameters and masks to a folder, each rank its parts.

        Collective; all ranks give the same path, on a file system that they share. A
        checkpoint that is there is replaced when the new one is complete: if a rank is killed,
        the folder holds the previous one. `load` reads it on any number of ranks, `read_state`
        in one process. Requires the package safetensors (``pip install 'compressrs[save]'``).

        Parameters
        ----------
        path : str or path
            The folder.
        weights : bool, default False
            Save the parameters as well.

        Raises
        ------
        OSError
            If a file cannot be written.
        TypeError
            If a group holds a value that JSON cannot represent.
        RankError
            If another rank cannot write.
        """
        with self._reading("save"):
            with together(self.comm, "save"):
                folder, weights = file_path(path), flag(weights, "weights")
                self._sync()
                arrays: dict[str, Array] = {}
                own = iter(range(len(self._own)))
                for number, part in enumerate(self._layout.parts):
                    if part.owner != self.comm.rank:
                        continue
                    buffers = dict(self._inner._state[next(own)])
                    if weights:
                        buffers[checkpoint.WEIGHTS] = self._view(part)
                    arrays |= checkpoint.named(number, buffers)
                if self.comm.rank == 0:
                    bits = {f"mask.{i}": m for i, m in enumerate(self._masks) if m is not None}
                    arrays |= bits
                described = super().state_dict()
                head = {
                    "rule": self._kind,
                    "param_groups": described["param_groups"],
                    "shapes": [list(array.shape) for array in self._arrays()],
                    "weights": weights,
                    "microbatches": self.microbatches,
                    **({"codes": described["codes"]} if "codes" in described else {}),
                }
                checkpoint.check(head)
            checkpoint.write(self.comm, folder, head, self._layout.parts, arrays)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Load what `save` wrote, on any number of ranks, or the file of the rule's optimizer.

        Collective. Each rank reads the files that have something of its parts. Parameters are
        loaded if they were saved.

        Raises
        ------
        OSError
            If a file cannot be read.
        ValueError
            If it is damaged or does not match; nothing is changed on any rank in that case.
        RankError
            If another rank cannot read.

        Warns
        -----
        UserWarning
            On rank 0, if the checkpoint is of a run with another `microbatches`: gradients are
            then added in another order, and the bits are no longer those of that run. The file
            of the rule's optimizer and state dicts do not tell.
        """
        with together(self.comm, "load"):
            folder = file_path(path)
            is_file = folder.is_file()
        if is_file:
            super().load(folder)
            return
        with all_or_nothing() as undo:
            with together(self.comm, "load"):
                self._load_parts(checkpoint.read(folder), undo)
            arrays = [(part.owner, self._view(part)) for part in self._layout.parts]
            gather_arrays(self.comm, arrays)

    def _warn_of_microbatches(self, manifest: checkpoint.Manifest) -> None:
        saved = manifest.microbatches
        if self.comm.rank == 0 and saved not in (None, self.microbatches):
            warn(
                f"{manifest.folder} is of a run with microbatches={saved}, got "
                f"{self.microbatches}: gradients are added in another order, and further steps "
                "do not have the bits of that run",
                UserWarning,
            )

    def _load_parts(self, manifest: checkpoint.Manifest, undo: Undo) -> None:
        arrays = self._arrays()
        given = [list(group["params"]) for group in manifest.param_groups]
        lengths = [len(group["params"]) for group in self._groups]
        named = iter([(n, a.shape) for n, a in zip(self._names, arrays, strict=True)])
        own = [[next(named) for _ in range(length)] for length in lengths]
        checkpoint.require_parameters(manifest, self._kind, own)
        order = parameter_order(manifest.param_groups, given, self._names, lengths, True)
        self._warn_of_microbatches(manifest)
        reader = checkpoint.Reader(manifest)
        wanted = [part._replace(tensor=order[part.tensor]) for part in self._own]
        found = reader.parts(wanted)
        weights = [buffers.pop(checkpoint.WEIGHTS, None) for buffers in found]
        saved_masks = reader.masks()
        masks = [saved_masks.get(i) for i in order]
        self._sync()
        updates = [
            group_update(group, self.defaults, self._fixed, self._kind)
            for group in manifest.param_groups
        ]
        take = self._inner._checked(self._inner_state(manifest, found, masks))
        for array in arrays:
            undo.remember(array)
        take(undo)
        self._take(updates, masks, undo)
        for part, values in zip(self._own, weights, strict=True):
            if values is not None:
                view = self._view(part)
                view[...] = values.reshape(view.shape)
        self._finish_loading(masks, undo)

    def _inner_state(
        self,
        manifest: checkpoint.Manifest,
        found: list[dict[str, Array]],
        masks: list[Array | None],
    ) -> dict[str, Any]:
        """Return the state dict of the optimizer of this rank's parts."""
        groups, first = [], 0
        for saved, inner in zip(manifest.param_groups, self._inner._groups, strict=True):
            indices = list(range(first, first + len(inner["params"])))
            first += len(indices)
            rest = {k: v for k, v in saved.items() if k not in ("params", "param_names")}
            groups.append({**rest, "params": indices})
        own_masks = {}
        state: dict[int, dict[str, Array]] = {}
        if not self._own:
            state[0] = dict(self._inner._state[0])
        for k, (part, buffers) in enumerate(zip(self._own, found, strict=True)):
            own = self._inner._state[k]
            state[k] = {
                name: values.reshape(own[name].shape)
                if name in own and values.size == own[name].size
                else values
                for name, values in buffers.items()
            }
            mask = masks[part.tensor]
            if mask is not None:
                view = self._view(part)
                own_masks[k] = mask.reshape(-1)[part.start : part.stop].reshape(view.shape)
        codes = {"codes": manifest.codes} if has_codes(state) else {}
        kind = {"class": manifest.rule}
        return {**kind, "state": state, "param_groups": groups, "masks": own_masks, **codes}

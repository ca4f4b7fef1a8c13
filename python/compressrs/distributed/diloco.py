"""DiLoCo: local steps, with an outer optimizer of their sum."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from compressrs._arrays import Array, ArrayTree, compute_dtype
from compressrs._checks import whole
from compressrs._state import Stateful, Take, Undo, all_or_nothing, require_keys
from compressrs.distributed.averaging import ExactMean, GradientMean
from compressrs.distributed.communicator import Communicator, array_descriptions, together
from compressrs.optim import SGD, Optimizer
from compressrs.optim._weights import Weights
from compressrs.optim.ema import assign, checked_arrays
from compressrs.optim.lr_scheduler.base import require_optimizer


class DiLoCo(Stateful):
    r"""Local steps on each rank, and an outer optimizer every few of them.

    .. math:: \Delta = \text{mean over ranks of } (\theta_0 - \theta_H), \quad
        \theta_0 \leftarrow \text{outer}(\theta_0, \Delta), \quad \theta \leftarrow \theta_0

    Ranks send the parameters' change once in `every` steps, instead of gradients in each.

    Parameters
    ----------
    optimizer : Optimizer
        Of this rank, usually `AdamW`. Its parameters must be the same on all ranks.
    comm : mpi4py.MPI.Comm or Communicator, optional
        The ranks; by default this process alone.
    every : int, default 100
        Local steps for each outer one, H.
    outer_lr : float, default 0.7
    outer_momentum : float, default 0.9
        Of the outer optimizer, SGD with Nesterov momentum.
    mean : GradientMean, optional
        What averages the changes, such as `RoundedMean` of the same ranks, with the same options
        on all; by default exactly.

    Attributes
    ----------
    step_count : int
        Number of local steps.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or ranks disagree.

    References
    ----------
    Douillard et al., "DiLoCo: distributed low-communication training of language models",
    arXiv 2311.08105.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> def work(comm):
    ...     w = np.zeros(1)
    ...     local = cr.distributed.DiLoCo(
    ...         cr.optim.SGD(w, lr=0.1), comm, every=2, outer_lr=1.0, outer_momentum=0.0
    ...     )
    ...     for _ in range(2):
    ...         local.step(np.array([1.0 + comm.rank]))
    ...     return w.round(3).tolist()
    >>> cr.distributed.run_local(work, 2)
    [[-0.3], [-0.3]]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        comm: Any = None,
        *,
        every: int = 100,
        outer_lr: float = 0.7,
        outer_momentum: float = 0.9,
        mean: GradientMean | None = None,
    ) -> None:
        if mean is not None and not isinstance(mean, GradientMean):
            raise TypeError(f"mean must be a GradientMean, got {type(mean).__name__}")
        if mean is not None and comm is not None:
            raise ValueError("comm must be None where mean is given, whose ranks are used")
        self._mean = ExactMean(comm) if mean is None else mean
        with together(self.comm, "DiLoCo"):
            self.optimizer = require_optimizer(optimizer)
            self.every = whole(every, "every", 1)
            self.step_count = 0
            if optimizer._complex:
                raise TypeError("optimizer must have real parameters, got complex ones")
            arrays = optimizer._arrays()
            self._shared = Weights("DiLoCo", optimizer._names, arrays)
            start = [w.astype(compute_dtype(w.dtype)) for w in arrays]
            nesterov = outer_momentum != 0
            try:
                self._outer = SGD(start, outer_lr, outer_momentum, nesterov=nesterov)
            except (TypeError, ValueError) as error:
                raise type(error)(f"outer_lr and outer_momentum: {error}") from None
        named = zip(optimizer._names, arrays, strict=True)
        self.comm.require_same(
            {
                "every": str(self.every),
                "outer optimizer": repr(self._outer),
                **self._mean._description(),
                **{f"dtype and shape of {n}": f"{w.dtype} {w.shape}" for n, w in named},
            }
        )
        #: What is wrong with the start, unless a state is loaded first.
        self._disagreement = self._disagreeing()
        #: Whether the start of a state that was loaded is yet to be compared.
        self._loaded = False

    def _disagreeing(self) -> ValueError | None:
        """Return the error if ranks start from other values; collective."""
        try:
            self.comm.require_same(array_descriptions(self._shared.names, self._start))
        except ValueError as error:
            return error
        return None

    @property
    def _start(self) -> list[Array]:
        """The parameters from which the ranks started."""
        return self._outer._arrays()

    @property
    def comm(self) -> Communicator:
        """The ranks; ``comm.bytes`` counts the bytes that this one has sent."""
        return self._mean.comm

    def step(self, grads: ArrayTree, **kwargs: Any) -> float | None:
        """Take a local step, and after every few of them an outer one.

        Collective in every `every`-th call.

        Parameters
        ----------
        grads : array, or list or nested dict of arrays
        **kwargs
            As for `Optimizer.step`.

        Returns
        -------
        float or None
            As the local optimizer's step.

        Raises
        ------
        ValueError
            If ranks did not start from the same values, or as `Optimizer.step`.
        RankError
            In a collective call, if a call has failed on another rank since the last outer step.

        Notes
        -----
        A call that raises changes nothing and is not counted: each rank still takes `every` local
        steps for an outer one, to which all come together. A rank whose local step fails waits
        for the others' collective call, which then raises as well. During a collective call
        there is a copy of the parameters and of all state.
        """
        if self._disagreement is not None:
            raise ValueError(str(self._disagreement))
        if (self.step_count + 1) % self.every:
            try:
                norm = self._local_step(grads, kwargs)
            except BaseException as error:
                # Where the others wait for the outer step.
                self.comm.tell("step", error)
                raise
            self.step_count += 1
            return norm
        with self._reverting(), together(self.comm, "step"):
            norm = self._local_step(grads, kwargs)
            self.step_count += 1
            if self._loaded and (disagreement := self._disagreeing()) is not None:
                raise disagreement
            self._outer_step()
        self._loaded = False
        return norm

    def _local_step(self, grads: ArrayTree, kwargs: Mapping[str, Any]) -> float | None:
        self._shared.require_unchanged()
        return self.optimizer.step(grads, **kwargs)

    @contextmanager
    def _reverting(self) -> Iterator[None]:
        """Put back what a local and an outer step change if one of them raises, on any rank."""
        kept, counts = copy.deepcopy(self._mean._kept), (self._mean.step_count, self.step_count)
        with all_or_nothing() as undo:
            undo.remember_state(self.optimizer)
            undo.remember_state(self._outer)
            undo.remember(*self._shared.arrays, *self._start)

            def restore() -> None:
                self._mean._kept = kept
                self._mean.step_count, self.step_count = counts

            undo.on_failure(restore)
            yield

    def _outer_step(self) -> None:
        pairs = zip(self._start, self._shared.arrays, strict=True)
        self._outer.step(self._mean.mean([start - w.astype(start.dtype) for start, w in pairs]))
        self._shared.apply_masks(self._start)
        self._shared.assign(self._start)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the local and of the outer optimizer; arrays are not copied."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "outer": self._outer.state_dict(),
            "mean": self._mean.state_dict(),
            "start": list(self._start),
            "step_count": self.step_count,
        }

    def _checked(self, state_dict: Mapping[str, Any]) -> Take:
        require_keys(state_dict, ("optimizer", "outer", "mean", "start", "step_count"))
        values, steps = checked_arrays(self._start, state_dict, "start", self._shared.names)
        parts = [
            self.optimizer._checked(state_dict["optimizer"]),
            self._outer._checked(state_dict["outer"]),
            self._mean._checked(state_dict["mean"]),
        ]
        for i, state in state_dict["outer"]["state"].items():
            # Without one is a state of PyTorch's, which this is not.
            require_keys(state, tuple(self._outer.state[i]))

        def take(undo: Undo) -> None:
            undo.remember_attributes(self)
            for part in parts:
                part(undo)
            assign(self._start, values, undo)
            self._shared.state_loaded(undo)
            self.step_count, self._disagreement, self._loaded = steps, None, True

        return take

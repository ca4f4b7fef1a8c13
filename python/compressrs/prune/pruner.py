"""The pruner: applies a schedule to weights in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import ArrayTree, named_arrays
from compressrs._checks import choice, number, whole
from compressrs.optim import Optimizer
from compressrs.prune.masks import smallest_masks
from compressrs.prune.schedules import Schedule


class MagnitudePruner:
    """Removes the smallest weights along a schedule, while training goes on.

    Call `step` once after each step of the optimizer. Whenever the schedule's
    sparsity changes, new masks are chosen; what was removed once stays removed.
    Between these steps masked weights are kept at exactly 0: by the optimizer
    inside its update, together with their state, if it is given; otherwise by
    setting them to 0 again.

    Parameters
    ----------
    params : array, or list or nested dict of arrays
        The weights to prune, usually without biases. float32, float64,
        float16 or bfloat16, all of
        one dtype, C-contiguous and writable; they are changed in place.
    schedule : callable
        Sparsity in [0, 1) as a function of the step, counted from 0: a
        `CubicSchedule`, `LinearSchedule`, `ExponentialSchedule`, `OneShot`, or any function.
    scope : {"global", "layer"}, default "global"
        Whether the smallest weights are found over all arrays together or in
        each by itself.
    optimizer : Optimizer, optional
        The optimizer that trains the weights. Its masks of other parameters stay.

    Attributes
    ----------
    masks : list of array of bool
        One mask a weight array, True where a weight is kept.
    sparsity : float
        Share of the weights that the masks remove.

    Raises
    ------
    TypeError
        If something is not an array of such a dtype.
    ValueError
        If `scope` is unknown, there are no weights, an array cannot be updated in
        place or is not one of the optimizer's.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.array([[4.0, -1.0], [2.0, 3.0]])
    >>> opt = cr.optim.SGD(w, lr=0.1)
    >>> schedule = cr.prune.CubicSchedule(final=0.5, begin=0, end=2)
    >>> pruner = cr.prune.MagnitudePruner(w, schedule, optimizer=opt)
    >>> for _ in range(3):
    ...     opt.step(np.ones_like(w))
    ...     pruner.step()
    >>> w
    array([[3.7, 0. ],
           [0. , 2.7]])
    """

    def __init__(
        self,
        params: ArrayTree,
        schedule: Schedule,
        scope: Literal["global", "layer"] = "global",
        optimizer: Optimizer | None = None,
    ) -> None:
        choice(scope, "scope", ("global", "layer"))
        if not callable(schedule):
            raise TypeError(f"schedule must be callable, got {type(schedule).__name__}")
        self._names, self._weights = named_arrays(params, "params")
        if sum(w.size for w in self._weights) == 0:
            raise ValueError("params must hold at least one weight, got none")
        self.masks: list[npt.NDArray[np.bool_]] = [
            np.ones(w.shape, np.bool_) for w in self._weights
        ]
        # Changes nothing, but refuses what cannot be updated in place.
        self._apply()
        for name, w in zip(self._names, self._weights, strict=True):
            if w.dtype != self._weights[0].dtype:
                raise TypeError(
                    f"{name} must have dtype {self._weights[0].dtype} like {self._names[0]}, "
                    f"got {w.dtype}"
                )
        self._optimizer = optimizer
        self._indices: list[int] = []
        if optimizer is not None:
            for name, w in zip(self._names, self._weights, strict=True):
                index = optimizer._index_of(w)
                if index is None:
                    raise ValueError(
                        f"{name} must be a parameter of the optimizer, which has none such"
                    )
                self._indices.append(index)
        self.schedule = schedule
        self.scope = scope
        self.step_count = 0
        self._target = 0.0

    @property
    def sparsity(self) -> float:
        """Share of the weights that the masks remove."""
        total = sum(mask.size for mask in self.masks)
        return 1 - sum(int(np.count_nonzero(mask)) for mask in self.masks) / total

    def step(self) -> None:
        """Prune as far as the schedule says; call once a training step.

        Raises
        ------
        ValueError
            If the schedule gives a sparsity outside [0, 1), or a weight is NaN;
            the masks are what they were then.
        """
        target = number(self.schedule(self.step_count), "the schedule's sparsity", 0, below=1)
        if self._optimizer is None or target > self._target:
            self._apply()
        if target > self._target:
            self._choose(target)
        self.step_count += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what the pruner needs to go on: masks, steps, and what it was made with."""
        return {
            "masks": [mask.copy() for mask in self.masks],
            "step_count": self.step_count,
            "target": self._target,
            "scope": self.scope,
            "schedule": repr(self.schedule),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned, and set removed weights to 0.

        Raises
        ------
        ValueError
            If it is not such a dict, or of a pruner of other weights, another scope or
            another schedule; nothing is changed then.
        """
        try:
            masks = [np.array(mask) for mask in state_dict["masks"]]
            step_count = whole(state_dict["step_count"], "step_count", 0)
            target = number(state_dict["target"], "target", 0, below=1)
            made = {name: state_dict[name] for name in ("scope", "schedule")}
        except (TypeError, LookupError) as error:
            raise ValueError(
                f"state_dict must be a dict as state_dict() returns, got one without {error}"
            ) from None
        for name, value in (("scope", self.scope), ("schedule", repr(self.schedule))):
            if made[name] != value:
                raise ValueError(f"state_dict must have {name} {value}, got {made[name]}")
        wanted = [mask.shape for mask in self.masks]
        if [mask.shape for mask in masks] != wanted or any(m.dtype != np.bool_ for m in masks):
            raise ValueError(
                f"state_dict must have boolean masks of shapes {wanted}, got "
                f"{[(str(mask.dtype), mask.shape) for mask in masks]}"
            )
        self.masks, self.step_count, self._target = masks, step_count, target
        self._put()

    def _choose(self, sparsity: float) -> None:
        # Removed weights are 0 and so the first to be removed.
        if self.scope == "global":
            masks = smallest_masks(self._weights, self._names, sparsity)
        else:
            masks = [
                smallest_masks([w], [name], sparsity)[0] if w.size else np.ones(w.shape, np.bool_)
                for w, name in zip(self._weights, self._names, strict=True)
            ]
        # A weight that training left at exactly 0 ties with the removed ones.
        self.masks = [new & old for new, old in zip(masks, self.masks, strict=True)]
        self._target = sparsity
        self._put()

    def _put(self) -> None:
        """Set what the masks remove to 0, and have it stay so."""
        if self._optimizer is None:
            self._apply()
        else:
            self._optimizer._set_masks(dict(zip(self._indices, self.masks, strict=True)))

    def _apply(self) -> None:
        for name, w, mask in zip(self._names, self._weights, self.masks, strict=True):
            _core.apply_mask(w, mask, name)

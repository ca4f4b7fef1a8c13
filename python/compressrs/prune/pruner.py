"""Pruners: apply schedules to weights in training."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from compressrs import _core
from compressrs._arrays import Array, ArrayTree, named_arrays, rebuild, require_in_place
from compressrs._checks import number, whole
from compressrs.optim import Optimizer
from compressrs.optim._weights import Weights, holds_masks, masks_changed
from compressrs.prune.granularity import Granularity, as_granularity
from compressrs.prune.optimizers import require_index
from compressrs.prune.schedules import Schedule
from compressrs.prune.scores import Magnitude, Score, as_score
from compressrs.prune.selection import Mask, Scope, Selection, check_scope


class Pruner:
    """Removes what scores lowest along a schedule, while training goes on.

    Call `step` once after each step of the optimizer. Whenever the schedule's
    sparsity rises, new masks are chosen; what was removed once stays removed, also where
    a schedule falls.
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
        `CubicSchedule`, `LinearSchedule`, `ExponentialSchedule`, `IterativeSchedule`,
        `OneShot`, or any function. After its end it gives its final sparsity.
    score : Score, optional
        By what to choose: `Magnitude`, `Random`, `Snip`, `Taylor`, `Movement`, `Wanda`.
        By default magnitude.
    scope : {"global", "layer", "row"} or callable, default "global"
        Whether the lowest are found over all arrays together, in each by itself, or in
        each row. A function of shapes and a sparsity, such as `erdos_renyi`, gives each
        array a sparsity of its own.
    optimizer : Optimizer, optional
        The optimizer that trains the weights. Its masks of other parameters stay.
    granularity : Granularity, optional
        What is removed as one: `Granularity` (single weights, the default), `NM`,
        `Blocks`, `Neurons`.
    allow_empty : bool, default False
        Whether a layer may be pruned to nothing. Otherwise its best weight is kept,
        which is warned of by an `EmptyLayerWarning`, and others go in its place.

    Attributes
    ----------
    masks : array of bool, or list or nested dict of them
        In the structure of `params`, True where a weight is kept.
    sparsity : float
        Share of the weights that the masks remove.

    Raises
    ------
    TypeError
        If something is not an array of such a dtype, or not a `Score` or `Granularity`.
    ValueError
        If `scope` is unknown, there are no weights, an array cannot be updated in
        place, shares memory with another, or is not one of the optimizer's.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.array([[4.0, -1.0], [2.0, 3.0]])
    >>> opt = cr.optim.SGD(w, lr=0.1)
    >>> schedule = cr.prune.OneShot(0.5, begin=1)
    >>> pruner = cr.prune.Pruner(w, schedule, cr.prune.Movement(), optimizer=opt)
    >>> for _ in range(2):
    ...     grads = np.array([[1.0, 1.0], [-1.0, 1.0]])
    ...     opt.step(grads)
    ...     pruner.step(grads)
    >>> w
    array([[ 0. , -1.2],
           [ 2.2,  0. ]])
    """

    def __init__(
        self,
        params: ArrayTree,
        schedule: Schedule,
        score: Score | None = None,
        scope: Scope = "global",
        optimizer: Optimizer | None = None,
        *,
        granularity: Granularity | None = None,
        allow_empty: bool = False,
    ) -> None:
        check_scope(scope)
        if not callable(schedule):
            raise TypeError(f"schedule must be callable, got {type(schedule).__name__}")
        self._names, self._weights = named_arrays(params, "params")
        if sum(w.size for w in self._weights) == 0:
            raise ValueError("params must hold at least one weight, got none")
        self._structure = rebuild(params, iter([None] * len(self._weights)))
        self._masks: list[Mask] = [np.ones(w.shape, np.bool_) for w in self._weights]
        self._shared = Weights(type(self).__name__, self._names, self._weights)
        # Changes nothing, but refuses what cannot be updated in place.
        self._apply()
        require_in_place(self._weights, self._names)
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
                self._indices.append(require_index(optimizer, w, name))
        self.schedule = schedule
        self.score = as_score(score)
        self.scope = scope
        self.granularity = as_granularity(granularity)
        self.allow_empty = allow_empty
        self.step_count = 0
        self._target = 0.0
        holds_masks(self)

    def _held_masks(self) -> Iterator[tuple[Array, Mask]]:
        if self._target > 0:
            yield from zip(self._weights, self._masks, strict=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        holds_masks(self)

    @property
    def masks(self) -> ArrayTree:
        """The masks in the structure of the weights, True where a weight is kept."""
        return rebuild(self._structure, iter(self._masks))

    @property
    def sparsity(self) -> float:
        """Share of the weights that the masks remove."""
        total = sum(mask.size for mask in self._masks)
        return 1 - sum(int(np.count_nonzero(mask)) for mask in self._masks) / total

    def step(self, grads: ArrayTree | None = None) -> None:
        """Prune as far as the schedule says; call once a training step.

        Parameters
        ----------
        grads : array, or list or nested dict of arrays, optional
            This step's gradients of the weights, in their structure, for scores that
            are made of them.

        Raises
        ------
        TypeError
            If the score needs gradients, and there are none.
        ValueError
            If the schedule gives a sparsity outside [0, 1), gradients do not fit or are not
            finite, or a weight or a score is NaN; masks and score are what they were then.
        """
        self._shared.require_unchanged()
        target = number(self.schedule(self.step_count), "the schedule's sparsity", 0, below=1)
        is_time = target > self._target
        before = self.score.state_dict() if is_time else {}
        if self.score.needs_gradients:
            if grads is None:
                raise TypeError(f"step needs grads, of which {self.score!r} is made")
            self.score.update(self._weights, named_arrays(grads, "grads")[1])
        if self._optimizer is None or is_time:
            self._apply()
        if is_time:
            try:
                self._choose(target)
            except BaseException:
                self.score.load_state_dict(before)
                raise
        self.step_count += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what the pruner needs to go on: masks, steps, and what it was made with."""
        return {
            "masks": [mask.copy() for mask in self._masks],
            "param_names": list(self._names),
            "step_count": self.step_count,
            "target": self._target,
            "score_state": self.score.state_dict(),
            **self._made_with(),
        }

    def _made_with(self) -> dict[str, str]:
        return {
            "scope": self.scope if isinstance(self.scope, str) else _description(self.scope),
            "schedule": _description(self.schedule),
            "score": _description(self.score),
            "granularity": _description(self.granularity),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned, and set removed weights to 0.

        Raises
        ------
        ValueError
            If it is not such a dict, or of a pruner of other weights or with another
            scope, schedule, score or granularity; nothing is changed then.
        """
        try:
            masks = [np.array(mask) for mask in state_dict["masks"]]
            names = state_dict.get("param_names", self._names)
            if not isinstance(names, list) or len(names) != len(self._names):
                raise ValueError(f"param_names must be {self._names}, got {names}")
            if len(names) > 1:  # one needs no name of its own
                if sorted(names) != sorted(self._names):
                    raise ValueError(f"param_names must be {self._names}, got {names}")
                if len(masks) == len(names):
                    masks = [masks[names.index(name)] for name in self._names]
            step_count = whole(state_dict["step_count"], "step_count", 0)
            target = number(state_dict["target"], "target", 0, below=1)
            made = {name: state_dict[name] for name in self._made_with()}
            score_state = state_dict["score_state"]
        except (AttributeError, TypeError, LookupError, ValueError, OverflowError) as error:
            raise ValueError(
                f"state_dict must be a dict as state_dict() returns, got one without {error}"
            ) from None
        for name, value in self._made_with().items():
            if made[name] != value:
                raise ValueError(f"state_dict must have {name} {value}, got {made[name]}")
        wanted = [mask.shape for mask in self._masks]
        if [mask.shape for mask in masks] != wanted or any(m.dtype != np.bool_ for m in masks):
            raise ValueError(
                f"state_dict must have boolean masks of shapes {wanted}, got "
                f"{[(str(mask.dtype), mask.shape) for mask in masks]}"
            )
        self._shared.require_unchanged()
        self.score.load_state_dict(score_state)
        self._masks, self.step_count, self._target = masks, step_count, target
        self._put()

    def _choose(self, sparsity: float) -> None:
        by_magnitude = type(self.score) is Magnitude
        scores = self._weights
        if not by_magnitude:
            scores = named_arrays(self.score.scores(self._weights), "scores")[1]
        selection = Selection(
            scores,
            self._names,
            sparsity,
            self.scope,
            by_value=not by_magnitude,
            allow_empty=self.allow_empty,
            # Removed weights are 0 and so have the smallest magnitudes.
            alive=None if by_magnitude else self._masks,
        )
        masks = self.granularity.select(selection)
        # A weight that training left at exactly 0 ties with the removed ones.
        self._masks = [new & old for new, old in zip(masks, self._masks, strict=True)]
        self._target = sparsity
        self._put()

    def _put(self) -> None:
        """Set what the masks remove to 0, and have it stay so."""
        masks_changed()
        if self._optimizer is None:
            self._apply()
        else:
            self._optimizer._set_masks(dict(zip(self._indices, self._masks, strict=True)))

    def _apply(self) -> None:
        for name, w, mask in zip(self._names, self._weights, self._masks, strict=True):
            _core.apply_mask(w, mask, name)

    def __repr__(self) -> str:
        made = ", ".join(f"{name}={value}" for name, value in self._made_with().items())
        return f"<{type(self).__name__} of {len(self._masks)} arrays; {made}>"


def _description(value: object) -> str:
    """Return what something was made with, the same in every process."""
    if isinstance(value, functools.partial):
        given = [*map(repr, value.args), *(f"{k}={v!r}" for k, v in value.keywords.items())]
        return f"partial({', '.join([_description(value.func), *given])})"
    name: str | None = getattr(value, "__qualname__", None)
    if name is not None:
        return name
    kind = type(value)
    return kind.__qualname__ if kind.__repr__ is object.__repr__ else repr(value)


class MagnitudePruner(Pruner):
    """Removes the smallest weights along a schedule; a `Pruner` by `Magnitude`.

    Parameters, attributes and errors are those of `Pruner`.

    References
    ----------
    Zhu & Gupta, "To prune, or not to prune", arXiv 1710.01878.

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
        scope: Scope = "global",
        optimizer: Optimizer | None = None,
        *,
        granularity: Granularity | None = None,
        allow_empty: bool = False,
    ) -> None:
        super().__init__(
            params,
            schedule,
            Magnitude(),
            scope,
            optimizer,
            granularity=granularity,
            allow_empty=allow_empty,
        )

"""Pruners, which apply schedules to weights during training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from compressrs import _core
from compressrs._arrays import (
    Array,
    ArrayTree,
    named_arrays,
    read_only,
    rebuild,
    require_in_place,
)
from compressrs._assignment import assignable
from compressrs._checks import count, flag, number
from compressrs._state import Stateful, Take, Undo, all_or_nothing, require_keys
from compressrs.optim import Optimizer
from compressrs.optim._weights import Weights, holds_masks, masks_changed, masks_set
from compressrs.prune._weights import named_weights
from compressrs.prune.granularity import Granularity, as_granularity
from compressrs.prune.optimizers import require_index
from compressrs.prune.schedules import Schedule
from compressrs.prune.scores import Magnitude, Score, as_score
from compressrs.prune.selection import Mask, Scope, Selection, check_scope


class Pruner(Stateful):
    """Gradual pruning: removes the weights with the lowest scores along a schedule.

    Call `step` once after each step of the optimizer. Whenever the schedule's sparsity
    increases, new masks are computed. Removed weights stay removed, even if a schedule
    decreases.
    Between these steps masked weights are kept at exactly 0: if an optimizer is given, inside
    its update and together with their state; otherwise by resetting them to 0.

    Parameters
    ----------
    params : array, or list or nested dict of arrays
        The weights to prune, usually without biases. float32, float64,
        float16 or bfloat16, all of the same dtype, C-contiguous and writable; they are
        changed in place.
    schedule : callable
        Returns the sparsity in [0, 1) for a step, counted from 0: a `CubicSchedule`,
        `LinearSchedule`, `ExponentialSchedule`, `IterativeSchedule`, `OneShot`, or any
        function.
    score : Score, optional
        The pruning criterion: `Magnitude` (the default), `Random`, `Snip`, `Taylor`,
        `Movement` or `Wanda`.
    scope : {"global", "layer", "row"} or callable, default "global"
        Whether scores are ranked over all arrays together, within each array, or within
        each row. A function of the shapes and a sparsity, such as `erdos_renyi`, returns the
        sparsity of each array.
    optimizer : Optimizer, optional
        The optimizer that trains the weights. Its masks of other parameters are unchanged.
    granularity : Granularity, optional
        The unit that is removed: `Granularity` (single weights, the default), `NM`,
        `Blocks` or `Neurons`.
    allow_empty : bool, default False
        Whether all of a layer may be removed. Otherwise its highest score is kept, with an
        `EmptyLayerWarning`, and another weight is removed instead.

    Attributes
    ----------
    masks : array of bool, or list or nested dict of them
        In the structure of `params`, True where a weight is kept.
    sparsity : float
        Fraction of the weights that the masks remove.

    Raises
    ------
    TypeError
        If a parameter is not an array of such a dtype, a `Score` or a `Granularity`.
    ValueError
        If `scope` is unknown, there are no weights, or an array cannot be updated in
        place, shares memory with another, or is not one of the optimizer's parameters.

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
        self._names, self._weights = named_weights(params, "params")
        if sum(w.size for w in self._weights) == 0:
            raise ValueError("params must hold at least one weight, got none")
        self._structure = rebuild(params, iter([None] * len(self._weights)))
        self._masks: list[Mask] = [np.ones(w.shape, np.bool_) for w in self._weights]
        self._shared = Weights(type(self).__name__, self._names, self._weights)
        # Changes nothing; rejects arrays that cannot be updated in place.
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
        self.allow_empty = flag(allow_empty, "allow_empty")
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
        """The masks in the structure of the weights, read-only, True where a weight is kept."""
        return assignable(rebuild(self._structure, map(read_only, self._masks)), "masks")

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that the masks remove."""
        total = sum(mask.size for mask in self._masks)
        return 1 - sum(int(np.count_nonzero(mask)) for mask in self._masks) / total

    def step(self, grads: ArrayTree | None = None) -> None:
        """Prune to the schedule's sparsity; call once per training step.

        Parameters
        ----------
        grads : array, or list or nested dict of arrays, optional
            The gradients of this step, in the structure of the weights, for scores that
            depend on them.

        Raises
        ------
        TypeError
            If the score needs gradients and none are given.
        ValueError
            If the schedule returns a sparsity outside [0, 1), gradients have wrong shapes or
            are not finite, or a weight or a score is NaN; masks and score are unchanged in
            that case.
        """
        self._shared.require_unchanged()
        target = number(self.schedule(self.step_count), "the schedule's sparsity", 0, below=1)
        is_time = target > self._target
        with all_or_nothing() as undo:
            if is_time:
                undo.on_failure(masks_changed)
                undo.remember_attributes(self)
                undo.remember_state(self.score)
            if self.score.needs_gradients:
                if grads is None:
                    raise TypeError(f"step needs grads, of which {self.score!r} is made")
                self.score.update(self._weights, named_arrays(grads, "grads")[1])
            if self._optimizer is None or is_time:
                self._apply()
            if is_time:
                self._choose(target, undo)
        self.step_count += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the state needed to resume: masks, steps, score, and the configuration."""
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
        """Load what `state_dict` returned, and set removed weights to 0.

        Raises
        ------
        ValueError
            If it is invalid, or from a pruner of other weights or with another scope,
            schedule, score or granularity; nothing is changed in that case.
        """
        super().load_state_dict(state_dict)

    def _checked(self, state_dict: Mapping[str, Any]) -> Take:
        made_with = self._made_with()
        keys = ("masks", "step_count", "target", "score_state", *made_with)
        require_keys(state_dict, keys, ("param_names",))
        for name, value in made_with.items():
            if not isinstance(state_dict[name], str) or state_dict[name] != value:
                raise ValueError(f"state_dict must have {name} {value}, got {state_dict[name]}")
        step_count = count(state_dict["step_count"], "state_dict['step_count']")
        target = number(state_dict["target"], "state_dict['target']", 0, below=1)
        masks = self._checked_masks(state_dict)
        self._shared.require_unchanged(loading=True)
        take_score = self.score._checked(state_dict["score_state"])

        def take(undo: Undo) -> None:
            undo.on_failure(masks_changed)
            undo.remember_attributes(self)
            take_score(undo)
            self._masks, self.step_count, self._target = masks, step_count, target
            self._shared.state_loaded(undo)
            self._put(undo)

        return take

    def _checked_masks(self, state_dict: Mapping[str, Any]) -> list[Mask]:
        """Return the masks of a state dict, in the order of the weights."""
        try:
            masks = [np.array(mask) for mask in state_dict["masks"]]
        except (TypeError, ValueError) as error:
            raise ValueError(f"state_dict['masks'] must be a list of masks: {error}") from None
        names = state_dict.get("param_names", self._names)
        own = self._names
        # A single array needs no name.
        if not isinstance(names, (list, tuple)) or not (
            len(names) == len(own) == 1 or sorted(map(str, names)) == sorted(own)
        ):
            raise ValueError(f"state_dict['param_names'] must be {own}, got {names}")
        if len(names) == len(masks) > 1:
            masks = [masks[names.index(name)] for name in own]
        wanted = [mask.shape for mask in self._masks]
        if [mask.shape for mask in masks] != wanted or any(m.dtype != np.bool_ for m in masks):
            raise ValueError(
                f"state_dict['masks'] must be boolean, of shapes {wanted}, got "
                f"{[(str(mask.dtype), mask.shape) for mask in masks]}"
            )
        return masks

    def _choose(self, sparsity: float, undo: Undo) -> None:
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
        masks = self.granularity._select(selection)
        # A kept weight that is exactly 0 ties with removed ones.
        self._masks = [new & old for new, old in zip(masks, self._masks, strict=True)]
        self._target = sparsity
        self._put(undo)

    def _put(self, undo: Undo) -> None:
        """Set masked weights to 0, and pass the masks to the optimizer."""
        masks_changed()
        if self._optimizer is None:
            undo.remember(*self._weights)
            self._apply()
            masks_set(self._weights, undo)
        else:
            masks = [None if mask.all() else mask for mask in self._masks]
            self._optimizer._set_masks(dict(zip(self._indices, masks, strict=True)), undo)

    def _replace(
        self, find: Callable[[Array], tuple[int, Array] | None], cut: Callable[[int, Array], Array]
    ) -> None:
        """Prune smaller arrays in the place of those that `find` has one for."""
        found = {i: new for i, w in enumerate(self._weights) if (new := find(w)) is not None}

        def cut_own(i: int, values: Array) -> Array:
            return cut(found[i][0], values) if i in found else values

        self._weights = self._weights.replaced({i: array for i, (_, array) in found.items()})
        self._masks = [cut_own(i, mask) for i, mask in enumerate(self._masks)]
        self._shared = Weights(type(self).__name__, self._names, self._weights)
        masks_changed()
        self.score._replace(cut_own)

    def _apply(self) -> None:
        for name, w, mask in zip(self._names, self._weights, self._masks, strict=True):
            _core.apply_mask(w, mask, name)

    def __repr__(self) -> str:
        made = ", ".join(f"{name}={value}" for name, value in self._made_with().items())
        return f"<{type(self).__name__} of {len(self._masks)} arrays; {made}>"


def _description(value: object) -> str:
    """Return a description of a setting that is the same in every process."""
    if isinstance(value, functools.partial):
        given = [*map(repr, value.args), *(f"{k}={v!r}" for k, v in value.keywords.items())]
        return f"partial({', '.join([_description(value.func), *given])})"
    name: str | None = getattr(value, "__qualname__", None)
    if name is not None:
        return name
    kind = type(value)
    return kind.__qualname__ if kind.__repr__ is object.__repr__ else repr(value)


class MagnitudePruner(Pruner):
    """Gradual magnitude pruning: a `Pruner` with the score `Magnitude`.

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

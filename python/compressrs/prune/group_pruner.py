"""Structured pruning of whole units along a schedule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from compressrs import _core
from compressrs._arrays import Array
from compressrs._checks import choice, count, number
from compressrs._state import Stateful, Take, Undo, all_or_nothing, require_keys
from compressrs.nn import Sequential
from compressrs.optim import EMA, Optimizer
from compressrs.optim._weights import holds_masks, masks_changed, masks_set
from compressrs.prune.dependencies import array_of, groups, one_or_two
from compressrs.prune.optimizers import index_in
from compressrs.prune.schedules import Schedule
from compressrs.prune.selection import Mask
from compressrs.prune.shrinking import shrink


class GroupPruner(Stateful):
    """Structured pruning: masks whole neurons and filters along a schedule; `shrink` removes them.

    Weights, bias and normalization of a masked unit are 0, so its output is 0 for any input,
    and the outputs of the shrunk model are the same up to rounding. Outputs of the model are
    never pruned.

    Parameters
    ----------
    model : Sequential
    schedule : callable
        Share of the units to remove, in [0, 1), as a function of the step, counted from 0;
        see `Pruner`.
    optimizer : Optimizer, optional
        The optimizer that trains the model, which then keeps removed units at 0. Without
        one, `step` sets them to 0 again. Averages such as `EMA` keep them at 0 either way.
    scope : {"layer", "global"}, default "layer"
        Whether the same share of each group is removed, or the lowest of all units. Norms of
        units in different groups are not comparable unless their weights are of one scale, so
        that "global" may leave a group with a single unit.
    norm : {1, 2}, default 2
        The norm of the weights by which units are ranked.

    Attributes
    ----------
    groups : list of Group
    keep : dict of array of bool
        By name of the group: True for the units that are kept.

    Raises
    ------
    TypeError
        If `model` is not a `Sequential` or `schedule` not callable.
    ValueError
        If there are no units that can be removed, or an argument is invalid.

    References
    ----------
    Li et al., "Pruning Filters for Efficient ConvNets", arXiv 1608.08710;
    Fang et al., "DepGraph: Towards Any Structural Pruning", arXiv 2301.12900.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> model = cr.nn.Sequential(cr.nn.Linear(3, 8, rng=0), cr.nn.ReLU(), cr.nn.Linear(8, 2, rng=1))
    >>> opt = cr.optim.Adam(model.params)
    >>> pruner = cr.prune.GroupPruner(model, cr.prune.OneShot(0.75), optimizer=opt)
    >>> pruner.step()
    >>> x = np.ones((1, 3), np.float32)
    >>> masked = model(x)
    >>> pruner.shrink()
    >>> model[0].weight.shape, bool(np.allclose(model(x), masked))
    ((2, 3), True)
    """

    def __init__(
        self,
        model: Sequential,
        schedule: Schedule,
        optimizer: Optimizer | None = None,
        *,
        scope: Literal["global", "layer"] = "layer",
        norm: float = 2,
    ) -> None:
        if not callable(schedule):
            raise TypeError(f"schedule must be callable, got {type(schedule).__name__}")
        norm = one_or_two(norm)
        self.groups = groups(model)
        if not self.groups:
            raise ValueError("model must have units that can be removed, got none; see groups()")
        self._model, self._optimizer, self.schedule = model, optimizer, schedule
        self.scope, self.norm = choice(scope, "scope", ("global", "layer")), norm
        self.keep: dict[str, Mask] = {
            group.name: np.ones(group.size, np.bool_) for group in self.groups
        }
        self.step_count = 0
        self._target = 0.0
        if optimizer is not None:
            # Raises a TypeError unless it is an optimizer.
            for array, _ in self._masks():
                index_in(optimizer, array)
        holds_masks(self)

    def _held_masks(self) -> Iterator[tuple[Array, Mask]]:
        yield from ((array, mask) for array, mask in self._masks() if not mask.all())

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        holds_masks(self)

    @property
    def sparsity(self) -> float:
        """Share of the units that are removed."""
        total = sum(keep.size for keep in self.keep.values())
        return 1 - sum(int(keep.sum()) for keep in self.keep.values()) / total

    def step(self) -> None:
        """Prune to the schedule's share of the units; call once per training step.

        Raises
        ------
        ValueError
            If the schedule returns a share outside [0, 1), a weight is NaN, or the model was
            shrunk by something else; nothing is changed in that case.
        """
        self._require_unchanged()
        target = number(self.schedule(self.step_count), "the schedule's sparsity", 0, below=1)
        if target > self._target:
            keep = self._chosen(target)
            with all_or_nothing() as undo:
                undo.remember_attributes(self)
                self.keep, self._target = keep, target
                self._put(undo)
        else:
            self._apply()
        self.step_count += 1

    def shrink(self, ema: EMA | None = None) -> None:
        """Remove the masked units from the model, the optimizer and the averages.

        The pruner continues with the remaining units, to which the schedule's shares then
        refer.
        """
        self._require_unchanged()
        removed: dict[int | str, Mask] = {
            name: keep for name, keep in self.keep.items() if not keep.all()
        }
        shrink(self._model, removed, self._optimizer, ema=ema)
        self.groups = groups(self._model)
        self.keep = {group.name: np.ones(group.size, np.bool_) for group in self.groups}
        masks_changed()

    def state_dict(self) -> dict[str, Any]:
        """Return the masks of the units and the number of steps."""
        return {
            "keep": {name: keep.copy() for name, keep in self.keep.items()},
            "step_count": self.step_count,
            "target": self._target,
            "made_with": self._made_with(),
        }

    def _checked(self, state_dict: Mapping[str, Any]) -> Take:
        require_keys(state_dict, ("keep", "step_count", "target", "made_with"))
        self._require_unchanged()
        if repr(state_dict["made_with"]) != repr(self._made_with()):
            raise ValueError(
                f"state_dict['made_with'] must be {self._made_with()}, got "
                f"{state_dict['made_with']}"
            )
        step_count = count(state_dict["step_count"], "state_dict['step_count']")
        target = number(state_dict["target"], "state_dict['target']", 0, below=1)
        wanted = {name: mask.shape for name, mask in self.keep.items()}
        try:
            keep = {name: np.array(mask) for name, mask in state_dict["keep"].items()}
        except (AttributeError, TypeError, ValueError):
            keep = {}
        if {name: mask.shape for name, mask in keep.items()} != wanted or any(
            mask.dtype != np.bool_ or not mask.any() for mask in keep.values()
        ):
            raise ValueError(f"state_dict['keep'] must hold boolean masks of shapes {wanted}")

        def take(undo: Undo) -> None:
            undo.remember_attributes(self)
            self.keep, self.step_count, self._target = keep, step_count, target
            self._put(undo)

        return take

    def _made_with(self) -> dict[str, Any]:
        return {"schedule": repr(self.schedule), "scope": self.scope, "norm": self.norm}

    def _chosen(self, sparsity: float) -> dict[str, Mask]:
        """Return the masks of the units, at least one of which is kept in each group."""
        scores = {}
        for group in self.groups:
            of_group = group.scores(self._model, self.norm)
            if np.isnan(of_group).any():
                raise ValueError(f"the weights of layer {group.name} must not be NaN")
            # Masks only grow.
            of_group[~self.keep[group.name]] = -np.inf
            scores[group.name] = of_group
        if self.scope == "layer":
            return {name: _largest(s, round(sparsity * s.size)) for name, s in scores.items()}
        best = {name: int(np.argmax(s)) for name, s in scores.items()}
        flat = np.concatenate(list(scores.values()))
        ends = np.cumsum([s.size for s in scores.values()])
        starts = ends - [s.size for s in scores.values()]
        protected = [start + best[name] for name, start in zip(scores, starts, strict=True)]
        flat[protected] = np.inf
        kept = _largest(flat, min(round(sparsity * flat.size), flat.size - len(protected)))
        parts = zip(scores, starts, ends, strict=True)
        return {name: kept[start:end] for name, start, end in parts}

    def _require_unchanged(self) -> None:
        """Raise a ValueError if units of the model were removed by something else."""
        now = {group.name: group.size for group in groups(self._model)}
        if now != {name: keep.size for name, keep in self.keep.items()}:
            raise ValueError(
                "the model has other units than the GroupPruner was made with (they were removed "
                "by shrink or neurons); make a new GroupPruner"
            )

    def _masks(self) -> list[tuple[Array, Mask]]:
        """Return the parameters that produce and scale units, and their masks."""
        layers = dict(self._model.named_layers())
        found = []
        for group in self.groups:
            for member in group.members:
                layer = layers[member.layer]
                array = array_of(layer, member)
                if member.axis == 0 and array is not None and member.array in layer.params:
                    keep = self.keep[group.name]
                    # Skipped if the model was shrunk by something else, which `step` refuses.
                    if keep.size == len(array):
                        mask = keep.reshape(-1, *[1] * (array.ndim - 1))
                        found.append((array, np.broadcast_to(mask, array.shape).copy()))
        return found

    def _put(self, undo: Undo) -> None:
        """Set masked units to 0, and set the masks in the optimizer."""
        found = self._masks()
        arrays = [array for array, _ in found]
        undo.remember(*arrays)
        self._apply()
        masks_set(arrays, undo)
        if self._optimizer is not None:
            masks = {index_in(self._optimizer, array): mask for array, mask in found}
            self._optimizer._set_masks({i: m for i, m in masks.items() if i is not None}, undo)

    def _apply(self) -> None:
        for array, mask in self._masks():
            _core.apply_mask(array, mask, "a parameter of the model")

    def __repr__(self) -> str:
        return f"<GroupPruner of {len(self.groups)} groups; {self.sparsity:.0%} removed>"


def _largest(scores: Array, remove: int) -> Mask:
    """Return a mask that removes the lowest scores but one; among equals, the first."""
    keep = np.ones(scores.size, np.bool_)
    keep[np.argsort(scores, kind="stable")[: min(remove, scores.size - 1)]] = False
    return keep

"""The parts of parameters that a rank owns, as an optimizer of the rule, and the whole of them."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from compressrs import __version__, _core
from compressrs._arrays import Array, ArrayTree, dtype_of, require_in_place
from compressrs._state import Take, Undo
from compressrs.distributed.communicator import (
    Communicator,
    RankError,
    array_descriptions,
    checksum,
    together,
)
from compressrs.distributed.gradients import GradientSums
from compressrs.distributed.layout import Flat, Layout
from compressrs.distributed.offload import offloaded
from compressrs.distributed.partition import (
    Part,
    distribute,
    piece_count,
    split_in_pieces,
    whole_in_pieces,
)
from compressrs.distributed.pieces import gather_arrays, piece
from compressrs.optim._loading import plan
from compressrs.optim._moments import CODES, Buffer, has_codes
from compressrs.optim._weights import masks_set, packed, unpacked
from compressrs.optim.base import Optimizer


class PartitionedOptimizer(Optimizer):
    """Base class of `ShardedOptimizer`: all but its step and its files.

    It has the groups, names and masks of all parameters; of their state it has shapes and
    dtypes alone. The state itself is that of an optimizer of the rule whose parameters are
    views of the parts that this rank owns.
    """

    # A step sends messages: a signal handler must not send others in the middle of it.
    _consistent = frozenset(("save", "state_dict"))

    comm: Communicator
    rule: type[Optimizer]
    microbatches: int
    stage: int
    offload: Path | None
    #: The process whose state is in the file of `offload`.
    _process: int | None = None
    _arguments: dict[str, Any]
    _sums: GradientSums

    _only_real = "whose ranks exchange real numbers; train z.view(np.float64)"

    @property
    def _kind(self) -> str:
        return self.rule.__name__

    def _initial(self, wanted: list[Buffer]) -> dict[str, Array]:
        # Of the whole state there are shapes and dtypes alone: one number, seen everywhere.
        return {name: _shown(shape, dtype_of(dtype)) for name, shape, dtype, _ in wanted}

    def _prepare(self) -> None:
        arrays = self._arrays()
        require_in_place(arrays, self._names)
        for i in range(len(arrays)):
            numbers = {name: _shown((), np.dtype(np.float64)) for name in self._scalar_names}
            step = {"step": _shown((), np.dtype(np.int64))}
            self._state[i] = {**step, **numbers, **self._buffers(i)}

    def _build(self) -> None:
        """Divide the parameters among the ranks, and make the optimizer of this rank's parts."""
        arrays, rank, ranks = self._arrays(), self.comm.rank, self.comm.size
        sizes = [array.size for array in arrays]
        self._elementwise = all(
            _core.rule_is_elementwise(self._rule, group) for group in self._groups
        )
        # One process has nothing to exchange.
        count = piece_count(sum(sizes), ranks) if ranks > 1 else 1
        if self._elementwise:
            weights = [array.dtype.itemsize for array in arrays]
            parts, pieces = split_in_pieces(sizes, weights, ranks, _core.NORM_BLOCK, count)
        else:
            costs = [max(array.nbytes, 1) for array in arrays]
            parts = distribute(sizes, costs, ranks)
            pieces = whole_in_pieces(parts, costs, count)
        self._layout = Layout(parts, pieces, count, [array.dtype for array in arrays], ranks)
        self._sums = GradientSums(self._layout, self.comm, self.microbatches, self.stage)
        self._own = [part for part in parts if part.owner == rank]
        group_of = [g for g, group in enumerate(self._groups) for _ in group["params"]]
        groups: list[dict[str, Any]] = [
            {k: v for k, v in group.items() if k != "params"} | {"params": []}
            for group in self._groups
        ]
        for part in self._own:
            groups[group_of[part.tensor]]["params"].append(self._view(part))
        origins = [(part.tensor, part.start, sizes[part.tensor]) for part in self._own]
        if not self._own:
            # An optimizer has at least one parameter.
            groups[0]["params"].append(np.zeros((0, 0), arrays[0].dtype))
            origins = [(0, 0, 0)]
        self._inner = self.rule.__new__(self.rule)
        self._inner._parts = origins
        self._inner.__init__(groups, **self._arguments)  # type: ignore[misc]
        self._offload()
        self._grads: Flat | None = None
        #: What small arrays of each piece are packed into, by its owner.
        self._packed: list[list[Array]] | None = None
        #: Places of each piece's parts among this rank's.
        places = {part: place for place, part in enumerate(self._own)}
        self._pieces = [
            [places[parts[number]] for number in numbers] for numbers in self._layout.numbers[rank]
        ]

    def _offload(self) -> None:
        """Move the state of this rank's parts to a file."""
        if self.offload is not None:
            self._process = os.getpid()
            inner = self._inner
            moved = offloaded([inner._buffers(i) for i in inner._state], self.offload)
            inner._state = {
                i: {"step": inner._state[i]["step"], **buffers} for i, buffers in enumerate(moved)
            }
            inner._prepare()

    def _require_own_process(self) -> None:
        """Raise an error in a forked child, whose writes to the file the parent would see."""
        if self._process not in (None, os.getpid()):
            raise RuntimeError(
                "a ShardedOptimizer with offload cannot be used in a forked child: its state is in "
                "a file that the child shares with the process that was forked; make a new one in "
                "the child, or start processes with multiprocessing's 'spawn' method"
            )

    def _require_idle(self, what: str) -> None:
        # What every call that needs the state begins with.
        self._require_own_process()
        super()._require_idle(what)

    def _view(self, part: Part) -> Array:
        array = self._arrays()[part.tensor]
        return array.reshape(-1)[part.start : part.stop] if self._elementwise else array

    def _description(self) -> dict[str, str]:
        """Return all that the ranks must agree on."""
        what = {
            "version of compressrs": __version__,
            "rule": self.rule.__name__,
            "number of micro-batches": str(self.microbatches),
            "stage": str(self.stage),
        }
        return what | array_descriptions(self._names, self._arrays()) | self._settings()

    def _settings(self) -> dict[str, str]:
        return {
            f"{key} of param_groups[{g}]": repr(value)
            for g, group in enumerate(self._groups)
            for key, value in group.items()
            if key != "params"
        }

    def _sync(self) -> None:
        """Hand changed hyperparameters to the optimizer of this rank's parts."""
        for group, inner in zip(self._groups, self._inner._groups, strict=True):
            for key, value in group.items():
                if key != "params" and inner.get(key, self) is not value:
                    inner[key] = value

    @contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        """Tell the other ranks, and drop what was accumulated, if the block raises."""
        try:
            yield
        except RankError:
            self._sums.release()
            raise
        except BaseException as error:
            self._sums.release()
            self.comm.tell(what, error)
            raise

    # Changes.

    def set_masks(self, masks: ArrayTree | None) -> None:
        """Set masked weights and their state to exactly 0, and keep them there.

        Collective; see `Optimizer.set_masks`.

        Raises
        ------
        TypeError
            If a mask is not boolean.
        ValueError
            If a mask does not have its parameter's shape, or ranks are given other masks; the
            message names one. Nothing is changed on any rank in that case.
        """
        super().set_masks(masks)

    def _set_masks(self, masks: Mapping[int, Any], undo: Undo) -> None:
        with together(self.comm, "set_masks"):
            super()._set_masks(masks, undo)
            self._set_inner_masks(masks, undo)
        self._require_same_masks()

    def _require_same_masks(self) -> None:
        if self.comm.size > 1:
            self.comm.require_same(
                {f"mask of {n}": _mask(m) for n, m in zip(self._names, self._masks, strict=True)}
            )

    def _set_inner_masks(self, indices: Iterable[int], undo: Undo) -> None:
        """Hand the masks of these tensors to the optimizer of this rank's parts."""
        chosen = set(indices)
        own = {}
        for k, part in enumerate(self._own):
            if part.tensor in chosen:
                bits, view = self._masks[part.tensor], self._view(part)
                mask = None
                if bits is not None:
                    flat = unpacked(bits, self._arrays()[part.tensor].shape).reshape(-1)
                    mask = flat[part.start : part.stop].reshape(view.shape)
                own[k] = mask
        self._inner._set_masks(own, undo)

    def _clear_masked_state(self, i: int) -> None:
        pass  # that of the parts is cleared by their optimizer

    def _apply_masks(self, indices: Iterable[int], undo: Undo) -> None:
        arrays = self._arrays()
        for i in indices:
            bits = self._masks[i]
            if bits is not None:
                undo.remember(arrays[i])
                _core.apply_mask(arrays[i], unpacked(bits, arrays[i].shape), self._names[i])

    def _together(self, what: str) -> AbstractContextManager[None]:
        return self.comm.together(what)

    def _mean_over_ranks(self, value: float) -> float:
        values = self.comm.allgather(value)
        mean = sum(values) / self.comm.size
        # A sum can overflow where the mean does not.
        return float(mean if math.isfinite(mean) else sum(v / self.comm.size for v in values))

    def _configure(self, changes: list[dict[str, Any]], what: str) -> None:
        with self._changing(what), self._transaction(), self._inner._transaction():
            with together(self.comm, what):
                self._reconfigure(changes, what)
            self.comm.require_same(self._settings())

    def _reconfigure(self, changes: list[dict[str, Any]], what: str) -> None:
        self._sync()
        for group, change in zip(self._groups, changes, strict=True):
            group.update(change)
        self._inner._configure(changes, what)
        self._offload()
        i = 0
        for group in self._groups:
            for array in group["params"]:
                self._state[i] = self._initial(self._wanted(group, array, i))
                i += 1
        self._prepare()

    def _replace(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            "parameters of a ShardedOptimizer cannot be replaced by smaller ones; make a new one"
        )

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add a group of parameters; all parts are then divided anew.

        Collective; see `Optimizer.add_param_group`. The whole state is gathered meanwhile.

        Raises
        ------
        TypeError, ValueError
            As `Optimizer.add_param_group`, or if ranks were given other groups, values included;
            nothing is added on any rank in that case.
        RankError
            If another rank fails.
        """
        state = self._gathered()
        # What another rank finds after this one has added the group is undone here as well.
        with self._transaction():
            with together(self.comm, "add_param_group"):
                super().add_param_group(group)
                masked = [i for i, mask in enumerate(self._masks) if mask is not None]
                self._build()
                self._write_state(state, Undo())
                self._set_inner_masks(masked, Undo())
            self.comm.require_same(self._description())

    # State.

    @property
    def state(self) -> dict[int, dict[str, Array]]:
        """The state of this rank's parts, by their number; its arrays may be written to."""
        self._require_own_process()
        return self._inner.state if self._own else {}

    @property
    def _numbers(self) -> tuple[str, ...]:
        return ("step", *self._scalar_names)

    def _piece(self, buffers: Mapping[str, Array], name: str, part: Part) -> Array:
        """Return the view of a part in a whole buffer, in the shape that the part's has."""
        return piece(buffers, name, part, self._numbers) if self._elementwise else buffers[name]

    def _gathered(self) -> dict[int, dict[str, Array]]:
        """Return the whole state, on all ranks."""
        self._require_own_process()
        with together(self.comm, "gathering the state"):
            whole = {
                i: {name: np.empty(shown.shape, shown.dtype) for name, shown in buffers.items()}
                for i, buffers in self._state.items()
            }
        arrays = []
        own = iter(range(len(self._own)))
        for part in self._layout.parts:
            source = self._inner.state[next(own)] if part.owner == self.comm.rank else None
            for name in whole[part.tensor]:
                if name in self._numbers and part.start:
                    continue  # all parts of a tensor have the same
                target = self._piece(whole[part.tensor], name, part)
                if source is not None:
                    target[...] = source[name].reshape(target.shape)
                arrays.append((part.owner, target))
        gather_arrays(self.comm, arrays)
        return whole

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state, hyperparameters and masks, as the rule's own optimizer does.

        Collective. All ranks get copies of all state, which `save` does not need. It can be
        loaded on any number of ranks, and by the rule's optimizer in one process.
        """
        with self._reading("state_dict"):
            self._sync()
            state = self._gathered()
            result = super().state_dict()
            result.pop("codes", None)
            codes = {"codes": dict(CODES)} if has_codes(state) else {}
            return {**result, "state": state, **codes}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict`, or that of the rule's optimizer, returned.

        Collective; all ranks are given the same.

        Raises
        ------
        ValueError
            If it does not match, or ranks are given another one; nothing is changed on any rank
            in that case.
        """
        with together(self.comm, "load_state_dict"):
            super().load_state_dict(state_dict)

    def _checked(self, state_dict: Mapping[str, Any]) -> Take:
        with self._failing("load_state_dict"):
            updates, copies, masks = plan(self, state_dict)
            values: dict[int, dict[str, Array]] = {}
            for name, i, value in copies:
                values.setdefault(i, {})[name] = value
        keys = [f"{name} of the state of {self._names[i]}" for name, i, _ in copies]
        arrays = [np.ascontiguousarray(value) for *_, value in copies]
        hyperparameters = {f"hyperparameters of group {g}": repr(u) for g, u in enumerate(updates)}
        self.comm.require_same({**array_descriptions(keys, arrays), **hyperparameters})

        def take(undo: Undo) -> None:
            with together(self.comm, "load_state_dict"):
                self._take(updates, masks, undo)
                self._write_state(values, undo)
                self._finish_loading(masks, undo)
            self._require_same_masks()

        return take

    def _take(
        self, updates: list[dict[str, Any]], masks: list[Array | None] | None, undo: Undo
    ) -> None:
        """Take over hyperparameters and masks."""
        with self._changing("load_state_dict"):
            self._remember(undo)
            if masks is not None:
                self._masks = [packed(mask) for mask in masks]
            for group, update in zip(self._groups, updates, strict=True):
                group.update(update)
            self._prepare()
            self._inner._remember(undo)
            self._sync()
            self._inner._prepare()

    def _write_state(self, whole: Mapping[int, dict[str, Array]], undo: Undo) -> None:
        """Write what belongs to this rank's parts of the whole state."""
        for k, part in enumerate(self._own):
            for name in whole.get(part.tensor, {}):
                target = self._inner._state[k][name]
                value = self._piece(whole[part.tensor], name, part)
                undo.write(target, value.reshape(target.shape))

    def _finish_loading(self, masks: list[Array | None] | None, undo: Undo) -> None:
        """Apply masks to weights and state."""
        indices = range(len(self._paths))
        self._apply_masks(indices, undo)
        if masks is not None:
            self._set_inner_masks(indices, undo)
            masks_set(self._arrays(), undo)

    # Copies.

    def __getstate__(self) -> dict[str, Any]:
        self._require_own_process()
        # The optimizer of the parts refers to views of the parameters, which copies divide anew.
        inner = [dict(buffers) for buffers in self._inner._state.values()]
        without = ("_inner", "_grads", "_packed")
        state = {k: v for k, v in super().__getstate__().items() if k not in without}
        return {**state, "_inner_buffers": copy.deepcopy(inner)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        inner = state.pop("_inner_buffers")
        sums = state["_sums"]
        super().__setstate__(state)
        self._build()
        self._sums = sums
        self.comm.drop_on_errors(sums)
        for k, buffers in enumerate(inner):
            for name, values in buffers.items():
                self._inner._state[k][name][...] = values
        masked = [i for i, mask in enumerate(self._masks) if mask is not None]
        self._set_inner_masks(masked, Undo())


def _mask(bits: Array | None) -> str:
    return "none" if bits is None else f"one with the checksum {checksum(bits)}"


def _shown(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return a read-only array of zeros that takes the memory of one."""
    return np.broadcast_to(np.zeros((), dtype), shape)

"""Gradients of micro-batches, summed in a fixed tree and reduced to the owners of their parts."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from compressrs._arrays import Array, as_gradient, flatten_like, is_floating
from compressrs.distributed.communicator import Communicator
from compressrs.distributed.layout import Flat, Layout
from compressrs.distributed.partition import shares
from compressrs.distributed.tree import Node, TreeSum, cover


class Given:
    """Gradients where the caller has them, which are only read.

    Parameters
    ----------
    layout : Layout
    grads : list of (array or None)
        In the order of the parameters.
    """

    def __init__(self, layout: Layout, grads: list[Array | None]) -> None:
        self.rows = [
            None
            if grad is None
            else np.ascontiguousarray(grad.reshape(-1).astype(dtype, copy=False))
            for grad, dtype in zip(grads, layout.dtypes, strict=True)
        ]


class _Sum(NamedTuple):
    """A piece of a sum, and whether it may be written to."""

    flat: Flat
    own: bool


#: Elements that are scaled at a time before they are added, which the cache holds.
_FEW = 1 << 14

#: Where the gradients of a node are.
Source: TypeAlias = Flat | Given


class GradientSums:
    """The sums of the gradients of this rank's micro-batches, and their reduction.

    Parameters
    ----------
    layout : Layout
    comm : Communicator
    microbatches : int
    stage : int
        1: a rank adds up consecutive micro-batches, which are reduced in a step. 2: micro-batches
        are dealt out in turn, and each round of them is reduced at once; a rank keeps the sums of
        its own parts alone.
    """

    def __init__(self, layout: Layout, comm: Communicator, microbatches: int, stage: int) -> None:
        self.layout, self.comm, self.total, self.stage = layout, comm, microbatches, stage
        ranks = range(comm.size)
        self.shares = (
            [range(r, microbatches, comm.size) for r in ranks]
            if stage == 2
            else shares(microbatches, comm.size)
        )
        #: What gradients are multiplied by before they are added, so that a sum is finite where
        #: the mean is: a power of two, which changes no other digit.
        self.scale = 0.5 ** (microbatches - 1).bit_length()
        self._free: list[Flat] = []
        #: Two for each node of each other rank: one is received while the other is added.
        self._received: dict[tuple[int, int, int], Flat] = {}
        #: What pieces of `Given` are copied to where they have several parts.
        self._copies: list[Flat] = []
        #: Whether a micro-batch gave a gradient, by tensor.
        self.given = np.zeros(len(layout.dtypes), np.bool_)
        self.reset()
        comm.drop_on_errors(self)

    def reset(self) -> None:
        """Forget what has been accumulated. Allocates nothing, since memory may have run out."""
        self.tree: TreeSum[Any] = TreeSum(self.total, self._add)
        self.done: set[int] = set()
        self.rounds = 0
        self.given[:] = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_free": [], "_received": {}, "_copies": []}

    def release(self) -> None:
        """Forget the sums, but keep their memory for the next ones."""
        self._free += [flat for flat in self.tree.nodes.values() if isinstance(flat, dict)]
        self.reset()

    def add(self, index: int, grads: list[Array | None]) -> None:
        """Add the gradients of a micro-batch; None counts as zeros."""
        left = self.tree.take_left(index)
        if left is None:
            node, flat = (index, index + 1), self._free.pop() if self._free else self.layout.empty()
        else:
            node, flat = left
        rows = [None if grad is None else grad.reshape(-1) for grad in grads]
        for part, view in zip(self.layout.parts, self.layout.views(flat), strict=True):
            row = rows[part.tensor]
            if row is None and left is None:
                view[...] = 0
            elif row is not None and left is None:
                np.multiply(row[part.start : part.stop], self.scale, out=view, dtype=view.dtype)
            elif row is not None:
                _add_times(row[part.start : part.stop], self.scale, view)
        self.tree.insert(node, flat)
        self._note(index, grads)

    def add_given(self, index: int, given: Given) -> None:
        """Add the gradients of this rank's only micro-batch, without a copy."""
        self.tree.insert((index, index + 1), given)
        self._note(index, given.rows)

    def _note(self, index: int, grads: Sequence[Array | None]) -> None:
        self.done.add(index)
        self.given |= [grad is not None for grad in grads]

    def _add(self, left: Flat, right: Flat) -> Flat:
        self._free.append(right)
        for dtype, values in left.items():
            np.add(values, right[dtype], out=values)
        return left

    def _covers(self) -> list[list[Node]]:
        """Return the nodes that each rank's micro-batches make up."""
        return [cover(own.start, own.stop, self.total) for own in self.shares]

    def _leaves(self) -> list[list[Node]]:
        """Return the leaves of each rank in the next round."""
        first = self.rounds * self.comm.size
        leaves = range(first, first + self.comm.size)
        return [[(i, i + 1)] if i < self.total else [] for i in leaves]

    def allocate(self, copies: bool = False) -> None:
        """Allocate what a reduction needs, so that it does not fail by a lack of memory."""
        rank, size = self.comm.rank, self.comm.size
        if size == 1 and self.stage == 1:
            return
        nodes = self._leaves() if self.stage == 2 else self._covers()
        for r in range(size):
            for n in range(len(nodes[r]) if r != rank else 0):
                for turn in range(2):
                    if (r, n, turn) not in self._received:
                        self._received[r, n, turn] = self.layout.empty_piece(rank)
        if copies and not self._copies:
            self._copies = [self.layout.empty_piece(r) for r in range(size)]
        if self.stage == 2:
            while len(self._free) < len(self._round_nodes()):
                self._free.append(self.layout.empty_of(rank))

    def _round_nodes(self) -> list[Node]:
        first = self.rounds * self.comm.size
        return cover(first, min(first + self.comm.size, self.total), self.total)

    def add_round(self, given: Given | None) -> None:
        """Reduce a micro-batch of each rank that has one left; all ranks call it, after `allocate`.

        Parameters
        ----------
        given : Given or None
            The gradients of this rank's micro-batch, if it has one in this round.
        """
        rank, leaves = self.comm.rank, self._leaves()
        sources: dict[Node, Source] = {}
        if given is not None:
            sources[leaves[rank][0]] = given
        targets = {node: self._free.pop() for node in self._round_nodes()}
        for k, nodes in self._reduced(sources, leaves):
            for node, target in targets.items():
                _copy(self.layout.of_own_piece(rank, k, target), nodes[node].flat)
        for node, target in targets.items():
            self.tree.insert(node, target)
        self.rounds += 1
        if given is not None:
            self._note(leaves[rank][0][0], given.rows)

    @property
    def count(self) -> float:
        """What the sums are divided by to become means: from 1/2 to 1."""
        return self.total * self.scale

    def pieces(self) -> Iterator[tuple[int, list[Array | None]]]:
        """Yield the pieces of this rank's parts of the sum over all micro-batches, times `scale`.

        The next piece is on its way meanwhile. With stage 1 and several ranks the arrays are
        overwritten after the piece that follows.

        A rank sends the nodes of the tree that its micro-batches make up, and the owner of a
        part adds what it received as the tree says: the result does not depend on the ranks.
        Where each rank's micro-batches are a node, as with powers of two, it sends as much as a
        reduce-scatter does.
        """
        rank, layout = self.comm.rank, self.layout
        if self.stage == 2:
            own = self.tree.result()
            for k in range(layout.count):
                flat = layout.of_own_piece(rank, k, own)
                yield k, [*layout.views_of_piece(rank, k, flat)]
            return
        if self.comm.size == 1:
            result = self.tree.result()
            for k in range(layout.count):
                yield k, self._views(k, result)
            return
        root = (0, self.total)
        for k, nodes in self._reduced(self.tree.nodes, self._covers()):
            yield k, [*layout.views_of_piece(rank, k, nodes[root].flat)]

    def _views(self, k: int, source: Source) -> list[Array | None]:
        """Return the views of a piece of the only rank."""
        layout = self.layout
        if not isinstance(source, Given):
            return [*layout.views_of_piece(0, k, layout.of_piece(0, k, source))]
        parts = [layout.parts[number] for number in layout.numbers[0][k]]
        rows = [source.rows[part.tensor] for part in parts]
        pairs = zip(rows, parts, strict=True)
        return [None if row is None else row[part.start : part.stop] for row, part in pairs]

    def _reduced(
        self, sources: Mapping[Node, Source], nodes: list[list[Node]]
    ) -> Iterator[tuple[int, dict[Node, _Sum]]]:
        """Yield the sums over all ranks of the pieces of this rank's parts.

        Parameters
        ----------
        sources : dict
            The gradients of this rank's nodes.
        nodes : list of list
            The nodes of each rank.
        """
        rank, size, layout = self.comm.rank, self.comm.size, self.layout
        wait = self._start(0, sources, nodes)
        for k in range(layout.count):
            wait()
            if k + 1 < layout.count:
                wait = self._start(k + 1, sources, nodes)
            sums: TreeSum[_Sum] = TreeSum(self.total, _added)
            for r in range(size):
                for n, node in enumerate(nodes[r]):
                    if r == rank:
                        source = sources[node]
                        value = _Sum(self._piece(rank, k, source), isinstance(source, dict))
                    else:
                        buffer = self._received[r, n, k % 2]
                        value = _Sum(layout.of_buffer(rank, k, buffer), True)
                    sums.insert(node, value)
            yield k, sums.nodes

    def _start(
        self, k: int, sources: Mapping[Node, Source], nodes: list[list[Node]]
    ) -> Callable[[], object]:
        rank, size, layout = self.comm.rank, self.comm.size, self.layout
        send: list[list[Array]] = [[] for _ in range(size)]
        receive: list[list[Array]] = [[] for _ in range(size)]
        for r in range(size):
            if r != rank:
                for node in nodes[rank]:
                    send[r] += self._piece(r, k, sources[node]).values()
                for n in range(len(nodes[r])):
                    buffer = self._received[r, n, k % 2]
                    receive[r] += layout.of_buffer(rank, k, buffer).values()
        return self.comm.start_exchange(send, receive)

    def _piece(self, rank: int, k: int, source: Source) -> Flat:
        """Return what a node has of a piece, in one array for each dtype."""
        layout = self.layout
        if not isinstance(source, Given):
            return layout.of_piece(rank, k, source)
        numbers = layout.numbers[rank][k]
        copied = layout.of_buffer(rank, k, self._copies[rank])
        views = layout.views_of_piece(rank, k, copied)
        for number, view in zip(numbers, views, strict=True):
            part = layout.parts[number]
            row = source.rows[part.tensor]
            if row is None:
                view[...] = 0
            elif self.scale == 1 and len(view) == len(copied[view.dtype]):
                copied[view.dtype] = row[part.start : part.stop]  # alone in its array
            else:
                np.multiply(row[part.start : part.stop], self.scale, out=view)
        return copied


def _add_times(values: Array, scale: float, total: Array) -> None:
    """Add values times `scale`, rounded as where it is not added: a sum is of the same bits."""
    few = np.empty(min(values.size, _FEW), total.dtype)
    for low in range(0, values.size, _FEW):
        some = values[low : low + _FEW]
        np.multiply(some, scale, out=few[: some.size], dtype=total.dtype)
        target = total[low : low + _FEW]
        np.add(target, few[: some.size], out=target)


def _added(left: _Sum, right: _Sum) -> _Sum:
    """Return the sum of two pieces, in the memory of one that may be written to."""
    target = left if left.own else right if right.own else None
    flat = {
        dtype: np.add(values, right.flat[dtype], out=None if target is None else target.flat[dtype])
        for dtype, values in left.flat.items()
    }
    return _Sum(flat, True)


def _copy(target: Flat, source: Flat) -> None:
    for dtype, values in source.items():
        target[dtype][...] = values


def overlap(grads: Sequence[Array | None], arrays: Sequence[Array]) -> bool:
    """Whether a gradient may share memory with one of these arrays, which share none."""
    bounds = sorted(np.lib.array_utils.byte_bounds(array) for array in arrays if array.size)
    starts = [start for start, _ in bounds]
    for grad in grads:
        if grad is not None and grad.size:
            low, high = np.lib.array_utils.byte_bounds(grad)
            before = bisect.bisect_left(starts, high)
            if before and bounds[before - 1][1] > low:
                return True
    return False


def checked_gradients(
    structure: Any, grads: Any, arrays: list[Array], paths: list[str]
) -> list[Array | None]:
    """Return the gradients in the order of the parameters.

    Raises
    ------
    TypeError
        If one is not an array of a floating-point dtype.
    ValueError
        If the structure or a shape is another.
    """
    flat = flatten_like(structure, grads, "grads")
    checked: list[Array | None] = []
    for grad, array, path in zip(flat, arrays, paths, strict=True):
        if grad is None:
            checked.append(None)
            continue
        name = f"grads{path}"
        values = as_gradient(grad, name)
        if not is_floating(values.dtype):
            raise TypeError(f"{name} must be of a floating-point dtype, got {values.dtype}")
        if values.shape != array.shape:
            raise ValueError(
                f"{name} must have the shape {array.shape} of params{path}, got {values.shape}"
            )
        checked.append(values)
    return checked

"""Gradients of micro-batches, summed in a fixed tree and reduced to the owners of their parts."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressrs._arrays import Array, as_gradient, flatten_like
from compressrs.distributed.communicator import Communicator
from compressrs.distributed.layout import Flat, Layout
from compressrs.distributed.partition import shares
from compressrs.distributed.tree import TreeSum, cover


class GradientSums:
    """The sums of the gradients of this rank's micro-batches, and their reduction.

    Parameters
    ----------
    layout : Layout
    comm : Communicator
    microbatches : int
    """

    def __init__(self, layout: Layout, comm: Communicator, microbatches: int) -> None:
        self.layout, self.comm, self.total = layout, comm, microbatches
        self.shares = shares(microbatches, comm.size)
        self._free: list[Flat] = []
        self._received: list[list[Flat]] | None = None
        self.reset()
        comm.drop_on_errors(self)

    def reset(self) -> None:
        """Forget what has been accumulated."""
        self.tree: TreeSum[Flat] = TreeSum(self.total, self._add)
        self.done: set[int] = set()
        #: Whether a micro-batch gave a gradient, by tensor.
        self.given = np.zeros(len(self.layout.dtypes), np.bool_)

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
            values: Any = 0
            if row is not None:
                # Converted first: a sum must not depend on where a leaf is added to it.
                values = row[part.start : part.stop].astype(view.dtype, copy=False)
            if left is None:
                view[...] = values
            else:
                np.add(view, values, out=view)
        self.tree.insert(node, flat)
        self.done.add(index)
        self.given |= [grad is not None for grad in grads]

    def _add(self, left: Flat, right: Flat) -> Flat:
        self._free.append(right)
        return _add_in_place(left, right)

    def allocate(self) -> None:
        """Allocate what `reduce` receives into, so that it does not fail by a lack of memory."""
        if self._received is None and self.comm.size > 1:
            rank = self.comm.rank
            counts = [len(self._cover(r)) if r != rank else 0 for r in range(self.comm.size)]
            self._received = [[self.layout.empty_of(rank) for _ in range(n)] for n in counts]

    def _cover(self, rank: int) -> list[tuple[int, int]]:
        own = self.shares[rank]
        return cover(own.start, own.stop, self.total)

    def reduce(self) -> Flat:
        """Return the sums over all micro-batches of the parts that this rank owns.

        A rank sends the nodes of the tree that its micro-batches make up, and the owner of a
        part adds what it received as the tree says: the result does not depend on the ranks.
        Where each rank's micro-batches are a node, as with powers of two, it sends as much as a
        reduce-scatter does.
        """
        layout, comm = self.layout, self.comm
        rank = comm.rank
        if comm.size == 1:
            return self.tree.result()
        self.allocate()
        assert self._received is not None
        own = [self.tree.nodes[node] for node in self._cover(rank)]
        others = [r for r in range(comm.size) if r != rank]
        send: list[list[Array]] = [[] for _ in range(comm.size)]
        for r in others:
            send[r] = [array for flat in own for array in layout.of(r, flat).values()]
        receive = [[array for flat in flats for array in flat.values()] for flats in self._received]
        comm.exchange(send, receive)
        sums: TreeSum[Flat] = TreeSum(self.total, _add_in_place)
        for r in range(comm.size):
            flats = [layout.of(rank, f) for f in own] if r == rank else self._received[r]
            for node, flat in zip(self._cover(r), flats, strict=True):
                sums.insert(node, flat)
        return sums.result()

    def release(self) -> None:
        """Forget the sums, but keep their memory for the next ones."""
        self._free += [flat for flat in self.tree.nodes.values() if isinstance(flat, dict)]
        self.reset()


def _add_in_place(left: Flat, right: Flat) -> Flat:
    for dtype, values in left.items():
        np.add(values, right[dtype], out=values)
    return left


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
        if values.dtype.kind != "f" and values.dtype.name != "bfloat16":
            raise TypeError(f"{name} must be of a floating-point dtype, got {values.dtype}")
        if values.shape != array.shape:
            raise ValueError(
                f"{name} must have the shape {array.shape} of params{path}, got {values.shape}"
            )
        checked.append(values)
    return checked

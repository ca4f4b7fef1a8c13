"""Sums in a fixed tree over micro-batches, whichever rank computes which of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeAlias, TypeVar

Value = TypeVar("Value")

#: A range of leaves that is added up by itself.
Node: TypeAlias = tuple[int, int]


def middle(low: int, high: int) -> int:
    """Return where the node ``low..high`` of the tree is divided.

    Its left child is as large a power of two as leaves something for the right one, so that a
    sum over consecutive leaves needs as many buffers as their number has binary digits.
    """
    return low + (1 << ((high - low - 1).bit_length() - 1))


def cover(low: int, high: int, total: int) -> list[tuple[int, int]]:
    """Return the largest nodes of the tree over `total` leaves within ``low..high``, in order.

    Examples
    --------
    >>> cover(0, 4, 8), cover(4, 8, 8)
    ([(0, 4)], [(4, 8)])
    >>> cover(2, 5, 8)
    [(2, 4), (4, 5)]
    """

    def within(start: int, stop: int) -> Iterator[tuple[int, int]]:
        if low <= start and stop <= high:
            yield start, stop
        elif start < high and low < stop:
            cut = middle(start, stop)
            yield from within(start, cut)
            yield from within(cut, stop)

    return list(within(0, total)) if low < high else []


class TreeSum(Generic[Value]):
    """Adds values of the leaves ``0..total``, given in any order, in the order of the tree.

    Parameters
    ----------
    total : int
        Number of leaves, at least 1.
    add : function
        ``add(left, right)`` returns the sum, perhaps in the memory of `left`.
    """

    def __init__(self, total: int, add: Callable[[Value, Value], Value]) -> None:
        self.total, self._add = total, add
        #: The sums that cannot be added to others yet, by their nodes.
        self.nodes: dict[tuple[int, int], Value] = {}

    def family(self, node: tuple[int, int]) -> tuple[int, int, int]:
        """Return the limits and the middle of the parent of a node other than the root."""
        low, high = 0, self.total
        while True:
            cut = middle(low, high)
            if node in ((low, cut), (cut, high)):
                return low, cut, high
            low, high = (low, cut) if node[1] <= cut else (cut, high)

    def take_left(self, leaf: int) -> tuple[tuple[int, int], Value] | None:
        """Remove and return the sum that a leaf can be added to at once, with their parent.

        None if the leaf is a left child, or its sibling has not been inserted yet. The caller
        adds the leaf and inserts the sum at the parent.
        """
        if self.total == 1:
            return None
        low, cut, high = self.family((leaf, leaf + 1))
        if cut != leaf or (low, cut) not in self.nodes:
            return None
        return (low, high), self.nodes.pop((low, cut))

    def insert(self, node: tuple[int, int], value: Value) -> None:
        """Insert the sum of a node, and add what can be added."""
        while node != (0, self.total):
            low, cut, high = self.family(node)
            other = (cut, high) if node == (low, cut) else (low, cut)
            if other not in self.nodes:
                break
            sibling = self.nodes.pop(other)
            pair = (value, sibling) if node == (low, cut) else (sibling, value)
            node, value = (low, high), self._add(*pair)
        self.nodes[node] = value

    def result(self) -> Value:
        """Return the sum over all leaves, which must have been inserted."""
        return self.nodes[0, self.total]

"""Which rank owns which part of which tensor: arithmetic alone, on sizes of any magnitude."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

#: Elements that a piece has at least, so that its messages are worth their latency.
_PIECE = 1 << 18
_MOST_PIECES = 32
#: Parts of all ranks that are made for pieces, at most: each rank knows of all.
_MOST_PARTS = 4096


class Part(NamedTuple):
    """The elements ``start..stop`` of a tensor, in C order, and the rank that owns them."""

    owner: int
    tensor: int
    start: int
    stop: int


def split(sizes: Sequence[int], weights: Sequence[int], ranks: int, block: int) -> list[Part]:
    """Divide tensors into parts of about the same total weight for each rank.

    The tensors are seen as one long range that is cut into as many ranges as there are ranks,
    at multiples of `block` elements of a tensor.

    Parameters
    ----------
    sizes : sequence of int
        The tensors' numbers of elements.
    weights : sequence of int
        Weight of an element of each tensor, at least 1.
    ranks : int
    block : int

    Returns
    -------
    list of Part
        In the order of owners, then of tensors. Each tensor has at least one part, which is
        empty if the tensor is.

    Examples
    --------
    >>> split([100, 60], [1, 1], 2, 10)
    [Part(owner=0, tensor=0, start=0, stop=80), Part(owner=1, tensor=0, start=80, stop=100), \
Part(owner=1, tensor=1, start=0, stop=60)]
    """
    total = sum(size * weight for size, weight in zip(sizes, weights, strict=True))
    parts, rank, first = [], 0, 0
    for tensor, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        start = 0
        while True:
            # The end of the rank's range, in elements of this tensor.
            limit = (total * (rank + 1) // ranks - first) // weight
            cut = size if rank == ranks - 1 else -(-(limit - block // 2) // block) * block
            stop = min(max(cut, start), size)
            if stop > start or (size == 0 and start == 0):
                parts.append(Part(rank, tensor, start, stop))
            if stop == size:
                break
            start, rank = stop, rank + 1
        first += size * weight
    return parts


def distribute(sizes: Sequence[int], costs: Sequence[int], ranks: int) -> list[Part]:
    """Give whole tensors to ranks: each, the most expensive first, to the least loaded rank.

    Examples
    --------
    >>> [part.owner for part in distribute([4, 9, 4], [4, 9, 4], 2)]
    [0, 1, 1]
    """
    loads = [(0, rank) for rank in range(ranks)]
    parts = []
    for tensor in sorted(range(len(sizes)), key=lambda i: (-costs[i], i)):
        load, rank = heapq.heappop(loads)
        parts.append(Part(rank, tensor, 0, sizes[tensor]))
        heapq.heappush(loads, (load + costs[tensor], rank))
    return sorted(parts)


def piece_count(elements: int, ranks: int) -> int:
    """Return the number of pieces in which a rank's parts are exchanged and stepped.

    One piece is on its way while another is stepped; small ones stay in the cache, but messages
    and parts should not be too many.
    """
    return max(1, min(_MOST_PIECES, elements // (ranks * _PIECE), _MOST_PARTS // ranks))


def split_in_pieces(
    sizes: Sequence[int], weights: Sequence[int], ranks: int, block: int, pieces: int
) -> tuple[list[Part], list[int]]:
    """As `split`, with each rank's range cut into pieces; return parts and their pieces.

    Examples
    --------
    >>> split_in_pieces([80], [1], 2, 10, 2)
    ([Part(owner=0, tensor=0, start=0, stop=20), Part(owner=0, tensor=0, start=20, stop=40), \
Part(owner=1, tensor=0, start=40, stop=60), Part(owner=1, tensor=0, start=60, stop=80)], \
[0, 1, 0, 1])
    """
    parts = split(sizes, weights, ranks * pieces, block)
    owned = [part._replace(owner=part.owner // pieces) for part in parts]
    return owned, [part.owner % pieces for part in parts]


def whole_in_pieces(parts: Sequence[Part], costs: Sequence[int], pieces: int) -> list[int]:
    """Return the piece of each part, which is a whole tensor, among those of its owner."""
    totals: dict[int, int] = {}
    for part in parts:
        totals[part.owner] = totals.get(part.owner, 0) + costs[part.tensor]
    found, before = [], dict.fromkeys(totals, 0)
    for part in parts:
        found.append(before[part.owner] * pieces // totals[part.owner])
        before[part.owner] += costs[part.tensor]
    return found


def shares(total: int, ranks: int) -> list[range]:
    """Return the micro-batches of each rank: consecutive, and as many for each as possible."""
    return [range(total * r // ranks, total * (r + 1) // ranks) for r in range(ranks)]


def pieces(length: int, limit: int) -> list[tuple[int, int]]:
    """Return ranges of at most `limit` that make up ``0..length``.

    Examples
    --------
    >>> pieces(10, 4)
    [(0, 4), (4, 8), (8, 10)]
    """
    return [(start, min(start + limit, length)) for start in range(0, length, limit)]

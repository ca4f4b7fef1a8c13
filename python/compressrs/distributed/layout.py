"""Where parts of tensors lie in flat buffers of gradients, those of a rank side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from compressrs._arrays import Array, compute_dtype
from compressrs.distributed.partition import Part

#: A flat array for each dtype that is computed in.
Flat: TypeAlias = dict[np.dtype[Any], Array]

_Ranges: TypeAlias = dict[np.dtype[Any], slice]


class Layout:
    """The places of parts in flat arrays.

    Parameters
    ----------
    parts : list of Part
        In the order of owners, then of pieces.
    pieces : list of int
        The piece of each part among those of its owner.
    count : int
        Number of pieces of each rank, some of which may be empty.
    dtypes : sequence of dtype
        That in which each tensor is computed.
    ranks : int
    """

    def __init__(
        self,
        parts: list[Part],
        pieces: list[int],
        count: int,
        dtypes: Sequence[np.dtype[Any]],
        ranks: int,
    ) -> None:
        self.parts, self.pieces, self.count = parts, pieces, count
        self.dtypes = [compute_dtype(dtype) for dtype in dtypes]
        #: An empty array of the dtype of each tensor's gradient.
        self.examples = [np.empty(0, dtype) for dtype in self.dtypes]
        self.totals: dict[np.dtype[Any], int] = dict.fromkeys(self.dtypes, 0)
        #: Numbers of the parts of each piece of each rank.
        self.numbers: list[list[list[int]]] = [[[] for _ in range(count)] for _ in range(ranks)]
        self._of_rank: list[_Ranges] = [{} for _ in range(ranks)]
        self._of_piece: list[list[_Ranges]] = [[{} for _ in range(count)] for _ in range(ranks)]
        self._places: list[slice] = []
        for number, (part, k) in enumerate(zip(parts, pieces, strict=True)):
            dtype = self.dtypes[part.tensor]
            start = self.totals[dtype]
            stop = self.totals[dtype] = start + part.stop - part.start
            self._places.append(slice(start, stop))
            self.numbers[part.owner][k].append(number)
            for own in (self._of_rank[part.owner], self._of_piece[part.owner][k]):
                own[dtype] = slice(own[dtype].start if dtype in own else start, stop)

    def parts_of(self, k: int) -> list[Part]:
        """Return the parts of piece `k` of all ranks, in the order of their owners."""
        return [self.parts[number] for numbers in self.numbers for number in numbers[k]]

    def empty(self) -> Flat:
        """Return new arrays for all parts, with values that are not defined."""
        return {dtype: np.empty(total, dtype) for dtype, total in self.totals.items()}

    def empty_of(self, rank: int) -> Flat:
        """Return new arrays for the parts of a rank."""
        return {d: np.empty(r.stop - r.start, d) for d, r in self._of_rank[rank].items()}

    def empty_piece(self, rank: int) -> Flat:
        """Return new arrays that any piece of a rank fits into."""
        longest: dict[np.dtype[Any], int] = {}
        for ranges in self._of_piece[rank]:
            for dtype, place in ranges.items():
                longest[dtype] = max(longest.get(dtype, 0), place.stop - place.start)
        return {dtype: np.empty(length, dtype) for dtype, length in longest.items()}

    def of_piece(self, rank: int, k: int, flat: Mapping[np.dtype[Any], Array]) -> Flat:
        """Return views of a piece in arrays of all parts."""
        return {dtype: flat[dtype][place] for dtype, place in self._of_piece[rank][k].items()}

    def of_own_piece(self, rank: int, k: int, flat: Mapping[np.dtype[Any], Array]) -> Flat:
        """Return views of a piece in arrays of the rank's parts alone."""
        found = {}
        for dtype, place in self._of_piece[rank][k].items():
            first = self._of_rank[rank][dtype].start
            found[dtype] = flat[dtype][place.start - first : place.stop - first]
        return found

    def of_buffer(self, rank: int, k: int, flat: Mapping[np.dtype[Any], Array]) -> Flat:
        """Return views of arrays of `empty_piece`, of the sizes of this piece."""
        ranges = self._of_piece[rank][k].items()
        return {dtype: flat[dtype][: place.stop - place.start] for dtype, place in ranges}

    def views(self, flat: Flat) -> list[Array]:
        """Return the view of each part in arrays of all parts."""
        dtypes = (self.dtypes[part.tensor] for part in self.parts)
        return [flat[dtype][place] for dtype, place in zip(dtypes, self._places, strict=True)]

    def views_of_piece(self, rank: int, k: int, flat: Flat) -> list[Array]:
        """Return the view of each part of a piece in arrays of this piece alone."""
        views = []
        for number in self.numbers[rank][k]:
            dtype, place = self.dtypes[self.parts[number].tensor], self._places[number]
            first = self._of_piece[rank][k][dtype].start
            views.append(flat[dtype][place.start - first : place.stop - first])
        return views

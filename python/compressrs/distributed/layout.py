"""Where parts of tensors lie in flat buffers of gradients, those of a rank side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from compressrs._arrays import Array, compute_dtype
from compressrs.distributed.partition import Part

#: A flat array for each dtype that is computed in.
Flat: TypeAlias = dict[np.dtype[Any], Array]


class Layout:
    """The places of parts in flat arrays.

    Parameters
    ----------
    parts : list of Part
        In the order of owners.
    dtypes : sequence of dtype
        That in which each tensor is computed.
    ranks : int
    """

    def __init__(self, parts: list[Part], dtypes: Sequence[np.dtype[Any]], ranks: int) -> None:
        self.parts = parts
        self.dtypes = [compute_dtype(dtype) for dtype in dtypes]
        self.totals: dict[np.dtype[Any], int] = dict.fromkeys(self.dtypes, 0)
        self._ranges = [dict[np.dtype[Any], slice]() for _ in range(ranks)]
        self._places: list[slice] = []
        for part in parts:
            dtype = self.dtypes[part.tensor]
            start = self.totals[dtype]
            stop = self.totals[dtype] = start + part.stop - part.start
            self._places.append(slice(start, stop))
            own = self._ranges[part.owner]
            own[dtype] = slice(own[dtype].start if dtype in own else start, stop)

    def empty(self) -> Flat:
        """Return new arrays for all parts, with values that are not defined."""
        return {dtype: np.empty(total, dtype) for dtype, total in self.totals.items()}

    def empty_of(self, rank: int) -> Flat:
        """Return new arrays for the parts of a rank."""
        return {d: np.empty(r.stop - r.start, d) for d, r in self._ranges[rank].items()}

    def of(self, rank: int, flat: Flat) -> Flat:
        """Return views of the parts of a rank."""
        return {dtype: flat[dtype][place] for dtype, place in self._ranges[rank].items()}

    def views(self, flat: Flat) -> list[Array]:
        """Return the view of each part."""
        dtypes = (self.dtypes[part.tensor] for part in self.parts)
        return [flat[dtype][place] for dtype, place in zip(dtypes, self._places, strict=True)]

    def own_views(self, rank: int, flat: Flat) -> list[Array]:
        """Return the view of each part of a rank in arrays of its parts alone."""
        views = []
        for part, place in zip(self.parts, self._places, strict=True):
            if part.owner == rank:
                dtype = self.dtypes[part.tensor]
                first = self._ranges[rank][dtype].start
                views.append(flat[dtype][place.start - first : place.stop - first])
        return views

"""Granularity, the unit that is removed: single weights, n:m groups, blocks, neurons."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, as_matrix
from compressrs._checks import is_bool, number, whole
from compressrs.prune.selection import Mask, Selection

#: How the values of a group are reduced: a p-norm, or their sum.
Norm: TypeAlias = float | Literal["sum"]


class Granularity:
    """Unstructured pruning of single weights; base class of the structured granularities."""

    def _select(self, selection: Selection) -> list[Mask]:
        """Return masks that remove the selected fraction of weights."""
        return selection.masks()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class _Groups(Granularity):
    """Groups of weights, each ranked by a single number."""

    norm: Norm

    def _norms(self, array: Array, name: str, norm: Norm) -> Array:
        """Return the norm of each group."""
        raise NotImplementedError

    def _expand(self, mask: Mask, shape: tuple[int, ...]) -> Mask:
        """Expand a mask of groups to a mask of weights."""
        raise NotImplementedError

    def _select(self, selection: Selection) -> list[Mask]:
        """Return masks that remove the selected fraction of groups."""
        if selection.scope == "row":
            raise ValueError("scope must not be 'row' when whole groups are removed")
        norms = []
        for i, (array, name) in enumerate(zip(selection.arrays, selection.names, strict=True)):
            _core.refuse_nan(array, name)
            if selection.alive is None:
                norms.append(self._norms(array, name, self.norm))
                continue
            alive = selection.alive[i].astype(array.dtype)
            norm = self._norms(np.where(alive, array, alive), name, self.norm)
            norm[self._norms(alive, name, math.inf) == 0] = -np.inf
            norms.append(norm)
        shapes = [array.shape for array in selection.arrays]
        of_groups = replace(selection, arrays=norms, by_value=True, alive=None, shapes=shapes)
        return [
            self._expand(mask, shape) for mask, shape in zip(of_groups.masks(), shapes, strict=True)
        ]


class Blocks(_Groups):
    """Blocks of a matrix, as stored by `compressrs.sparse.BSRMatrix`.

    Parameters
    ----------
    block : pair of int, default (4, 4)
        Rows and columns of a block; they must divide those of the matrix.
    norm : {1, 2, inf, "sum"}, default 2
        How a block is ranked: by a norm, or by the sum, for signed scores.

    Raises
    ------
    TypeError, ValueError
        If a parameter is invalid.

    References
    ----------
    Narang et al., "Block-Sparse Recurrent Neural Networks", arXiv 1711.02782.
    """

    def __init__(self, block: tuple[int, int] = (4, 4), norm: Norm = 2) -> None:
        try:
            rows, columns = block
        except (TypeError, ValueError):
            raise TypeError(f"block must be a pair of integers, got {block!r}") from None
        self.block = whole(rows, "block", 1), whole(columns, "block", 1)
        self.norm = check_norm(norm)

    def _norms(self, array: Array, name: str, norm: Norm) -> Array:
        """Return the norm of each block, shape (block rows, block columns)."""
        (height, width), shape = self.block, array.shape
        if array.ndim != 2 or shape[0] % height or shape[1] % width:
            raise ValueError(
                f"{name} must have two axes, multiples of {height} and {width}, got {shape}"
            )
        return block_norms(array, name, self.block, norm)

    def _expand(self, mask: Mask, shape: tuple[int, ...]) -> Mask:
        """Expand a mask of blocks to a mask of weights."""
        return expanded(mask, self.block, shape)

    def __repr__(self) -> str:
        return f"Blocks({self.block}, norm={self.norm!r})"


class Neurons(_Groups):
    """Slices of an array along one or more axes: neurons, inputs, filters, kernels.

    Parameters
    ----------
    axis : int or tuple of int, default 0
        The axes that index the slices. In a weight (outputs, inputs), axis 0 indexes
        neurons and 1 their inputs; in a kernel (outputs, inputs, height, width), axis 0
        indexes filters, 1 channels, (0, 1) two-dimensional kernels, (2, 3) kernel
        positions.
    norm : {1, 2, inf, "sum"}, default 2
        How a slice is ranked: by a norm, or by the sum, for signed scores.

    Raises
    ------
    TypeError, ValueError
        If a parameter is invalid.

    References
    ----------
    Li et al., "Pruning Filters for Efficient ConvNets", arXiv 1608.08710, with norm 1.
    """

    def __init__(self, axis: int | tuple[int, ...] = 0, norm: Norm = 2) -> None:
        axes = axis if isinstance(axis, tuple) else (axis,)
        if not axes:
            raise ValueError("axis must name at least one axis, got none")
        self.axis = tuple(whole(a, "axis", -64) for a in axes)
        self.norm = check_norm(norm)

    def _norms(self, array: Array, name: str, norm: Norm) -> Array:
        """Return the norm of each slice, with the shape of the indexing axes."""
        axes = self._axes(array.ndim, name)
        lengths = [array.shape[axis] for axis in axes]
        if array.size == 0:
            return np.zeros(lengths)
        if array.ndim == 2 and axes == (1,):
            return block_norms(array, name, (array.shape[0], 1), norm).reshape(lengths)
        # Make each slice a row; for axis 0 no move is needed.
        rows = as_matrix(np.moveaxis(array, axes, range(len(axes))), len(axes))
        return block_norms(rows, name, (1, rows.shape[1]), norm).reshape(lengths)

    def _expand(self, mask: Mask, shape: tuple[int, ...]) -> Mask:
        """Expand a mask of slices to a mask of weights."""
        axes = self._axes(len(shape), "w")
        lengths = [shape[axis] for axis in axes]
        rest = [1] * (len(shape) - len(axes))
        slices = np.moveaxis(mask.reshape(lengths + rest), range(len(axes)), axes)
        whole: Mask = np.broadcast_to(slices, shape).copy()
        return whole

    def _axes(self, ndim: int, name: str) -> tuple[int, ...]:
        axes = tuple(axis + ndim if axis < 0 else axis for axis in self.axis)
        if len(set(axes)) < len(axes) or not all(0 <= axis < ndim for axis in axes):
            raise ValueError(f"axis must name axes of {name}, which has {ndim}, got {self.axis}")
        return axes

    def __repr__(self) -> str:
        return f"Neurons({self.axis}, norm={self.norm!r})"


class NM(Granularity):
    """Semi-structured n:m sparsity: keep the largest `n` of every `m` values.

    Under a schedule, ``floor(sparsity * m)`` of every `m` are removed, at most ``m - n``.

    Parameters
    ----------
    n, m : int, default 2 and 4
        ``1 <= n <= m``.
    axis : int, default -1
        The axis along which `m` consecutive values form a group; its length must be a
        multiple of `m`.

    Raises
    ------
    TypeError, ValueError
        If a parameter is invalid.

    References
    ----------
    Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv 2104.08378.
    """

    def __init__(self, n: int = 2, m: int = 4, axis: int = -1) -> None:
        self.n, self.m = whole(n, "n", 1), whole(m, "m", 1)
        if self.n > self.m:
            raise ValueError(f"n must be at most m, got {n} and {m}")
        self.axis = whole(axis, "axis", -64)

    def _select(self, selection: Selection) -> list[Mask]:
        """Return masks that remove the same number of every `m` values."""
        share = number(selection.sparsity, "sparsity", 0, below=1)
        # Tolerates rounding errors, so that 0.1 * 10 counts as 1.
        n = max(self.n, math.ceil(round(self.m * (1 - share), 9)))
        sunk = selection.sunk()
        return [
            self._mask(w, name, n, sunk.by_value)
            for w, name in zip(sunk.arrays, sunk.names, strict=True)
        ]

    def _mask(self, w: Array, name: str, n: int, by_value: bool) -> Mask:
        """Return the mask of one array that keeps `n` of each group."""
        if not -w.ndim <= self.axis < w.ndim:
            raise ValueError(f"axis must be one of {name}, which has {w.ndim}, got {self.axis}")
        if w.shape[self.axis] % self.m:
            raise ValueError(
                f"the length of axis {self.axis} of {name} must be a multiple of m={self.m}, "
                f"got shape {w.shape}"
            )
        _core.refuse_nan(w, name)
        last = np.moveaxis(w, self.axis, -1)
        mask = np.empty(last.shape, np.bool_)
        _core.mask_n_of_m(last, name, n, self.m, by_value, mask)
        return np.ascontiguousarray(np.moveaxis(mask, -1, self.axis))

    def __repr__(self) -> str:
        return f"NM({self.n}, {self.m}, axis={self.axis})"


def as_granularity(granularity: object) -> Granularity:
    """Return `granularity` after checking its type; None gives single weights.

    Raises
    ------
    TypeError
        If it is not.
    """
    if granularity is None:
        return Granularity()
    if not isinstance(granularity, Granularity):
        raise TypeError(
            f"granularity must be a Granularity, such as Blocks((4, 4)), got {granularity!r}"
        )
    return granularity


def check_norm(norm: Norm) -> Norm:
    """Return `norm` after checking that it is 1, 2, infinity or "sum"."""
    if (isinstance(norm, str) and norm == "sum") or (
        isinstance(norm, (int, float, np.number)) and not is_bool(norm) and norm in (1, 2, math.inf)
    ):
        return norm
    raise ValueError(f"norm must be 1, 2, inf or 'sum', got {norm!r}")


def block_norms(w: Array, name: str, block: tuple[int, int], norm: Norm) -> npt.NDArray[np.float64]:
    """Return the norm, or the sum, of each block of a matrix."""
    out = np.empty((w.shape[0] // block[0], w.shape[1] // block[1]))
    _core.block_norms(w, name, block, norm if norm == "sum" else f"{norm:g}", out)
    return out


def expanded(blocks: Mask, block: tuple[int, int], shape: tuple[int, ...]) -> Mask:
    """Expand a mask of blocks to a mask of the matrix."""
    mask = np.empty(shape, np.bool_)
    _core.expand_blocks(np.ascontiguousarray(blocks), block, mask)
    return mask

"""Block sparse row storage."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs._arrays import Array, as_array
from compressrs._checks import is_bool, threshold_of
from compressrs._typing import ScipyBSR, ScipyBSRArray
from compressrs.sparse.base import SparseMatrix, dense_weight, immutable, scipy_sparse

#: The block shapes that have kernels.
BLOCKSIZES = ((4, 4), (1, 16), (16, 1))


class BSRMatrix(SparseMatrix):
    """A matrix in block sparse row format, with blocks of 4x4, 1x16 or 16x1.

    The blocks of block row ``i`` are ``data[indptr[i]:indptr[i + 1]]``, in the block
    columns ``indices[indptr[i]:indptr[i + 1]]``. One index serves sixteen values, and rows
    of the dense operand are read fewer times: for the same number of stored values,
    products are faster than those of `CSRMatrix`.

    Parameters
    ----------
    arrays : tuple of array
        ``(data, indices, indptr)``: data float32, float64, float16 or bfloat16 of shape
        (blocks, R, C), indices int32, indptr int32 or int64; contiguous. They are used without
        copying.
    shape : pair of int
        Rows and columns, multiples of R and C respectively.

    Attributes
    ----------
    data, indices, indptr, shape, nnz, dtype, T
        As in `CSRMatrix`; `nnz` counts values, not blocks.
    blocksize : pair of int
        R and C.

    Raises
    ------
    TypeError
        If an array is of another dtype.
    ValueError
        If the arrays do not describe a matrix of this shape, or the block shape is not
        supported.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.zeros((8, 8)); w[:4, 4:] = 1.0
    >>> A = cr.sparse.BSRMatrix.from_dense(w, (4, 4))
    >>> A
    <BSRMatrix of shape (8, 8), float64, with 16 stored entries>
    >>> A @ np.ones(8)
    array([4., 4., 4., 4., 0., 0., 0., 0.])
    """

    format = "bsr"

    def _blocksize(self) -> tuple[int, int]:
        data = self._parts[0]
        if data.ndim != 3:
            raise ValueError(f"data must have 3 axes (blocks, rows, columns), got {data.shape}")
        if data.shape[1:] not in BLOCKSIZES:
            sizes = ", ".join(map(str, BLOCKSIZES))
            raise ValueError(f"blocks must be of shape {sizes}, got {data.shape[1:]}")
        return data.shape[1], data.shape[2]

    @property
    def blocksize(self) -> tuple[int, int]:
        """Rows and columns of a block."""
        return self._blocksize()

    @classmethod
    def from_dense(
        cls,
        w: Array,
        block: tuple[int, int],
        threshold: float = 0.0,
        *,
        mask: Array | None = None,
    ) -> BSRMatrix:
        """Return a matrix of the blocks that have a non-zero value at or above a threshold.

        Parameters
        ----------
        w : array, shape (rows, columns)
            float32, float64, float16 or bfloat16; its shape must be a multiple of the block shape.
        block : pair of int
            (4, 4), (1, 16) or (16, 1).
        threshold : float, default 0.0
            A block whose values are all ``|w| < threshold`` is left out, the threshold being
            rounded to the dtype of `w`, as NumPy does; one with NaN is stored.
        mask : array of bool, shape (rows, columns), optional
            Blocks in which any element is True are stored. Replaces `threshold`.

        Raises
        ------
        TypeError
            If `w` is not an array of such a dtype, or `mask` not of bool.
        ValueError
            If the shape is not a multiple of the block shape, the block shape is not
            supported, or both a threshold and a mask are given.
        """
        w = dense_weight(w)
        pair = isinstance(block, (tuple, list)) and not any(map(is_bool, block))
        if not pair or tuple(block) not in BLOCKSIZES:
            sizes = ", ".join(map(str, BLOCKSIZES))
            raise ValueError(f"block must be {sizes}, got {block!r}")
        block = block[0], block[1]
        if w.ndim != 2 or w.shape[0] % block[0] or w.shape[1] % block[1]:
            raise ValueError(f"w must have a shape that is a multiple of {block}, got {w.shape}")
        threshold = threshold_of(w.dtype, threshold)
        if mask is None:
            kept = (w != 0) & ~(np.abs(w) < w.dtype.type(threshold))
        else:
            kept = as_array(mask, "mask")
            if kept.dtype != np.bool_:
                raise TypeError(f"mask must have dtype bool, got {kept.dtype}")
            if kept.shape != w.shape:
                raise ValueError(f"mask must have the shape {w.shape} of w, got {kept.shape}")
            if threshold:
                raise ValueError("give either threshold or mask, not both")
        blocks = _blocks(kept, block).any(axis=(2, 3))
        counts = np.count_nonzero(blocks, axis=1)
        indptr = np.concatenate([[0], np.cumsum(counts)])
        indices = np.nonzero(blocks)[1].astype(np.int32)
        data = np.ascontiguousarray(_blocks(w, block)[blocks])
        width = np.int32 if indptr[-1] < 2**31 else np.int64
        return cls((data, immutable(indices), immutable(indptr.astype(width))), w.shape)

    @classmethod
    def from_scipy(cls, matrix: ScipyBSR) -> BSRMatrix:
        """Wrap a SciPy BSR matrix without copying its arrays.

        Raises
        ------
        TypeError
            If it is not in BSR format (convert it with ``.tobsr(blocksize)``).
        """
        if getattr(matrix, "format", None) != "bsr":
            got = getattr(matrix, "format", type(matrix).__name__)
            raise TypeError(f"matrix must be a SciPy BSR matrix (use .tobsr()), got {got}")
        return cls((matrix.data, matrix.indices, matrix.indptr), matrix.shape)

    def to_scipy(self) -> ScipyBSRArray:
        """Return a SciPy BSR array that shares the arrays, without copying.

        Raises
        ------
        ModuleNotFoundError
            If SciPy is not installed.
        TypeError, ValueError
            If the arrays have been changed so that they describe no matrix of this shape.
        TypeError
            If `dtype` is float16 or bfloat16, which SciPy does not support.
        """
        return scipy_sparse(self.dtype).bsr_array(
            self._checked_parts(), shape=self.shape, copy=False
        )


def _blocks(x: Array, blocksize: tuple[int, int]) -> npt.NDArray[Any]:
    """Return a view of a matrix as (block rows, block columns, R, C)."""
    rows, columns = blocksize
    parts = x.reshape(x.shape[0] // rows, rows, x.shape[1] // columns, columns)
    blocks: Array = parts.transpose(0, 2, 1, 3)
    return blocks

"""GPTQ, and joint pruning and quantization."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, compute_dtype
from compressrs._checks import flag, number, whole
from compressrs.prune.reconstruction import inverse_factor, removal
from compressrs.prune.selection import Mask
from compressrs.prune.statistics import InputStatistics
from compressrs.quantize.codebook import kmeans
from compressrs.quantize.rounding import checked_weight, quantize
from compressrs.quantize.scheme import Scheme
from compressrs.quantize.tensor import QuantizedTensor, kind


def gptq(
    w: Array,
    statistics: InputStatistics,
    scheme: Scheme,
    *,
    scale: Array | None = None,
    zero_point: Array | None = None,
    act_order: bool = False,
    static_groups: bool = False,
    damping: float = 0.01,
    block: int = 128,
) -> QuantizedTensor:
    r"""Quantize a layer's weights with the least change of its outputs (GPTQ).

    With :math:`H = X^\top X + \lambda\,\mathrm{mean}(\mathrm{diag}\,X^\top X)\,I` and
    :math:`H^{-1} = U^\top U`, `U` upper triangular, columns are rounded from left to right.
    Where weight :math:`w_j` of a row becomes :math:`q_j`, those after it in the row change by
    :math:`-(w_j - q_j) / U_{jj}\, U_{j,\cdot}`.

    Parameters
    ----------
    w : array, shape (outputs, inputs, ...)
        float32, float64, float16 or bfloat16. All axes after the first are inputs.
    statistics : InputStatistics
        With ``gram=True``, of calibration inputs of this layer.
    scheme : Scheme
        Any dtype; "codebook" uses the levels of `kmeans`.
    scale, zero_point : array, optional
        Used instead of scales from the range of the weights; see `quantize`.
    act_order : bool, default False
        Whether columns are rounded in descending order of :math:`\sum x_j^2`, so that more
        remaining columns can compensate for important ones. Better with few bits.
    static_groups : bool, default False
        Whether the scales of groups are computed from `w` beforehand; otherwise when the first
        column of a group is reached, from weights that compensate for earlier errors. With
        `act_order`, groups that are not static consist of columns in that order, and the result
        has a `group_index`, which not every kernel supports.
    damping : float, default 0.01
        :math:`\lambda`, the fraction of the mean that is added to the diagonal.
    block : int, default 128
        Number of columns that are rounded before later ones are updated. Affects only speed;
        rounded up to a multiple of `group_size` where necessary.

    Returns
    -------
    QuantizedTensor

    Raises
    ------
    TypeError
        If an argument has another type or dtype.
    ValueError
        If a parameter is out of range, `statistics` is empty, has no `gram` or another number
        of features, or a weight is not finite.

    Warns
    -----
    CalibrationWarning
        As `compressrs.prune.sparsegpt`: too few or dependent inputs; damping that had to be
        increased for the factorization, ten times as much, and as often.

    Notes
    -----
    Weights of inputs that were always 0 become 0. Arithmetic is in double precision.

    References
    ----------
    Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers", arXiv 2210.17323, algorithm 1. The order and static groups are those of
    its authors' code.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((200, 5)) @ rng.standard_normal((5, 16))
    >>> x += 0.3 * rng.standard_normal(x.shape)
    >>> w = rng.standard_normal((8, 16))
    >>> statistics = cr.prune.InputStatistics(16, gram=True)
    >>> statistics.update(x)
    >>> scheme = cr.quantize.Scheme(bits=3)
    >>> nearest = cr.quantize.quantize(w, scheme).dequantize()
    >>> better = cr.quantize.gptq(w, statistics, scheme).dequantize()
    >>> bool(np.linalg.norm(x @ (better - w).T) < 0.7 * np.linalg.norm(x @ (nearest - w).T))
    True
    """
    w, _ = checked_weight(w, scheme)
    act_order = flag(act_order, "act_order")
    static_groups = flag(static_groups, "static_groups")
    checked_layer(w, statistics, scheme)
    task = _Sweep(w, factored(statistics, damping, act_order), scheme, block)
    task.start(scale, zero_point, static_groups)
    return task.run(None)[0]


class Factored(NamedTuple):
    """The factor of calibration inputs, the same for all rows of a layer."""

    #: Of the inverse Hessian, its columns in `order`.
    factor: npt.NDArray[np.float64]
    #: Inputs that were always 0.
    idle: npt.NDArray[np.bool_]
    order: npt.NDArray[np.intp] | None


def factored(statistics: InputStatistics, damping: float, act_order: bool) -> Factored:
    """Factor the inverse Hessian of calibration inputs.

    Raises
    ------
    TypeError, ValueError
        As `gptq`.
    """
    damping = number(damping, "damping", 0)
    order = np.argsort(-(statistics.norms**2), kind="stable") if act_order else None
    return Factored(*inverse_factor(statistics, damping, order), order)


def gptq_rows(
    w: npt.NDArray[Any], found: Factored, scheme: Scheme, scale: npt.NDArray[Any]
) -> QuantizedTensor:
    """Round some rows of a layer as `gptq` does, with given scales.

    Raises
    ------
    ValueError
        If something overflows.
    """
    task = _Sweep(w, found, scheme, 128)
    task.start(scale, None, static_groups=True)
    return task.run(None)[0]


def checked_layer(w: npt.NDArray[Any], statistics: InputStatistics, scheme: Scheme) -> None:
    """Raise an error unless a weight is finite and has the inputs of its statistics.

    Raises
    ------
    TypeError, ValueError
    """
    columns = scheme.matrix(w.shape)[1]
    if not isinstance(statistics, InputStatistics):
        raise TypeError(f"statistics must be InputStatistics, got {type(statistics).__name__}")
    if w.size == 0 or columns != statistics.features:
        raise ValueError(f"w must have shape (outputs, {statistics.features}), got {w.shape}")
    if not np.isfinite(w).all():
        raise ValueError("w must be finite, got NaN or infinity")


def prune_and_quantize(
    w: Array,
    statistics: InputStatistics,
    scheme: Scheme,
    sparsity: float | None = None,
    *,
    nm: tuple[int, int] | None = None,
    damping: float = 0.01,
    block: int = 128,
) -> tuple[QuantizedTensor, Mask]:
    """Prune and quantize a layer jointly; remaining weights compensate for both.

    `compressrs.prune.sparsegpt`, with the remaining weights quantized by `gptq` in the same
    sweep. Scales are those of the weights after pruning alone, which are larger since they
    compensate for removed ones.

    Parameters
    ----------
    w, statistics, scheme, damping, block
        As for `gptq`.
    sparsity, nm
        As for `compressrs.prune.sparsegpt`.

    Returns
    -------
    q : QuantizedTensor
        Pruned weights are exactly 0.
    mask : array of bool
        Of the shape of `w`, True where a weight is kept.

    Raises
    ------
    TypeError, ValueError
        Those of both functions; if the scheme has no code for 0, such as "codebook".

    Warns
    -----
    CalibrationWarning
        Those of both functions.

    References
    ----------
    Frantar & Alistarh, arXiv 2301.00774, section 3.5, "joint sparsification & quantization".

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> rng = np.random.default_rng(0)
    >>> x, w = rng.standard_normal((100, 8)), rng.standard_normal((3, 8))
    >>> statistics = cr.prune.InputStatistics(8, gram=True)
    >>> statistics.update(x)
    >>> q, mask = cr.quantize.prune_and_quantize(w, statistics, cr.quantize.Scheme(bits=4), 0.5)
    >>> int(mask.sum()), bool((q.dequantize()[~mask] == 0).all())
    (12, True)
    """
    w, matrix = checked_weight(w, scheme)
    if scheme.dtype == "codebook":
        raise ValueError("scheme must have a code for 0, which a codebook need not have")
    choice, block = removal(sparsity, nm, matrix.size, matrix.shape[1], whole(block, "block", 1))
    checked_layer(w, statistics, scheme)
    task = _Sweep(w, factored(statistics, damping, False), scheme, block, multiple=choice[1])
    task.start(*task.scales_after_pruning(choice), static_groups=False)
    q, mask = task.run(choice)
    assert mask is not None
    return q, mask


class _Sweep:
    """A layer with its factor, in the order in which columns are rounded."""

    def __init__(
        self,
        w: npt.NDArray[Any],
        found: Factored,
        scheme: Scheme,
        block: int,
        multiple: int | None = None,
    ) -> None:
        self.w, self.scheme = w, scheme
        rows, columns = scheme.matrix(w.shape)
        block = min(whole(block, "block", 1), columns)
        width = scheme.block(w.shape)[1]
        # A group lies in one block, from whose start its range is known.
        self.step = -(-block // width) * width if scheme.granularity == "group" else block
        if multiple is not None:
            self.step = int(np.lcm(self.step, multiple))
        self.step = min(self.step, columns)
        self.factor, idle, self.order = found
        self.matrix = np.array(w, np.float64).reshape(rows, columns)
        self.matrix[:, idle] = 0

    def start(self, scale: Array | None, zero_point: Array | None, static_groups: bool) -> None:
        """Compute the scales, or use the given ones."""
        scheme = self.scheme
        self.find = scheme.granularity == "group" and not static_groups and scale is None
        self.find = self.find and scheme.dtype != "codebook"
        if self.find:
            shape = scheme.scale_shape(self.w.shape)
            scales = np.empty(shape, compute_dtype(self.w.dtype))
            zeros = np.empty(shape, scheme.code_dtype)
            self.q = QuantizedTensor._of(
                scheme,
                self.w.dtype,
                codes=np.empty(self.matrix.shape, scheme.code_dtype),
                scale=scales,
                zero_point=zeros,
            )
            return
        weights = self.matrix.astype(self.w.dtype).reshape(self.w.shape)
        if scheme.dtype == "codebook":
            if scale is not None:
                raise ValueError("scale must be None for a codebook")
            self.q = kmeans(weights, scheme)
        else:
            self.q = quantize(weights, scheme, scale=scale, zero_point=zero_point)

    def scales_after_pruning(
        self, choice: tuple[int, int | None]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
        """Return the scales and zero points of the weights after pruning alone."""
        pruned, mask = self.matrix.copy(), np.empty(self.matrix.shape, np.bool_)
        if not _core.reconstruct(pruned, self.factor, choice, self.step, mask):
            raise ValueError("w and statistics must be such that nothing overflows")
        shape, dtype = self.w.shape, self.w.dtype
        before = quantize(self.matrix.astype(dtype).reshape(shape), self.scheme)
        after = quantize(pruned.astype(dtype).reshape(shape), self.scheme)
        # Of a block that is pruned whole, something may stay after all.
        height, width = self.scheme.block(shape)
        down = np.logical_or.reduceat(mask, np.arange(0, len(mask), height), axis=0)
        left = np.logical_or.reduceat(down, np.arange(0, mask.shape[1], width), axis=1)
        scale = np.where(left, after.scale, before.scale)
        if before.zero_point is None or after.zero_point is None:
            return scale, None
        return scale, np.where(left, after.zero_point, before.zero_point)

    def run(
        self, choice: tuple[int, int | None] | None
    ) -> tuple[QuantizedTensor, npt.NDArray[np.bool_] | None]:
        """Round all columns; return the codes and the mask."""
        scheme, q, order = self.scheme, self.q, self.order
        block = scheme.block(self.w.shape)
        codes = np.empty(self.matrix.shape, scheme.code_dtype)
        zero = q.zero_point
        if zero is None:
            zero = np.zeros(q.scale.shape, scheme.code_dtype)
        scale, zeros, matrix = q.scale, zero, self.matrix
        if order is not None:
            matrix = np.ascontiguousarray(matrix[:, order])
            if not self.find and block[1] < matrix.shape[1]:
                if q.codebook is not None:
                    raise ValueError("act_order must be False for codebooks of groups")
                # Each weight is a block of its own: neighbours are of any groups now.
                at = np.arange(len(matrix))[:, None] // block[0], order // block[1]
                scale, zeros, block = scale[at], zero[at], (1, 1)
        mask: npt.NDArray[np.bool_] | None = None
        if choice is not None:
            mask = np.empty(matrix.shape, np.bool_)
        fine = _core.gptq(
            matrix,
            self.factor,
            self.step,
            block,
            kind(scheme, q.codebook),
            self.find,
            scale,
            zeros.view(np.uint8),
            codes.view(np.uint8),
            None if choice is None or mask is None else (choice, mask),
        )
        if not fine:
            raise ValueError("w and statistics must be such that nothing overflows")
        group_index = None
        if order is not None:
            unsorted = np.empty_like(codes)
            unsorted[:, order] = codes
            codes = unsorted
            if self.find:
                group_index = np.empty(len(order), np.int32)
                group_index[order] = np.arange(len(order)) // block[1]
        if mask is not None:
            codes[~mask] = self._zero_codes(zero)[~mask]
            mask = mask.reshape(self.w.shape)
        result = QuantizedTensor._of(
            scheme,
            self.w.dtype,
            codes=codes.reshape(self.w.shape),
            scale=q.scale,
            zero_point=zero if scheme.has_zero_point else None,
            codebook=q.codebook,
            group_index=group_index,
        )
        return result, mask

    def _zero_codes(self, zero: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the code of 0 for each weight."""
        rows, columns = self.matrix.shape
        height, width = self.scheme.block(self.w.shape)
        if self.scheme.dtype == "nf4":
            return np.full((rows, columns), 7, np.uint8)
        at = np.arange(rows)[:, None] // height, np.arange(columns) // width
        return zero[at]

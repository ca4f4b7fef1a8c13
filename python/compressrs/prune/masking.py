"""Exact thresholds and masks from weights or scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressrs import _core
from compressrs._arrays import Array, ArrayTree, named_arrays, rebuild
from compressrs._checks import flag, number, threshold_of
from compressrs.prune._weights import as_weight, named_weights
from compressrs.prune.granularity import (
    NM,
    Blocks,
    Granularity,
    Neurons,
    Norm,
    as_granularity,
)
from compressrs.prune.selection import (
    Mask,
    Scope,
    Selection,
    Sparsity,
    check_scope,
    keep_one,
)


def magnitude_threshold(arrays: ArrayTree, sparsity: float) -> float:
    """Return the magnitude below which a fraction `sparsity` of all values lies.

    It is element ``k = round(sparsity * n)`` of the `n` magnitudes in ascending
    order: exact, over all arrays together, without sorting or concatenating them. Without
    ties, exactly `k` magnitudes are smaller.

    Parameters
    ----------
    arrays : array, or list or nested dict of arrays
        float32, float64, float16 or bfloat16, all of the same dtype, of any shape.
    sparsity : float
        In [0, 1).

    Returns
    -------
    float
        The smallest magnitude that is kept; infinity if none is kept.

    Raises
    ------
    TypeError
        If a value is not an array, or dtypes are unsupported or differ.
    ValueError
        If `sparsity` is out of range, there are no values, or one is NaN.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> cr.prune.magnitude_threshold([np.array([3.0, -1.0]), np.array([[2.0], [-4.0]])], 0.5)
    3.0
    """
    names, leaves = named_weights(arrays, "arrays")
    sparsity = number(sparsity, "sparsity", 0, below=1)
    total = sum(array.size for array in leaves)
    if total == 0:
        raise ValueError("arrays must hold at least one value, got none")
    return _core.magnitude_threshold(leaves, names, round(sparsity * total))


def magnitude_mask(
    w: Array,
    sparsity: float | None = None,
    *,
    threshold: float | None = None,
    allow_empty: bool = False,
) -> Mask:
    """Return a mask that removes the smallest weights.

    Parameters
    ----------
    w : array
        float32, float64, float16 or bfloat16, of any shape.
    sparsity : float, optional
        In [0, 1). Exactly ``round(sparsity * w.size)`` weights are removed; among equal
        magnitudes, the first in C order.
    threshold : float, optional
        Weights with ``|w| < threshold`` are removed, those with ``|w| >= threshold`` kept, the
        threshold being rounded to the dtype of `w`, as NumPy does.
    allow_empty : bool, default False
        Whether all weights may be removed. Otherwise the largest is kept, with a warning.

    Returns
    -------
    array of bool
        The mask, with the shape of `w`: True where a weight is kept.

    Raises
    ------
    TypeError
        If `w` is not an array of such a dtype.
    ValueError
        If neither or both of `sparsity` and `threshold` are given, one is out of
        range, or a weight is NaN.

    Warns
    -----
    EmptyLayerWarning
        If all weights would be removed.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.array([0.5, -2.0, 1.0, -0.1])
    >>> cr.prune.magnitude_mask(w, sparsity=0.5)
    array([False,  True,  True, False])
    >>> cr.prune.magnitude_mask(w, threshold=0.5)
    array([ True,  True,  True, False])
    """
    w = as_weight(w, "w")
    if (sparsity is None) == (threshold is None):
        raise ValueError("give exactly one of sparsity and threshold")
    if sparsity is not None:
        return _one(w, sparsity, Granularity(), allow_empty)
    mask = np.empty(w.shape, np.bool_)
    _core.mask_below(w, threshold_of(w.dtype, threshold), mask)
    if not flag(allow_empty, "allow_empty"):
        keep_one(mask, w, "w", by_value=False)
    return mask


def nm_mask(w: Array, n: int = 2, m: int = 4, axis: int = -1) -> Mask:
    """Return a mask that keeps the `n` largest magnitudes of every `m` along an axis.

    Parameters
    ----------
    w : array
        float32, float64, float16 or bfloat16; the length of `axis` must be a multiple of `m`.
    n, m : int, default 2 and 4
        ``1 <= n <= m``. Among equal magnitudes the first are removed.
    axis : int, default -1

    Returns
    -------
    array of bool
        The mask, with the shape of `w`: True where a weight is kept.

    Raises
    ------
    TypeError
        If `w` is not an array of such a dtype.
    ValueError
        If `n` or `m` is out of range, the axis is not a multiple of `m`, or a weight is NaN.

    References
    ----------
    Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv 2104.08378.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> cr.prune.nm_mask(np.array([[1.0, -3.0, 2.0, 0.5]]))
    array([[False,  True,  True, False]])
    """
    granularity = NM(n, m, axis)
    return granularity._mask(as_weight(w, "w"), "w", granularity.n, by_value=False)


def block_mask(
    w: Array,
    block: tuple[int, int],
    sparsity: float,
    norm: Norm = 2,
    *,
    allow_empty: bool = False,
) -> Mask:
    """Return a mask that removes the smallest blocks of a matrix.

    Parameters
    ----------
    w : array, shape (rows, columns)
        float32, float64, float16 or bfloat16.
    block : pair of int
        Rows and columns of a block; they must divide those of `w`.
    sparsity : float
        In [0, 1). Exactly ``round(sparsity * blocks)`` blocks are removed; among equal
        norms, the first in C order.
    norm : {1, 2, inf}, default 2
        The norm by which blocks are ranked.
    allow_empty : bool, default False
        Whether all blocks may be removed. Otherwise the largest is kept, with a warning.

    Returns
    -------
    array of bool
        The mask, with the shape of `w`: True where a weight is kept.

    Raises
    ------
    TypeError, ValueError
        If a parameter is invalid, or a weight is NaN.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.array([[1.0, 1.0, 3.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    >>> cr.prune.block_mask(w, (2, 2), 0.5)
    array([[False, False,  True,  True],
           [False, False,  True,  True]])
    """
    return _one(as_weight(w, "w"), sparsity, Blocks(block, norm), allow_empty)


def neuron_mask(
    w: Array,
    axis: int | tuple[int, ...] = 0,
    sparsity: float = 0.5,
    norm: Norm = 2,
    *,
    allow_empty: bool = False,
) -> Mask:
    """Return a mask that removes whole neurons, inputs, filters or channels.

    Masked slices are still stored and computed; `neurons` removes them from the arrays.

    Parameters
    ----------
    w : array
        float32, float64, float16 or bfloat16, of one or more axes.
    axis : int or tuple of int, default 0
        The axes that index the slices; see `Neurons`. Axis 0 indexes the neurons of a
        weight (outputs, inputs) and the filters of a kernel (outputs, inputs, height,
        width).
    sparsity : float, default 0.5
        In [0, 1). Exactly ``round(sparsity * slices)`` slices are removed; among equal
        norms, the first in C order.
    norm : {1, 2, inf}, default 2
        The norm by which slices are ranked.
    allow_empty : bool, default False
        Whether all slices may be removed. Otherwise the largest is kept, with a warning.

    Returns
    -------
    array of bool
        The mask, with the shape of `w`: True where a weight is kept. Reduce it to one
        value per slice with, for example, ``mask.any(axis=(1, 2, 3))``.

    Raises
    ------
    TypeError, ValueError
        If a parameter is invalid, or a weight is NaN.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.array([[3.0, 0.0], [1.0, 1.0], [2.0, 2.0], [0.0, 1.0]])
    >>> cr.prune.neuron_mask(w, axis=0, sparsity=0.5).any(axis=1)
    array([ True, False,  True, False])
    """
    return _one(as_weight(w, "w"), sparsity, Neurons(axis, norm), allow_empty)


def masks(
    scores: ArrayTree,
    sparsity: Sparsity,
    scope: Scope = "global",
    granularity: Granularity | None = None,
    *,
    allow_empty: bool = False,
) -> Any:
    """Return masks that remove the weights with the lowest scores.

    Parameters
    ----------
    scores : array, or list or nested dict of arrays
        The importance of each weight, from a `Score` or your own. float32, float64,
        float16 or bfloat16, all of the same dtype.
    sparsity : float, or sequence of float
        The exact fraction of the weights, or of the groups of weights, to remove, in [0, 1).
        Among equal scores the first are removed. A sequence gives one value per array.
    scope : {"global", "layer", "row"} or callable, default "global"
        Whether scores are ranked over all arrays together, within each array, or within
        each row, that is, per output. A function of the shapes and `sparsity`, such as
        `erdos_renyi`, returns the sparsity of each array.
    granularity : Granularity, optional
        The unit that is removed: `Granularity` (single weights, the default), `NM`,
        `Blocks` or `Neurons`.
    allow_empty : bool, default False
        Whether all of a layer may be removed. Otherwise its highest score is kept, with a
        warning, and another weight is removed instead.

    Returns
    -------
    array of bool, or list or nested dict of them
        In the structure of `scores`, True where a weight is kept.

    Raises
    ------
    TypeError
        If a score is not an array of such a dtype, or `granularity` is not a `Granularity`.
    ValueError
        If a sparsity is out of range, a granularity does not fit a shape, there are no
        weights, or a score is NaN.

    Warns
    -----
    EmptyLayerWarning
        If all of a layer would be removed.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> scores = {"a": np.array([[4.0, 1.0], [3.0, 2.0]]), "b": np.array([-1.0, 5.0])}
    >>> cr.prune.masks(scores, 0.5)
    {'a': array([[ True, False],
           [ True, False]]), 'b': array([False,  True])}
    >>> cr.prune.masks(scores["a"], 0.5, scope="row")
    array([[ True, False],
           [ True, False]])
    """
    names, arrays = named_arrays(scores, "scores")
    if not arrays:
        raise ValueError("scores must hold at least one value, got none")
    selection = Selection(
        arrays,
        names,
        sparsity,
        check_scope(scope),
        by_value=True,
        allow_empty=flag(allow_empty, "allow_empty"),
    )
    return rebuild(scores, iter(as_granularity(granularity)._select(selection)))


def _one(w: Array, sparsity: float, granularity: Granularity, allow_empty: bool) -> Mask:
    """Return the mask that removes the smallest magnitudes of one array."""
    return granularity._select(
        Selection([w], ["w"], sparsity, allow_empty=flag(allow_empty, "allow_empty"))
    )[0]

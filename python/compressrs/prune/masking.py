"""Exact thresholds and masks, given weights or scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressrs import _core
from compressrs._arrays import Array, ArrayTree, as_array, named_arrays, rebuild
from compressrs._checks import number
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
    """Return the magnitude below which a share `sparsity` of all values lies.

    It is element ``k = round(sparsity * n)`` of the `n` magnitudes in ascending
    order: exact, over all arrays together, without sorting or joining them. Of
    values without ties, exactly `k` are smaller.

    Parameters
    ----------
    arrays : array, or list or nested dict of arrays
        float32, float64, float16 or bfloat16, all of one dtype, any shapes.
    sparsity : float
        In [0, 1).

    Returns
    -------
    float
        The smallest magnitude that is kept; infinity if none is.

    Raises
    ------
    TypeError
        If something is not an array, or dtypes are others or differ.
    ValueError
        If `sparsity` is out of range, there are no values, or one is NaN.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> cr.prune.magnitude_threshold([np.array([3.0, -1.0]), np.array([[2.0], [-4.0]])], 0.5)
    3.0
    """
    names, leaves = named_arrays(arrays, "arrays")
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
        In [0, 1): removes exactly ``round(sparsity * w.size)`` weights; of equal
        magnitudes, those that come first in C order.
    threshold : float, optional
        Removes ``|w| < threshold``, keeps ``|w| >= threshold``.
    allow_empty : bool, default False
        Whether all weights may go. Otherwise the largest is kept, and warned of.

    Returns
    -------
    array of bool
        Of the shape of `w`, True where a weight is kept.

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
        If all weights were to go.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.array([0.5, -2.0, 1.0, -0.1])
    >>> cr.prune.magnitude_mask(w, sparsity=0.5)
    array([False,  True,  True, False])
    >>> cr.prune.magnitude_mask(w, threshold=0.5)
    array([ True,  True,  True, False])
    """
    w = as_array(w, "w")
    if (sparsity is None) == (threshold is None):
        raise ValueError("give either sparsity or threshold, not both and not none")
    if sparsity is not None:
        return _one(w, sparsity, Granularity(), allow_empty)
    mask = np.empty(w.shape, np.bool_)
    _core.mask_below(w, number(threshold, "threshold", 0), mask)
    if not allow_empty:
        keep_one(mask, w, "w", by_value=False)
    return mask


def nm_mask(w: Array, n: int = 2, m: int = 4, axis: int = -1) -> Mask:
    """Return a mask that keeps the `n` largest magnitudes of each `m` along an axis.

    Parameters
    ----------
    w : array
        float32, float64, float16 or bfloat16; the axis a multiple of `m` long.
    n, m : int, default 2 and 4
        ``1 <= n <= m``. Of equal magnitudes those that come first go.
    axis : int, default -1

    Returns
    -------
    array of bool
        Of the shape of `w`, True where a weight is kept.

    Raises
    ------
    TypeError
        If `w` is not an array of such a dtype.
    ValueError
        If `n` or `m` is out of range, the axis does not fit, or a weight is NaN.

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
    return granularity.mask(as_array(w, "w"), "w", granularity.n, by_value=False)


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
        Rows and columns of a block, which divide those of `w`.
    sparsity : float
        In [0, 1): removes exactly this share of the blocks, to the nearest; of equal ones
        those that come first.
    norm : {1, 2, inf}, default 2
        By which blocks compare.
    allow_empty : bool, default False
        Whether all blocks may go. Otherwise the largest is kept, and warned of.

    Returns
    -------
    array of bool
        Of the shape of `w`, True where a weight is kept.

    Raises
    ------
    TypeError, ValueError
        If a parameter is none of those, or a weight is NaN.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.array([[1.0, 1.0, 3.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    >>> cr.prune.block_mask(w, (2, 2), 0.5)
    array([[False, False,  True,  True],
           [False, False,  True,  True]])
    """
    return _one(as_array(w, "w"), sparsity, Blocks(block, norm), allow_empty)


def neuron_mask(
    w: Array,
    axis: int | tuple[int, ...] = 0,
    sparsity: float = 0.5,
    norm: Norm = 2,
    *,
    allow_empty: bool = False,
) -> Mask:
    """Return a mask that removes whole neurons, inputs, filters or channels.

    What is masked is still stored and computed with: `neurons` really takes it away.

    Parameters
    ----------
    w : array
        float32, float64, float16 or bfloat16, of one or more axes.
    axis : int or tuple of int, default 0
        What counts slices; see `Neurons`. Of a weight (outputs, inputs) 0 are the neurons,
        of a kernel (outputs, inputs, height, width) 0 are the filters.
    sparsity : float, default 0.5
        In [0, 1): removes exactly this share of the slices, to the nearest; of equal ones
        those that come first.
    norm : {1, 2, inf}, default 2
        By which slices compare.
    allow_empty : bool, default False
        Whether all slices may go. Otherwise the largest is kept, and warned of.

    Returns
    -------
    array of bool
        Of the shape of `w`, True where a weight is kept. For one slice each,
        ``mask.any(axis=(1, 2, 3))``, say.

    Raises
    ------
    TypeError, ValueError
        If a parameter is none of those, or a weight is NaN.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.array([[3.0, 0.0], [1.0, 1.0], [2.0, 2.0], [0.0, 1.0]])
    >>> cr.prune.neuron_mask(w, axis=0, sparsity=0.5).any(axis=1)
    array([ True, False,  True, False])
    """
    return _one(as_array(w, "w"), sparsity, Neurons(axis, norm), allow_empty)


def masks(
    scores: ArrayTree,
    sparsity: Sparsity,
    scope: Scope = "global",
    granularity: Granularity | None = None,
    *,
    allow_empty: bool = False,
) -> Any:
    """Return masks that remove what scores lowest.

    Parameters
    ----------
    scores : array, or list or nested dict of arrays
        One for each weight, the larger the more it matters: of a `Score`, or your own.
        float32, float64, float16 or bfloat16, all of one dtype.
    sparsity : float, or sequence of float
        In [0, 1): what share of the weights, or groups of them, is removed, exactly; of
        equal ones those that come first. A sequence has one for each array.
    scope : {"global", "layer", "row"} or callable, default "global"
        Whether the lowest are found over all arrays together, in each by itself, or in
        each row, that is, for each output. A function of shapes and `sparsity`, such as
        `erdos_renyi`, gives each array a sparsity of its own.
    granularity : Granularity, optional
        What is removed as one: `Granularity` (single weights), `NM`, `Blocks`, `Neurons`.
    allow_empty : bool, default False
        Whether a layer may be pruned to nothing. Otherwise its best is kept, which is
        warned of, and others go in its place.

    Returns
    -------
    array of bool, or list or nested dict of them
        In the structure of `scores`, True where a weight is kept.

    Raises
    ------
    TypeError
        If a score is not an array of such a dtype, or `granularity` is not one.
    ValueError
        If a sparsity is out of range, a granularity does not fit a shape, there is
        nothing to prune, or a score is NaN.

    Warns
    -----
    EmptyLayerWarning
        If a layer was to be pruned to nothing.

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
    selection = Selection(
        arrays, names, sparsity, check_scope(scope), by_value=True, allow_empty=allow_empty
    )
    return rebuild(scores, iter(as_granularity(granularity).select(selection)))


def _one(w: Array, sparsity: float, granularity: Granularity, allow_empty: bool) -> Mask:
    """Return a mask of the smallest magnitudes of one array."""
    return granularity.select(Selection([w], ["w"], sparsity, allow_empty=allow_empty))[0]

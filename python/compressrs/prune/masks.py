"""Exact thresholds and masks by magnitude."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, ArrayTree, as_array, named_arrays
from compressrs._checks import number


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
    return _core.magnitude_threshold(leaves, names, removed_count(leaves, sparsity, "arrays"))


def magnitude_mask(
    w: Array, *, sparsity: float | None = None, threshold: float | None = None
) -> npt.NDArray[np.bool_]:
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
        return smallest_masks([w], ["w"], sparsity)[0]
    mask = np.empty(w.shape, np.bool_)
    _core.mask_below(w, number(threshold, "threshold", 0), mask)
    return mask


def smallest_masks(
    arrays: list[Array], names: list[str], sparsity: float
) -> list[npt.NDArray[np.bool_]]:
    """Return masks that remove exactly the smallest weights of all arrays together."""
    k = removed_count(arrays, sparsity, names[0])
    masks = [np.empty(w.shape, np.bool_) for w in arrays]
    _core.mask_smallest(arrays, names, k, masks)
    return masks


def removed_count(arrays: list[Array], sparsity: float, name: str) -> int:
    """Return how many of all values a sparsity removes, to the nearest."""
    sparsity = number(sparsity, "sparsity", 0, below=1)
    total = sum(w.size for w in arrays)
    if total == 0:
        raise ValueError(f"{name} must hold at least one value, got none")
    return round(sparsity * total)

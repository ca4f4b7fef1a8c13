"""The weights that pruning takes."""

from __future__ import annotations

from compressrs._arrays import Array, ArrayTree, Views, as_array, named_arrays


def named_weights(tree: ArrayTree, name: str) -> tuple[list[str], Views]:
    """Return the names and the arrays of all leaves.

    Raises
    ------
    TypeError
        If a leaf is not an array, or complex.
    """
    names, arrays = named_arrays(tree, name)
    for path, array in zip(names, arrays, strict=True):
        require_real(array, path)
    return names, arrays


def as_weight(x: object, name: str) -> Array:
    """Return a view like `as_array`, which must be real."""
    array = as_array(x, name)
    require_real(array, name)
    return array


def require_real(array: Array, name: str) -> None:
    """Raise a TypeError for complex numbers, of which no part is a weight of its own."""
    if array.dtype.kind == "c":
        raise TypeError(
            f"{name} must be real to be pruned, got {array.dtype}; prune complex weights z by "
            "their magnitudes: optimizer.set_masks(prune.magnitude_mask(np.abs(z), sparsity=...))"
        )

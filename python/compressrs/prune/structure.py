"""Removal of neurons from the arrays of a layer and of the layers that it feeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from compressrs._arrays import Array, as_array, same_memory
from compressrs._checks import sequence
from compressrs.optim import Optimizer
from compressrs.optim._weights import structure_changed
from compressrs.prune.optimizers import index_in
from compressrs.prune.selection import Mask


def neurons(
    keep: Mask,
    outputs: Sequence[Array],
    inputs: Sequence[Array] = (),
    optimizer: Optimizer | None = None,
) -> tuple[list[Array], list[Array]]:
    """Return the arrays of a layer, and of the layers that it feeds, without some neurons.

    The arrays, and every product with them, become smaller. The output of a removed neuron
    is taken as 0, so results equal those with its weights and bias masked.

    Parameters
    ----------
    keep : array of bool, shape (neurons,)
        True for a neuron that is kept.
    outputs : list of array
        Arrays with a row per neuron: the layer's weight, its bias, the scale and shift of a
        normalization; for filters a kernel (outputs, inputs, height, width).
    inputs : list of array, optional
        Arrays with a column (axis 1) per neuron, or the same number of consecutive columns
        for each: weights and kernels of the next layers, and a weight that takes flattened
        feature maps. A recurrent weight may be both here and in `outputs`.
    optimizer : Optimizer, optional
        The arrays that it trains are replaced in it, with their state and masks. Other
        objects with references to the old arrays, such as an `EMA` or a `Pruner`, must be
        created again.

    Returns
    -------
    outputs, inputs : list of array
        New arrays, in the same order.

    Raises
    ------
    TypeError
        If `keep` is not a boolean vector, or another argument is not an array.
    ValueError
        If no neuron is kept, or a shape does not match; nothing is changed in that case.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w1, b1, w2 = np.ones((3, 2)), np.arange(3.0), np.array([[1.0, 2.0, 3.0]])
    >>> opt = cr.optim.Adam([w1, b1, w2])
    >>> opt.step([w1 + 1, b1 + 1, w2 + 1])
    >>> keep = np.array([True, False, True])
    >>> (w1, b1), (w2,) = cr.prune.neurons(keep, [w1, b1], [w2], optimizer=opt)
    >>> w1.shape, b1.shape, w2.shape, opt.state[2]["exp_avg"].shape
    ((2, 2), (2,), (1, 2), (1, 2))
    """
    keep = as_unit_mask(keep, "keep")
    cuts = Cuts()
    outputs, inputs = sequence(outputs, "outputs"), sequence(inputs, "inputs")
    for axis, name, given in ((0, "outputs", outputs), (1, "inputs", inputs)):
        for i, value in enumerate(given):
            cuts.add(as_array(value, f"{name}[{i}]"), axis, keep, f"{name}[{i}]")
    new = cuts.make(optimizer)
    return new[: len(outputs)], new[len(outputs) :]


class Growth(NamedTuple):
    """Slices to append along an axis."""

    #: Of the axis before.
    length: int
    #: The number of new slices.
    more: int
    #: Returns their values for their shape.
    values: Callable[[tuple[int, ...]], Array]


class Cuts:
    """The slices to remove from arrays or to append to them, along one axis or both."""

    def __init__(self) -> None:
        self._arrays: list[Array] = []
        self._cuts: list[dict[int, Mask | Growth]] = []
        #: The index of the array of each call of `add`.
        self._places: list[int] = []

    def add(self, array: Array, axis: int, keep: Mask, name: str) -> None:
        """Remove the slices of an array along an axis where `keep` is False."""
        length = array.shape[axis] if array.ndim > axis else 0
        each = length // keep.size
        if length == 0 or length != each * keep.size or (axis == 0 and each != 1):
            need = f"{keep.size} rows" if axis == 0 else f"a multiple of {keep.size} columns"
            raise ValueError(f"{name} must have {need}, got shape {array.shape}")
        self._add(array, axis, np.repeat(keep, each), name)

    def grow(
        self,
        array: Array,
        axis: int,
        units: int,
        more: int,
        values: Callable[[tuple[int, ...]], Array],
        name: str,
    ) -> None:
        """Append the slices of new units along an axis that has those of a number of units."""
        length = array.shape[axis]
        self._add(array, axis, Growth(length, more * (length // units), values), name)

    def _add(self, array: Array, axis: int, cut: Mask | Growth, name: str) -> None:
        own = (k for k, other in enumerate(self._arrays) if same_memory(other, array))
        place = next(own, len(self._arrays))
        if place == len(self._arrays):
            self._arrays.append(array)
            self._cuts.append({})
        if axis in self._cuts[place]:
            raise ValueError(f"{name} must not be given twice")
        self._cuts[place][axis] = cut
        self._places.append(place)

    def make(
        self, optimizer: Optimizer | None, followers: Sequence[Any] = (), *, replaced: bool = False
    ) -> list[Array]:
        """Return the new array of each `add`, and replace the arrays in the optimizer.

        With `replaced`, the old arrays are recorded as replaced, and objects that still refer
        to them raise an error. A follower has ``_replace(find, cut)``: `find` returns the index
        and the replacement of an old array, `cut` slices values like the array with an index.
        """
        new = [_cut(array, cut) for array, cut in zip(self._arrays, self._cuts, strict=True)]
        if optimizer is not None:
            found = {}
            for k, array in enumerate(self._arrays):
                index = index_in(optimizer, array)
                if index is not None:
                    found[index] = k
            optimizer._replace(
                {index: new[k] for index, k in found.items()},
                lambda index, values, fill, shape: _cut(
                    values, self._cuts[found[index]], fill, shape
                ),
            )

        if replaced:
            structure_changed(self._arrays)

        def find(array: Array) -> tuple[int, Array] | None:
            places = (k for k, own in enumerate(self._arrays) if same_memory(own, array))
            k = next(places, None)
            return None if k is None else (k, new[k])

        for follower in followers:
            follower._replace(find, lambda k, values: _cut(values, self._cuts[k]))
        return [new[place] for place in self._places]


def as_unit_mask(keep: object, name: str) -> Mask:
    """Return a mask of neurons after checking that it keeps at least one."""
    mask = as_array(keep, name)
    if mask.dtype != np.bool_ or mask.ndim != 1:
        raise TypeError(
            f"{name} must be a boolean array of one axis, got {mask.dtype} of shape {mask.shape}"
        )
    if not mask.any():
        raise ValueError(f"{name} must keep at least one neuron of {mask.size}, got none")
    return mask


def _cut(
    array: Array,
    cut: dict[int, Mask | Growth],
    fill: float | None = None,
    wanted: tuple[int, ...] | None = None,
) -> Array:
    """Return an array without the masked slices, along the axes of matching length.

    Appended slices are `fill`, if it is given. Axes that have the `wanted` length stay.
    """
    # Columns first: new rows are drawn as a whole.
    for axis in sorted(cut, reverse=True):
        edit = cut[axis]
        length = edit.length if isinstance(edit, Growth) else edit.size
        # Means over an axis have length 1 there.
        if array.ndim <= axis or array.shape[axis] != length:
            continue
        if wanted is not None and wanted[axis] == length:
            continue
        if isinstance(edit, Growth):
            shape = (*array.shape[:axis], edit.more, *array.shape[axis + 1 :])
            new = edit.values(shape) if fill is None else np.full(shape, fill)
            array = np.concatenate([array, new.astype(array.dtype)], axis=axis)
        else:
            array = np.compress(edit, array, axis=axis)
    return np.ascontiguousarray(array)

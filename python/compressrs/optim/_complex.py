"""Complex parameters and gradients, as pairs of real numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from compressrs._arrays import (
    Array,
    ArrayTree,
    Views,
    as_array,
    as_gradient,
    complex_view,
    flatten,
    pairs,
)
from compressrs.optim.rows import RowGradient

#: Why rules that look at rows and columns refuse complex parameters.
OF_MATRICES = (
    "which looks at the rows and columns of a matrix of real numbers; use a rule that updates "
    "elements one by one, such as Adam"
)


def as_parameter(x: object, name: str) -> Array:
    """Return the view of `x` in which it is trained: pairs, if it is complex.

    Raises
    ------
    TypeError
        If `x` is not an array, or of another complex dtype than complex64 and complex128.
    ValueError
        If it is complex and not C-contiguous.
    """
    array = as_array(x, name)
    if array.dtype.kind != "c":
        return array
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous to be updated in place")
    return pairs(array, name)


class ParameterViews(Views):
    """A list of views of parameters, in which complex ones are pairs of real numbers.

    Attributes
    ----------
    complex : list of bool
        Whether each source is complex.
    """

    def __init__(self, sources: Iterable[object], names: Iterable[str]) -> None:
        self.complex: list[bool] = []
        super().__init__(sources, names)

    def _view(self, source: object, name: str) -> Array:
        array = as_array(source, name)
        self.complex.append(array.dtype.kind == "c")
        return as_parameter(array, name)

    def originals(self, arrays: Sequence[Array]) -> list[Array]:
        """Return arrays of the views' shapes, such as averages, with pairs as complex numbers."""
        return [
            complex_view(array) if is_complex else array
            for array, is_complex in zip(arrays, self.complex, strict=True)
        ]


def named_parameters(tree: ArrayTree, name: str) -> tuple[list[str], ParameterViews]:
    """Return the names of all leaves and the views in which they are trained.

    Raises
    ------
    TypeError, ValueError
        As `as_parameter`.
    """
    leaves = list(flatten(tree, name))
    arrays = ParameterViews((leaf for _, leaf in leaves), (path for path, _ in leaves))
    return arrays.names, arrays


def gradient_pairs(x: object, parameter: Array, name: str, owner: str) -> Any:
    """Return the gradient of a complex parameter in the form of that.

    Parameters
    ----------
    x : array, RowGradient or None
    parameter : array
        The pairs.
    name, owner : str
        Names of the gradient and of the parameter, for messages.

    Raises
    ------
    TypeError
        If it is not an array of complex numbers.
    ValueError
        If it does not have the shape of the complex parameter.
    """
    if x is None:
        return None
    array = x.values if isinstance(x, RowGradient) else as_gradient(x, name)
    if array.dtype.kind != "c":
        raise TypeError(f"{name} must be complex like {owner}, got {array.dtype}")
    if isinstance(x, RowGradient):
        return x.pairs()
    shape = parameter.shape[:-1]
    if array.shape != shape:
        raise ValueError(f"{name} must have the shape {shape} of {owner}, got {array.shape}")
    return pairs(array, name)


def repeated(mask: Array) -> Array:
    """Return the mask of complex numbers as that of their pairs."""
    return np.repeat(mask[..., None], 2, axis=-1)

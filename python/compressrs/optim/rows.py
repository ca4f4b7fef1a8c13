"""Gradients of some rows of a parameter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from compressrs import _core
from compressrs._arrays import (
    Array,
    allocating,
    as_gradient,
    complex_view,
    compute_dtype,
    is_floating,
    pairs,
)
from compressrs._checks import converted, whole


class RowGradient:
    r"""The gradient of some rows of a parameter; that of all others is zero.

    `Optimizer.step` takes it in the place of an array, also inside lists and dicts, for every
    rule that updates elements one by one. It reads and writes these rows of the parameter and
    its state only, so that a step over an embedding costs as much as the rows of the batch.

    Rows that are not named are left as they are, moments included: for `Adam` this is
    ``torch.optim.SparseAdam``. For `SGD` without momentum and `Adagrad` it is the step with the
    dense gradient; for other rules moments of a row decay only in the steps that name it.
    Refused are rules that do something to all rows in every step: any with a `weight_decay`
    other than 0, `ASGD`, and those that take sums over the whole parameter (`Lamb`, `Adafactor`,
    `Muon`, `Shampoo`, `SOAP`, `Prodigy`, `cautious=True`). Refused too is 8-bit state
    (`state_dtype` "int8") of parameters whose rows are not a multiple of 256 elements, since rows
    share scales there, and parameters of 0 axes.

    Parameters
    ----------
    rows : array of int, shape (n,)
        Indices along the parameter's first axis, in any order. Gradients of a row that occurs
        several times are added up, in the order in which they are given.
    values : array, shape (n, ...)
        Their gradients: float32, float64, float16 or bfloat16, for complex parameters complex64 or
        complex128. Not copied.

    Attributes
    ----------
    rows : array of int64, shape (n,)
        A read-only copy.
    values : array, shape (n, ...)

    Raises
    ------
    TypeError
        If `rows` are not integers, or `values` not floating-point numbers.
    ValueError
        If the shapes do not belong together, or a row is negative or not below 2**63. Rows
        beyond the parameter's are refused by `step`.

    References
    ----------
    ``torch.optim.SparseAdam``; ``tf.IndexedSlices``.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> table = np.ones((4, 2))
    >>> opt = cr.optim.SGD(table, lr=0.5)
    >>> opt.step(cr.optim.RowGradient([2, 0, 2], [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    >>> table
    array([[1. , 0.5],
           [1. , 1. ],
           [0. , 1. ],
           [1. , 1. ]])
    """

    __slots__ = ("_rows", "_values")

    #: What `as_array` says is to be given where only arrays are taken.
    _instead_of_array = (
        "give gradient.dense(len(table)), or make the layer with Embedding(sparse=False)"
    )

    def __init__(self, rows: object, values: object) -> None:
        self._rows, self._values = _checked_rows(rows), _checked_values(values)
        if self._values.ndim < 1 or len(self._values) != len(self._rows):
            raise ValueError(
                f"values must hold one gradient for each of the {len(self._rows)} rows, got shape "
                f"{self._values.shape}"
            )

    @property
    def rows(self) -> Array:
        """The indices of the rows."""
        return self._rows

    @property
    def values(self) -> Array:
        """The gradients of the rows."""
        return self._values

    def summed(self) -> RowGradient:
        """Return the same gradient with distinct rows in ascending order.

        Examples
        --------
        >>> import numpy as np, compressrs as cr
        >>> gradient = cr.optim.RowGradient([2, 0, 2], np.array([1.0, 2.0, 3.0])).summed()
        >>> gradient.rows, gradient.values
        (array([0, 2]), array([2., 4.]))
        """
        if self._values.dtype.kind == "c":
            of_pairs = self.pairs().summed()
            return RowGradient(of_pairs.rows, complex_view(of_pairs.values))
        rows, position = np.unique(self._rows, return_inverse=True)
        dtype, shape = compute_dtype(self._values.dtype), self._values.shape[1:]
        sums, width = np.zeros((len(rows), *shape), dtype), math.prod(shape)
        values = np.ascontiguousarray(self._values, dtype).reshape(len(self._rows), width)
        _core.add_rows(
            position.reshape(-1).astype(np.int64), values, sums.reshape(len(rows), width)
        )
        return RowGradient(rows, sums)

    def dense(self, n: int) -> Array:
        """Return the gradient of all `n` rows as an array.

        Raises
        ------
        TypeError
            If `n` is not an integer.
        ValueError
            If a row is not below `n`.
        MemoryError
            If memory cannot hold so many rows.
        """
        n, own = whole(n, "n", 0), self.summed()
        if len(own.rows) and own.rows[-1] >= n:
            raise ValueError(f"n must be above the largest row {own.rows[-1]}, got {n}")
        with allocating(f"a gradient of n={n} rows"):
            gradient = np.zeros((n, *own.values.shape[1:]), own.values.dtype)
        gradient[own.rows] = own.values
        return gradient

    def pairs(self) -> RowGradient:
        """Return complex gradients as those of real and imaginary parts, in a last axis."""
        return RowGradient(self._rows, pairs(self._values, "values"))

    def __repr__(self) -> str:
        return (
            f"RowGradient({len(self._rows)} rows of shape {self._values.shape[1:]}, "
            f"{self._values.dtype})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return RowGradient, (self._rows, self._values)


def _checked_rows(rows: object) -> Array:
    array = converted(rows, "rows")
    if array.size == 0 and isinstance(rows, (list, tuple)):
        array = array.astype(np.int64)  # an empty list has no dtype of its own
    if array.dtype.kind not in "iu":
        _require_range(rows)
        raise TypeError(f"rows must be integers, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"rows must have 1 axis, got shape {array.shape}")
    if array.size and array.min() < 0:
        raise ValueError(f"rows must not be negative, got {array.min()}")
    if array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"rows must be below 2**63, got {array.max()}")
    own = np.array(array, np.int64, order="C")
    own.flags.writeable = False
    return own


def _require_range(rows: object) -> None:
    """Raise ValueError for integers of which NumPy makes no integer array, for their size."""
    given = np.asarray(rows, object).ravel().tolist()
    if all(isinstance(row, (int, np.integer)) and not isinstance(row, bool) for row in given):
        for row in given:
            if not 0 <= row < 2**63:
                raise ValueError(f"rows must be from 0 to 2**63 - 1, got {row}")


def _checked_values(values: object) -> Array:
    array = converted(values, "values") if isinstance(values, (list, tuple)) else None
    array = as_gradient(values, "values") if array is None else array
    if array.dtype.kind == "c":
        pairs(array[:0] if array.ndim else array, "values")
    elif not is_floating(array.dtype):
        raise TypeError(f"values must be floating-point numbers, got {array.dtype}")
    return array

"""Dense and sparse linear layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, as_array, as_matrix, compute_dtype, read_only
from compressrs._checks import dimensions, flag, floating, generator, whole
from compressrs._state import Take, Undo
from compressrs.nn.layer import (
    Layer,
    Parameter,
    RandomState,
    check_gradient,
    check_input,
    check_parameter,
    uniform,
)
from compressrs.optim._weights import structure_changed
from compressrs.sparse import CSRMatrix, SparseMatrix, sddmm


class Affine(Layer):
    """Base class of layers of the form :math:`x W^T + b`.

    A subclass has `weight` (with shape and dtype), `bias`, and the products of `forward` and
    `backward`, which depend on how the weight is stored.
    """

    weight: Any
    bias: Any

    def forward(self, x: Array) -> Array:
        """Return ``x @ weight.T + bias`` for `x` of shape (..., in_features)."""
        features = self.weight.shape[1]
        own, dtype = self.weight.dtype, compute_dtype(self.weight.dtype)
        reason = "like the weight" if own == dtype else f"to multiply a weight of {own}"
        x = check_input(x, "x", dtype, reason)
        if x.ndim < 2 or x.shape[-1] != features:
            raise ValueError(f"x must have shape (batch, {features}), got {x.shape}")
        rows = as_matrix(x, -1)
        y = self._affine(rows)
        self._keep(rows, (*x.shape[:-1], y.shape[1]))
        return y.reshape(*x.shape[:-1], y.shape[1])

    def backward(self, dy: Array) -> Array:
        """Fill `grads` and return ``dy @ weight``; `dy` is of the output's shape."""
        x, shape = self._kept()[:2]
        dy = check_gradient(dy, shape, x.dtype)
        rows = as_matrix(dy, -1)
        self._saved = x, shape, rows
        dx = self._gradients(rows, x, self.grads["weight"])
        if self.bias is not None:
            np.sum(rows, axis=0, out=self.grads["bias"])
        return dx.reshape(*shape[:-1], dx.shape[1])

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the output, without the batch axis."""
        shape = dimensions(shape, "shape")
        out_features, in_features = self.weight.shape
        if not shape or shape[-1] != in_features:
            raise ValueError(f"the input shape must be (..., {in_features}), got {shape}")
        return (*shape[:-1], out_features)

    def multiply_adds(self, shape: tuple[int, ...]) -> int:
        """Return the multiplications for one input of this shape."""
        return math.prod(self.output_shape(shape)[:-1]) * int(self.params["weight"].size)

    @property
    def takes(self) -> tuple[str, int]:
        """The kind and number of features on the last axis of the input."""
        return "features", int(self.weight.shape[1])

    @property
    def gives(self) -> tuple[str, int]:
        """The kind and number of features on the last axis of the output."""
        return "features", int(self.weight.shape[0])

    def _affine(self, x: Array) -> Array:
        raise NotImplementedError

    def _gradients(self, dy: Array, x: Array, out: Array) -> Array:
        """Write the weight's gradient to `out` and return that of `x`."""
        raise NotImplementedError


class Linear(Affine):
    r"""A dense layer, :math:`y = x W^\top + b`.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool, default True
        Whether there is a :math:`b`.
    dtype : dtype, default float32
        float32 or float64.
    rng : int, Generator or None
        Seed or source of the initial values, uniform in
        :math:`\pm 1 / \sqrt{\text{in\_features}}` as in PyTorch.

    Attributes
    ----------
    weight : array, shape (out_features, in_features)
    bias : array, shape (out_features,), or None
        Assigning to either copies into the array that is trained.
    params, grads : dict of array
        Keys ``"weight"`` and ``"bias"``.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> layer = cr.nn.Linear(3, 2, rng=0)
    >>> layer(np.ones((5, 3), np.float32)).shape
    (5, 2)
    """

    weight = Parameter("The matrix, of shape (out_features, in_features).")
    bias = Parameter("The vector of shape (out_features,), or None.")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        dtype: npt.DTypeLike = np.float32,
        rng: RandomState = None,
    ) -> None:
        super().__init__()
        in_features = whole(in_features, "in_features", 1)
        out_features = whole(out_features, "out_features", 1)
        dtype = floating(dtype, "dtype")
        draw, bound = generator(rng), in_features**-0.5
        weight = uniform(draw, bound, (out_features, in_features), dtype)
        has_bias = flag(bias, "bias")
        self._add(
            weight=weight, bias=uniform(draw, bound, (out_features,), dtype) if has_bias else None
        )

    @classmethod
    def from_arrays(cls, weight: Array, bias: Array | None = None) -> Linear:
        """Return a layer that trains the given arrays in place, without copying them.

        Parameters
        ----------
        weight : array, shape (out_features, in_features)
            float32 or float64, C-contiguous and writable.
        bias : array, shape (out_features,), optional
            Of the weight's dtype.

        Raises
        ------
        TypeError, ValueError
            If they are not such arrays.

        Examples
        --------
        >>> import numpy as np, compressrs as cr
        >>> layer = cr.nn.Linear.from_arrays(np.eye(2), np.array([1.0, 2.0]))
        >>> layer(np.array([[3.0, 4.0]]))
        array([[4., 6.]])
        """
        weight = check_parameter(weight, "weight")
        if weight.ndim != 2 or 0 in weight.shape:
            raise ValueError(
                f"weight must have shape (out_features, in_features), got {weight.shape}"
            )
        if bias is not None:
            bias = check_parameter(bias, "bias", weight.shape[:1], weight.dtype)
        layer = cls.__new__(cls)
        Layer.__init__(layer)
        layer._add(weight=weight, bias=bias)
        return layer

    def config(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        out_features, in_features = self.weight.shape
        return {
            "in_features": in_features,
            "out_features": out_features,
            "bias": self.bias is not None,
            "dtype": self.weight.dtype.name,
        }

    def _affine(self, x: Array) -> Array:
        y = np.empty((len(x), self.weight.shape[0]), x.dtype)
        _core.linear(x, self.weight, self.bias, y)
        return y

    def _gradients(self, dy: Array, x: Array, out: Array) -> Array:
        dx = np.empty(x.shape, x.dtype)
        _core.linear_backward(x, self.weight, dy, dx, out)
        return dx


class SparseLinear(Affine):
    r"""A layer whose weight is a sparse matrix, :math:`y = x A^\top + b`.

    It trains at a cost of the stored entries: forward ``x @ A.T``, input gradient
    ``dy @ A``, weight gradient `compressrs.sparse.sddmm`, and the optimizer works
    on ``A.data``. The pattern stays, unless `compressrs.prune.RigL` or `SET` changes it, or a state
    with another one is loaded.

    Parameters
    ----------
    weight : SparseMatrix, shape (out_features, in_features)
        With values in float16 or bfloat16 it takes half the memory; inputs, outputs and bias
        are float32 then, and only the weight and its gradient are rounded.
    bias : array, shape (out_features,), optional
        Of the weight's dtype, or float32 as above. Both are used, not copied.

    Attributes
    ----------
    weight : SparseMatrix
        Assigning a matrix of the same pattern copies its values; another is refused.
    params, grads : dict of array
        Keys ``"weight"``, the weight's `data`, and ``"bias"``.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> dense = cr.nn.Linear(3, 2, rng=0)
    >>> dense.weight[0] = 0
    >>> layer = cr.nn.SparseLinear.from_linear(dense)
    >>> layer.weight.nnz
    3
    """

    bias = Parameter("The vector of shape (out_features,), or None.")
    _pattern = ("weight.indices", "weight.indptr")

    def __init__(self, weight: SparseMatrix, bias: Array | None = None) -> None:
        super().__init__()
        if not isinstance(weight, SparseMatrix):
            got = type(weight).__name__
            raise TypeError(f"weight must be a sparse matrix of compressrs, got {got}")
        if bias is not None:
            bias = as_array(bias, "bias")
            dtype = compute_dtype(weight.dtype)
            if bias.shape != weight.shape[:1] or bias.dtype != dtype:
                raise ValueError(
                    f"bias must be {dtype} of shape {weight.shape[:1]}, "
                    f"got {bias.dtype} of shape {bias.shape}"
                )
        self._weight = weight
        self._add(weight=weight.data, bias=bias)

    @property
    def weight(self) -> Any:
        """The matrix, of shape (out_features, in_features)."""
        return self._weight

    @weight.setter
    def weight(self, weight: SparseMatrix) -> None:
        own = self._weight
        if isinstance(weight, SparseMatrix) and weight.data is own.data:
            self._weight = weight  # another pattern of the same entries
            return
        same = (
            type(weight) is type(own)
            and weight.shape == own.shape
            and np.array_equal(weight.indices, own.indices)
            and np.array_equal(weight.indptr, own.indptr)
        )
        if not same:
            raise ValueError(
                "weight must be a matrix over the same data, which an optimizer trains, or one of "
                "the same pattern; make a new SparseLinear of another"
            )
        self._assign("weight", weight.data)

    @classmethod
    def from_linear(
        cls, layer: Linear, threshold: float = 0.0, *, mask: Array | None = None
    ) -> SparseLinear:
        """Return a sparse copy of a dense layer.

        Stored are the weights whose magnitude is not 0 and not below `threshold`, or those that
        a mask keeps, even where they are 0. Whether the copy is faster than the dense layer
        depends on sparsity, shape, batch and machine: `recommend` measures it, and blocks too.
        """
        if not isinstance(layer, Linear):
            raise TypeError(f"layer must be a Linear, got {type(layer).__name__}")
        bias = None if layer.bias is None else layer.bias.copy()
        return cls(CSRMatrix.from_dense(layer.weight, threshold, mask=mask), bias)

    def config(self) -> dict[str, Any]:
        """Return format, shape and dtype."""
        return {
            "format": type(self._weight).__name__,
            "shape": list(self._weight.shape),
            "bias": self.bias is not None,
            "dtype": self._weight.dtype.name,
            **self._weight._options(),
        }

    def state_dict(self) -> dict[str, Array]:
        """Return values, bias and the pattern, which is read-only."""
        pattern = {"weight.indices": self._weight.indices, "weight.indptr": self._weight.indptr}
        return {**self.params, **{k: read_only(v) for k, v in pattern.items()}}

    def dense_gradient(self) -> Array:
        """Return the gradient of all weights, stored or not, from the last `backward`.

        It is computed now, of the input and the `dy` of that, which must not have been written to.

        Raises
        ------
        RuntimeError
            If there was no backward.
        """
        if self._saved is None or len(self._saved) < 3:
            raise RuntimeError("dense_gradient needs a backward before it")
        x, _, dy = self._saved
        gradient: Array = dy.T @ x
        return gradient.astype(self._weight.dtype, copy=False)

    def _checked_pattern(self, values: Mapping[str, Array], prefix: str) -> Take:
        own = self._weight
        indices, indptr = (values[prefix + key] for key in self._pattern)
        if np.array_equal(indices, own.indices) and np.array_equal(indptr, own.indptr):
            return lambda undo: None
        try:
            weight = own._rearranged(indices, indptr)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"state_dict[{prefix + self._pattern[0]!r}] must be, with its indptr, a pattern of "
                f"{type(own).__name__} of shape {own.shape}: {error}"
            ) from None

        def take(undo: Undo) -> None:
            undo.on_failure(lambda: setattr(self, "_weight", own))
            self._weight = weight
            # What others hold for each entry belongs to the old pattern.
            structure_changed([self.params["weight"]], replaced=False)

        return take

    def _adopt(self, weight: SparseMatrix) -> None:
        """Train the values of a matrix with another pattern from now on."""
        self._weight = weight
        if self.params["weight"] is not weight.data:
            self._use({"weight": weight.data})

    def _affine(self, x: Array) -> Array:
        y: Array = self._weight.T.rmatmul(x, bias=self.bias)
        return y

    def _gradients(self, dy: Array, x: Array, out: Array) -> Array:
        sddmm(self._weight, dy.T, x, out=out)
        dx: Array = dy @ self._weight
        return dx

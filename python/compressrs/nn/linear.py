"""Dense and sparse affine layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs._arrays import Array, as_array
from compressrs._checks import floating, generator, whole
from compressrs.nn.layer import Copyable, RandomState
from compressrs.sparse import CSRMatrix, SparseMatrix, sddmm


class Affine(Copyable):
    """What `Linear` and `SparseLinear` share: all but the weight's own gradient."""

    _of_batch = ("_x", "_dy")

    weight: Any
    bias: Array | None

    def __init__(self, params: dict[str, Array]) -> None:
        self.params: dict[str, Array] = {}
        self.grads: dict[str, Array] = {}
        self._use(params)

    def _use(self, params: dict[str, Array]) -> None:
        """Train these arrays from now on; the dicts, which others hold, stay."""
        self.params.update(params)
        self.grads.update({name: np.zeros_like(value) for name, value in params.items()})
        self._x: Array | None = None
        self._dy: Array | None = None

    def forward(self, x: Array) -> Array:
        """Return ``x @ weight.T + bias`` for `x` of shape (batch, in_features)."""
        x = as_array(x, "x")
        features = self.weight.shape[1]
        if x.ndim != 2 or x.shape[1] != features:
            raise ValueError(f"x must have shape (batch, {features}), got {x.shape}")
        if x.dtype != self.weight.dtype:
            raise TypeError(f"x must have dtype {self.weight.dtype} like the weight, got {x.dtype}")
        self._x = x
        return self._affine(x)

    __call__ = forward

    def backward(self, dy: Array) -> Array:
        """Fill `grads` and return ``dy @ weight``; `dy` is of the output's shape."""
        if self._x is None:
            raise RuntimeError("backward needs a forward before it")
        dy = as_array(dy, "dy")
        shape = (len(self._x), self.weight.shape[0])
        if dy.shape != shape:
            raise ValueError(f"dy must have shape {shape}, got {dy.shape}")
        if dy.dtype != self.weight.dtype:
            raise TypeError(
                f"dy must have dtype {self.weight.dtype} like the weight, got {dy.dtype}"
            )
        self._dy = dy
        self._weight_gradient(dy, self._x, self.grads["weight"])
        if self.bias is not None:
            np.sum(dy, axis=0, out=self.grads["bias"])
        dx: Array = dy @ self.weight
        return dx

    def _affine(self, x: Array) -> Array:
        raise NotImplementedError

    def _weight_gradient(self, dy: Array, x: Array, out: Array) -> None:
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
    params, grads : dict of array
        Keys ``"weight"`` and ``"bias"``.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> layer = cr.nn.Linear(3, 2, rng=0)
    >>> layer(np.ones((5, 3), np.float32)).shape
    (5, 2)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        dtype: npt.DTypeLike = np.float32,
        rng: RandomState = None,
    ) -> None:
        in_features = whole(in_features, "in_features", 1)
        out_features = whole(out_features, "out_features", 1)
        dtype = floating(dtype, "dtype")
        draw = generator(rng).uniform
        bound = in_features**-0.5
        try:
            weight = draw(-bound, bound, (out_features, in_features))
        except ValueError:
            # What NumPy says of sizes that no address reaches.
            raise MemoryError(
                f"in_features and out_features of {in_features} and {out_features} "
                "are more than memory can hold"
            ) from None
        self.weight = weight.astype(dtype)
        self.bias = draw(-bound, bound, out_features).astype(dtype) if bias else None
        super().__init__(_present(weight=self.weight, bias=self.bias))

    def _affine(self, x: Array) -> Array:
        y: Array = x @ self.weight.T
        if self.bias is not None:
            y += self.bias
        return y

    def _weight_gradient(self, dy: Array, x: Array, out: Array) -> None:
        np.matmul(dy.T, x, out=out)


class SparseLinear(Affine):
    r"""A layer whose weight is a sparse matrix, :math:`y = x A^\top + b`.

    It trains at a cost of the stored entries: forward ``x @ A.T``, input gradient
    ``dy @ A``, weight gradient `compressrs.sparse.sddmm`, and the optimizer works
    on ``A.data``. The pattern stays, unless `compressrs.prune.RigL` or `SET` changes it.

    Parameters
    ----------
    weight : SparseMatrix, shape (out_features, in_features)
    bias : array, shape (out_features,), optional
        Of the weight's dtype. Both are used, not copied.

    Attributes
    ----------
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

    def __init__(self, weight: SparseMatrix, bias: Array | None = None) -> None:
        if not isinstance(weight, SparseMatrix):
            got = type(weight).__name__
            raise TypeError(f"weight must be a sparse matrix of compressrs, got {got}")
        if bias is not None:
            bias = as_array(bias, "bias")
            if bias.shape != weight.shape[:1] or bias.dtype != weight.dtype:
                raise ValueError(
                    f"bias must be {weight.dtype} of shape {weight.shape[:1]}, "
                    f"got {bias.dtype} of shape {bias.shape}"
                )
        self.weight = weight
        self.bias = bias
        super().__init__(_present(weight=weight.data, bias=bias))

    @classmethod
    def from_linear(
        cls, layer: Linear, threshold: float = 0.0, *, mask: Array | None = None
    ) -> SparseLinear:
        """Store what is not 0 in a dense layer, and not below `threshold`; copies it.

        Or what a mask keeps, even where it is 0.
        """
        if not isinstance(layer, Linear):
            raise TypeError(f"layer must be a Linear, got {type(layer).__name__}")
        bias = None if layer.bias is None else layer.bias.copy()
        return cls(CSRMatrix.from_dense(layer.weight, threshold, mask=mask), bias)

    def dense_gradient(self) -> Array:
        """Return the last backward's gradient of all weights, also of those not stored.

        Raises
        ------
        RuntimeError
            If there was no backward.
        """
        if self._x is None or self._dy is None:
            raise RuntimeError("dense_gradient needs a backward before it")
        gradient: Array = self._dy.T @ self._x
        return gradient

    def _affine(self, x: Array) -> Array:
        y: Array = self.weight.T.rmatmul(x, bias=self.bias)
        return y

    def _weight_gradient(self, dy: Array, x: Array, out: Array) -> None:
        sddmm(self.weight, dy.T, x, out=out)


def _present(**arrays: Array | None) -> dict[str, Array]:
    return {name: array for name, array in arrays.items() if array is not None}

"""Multi-head attention and embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, allocating, as_array, as_matrix
from compressrs._checks import converted, dimensions, flag, floating, generator, whole
from compressrs.nn.layer import (
    Layer,
    Parameter,
    RandomState,
    check_gradient,
    check_input,
    uniform,
)
from compressrs.optim.rows import RowGradient


class SelfAttention(Layer):
    """Base class of attention layers: heads, and shapes."""

    takes_lengths = True

    def _set(self, features: int, heads: int, causal: bool) -> None:
        self.features = features
        self.heads = whole(heads, "heads", 1)
        if self.features % self.heads:
            raise ValueError(f"heads must divide the {self.features} features, got {heads}")
        self.causal = flag(causal, "causal")

    @property
    def takes(self) -> tuple[str, int]:
        """The kind and number of features on the last axis of the input."""
        return "features", self.features

    gives = takes

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the output, without the batch axis."""
        shape = dimensions(shape, "shape")
        if len(shape) != 2 or shape[1] != self.features:
            raise ValueError(f"the input shape must be (length, {self.features}), got {shape}")
        return shape

    def multiply_adds(self, shape: tuple[int, ...]) -> int:
        """Return the multiplications for one input of this shape."""
        length = self.output_shape(shape)[0]
        return 4 * length * self.features**2 + 2 * length**2 * self.features


class MultiHeadAttention(SelfAttention):
    r"""Self-attention, :math:`\mathrm{softmax}(Q K^\top / \sqrt{d}) V` for each head.

    ``in_proj_weight`` projects the input to queries, keys and values; the concatenated outputs
    of the heads are multiplied by ``out_proj.weight``.

    Parameters
    ----------
    features : int
        Size of inputs and outputs.
    heads : int
        Number of heads; must divide `features`.
    causal : bool, default False
        Whether each position attends only to itself and earlier ones.
    bias : bool, default True
    dtype : dtype, default float32
        float32 or float64.
    rng : int, Generator or None
        Seed or generator of the initial values, which are PyTorch's: Glorot's for
        ``in_proj_weight``, uniform in :math:`\pm 1 / \sqrt{\text{features}}` for
        ``out_proj.weight``; biases are 0.

    Attributes
    ----------
    params, grads : dict of array
        ``"in_proj_weight"`` (3 features, features), ``"in_proj_bias"``,
        ``"out_proj.weight"`` and ``"out_proj.bias"``, as in
        ``torch.nn.MultiheadAttention``.

    References
    ----------
    Vaswani et al., "Attention Is All You Need", arXiv 1706.03762.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> layer = cr.nn.MultiHeadAttention(8, 2, rng=0)
    >>> layer(np.ones((2, 5, 8), np.float32)).shape
    (2, 5, 8)
    """

    def __init__(
        self,
        features: int,
        heads: int,
        *,
        causal: bool = False,
        bias: bool = True,
        dtype: npt.DTypeLike = np.float32,
        rng: RandomState = None,
    ) -> None:
        super().__init__()
        self._set(whole(features, "features", 1), heads, causal)
        dtype, draw = floating(dtype, "dtype"), generator(rng)
        glorot, plain = (6 / (4 * features)) ** 0.5, features**-0.5
        weight = uniform(draw, glorot, (3 * features, features), dtype)
        out = uniform(draw, plain, (features, features), dtype)
        params = {"in_proj_weight": weight, "out_proj.weight": out}
        if flag(bias, "bias"):
            params["in_proj_bias"] = np.zeros(3 * features, dtype)
            params["out_proj.bias"] = np.zeros(features, dtype)
        self._use(params)

    def forward(self, x: Array, lengths: npt.ArrayLike | None = None) -> Array:
        """Return the output for `x` of shape (batch, length, features).

        Parameters
        ----------
        x : array
        lengths : array of int, shape (batch,), optional
            The lengths of the sequences; the positions after that are padding, which no
            position attends to.
        """
        rows, q, k, v, probabilities, mixed = self._mixed(x, lengths)
        y = np.empty(rows.shape, rows.dtype)
        out = self.params["out_proj.weight"], self.params.get("out_proj.bias")
        _core.linear(mixed.reshape(rows.shape), *out, y)
        self._keep(rows, q, k, v, probabilities, mixed)
        return y.reshape(q.shape)

    def _mixed(self, x: Array, lengths: npt.ArrayLike | None = None) -> tuple[Array, ...]:
        """Return the rows of `x`, queries, keys, values, probabilities, and the heads' outputs."""
        weight = self.params["in_proj_weight"]
        x, checked = check_sequences(x, self.features, weight.dtype, lengths)
        batch, length, features = x.shape
        rows = as_matrix(x, -1)
        q, k, v = parts = [np.empty((batch, length, features), x.dtype) for _ in range(3)]
        biases = self.params.get("in_proj_bias")
        for i, part in enumerate(parts):
            own = slice(i * features, (i + 1) * features)
            bias = None if biases is None else biases[own]
            _core.linear(rows, weight[own], bias, part.reshape(rows.shape))
        probabilities = np.empty((batch, self.heads, length, length), x.dtype)
        mixed = np.empty(x.shape, x.dtype)
        _core.attend(q, k, v, self.heads, self.causal, checked, probabilities, mixed)
        return rows, q, k, v, probabilities, mixed

    def backward(self, dy: Array) -> Array:
        """Fill `grads` and return the gradient with respect to the last input."""
        rows, q, k, v, probabilities, mixed = self._kept()
        dy = check_gradient(dy, q.shape, rows.dtype).reshape(rows.shape)
        grads, features = self.grads, self.features
        d_mixed = np.empty(rows.shape, rows.dtype)
        out = self.params["out_proj.weight"]
        mixed = mixed.reshape(rows.shape)
        _core.linear_backward(mixed, out, dy, d_mixed, grads["out_proj.weight"])
        parts = [np.empty(q.shape, rows.dtype) for _ in range(3)]
        d_mixed = d_mixed.reshape(q.shape)
        _core.attend_backward(q, k, v, self.heads, probabilities, d_mixed, *parts)
        if "in_proj_bias" in grads:
            np.sum(dy, axis=0, out=grads["out_proj.bias"])
        dx = np.zeros(rows.shape, rows.dtype)
        for i, part in enumerate(parts):
            own, d_rows = slice(i * features, (i + 1) * features), np.empty_like(dx)
            of_part = part.reshape(rows.shape)
            weight, dw = self.params["in_proj_weight"][own], grads["in_proj_weight"][own]
            _core.linear_backward(rows, weight, of_part, d_rows, dw)
            if "in_proj_bias" in grads:
                np.sum(of_part, axis=0, out=grads["in_proj_bias"][own])
            dx += d_rows
        result: Array = dx.reshape(q.shape)
        return result

    def config(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {
            "features": self.features,
            "heads": self.heads,
            "causal": self.causal,
            "bias": "in_proj_bias" in self.params,
            "dtype": self.params["in_proj_weight"].dtype.name,
        }


def check_sequences(
    x: object, features: int, dtype: np.dtype[Any], lengths: npt.ArrayLike | None
) -> tuple[Array, Array | None]:
    """Return an input of shape (batch, length, features) and its lengths as arrays.

    Raises
    ------
    TypeError, ValueError
        If they have other shapes or dtypes.
    """
    x = check_input(x, "x", dtype)
    if x.ndim != 3 or x.shape[2] != features:
        raise ValueError(f"x must have shape (batch, length, {features}), got {x.shape}")
    if lengths is None:
        return x, None
    found = converted(lengths, "lengths")
    if found.dtype.kind not in "iu":
        raise TypeError(f"lengths must hold integers, got {found.dtype}")
    return x, found.astype(np.int64)


def check_ids(x: object, rows: int) -> npt.NDArray[np.int64]:
    """Return the numbers of rows of a table as an array.

    Raises
    ------
    TypeError, ValueError
        If they are not integers, or one is out of range.
    """
    ids = as_array(x, "x")
    if ids.dtype.kind not in "iu":
        raise TypeError(f"x must hold integers, got {ids.dtype}")
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < rows:
        raise ValueError(f"x must be from 0 to {rows - 1}, got {ids.min()} to {ids.max()}")
    return ids.astype(np.int64)


class Embedding(Layer):
    """A table of vectors, looked up by index.

    Parameters
    ----------
    num_embeddings, features : int
        Number of rows of the table, and their length.
    dtype : dtype, default float32
        float32 or float64.
    rng : int, Generator or None
        Seed or generator of the initial values, which are normally distributed.
    sparse : bool, default False
        Give a `RowGradient` of the rows that were looked up instead of an array as large as the
        table, as in PyTorch. A step then costs as much as these rows; see there which rules
        take it, and what that means for moments.

    Attributes
    ----------
    weight : array, shape (num_embeddings, features)

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> layer = cr.nn.Embedding(10, 4, rng=0)
    >>> layer(np.array([[1, 2, 1]])).shape
    (1, 3, 4)
    >>> layer = cr.nn.Embedding(1000, 4, sparse=True, rng=0)
    >>> opt = cr.optim.Adam(layer.params)
    >>> _ = layer.backward(layer(np.array([[7, 2, 7]])))
    >>> layer.grads["weight"]
    RowGradient(3 rows of shape (4,), float32)
    >>> opt.step(layer.grads)
    """

    weight = Parameter("The table, of shape (num_embeddings, features).")

    def __init__(
        self,
        num_embeddings: int,
        features: int,
        *,
        dtype: npt.DTypeLike = np.float32,
        rng: RandomState = None,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        self.sparse = flag(sparse, "sparse")
        shape = whole(num_embeddings, "num_embeddings", 1), whole(features, "features", 1)
        dtype = floating(dtype, "dtype")
        draw = generator(rng)
        with allocating(f"a table of shape {shape}"):
            weight = draw.standard_normal(shape).astype(dtype)
        self._add(weight=weight)

    def forward(self, x: Array) -> Array:
        """Return the rows with indices `x`, of shape (..., features).

        Raises
        ------
        TypeError, ValueError
            If `x` does not hold integers, or an index is out of range.
        """
        ids = check_ids(x, len(self.weight))
        y: Array = np.take(self.weight, ids, axis=0)
        self._keep(ids, y.shape)
        return y

    def backward(self, dy: Array) -> Array:
        """Fill `grads` and return zeros, since indices have no gradient."""
        ids, shape = self._kept()
        dy = check_gradient(dy, shape, self.weight.dtype)
        rows, values = ids.reshape(-1), dy.reshape(ids.size, shape[-1])
        if self.sparse:
            # A copy: the caller may write to `dy` before the step, as with dense gradients.
            self.grads["weight"] = RowGradient(rows, values.copy())
        else:
            grad = self.grads["weight"]
            grad.fill(0)
            _core.add_rows(rows, values, grad)
        return np.zeros(ids.shape, dy.dtype)

    def _no_gradient(self, parameter: Array) -> Any:
        if self.sparse:
            return RowGradient([], np.zeros((0, parameter.shape[1]), parameter.dtype))
        return super()._no_gradient(parameter)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the output, without the batch axis."""
        shape = dimensions(shape, "shape")
        return *shape, self.weight.shape[1]

    def config(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        rows, features = self.weight.shape
        arguments = {"num_embeddings": rows, "features": features, "dtype": self.weight.dtype.name}
        # Files that were written before there was this argument stay readable.
        return {**arguments, "sparse": True} if self.sparse else arguments

"""Linear layers with a weight that is quantized and sparse."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs._arrays import Array, as_matrix
from compressrs._state import Take, Undo
from compressrs.nn._quantized import require_layer, scheme_of, vector
from compressrs.nn.layer import Parameter, check_gradient
from compressrs.nn.linear import Linear, SparseLinear
from compressrs.nn.quantized import _Affine
from compressrs.quantize.scheme import Scheme
from compressrs.quantize.sparse import QuantizedCSRMatrix
from compressrs.sparse import CSRMatrix, SparseMatrix


class QuantizedSparseLinear(_Affine):
    r"""A linear layer with a weight that is sparse and quantized, :math:`y = x \tilde A^\top + b`.

    A weight takes 1 byte and its index; the zeros take nothing. For inference; `backward` returns
    the gradient of the input and fills that of the bias. Inputs, sums and outputs are float32: the
    outputs are those of a `SparseLinear` with the decoded values, bit for bit.

    Parameters
    ----------
    weight : QuantizedCSRMatrix, shape (out_features, in_features)
        Used, not copied.
    bias : array of float32, shape (out_features,), optional
        Used, not copied.

    Attributes
    ----------
    params, grads : dict of array
        Key ``"bias"``.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, shape or dtype.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> layer = cr.nn.Linear(64, 32, rng=0)
    >>> mask = cr.prune.magnitude_mask(layer.weight, sparsity=0.9)
    >>> sparse = cr.nn.SparseLinear.from_linear(layer, mask=mask)
    >>> small = cr.nn.QuantizedSparseLinear.from_sparse(sparse, cr.quantize.Scheme(bits=8))
    >>> x = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    >>> bool(np.abs(small(x) - sparse(x)).max() < 0.01)
    True
    """

    bias = Parameter("The vector of one number for each output, or None.")
    # The arrays of a matrix are immutable: other values are another matrix.
    _pattern = ("weight.codes", "weight.scale", "weight.indices", "weight.indptr")

    def __init__(self, weight: QuantizedCSRMatrix, bias: Array | None = None) -> None:
        super().__init__()
        if not isinstance(weight, QuantizedCSRMatrix):
            raise TypeError(f"weight must be a QuantizedCSRMatrix, got {type(weight).__name__}")
        self._weight = weight
        self._add(bias=vector(bias, "bias", weight.shape[0], weight.dtype))

    @property
    def weight(self) -> QuantizedCSRMatrix:
        """The matrix, of shape (out_features, in_features)."""
        return self._weight

    @classmethod
    def from_sparse(
        cls, layer: SparseLinear, scheme: Scheme | None = None
    ) -> QuantizedSparseLinear:
        """Return a layer with the values rounded to the nearest codes; the bias is copied.

        Of a weight in another format than CSR, the values that are not 0 are taken.

        Parameters
        ----------
        layer : SparseLinear
            In float32, float16 or bfloat16.
        scheme : Scheme, optional
            As in `compressrs.quantize.QuantizedCSRMatrix`; by default 8 bits with a scale for each
            row.

        Raises
        ------
        TypeError
            If `layer` is not such a `SparseLinear`, or `scheme` not a `Scheme`.
        ValueError
            If the scheme is of another kind, or a value is NaN or infinite.
        """
        require_layer(layer, SparseLinear)
        return cls._of(layer.weight, layer.bias, scheme)

    @classmethod
    def from_linear(
        cls,
        layer: Linear,
        scheme: Scheme | None = None,
        *,
        threshold: float = 0.0,
        mask: Array | None = None,
    ) -> QuantizedSparseLinear:
        """Return a layer with the weights of a pruned one, rounded; the bias is copied.

        Parameters
        ----------
        layer : Linear
            In float32.
        scheme : Scheme, optional
            As for `from_sparse`.
        threshold, mask
            What to keep, as in `SparseLinear.from_linear`.

        Raises
        ------
        TypeError, ValueError
            As for `from_sparse`, and those of
            `CSRMatrix.from_dense <compressrs.sparse.CSRMatrix.from_dense>`.
        """
        require_layer(layer, Linear)
        _require_float32(layer.weight.dtype)
        return cls._of(CSRMatrix.from_dense(layer.weight, threshold, mask=mask), layer.bias, scheme)

    @classmethod
    def _of(
        cls, matrix: SparseMatrix, bias: Array | None, scheme: Scheme | None
    ) -> QuantizedSparseLinear:
        _require_float32(matrix.dtype)
        csr = matrix if isinstance(matrix, CSRMatrix) else CSRMatrix.from_dense(matrix.to_dense())
        weight = QuantizedCSRMatrix.from_csr(csr, scheme)
        return cls(weight, None if bias is None else bias.copy())

    @classmethod
    def _of_state(
        cls, config: Mapping[str, Any], state: Mapping[str, Array]
    ) -> QuantizedSparseLinear:
        """Return the layer whose `config` and `state_dict` these are."""
        rows, columns = config["shape"]
        weight = _matrix(state, "", (rows, columns), scheme_of(config))
        return cls(weight, state["bias"].copy() if config["bias"] else None)

    @property
    def nbytes(self) -> int:
        """Bytes of the weight's arrays and of the bias."""
        return sum(array.nbytes for array in self.state_dict().values())

    def config(self) -> dict[str, Any]:
        """Return shape and options, without the values of arrays."""
        return {
            "shape": list(self._weight.shape),
            "scheme": dataclasses.asdict(self._weight.scheme),
            "bias": self.bias is not None,
        }

    def state_dict(self) -> dict[str, Array]:
        """Return the bias and the weight's arrays, which are read-only, as ``"weight.codes"``."""
        weight = self._weight
        arrays = weight.codes, weight.scale, weight.indices, weight.indptr
        return {**super().state_dict(), **dict(zip(self._pattern, arrays, strict=True))}

    def _checked_pattern(self, values: Mapping[str, Array], prefix: str) -> Take:
        own, state = self._weight, self.state_dict()
        if all(
            values[prefix + key].dtype == state[key].dtype
            and np.array_equal(values[prefix + key], state[key])
            for key in self._pattern
        ):
            return lambda undo: None
        try:
            weight = _matrix(values, prefix, own.shape, own.scheme)
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"state_dict[{prefix + self._pattern[0]!r}] must be, with its scale, indices and "
                f"indptr, a {type(own).__name__} of shape {own.shape}: {error}"
            ) from None

        def take(undo: Undo) -> None:
            undo.on_failure(lambda: setattr(self, "_weight", own))
            self._weight = weight

        return take

    def _values(self) -> Iterator[Array]:
        yield self._weight.dequantize().data
        yield from super()._values()

    def forward(self, x: Array) -> Array:
        """Return the output for `x` of shape (..., in_features)."""
        rows = self._rows(x)
        shape = (*x.shape[:-1], self._weight.shape[0])
        y: Array = self._weight.T.rmatmul(rows, bias=self.bias)
        self._keep(shape)
        return y.reshape(shape)

    def backward(self, dy: Array) -> Array:
        """Return the gradient of the input and fill that of the bias."""
        (shape,) = self._kept()
        rows = as_matrix(check_gradient(dy, shape, self._weight.dtype), -1)
        dx: npt.NDArray[Any] = rows @ self._weight
        if self.bias is not None:
            np.sum(rows, axis=0, out=self.grads["bias"])
        return dx.reshape(*shape[:-1], self._weight.shape[1])


def _require_float32(dtype: np.dtype[Any]) -> None:
    """Raise TypeError unless inputs and outputs of a layer with such weights are float32."""
    if dtype == np.float64:
        raise TypeError(
            "layer must have weights in float32, float16 or bfloat16, since products with codes "
            "are in float32, got float64"
        )


def _matrix(
    state: Mapping[str, Array], prefix: str, shape: tuple[int, int], scheme: Scheme
) -> QuantizedCSRMatrix:
    """Return the weight of a layer whose `state_dict` has these arrays."""
    codes, scale, indices, indptr = (state[prefix + key] for key in QuantizedSparseLinear._pattern)
    return QuantizedCSRMatrix((codes, scale, indices, indptr), shape, scheme)

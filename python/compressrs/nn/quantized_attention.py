"""Quantized attention and embeddings, for inference."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array
from compressrs._checks import dimensions
from compressrs.nn._quantized import tensor_of_state
from compressrs.nn.attention import Embedding, SelfAttention, check_ids, check_sequences
from compressrs.nn.layer import Layer, check_gradient
from compressrs.nn.quantized import QuantizedLinear
from compressrs.quantize.rounding import quantize
from compressrs.quantize.scheme import Scheme
from compressrs.quantize.tensor import QuantizedTensor


def attended(
    in_proj: QuantizedLinear,
    heads: int,
    causal: bool,
    x: Array,
    lengths: npt.ArrayLike | None = None,
) -> tuple[Array, ...]:
    """Return queries, keys, values, probabilities, and the heads' outputs."""
    features = in_proj.weight.shape[1]
    x, checked = check_sequences(x, features, in_proj.weight.dtype, lengths)
    parts = np.split(in_proj.forward(x), 3, axis=2)
    q, k, v = (np.ascontiguousarray(part) for part in parts)
    batch, length, _ = x.shape
    probabilities = np.empty((batch, heads, length, length), x.dtype)
    mixed = np.empty(x.shape, x.dtype)
    _core.attend(q, k, v, heads, causal, checked, probabilities, mixed)
    return q, k, v, probabilities, mixed


class QuantizedMultiHeadAttention(SelfAttention):
    r"""Self-attention with quantized weights in both of its products.

    For inference; `backward` returns the gradient of the input, and fills those of the biases.
    Made by `compressrs.quantize.quantize_model`.

    Parameters
    ----------
    in_proj : QuantizedLinear
        Of shape (3 features, features): queries, keys and values of all heads.
    out_proj : QuantizedLinear
        Of shape (features, features).
    heads : int
    causal : bool, default False
        See `MultiHeadAttention`.

    Raises
    ------
    TypeError, ValueError
        If a layer has another type or shape, or `heads` does not divide the features.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> model = cr.nn.Sequential(cr.nn.MultiHeadAttention(8, 2, rng=0))
    >>> small = cr.quantize.quantize_model(model, cr.quantize.Scheme(bits=8))
    >>> type(small[0]).__name__, small(np.ones((2, 5, 8), np.float32)).shape
    ('QuantizedMultiHeadAttention', (2, 5, 8))
    """

    def __init__(
        self,
        in_proj: QuantizedLinear,
        out_proj: QuantizedLinear,
        heads: int,
        *,
        causal: bool = False,
    ) -> None:
        super().__init__()
        for name, layer in (("in_proj", in_proj), ("out_proj", out_proj)):
            if not isinstance(layer, QuantizedLinear):
                raise TypeError(f"{name} must be a QuantizedLinear, got {type(layer).__name__}")
        features: int = out_proj.weight.shape[0]
        shapes = in_proj.weight.shape, out_proj.weight.shape
        if shapes != ((3 * features, features), (features, features)):
            raise ValueError(
                "in_proj and out_proj must have weights of shape (3 features, features) and "
                f"(features, features), got {shapes[0]} and {shapes[1]}"
            )
        if in_proj.weight.dtype != out_proj.weight.dtype:
            raise TypeError(
                f"out_proj must have dtype {in_proj.weight.dtype} like in_proj, got "
                f"{out_proj.weight.dtype}"
            )
        self.in_proj, self.out_proj = in_proj, out_proj
        self._set(features, heads, causal)
        self._gather()

    def _gather(self) -> None:
        """Make the biases of both layers the parameters."""
        parts = {"in_proj": self.in_proj, "out_proj": self.out_proj}
        biased = {f"{name}.bias": part for name, part in parts.items() if part.bias is not None}
        self._params = self._own({name: part.bias for name, part in biased.items()})
        self._grads = {name: part.grads["bias"] for name, part in biased.items()}

    def forward(self, x: Array, lengths: npt.ArrayLike | None = None) -> Array:
        """Return the output for `x` of shape (batch, length, features).

        Parameters
        ----------
        x : array
        lengths : array of int, shape (batch,), optional
            See `MultiHeadAttention.forward`.
        """
        *saved, mixed = attended(self.in_proj, self.heads, self.causal, x, lengths)
        self._keep(*saved)
        return self.out_proj.forward(mixed)

    def backward(self, dy: Array) -> Array:
        """Fill the biases' `grads` and return the gradient of the input."""
        q, k, v, probabilities = self._kept()
        dy = check_gradient(dy, q.shape, q.dtype)
        d_mixed = np.ascontiguousarray(self.out_proj.backward(dy))
        parts = [np.empty(q.shape, q.dtype) for _ in range(3)]
        _core.attend_backward(q, k, v, self.heads, probabilities, d_mixed, *parts)
        return self.in_proj.backward(np.concatenate(parts, axis=2))

    def train(self, mode: bool = True) -> QuantizedMultiHeadAttention:
        """Set the layer to training, or to evaluation; return it."""
        self.in_proj.train(mode)
        self.out_proj.train(mode)
        return super().train(mode)

    def state_dict(self) -> dict[str, Array]:
        """Return the arrays of both layers, as ``"in_proj.weight.codes"``."""
        parts = {"in_proj": self.in_proj, "out_proj": self.out_proj}
        return {
            f"{n}.{key}": a for n, part in parts.items() for key, a in part.state_dict().items()
        }

    @property
    def nbytes(self) -> int:
        """Bytes of weights, biases and scales, codes packed."""
        first: int = self.in_proj.nbytes
        second: int = self.out_proj.nbytes
        return first + second

    def config(self) -> dict[str, Any]:
        """Return shape, dtype and options, without the values of arrays."""
        parts = {"in_proj": self.in_proj.config(), "out_proj": self.out_proj.config()}
        return {**parts, "heads": self.heads, "causal": self.causal}

    @classmethod
    def _of_state(
        cls, config: Mapping[str, Any], state: Mapping[str, Array]
    ) -> QuantizedMultiHeadAttention:
        """Return the layer whose `config` and `state_dict` these are."""

        def part(name: str) -> QuantizedLinear:
            own = {k.removeprefix(f"{name}."): a for k, a in state.items() if k.startswith(name)}
            return QuantizedLinear._of_state(config[name], own)

        return cls(part("in_proj"), part("out_proj"), config["heads"], causal=config["causal"])

    def _values(self) -> Iterator[Array]:
        yield from self.in_proj._values()
        yield from self.out_proj._values()

    def __getstate__(self) -> dict[str, Any]:
        # Parameters and gradients are those of the two layers, and are gathered again.
        left_out = ("_saved", "_params", "_grads")
        return {k: v for k, v in self.__dict__.items() if k not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._saved = None
        self._gather()


class QuantizedEmbedding(Layer):
    """A quantized table of vectors, looked up by index; for inference.

    Parameters
    ----------
    weight : QuantizedTensor, shape (num_embeddings, features)
        Used, not copied.

    Raises
    ------
    TypeError, ValueError
        If `weight` is of another type, or has other than two axes.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> table = cr.nn.Embedding(10, 4, rng=0)
    >>> small = cr.nn.QuantizedEmbedding.from_embedding(table, cr.quantize.Scheme(bits=8))
    >>> ids = np.array([[1, 2, 1]])
    >>> small(ids).shape, bool(np.abs(small(ids) - table(ids)).max() < 0.02)
    ((1, 3, 4), True)
    """

    def __init__(self, weight: QuantizedTensor) -> None:
        super().__init__()
        if not isinstance(weight, QuantizedTensor):
            raise TypeError(f"weight must be a QuantizedTensor, got {type(weight).__name__}")
        if weight.ndim != 2:
            raise ValueError(f"weight must have two axes, got shape {weight.shape}")
        self.weight = weight

    @classmethod
    def from_embedding(cls, layer: Embedding, scheme: Scheme) -> QuantizedEmbedding:
        """Round the table of a layer to the nearest codes.

        Raises
        ------
        TypeError, ValueError
            If `layer` is not an `Embedding`; also those of `compressrs.quantize.quantize`.
        """
        if not isinstance(layer, Embedding):
            raise TypeError(f"layer must be an Embedding, got {type(layer).__name__}")
        return cls(quantize(layer.weight, scheme))

    def forward(self, x: Array) -> Array:
        """Return the rows with indices `x`, of shape (..., features).

        Raises
        ------
        TypeError, ValueError
            If `x` does not hold integers, or an index is out of range.
        """
        ids = check_ids(x, len(self.weight))
        y = self.weight.rows(ids)
        self._keep(ids.shape, y.shape, y.dtype)
        return y

    def backward(self, dy: Array) -> Array:
        """Return zeros, since indices have no gradient."""
        shape, output, dtype = self._kept()
        return np.zeros(shape, check_gradient(dy, output, dtype).dtype)

    def state_dict(self) -> dict[str, Array]:
        """Return the table's arrays, as ``"weight.codes"``."""
        return self.weight._state("weight.")

    @property
    def nbytes(self) -> int:
        """Bytes of the table, codes packed."""
        return int(self.weight.nbytes)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the output, without the batch axis."""
        return *dimensions(shape, "shape"), self.weight.shape[1]

    def config(self) -> dict[str, Any]:
        """Return shape, dtype and options, without the values of arrays."""
        scheme = dataclasses.asdict(self.weight.scheme)
        shape, dtype = list(self.weight.shape), self.weight.dtype.name
        return {"shape": shape, "dtype": dtype, "scheme": scheme}

    @classmethod
    def _of_state(cls, config: Mapping[str, Any], state: Mapping[str, Array]) -> QuantizedEmbedding:
        """Return the layer whose `config` and `state_dict` these are."""
        return cls(tensor_of_state(config, state))

    def _values(self) -> Iterator[Array]:
        yield self.weight.dequantize()

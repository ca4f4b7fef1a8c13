"""Quantized linear layers, for inference and for quantization-aware training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs._arrays import Array, as_array
from compressrs._checks import choice, dimensions
from compressrs.nn.layer import Layer, Parameter, check_gradient, check_input
from compressrs.nn.linear import Linear
from compressrs.quantize.matrix import QuantizedMatrix
from compressrs.quantize.rounding import quantize
from compressrs.quantize.scheme import Scheme
from compressrs.quantize.tensor import QuantizedTensor
from compressrs.quantize.training import fake_quantize, fake_quantize_backward, lsq_scale

_INPUTS = ("float32", "int8")


class _Affine(Layer):
    """Shapes, which both layers share."""

    weight: Any
    bias = Parameter("The vector of shape (out_features,), or None.")

    @property
    def takes(self) -> tuple[str, int]:
        """The kind and number of features on the last axis of the input."""
        return "features", int(self.weight.shape[1])

    @property
    def gives(self) -> tuple[str, int]:
        """The kind and number of features on the last axis of the output."""
        return "features", int(self.weight.shape[0])

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the output, without the batch axis."""
        shape = dimensions(shape, "shape")
        if not shape or shape[-1] != self.weight.shape[1]:
            raise ValueError(f"the input shape must be (..., {self.weight.shape[1]}), got {shape}")
        return (*shape[:-1], int(self.weight.shape[0]))

    def multiply_adds(self, shape: tuple[int, ...]) -> int:
        """Return the multiplications for one input of this shape."""
        return math.prod(self.output_shape(shape)[:-1]) * int(self.weight.size)

    def _rows(self, x: Array) -> npt.NDArray[Any]:
        """Return the input as rows."""
        x = check_input(x, "x", self.weight.dtype)
        features = self.weight.shape[1]
        if x.ndim < 2 or x.shape[-1] != features:
            raise ValueError(f"x must have shape (batch, {features}), got {x.shape}")
        rows: npt.NDArray[Any] = x.reshape(-1, features)
        return rows


class QuantizedLinear(_Affine):
    r"""A linear layer with a quantized weight, :math:`y = x \tilde W^\top + b`.

    For inference; `backward` returns the gradient of the input and fills that of the bias.
    Products use `compressrs.quantize.QuantizedMatrix`, packed at the first `forward`. If it does
    not support the weight, `float_reason` says why, and a dequantized copy is multiplied.

    Parameters
    ----------
    weight : QuantizedTensor, shape (out_features, in_features)
        Used, not copied.
    bias : array, shape (out_features,), optional
        In the weight's dtype; used, not copied.
    input : {"float32", "int8"}, default "float32"
        "int8" quantizes each row of the input first, with the scale :math:`\max |x| / 127`;
        rows that are not finite become NaN.
    input_scale : array, shape (in_features,), optional
        The input is divided by it; see `compressrs.quantize.awq`.

    Attributes
    ----------
    float_reason : str or None
        Why products are computed in floating point, or None if they use the codes.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, shape or value.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> layer = cr.nn.Linear(64, 32, rng=0)
    >>> small = cr.nn.QuantizedLinear.from_linear(layer, cr.quantize.Scheme(bits=8))
    >>> x = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    >>> bool(np.abs(small(x) - layer(x)).max() < 0.01)
    True
    """

    def __init__(
        self,
        weight: QuantizedTensor,
        bias: Array | None = None,
        *,
        input: str = "float32",
        input_scale: Array | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(weight, QuantizedTensor):
            raise TypeError(f"weight must be a QuantizedTensor, got {type(weight).__name__}")
        if weight.ndim != 2:
            raise ValueError(f"weight must have two axes, got shape {weight.shape}")
        self.weight = weight
        self.input = choice(input, "input", _INPUTS)
        self._add(bias=_vector(bias, "bias", weight.shape[0], weight.dtype))
        scale = _vector(input_scale, "input_scale", weight.shape[1], weight.dtype)
        if scale is not None:
            if not (scale > 0).all():
                raise ValueError("input_scale must be greater than 0")
            self.buffers["input_scale"] = scale
        self.float_reason = _float_reason(weight, self.input)
        self._packed: QuantizedMatrix | None = None
        self._dense: npt.NDArray[Any] | None = None

    @classmethod
    def from_linear(
        cls, layer: Linear, scheme: Scheme, *, input: str = "float32"
    ) -> QuantizedLinear:
        """Return a layer with the weight rounded to the nearest codes; the bias is copied.

        Raises
        ------
        TypeError, ValueError
            If `layer` is not a `Linear`; also those of `compressrs.quantize.quantize`.
        """
        if not isinstance(layer, Linear):
            raise TypeError(f"layer must be a Linear, got {type(layer).__name__}")
        bias = None if layer.bias is None else layer.bias.copy()
        return cls(quantize(layer.weight, scheme), bias, input=input)

    @property
    def input_scale(self) -> npt.NDArray[Any] | None:
        """The scale by which the input is divided, or None."""
        return self.buffers.get("input_scale")

    @property
    def nbytes(self) -> int:
        """Bytes of weight, bias and scales, codes packed."""
        arrays = (self.bias, self.input_scale)
        return int(self.weight.nbytes) + sum(a.nbytes for a in arrays if a is not None)

    def config(self) -> dict[str, Any]:
        """Return shape, dtype and options, without the values of arrays."""
        return {
            "shape": list(self.weight.shape),
            "dtype": self.weight.dtype.name,
            "scheme": dataclasses.asdict(self.weight.scheme),
            "bias": self.bias is not None,
            "input": self.input,
        }

    @classmethod
    def _of_state(cls, config: Mapping[str, Any], state: Mapping[str, Array]) -> QuantizedLinear:
        """Return the layer whose `config` and `state_dict` these are."""
        weight = tensor_of_state(config, state)
        bias = state["bias"].copy() if config["bias"] else None
        scale = state.get("input_scale")
        return cls(
            weight,
            bias,
            input=config["input"],
            input_scale=None if scale is None else scale.copy(),
        )

    def state_dict(self) -> dict[str, Array]:
        """Return bias, scale of inputs, and the weight's arrays, as ``"weight.codes"``.

        The arrays are the layer's own, not copies. Since the caller may write to them, the
        weight is packed again at the next `forward`.
        """
        self._packed = self._dense = None
        return {**super().state_dict(), **self.weight._state("weight.")}

    def forward(self, x: Array) -> Array:
        """Return the output for `x` of shape (..., in_features)."""
        rows = self._rows(x)
        if self.input_scale is not None:
            rows = rows / self.input_scale
        shape = (*x.shape[:-1], len(self.weight))
        self._keep(shape)
        return self._affine(rows).reshape(shape)

    def _affine(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self.float_reason is None:
            if self._packed is None:
                self._packed = QuantizedMatrix(self.weight)
            return self._packed.linear(rows, self.bias, input=self.input)
        if self.input == "int8":
            rows = round_rows(rows)
        y: npt.NDArray[Any] = rows @ self._weights().T
        if self.bias is not None:
            y += self.bias
        return y

    def backward(self, dy: Array) -> Array:
        """Return the gradient of the input (straight-through for its rounding)."""
        (shape,) = self._kept()
        dy = check_gradient(dy, shape, self.weight.dtype)
        if self.bias is not None:
            np.sum(dy.reshape(-1, shape[-1]), axis=0, out=self.grads["bias"])
        return self._input_gradient(dy)

    def _input_gradient(self, dy: Array) -> Array:
        """Return the gradient of the input for that of the output."""
        dx: npt.NDArray[Any] = dy.reshape(-1, dy.shape[-1]) @ self._weights()
        if self.input_scale is not None:
            dx /= self.input_scale
        return dx.reshape(*dy.shape[:-1], self.weight.shape[1])

    def _values(self) -> Iterator[Array]:
        yield self.weight.dequantize()
        yield from super()._values()

    def _weights(self) -> npt.NDArray[Any]:
        if self._dense is None:
            self._dense = self.weight.dequantize()
        return self._dense

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_packed": None, "_dense": None}


class FakeQuantizedLinear(_Affine):
    r"""A linear layer for quantization-aware training, with learned scales (LSQ).

    Forward :math:`y = x\,Q(W, s)^\top + b`; the gradient passes straight through the rounding,
    is 0 for weights beyond the range, and that of the scales is given by
    `compressrs.quantize.fake_quantize_backward`.

    Parameters
    ----------
    layer : Linear
        Its weight and bias are trained in place, not copied.
    scheme : Scheme
        With dtype "int" or "uint".
    input : {"float32", "int8"}, default "float32"
        See `QuantizedLinear`; the gradient passes straight through the rounding.

    Attributes
    ----------
    params, grads : dict of array
        Keys "weight", "bias" and "scale".

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, shape or value.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> layer = cr.nn.Linear(8, 4, rng=0)
    >>> training = cr.nn.FakeQuantizedLinear(layer, cr.quantize.Scheme(bits=2))
    >>> x = np.ones((5, 8), np.float32)
    >>> bool(np.allclose(training(x), training.quantized()(x), atol=1e-6))
    True
    """

    weight = Parameter("The matrix that is trained, before rounding.")
    scale = Parameter("The scales, of shape `scheme.scale_shape(weight.shape)`.")

    def __init__(self, layer: Linear, scheme: Scheme, *, input: str = "float32") -> None:
        super().__init__()
        if not isinstance(layer, Linear):
            raise TypeError(f"layer must be a Linear, got {type(layer).__name__}")
        if not isinstance(scheme, Scheme):
            raise TypeError(f"scheme must be a Scheme, got {type(scheme).__name__}")
        if scheme.dtype not in ("int", "uint"):
            raise ValueError(f"scheme must have dtype 'int' or 'uint', got {scheme.dtype!r}")
        self.scheme, self.input = scheme, choice(input, "input", _INPUTS)
        found = quantize(layer.weight, scheme)
        scale = found.scale
        if scheme.dtype == "int" and scheme.symmetric:
            # LSQ's initial scale suits few bits; with more it clips less than the range does.
            scale = np.minimum(scale, lsq_scale(layer.weight, scheme))
        self._add(weight=layer.weight, bias=layer.bias, scale=scale)
        if found.zero_point is not None:
            self.buffers["zero_point"] = found.zero_point

    @property
    def zero_point(self) -> npt.NDArray[Any] | None:
        """The zero points, which are not trained, or None."""
        return self.buffers.get("zero_point")

    def config(self) -> dict[str, Any]:
        """Return shape, dtype and options, without the values of arrays."""
        return {
            "shape": list(self.weight.shape),
            "dtype": self.weight.dtype.name,
            "scheme": dataclasses.asdict(self.scheme),
            "bias": self.bias is not None,
            "input": self.input,
        }

    @classmethod
    def _of_state(
        cls, config: Mapping[str, Any], state: Mapping[str, Array]
    ) -> FakeQuantizedLinear:
        """Return the layer whose `config` and `state_dict` these are."""
        rows, columns = config["shape"]
        options: Any = {"bias": config["bias"], "dtype": config["dtype"], "rng": 0}
        scheme = scheme_of(config)
        layer = cls(Linear(columns, rows, **options), scheme, input=config["input"])
        layer.load_state_dict(state)
        return layer

    def forward(self, x: Array) -> Array:
        """Return the output for `x` of shape (..., in_features)."""
        rows = self._rows(x)
        self._keep_positive()
        rounded = fake_quantize(self.weight, self.scheme, self.scale, self.zero_point)
        if self.input == "int8":
            rows = round_rows(rows)
        shape = (*x.shape[:-1], len(rounded))
        self._keep(rows, rounded, shape)
        y: npt.NDArray[Any] = rows @ rounded.T
        if self.bias is not None:
            y += self.bias
        return y.reshape(shape)

    def backward(self, dy: Array) -> Array:
        """Fill `grads` and return the gradient of the input."""
        x, rounded, shape = self._kept()
        rows = check_gradient(dy, shape, self.weight.dtype).reshape(-1, shape[-1])
        _, dscale = fake_quantize_backward(
            self.weight,
            np.ascontiguousarray(rows.T @ x),
            self.scheme,
            self.scale,
            self.zero_point,
            out=self.grads["weight"],
        )
        self.grads["scale"][...] = dscale
        if self.bias is not None:
            np.sum(rows, axis=0, out=self.grads["bias"])
        dx: npt.NDArray[Any] = rows @ rounded
        return dx.reshape(*shape[:-1], x.shape[1])

    def _keep_positive(self) -> None:
        """Raise scales that a step of the optimizer made 0 or negative."""
        scale = self.params["scale"]
        np.maximum(scale, np.finfo(scale.dtype).smallest_normal, out=scale)

    def quantized(self) -> QuantizedLinear:
        """Return the quantized layer, with its own arrays."""
        self._keep_positive()
        q = quantize(self.weight, self.scheme, scale=self.scale.copy(), zero_point=self.zero_point)
        bias = None if self.bias is None else self.bias.copy()
        return QuantizedLinear(q, bias, input=self.input)


def scheme_of(config: Mapping[str, Any]) -> Scheme:
    """Return the scheme that a layer's `config` describes."""
    scheme = dict(config["scheme"])
    if isinstance(scheme["group_size"], list):
        scheme["group_size"] = tuple(scheme["group_size"])
    return Scheme(**scheme)


def tensor_of_state(config: Mapping[str, Any], state: Mapping[str, Array]) -> QuantizedTensor:
    """Return the weight of a layer whose `config` and `state_dict` these are."""
    arrays = {
        name.removeprefix("weight."): array.copy()
        for name, array in state.items()
        if name.startswith("weight.")
    }
    return QuantizedTensor(**arrays, scheme=scheme_of(config), dtype=config["dtype"])


def _float_reason(weight: QuantizedTensor, input: str) -> str | None:
    """Return why `QuantizedMatrix` does not support a weight, or None."""
    scheme = weight.scheme
    if weight.dtype != np.float32:
        return f"products with codes are in float32, the weight is {weight.dtype}"
    if scheme.dtype.startswith("fp8"):
        return f"there are no products with {scheme.dtype}"
    if scheme.dtype == "codebook" and (scheme.granularity != "tensor" or scheme.bits > 4):
        return "a codebook must be of the whole tensor, in at most 4 bits"
    if scheme.dtype in ("nf4", "codebook") and input == "int8":
        return f"inputs in int8 need integer codes, not {scheme.dtype}"
    return None


def round_rows(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Round each row to multiples of ``max|x| / 127``.

    Rows that are not finite become NaN.
    """
    if not x.size:
        return x
    scale = np.abs(x).max(axis=1, keepdims=True) / x.dtype.type(127)
    finite = np.isfinite(scale)
    scale = np.where(finite, np.maximum(scale, np.finfo(x.dtype).smallest_normal), 1)
    y = fake_quantize(x, Scheme(bits=8), scale.astype(x.dtype))
    y[~finite[:, 0]] = np.nan
    return y


def _vector(
    x: Array | None, name: str, length: int, dtype: np.dtype[Any]
) -> npt.NDArray[Any] | None:
    if x is None:
        return None
    array = as_array(x, name)
    if array.dtype != dtype:
        raise TypeError(f"{name} must have dtype {dtype} like the weight, got {array.dtype}")
    if array.shape != (length,):
        raise ValueError(f"{name} must have shape ({length},), got {array.shape}")
    return array

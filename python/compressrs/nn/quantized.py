"""Quantized linear layers, for inference and for quantization-aware training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs._arrays import Array, as_matrix
from compressrs._checks import dimensions
from compressrs.nn._quantized import (
    FakeQuantized,
    Quantized,
    options_of_state,
    product_reason,
    require_layer,
    round_rows,
    scheme_of,
    tensor_of_state,
    vector,
)
from compressrs.nn.layer import Layer, check_gradient, check_input
from compressrs.nn.linear import Linear
from compressrs.quantize.matrix import QuantizedMatrix
from compressrs.quantize.rounding import quantize
from compressrs.quantize.scheme import Scheme
from compressrs.quantize.tensor import QuantizedTensor
from compressrs.quantize.training import fake_quantize_backward


class _Affine(Layer):
    """Shapes, which the linear layers share."""

    weight: Any

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
        return as_matrix(x, -1)


class QuantizedLinear(Quantized, _Affine):
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
        "int8" quantizes each row of the input first, with the scale :math:`\max |x| / 127`
        or `activation_scale`; rows that are not finite become NaN.
    input_scale : array, shape (in_features,), optional
        The input is divided by it; see `compressrs.quantize.awq`.
    activation_scale : float, optional
        With ``input="int8"``, a fixed scale :math:`s` of the input (after `input_scale`), from
        an observer for example. Its codes are
        :math:`\mathrm{clip}(\mathrm{round}(x / s) + z, -128, 127)`.
    activation_zero_point : int, optional
        :math:`z`, from -128 to 127; default 0.

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
        activation_scale: Array | float | None = None,
        activation_zero_point: Array | int | None = None,
    ) -> None:
        super().__init__()
        fixed = activation_scale, activation_zero_point
        self._set(weight, 2, bias, input, *fixed)
        scale = vector(input_scale, "input_scale", weight.shape[1], weight.dtype)
        if scale is not None:
            if not (scale > 0).all():
                raise ValueError("input_scale must be greater than 0")
            self.buffers["input_scale"] = scale
        self.float_reason = product_reason(weight, self.input)

    @classmethod
    def from_linear(
        cls,
        layer: Linear,
        scheme: Scheme,
        *,
        input: str = "float32",
        activation_scale: Array | float | None = None,
        activation_zero_point: Array | int | None = None,
    ) -> QuantizedLinear:
        """Return a layer with the weight rounded to the nearest codes; the bias is copied.

        Raises
        ------
        TypeError, ValueError
            If `layer` is not a `Linear`; also those of `compressrs.quantize.quantize`.
        """
        require_layer(layer, Linear)
        bias = None if layer.bias is None else layer.bias.copy()
        return cls(
            quantize(layer.weight, scheme),
            bias,
            input=input,
            activation_scale=activation_scale,
            activation_zero_point=activation_zero_point,
        )

    @property
    def input_scale(self) -> npt.NDArray[Any] | None:
        """The scale by which the input is divided, or None."""
        return self.buffers.get("input_scale")

    @classmethod
    def _of_state(cls, config: Mapping[str, Any], state: Mapping[str, Array]) -> QuantizedLinear:
        """Return the layer whose `config` and `state_dict` these are."""
        scale = state.get("input_scale")
        return cls(
            tensor_of_state(config, state),
            **options_of_state(config, state),
            input_scale=None if scale is None else scale.copy(),
        )

    def forward(self, x: Array) -> Array:
        """Return the output for `x` of shape (..., in_features)."""
        rows = self._rows(x)
        if self.input_scale is not None:
            rows = rows / self.input_scale
        shape = (*x.shape[:-1], len(self.weight))
        self._keep(shape)
        return self._affine(rows).reshape(shape)

    def _affine(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        fixed = self._fixed()
        if self.float_reason is None:
            if self._packed is None:
                self._packed = QuantizedMatrix(self.weight)
            found: npt.NDArray[Any]
            if fixed is None:
                found = self._packed.linear(rows, self.bias, input=self.input)
            else:
                found = self._packed.linear(
                    rows, self.bias, input="int8", input_scale=fixed[0], input_zero_point=fixed[1]
                )
            return found
        if self.input == "int8":
            rows = round_rows(rows, fixed)
        y: npt.NDArray[Any] = rows @ self._weights().T
        if self.bias is not None:
            y += self.bias
        return y

    def backward(self, dy: Array) -> Array:
        """Return the gradient of the input (straight-through for its rounding)."""
        (shape,) = self._kept()
        dy = check_gradient(dy, shape, self.weight.dtype)
        if self.bias is not None:
            np.sum(as_matrix(dy, -1), axis=0, out=self.grads["bias"])
        return self._input_gradient(dy)

    def _input_gradient(self, dy: Array) -> Array:
        """Return the gradient of the input for that of the output."""
        dx: npt.NDArray[Any] = as_matrix(dy, -1) @ self._weights()
        if self.input_scale is not None:
            dx /= self.input_scale
        return dx.reshape(*dy.shape[:-1], self.weight.shape[1])


class FakeQuantizedLinear(FakeQuantized, _Affine):
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

    def __init__(self, layer: Linear, scheme: Scheme, *, input: str = "float32") -> None:
        super().__init__()
        self._set(layer, Linear, scheme, input)

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
        rounded = self._rounded()
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
        rows = as_matrix(check_gradient(dy, shape, self.weight.dtype), -1)
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

    def quantized(self) -> QuantizedLinear:
        """Return the quantized layer, with its own arrays."""
        bias = None if self.bias is None else self.bias.copy()
        return QuantizedLinear(self._codes(), bias, input=self.input)

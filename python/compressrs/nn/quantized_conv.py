"""Quantized convolutions, for inference and for quantization-aware training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, allocating
from compressrs._checks import dimensions, whole
from compressrs.nn._quantized import (
    FakeQuantized,
    Quantized,
    options_of_state,
    product_reason,
    require_layer,
    round_rows,
    scheme_of,
    tensor_of_state,
)
from compressrs.nn.conv import Conv2d, Pair, of_shape, pair
from compressrs.nn.layer import Layer, check_gradient, check_input
from compressrs.quantize.matrix import QuantizedMatrix
from compressrs.quantize.rounding import quantize
from compressrs.quantize.scheme import Scheme
from compressrs.quantize.tensor import QuantizedTensor
from compressrs.quantize.training import fake_quantize_backward

#: Multiply-adds for each byte of input, patch and result from which products of codes are faster
#: than those of float: the bytes cost as much as a narrow product.
_LEAST_INTENSITY = 25.0


class _Conv(Layer):
    """Shapes, which both layers share."""

    weight: Any
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def _place(self, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> None:
        self.stride = pair(stride, "stride", 1)
        self.padding = pair(padding, "padding", 0)
        self.dilation = pair(dilation, "dilation", 1)
        self.groups = whole(groups, "groups", 1)
        if self.weight.shape[0] % self.groups:
            raise ValueError(f"groups must divide the {self.weight.shape[0]} filters, got {groups}")

    @property
    def _geometry(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
        return self.stride, self.padding, self.dilation, self.groups

    @property
    def takes(self) -> tuple[str, int]:
        """The kind and number of channels on the second axis of the input."""
        return "channels", int(self.weight.shape[1] * self.groups)

    @property
    def gives(self) -> tuple[str, int]:
        """The kind and number of channels on the second axis of the output."""
        return "channels", int(self.weight.shape[0])

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the output, without the batch axis."""
        shape = dimensions(shape, "shape")
        with of_shape(shape):
            return tuple(_core.conv2d_shape((1, *shape), self.weight.shape, *self._geometry)[1:])

    def multiply_adds(self, shape: tuple[int, ...]) -> int:
        """Return the multiplications for one input of this shape."""
        return math.prod(self.output_shape(shape)[1:]) * int(self.weight.size)

    def _sizes(self) -> dict[str, Any]:
        """Return the part of `config` that describes the geometry."""
        return {
            "stride": list(self.stride),
            "padding": list(self.padding),
            "dilation": list(self.dilation),
            "groups": self.groups,
        }

    def _checked(self, x: Array) -> tuple[npt.NDArray[Any], list[int]]:
        """Return the input, and the shape of the output."""
        x = check_input(x, "x", self.weight.dtype)
        return x, _core.conv2d_shape(x.shape, self.weight.shape, *self._geometry)


def _geometry_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that `_Conv._sizes` describes."""
    pairs = {name: tuple(config[name]) for name in ("stride", "padding", "dilation")}
    return {**pairs, "groups": config["groups"]}


class QuantizedConv2d(Quantized, _Conv):
    r"""A two-dimensional convolution with quantized filters; see `Conv2d`.

    For inference; `backward` returns the gradient of the input and fills that of the bias. With
    ``input="int8"`` images become codes too, and products are sums of integers, which are exact
    and faster than float32 unless there are few channels or filters; `float_reason` says so then.
    Patches are gathered for a few places at a time; there is no im2col buffer.

    Parameters
    ----------
    weight : QuantizedTensor, shape (out_channels, in_channels / groups, height, width)
        Used, not copied. A filter is a row of its scheme.
    bias : array, shape (out_channels,), optional
        In the weight's dtype; used, not copied.
    stride, padding, dilation : int or pair of int, default 1, 0 and 1
    groups : int, default 1
        See `Conv2d`.
    input : {"float32", "int8"}, default "float32"
        "int8" quantizes each image first, with the scale :math:`\max |x| / 127` or
        `activation_scale`; images that are not finite become NaN.
    activation_scale : float, optional
        With ``input="int8"``, a fixed scale :math:`s` of the input, from an observer for
        example. Its codes are :math:`\mathrm{clip}(\mathrm{round}(x / s) + z, -128, 127)`.
    activation_zero_point : int, optional
        :math:`z`, from -128 to 127; default 0.

    Attributes
    ----------
    float_reason : str or None
        Why products are computed in floating point, or None if they use the codes. Then a
        dequantized copy of the filters is kept after the first `forward`, and the speed is that
        of `Conv2d`; with ``input="int8"`` the time to round the images is added.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, shape or value.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> layer = cr.nn.Conv2d(32, 64, 3, padding=1, rng=0)
    >>> small = cr.nn.QuantizedConv2d.from_conv(layer, cr.quantize.Scheme(bits=8), input="int8")
    >>> x = np.random.default_rng(0).standard_normal((2, 32, 8, 8)).astype(np.float32)
    >>> bool(np.abs(small(x) - layer(x)).max() < 0.05), small.float_reason
    (True, None)
    """

    def __init__(
        self,
        weight: QuantizedTensor,
        bias: Array | None = None,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        input: str = "float32",
        activation_scale: Array | float | None = None,
        activation_zero_point: Array | int | None = None,
    ) -> None:
        super().__init__()
        self._set(weight, 4, bias, input, activation_scale, activation_zero_point)
        if 0 in weight.shape:
            raise ValueError(f"weight must not be empty, got shape {weight.shape}")
        self._place(stride, padding, dilation, groups)
        self.float_reason = self._reason()

    @classmethod
    def from_conv(
        cls,
        layer: Conv2d,
        scheme: Scheme,
        *,
        input: str = "float32",
        activation_scale: Array | float | None = None,
        activation_zero_point: Array | int | None = None,
    ) -> QuantizedConv2d:
        """Return a layer with the filters rounded to the nearest codes; the bias is copied.

        Raises
        ------
        TypeError, ValueError
            If `layer` is not a `Conv2d`; also those of `compressrs.quantize.quantize`.
        """
        require_layer(layer, Conv2d)
        return cls(
            quantize(layer.weight, scheme),
            None if layer.bias is None else layer.bias.copy(),
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            input=input,
            activation_scale=activation_scale,
            activation_zero_point=activation_zero_point,
        )

    def _reason(self) -> str | None:
        """Return why products are computed in floating point, or None."""
        if self.input == "float32":
            return "with inputs in float32, products are those of Conv2d"
        weight = self.weight
        if (reason := product_reason(weight, self.input)) is not None:
            return reason
        if weight.group_index is not None:
            return "columns are sorted into groups"
        filters, columns = len(weight) // self.groups, math.prod(weight.shape[1:])
        read = 4 * weight.shape[1] * math.prod(self.stride)
        intensity = filters * columns / (read + columns + 4 * filters)
        if intensity < _LEAST_INTENSITY:
            return (
                f"{filters} filters of {columns} weights are faster in float: "
                f"{intensity:.0f} multiply-adds for each byte, below {_LEAST_INTENSITY:.0f}"
            )
        return None

    def config(self) -> dict[str, Any]:
        """Return shape, dtype and options, without the values of arrays."""
        return {**super().config(), **self._sizes()}

    @classmethod
    def _of_state(cls, config: Mapping[str, Any], state: Mapping[str, Array]) -> QuantizedConv2d:
        """Return the layer whose `config` and `state_dict` these are."""
        options = {**options_of_state(config, state), **_geometry_of(config)}
        return cls(tensor_of_state(config, state), **options)

    def forward(self, x: Array) -> Array:
        """Return the output, (batch, out_channels, height, width)."""
        x, shape = self._checked(x)
        fixed = self._fixed()
        with allocating(f"an output of shape {tuple(shape)}"):
            y = np.empty(shape, x.dtype)
        if self.float_reason is None:
            packed, channels_last = self._matrices()
            bias = self.bias
            if fixed is not None and fixed[1]:
                # The code of 0 is part of every sum.
                rows = np.concatenate([m._sums_of_rows() for m in packed])
                bias = (0 if bias is None else bias) - fixed[0] * fixed[1] * rows
                bias = bias.astype(np.float32)
            _core.conv2d_in_codes(
                x,
                [m._core for m in packed],
                bias,
                (self.weight.shape[2], self.weight.shape[3]),
                channels_last,
                *self._geometry[:3],
                fixed,
                y,
            )
        else:
            given = x
            if self.input == "int8":
                x = round_rows(x.reshape(len(x), math.prod(x.shape[1:])), fixed).reshape(x.shape)
            _core.conv2d(x, self._weights(), self.bias, *self._geometry, y)
            x = given
        self._keep(x.shape, y.shape)
        return y

    def _matrices(self) -> tuple[list[QuantizedMatrix], bool]:
        """Return the packed filters of each group, and whether their channels are last."""
        if self._packed is None:
            q, (height, width) = self.weight, self.weight.shape[2:]
            columns = math.prod(q.shape[1:])
            block = q.scheme.block(q.shape)
            # Other groups of columns do not stay together.
            last = block[1] >= columns or height * width == 1
            codes = q.codes.transpose(0, 2, 3, 1) if last else q.codes
            codes = np.ascontiguousarray(codes).reshape(len(q), columns)
            zero = q.zero_point
            if zero is None:
                zero = np.zeros(q.scale.shape, q.codes.dtype)
            scale, zero = (a.repeat(block[0], axis=0)[: len(q)] for a in (q.scale, zero))
            own, size = len(q) // self.groups, min(block[1], columns)
            matrices = [
                QuantizedMatrix.from_codes(
                    codes[i : i + own],
                    scale[i : i + own],
                    zero[i : i + own],
                    bits=q.scheme.bits,
                    group_size=size,
                )
                for i in range(0, len(q), own)
            ]
            self._packed = matrices, last
        found: tuple[list[QuantizedMatrix], bool] = self._packed
        return found

    def backward(self, dy: Array) -> Array:
        """Return the gradient of the input (straight-through for its rounding)."""
        shape, output = self._kept()
        dy = check_gradient(dy, output, self.weight.dtype)
        if self.bias is not None:
            np.sum(dy, axis=(0, 2, 3), out=self.grads["bias"])
        dx = np.empty(shape, dy.dtype)
        _core.conv2d_backward(dx, self._weights(), dy, *self._geometry, dx, None, None)
        return dx


class FakeQuantizedConv2d(FakeQuantized, _Conv):
    r"""A convolution for quantization-aware training, with learned scales (LSQ).

    See `FakeQuantizedLinear`; a filter is a row of its scheme.

    Parameters
    ----------
    layer : Conv2d
        Its weight and bias are trained in place, not copied.
    scheme : Scheme
        With dtype "int" or "uint".
    input : {"float32", "int8"}, default "float32"
        See `QuantizedConv2d`; the gradient passes straight through the rounding.

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
    >>> layer = cr.nn.Conv2d(2, 4, 3, rng=0)
    >>> training = cr.nn.FakeQuantizedConv2d(layer, cr.quantize.Scheme(bits=2))
    >>> x = np.ones((1, 2, 5, 5), np.float32)
    >>> bool(np.allclose(training(x), training.quantized()(x), atol=1e-6))
    True
    """

    def __init__(self, layer: Conv2d, scheme: Scheme, *, input: str = "float32") -> None:
        super().__init__()
        self._set(layer, Conv2d, scheme, input)
        self._place(*layer._geometry)

    def config(self) -> dict[str, Any]:
        """Return shape, dtype and options, without the values of arrays."""
        return {**super().config(), **self._sizes()}

    @classmethod
    def _of_state(
        cls, config: Mapping[str, Any], state: Mapping[str, Array]
    ) -> FakeQuantizedConv2d:
        """Return the layer whose `config` and `state_dict` these are."""
        dtype = np.dtype(config["dtype"])
        weight = np.zeros(config["shape"], dtype)
        bias = np.zeros(config["shape"][0], dtype) if config["bias"] else None
        conv = Conv2d.from_arrays(weight, bias, **_geometry_of(config))
        layer = cls(conv, scheme_of(config), input=config["input"])
        layer.load_state_dict(state)
        return layer

    def forward(self, x: Array) -> Array:
        """Return the output, (batch, out_channels, height, width)."""
        x, shape = self._checked(x)
        rounded = self._rounded()
        if self.input == "int8":
            x = round_rows(x.reshape(len(x), math.prod(x.shape[1:]))).reshape(x.shape)
        with allocating(f"an output of shape {tuple(shape)}"):
            y = np.empty(shape, x.dtype)
        _core.conv2d(x, rounded, self.bias, *self._geometry, y)
        self._keep(x, rounded, y.shape)
        return y

    def backward(self, dy: Array) -> Array:
        """Fill `grads` and return the gradient of the input."""
        x, rounded, shape = self._kept()
        dy = check_gradient(dy, shape, self.weight.dtype)
        dx, dw = np.empty(x.shape, x.dtype), np.empty_like(rounded)
        db = self.grads.get("bias")
        _core.conv2d_backward(x, rounded, dy, *self._geometry, dx, dw, db)
        _, dscale = fake_quantize_backward(
            self.weight, dw, self.scheme, self.scale, self.zero_point, out=self.grads["weight"]
        )
        self.grads["scale"][...] = dscale
        return dx

    def quantized(self) -> QuantizedConv2d:
        """Return the quantized layer, with its own arrays."""
        bias = None if self.bias is None else self.bias.copy()
        stride, padding, dilation, groups = self._geometry
        return QuantizedConv2d(
            self._codes(),
            bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            input=self.input,
        )

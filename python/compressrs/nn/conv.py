"""Convolution and pooling of images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, allocating
from compressrs._checks import dimensions, flag, floating, generator, whole
from compressrs.nn.layer import (
    Layer,
    Parameter,
    RandomState,
    check_gradient,
    check_input,
    check_parameter,
    uniform,
)

#: A number for both directions, or a pair (height, width).
Pair: TypeAlias = int | tuple[int, int]


@contextmanager
def of_shape(shape: tuple[int, ...]) -> Iterator[None]:
    """Name `shape` in the core's errors about the input that it is of."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"shape {shape} is of no input of the layer: {error}") from None


class Conv2d(Layer):
    r"""A two-dimensional convolution (a cross-correlation, as in PyTorch).

    .. math:: y_{o,i,j} = b_o + \sum_{c,k,l} w_{o,c,k,l} \,
        x_{c, i s + k d - p, j s + l d - p}

    Apart from inputs and outputs, only a band of the padded image is held in memory for each
    thread; there is no im2col buffer.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or pair of int
    stride, padding, dilation : int or pair of int, default 1, 0 and 1
        :math:`s`, :math:`p` and :math:`d`; the image is padded with zeros.
    groups : int, default 1
        Number of groups into which input and output channels are divided; each group of outputs
        depends on one group of inputs.
    bias : bool, default True
    dtype : dtype, default float32
        float32 or float64.
    rng : int, Generator or None
        Seed or source of the initial values, uniform in :math:`\pm 1 / \sqrt{n}` with
        :math:`n` inputs to each output, as in PyTorch.

    Attributes
    ----------
    weight : array, shape (out_channels, in_channels / groups, height, width)
    bias : array, shape (out_channels,), or None
        Assigning to either copies into the array that is trained.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> layer = cr.nn.Conv2d(3, 8, 3, padding=1, rng=0)
    >>> layer(np.ones((2, 3, 16, 16), np.float32)).shape
    (2, 8, 16, 16)
    """

    weight = Parameter("The filters, of shape (out_channels, in_channels / groups, height, width).")
    bias = Parameter("The vector of shape (out_channels,), or None.")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        dtype: npt.DTypeLike = np.float32,
        rng: RandomState = None,
    ) -> None:
        super().__init__()
        in_channels = whole(in_channels, "in_channels", 1)
        out_channels = whole(out_channels, "out_channels", 1)
        kernel = pair(kernel_size, "kernel_size", 1)
        self._set(stride, padding, dilation, groups)
        if in_channels % self.groups or out_channels % self.groups:
            raise ValueError(
                f"groups must divide in_channels and out_channels, got {groups} for "
                f"{in_channels} and {out_channels}"
            )
        dtype = floating(dtype, "dtype")
        draw = generator(rng)
        shape = (out_channels, in_channels // self.groups, *kernel)
        bound = float(math.prod(shape[1:])) ** -0.5
        weight = uniform(draw, bound, shape, dtype)
        has_bias = flag(bias, "bias")
        self._add(
            weight=weight, bias=uniform(draw, bound, (out_channels,), dtype) if has_bias else None
        )

    @classmethod
    def from_arrays(
        cls,
        weight: Array,
        bias: Array | None = None,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
    ) -> Conv2d:
        """Return a layer that trains the given arrays in place, without copying them.

        Raises
        ------
        TypeError, ValueError
            If their shapes or dtypes do not fit, or they are not C-contiguous and writable.
        """
        weight = check_parameter(weight, "weight")
        if weight.ndim != 4 or 0 in weight.shape:
            raise ValueError(
                "weight must have shape (out_channels, in_channels / groups, height, width), "
                f"got {weight.shape}"
            )
        if bias is not None:
            bias = check_parameter(bias, "bias", weight.shape[:1], weight.dtype)
        layer = cls.__new__(cls)
        Layer.__init__(layer)
        layer._set(stride, padding, dilation, groups)
        if len(weight) % layer.groups:
            raise ValueError(f"groups must divide the {len(weight)} filters, got {groups}")
        layer._add(weight=weight, bias=bias)
        return layer

    def _set(self, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> None:
        self.stride = pair(stride, "stride", 1)
        self.padding = pair(padding, "padding", 0)
        self.dilation = pair(dilation, "dilation", 1)
        self.groups = whole(groups, "groups", 1)

    @property
    def _geometry(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
        return self.stride, self.padding, self.dilation, self.groups

    @property
    def takes(self) -> tuple[str, int]:
        """The kind and number of channels on the second axis of the input."""
        return "channels", self.weight.shape[1] * self.groups

    @property
    def gives(self) -> tuple[str, int]:
        """The kind and number of channels on the second axis of the output."""
        return "channels", self.weight.shape[0]

    def forward(self, x: Array) -> Array:
        """Return the output, (batch, out_channels, height, width)."""
        x = check_input(x, "x", self.weight.dtype)
        shape = _core.conv2d_shape(x.shape, self.weight.shape, *self._geometry)
        with allocating(f"an output of shape {tuple(shape)}"):
            y = np.empty(shape, x.dtype)
        _core.conv2d(x, self.weight, self.bias, *self._geometry, y)
        self._keep(x, y.shape)
        return y

    def backward(self, dy: Array) -> Array:
        """Fill `grads` and return the gradient with respect to the last input."""
        x, shape = self._kept()
        dy = check_gradient(dy, shape, x.dtype)
        dx = np.empty(x.shape, x.dtype)
        dw, db = self.grads["weight"], self.grads.get("bias")
        _core.conv2d_backward(x, self.weight, dy, *self._geometry, dx, dw, db)
        return dx

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the output, without the batch axis."""
        shape = dimensions(shape, "shape")
        with of_shape(shape):
            return tuple(_core.conv2d_shape((1, *shape), self.weight.shape, *self._geometry)[1:])

    def multiply_adds(self, shape: tuple[int, ...]) -> int:
        """Return the multiplications for one input of this shape."""
        out = self.output_shape(shape)
        return math.prod(out[1:]) * int(self.weight.size)

    def config(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        out_channels, of_group, *kernel = self.weight.shape
        return {
            "in_channels": of_group * self.groups,
            "out_channels": out_channels,
            "kernel_size": list(kernel),
            "stride": list(self.stride),
            "padding": list(self.padding),
            "dilation": list(self.dilation),
            "groups": self.groups,
            "bias": self.bias is not None,
            "dtype": self.weight.dtype.name,
        }


class _Pool(Layer):
    """Base class of pooling layers."""

    def __init__(self, kernel_size: Pair, *, stride: Pair | None = None, padding: Pair = 0) -> None:
        super().__init__()
        self.kernel_size = pair(kernel_size, "kernel_size", 1)
        self.stride = pair(kernel_size if stride is None else stride, "stride", 1)
        self.padding = pair(padding, "padding", 0)
        if any(2 * p > k for p, k in zip(self.padding, self.kernel_size, strict=True)):
            raise ValueError(f"padding must be at most half of kernel_size, got {padding}")

    @property
    def _windows(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        return self.kernel_size, self.stride, self.padding

    def _places(self, shape: tuple[int, ...]) -> Array | None:
        raise NotImplementedError

    def forward(self, x: Array) -> Array:
        """Return the output, (batch, channels, height, width)."""
        x = check_input(x, "x")
        y = np.empty(_core.pool_shape(x.shape, *self._windows), x.dtype)
        places = self._places(y.shape)
        _core.pool(x, *self._windows, y, places)
        self._keep(x.shape, y.shape, x.dtype, places)
        return y

    def backward(self, dy: Array) -> Array:
        """Return the gradient with respect to the last input."""
        shape, output, dtype, places = self._kept()
        dy = check_gradient(dy, output, dtype)
        dx = np.empty(shape, dtype)
        _core.pool_backward(dy, *self._windows, places, dx)
        return dx

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the output, without the batch axis."""
        shape = dimensions(shape, "shape")
        with of_shape(shape):
            return tuple(_core.pool_shape((1, *shape), *self._windows)[1:])

    def config(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        windows = zip(("kernel_size", "stride", "padding"), self._windows, strict=True)
        return {name: list(value) for name, value in windows}


class MaxPool(_Pool):
    """The maximum of each window; NaN if it contains NaN, and the first of equal ones.

    Parameters
    ----------
    kernel_size : int or pair of int
    stride : int or pair of int, optional
        Defaults to `kernel_size`.
    padding : int or pair of int, default 0
        At most half of `kernel_size`; padding is ignored.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> cr.nn.MaxPool(2)(np.arange(16.0).reshape(1, 1, 4, 4))
    array([[[[ 5.,  7.],
             [13., 15.]]]])
    """

    def _places(self, shape: tuple[int, ...]) -> Array:
        return np.empty(shape, np.uint32)


class AvgPool(_Pool):
    """The mean of each window, including padding as zeros.

    Parameters
    ----------
    kernel_size : int or pair of int
    stride : int or pair of int, optional
        Defaults to `kernel_size`.
    padding : int or pair of int, default 0
        At most half of `kernel_size`.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> cr.nn.AvgPool(2)(np.arange(16.0).reshape(1, 1, 4, 4))
    array([[[[ 2.5,  4.5],
             [10.5, 12.5]]]])
    """

    def _places(self, shape: tuple[int, ...]) -> None:
        return None


def pair(value: Any, name: str, low: int) -> tuple[int, int]:
    """Return a number for each direction.

    Raises
    ------
    TypeError, ValueError
        If it is neither a number nor two, from `low` on.
    """
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2:
        raise ValueError(f"{name} must be a number or a pair, got {value!r}")
    first, second = (whole(v, name, low) for v in both)
    if max(first, second) >= 2**31:
        raise ValueError(f"{name} must be less than 2^31, got {value!r}")
    return first, second

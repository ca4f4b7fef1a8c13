"""Layer normalization and batch normalization."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, as_array, as_matrix
from compressrs._checks import dimensions, flag, floating, positive, share, whole
from compressrs._state import all_or_nothing, restoring
from compressrs.nn.container import Residual, Sequential
from compressrs.nn.conv import Conv2d
from compressrs.nn.layer import Layer, Parameter, check_gradient, check_input, constant
from compressrs.nn.linear import Linear


class LayerNorm(Layer):
    r"""Layer normalization of the last axis.

    .. math:: y = w (x - \mu) / \sqrt{\sigma^2 + \epsilon} + b

    Parameters
    ----------
    features : int
        Length of the last axis.
    eps : float, default 1e-5
    bias : bool, default True
    dtype : dtype, default float32
        float32 or float64.

    Attributes
    ----------
    weight, bias : array, shape (features,)
        Initially ones and zeros; `bias` may be None.

    References
    ----------
    Ba, Kiros & Hinton, "Layer Normalization", arXiv 1607.06450.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> cr.nn.LayerNorm(2, dtype=np.float64)(np.array([[1.0, 3.0]])).round(3)
    array([[-1.,  1.]])
    """

    weight = Parameter("The factors, of shape (features,).")
    bias = Parameter("The offsets, of shape (features,), or None.")

    def __init__(
        self,
        features: int,
        *,
        eps: float = 1e-5,
        bias: bool = True,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.eps = positive(eps, "eps")
        features, dtype = whole(features, "features", 1), floating(dtype, "dtype")
        weight, zeros = constant(1, features, dtype), constant(0, features, dtype)
        self._add(weight=weight, bias=zeros if flag(bias, "bias") else None)

    @property
    def takes(self) -> tuple[str, int]:
        """The kind and number of features on the last axis of the input."""
        return "features", self.weight.size

    gives = takes

    def forward(self, x: Array) -> Array:
        """Return the normalized rows; `x` has shape (..., features)."""
        x = check_input(x, "x", self.weight.dtype)
        features = self.weight.size
        if x.ndim < 2 or x.shape[-1] != features:
            raise ValueError(f"x must have shape (batch, ..., {features}), got {x.shape}")
        rows = as_matrix(x, -1)
        y = np.empty(rows.shape, x.dtype)
        mean, scale = np.empty(len(rows), x.dtype), np.empty(len(rows), x.dtype)
        _core.layer_norm(rows, self.weight, self.bias, self.eps, y, mean, scale)
        self._keep(x.shape, rows, mean, scale)
        return y.reshape(x.shape)

    def backward(self, dy: Array) -> Array:
        """Fill `grads` and return the gradient with respect to the last input."""
        shape, rows, mean, scale = self._kept()
        dy = check_gradient(dy, shape, rows.dtype).reshape(rows.shape)
        dx, dw = np.empty(rows.shape, rows.dtype), self.grads["weight"]
        db = self.grads["bias"] if self.bias is not None else np.empty_like(dw)
        _core.layer_norm_backward(rows, mean, scale, self.weight, dy, dx, dw, db)
        result: Array = dx.reshape(shape)
        return result

    def config(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {
            "features": self.weight.size,
            "eps": self.eps,
            "bias": self.bias is not None,
            "dtype": self.weight.dtype.name,
        }

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the output, without the batch axis."""
        shape = dimensions(shape, "shape")
        if not shape or shape[-1] != self.weight.size:
            raise ValueError(f"the input shape must be (..., {self.weight.size}), got {shape}")
        return shape


class BatchNorm(Layer):
    r"""Batch normalization of each channel.

    .. math:: y = w (x - \mu) / \sqrt{\sigma^2 + \epsilon} + b

    In training, mean and variance are those of the batch; their running averages are used in
    evaluation. Channels are the second axis, for images and for rows. Any finite input is
    normalized, of numbers whose squares overflow, too; a variance beyond the largest number of
    `dtype` becomes that number in the running average.

    Parameters
    ----------
    channels : int
    eps : float, default 1e-5
    momentum : float or None, default 0.1
        Weight of the current batch in the running averages. With None they are the means of all
        batches so far.
    dtype : dtype, default float32
        float32 or float64.

    Attributes
    ----------
    weight, bias : array, shape (channels,)
    buffers : dict of array
        ``"running_mean"``, ``"running_var"`` (with n - 1, as in PyTorch) and
        ``"num_batches_tracked"``.

    References
    ----------
    Ioffe & Szegedy, "Batch Normalization", arXiv 1502.03167.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> layer = cr.nn.BatchNorm(1, dtype=np.float64)
    >>> layer(np.array([[1.0], [3.0]])).round(3)
    array([[-1.],
           [ 1.]])
    """

    weight = Parameter("The factors, of shape (channels,).")
    bias = Parameter("The offsets, of shape (channels,).")

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.eps = positive(eps, "eps")
        self.momentum = None if momentum is None else share(momentum, "momentum")
        channels, dtype = whole(channels, "channels", 1), floating(dtype, "dtype")
        self._add(weight=constant(1, channels, dtype), bias=constant(0, channels, dtype))
        self.buffers["running_mean"] = constant(0, channels, dtype)
        self.buffers["running_var"] = constant(1, channels, dtype)
        self.buffers["num_batches_tracked"] = np.zeros((), np.int64)

    @property
    def takes(self) -> tuple[str, int]:
        """The kind and number of channels on the second axis of the input."""
        return "channels", self.weight.size

    gives = takes

    def forward(self, x: Array) -> Array:
        """Return the normalized channels; `x` has shape (batch, channels, ...)."""
        x = check_input(x, "x", self.weight.dtype)
        channels = self.weight.size
        if x.ndim < 2 or x.shape[1] != channels:
            raise ValueError(f"x must have shape (batch, {channels}, ...), got {x.shape}")
        y = np.empty(x.shape, x.dtype)
        if not self.training:
            scale = (self.weight * self._inverse()).astype(x.dtype)
            _core.scale_channels(x, self.buffers["running_mean"], scale, self.bias, y)
            return y
        count = x.size // channels
        if count < 2:
            raise ValueError(f"x must have at least 2 values of each channel, got shape {x.shape}")
        mean, rest, var, inverse = (np.empty(channels, x.dtype) for _ in range(4))
        _core.channel_moments(x, self.eps, mean, rest, var, inverse)
        scale = self.weight * inverse
        with np.errstate(over="ignore", invalid="ignore"):
            bias = self.bias - rest * scale
        _core.scale_channels(x, mean, scale, bias, y)
        batches = self.buffers["num_batches_tracked"]
        batches[...] += 1
        weight = x.dtype.type(1 / int(batches) if self.momentum is None else self.momentum)
        largest, ratio = np.finfo(x.dtype).max, count / (count - 1)
        with np.errstate(over="ignore"):
            # NaN and infinity stay.
            unbiased = np.where(np.isfinite(var), np.minimum(var * ratio, largest), var)
        for name, value in (("mean", mean), ("var", unbiased)):
            running = self.buffers[f"running_{name}"]
            if weight == 1:
                # Whatever the average was, as in the first batch of a mean.
                running[...] = value
            else:
                # Of halves, whose difference does not overflow.
                half = x.dtype.type(0.5)
                running += (weight + weight) * (half * value - half * running)
        self._keep(x, mean, rest, inverse)
        return y

    def backward(self, dy: Array) -> Array:
        """Fill `grads` and return the gradient with respect to the last input."""
        x, mean, rest, inverse = self._kept()
        dy = check_gradient(dy, x.shape, x.dtype)
        dx, dw, db = np.empty(x.shape, x.dtype), self.grads["weight"], self.grads["bias"]
        _core.batch_norm_backward(x, mean, rest, inverse, self.weight, dy, dx, dw, db)
        return dx

    def affine(self) -> tuple[Array, Array]:
        """Return scale and shift of each channel, by which evaluation maps x to x scale + shift.

        `forward` subtracts the mean first, which keeps digits where it is far above the deviation.
        """
        scale = self.weight * self._inverse()
        shift = self.bias - self.buffers["running_mean"] * scale
        dtype = self.weight.dtype
        return scale.astype(dtype), shift.astype(dtype)

    def _inverse(self) -> Array:
        """Return the inverse of the root of the running variance, in double precision."""
        inverse: Array = 1 / np.sqrt(self.buffers["running_var"].astype(np.float64) + self.eps)
        return inverse

    def config(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {
            "channels": self.weight.size,
            "eps": self.eps,
            "momentum": self.momentum,
            "dtype": self.weight.dtype.name,
        }

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the output, without the batch axis."""
        shape = dimensions(shape, "shape")
        if not shape or shape[0] != self.weight.size:
            raise ValueError(f"the input shape must be ({self.weight.size}, ...), got {shape}")
        return shape


def update_batch_norm(model: Layer, batches: Iterable[Array]) -> None:
    """Compute the statistics of all batch norms anew, as means over batches.

    For weights that were not reached by training with these statistics: averages (`optim.SWA`,
    `optim.EMA`), pruned, quantized or averaged models. Nothing but `buffers` of `BatchNorm`
    layers changes. Dropout is active, as it is when such statistics are collected in training.

    Parameters
    ----------
    model : Layer
        A `Sequential`, or a layer.
    batches : iterable of array
        Inputs of the model.

    Raises
    ------
    TypeError
        If `model` is not a layer.
    ValueError
        If there is no batch, or one does not fit the model or makes statistics NaN or
        infinite. After any exception the statistics are as before.

    References
    ----------
    Izmailov et al., "Averaging weights leads to wider optima and better generalization",
    arXiv 1803.05407, section 3.2; ``torch.optim.swa_utils.update_bn``.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> model = cr.nn.Sequential(cr.nn.BatchNorm(1, dtype=np.float64))
    >>> cr.nn.update_batch_norm(model, [np.array([[1.0], [3.0]]), np.array([[5.0], [7.0]])])
    >>> float(model[0].buffers["running_mean"][0])
    4.0
    """
    if not isinstance(model, Layer):
        raise TypeError(f"model must be a layer, got {type(model).__name__}")
    try:
        batches = iter(batches)
    except TypeError:
        raise TypeError(
            f"batches must be an iterable of arrays, got {type(batches).__name__}"
        ) from None
    every = list(_with_children(model))
    layers = list(dict.fromkeys(layer for layer in every if isinstance(layer, BatchNorm)))
    count = 0
    with all_or_nothing() as undo, restoring() as always:
        for one in every:
            # The mode, and what a `backward` after this needs of the `forward` before it.
            always.remember_attributes(one)
            if not isinstance(one, BatchNorm):
                always.remember(*one.buffers.values())
        for layer in layers:
            undo.remember(*layer.buffers.values())
            layer.buffers["num_batches_tracked"][...] = 0
            layer.momentum = None
        model.train()
        for x in batches:
            x = as_array(x, f"batches[{count}]")
            count += 1
            try:
                # What is not finite is an error below.
                with np.errstate(over="ignore", invalid="ignore"):
                    model(x)
            except (TypeError, ValueError) as error:
                raise type(error)(f"batches[{count - 1}]: {error}") from error
            if not all(map(_is_finite, layers)):
                raise ValueError(
                    f"batches[{count - 1}] must give finite statistics, but those of a batch "
                    "norm became NaN or infinite: its values or the weights are not finite, "
                    "or are too large"
                )
        if not count:
            raise ValueError("batches must hold at least one batch, got none")


def _is_finite(layer: BatchNorm) -> bool:
    """Whether the statistics of a layer are finite."""
    return all(bool(np.isfinite(buffer).all()) for buffer in layer.buffers.values())


def _with_children(layer: Layer) -> Iterator[Layer]:
    """Yield a layer and all layers in it."""
    yield layer
    for child in layer.children().values():
        if isinstance(child, Layer):
            yield from _with_children(child)


def fold_batch_norm(model: Sequential) -> Sequential:
    r"""Return a model whose batch normalizations are folded into the layers before them.

    After a `Linear` or `Conv2d`, scale and shift of evaluation become part of its weight
    and bias, :math:`w' = s w,\; b' = s b + t`. Outputs in evaluation agree to rounding. The
    given model is unchanged.

    Parameters
    ----------
    model : Sequential
        Residual bodies and shortcuts are folded too. A `BatchNorm` that follows another kind of
        layer remains.

    Raises
    ------
    TypeError
        If it is not a `Sequential`.

    Examples
    --------
    >>> import compressrs as cr
    >>> model = cr.nn.Sequential(cr.nn.Conv2d(1, 2, 3), cr.nn.BatchNorm(2), cr.nn.ReLU())
    >>> [type(layer).__name__ for layer in cr.nn.fold_batch_norm(model)]
    ['Conv2d', 'ReLU']
    """
    if not isinstance(model, Sequential):
        raise TypeError(f"model must be a Sequential, got {type(model).__name__}")
    folded: list[Layer] = []
    for layer in model:
        before = folded[-1] if folded else None
        if isinstance(layer, BatchNorm) and isinstance(before, (Linear, Conv2d)):
            scale, shift = layer.affine()
            weight = before.weight * scale.reshape(-1, *[1] * (before.weight.ndim - 1))
            bias = shift if before.bias is None else before.bias * scale + shift
            before._use({"weight": weight, "bias": bias})
        elif isinstance(layer, Sequential):
            folded.append(fold_batch_norm(layer))
        elif isinstance(layer, Residual):
            shortcut = layer.shortcut
            if isinstance(shortcut, Sequential):
                shortcut = fold_batch_norm(shortcut)
            folded.append(Residual(*fold_batch_norm(layer.body), shortcut=copy.deepcopy(shortcut)))
        else:
            folded.append(copy.deepcopy(layer))
    return Sequential(*folded).train(model.training)

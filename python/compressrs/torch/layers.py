"""Modules with the products of `compressrs`: sparse weights, and weights in few bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from compressrs import nn
from compressrs._arrays import Array
from compressrs.quantize import Scheme
from compressrs.sparse import CSRMatrix, SparseMatrix, sddmm
from compressrs.torch._autograd import anchor, once_differentiable
from compressrs.torch._tensors import array_of, data_of, require_cpu, tensor_of, weight_of


def require_linear(module: object, name: str) -> Any:
    """Return `module`, if it is a `torch.nn.Linear`.

    Raises
    ------
    TypeError
        If it is not.
    """
    if not isinstance(module, torch.nn.Linear):
        raise TypeError(f"{name} must be a torch.nn.Linear, got {type(module).__name__}")
    return module


class _SparseAffine(torch.autograd.Function):  # type: ignore[misc]
    """``x @ matrix.T + bias``, with gradients at a cost of the stored entries."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, matrix: SparseMatrix) -> Any:
        rows = array_of(x, "x")
        y = matrix.T.rmatmul(rows, bias=None if bias is None else array_of(bias, "bias"))
        # Autograd checks their versions: the matrix is on the memory of the weight.
        ctx.save_for_backward(x, weight)
        ctx.matrix = matrix
        return tensor_of(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Any) -> Any:
        x, _ = ctx.saved_tensors
        matrix, dy = ctx.matrix, array_of(upstream, "dy")
        needed = ctx.needs_input_grad
        dx = tensor_of(dy @ matrix) if needed[0] else None
        dw = None
        if needed[1]:
            gradient = np.empty(matrix.data.shape, matrix.dtype)
            dw = tensor_of(sddmm(matrix, dy.T, array_of(x, "x"), out=gradient))
        db = tensor_of(dy.sum(axis=0)) if needed[2] else None
        return dx, dw, db, None


class SparseLinear(torch.nn.Module):  # type: ignore[misc]
    r"""A linear module whose weight is a sparse matrix, :math:`y = x A^\top + b`.

    Forward and backward pass cost as much as the stored entries, and an optimizer trains these
    alone. The pattern stays.

    Parameters
    ----------
    weight : SparseMatrix, shape (out_features, in_features)
        float32, float64, float16 or bfloat16. Its values are used, not copied.
    bias : Tensor, shape (out_features,), optional
        A parameter is used as it is.

    Attributes
    ----------
    weight : Parameter
        The stored values, in the shape of the matrix's `data`.
    bias : Parameter or None
    matrix : SparseMatrix
        The weight, on the memory of the values.

    Raises
    ------
    TypeError, ValueError
        If `weight` is not a sparse matrix of `compressrs`, or `bias` does not fit.

    Notes
    -----
    The state dict also holds the pattern, as that of `compressrs.nn.SparseLinear` does, which
    loads it. Only a state dict with the same pattern can be loaded.

    Examples
    --------
    >>> import torch, compressrs as cr
    >>> dense = torch.nn.Linear(4, 3)
    >>> masks = cr.torch.prune(dense, 0.75)
    >>> layer = cr.torch.SparseLinear.from_linear(dense)
    >>> layer.matrix.nnz
    3
    >>> x = torch.ones(2, 4)
    >>> torch.allclose(layer(x), dense(x), atol=1e-6)
    True
    >>> layer(x).sum().backward()
    >>> layer.weight.grad.shape
    torch.Size([3])
    """

    def __init__(self, weight: SparseMatrix, bias: Any = None) -> None:
        super().__init__()
        if not isinstance(weight, SparseMatrix):
            got = type(weight).__name__
            raise TypeError(f"weight must be a sparse matrix of compressrs, got {got}")
        if bias is not None:
            array = array_of(bias, "bias")
            if array.shape != weight.shape[:1] or array.dtype != weight.dtype:
                raise ValueError(
                    f"bias must be {weight.dtype} of shape {weight.shape[:1]}, "
                    f"got {array.dtype} of shape {array.shape}"
                )
            if not isinstance(bias, torch.nn.Parameter):
                bias = torch.nn.Parameter(bias.detach())
        self.out_features, self.in_features = weight.shape
        self._matrix = weight
        self.weight = torch.nn.Parameter(tensor_of(weight.data))
        self.register_parameter("bias", bias)

    @classmethod
    def from_linear(cls, module: Any, threshold: float = 0.0, *, mask: Any = None) -> SparseLinear:
        """Store what is not 0 in a `torch.nn.Linear`, and not below `threshold`; copies it.

        Or what a mask keeps, even where it is 0.

        Raises
        ------
        TypeError, ValueError
            If `module` is none, or its weight is not on the CPU or not of float32 or float64.
        """
        module = require_linear(module, "module")
        if mask is not None:
            mask = data_of(mask, "mask") if isinstance(mask, torch.Tensor) else mask
        weight = array_of(module.weight, "module.weight")
        bias = None if module.bias is None else module.bias.detach().clone()
        return cls(CSRMatrix.from_dense(weight, threshold, mask=mask), bias)

    @property
    def matrix(self) -> SparseMatrix:
        """The weight as a matrix, on the memory of the values."""
        if self.weight.data_ptr() != self._matrix.data.ctypes.data:
            # The values were given other memory, as by module.double().
            self._matrix = self._matrix.with_data(weight_of(self.weight, "weight"))
        return self._matrix

    def forward(self, x: Any) -> Any:
        """Return ``x @ matrix.T + bias`` for `x` of shape (..., in_features).

        Raises
        ------
        TypeError, ValueError
            If `x` has another shape, dtype or device.
        """
        x = require_cpu(x, "x")
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            need = f"(..., {self.in_features})"
            raise ValueError(f"x must have shape {need}, got {tuple(x.shape)}")
        rows = x.reshape(-1, self.in_features)
        y = _SparseAffine.apply(rows, self.weight, self.bias, self.matrix)
        return y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of the module's description."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"stored={self._matrix.nnz}, bias={self.bias is not None}"
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, array in _pattern(self._matrix).items():
            destination[prefix + name] = tensor_of(array.copy())

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        strict, missing, _, errors = args[1:]
        pattern = {prefix + name: array for name, array in _pattern(self._matrix).items()}
        for name, array in pattern.items():
            if name not in state_dict:
                missing += [name] if strict else []
            elif not np.array_equal(array_of(state_dict[name], name), array):
                errors.append(f"{name} must be the pattern of this module's weight.")
        # The default sees only parameters and buffers, and reports other names.
        own = {name: value for name, value in state_dict.items() if name not in pattern}
        super()._load_from_state_dict(own, prefix, *args)


def _pattern(matrix: SparseMatrix) -> dict[str, Array]:
    return {"weight.indices": matrix.indices, "weight.indptr": matrix.indptr}


class _QuantizedAffine(torch.autograd.Function):  # type: ignore[misc]
    """The product with a weight in few bits; the gradient is that of the input."""

    @staticmethod
    def forward(ctx: Any, x: Any, layer: nn.QuantizedLinear) -> Any:
        y = tensor_of(layer.forward(array_of(x, "x")))
        ctx.save_for_backward(anchor(x))
        ctx.layer = layer
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Any) -> Any:
        return tensor_of(ctx.layer._input_gradient(array_of(upstream, "dy"))), None


class QuantizedLinear(torch.nn.Module):  # type: ignore[misc]
    r"""A linear module whose weight is in few bits, for inference.

    Codes and bias are not trained; the gradient of the input is passed on, so that what comes
    before can be.

    Parameters
    ----------
    layer : compressrs.nn.QuantizedLinear
        Used, not copied.

    Raises
    ------
    TypeError
        If `layer` is none.

    Examples
    --------
    >>> import torch, compressrs as cr
    >>> dense = torch.nn.Linear(64, 32)
    >>> small = cr.torch.QuantizedLinear.from_linear(dense, cr.quantize.Scheme(bits=8))
    >>> x = torch.ones(2, 64)
    >>> torch.allclose(small(x), dense(x), atol=0.05)
    True
    """

    def __init__(self, layer: nn.QuantizedLinear) -> None:
        super().__init__()
        if not isinstance(layer, nn.QuantizedLinear):
            raise TypeError(
                f"layer must be a compressrs.nn.QuantizedLinear, got {type(layer).__name__}"
            )
        self.layer = layer

    @classmethod
    def from_linear(cls, module: Any, scheme: Scheme, *, input: str = "float32") -> QuantizedLinear:
        """Round the weight of a `torch.nn.Linear` to the nearest codes; copies the bias.

        Raises
        ------
        TypeError, ValueError
            If `module` is none, or as `compressrs.quantize.quantize`.
        """
        module = require_linear(module, "module")
        bias = None if module.bias is None else weight_of(module.bias, "module.bias")
        linear = nn.Linear.from_arrays(weight_of(module.weight, "module.weight"), bias)
        return cls(nn.QuantizedLinear.from_linear(linear, scheme, input=input))

    def forward(self, x: Any) -> Any:
        """Return the output for `x` of shape (..., in_features).

        Raises
        ------
        TypeError, ValueError
            If `x` has another shape, dtype or device.
        """
        return _QuantizedAffine.apply(x, self.layer)

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of the module's description."""
        out_features, in_features = self.layer.weight.shape
        return (
            f"in_features={in_features}, out_features={out_features}, "
            f"scheme={self.layer.weight.scheme}, input={self.layer.input!r}"
        )

    def get_extra_state(self) -> dict[str, Any]:
        """Return what the layer is made of, for `state_dict`."""
        state = self.layer.state_dict()
        return {
            "config": self.layer.config(),
            "state": {k: tensor_of(v.copy()) for k, v in state.items()},
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over the codes that `get_extra_state` returned.

        Raises
        ------
        ValueError
            If they are of a layer of another shape or scheme; nothing is changed then.
        """
        config = self.layer.config()
        if not isinstance(state, Mapping) or state.get("config") != config:
            got = state.get("config") if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f"the state must be that of a layer {config}, got {got}")
        arrays = {k: array_of(v, k) for k, v in state["state"].items()}
        self.layer = nn.QuantizedLinear._of_state(config, arrays)

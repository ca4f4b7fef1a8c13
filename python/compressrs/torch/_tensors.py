"""Tensors as arrays, and arrays as tensors, on the same memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from compressrs._arrays import Array, as_array, bfloat16


def require_cpu(tensor: object, name: str) -> Any:
    """Return `tensor`, if it is a dense tensor with memory on the CPU.

    Raises
    ------
    TypeError
        If it is not a tensor, or one of another layout: sparse, nested or mkldnn.
    ValueError
        If it is on another device.
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.device.type == "meta":
        raise ValueError(
            f"{name} must have memory, but is a meta tensor; load its weights first, "
            "after module.to_empty(device='cpu')"
        )
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} must be on the CPU, got {tensor.device}; move it by .cpu()")
    if tensor.is_nested:
        raise TypeError(
            f"{name} must be a dense tensor, got a nested one; use .to_padded_tensor(0)"
        )
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got {tensor.layout}; use .to_dense()")
    return tensor


def array_of(tensor: object, name: str) -> Array:
    """Return a view of a tensor's memory.

    Raises
    ------
    TypeError, ValueError
        If it is not a dense tensor on the CPU; see `require_cpu`.
    """
    return as_array(require_cpu(tensor, name), name)


def weight_of(tensor: object, name: str) -> Array:
    """Return a view of a tensor that is to be changed in place.

    Raises
    ------
    TypeError, ValueError
        If it is not a contiguous, dense tensor on the CPU.
    """
    array = array_of(tensor, name)
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{name} must be contiguous, got strides {tuple(require_cpu(tensor, name).stride())}; "
            "call p.data = p.data.contiguous() first, for each p in module.parameters() "
            "(transposed and channels_last weights cannot be changed in place)"
        )
    return array


def data_of(tensor: object, name: str) -> Array:
    """Return a view of a tensor of data, in which nothing is to be differentiated.

    Raises
    ------
    TypeError, ValueError
        If it is not a dense tensor on the CPU, or requires gradients.
    """
    checked = require_cpu(tensor, name)
    if checked.requires_grad:
        raise ValueError(
            f"{name} must not require gradients, which would be lost; pass {name}.detach()"
        )
    return as_array(checked, name)


def tensor_of(array: Array) -> Any:
    """Return a tensor on the memory of an array."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def dtype_of(dtype: Any, name: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a torch dtype that compressrs computes in.

    Raises
    ------
    TypeError
        If it is another one.
    """
    names = {torch.float32: np.float32, torch.float64: np.float64, torch.float16: np.float16}
    if dtype is torch.bfloat16:
        return bfloat16()
    if dtype not in names:
        raise TypeError(f"{name} must have a floating-point dtype, got {dtype}")
    return np.dtype(names[dtype])


def changed(*tensors: Any) -> None:
    """Have autograd know that the memory of tensors was written to.

    A backward pass that needs their former values then raises instead of using the new ones.
    """
    torch.autograd.graph.increment_version(tensors)

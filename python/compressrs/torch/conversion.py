"""Sequential modules as models of `compressrs.nn` on the same memory, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from compressrs import nn
from compressrs._arrays import Array
from compressrs.prune import shrink as shrink_arrays
from compressrs.torch._tensors import data_of, tensor_of, weight_of
from compressrs.torch.layers import SparseLinear
from compressrs.torch.optim import Optimizer


def to_nn(module: Any) -> nn.Sequential:
    """Return a `torch.nn.Sequential` as a model of `compressrs.nn` on the same memory.

    What trains or prunes one of the two changes the other.

    Parameters
    ----------
    module : torch.nn.Sequential
        Of `Linear`, `SparseLinear`, `Conv2d`, `BatchNorm1d` and `BatchNorm2d`, `ReLU`, `GELU`,
        `SiLU`, `Softmax`, `Dropout`, `Flatten`, `MaxPool2d`, `AvgPool2d`, `Identity`, and
        `Sequential` of these. float32 or float64, contiguous, on the CPU.

    Returns
    -------
    compressrs.nn.Sequential
        In the mode, training or evaluation, of the module. `Identity` is left out, and inner
        `Sequential` stay.

    Raises
    ------
    TypeError
        If a module is of another kind, or of a setting that `compressrs.nn` lacks; it is named.
    ValueError
        If a parameter is not on the CPU, not contiguous, or tied.

    Examples
    --------
    >>> import torch, compressrs as cr
    >>> module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> model = cr.torch.to_nn(module)
    >>> x = torch.ones(5, 3)
    >>> torch.allclose(module(x), torch.from_numpy(model(x.numpy())), atol=1e-6)
    True
    """
    return _Conversion(module).model


class _Conversion:
    """A model with the modules that its layers stand for."""

    def __init__(self, module: Any) -> None:
        if not isinstance(module, torch.nn.Sequential):
            raise TypeError(f"module must be a torch.nn.Sequential, got {type(module).__name__}")
        #: By the layer's name in the model: the module's name, and the module.
        self.modules: dict[str, tuple[str, Any]] = {}
        owners: dict[int, str] = {}
        for name, p in module.named_parameters(remove_duplicate=False):
            if (other := owners.setdefault(id(p), name)) != name:
                raise ValueError(f"parameters must not be tied, but {other} and {name} are one")
        self.model = self._sequential(module, "", "").train(module.training)

    def _sequential(self, module: Any, name: str, path: str) -> nn.Sequential:
        layers: list[nn.Layer] = []
        for key, child in module.named_children():
            child_name = f"{name}.{key}" if name else key
            child_path = f"{path}.{len(layers)}" if path else str(len(layers))
            if isinstance(child, torch.nn.Identity):
                continue
            if isinstance(child, torch.nn.Sequential):
                layers.append(self._sequential(child, child_name, child_path))
            else:
                layers.append(_layer(child, child_name))
            self.modules[child_path] = child_name, child
        return nn.Sequential(*layers)

    def path(self, key: int | str) -> int | str:
        """Return the name in the model for the name or position of a module."""
        for path, (name, _) in self.modules.items():
            if name == str(key):
                return path
        raise ValueError(
            f"keep must be of modules {[name for name, _ in self.modules.values()]}, got {key!r}"
        )

    def copy_back(self) -> None:
        """Have the modules use the arrays of the model."""
        layers = dict(self.model.named_layers())
        for path, (_, module) in self.modules.items():
            layer: Any = layers.get(path)
            if layer is None:
                continue
            for name, array in layer.params.items():
                _give(getattr(module, name), array)
            for name in module._buffers.keys() & layer.buffers.keys():
                _give(getattr(module, name), layer.buffers[name])
            if isinstance(module, torch.nn.Linear):
                module.out_features, module.in_features = layer.weight.shape
            elif isinstance(module, torch.nn.Conv2d):
                module.groups = layer.groups
                module.out_channels = layer.weight.shape[0]
                module.in_channels = layer.weight.shape[1] * layer.groups
            elif isinstance(layer, nn.BatchNorm):
                module.num_features = layer.weight.size


def _give(tensor: Any, array: Array) -> None:
    """Have a tensor use the memory of an array, if it does not."""
    if tensor.data_ptr() != array.ctypes.data or tuple(tensor.shape) != array.shape:
        tensor.data = tensor_of(array)
        tensor.grad = None


def _layer(module: Any, name: str) -> nn.Layer:
    """Return the layer for a module, on its memory."""
    kind = type(module)
    if kind not in _LAYERS:
        known = ", ".join(sorted(k.__name__ for k in _LAYERS))
        raise TypeError(f"module {name} must be one of {known}, got {kind.__name__}")
    for key, p in module.named_parameters():
        weight_of(p, f"{name}.{key}")
        if p.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name}.{key} must be float32 or float64, got {p.dtype}")
    layer = _LAYERS[kind](module, name)
    return layer.train(module.training)


def _require(module: Any, name: str, **settings: Any) -> None:
    """Raise a TypeError unless settings of a module have these values."""
    for key, value in settings.items():
        if (got := getattr(module, key)) != value:
            raise TypeError(
                f"module {name} ({type(module).__name__}) must have {key}={value!r}, got {got!r}"
            )


def _bias(module: Any) -> Array | None:
    return None if module.bias is None else weight_of(module.bias, "bias")


def _linear(module: Any, name: str) -> nn.Layer:
    return nn.Linear.from_arrays(weight_of(module.weight, name), _bias(module))


def _sparse(module: SparseLinear, name: str) -> nn.Layer:
    return nn.SparseLinear(module.matrix, _bias(module))


def _conv(module: Any, name: str) -> nn.Layer:
    _require(module, name, padding_mode="zeros")
    padding = module.padding
    if padding == "valid":
        padding = 0
    elif padding == "same":
        both = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if any(n % 2 for n in both):
            raise TypeError(f"module {name} (Conv2d) must have padding that is even on both sides")
        padding = tuple(n // 2 for n in both)
    return nn.Conv2d.from_arrays(
        weight_of(module.weight, name),
        _bias(module),
        stride=module.stride,
        padding=padding,
        dilation=module.dilation,
        groups=module.groups,
    )


def _batch_norm(module: Any, name: str) -> nn.Layer:
    _require(module, name, affine=True, track_running_stats=True)
    if module.momentum is None:
        raise TypeError(f"module {name} (BatchNorm) must have a momentum, got None")
    weight = weight_of(module.weight, name)
    layer = nn.BatchNorm(
        module.num_features, eps=module.eps, momentum=module.momentum, dtype=weight.dtype
    )
    layer._use({"weight": weight, "bias": weight_of(module.bias, name)})
    for key in layer.buffers:
        layer.buffers[key] = weight_of(getattr(module, key), f"{name}.{key}")
    return layer


def _max_pool(module: Any, name: str) -> nn.Layer:
    _require(module, name, ceil_mode=False, return_indices=False)
    if module.dilation not in (1, (1, 1)):
        raise TypeError(f"module {name} (MaxPool2d) must have dilation=1, got {module.dilation}")
    return nn.MaxPool(module.kernel_size, stride=module.stride, padding=module.padding)


def _avg_pool(module: Any, name: str) -> nn.Layer:
    _require(module, name, ceil_mode=False, count_include_pad=True, divisor_override=None)
    return nn.AvgPool(module.kernel_size, stride=module.stride, padding=module.padding)


def _flatten(module: Any, name: str) -> nn.Layer:
    _require(module, name, start_dim=1, end_dim=-1)
    return nn.Flatten()


def _softmax(module: Any, name: str) -> nn.Layer:
    _require(module, name, dim=-1)
    return nn.Softmax()


_LAYERS: dict[type, Callable[[Any, str], nn.Layer]] = {
    torch.nn.Linear: _linear,
    SparseLinear: _sparse,
    torch.nn.Conv2d: _conv,
    torch.nn.BatchNorm1d: _batch_norm,
    torch.nn.BatchNorm2d: _batch_norm,
    torch.nn.ReLU: lambda module, name: nn.ReLU(),
    torch.nn.GELU: lambda module, name: nn.GELU(module.approximate),
    torch.nn.SiLU: lambda module, name: nn.SiLU(),
    torch.nn.Softmax: _softmax,
    torch.nn.Dropout: lambda module, name: nn.Dropout(module.p),
    torch.nn.Flatten: _flatten,
    torch.nn.MaxPool2d: _max_pool,
    torch.nn.AvgPool2d: _avg_pool,
}


def shrink(
    module: Any, keep: Mapping[int | str, Any], optimizer: Any = None, *, outputs: bool = False
) -> None:
    """Take neurons or filters of a sequential module away, and all that belongs to them.

    See `compressrs.prune.shrink`, which does it. The parameters stay the same objects, with
    smaller memory; their gradients are dropped.

    Parameters
    ----------
    module : torch.nn.Sequential
        Of modules that `to_nn` takes.
    keep : dict of Tensor or array of bool
        By the position or the name of a module, as ``"2.0"``, which of its neurons or filters
        stay.
    optimizer : Optimizer of compressrs.torch.optim, optional
        The one that trains the module; its state shrinks with the parameters.
    outputs : bool, default False
        Whether units may be taken from the module's outputs.

    Raises
    ------
    TypeError, ValueError
        As `to_nn` and `compressrs.prune.shrink`, or if `optimizer` is none of
        `compressrs.torch.optim`, whose state could not follow. Nothing is changed then.

    Examples
    --------
    >>> import torch, compressrs as cr
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> opt = cr.torch.optim.Adam(model.parameters())
    >>> norms = model[0].weight.detach().norm(dim=1)
    >>> cr.torch.shrink(model, {0: norms >= norms.sort().values[6]}, opt)
    >>> model
    Sequential(
      (0): Linear(in_features=3, out_features=2, bias=True)
      (1): ReLU()
      (2): Linear(in_features=2, out_features=2, bias=True)
    )
    """
    found = _Conversion(module)
    if not isinstance(keep, Mapping):
        raise TypeError(
            f"keep must be a dict of masks by the module's name, got {type(keep).__name__}"
        )
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise TypeError(
            "optimizer must be one of compressrs.torch.optim, whose state can follow, got "
            f"{type(optimizer).__name__}"
        )
    masks = {
        found.path(key): data_of(m, f"keep[{key!r}]") if isinstance(m, torch.Tensor) else m
        for key, m in keep.items()
    }
    if len(masks) != len(keep):
        raise ValueError(f"keep must name modules once, got {list(keep)}")
    inner = None if optimizer is None else optimizer.array_optimizer
    shrink_arrays(found.model, masks, inner, outputs=outputs)
    found.copy_back()
    if optimizer is not None:
        optimizer._rebind()

"""compressrs for PyTorch's CPU tensors: optimizers, losses, layers and pruning.

- `compressrs.torch.optim`: every rule of `compressrs.optim` as a `torch.optim.Optimizer`;
- `kd_loss`, `dkd_loss`, `dist_loss`, `cross_entropy` and losses of features, differentiable;
- `SparseLinear` and `QuantizedLinear`: modules with the products of `compressrs`;
- `prune`, `shrink`, `input_statistics`: pruning of modules;
- `Distiller`: the training of a module by a teacher.

Kernels read and write the memory of the tensors themselves. Requires PyTorch, which is
imported here alone (``pip install 'compressrs[torch]'``).
"""

try:
    import torch as _torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "compressrs.torch needs PyTorch: pip install 'compressrs[torch]'", name="torch"
    ) from None

from compressrs.torch import optim
from compressrs.torch.conversion import shrink, to_nn
from compressrs.torch.distillation import Distiller
from compressrs.torch.layers import QuantizedLinear, SparseLinear
from compressrs.torch.losses import (
    attention_loss,
    cross_entropy,
    dist_loss,
    dkd_loss,
    hint_loss,
    kd_loss,
    mse_loss,
    rkd_angle_loss,
    rkd_distance_loss,
)
from compressrs.torch.pruning import input_statistics, prune

__all__ = [
    "Distiller",
    "QuantizedLinear",
    "SparseLinear",
    "attention_loss",
    "cross_entropy",
    "dist_loss",
    "dkd_loss",
    "hint_loss",
    "input_statistics",
    "kd_loss",
    "mse_loss",
    "optim",
    "prune",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "shrink",
    "to_nn",
]

del _torch

"""Optimizers that update NumPy arrays in place.

Names, argument order, defaults and semantics are those of PyTorch; gradients are
passed to `step`. Gradient descent and stochastic gradient descent are both
`SGD`: they differ in the gradient that is passed.
"""

from compressrs.optim.adam import Adam
from compressrs.optim.adamw import AdamW
from compressrs.optim.base import Optimizer
from compressrs.optim.momentum import Momentum
from compressrs.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Momentum", "Optimizer"]

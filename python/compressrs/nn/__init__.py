"""The smallest layers that can be trained, pruned and distilled.

A layer has ``forward(x)``, ``backward(dy)`` (which fills `grads` and returns the
gradient with respect to `x`), and dicts of arrays `params` and `grads` of the
same structure, which is what the optimizers take::

    model = Sequential(Linear(64, 32), ReLU(), Linear(32, 10))
    opt = compressrs.optim.Adam(model.params)
    loss, dy = compressrs.distill.kd_loss(model(x), teacher(x))
    model.backward(dy)
    opt.step(model.grads)
"""

from compressrs.nn.activations import ReLU
from compressrs.nn.container import Sequential
from compressrs.nn.layer import Layer, RandomState
from compressrs.nn.linear import Affine, Linear, SparseLinear

__all__ = [
    "Affine",
    "Layer",
    "Linear",
    "RandomState",
    "ReLU",
    "Sequential",
    "SparseLinear",
]

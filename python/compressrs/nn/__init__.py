"""Layers that can be trained, pruned, distilled, saved and shipped.

A layer has ``forward(x)``, ``backward(dy)`` (which fills `grads` and returns the
gradient with respect to `x`), and dicts of arrays `params` and `grads` of the
same structure, which is what the optimizers take::

    model = Sequential(Linear(64, 32), ReLU(), Linear(32, 10))
    opt = compressrs.optim.Adam(model.params)
    loss, dy = cross_entropy(model(x), y)
    model.backward(dy)
    opt.step(model.grads)
    model.eval().save("model.safetensors")
"""

from compressrs.nn.activations import GELU, Dropout, ReLU, SiLU, Softmax
from compressrs.nn.attention import Embedding, MultiHeadAttention
from compressrs.nn.container import Flatten, Residual, Sequential
from compressrs.nn.conv import AvgPool, Conv2d, MaxPool
from compressrs.nn.files import load
from compressrs.nn.layer import Layer, RandomState
from compressrs.nn.linear import Affine, Linear, SparseLinear
from compressrs.nn.losses import cross_entropy, mse_loss
from compressrs.nn.mlp import from_mlp, to_mlp
from compressrs.nn.norm import BatchNorm, LayerNorm, fold_batch_norm, update_batch_norm
from compressrs.nn.quantized import FakeQuantizedLinear, QuantizedLinear
from compressrs.nn.quantized_attention import QuantizedEmbedding, QuantizedMultiHeadAttention
from compressrs.nn.quantized_conv import FakeQuantizedConv2d, QuantizedConv2d
from compressrs.nn.quantized_sparse import QuantizedSparseLinear
from compressrs.nn.recommend import Recommendation, recommend
from compressrs.nn.summary import Summary

__all__ = [
    "GELU",
    "Affine",
    "AvgPool",
    "BatchNorm",
    "Conv2d",
    "Dropout",
    "Embedding",
    "FakeQuantizedConv2d",
    "FakeQuantizedLinear",
    "Flatten",
    "Layer",
    "LayerNorm",
    "Linear",
    "MaxPool",
    "MultiHeadAttention",
    "QuantizedConv2d",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "QuantizedMultiHeadAttention",
    "QuantizedSparseLinear",
    "RandomState",
    "ReLU",
    "Recommendation",
    "Residual",
    "Sequential",
    "SiLU",
    "Softmax",
    "SparseLinear",
    "Summary",
    "cross_entropy",
    "fold_batch_norm",
    "from_mlp",
    "load",
    "mse_loss",
    "recommend",
    "to_mlp",
    "update_batch_norm",
]

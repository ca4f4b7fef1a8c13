"""Quantization to 8 bits and fewer.

- The kind of codes and scales: `Scheme`; a quantized array: `QuantizedTensor`.
- Rounding to the nearest code: `quantize`; scales of given ranges: `parameters`.
- Codebooks: `kmeans`, `codebook_gradient`.
- Rounding compensated by later weights: `gptq`, `prune_and_quantize`.
- Better scales and rounding: `mse_scale`, `hqq`, `adaround`, `bias_correction`.
- Moving the quantization difficulty between weights and inputs: `awq`, `smooth_scale`,
  `equalize`, `HadamardRotation`.
- Ranges of activations: `MinMax`, `MovingAverage`, `Percentile`, `MSE`, `Entropy`.
- Whole models: `quantize_model`; products: `QuantizedMatrix`, `matmul_integer`, and of sparse
  matrices `QuantizedCSRMatrix`.
- Quantization-aware training: `fake_quantize`, `fake_quantize_backward`, `lsq_scale`.
"""

from compressrs.quantize.codebook import codebook_gradient, kmeans
from compressrs.quantize.matrix import QuantizedMatrix, matmul_integer
from compressrs.quantize.model import quantize_model
from compressrs.quantize.observers import (
    MSE,
    Entropy,
    Histogram,
    MinMax,
    MovingAverage,
    Observer,
    Percentile,
)
from compressrs.quantize.refinement import adaround, bias_correction, hqq, mse_scale
from compressrs.quantize.rotation import HadamardRotation
from compressrs.quantize.rounding import parameters, quantize
from compressrs.quantize.scaling import Scaled, awq, equalize, smooth_scale
from compressrs.quantize.scheme import Scheme
from compressrs.quantize.sparse import QuantizedCSRMatrix
from compressrs.quantize.sweep import gptq, prune_and_quantize
from compressrs.quantize.tensor import QuantizedTensor
from compressrs.quantize.training import fake_quantize, fake_quantize_backward, lsq_scale

__all__ = [
    "MSE",
    "Entropy",
    "HadamardRotation",
    "Histogram",
    "MinMax",
    "MovingAverage",
    "Observer",
    "Percentile",
    "QuantizedCSRMatrix",
    "QuantizedMatrix",
    "QuantizedTensor",
    "Scaled",
    "Scheme",
    "adaround",
    "awq",
    "bias_correction",
    "codebook_gradient",
    "equalize",
    "fake_quantize",
    "fake_quantize_backward",
    "gptq",
    "hqq",
    "kmeans",
    "lsq_scale",
    "matmul_integer",
    "mse_scale",
    "parameters",
    "prune_and_quantize",
    "quantize",
    "quantize_model",
    "smooth_scale",
]

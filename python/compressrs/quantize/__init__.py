"""Quantization: numbers in 8 bits and fewer.

- What codes and scales are: `Scheme`; an array in them: `QuantizedTensor`.
- Rounding to the nearest code: `quantize`; scales of given ranges: `parameters`.
- Levels of one's own: `kmeans`, `codebook_gradient`.
- Rounding with later weights making up for it: `gptq`, `prune_and_quantize`.
- Better scales and rounding: `mse_scale`, `hqq`, `adaround`, `bias_correction`.
- Weights and inputs that share what is hard: `awq`, `smooth_scale`, `equalize`,
  `HadamardRotation`.
- Ranges of activations: `MinMax`, `MovingAverage`, `Percentile`, `MSE`, `Entropy`.
- Whole models: `quantize_model`; products: `QuantizedMatrix`, `matmul_integer`.
- While training: `fake_quantize`, `fake_quantize_backward`, `lsq_scale`.
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

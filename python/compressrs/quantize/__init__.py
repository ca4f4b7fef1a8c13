"""Numbers in few bits: products with quantized weights."""

from compressrs.quantize.matrix import QuantizedMatrix, matmul_integer

__all__ = ["QuantizedMatrix", "matmul_integer"]

"""Compressed checkpoints: compress, read, decompress, compare and export.

`compress` writes one or more smaller safetensors files in bounded memory; `open` reads
compressed and plain checkpoints alike; `decompress` restores a plain checkpoint, which is
byte-identical after lossless compression.
"""

from compressrs.checkpoint.compressing import Report, compress
from compressrs.checkpoint.decompressing import decompress, verify
from compressrs.checkpoint.export import ExportReport, export
from compressrs.checkpoint.inspecting import diff, info
from compressrs.checkpoint.reader import Checkpoint, open
from compressrs.checkpoint.recipe import Recipe, Rule

__all__ = [
    "Checkpoint",
    "ExportReport",
    "Recipe",
    "Report",
    "Rule",
    "compress",
    "decompress",
    "diff",
    "export",
    "info",
    "open",
    "verify",
]

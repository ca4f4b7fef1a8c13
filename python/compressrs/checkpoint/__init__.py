"""Checkpoints: read, compressed, restored, compared, exported.

`compress` makes one or more safetensors files that are smaller, in memory that does not
grow with them; `open` reads those and plain ones alike; `decompress` gives back a plain
one, of what was compressed without loss to the byte.
"""

from compressrs.checkpoint.compressing import Report, compress
from compressrs.checkpoint.decompressing import decompress, verify
from compressrs.checkpoint.export import export
from compressrs.checkpoint.inspecting import diff, info
from compressrs.checkpoint.reader import Checkpoint, open
from compressrs.checkpoint.recipe import Recipe, Rule

__all__ = [
    "Checkpoint",
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

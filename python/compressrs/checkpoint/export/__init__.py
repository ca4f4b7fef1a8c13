"""Formats that other programs read, one file a format."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from compressrs._checks import choice, file_path, function
from compressrs._paths import require_distinct
from compressrs.checkpoint.export import compressed_tensors, gguf, npz, onnx
from compressrs.checkpoint.reader import Checkpoint

Progress = Callable[[int, int], None]

#: Writers of a checkpoint to a path that does not exist yet, or is a file.
_FORMATS: dict[str, Callable[[Checkpoint, Path, Progress], None]] = {
    "compressed-tensors": compressed_tensors.write,
    "npz": npz.write,
    "gguf-tensors": gguf.write,
    "onnx": onnx.write,
}

#: What `export` takes.
FORMATS = ("safetensors", *_FORMATS)


def export(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    to: str,
    *,
    progress: Progress | None = None,
) -> None:
    """Write a checkpoint in a format that other programs read.

    ====================== ============================================================
    `to`                   what is written
    ====================== ============================================================
    ``safetensors``        as `decompress`: all tensors dense, in their dtypes
    ``npz``                NumPy's archive, for `numpy.load`
    ``compressed-tensors`` a folder for vLLM and transformers: matrices of 4 or 8 bits
                           packed with their scales, all else dense
    ``gguf-tensors``       one file of GGUF blocks: Q8_0, Q4_0, and F32 or F16; tensors
                           alone, without the metadata that names an architecture
    ``onnx``               a model of initializers behind DequantizeLinear, each tensor
                           an output
    ====================== ============================================================

    What is not quantized stays dense: none of these formats has what is pruned or
    entropy-coded.

    Parameters
    ----------
    src : path
        As for `open`.
    dst : path
        A file; for compressed-tensors a folder, which must not exist.
    to : str
    progress : callable, optional
        Called with bytes done and bytes in total.

    Raises
    ------
    OSError
        If something cannot be read or written.
    ValueError
        If `src` is damaged, or holds what the format cannot; if `dst` is one of its files.
    ModuleNotFoundError
        If the format needs a package that is not installed.
    """
    choice(to, "to", FORMATS)
    src, dst = file_path(src, "src"), file_path(dst, "dst")
    if progress is not None:
        function(progress, "progress")
    if to == "safetensors":
        from compressrs.checkpoint.decompressing import decompress

        decompress(src, dst, progress=progress)
        return
    with Checkpoint(src) as c:
        require_distinct({"dst": dst}, {"src": c.files.paths})
        _FORMATS[to](c, Path(os.path.realpath(dst)), progress or (lambda done, total: None))
        c.files.check_unchanged()

"""Formats that other programs read, one file a format."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from compressrs._checks import choice, file_path, function
from compressrs._paths import require_distinct
from compressrs.checkpoint._format import tensor_bytes
from compressrs.checkpoint.export import compressed_tensors, gguf, npz, onnx
from compressrs.checkpoint.export._report import ExportReport, Written, rows
from compressrs.checkpoint.reader import Checkpoint

Progress = Callable[[int, int], None]

#: Writers of a checkpoint to a path that does not exist yet, or is a file. They return the bytes of
#: the file of tensors, and how each tensor stands in it.
_FORMATS: dict[str, Callable[[Checkpoint, Path, Progress], tuple[int, dict[str, Written]]]] = {
    "compressed-tensors": compressed_tensors.write,
    "npz": npz.write,
    "gguf-tensors": gguf.write,
    "onnx": onnx.write,
}

__all__ = ["FORMATS", "ExportReport", "export"]

#: What `export` takes.
FORMATS = ("safetensors", *_FORMATS)


def export(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    to: str,
    *,
    progress: Progress | None = None,
) -> ExportReport:
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

    None of these formats has what is pruned, entropy-coded or a codebook, and each has few forms
    of codes: other tensors are written dense, which the report says of each.

    Parameters
    ----------
    src : path
        As for `open`.
    dst : path
        A file; for compressed-tensors a folder, which must not exist.
    to : str
    progress : callable, optional
        Called with bytes done and bytes in total.

    Returns
    -------
    ExportReport
        Sizes before and after, and for each tensor how it was written and, as `lost`, what it no
        longer is: quantized, a codebook or sparse.

    Raises
    ------
    OSError
        If something cannot be read or written.
    ValueError
        If `src` is damaged, or holds what the format cannot; if `dst` is one of its files.
    ModuleNotFoundError
        If the format needs a package that is not installed.

    Examples
    --------
    >>> import numpy as np, compressrs as cr, tempfile, pathlib
    >>> from safetensors.numpy import save_file
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> weight = np.random.default_rng(0).normal(0, 0.02, (64, 64)).astype(np.float32)
    >>> save_file({"weight": weight}, folder / "a.safetensors")
    >>> half = cr.checkpoint.Rule(prune=0.5)
    >>> _ = cr.checkpoint.compress(folder / "a.safetensors", folder / "b.safetensors", half)
    >>> report = cr.checkpoint.export(folder / "b.safetensors", folder / "c.npz", "npz")
    >>> report.rows[0].form, report.rows[0].after, report.rows[0].lost
    ('float32', 16384, ('sparse',))
    """
    choice(to, "to", FORMATS)
    src, dst = file_path(src, "src"), file_path(dst, "dst")
    if progress is not None:
        function(progress, "progress")
    with Checkpoint(src) as c:
        if to == "safetensors":
            from compressrs.checkpoint.decompressing import decompress

            after = decompress(src, dst, progress=progress)
            written = {n: Written(c.dtype(n), tensor_bytes(c.dtype(n), c.shape(n))) for n in c}
        else:
            require_distinct({"dst": dst}, {"src": c.files.paths})
            target = Path(os.path.realpath(dst))
            after, written = _FORMATS[to](c, target, progress or (lambda done, total: None))
        c.files.check_unchanged()
        before = sum(file.size for file in c.files.files)
        found = rows(c, written)
        return ExportReport(os.fspath(c.files.path), os.fspath(dst), to, found, before, after)

"""``compressrs export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compressrs._checks import choice
from compressrs.cli._options import Source, Use, arguments, progress
from compressrs.cli._output import say


def run(
    src: Source,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="DST",
            help="A file, which is replaced if it exists; for compressed-tensors a folder, and for "
            "safetensors as of decompress.",
        ),
        Use.WRITTEN,
    ],
    to: Annotated[
        str,
        typer.Option(help="compressed-tensors, safetensors, npz, gguf-tensors or onnx."),
    ],
) -> None:
    """Write a checkpoint in a format that other programs read.

    compressrs export small/ -o for-vllm/ --to compressed-tensors
    """
    from compressrs import checkpoint
    from compressrs.checkpoint.export import FORMATS

    with arguments():
        choice(to, "to", FORMATS)
    with progress("exporting") as bar:
        checkpoint.export(src, output, to, progress=bar)
    say(str(output))

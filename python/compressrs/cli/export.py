"""``compressrs export``."""

from __future__ import annotations

from typing import Annotated

import typer

from compressrs.cli._options import Destination, Source, progress


def run(
    src: Source,
    output: Destination,
    to: Annotated[
        str,
        typer.Option(help="compressed-tensors, safetensors, npz, gguf-tensors or onnx."),
    ],
) -> None:
    """Write a checkpoint in a format that other programs read.

    compressrs export small/ -o for-vllm/ --to compressed-tensors
    """
    from compressrs import checkpoint

    with progress("exporting") as bar:
        checkpoint.export(src, output, to, progress=bar)
    print(output)

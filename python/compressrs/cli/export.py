"""``compressrs export``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from compressrs._checks import choice
from compressrs.cli._options import Json, Source, Use, arguments, progress, shown
from compressrs.cli._output import console, write


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
    json: Json = False,
) -> None:
    """Write a checkpoint in a format that other programs read.

    What the format has no form for, such as pruned tensors, is written dense, and named as dense.

    compressrs export small/ -o for-vllm/ --to compressed-tensors
    """
    from compressrs import checkpoint
    from compressrs.checkpoint.export import FORMATS

    with arguments():
        choice(to, "to", FORMATS)
    with progress("exporting") as bar:
        done = checkpoint.export(src, output, to, progress=bar)
    if json:
        write(f"{done.to_json()}\n")
    else:
        _show(done)


def _show(done: Any) -> None:
    table = Table()
    for column in ("tensor", "dtype", "shape", "stored as", "written as", "no longer"):
        table.add_column(column)
    for column in ("before", "after"):
        table.add_column(column, justify="right")
    for row in done.rows:
        table.add_row(
            row.name,
            row.dtype,
            " x ".join(map(str, row.shape)) or "scalar",
            row.coding,
            row.form,
            ", ".join(row.lost) or "-",
            shown(row.before),
            shown(row.after),
        )
    out = console()
    out.print(table)
    if done.lost:
        kinds = Counter(kind for row in done.lost for kind in row.lost)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        out.print(
            f"{done.to} has no form for what {len(done.lost)} of {len(done.rows)} tensors were: "
            f"{counts}",
            highlight=False,
            soft_wrap=True,
        )
    change = (
        f"{done.ratio:.2f} times smaller"
        if done.ratio >= 1
        else f"{1 / done.ratio:.2f} times larger"
    )
    out.print(
        f"{done.destination}: {shown(done.before)} -> {shown(done.after)}: {change}",
        highlight=False,
        soft_wrap=True,
    )

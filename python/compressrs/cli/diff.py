"""``compressrs diff``."""

from __future__ import annotations

import json as js
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from compressrs.cli._options import Json, Use
from compressrs.cli._output import console, write

_HELP = "A checkpoint, compressed or not: a file, an index or a folder."


def run(
    a: Annotated[Path, typer.Argument(metavar="A", help=_HELP), Use.CHECKPOINT],
    b: Annotated[Path, typer.Argument(metavar="B", help=_HELP), Use.CHECKPOINT],
    json: Json = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print nothing; exit with 1 on a difference.")
    ] = False,
) -> None:
    """Compare the tensors of two checkpoints, compressed or not.

    compressrs diff model.safetensors small.safetensors
    """
    from compressrs import checkpoint

    rows = checkpoint.diff(a, b)
    if json:
        write(f"{js.dumps(rows, indent=2)}\n")
    elif not quiet:
        table = Table()
        table.add_column("tensor")
        for column in ("changed", "largest error", "relative error", "cosine"):
            table.add_column(column, justify="right")
        for row in rows:
            if row["only_in"] is not None:
                table.add_row(row["name"], f"only in {row['only_in']}")
            elif row["changed"] is None:
                table.add_row(row["name"], "another shape")
            else:
                numbers = (row["max_error"], row["relative_error"], row["cosine"])
                table.add_row(
                    row["name"],
                    f"{row['changed']:.1%}",
                    *("-" if n is None else f"{n:.4g}" for n in numbers[:2]),
                    "-" if numbers[2] is None else f"{numbers[2]:.6f}",
                )
        out = console()
        out.print(table)
        same = sum(row["changed"] == 0 for row in rows)
        text = f"{same} of {len(rows)} tensors are the same"
        errors = [row["relative_error"] for row in rows if row["relative_error"] is not None]
        apart = sum(row["changed"] is None for row in rows)
        # If others differ, an error of 0 of what could be compared would be taken for that of all.
        if errors and (max(errors) > 0 or same == len(rows)):
            text += f", largest relative error {max(errors):.4g}"
            text += f" of the {len(errors)} compared as numbers" if apart else ""
        if apart:
            text += f"; {apart} are in one only or of another shape, and were not compared"
        out.print(text, highlight=False, soft_wrap=True)
    if quiet and any(row["changed"] != 0 for row in rows):
        raise typer.Exit(1)

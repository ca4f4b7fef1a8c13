"""``compressrs info``."""

from __future__ import annotations

import json as js

from rich.table import Table

from compressrs.cli._options import Json, Source, shown
from compressrs.cli._output import console, write


def run(src: Source, json: Json = False) -> None:
    """Show the tensors of a checkpoint: dtype, shape, bytes, range, zeros, entropy.

    compressrs info model.safetensors
    """
    from compressrs import checkpoint

    rows = checkpoint.info(src)
    if json:
        write(f"{js.dumps(rows, indent=2)}\n")
        return
    table = Table()
    for column in ("tensor", "dtype", "shape", "coding"):
        table.add_column(column)
    for column in ("bytes", "stored", "smallest", "largest", "zeros", "bits an element"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["name"],
            row["dtype"],
            " x ".join(map(str, row["shape"])) or "scalar",
            row["coding"],
            shown(row["bytes"]),
            shown(row["stored"]),
            "-" if row["min"] is None else f"{row['min']:.4g}",
            "-" if row["max"] is None else f"{row['max']:.4g}",
            f"{row['zeros']:.1%}",
            f"{row['entropy']:.2f}",
        )
    out = console()
    out.print(table)
    total, stored = (sum(row[key] for row in rows) for key in ("bytes", "stored"))
    out.print(f"{len(rows)} tensors, {shown(total)}, stored in {shown(stored)}", highlight=False)

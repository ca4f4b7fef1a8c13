"""``compressrs demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compressrs.cli._options import Use
from compressrs.cli._output import console, say


def run(
    seed: Annotated[
        int, typer.Option(metavar="N", help="Seed of all random choices.", min=0, max=2**32 - 1)
    ] = 0,
    epochs: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Epochs of the dense network; the other phases take a fixed multiple.",
            min=1,
            max=2**32 - 1,
        ),
    ] = 30,
    output: Annotated[
        Path,
        typer.Option(metavar="PATH", help="The report's file, or a folder to put report.html in."),
        Use.WRITTEN,
    ] = Path("report.html"),
) -> None:
    """Train, prune, sparsify and distill a network on handwritten digits.

    Trains a dense network on scikit-learn's handwritten digits, prunes it to 95 %
    zeros, fine-tunes it as a sparse one, and distills it into a student of 16 hidden
    units. Prints a table and writes a report with plots. Examples:

        compressrs demo --seed 1 --output runs/one.html

        compressrs demo --epochs 5
    """
    try:
        from compressrs import demo
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the demo needs the package {error.name}; "
            "install what it needs with: pip install 'compressrs[demo]'"
        ) from None
    try:
        written = demo.main(seed, epochs, output, show=console().print)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("no report was written") from None
    say(f"Report: {written}")

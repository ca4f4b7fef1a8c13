"""The demo's report: one HTML file that holds its plots."""

from __future__ import annotations

import io
import string
import tempfile
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from compressrs import __version__
from compressrs._files import write_atomically
from compressrs._text import html_text

HEADINGS = (
    "Model",
    "Parameters or non-zeros",
    "Bytes on disk",
    "Test accuracy",
    "Latency per 1,000 rows",
    "Training time",
)


@dataclass(frozen=True)
class Row:
    """A model's figures."""

    name: str
    stored: int
    bytes: int
    accuracy: float
    latency_ms: float
    seconds: float

    def cells(self) -> tuple[str, ...]:
        """Return the figures as text, in the order of `HEADINGS`."""
        return (
            self.name,
            f"{self.stored:,}",
            f"{self.bytes:,}",
            f"{self.accuracy:.2%}",
            f"{self.latency_ms:.2f} ms",
            f"{self.seconds:.1f} s",
        )


PAGE = string.Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>compressrs demo</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0;
        font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
figure { margin: 2rem 0; }
figure svg { width: 100%; height: auto; }
figcaption { color: #555; }
</style>
</head>
<body>
<h1>compressrs demo</h1>
<p>Handwritten digits (1,797 images of 8 x 8 pixels, a quarter of them for testing),
seed $seed, $epochs epochs for the dense network. compressrs $version.</p>
<table>
<thead><tr>$headings</tr></thead>
<tbody>$rows</tbody>
</table>
<p>Training times include those of the models that a model was made from. Files are
uncompressed <code>.npz</code>.</p>
$figures
</body>
</html>
""")


@dataclass(frozen=True)
class Report:
    """All that a run of the demo found out."""

    rows: list[Row]
    losses: dict[str, list[float]]
    accuracy_over_sparsity: list[tuple[float, float]]
    seed: int
    epochs: int
    sparsity: float

    def html(self) -> str:
        """Return the report as a page that needs no other file."""
        figures = [
            (self._loss_plot(), "Loss over steps, as a mean over 20 steps."),
            (
                self._sparsity_plot(),
                f"Test accuracy while pruning to {self.sparsity:.0%} zeros, after each epoch.",
            ),
            (self._size_plot(), "Size of the saved model against its test accuracy."),
        ]
        return PAGE.substitute(
            seed=self.seed,
            epochs=self.epochs,
            version=__version__,
            headings="".join(f"<th>{heading}</th>" for heading in HEADINGS),
            rows="".join(
                "<tr>" + "".join(f"<td>{html_text(c)}</td>" for c in row.cells()) + "</tr>"
                for row in self.rows
            ),
            figures="".join(
                f"<figure>{_svg(figure)}<figcaption>{html_text(caption)}</figcaption></figure>"
                for figure, caption in figures
            ),
        )

    def _loss_plot(self) -> Figure:
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        axes = figure.subplots()
        for phase, losses in self.losses.items():
            width = min(20, len(losses))
            smooth = np.convolve(losses, np.full(width, 1 / width), mode="valid")
            axes.plot(np.arange(width, len(losses) + 1), smooth, label=phase, linewidth=1)
        axes.set(xlabel="step of the phase", ylabel="loss", yscale="log")
        axes.legend()
        return figure

    def _sparsity_plot(self) -> Figure:
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        axes = figure.subplots()
        sparsity, accuracy = np.array(self.accuracy_over_sparsity).T
        axes.plot(100 * sparsity, 100 * accuracy, marker="o", markersize=3, linewidth=1)
        axes.axhline(
            100 * self.rows[0].accuracy, color="gray", linestyle="--", label="before pruning"
        )
        axes.set(xlabel="zeros, %", ylabel="test accuracy, %")
        axes.legend()
        return figure

    def _size_plot(self) -> Figure:
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        axes = figure.subplots()
        # Shapes that can be told apart where one lies on another.
        for row, marker in zip(self.rows, "os^Dv<>", strict=True):
            size, accuracy = row.bytes / 1024, 100 * row.accuracy
            axes.scatter(size, accuracy, label=row.name, s=80, marker=marker, alpha=0.7)
        axes.set(xlabel="size on disk, KiB", ylabel="test accuracy, %", xscale="log")
        axes.legend()
        return figure


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    # The same run gives the same file: no date, and ids that do not vary.
    with matplotlib.rc_context({"svg.hashsalt": "compressrs", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def prepare(output: Path) -> Path:
    """Return the report's path, having made sure that it can be written.

    Raises
    ------
    OSError
        If it cannot be.
    """
    if output.is_dir() or output.suffix == "":
        output = output / "report.html"
    if output.exists() and not output.is_file():
        raise OSError(f"cannot write the report: {output} is not a regular file")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise OSError(f"cannot write the report to {output}: {error.strerror}") from error
    return output


def write(output: Path, text: str) -> None:
    """Write the report, all of it or nothing.

    Raises
    ------
    OSError
        If it could not be written; what was there before still is.
    """
    try:
        write_atomically(output, text.encode())
    except OSError as error:
        raise OSError(f"cannot write the report to {output}: {error.strerror}") from error

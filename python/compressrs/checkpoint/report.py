"""Self-contained HTML reports of compression runs."""

from __future__ import annotations

import io
import string
from importlib.util import find_spec
from typing import TYPE_CHECKING

from compressrs import __version__
from compressrs._text import figure_text, html_text
from compressrs.checkpoint.compressing import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAGE = string.Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>compressrs: $source</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: right; }
th:nth-child(-n+4), td:nth-child(-n+4) { text-align: left; }
figure { margin: 2rem 0; }
figure svg { width: 100%; height: auto; }
</style>
</head>
<body>
<h1>$source</h1>
<p>$before bytes $became $after bytes: $ratio times smaller, in $seconds s$memory.
compressrs $version.</p>
$figures
<table>
<thead><tr>$headings</tr></thead>
<tbody>
$rows
</tbody>
</table>
</body>
</html>
""")

_HEADINGS = ("tensor", "dtype", "shape", "coding", "bytes before", "after", "relative error")

#: Number of tensors in a plot, the largest; the table lists all.
_SHOWN = 60


def to_html(report: Report) -> str:
    """Return a report as HTML, with plots of the size and the error of each tensor.

    Parameters
    ----------
    report : Report
        As `compress` returns it.

    Raises
    ------
    ModuleNotFoundError
        If matplotlib is not installed.
    """
    require_matplotlib()
    cells = [
        (
            row.name,
            row.dtype,
            " x ".join(map(str, row.shape)) or "scalar",
            row.coding,
            f"{row.before:,}",
            f"{row.after:,}",
            "-" if row.error is None else f"{row.error:.5f}",
        )
        for row in report.rows
    ]
    return _PAGE.substitute(
        source=html_text(report.source),
        before=f"{report.before:,}",
        after=f"{report.after:,}",
        became="would become" if report.dry_run else "became",
        ratio=f"{report.ratio:.2f}",
        seconds=f"{'about ' if report.dry_run else ''}{report.seconds:.1f}",
        memory="" if report.memory is None else f" and {report.memory / 1e6:,.0f} MB of memory",
        version=__version__,
        headings="".join(f"<th>{heading}</th>" for heading in _HEADINGS),
        rows="\n".join(
            "<tr>" + "".join(f"<td>{html_text(cell)}</td>" for cell in row) + "</tr>"
            for row in cells
        ),
        figures="".join(f"<figure>{_svg(figure)}</figure>" for figure in _figures(report)),
    )


def require_matplotlib() -> None:
    """Raise a ModuleNotFoundError that says what to install, unless matplotlib is installed."""
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError("reports need matplotlib: pip install 'compressrs[demo]'")


def _figures(report: Report) -> list[Figure]:
    from matplotlib.figure import Figure

    largest = sorted(report.rows, key=lambda row: -row.before)[:_SHOWN]
    rows = [row for row in report.rows if row in largest][::-1]
    at = range(len(rows))
    names = [figure_text(row.name) for row in rows]
    size = Figure(figsize=(10, 1.5 + 0.22 * len(rows)), layout="constrained")
    axes = size.subplots()
    axes.barh(at, [row.before / 1e6 for row in rows], color="#ccc", label="before")
    axes.barh(at, [row.after / 1e6 for row in rows], height=0.5, label="after")
    axes.set_yticks(at, names, fontsize=7)
    axes.set(xlabel="size, MB", title="Size of each tensor")
    axes.legend()
    lossy = [row for row in rows if row.error is not None]
    if not lossy:
        return [size]
    error = Figure(figsize=(10, 1.5 + 0.22 * len(lossy)), layout="constrained")
    axes = error.subplots()
    axes.barh(range(len(lossy)), [row.error or 0.0 for row in lossy])
    axes.set_yticks(range(len(lossy)), [figure_text(row.name) for row in lossy], fontsize=7)
    axes.set(xlabel="|w - decoded| / |w|", title="Error of each tensor")
    return [size, error]


def _svg(figure: Figure) -> str:
    import matplotlib

    buffer = io.StringIO()
    # Reproducible output: no date, and fixed ids.
    with matplotlib.rc_context({"svg.hashsalt": "compressrs", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]

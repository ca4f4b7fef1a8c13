"""Figures, which require matplotlib."""

from __future__ import annotations

import io
from pathlib import Path

from compressrs._checks import file_path
from compressrs._files import write_atomically
from compressrs._typing import Figure

#: What keeps the time of writing out of a file, by format.
_UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def new_figure() -> Figure:
    """Return an empty figure, which belongs to no window.

    Raises
    ------
    ModuleNotFoundError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure as NewFigure
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "a plot needs matplotlib: pip install 'compressrs[demo]'"
        ) from None
    return NewFigure(figsize=(7, 4), layout="constrained")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Save a figure in the format that the path ends with, atomically.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    target, image = file_path(path), io.BytesIO()
    if not target.suffix:  # Matplotlib's default
        target = target.with_name(f"{target.name}.{figure.canvas.get_default_filetype()}")
    import matplotlib

    kind = target.suffix[1:].lower()
    # The same figure gives the same file: ids of SVG do not vary.
    with matplotlib.rc_context({"svg.hashsalt": "compressrs"}):
        figure.savefig(image, format=kind, metadata=_UNDATED.get(kind))
    write_atomically(target, image.getvalue())

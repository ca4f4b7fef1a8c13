"""Shared options, and the display of progress and sizes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from typer.models import OptionInfo

from compressrs._progress import Lines


class Use(Enum):
    """What a command does with the path that an option gives."""

    #: A file that is read.
    READ = "read"
    #: A checkpoint that is read: a file, or an index or a folder, with what they consist of.
    CHECKPOINT = "checkpoint"
    #: A file or a folder that is made anew.
    WRITTEN = "written"
    #: A folder that files of names of their own are added to.
    KEPT = "kept"


Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Source = Annotated[
    Path,
    typer.Argument(
        metavar="SRC",
        help="A safetensors file, the index of a sharded checkpoint, or a folder with either.",
    ),
    Use.CHECKPOINT,
]
_OUTPUT = typer.Option(
    "-o",
    "--output",
    metavar="DST",
    help="A file if it ends in .safetensors, which is replaced if it exists, else a folder, "
    "which must not exist.",
)
Destination = Annotated[Path, _OUTPUT, Use.WRITTEN]
OptionalDestination = Annotated[Path | None, _OUTPUT, Use.WRITTEN]
Threads = Annotated[int | None, typer.Option(help="Number of threads (default: all CPUs).", min=1)]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", re.IGNORECASE)

_TIME = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(us|ms|s)?\s*")


class Usage(Exception):
    """Wrong arguments of a command, for which it ends with 2."""


@contextmanager
def arguments() -> Iterator[None]:
    """Report errors of values as wrong arguments."""
    try:
        yield
    except (TypeError, ValueError, OverflowError) as error:
        raise Usage(str(error)) from None


def path_options(command: Callable[..., None]) -> dict[str, tuple[str, Use]]:
    """Return how the options of a command that are paths are typed, and what is done with them."""
    found = {}
    for name, hint in get_type_hints(command, include_extras=True).items():
        marks = getattr(hint, "__metadata__", ())
        for use in marks:
            if isinstance(use, Use):
                typed = [n for m in marks for n in (getattr(m, "param_decls", None) or ())]
                is_option = any(isinstance(m, OptionInfo) for m in marks)
                plain = f"--{name.replace('_', '-')}" if is_option else name.upper()
                found[name] = next((n for n in typed if n.startswith("--")), plain), use
    return found


def require_other_files(command: Callable[..., None], given: Mapping[str, Any]) -> None:
    """Raise an error if a command would write a file that it reads, or one for two reasons.

    Raises
    ------
    OSError, ValueError
        If a checkpoint that is read cannot be.
    Usage
        Which names both options.
    """
    from compressrs._paths import require_distinct

    of_use: dict[Use, dict[str, Path]] = {use: {} for use in Use}
    for name, (typed, use) in path_options(command).items():
        if given.get(name) is not None:
            of_use[use][typed] = Path(given[name])
    if not (of_use[Use.WRITTEN] or of_use[Use.KEPT]):
        return
    read = {typed: [path] for typed, path in of_use[Use.READ].items()}
    read |= {typed: _parts(path) for typed, path in of_use[Use.CHECKPOINT].items()}
    with arguments():
        require_distinct(of_use[Use.WRITTEN], read, of_use[Use.KEPT])


#: Suffixes of what earlier runs may have written into the folder of a checkpoint.
_OWN = (".html", ".toml")


def _parts(path: Path) -> list[Path]:
    """Return a checkpoint's path and its files, those without tensors included."""
    from compressrs.checkpoint._source import Files

    with Files(path) as files:
        others = [files.folder / name for name in files.side_files()] if files.folder else []
        return [path, *files.paths, *(file for file in others if file.suffix not in _OWN)]


def set_threads(threads: int | None) -> None:
    """Set the number of threads, if it is given."""
    from compressrs import set_num_threads

    if threads is not None:
        try:
            set_num_threads(threads)
        except ValueError as error:
            raise Usage(f"--threads {threads}: {error}") from None


def size(text: str | int) -> int:
    """Return the bytes of a size such as ``1GB`` (decimal) or ``512MiB`` (binary)."""
    match = _SIZE.fullmatch(str(text))
    if match is None:
        raise typer.BadParameter(f"must be a size such as 800MB, 1.5GB or 512MiB, got {text!r}")
    unit = _UNITS[match[2].upper()]
    if match[3]:
        unit = 1 << 10 * [*_UNITS].index(match[2].upper())
    return int(float(match[1]) * unit)


def duration(text: str | float) -> float:
    """Return the seconds of a time such as ``5ms``, ``800us`` or ``0.1s``."""
    match = _TIME.fullmatch(str(text))
    if match is None:
        raise typer.BadParameter(f"must be a time such as 5ms, 800us or 0.1s, got {text!r}")
    return float(match[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[match[2] or "s"]


def shown(n: float) -> str:
    """Format a number of bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 1000 or unit == "GB":
            return f"{n:,.0f} {unit}" if unit == "B" else f"{n:,.2f} {unit}"
        n /= 1000
    raise AssertionError


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that updates a progress bar, or writes lines if there is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        lines = Lines()
        line = lines.add_task(f"{what}, bytes", total=None)
        yield lambda done, total: lines.update(line, completed=done, total=total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)

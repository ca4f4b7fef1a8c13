"""All that a command shows: nothing else writes to standard output or standard error."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from compressrs._text import printable

#: Characters in a line of a table that no terminal limits.
_WIDTH = 160


class OutputError(Exception):
    """Standard output that cannot be written to; not an OSError, which is of a file."""


def write(text: str) -> None:
    """Write text to standard output as it is, at once.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    out = sys.stdout
    # What a terminal cannot show is shown as escapes.
    coding = getattr(out, "encoding", None) or "utf-8"
    try:
        out.write(text.encode(coding, "backslashreplace").decode(coding))
        out.flush()
    except OSError as error:
        raise OutputError(str(error)) from error


def say(text: str) -> None:
    """Write a line to standard output, with what is not printable as escapes."""
    write(f"{printable(text)}\n")


def complain(text: str) -> None:
    """Write a line to standard error, with what is not printable as escapes."""
    # Where there is no way to say it, the exit code says it.
    with contextlib.suppress(OSError):
        line = f"compressrs: {printable(text)}\n"
        coding = getattr(sys.stderr, "encoding", None) or "utf-8"
        sys.stderr.write(line.encode(coding, "backslashreplace").decode(coding))
        sys.stderr.flush()


class _Plain(Console):
    """A console for texts that are no markup, whose output goes through `write`."""

    def __init__(self) -> None:
        self._shown = io.StringIO()
        shows = sys.stdout.isatty()
        super().__init__(
            file=self._shown, force_terminal=shows or None, width=None if shows else _WIDTH,
            markup=False, emoji=False,
        )  # fmt: skip

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*objects, **options)
        text = self._shown.getvalue()
        self._shown.truncate(self._shown.seek(0))
        write(text)


def console() -> Console:
    """Return the console for tables, wide enough for them if it is not a terminal."""
    return _Plain()


def require_streams() -> None:
    """Replace standard streams that were closed, which Python has none for.

    Otherwise the next file that is opened would get their number, and what other code writes to
    that number would go into it. Writing to standard output then fails, rather than being lost.
    """
    for number, name, flags in (
        (0, "stdin", os.O_RDONLY),
        (1, "stdout", os.O_RDONLY),
        (2, "stderr", os.O_WRONLY),
    ):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, flags)
            if descriptor != number and not _is_open(number):
                os.dup2(descriptor, number)
                os.close(descriptor)
                descriptor = number
            mode = "w" if number else "r"
            stream = os.fdopen(descriptor, mode, encoding="utf-8", closefd=False)
            setattr(sys, name, stream)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def give_up_streams() -> None:
    """Let what is still to be written go nowhere, so that Python does not fail when it ends."""
    for stream in (sys.stdout, sys.stderr):
        if not _is_flushed(stream):
            with contextlib.suppress(OSError), open(os.devnull, "ab") as nothing:
                os.dup2(nothing.fileno(), stream.fileno())


def _is_flushed(stream: TextIO) -> bool:
    try:
        stream.flush()
    except OSError:
        return False
    return True

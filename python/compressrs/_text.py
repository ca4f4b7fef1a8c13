"""Text from files and users, made fit to be shown."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

#: What ends a cell of a Markdown table, or begins markup or HTML in it.
_MARKUP = re.compile(r"[\\|<&*`\[\]]")


def printable(text: str) -> str:
    r"""Return a text with all that is not printable as Python's escapes.

    Control characters and escape sequences would move a terminal's cursor, hide text or set
    colours; marks of direction would reorder it; halves of characters cannot be encoded.

    Examples
    --------
    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def html_text(text: str) -> str:
    """Return a text as HTML that shows it, and nothing else."""
    return html.escape(printable(text))


def figure_text(text: str) -> str:
    """Return a text as a label of matplotlib, which takes what is between dollars as a formula."""
    return printable(text).replace("$", r"\$")


def markdown_table(rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Return a Markdown table of rows, the first of which is the heading.

    Parameters
    ----------
    rows : iterable of sequence of str
    left : int, default 1
        How many columns are aligned to the left; the others hold numbers.
    """
    head, *rest = rows
    rule = ["---" if i < left else "---:" for i in range(len(head))]
    lines = [map(_cell, head), rule, *(map(_cell, row) for row in rest)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    return _MARKUP.sub(r"\\\g<0>", printable(text))

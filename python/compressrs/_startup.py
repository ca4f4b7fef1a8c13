"""Which program imports this package; without any import of compressrs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath


def is_command(program: Sequence[str], arguments: Sequence[str]) -> bool:
    """Return whether a process runs ``compressrs`` or ``python -m compressrs``.

    Parameters
    ----------
    program : sequence of str
        The first element of `sys.argv`, if there is one; ``-m`` while Python looks for a module.
    arguments : sequence of str
        `sys.orig_argv`.
    """
    if list(program) == ["-m"]:
        return "compressrs" in arguments
    return [PurePath(name).stem for name in program] == ["compressrs"]

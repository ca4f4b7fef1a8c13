"""The command while it is imported: which program imports this package, and how it is interrupted.

Without any import of compressrs.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any


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


def end_when_interrupted() -> None:
    """End the process at Ctrl-C as the command does, until `interruptible` takes over.

    An exception would leave through the code that imports the command, with its traceback.
    """
    if (
        threading.current_thread() is threading.main_thread()
        # Not where it is ignored, as in the background, or is another's.
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        signal.signal(signal.SIGINT, _end)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt at Ctrl-C within the context, where `end_when_interrupted` ended."""
    if signal.getsignal(signal.SIGINT) is not _end:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: Any) -> None:
    try:
        os.write(2, b"compressrs: interrupted\n")
    finally:
        os._exit(130)

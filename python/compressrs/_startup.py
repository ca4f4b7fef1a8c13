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


#: The signals that end the command with a message and 128 + their number as its exit code, as
#: shells have it. Windows has no SIGHUP, and its SIGTERM ends a process without any handler.
_ENDING = {
    getattr(signal, name): word
    for name, word in (("SIGINT", "interrupted"), ("SIGTERM", "terminated"), ("SIGHUP", "hung up"))
    if hasattr(signal, name)
}

#: The last signal that raised KeyboardInterrupt.
_received: int = signal.SIGINT


def end_when_interrupted(arguments: Sequence[str]) -> None:
    """End the process at Ctrl-C and SIGTERM as the command does, until `interruptible` takes over.

    An exception would leave through the code that imports the command, with its traceback.

    Parameters
    ----------
    arguments : sequence of str
        `sys.orig_argv`.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    # Processes that the command starts have its name; it ends them by SIGTERM itself.
    is_worker = "--multiprocessing-fork" in arguments
    for number in [signal.SIGINT] if is_worker else _ENDING:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        # Not where it is ignored, as in the background or by nohup, or is another's.
        if signal.getsignal(number) is default:
            signal.signal(number, _end)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt within the context at signals for which the process would end.

    So that files being written are removed; `ending` tells the exit code.
    """
    ours = [number for number in _ENDING if signal.getsignal(number) is _end]
    for number in ours:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, _end)


def ending() -> tuple[int, str]:
    """Return the exit code of a command that KeyboardInterrupt ended, and what happened to it."""
    return 128 + _received, _ENDING[_received]


def _raise(number: int, frame: Any) -> None:
    global _received
    _received = number
    raise KeyboardInterrupt


def _end(number: int, frame: Any) -> None:
    try:
        os.write(2, f"compressrs: {_ENDING[number]}\n".encode())
    finally:
        os._exit(128 + number)

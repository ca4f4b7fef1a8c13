"""``compressrs config``."""

from __future__ import annotations

from compressrs.cli._output import say


def run() -> None:
    """Print versions, instruction set and threads."""
    from compressrs._threads import configuration

    for name, value in configuration().items():
        say(f"{name:16} {value}")

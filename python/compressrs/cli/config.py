"""``compressrs config``."""

from __future__ import annotations


def run() -> None:
    """Print versions, instruction set and threads."""
    from compressrs import show_config

    show_config()

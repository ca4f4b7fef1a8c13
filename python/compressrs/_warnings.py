"""Warnings that are attributed to the caller's line instead of the package."""

from __future__ import annotations

import sys
import warnings


def warn(message: str, category: type[Warning]) -> None:
    """Issue a warning at the line from which the package was called."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] == "compressrs":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)

"""Which packages of the extras are installed."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from typing import NamedTuple

# Such as `torch>=2.6; extra == "torch"`.
_OLDER_PYTHON = re.compile(r"""python_(?:full_)?version\s*<\s*['"](\d+)\.(\d+)""")
_REQUIREMENT = re.compile(r"""^([\w.-]+)(?:\[[^]]*])?\s*([^;]*?)\s*;.*extra\s*==\s*['"]([\w-]+)""")


class Package(NamedTuple):
    """A package that an extra asks for."""

    extra: str
    name: str
    #: Versions that are needed, such as ``>=2.6``.
    needed: str
    #: The version that is installed, or None.
    installed: str | None


def packages(leave_out: tuple[str, ...] = ("test", "bench", "docs")) -> list[Package]:
    """Return the packages of the extras that users install, in alphabetical order.

    Parameters
    ----------
    leave_out : tuple of str
        Extras for work on compressrs itself.

    Returns
    -------
    list of Package
        Empty if compressrs was not installed but is imported from its source.
    """
    try:
        requirements = importlib.metadata.requires("compressrs") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = set()
    for requirement in requirements:
        older = _OLDER_PYTHON.search(requirement)
        if older and sys.version_info >= (int(older[1]), int(older[2])):
            continue
        match = _REQUIREMENT.match(requirement)
        if match and match[1] != "compressrs" and match[3] not in leave_out:
            found.add(Package(match[3], match[1], match[2], _version(match[1])))
    return sorted(found, key=lambda package: package[:2])


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None

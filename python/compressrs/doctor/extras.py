"""Which packages of the extras are installed, and whether they can be imported."""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

# Such as `torch>=2.6; extra == "torch"`.
_OLDER_PYTHON = re.compile(r"""python_(?:full_)?version\s*<\s*['"](\d+)\.(\d+)""")
_REQUIREMENT = re.compile(r"""^([\w.-]+)(?:\[[^]]*])?\s*([^;]*?)\s*;.*extra\s*==\s*['"]([\w-]+)""")


#: Modules that are not called as the package that they come with.
_MODULES = {"scikit-learn": "sklearn"}


class Package(NamedTuple):
    """A package that an extra asks for."""

    extra: str
    name: str
    #: Versions that are needed, such as ``>=2.6``.
    needed: str
    #: The version that is installed, or None.
    installed: str | None
    #: Why it cannot be imported, though it is installed; None if it can, or was not tried.
    error: str | None = None


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


def tried(found: Sequence[Package], timeout: float = 60) -> list[Package]:
    """Import each package that is installed, in a process of its own, and note what fails.

    A package may be damaged, or lack a library of the system, and may end the process.

    Parameters
    ----------
    found : sequence of Package
    timeout : float, default 60
        Seconds for each import.
    """

    def one(package: Package) -> Package:
        if package.installed is None:
            return package
        module = _MODULES.get(package.name, package.name.replace("-", "_"))
        return package._replace(error=_import_error(module, timeout))

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(one, found))


def _import_error(module: str, timeout: float) -> str | None:
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import {module}"],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return f"import {module} did not end in {timeout:g} s"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"import {module} was ended by {signal.Signals(-done.returncode).name}"
    said = done.stderr.strip().splitlines()
    return said[-1] if said else f"import {module} ended with {done.returncode}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None

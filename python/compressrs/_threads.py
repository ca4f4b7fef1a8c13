"""Threads and instruction sets."""

from __future__ import annotations

import atexit
import contextlib
import operator
import platform
import sys

import numpy as np

from compressrs import _core

# Stop the pool's threads before the interpreter shuts down.
atexit.register(_core.shutdown)


def get_num_threads() -> int:
    """Return the number of threads that kernels use.

    The default is the environment variable ``COMPRESSRS_NUM_THREADS`` or, if it is not
    set, the number of CPUs available to this process according to its affinity mask and
    its cgroup's quota.
    """
    return _core.get_num_threads()


def set_num_threads(n: int) -> None:
    """Set the number of threads that kernels use, for all Python threads.

    Results do not depend on it. threadpoolctl, if installed, controls the same number:
    ``threadpool_limits(1)``.

    Parameters
    ----------
    n : int
        From 1 to 1024.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is out of range.

    Examples
    --------
    >>> import compressrs as cr
    >>> before = cr.get_num_threads()
    >>> cr.set_num_threads(2)
    >>> cr.get_num_threads()
    2
    >>> cr.set_num_threads(before)
    """
    try:
        if isinstance(n, bool):
            raise TypeError
        n = operator.index(n)
    except TypeError:
        raise TypeError(f"n must be an integer, got {type(n).__name__}") from None
    # Integers that the core cannot represent are reported as out of range as well.
    _core.set_num_threads(max(-1, min(n, 2**31)))


def configuration() -> dict[str, str]:
    """Return what `show_config` prints."""
    return {
        "compressrs": _core.__version__,
        "Python": f"{sys.version.split()[0]} on {platform.machine()}",
        "NumPy": np.__version__,
        "instruction set": f"{_core.simd_level()} (of {', '.join(_core.simd_levels())})",
        "threads": str(_core.get_num_threads()),
    }


def show_config() -> None:
    """Print versions, the instruction set in use and the number of threads.

    ``compressrs doctor`` also tests bits and speed.
    """
    for name, value in configuration().items():
        print(f"{name:16} {value}")


def _register_with_threadpoolctl() -> None:
    import threadpoolctl

    class Controller(threadpoolctl.LibController):  # type: ignore[misc]
        user_api = "compressrs"
        internal_api = "compressrs"
        filename_prefixes = ("_core",)
        check_symbols = ("compressrs_get_num_threads", "compressrs_set_num_threads")

        def get_num_threads(self) -> int:
            return int(self.dynlib.compressrs_get_num_threads())

        def set_num_threads(self, num_threads: int) -> None:
            self.dynlib.compressrs_set_num_threads(num_threads)

        def get_version(self) -> str:
            return _core.__version__

    threadpoolctl.register(Controller)


with contextlib.suppress(ImportError):  # threadpoolctl is optional
    _register_with_threadpoolctl()

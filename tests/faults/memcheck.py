"""Memcheck of every kernel that Python can call: ``python -m tests.faults.memcheck [SIZE ...]``.

Calls all cases of `kernels` under valgrind, at AVX2, which it can run, and in two threads. Python
and its loader have reports of their own, which do not count: only those with a frame of the core.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

#: What a frame of the core looks like, with and without symbols.
_OURS = re.compile(r"_core\.abi3|compressrs|\.rs:\d+\)")


def call_all(size: int) -> None:
    """Call every kernel once."""
    from tests.faults import kernels

    cases = kernels.cases(size)
    for case in cases:
        case.replaced({})()
    print(f"{len(cases)} kernels of size {size}")


def reports(log: str) -> list[str]:
    """Return the reports in a log of valgrind that have a frame of the core."""
    text = re.sub(r"^==\d+== ?", "", log, flags=re.MULTILINE)
    blocks = [block for block in text.split("\n\n") if re.search(r"^ +at 0x", block, re.MULTILINE)]
    return [block for block in blocks if _OURS.search(block)]


def main(sizes: list[str]) -> int:
    """Run the command and return its exit code."""
    found = []
    for size in sizes or ["1", "33"]:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            code = f"from tests.faults.memcheck import call_all; call_all({int(size)})"
            settings = {
                # So that memory of Python's is watched too.
                "PYTHONMALLOC": "malloc",
                "COMPRESSRS_SIMD": "avx2",
                "COMPRESSRS_NUM_THREADS": "2",
                "OPENBLAS_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            }
            command = ["valgrind", f"--log-file={log}", "--num-callers=40", sys.executable]
            subprocess.run([*command, "-c", code], env={**os.environ, **settings}, check=True)
            found += reports(log.read_text())
    print(*found, f"{len(found)} reports of the core", sep="\n\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

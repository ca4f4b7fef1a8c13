"""Memory is flat over many small steps and forks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("steps", "forks"),
    [(100_000, 20), pytest.param(10_000_000, 1000, marks=pytest.mark.slow)],
)
def test_memory_is_flat(steps, forks):
    command = [sys.executable, "-W", "ignore", "-m", "benches.soak"]
    done = subprocess.run(
        [*command, f"--steps={steps}", f"--forks={forks}"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

"""Hostile programs: whatever they do, an error at most, and no damage that stays."""

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from attacks import programs

ROOT = Path(__file__).parents[2]
SCRIPTS = [m.name for m in pkgutil.iter_modules(programs.__path__) if not m.name.startswith("_")]
#: What the scripts need of the operating system.
NEEDS = {"forks": "fork", "signals": "fork"}


@pytest.mark.parametrize(
    "seconds", [pytest.param("0.3", id="short"), pytest.param("30", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("script", SCRIPTS)
def test_programs(script, seconds):
    if not hasattr(os, NEEDS.get(script, "name")):
        pytest.skip(f"needs os.{NEEDS[script]}")
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"attacks.programs.{script}", seconds],
        cwd=ROOT,
        env={
            **os.environ,
            "RUST_BACKTRACE": "0",
            "PYTHONPATH": path,
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_every_program_is_run():
    assert len(SCRIPTS) >= 9

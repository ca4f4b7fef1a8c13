"""Count instructions and compare them: see the package's docstring."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
COUNTS = HERE / "counts.json"
TOLERANCE = 0.02


def rustc() -> str:
    """Return the version of the compiler, on which counts depend."""
    run = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def build() -> Path:
    """Build the kernels and return the program."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", HERE / "target")) / "instructions"
    subprocess.run(
        ["cargo", "build", "--release", "--locked", "--manifest-path", str(HERE / "Cargo.toml")],
        env={**os.environ, "CARGO_TARGET_DIR": str(target)},
        check=True,
    )
    return target / "release" / "instructions"


def count(program: Path) -> dict[str, int]:
    """Return the instructions of each kernel, with those of what it calls."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counts"
        subprocess.run(
            [
                "valgrind",
                "--tool=callgrind",
                "--toggle-collect=instructions::counted::*",
                f"--callgrind-out-file={out}",
                str(program),
            ],
            env={**os.environ, "COMPRESSRS_SIMD": "avx2"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=True,
        )
        shown = subprocess.run(
            ["callgrind_annotate", "--inclusive=yes", "--threshold=100", str(out)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    found = re.findall(r"^\s*([\d,]+) .*?instructions::counted::(\w+)", shown, re.MULTILINE)
    counts: dict[str, int] = {}
    for number, name in found:
        # Also listed by the files of inlined code, with a part of the count each.
        counts[name] = max(counts.get(name, 0), int(number.replace(",", "")))
    return counts


def differences(found: dict[str, int], expected: dict[str, int]) -> list[str]:
    """Return a line for each kernel whose count is not as recorded."""
    lines = []
    for name in sorted(found.keys() | expected.keys()):
        new, old = found.get(name), expected.get(name)
        if new is None or old is None:
            lines.append(f"{name}: {'not recorded' if old is None else 'not counted any more'}")
        elif abs(new / old - 1) > TOLERANCE:
            lines.append(f"{name}: {old:,} -> {new:,} instructions ({new / old - 1:+.1%})")
    return lines


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benches.instructions", description=__doc__)
    parser.add_argument("--write", action="store_true", help="record the counts")
    options = parser.parse_args()
    recorded = json.loads(COUNTS.read_text()) if COUNTS.exists() else {"rustc": None, "counts": {}}
    missing = None
    if not shutil.which("valgrind"):
        missing = "valgrind is not installed"
    elif not options.write and not recorded["counts"]:
        missing = "none are recorded; run python -m benches.instructions --write"
    elif not options.write and rustc() != recorded["rustc"]:
        missing = f"the counts are of {recorded['rustc']}, and this is {rustc()}"
    if missing:
        print(f"\n*** INSTRUCTIONS ARE NOT COMPARED: {missing} ***\n", file=sys.stderr)
        return 1 if options.write else 0
    found = count(build())
    if not found:
        print("callgrind counted nothing", file=sys.stderr)
        return 1
    for name, number in sorted(found.items()):
        print(f"{number:12,}  {name}")
    if options.write:
        record = {"rustc": rustc(), "level": "avx2", "counts": dict(sorted(found.items()))}
        COUNTS.write_text(json.dumps(record, indent=2) + "\n")
        return 0
    wrong = differences(found, recorded["counts"])
    if wrong:
        print(
            f"\nMore than {TOLERANCE:.0%} from what is recorded; `python -m benches.instructions "
            "--write` records what is intended:",
            *wrong,
            sep="\n",
            file=sys.stderr,
        )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())

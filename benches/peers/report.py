"""Writes tables and pictures of docs/ from what runs of the benchmarks kept.

python -m benches.peers.report              # after any run with --json benches/results/NAME.json
python -m benches.peers.report --commands   # print the commands of the runs, to make them anew

In the pages, what stands between ``<!-- figures: NAME ... -->`` and ``<!-- end of figures -->`` is
written by this program, from all files in ``benches/results/`` that have figures of a benchmark of
that name, or of all that match it. All else is written by hand.
"""

import argparse
import re
from fnmatch import fnmatch
from pathlib import Path

from benches.peers import front, roofline, tables
from benches.peers.runs import RESULTS, load, settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: The page that says where and how the runs were made.
SPEED = DOCS / "speed.md"

MARKS = re.compile(
    r"(?<=<!-- figures: )(?P<names>[^>]*)( -->\n).*?(?=<!-- end of figures -->)", re.DOTALL
)


def page(path, runs):
    """Return the text of a page with the figures of these runs between its marks."""

    def write(found):
        names = found["names"].split()
        if names == ["runs"]:
            body = about(runs)
        else:
            body = figures(names, runs, "#runs" if path == SPEED else "speed.md#runs")
        return f"{found['names']} -->\n\n{body}\n\n"

    return MARKS.sub(write, path.read_text(encoding="utf-8"))


def figures(names, runs, link):
    """Return the tables of benchmarks that match some names, one for each run."""
    parts = []
    for run_name, run in runs.items():
        found = {
            name: results
            for name, results in run["results"].items()
            if results and any(fnmatch(name, pattern) for pattern in names)
        }
        if found:
            parts += [f"Run [{run_name}]({link}), {settings(run)}:", tables.table(found, run)]
    if not parts:
        raise ValueError(f"no run in {RESULTS} has figures of {' or '.join(names)}")
    return "\n\n".join(parts)


def about(runs):
    """Return the machines, versions, commands and peaks of all runs."""
    machines = {}
    for run in runs.values():
        versions = machines.setdefault(run["machine"], {})
        for name, version in {**run["packages"], "compressrs": compressrs(run)}.items():
            if version:
                versions.setdefault(name, set()).add(version)
    lines = [
        f"**{machine}**: "
        + ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in versions.items())
        + "."
        for machine, versions in machines.items()
    ]
    shell = []
    for run in runs.values():
        first, *others = run["commands"]
        shell += [first, f"# and {len(others)} more like it"] if others else [first]
    lines.append("\n".join(["```sh", *shell, "python -m benches.peers.report", "```"]))
    rows = [
        "| Run | Date | Setting | Copy, GB/s | float32, GFLOP/s | int8, G operations/s |",
        "|---|---|---|---:|---:|---:|",
    ]
    for name, run in runs.items():
        peaks = run["peaks"]
        rows.append(
            f"| {name} | {run['date']} | {settings(run)} | {peaks['copy'] / 1e9:.1f} "
            f"| {2 * peaks['multiply_adds'] / 1e9:.0f} | {2 * peaks['dot_products'] / 1e9:.0f} |"
        )
    return "\n\n".join([*lines, "\n".join(rows)])


def compressrs(run):
    """Return the version of compressrs in a run."""
    return run["configuration"]["compressrs"]


def pages():
    """Return the pages that have figures."""
    return [p for p in sorted(DOCS.glob("*.md")) if MARKS.search(p.read_text(encoding="utf-8"))]


def pictures(runs, folder):
    """Write the pictures of the pages."""
    roofline.draw(runs, folder / "roofline.svg")
    front.draw(runs, folder)


def main():
    parser = argparse.ArgumentParser(
        prog="python -m benches.peers.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--commands", action="store_true", help="print the commands of all runs")
    runs = load()
    if parser.parse_args().commands:
        print("\n".join(command for run in runs.values() for command in run["commands"]))
        return
    for path in pages():
        path.write_text(page(path, runs), encoding="utf-8")
    pictures(runs, DOCS)


if __name__ == "__main__":
    main()

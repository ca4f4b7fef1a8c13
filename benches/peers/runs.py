"""Runs of the benchmarks, as `python -m benches.peers --json` kept them."""

import json
import statistics
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"


def load(folder=RESULTS):
    """Return the runs by name: files, and folders with the parts of a run."""
    runs = {}
    for path in sorted(folder.rglob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        name = path.stem if path.parent == folder else path.parent.name
        runs.setdefault(name, []).append(run)
    return {name: merged(name, parts) for name, parts in runs.items()}


def merged(name, parts):
    """Return the parts of a run as one, with the median of the peaks."""
    first = parts[0]
    if any((p["machine"], settings(p)) != (first["machine"], settings(first)) for p in parts):
        raise ValueError(f"the files in benches/results/{name} are of several machines or settings")
    results = {}
    for part in parts:
        for benchmark, found in part["results"].items():
            results.setdefault(benchmark, []).extend(found)
    peaks = {p: statistics.median(part["peaks"][p] for part in parts) for p in first["peaks"]}
    commands = [part["command"] for part in parts]
    return {**first, "commands": commands, "results": results, "peaks": peaks}


def settings(run):
    """Return the instruction set and the threads of a run."""
    level = run["configuration"]["instruction set"].split()[0]
    threads = int(run["configuration"]["threads"])
    if run["thread_time"]:
        return f"{level}, CPU time of one thread"
    return f"{level}, {threads} thread{'s' * (threads > 1)}"

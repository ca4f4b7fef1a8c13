"""Shared by the quality benchmarks: arguments, intervals, and reproducible plots."""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from compressrs._files import write_atomically

CONFIDENCE = 0.95


def arguments(prog, doc, seeds, plot, spread):
    """Parse the number of seeds, over which a `spread` is computed, and the plot's path."""
    parser = argparse.ArgumentParser(
        prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=seeds, help="default: %(default)s")
    parser.add_argument("--plot", type=Path, default=Path(plot), metavar="FILE")
    parsed = parser.parse_args()
    if parsed.seeds < 2:
        parser.error(f"{spread} needs at least 2 seeds")
    return parsed


def interval(values):
    """Return the half width of the confidence interval of the mean."""
    n = len(values)
    quantile = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)
    return float(quantile * np.std(values, ddof=1) / np.sqrt(n))


def kept(folder, name, make):
    """Return what `make` returns, which is JSON, from a file in a folder if it is there."""
    if folder is None:
        return make()
    path = Path(folder, f"{name}.json")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(make()).encode())
    return json.loads(path.read_text())


def save(figure: Figure, path: Path):
    """Write a plot without a date and with reproducible ids."""
    with matplotlib.rc_context({"svg.hashsalt": "compressrs", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})

"""What the proofs share: arguments, intervals, and plots that are the same for the same results."""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import scipy.stats
from matplotlib.figure import Figure

CONFIDENCE = 0.95


def arguments(prog, doc, seeds, plot, spread):
    """Parse how many seeds to take, for a `spread` over them, and where to plot."""
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
    """Return the half width of the mean's confidence interval."""
    n = len(values)
    quantile = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)
    return float(quantile * np.std(values, ddof=1) / np.sqrt(n))


def save(figure: Figure, path: Path):
    """Write a plot without a date and with ids that do not vary."""
    with matplotlib.rc_context({"svg.hashsalt": "compressrs", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})

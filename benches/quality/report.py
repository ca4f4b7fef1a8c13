"""What the proofs share: intervals, and plots that are the same for the same results."""

from pathlib import Path

import matplotlib
import numpy as np
import scipy.stats
from matplotlib.figure import Figure

CONFIDENCE = 0.95


def interval(values):
    """Return the half width of the mean's confidence interval."""
    n = len(values)
    quantile = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)
    return float(quantile * np.std(values, ddof=1) / np.sqrt(n))


def save(figure: Figure, path: Path):
    """Write a plot without a date and with ids that do not vary."""
    with matplotlib.rc_context({"svg.hashsalt": "compressrs", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})

"""The roofline picture: kernels below the bandwidth and the peaks of the machine they ran on."""

import hashlib
import json
import math
import statistics
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benches.peers import csr_tables

#: Readable on a light and on a dark page.
GREY, COLORS = "#767676", {"multiply_adds": "#3d85c6", "dot_products": "#d1711f"}
NAMES = {"multiply_adds": "float32", "dot_products": "int8"}
#: Inches, so that a screen of 400 pixels shows it at three quarters of this.
SIZE = (5.4, 7.2)
FONT = 8.5


class Dot(NamedTuple):
    """A kernel: operations for each byte, operations a second, and the peak of these."""

    label: str
    intensity: float
    rate: float
    peak: str


def drawn(runs):
    """Return the runs in the picture: the best instruction set of all, all threads."""
    found = [run for run in runs.values() if not run["thread_time"] and is_best(run)]
    threads = max((run["configuration"]["threads"] for run in found), key=int)
    return [run for run in found if run["configuration"]["threads"] == threads]


def is_best(run):
    """Return whether a run used the best instruction set of its machine."""
    level, _, levels = run["configuration"]["instruction set"].partition(" (of ")
    return levels.rstrip(")").endswith(level)


def dots(runs):
    """Return the kernels that runs name, in the order of the runs."""
    found = {}
    for run in drawn(runs):
        for name, results in run["results"].items():
            for result in results:
                label = csr_tables.dot(result) if is_csr(name) else result["dot"]
                if label:
                    found[label] = dot(label, result)
    return list(found.values())


def is_csr(benchmark):
    """Return whether results are those of `csr_real`, whose titles say which product it is."""
    return benchmark.startswith("csr_real")


def dot(label, result):
    """Return a kernel of a result that has bytes and operations."""
    peak = next(name for name in COLORS if name in result["work"])
    done = 2 * result["work"][peak]
    seconds = next(iter(result["seconds"].values()))
    return Dot(label, done / result["work"]["copy"], done / seconds, peak)


def ceilings(runs):
    """Return the median peaks of the runs in the picture."""
    found = [run["peaks"] for run in drawn(runs)]
    return {name: statistics.median(peaks[name] for peaks in found) for name in found[0]}


def digest(runs):
    """Return a digest of all that the picture shows."""
    shown = [dots(runs), ceilings(runs)]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]


def draw(runs, path):
    """Write the picture as SVG, with the digest of its figures."""
    found, peaks = dots(runs), ceilings(runs)
    settings = {
        "svg.hashsalt": "compressrs",
        "svg.fonttype": "none",
        "font.size": FONT,
        "font.family": "sans-serif",
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY
        ),
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=SIZE, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        axes.set(xscale="log", yscale="log")
        axes.set_xlabel("operations for each byte that is read or written")
        axes.set_ylabel("billions of operations a second")
        limits(axes, found, peaks)
        roof(axes, peaks)
        for each in found:
            axes.plot(each.intensity, each.rate / 1e9, "o", ms=4.5, color=COLORS[each.peak])
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        figure.canvas.draw()
        place_labels(figure, axes, found)
        metadata = {"Date": None, "Description": digest(runs)}
        figure.savefig(path, format="svg", metadata=metadata)


def limits(axes, found, peaks):
    """Show all kernels and both peaks."""
    intensities, rates = [d.intensity for d in found], [d.rate / 1e9 for d in found]
    axes.set_xlim(min(intensities) / 3, max(*intensities, 100) * 2)
    axes.set_ylim(min(rates) / 2, 2 * peaks["dot_products"] / 1e9 * 1.8)


def roof(axes, peaks):
    """Draw the bandwidth up to the peaks, and the peaks from there on."""
    left, right = axes.get_xlim()
    for name, color in COLORS.items():
        peak = 2 * peaks[name] / 1e9
        knee = 2 * peaks[name] / peaks["copy"]
        axes.plot([knee, right], [peak, peak], color=color, lw=1.2)
        above = {"xytext": (0, 3), "textcoords": "offset points", "ha": "right"}
        axes.annotate(f"{NAMES[name]}: {peak:,.0f} G/s", (right, peak), color=color, **above)
    bandwidth = peaks["copy"] / 1e9
    axes.plot([left, knee], [left * bandwidth, peak], color=GREY, lw=1.2)
    beside = {"xytext": (-8, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
    axes.annotate(f"copy: {bandwidth:.1f} GB/s", (knee / 2, peak / 2), **beside)


#: Where a label may begin, in points from its dot.
OFFSETS = np.array(
    [(x, y) for x in range(-160, 161, 5) for y in range(-160, 161, 5) if abs(x) > 5], float
)
#: Above this distance a line joins both.
NEAR = 10
#: What covering or crossing a label, a dot, or a line costs, in points of distance.
LABEL, DOT, LINE = 2000, 500, 60
#: How many of the best places are looked at more closely.
CANDIDATES = 300


def place_labels(figure, axes, found):
    """Write each kernel's name near its dot, where it covers as little as possible."""
    scale = 72 / figure.dpi
    low, high = axes.bbox.get_points() * scale

    def points(ends):
        return axes.transData.transform(ends) * scale

    centres = points([(each.intensity, each.rate / 1e9) for each in found])
    dots = boxes(centres, 7, 7)
    # Of the roof, to begin with.
    labels = np.array(
        [text.get_window_extent().get_points().ravel() * scale for text in axes.texts]
    )
    roof = [line.get_xydata() for line in axes.lines if len(line.get_xydata()) == 2]
    lines = np.concatenate([along(*points(ends)) for ends in roof])
    for i in sorted(range(len(found)), key=lambda i: -centres[i, 1]):
        width = 0.58 * FONT * len(found[i].label)
        starts = centres[i] + OFFSETS
        places = boxes(starts + np.sign(OFFSETS) * (width / 2, 0), width, FONT + 2)
        cost = np.hypot(*(OFFSETS * (1, 1.4)).T)
        cost += LABEL * covered(places, labels) + DOT * covered(places, dots)
        cost += LINE * (covered(places, lines) > 0)
        cost[(places[:, :2] < low).any(axis=1) | (places[:, 2:] > high).any(axis=1)] = np.inf
        # What a line to the label would cross, of the best places.
        some = np.argsort(cost, kind="stable")[:CANDIDATES]
        for j in some[abs(OFFSETS[some]).max(axis=1) > NEAR]:
            # The dot's own box is left out.
            join = along(centres[i], starts[j])[4:]
            cost[j] += LABEL * covered(join, labels).any() + DOT * covered(join, dots).any()
        best = some[np.argmin(cost[some])]
        is_far = abs(OFFSETS[best]).max() > NEAR
        labels = np.concatenate([labels, places[best : best + 1]])
        if is_far:
            lines = np.concatenate([lines, along(centres[i], starts[best])])
        label(axes, found[i], OFFSETS[best], is_far)


def label(axes, each, offset, is_far):
    """Write a kernel's name at an offset from its dot, with a line between if it is far."""
    left = offset[0] > 0
    line = {"arrowstyle": "-", "color": GREY, "lw": 0.5, "shrinkA": 0, "shrinkB": 2}
    axes.annotate(
        each.label,
        (each.intensity, each.rate / 1e9),
        offset,
        textcoords="offset points",
        ha="left" if left else "right",
        va="center",
        arrowprops={**line, "relpos": (0 if left else 1, 0.5)} if is_far else None,
    )


def along(start, end):
    """Return small boxes along a line."""
    count = max(2, round(math.dist(start, end) / 2))
    return boxes(start + np.linspace(0, 1, count)[:, None] * (end - start), 2, 2)


def boxes(centres, width, height):
    """Return the corners of boxes of one size."""
    half = np.array([width / 2, height / 2])
    return np.concatenate([centres - half, centres + half], axis=1)


def covered(some, others):
    """Return how many of the other boxes each of some overlaps."""
    a, b = some[:, None], others[None]
    return ((a[..., :2] < b[..., 2:]) & (b[..., :2] < a[..., 2:])).all(axis=2).sum(axis=1)

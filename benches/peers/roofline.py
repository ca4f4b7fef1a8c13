"""The roofline picture: kernels below the bandwidth and the peaks of the machine they ran on."""

import hashlib
import json
import math
import statistics
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure

from benches.peers import csr_tables

#: Readable on a light and on a dark page.
GREY, COLORS = "#767676", {"multiply_adds": "#3d85c6", "dot_products": "#d1711f"}
NAMES = {"multiply_adds": "float32", "dot_products": "int8"}
#: Inches, so that a screen of 400 pixels shows it at three quarters of this.
SIZE = (5.4, 6.4)
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
    threads = max(run["configuration"]["threads"] for run in found)
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


#: Where a label may begin, in points from its dot, nearest first.
OFFSETS = sorted(
    ((dx, dy) for dx in range(-200, 201, 5) for dy in range(-200, 201, 5) if abs(dx) > 5),
    key=lambda offset: (offset[0] ** 2 + 2 * offset[1] ** 2, -offset[0]),
)
#: Above this distance a line joins both.
NEAR = 10


def place_labels(figure, axes, found):
    """Write each kernel's name where it covers nothing, near its dot or with a line to it."""
    scale = 72 / figure.dpi

    def points(x, y):
        return axes.transData.transform((x, y)) * scale

    centres = {each: points(each.intensity, each.rate / 1e9) for each in found}
    # What labels keep off, and what lines to labels do, which may cross the roof.
    taken, crossed = [], [box(*centre, 6, 6) for centre in centres.values()]
    for line in axes.lines:
        if len(ends := line.get_xydata()) == 2:
            taken += along(points(*ends[0]), points(*ends[1]))
    low, high = axes.bbox.get_points() * scale
    for each in sorted(found, key=lambda d: -d.rate):
        centre = centres[each]
        width = 0.56 * FONT * len(each.label)
        for offset in OFFSETS:
            x, y = centre + offset
            place = box(x + math.copysign(width / 2, offset[0]), y, width, FONT + 1)
            line = along(centre, (x, y))[4:] if is_far(offset) else []
            inside = all(low < place[:2]) and all(place[2:] < high)
            free = not any(overlap(place, other) for other in taken + crossed)
            if inside and free and not any(overlap(a, b) for a in line for b in crossed):
                break
        else:
            raise ValueError(f"no place for the label of {each.label}")
        taken += line
        crossed.append(place)
        style = {"arrowstyle": "-", "color": GREY, "lw": 0.5, "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            each.label,
            (each.intensity, each.rate / 1e9),
            offset,
            textcoords="offset points",
            ha="left" if offset[0] > 0 else "right",
            va="center",
            arrowprops={**style, "relpos": (0 if offset[0] > 0 else 1, 0.5)}
            if is_far(offset)
            else None,
        )


def is_far(offset):
    """Return whether a label needs a line to its dot."""
    return max(map(abs, offset)) > NEAR


def along(start, end):
    """Return small boxes along a line."""
    count = max(2, round(math.dist(start, end) / 2))
    return [
        box(*(a + (b - a) * i / count for a, b in zip(start, end, strict=True)), 2, 2)
        for i in range(count)
    ]


def box(x, y, width, height):
    """Return the corners of a box around a point."""
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def overlap(a, b):
    """Return whether two boxes overlap."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]

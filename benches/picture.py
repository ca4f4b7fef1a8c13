"""Draws docs/front.svg, the picture of the front page, from tables of measurements.

python -m benches.picture

The figures are read from README.md (`compressrs demo`), benches/results/ (`python -m benches.peers
adam`) and docs/checkpoints.md (`python -m benches.quality.minilm`), so that the picture says what
the pages say.
"""

from pathlib import Path

from matplotlib.figure import Figure

from benches.peers import report
from benches.quality.report import save

ROOT = Path(__file__).parents[1]
OURS, OTHERS = "#1f5fbf", "#b4bac4"


def table(page, heading):
    """Return the rows of a page's table whose first heading is this one, by first cell."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} "))
    names = cells(lines[start])
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        first, *rest = cells(line)
        rows[first] = dict(zip(names[1:], rest))
    return rows


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def number(text):
    return float(text.replace(",", "").rstrip("%"))


def bars(axes, title, what, rows, log=False):
    """Draw horizontal bars: name, value, what stands beside the bar, whether it is ours."""
    names, values, labels, ours = zip(*rows)
    places = [-i for i in range(len(rows))]
    axes.barh(places, values, color=[OURS if o else OTHERS for o in ours], height=0.66)
    axes.set_yticks(places, names, fontsize=9)
    axes.set_ylim(-4.6, 0.6)
    axes.set_title(title, fontsize=11, fontweight="bold", loc="left", pad=20)
    axes.text(0, 1.04, what, transform=axes.transAxes, fontsize=8.5, color="#555555")
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.minorticks_off()
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
    if log:
        axes.set_xscale("log")
        axes.set_xticks([], [])
        axes.minorticks_off()
    axes.set_xlim(*((0.55, max(values) * 4) if log else (0, max(values) * 1.9)))
    for place, value, label in zip(places, values, labels):
        gap = value * 1.12 if log else value + max(values) * 0.03
        axes.text(gap, place, label, va="center", fontsize=8.5)


def step_times():
    """Return the times of an Adam step over ours, for many weights and for many tensors."""
    found = [r for run in report.load().values() for r in run["results"].get("adam", ())]
    seconds = {result["title"]: result["seconds"] for result in found}
    rows = [("compressrs", 1.0, "1", True)]
    for peer, short in (("Torch fused", "PyTorch"), ("NumPy", "NumPy")):
        for key, name in (
            ("Adam, 50,000,000 elements", "50 million"),
            ("Adam, 200 tensors of 1,000", "200 tensors"),
        ):
            ratio = seconds[key][peer] / seconds[key]["compressrs"]
            rows.append((f"{short}, {name}", ratio, f"{ratio:.3g}", False))
    return rows


def digit_models():
    """Return bytes and accuracy of the demo's models."""
    found = table("README.md", "Model")
    rows = []
    for key, name, ours in (
        ("dense", "dense", False),
        ("sparse, CSR file", "95 % pruned, sparse", True),
        ("student, distilled", "distilled student", True),
    ):
        size = number(found[key]["Bytes on disk"]) / 1000
        accuracy = number(found[key]["Test accuracy"])
        rows.append((name, size, f"{size:.0f} kB, {accuracy:.1f} % right", ours))
    return rows


def checkpoints():
    """Return megabytes and cosines of a compressed sentence encoder."""
    found = table("docs/checkpoints.md", "Recipe")
    lossless = found["lossless"]
    original = number(lossless["MB"]) * number(lossless["Times smaller"])
    rows = [("float32", original, f"{original:.0f} MB", False)]
    for key, name in (
        ("lossless", "lossless"),
        ("int8", "int8"),
        ("int4, groups of 16, GPTQ", "int4, GPTQ"),
    ):
        size, cosine = number(found[key]["MB"]), number(found[key]["16 sentences: mean"])
        same = "all bits" if cosine == 1 else f"cosine {cosine:.4g}"
        rows.append((name, size, f"{size:.0f} MB, {same}", True))
    return rows


def main():
    figure = Figure(figsize=(11.5, 2.4), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.15)
    train, prune, compress = figure.subplots(1, 3)
    bars(train, "Train", "time of an Adam step, logarithmic", step_times(), log=True)
    bars(prune, "Prune and distill", "a digit classifier: bytes on disk", digit_models())
    bars(compress, "Compress", "all-MiniLM-L6-v2: bytes on disk", checkpoints())
    save(figure, ROOT / "docs" / "front.svg")


if __name__ == "__main__":
    main()

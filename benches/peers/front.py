"""The pictures of the front page, which stand side by side where there is space for it.

The figures are those of runs (`python -m benches.peers adam`), and of the tables of README.md
(`compressrs demo`) and docs/checkpoints.md (`python -m benches.quality.minilm`).
"""

from pathlib import Path

from matplotlib.figure import Figure

from benches.quality.report import save

ROOT = Path(__file__).parents[2]
#: Readable on a light and on a dark page.
OURS, OTHERS, TEXT = "#3d85c6", "#a0a6b0", "#767676"
#: Where bars on a logarithmic scale begin, so that 1 is seen.
LOG_START = 0.7


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


def bars(path, title, what, rows, log=False):
    """Draw horizontal bars: name, value, what stands behind the name, whether it is ours."""
    figure = Figure(figsize=(2.4, 2.3), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    for place, (label, value, shown, is_ours) in enumerate(rows):
        axes.barh(-place, value, color=OURS if is_ours else OTHERS, height=0.3)
        style = {"xytext": (0, 6), "textcoords": "offset points", "fontsize": 8, "color": TEXT}
        start = LOG_START if log else 0
        axes.annotate(f"{label}: {shown}", (start, -place), **style)
    if log:
        axes.set_xscale("log")
    axes.set_xlim(LOG_START if log else 0, max(value for _, value, _, _ in rows))
    axes.set_ylim(-4.3, 0.8)
    axes.set_title(title, fontsize=10, fontweight="bold", loc="left", pad=16, color=TEXT)
    axes.text(0, 1.02, what, transform=axes.transAxes, fontsize=8, color=TEXT)
    axes.set_axis_off()
    save(figure, path)


def step_times(runs):
    """Return the times of an Adam step over ours, for many weights and for many tensors."""
    found = [r for run in runs.values() for r in run["results"].get("adam", ())]
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


def draw(runs, folder):
    """Write the pictures."""
    steps = step_times(runs)
    bars(folder / "front_train.svg", "Train", "time of an Adam step, log scale", steps, log=True)
    models = digit_models()
    bars(folder / "front_prune.svg", "Prune and distill", "bytes of a digit classifier", models)
    files = checkpoints()
    bars(folder / "front_compress.svg", "Compress", "bytes of all-MiniLM-L6-v2", files)

"""Tables of the figures of one run, in Markdown."""

from itertools import chain

from benches.peers import csr_tables
from benches.peers.csr_means import mean

#: What binds, as the tables say it.
BINDS = {"copy": "bandwidth", "multiply_adds": "float32", "dot_products": "int8"}


def table(found, run):
    """Return the table of the comparisons of some benchmarks, by name."""
    first, results = next(iter(found)), list(chain(*found.values()))
    if first.startswith("csr_real"):
        return markdown(csr_tables.medians(results, run["peaks"]))
    if first == "csr_crossover":
        return markdown(csr_tables.crossover(results))
    if first.startswith("quantized_products"):
        return markdown(products(results))
    if first == "codec":
        return markdown(coders(results))
    return "\n\n".join(markdown(comparisons(part)) for part in alike(results))


def alike(results):
    """Return the results in groups whose contenders overlap, so that no table is mostly empty."""
    groups = []
    for result in results:
        peers = set(list(result["seconds"])[1:])
        for known, group in groups:
            if peers & known or not peers:
                known |= peers
                group.append(result)
                break
        else:
            groups.append((peers, [result]))
    return [group for _, group in groups]


def comparisons(results):
    """Return a row for each comparison, and a column for each contender."""
    first = next(iter(results[0]["seconds"]))
    peers = dict.fromkeys(name for r in results for name in list(r["seconds"])[1:])
    bound = any(r["binds"] for r in results)
    heads = [first, *(["of the bound"] * bound), *peers]
    rows = [["", *heads]]
    for result in results:
        times = iter(result["seconds"].values())
        our_time = next(times)
        row = [result["title"], shown(our_time)]
        row += [fraction(result)] * bound
        row += [
            ratio(result["seconds"][p] / our_time) if p in result["seconds"] else "" for p in peers
        ]
        rows.append(row)
    return rows


def coders(results):
    """Return sizes and GB/s of coders, a row for each coder and dtype."""
    rows = [["", "Size", "Encoding, GB/s", "Decoding, GB/s"]]
    by_title = {r["title"].partition(" ")[::2]: r for r in results}
    for (what, title), encoding in by_title.items():
        if what != "encode":
            continue
        decoding = by_title["decode", title]
        for name, size in encoding["sizes"].items():
            # Of the bytes that are coded, whatever a coder makes of them.
            data = encoding["work"]["copy"] / (1 + encoding["sizes"]["compressrs"]) / 1e9
            speeds = (f"{data / r['seconds'][name]:.2f}" for r in (encoding, decoding))
            rows.append([f"{title}: {name}", f"{size:.3f}", *speeds])
    return rows


def products(results):
    """Return how many times as fast as NumPy's product in float32 each quantized one is."""
    kernels = list(dict.fromkeys(r["case"]["kernel"] for r in results))
    peers = list(dict.fromkeys(p for r in results for p in r["seconds"] if p.startswith("onnx")))
    cells = {}
    for r in results:
        key, seconds = (tuple(r["case"]["shape"]), r["case"]["rows"]), r["seconds"]
        names = {r["case"]["kernel"]: seconds["compressrs"]}
        names |= {p: seconds[p] for p in peers if p in seconds}
        cells.setdefault(key, {}).update({n: seconds["NumPy"] / t for n, t in names.items()})
    columns = [*kernels, *peers]
    rows = [["Outputs x inputs", "Rows", *columns]]
    for ((outputs, inputs), count), found in cells.items():
        faster = [ratio(found[n]) for n in columns]
        rows.append([f"{outputs:,} x {inputs:,}", f"{count}", *faster])
    all_of = {n: [found[n] for found in cells.values()] for n in columns}
    rows.append(["geometric mean", "", *(ratio(mean(all_of[n])) for n in columns)])
    rows.append(["least", "", *(ratio(min(all_of[n])) for n in columns)])
    return rows


def markdown(rows):
    """Return a table whose first row is the head; all but the first column are figures."""
    head, *body = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("|" + "|".join(f" {c} " if c else " " for c in line) + "|" for line in lines)


def shown(seconds):
    """Return a time with its unit, to three digits."""
    for unit, scale in (("us", 1e6), ("ms", 1e3)):
        if seconds * scale < 999.5:
            return f"{digits(seconds * scale)} {unit}"
    return f"{digits(seconds)} s"


def ratio(value):
    """Return a ratio, to two decimals below 10 and three digits above."""
    return f"{value:.2f}" if value < 10 else digits(value)


def digits(value):
    """Return three digits of a number."""
    return f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:,.0f}"


def fraction(result):
    """Return the fraction of what binds that our time reached."""
    if result["binds"] is None:
        return ""
    return f"{result['fraction']:.2f} {BINDS[result['binds']]}"

"""What the tables and the picture of docs/ take from `csr_real` and `csr_crossover`."""

import json

import numpy as np

from benches.peers.csr_means import PEERS, Cell

PRODUCTS = ("A @ X", "X @ A.T", "A.T @ X", "sddmm")
#: The product and the layer in the roofline picture, and the numbers of columns.
DRAWN = ("X @ A.T", [1536, 384], 0.9)
COLUMNS = (1, 32, 512)


def dot(result):
    """Return the name of a result of `csr_real` in the roofline picture, or None."""
    given = json.loads(result["title"])
    if (given["product"], given["shape"], given["zeros"]) != DRAWN:
        return None
    n = given["columns"]
    return f"CSR, {n} column{'s' * (n > 1)}" if n in COLUMNS else None


def medians(results, peaks):
    """Return medians over shapes, sparsities and columns, a column for each product."""
    cells = [Cell.of(result, peaks) for result in results]
    many = [c for c in cells if c.columns >= 32]
    rows = []
    for zeros in sorted({c.zeros for c in cells}):
        for what, some in (("32 columns and more", many), ("1 column", cells)):
            chosen = [c for c in some if c.zeros == zeros and (some is many or c.columns == 1)]
            rows.append(
                (f"dense NumPy, {zeros:.0%} zeros, {what}", chosen, lambda c: c.times_ours("dense"))
            )
    for name in PEERS:
        chosen = [c for c in cells if name in c.times]
        rows.append((f"{name}, all", chosen, lambda c, name=name: c.times_ours(name)))
    lines = [["Times our time", *PRODUCTS]]
    lines += [[what, *_by_product(some, value)] for what, some, value in rows if some]
    what = "*our fraction of what binds, 32 columns and more*"
    lines.append([what, *_by_product(many, lambda c: c.fraction)])
    return lines


def _by_product(cells, value):
    """Return the median for each product, or nothing where there are no cells.

    A mean would show the few cells in which another process had a CPU while threads spun for it.
    """
    found = ([value(c) for c in cells if c.product == product] for product in PRODUCTS)
    return [f"{np.median(values):.2f}" if values else "" for values in found]


def crossover(results):
    """Return from which sparsity on a sparse layer is faster, and how many times at 90 %."""
    cells = {}
    for result in results:
        given = json.loads(result["title"])
        cells.setdefault(tuple(given["shape"]), {})[given["columns"]] = _first(result["seconds"])
    columns = list(next(iter(cells.values())))
    rows = [["Layer", *(f"{n} column{'s' * (n > 1)}" for n in columns)]]
    rows += [[f"{m} x {k}", *(found[n] for n in columns)] for (m, k), found in cells.items()]
    return rows


def _first(seconds):
    """Return the least sparsity from which on sparse is faster, and the ratio at 90 %."""
    steps = sorted(float(name) for name in seconds if name[0].isdigit())
    slower = [z for z in steps if seconds[str(z)] >= seconds["dense"]]
    faster = [z for z in steps if z > max(slower, default=0)]
    first = f"{faster[0]:.0%}" if faster else "never"
    return f"{first}, {seconds['dense'] / seconds['ours']:.1f}"

"""Geometric means of `csr_real` over its whole grid, beside the targets.

python -m benches.peers.csr_means benches/results/sparse/*.json
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

#: Our time with one thread, where there are several.
ONE_THREAD = "ours, one thread"

FORWARD = ("A @ X", "X @ A.T")

#: Our GFLOP/s as a part of the dense product's, by the fraction of zeros: the geometric mean with
#: 32 columns and more.
OF_DENSE = {0.8: 0.60, 0.9: 0.60, 0.95: 0.45}
#: The same in the worst cell.
WORST_OF_DENSE = 0.35
#: `A.T @ X` and `sddmm`, as a part of that.
OF_FORWARD = 0.7
#: How many times our time the dense product of one column takes.
ONE_COLUMN = {0.8: 1.2, 0.9: 2.2, 0.95: 4.0}
#: How many times our time peers take, geometric means.
PEERS = {"Torch CSR": 2.0, "sparse_dot_mkl": 2.5, "SciPy": 4.0}
#: The best peer's time in the worst cell.
WORST_PEER = 0.95
#: One thread's time, where it is above `LONG` seconds.
THREADS = 1.7
LONG = 100e-6


class Cell(NamedTuple):
    """The figures of one product."""

    product: str
    shape: tuple[int, int]
    zeros: float
    columns: int
    nnz: int
    times: dict[str, float]
    #: What binds, and the fraction of its peak.
    binds: str
    fraction: float
    #: Of the peak of multiply-adds.
    multiply_adds: float

    @classmethod
    def of(cls, result, peaks):
        """Return the cell of a result that `csr_real` kept."""
        given = json.loads(result["title"])
        ours = result["seconds"]["ours"]
        rate = given["nnz"] * given["columns"] / ours
        return cls(
            given["product"],
            tuple(given["shape"]),
            given["zeros"],
            given["columns"],
            given["nnz"],
            result["seconds"],
            result["binds"],
            result["fraction"],
            rate / peaks["multiply_adds"],
        )

    def __str__(self):
        m, k = self.shape
        return f"{self.product} {m}x{k}, {self.zeros:.0%} zeros, {self.columns} columns"

    @property
    def ours(self):
        """Our time in seconds."""
        return self.times["ours"]

    @property
    def gflops(self):
        """Billions of multiplications and additions of stored values a second."""
        return 2 * self.nnz * self.columns / self.ours / 1e9

    @property
    def of_dense(self):
        """The same as a part of the dense product's, whose multiplications are all."""
        m, k = self.shape
        return self.times["dense"] / self.ours * self.nnz / (m * k)

    def times_ours(self, name):
        """How many times our time a contender takes."""
        return self.times[name] / self.ours


def mean(values):
    """Return the geometric mean."""
    return float(np.exp(np.mean(np.log(list(values)))))


def show(what, found, target):
    """Print a figure beside its target."""
    verdict = "met" if found >= target else "MISSED"
    print(f"  {what:58} {found:6.2f}, target {target:.2f}: {verdict}")


def report(cells):
    """Print all means of some cells, and the worst."""
    print("\nGFLOP/s of ours relative to the dense product's, 32 columns and more")
    many = [c for c in cells if c.columns >= 32]
    for product in ("A @ X", "X @ A.T", "A.T @ X", "sddmm"):
        share = 1.0 if product in FORWARD else OF_FORWARD
        for zeros, target in OF_DENSE.items():
            found = [c.of_dense for c in many if (c.product, c.zeros) == (product, zeros)]
            if found:
                show(f"{product}, {zeros:.0%} zeros", mean(found), share * target)
        found = [c for c in many if c.product == product and c.zeros in OF_DENSE]
        if found:
            worst = min(found, key=lambda c: c.of_dense)
            show(f"worst: {worst}", worst.of_dense, share * WORST_OF_DENSE)
    print("\nsddmm relative to X @ A.T, 32 columns and more")
    pairs = _pairs(many)
    if pairs:
        show("geometric mean", mean(a.ours / b.ours for a, b in pairs), OF_FORWARD)
        a, b = min(pairs, key=lambda pair: pair[0].ours / pair[1].ours)
        show(f"worst: {b}", a.ours / b.ours, OF_FORWARD)
    print("\ntimes ours, one column")
    for zeros, target in ONE_COLUMN.items():
        one = [c for c in cells if c.columns == 1 and c.zeros == zeros and c.product in FORWARD]
        if one:
            show(f"dense, {zeros:.0%} zeros", mean(c.times_ours("dense") for c in one), target)
    print("\ntimes ours, whole grid")
    for name, target in PEERS.items():
        found = [c for c in cells if name in c.times]
        if found:
            show(name, mean(c.times_ours(name) for c in found), target)
        for product in dict.fromkeys(c.product for c in found):
            some = [c.times_ours(name) for c in found if c.product == product]
            print(f"    {product:56} {mean(some):6.2f}")
    slow = [(best, c) for c in cells for best in [_best_peer(c)] if best < WORST_PEER]
    with_peers = sum(_best_peer(c) < np.inf for c in cells)
    print(f"\n{len(slow)} of {with_peers} cells below {WORST_PEER} of the best peer")
    for best, cell in sorted(slow, key=lambda pair: pair[0])[:12]:
        print(f"  {best:.2f} {cell}, {cell.ours * 1e6:.1f} us")
    long = [c for c in cells if c.times.get(ONE_THREAD, 0) > LONG]
    if long:
        print(f"\none thread relative to all, where it takes over {LONG * 1e6:.0f} us")
        show("geometric mean", mean(c.times_ours(ONE_THREAD) for c in long), THREADS)
        below = sorted((c.times_ours(ONE_THREAD), c) for c in long)
        below = [(ratio, c) for ratio, c in below if ratio < THREADS]
        print(f"  {len(below)} of {len(long)} cells below {THREADS}")
        for ratio, cell in below[:12]:
            print(f"  {ratio:.2f} {cell}, {cell.ours * 1e6:.1f} us")
    print("\nGFLOP/s, and fractions of the peaks of multiply-adds and of what binds, X @ A.T")
    groups = defaultdict(list)
    for cell in cells:
        if cell.product == "X @ A.T":
            groups[cell.columns].append(cell)
    for columns, some in sorted(groups.items()):
        binds = {c.binds for c in some}
        print(
            f"  {columns:4} columns {mean(c.gflops for c in some):6.1f} GFLOP/s, "
            f"{mean(c.multiply_adds for c in some):.2f} of the multiply-adds, "
            f"{mean(c.fraction for c in some):.2f} of {' or '.join(sorted(binds))}"
        )


def _pairs(cells):
    """Return the forward pass and the sampled product of the same cell."""
    found = {(c.product, c.shape, c.zeros, c.columns): c for c in cells}
    return [
        (found[("X @ A.T", *key)], cell)
        for (product, *key), cell in found.items()
        if product == "sddmm" and ("X @ A.T", *key) in found
    ]


def _best_peer(cell):
    return min((cell.times_ours(name) for name in PEERS if name in cell.times), default=np.inf)


def main():
    parser = argparse.ArgumentParser(
        prog="python -m benches.peers.csr_means",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="JSON")
    cells = []
    for path in parser.parse_args().runs:
        run = json.loads(path.read_text())
        for name, results in run["results"].items():
            if name.startswith("csr_real"):
                cells += [Cell.of(result, run["peaks"]) for result in results]
    if not cells:
        parser.error("no figures of csr_real in these files")
    report(cells)


if __name__ == "__main__":
    main()

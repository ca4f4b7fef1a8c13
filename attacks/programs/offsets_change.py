"""A thread writes row offsets that decrease and lead outside while products follow them."""

from __future__ import annotations

import numpy as np

from attacks.programs._tools import attack, report, writers


def main() -> None:
    """Attack products of CSR and BSR matrices whose indptr is writable."""
    import compressrs as cr

    rng = np.random.default_rng(0)
    w = rng.standard_normal((208, 304)) * (rng.random((208, 304)) < 0.2)
    found = [cr.sparse.CSRMatrix.from_dense(w), cr.sparse.BSRMatrix.from_dense(w, (4, 4))]
    matrices = [type(a)((a.data, a.indices, a.indptr.copy()), a.shape) for a in found]
    good = [a.indptr.copy() for a in matrices]
    x, y = rng.standard_normal((304, 9)), rng.standard_normal((208, 9))

    def change() -> None:
        for a, indptr in zip(matrices, good, strict=True):
            a.indptr[1:-1] = indptr[-2:0:-1]
            a.indptr[5] = 2**31 - 1
            a.indptr[0] = -1
            a.indptr[:] = indptr

    calls = [
        call
        for a in matrices
        for call in (
            lambda a=a: a @ x,
            lambda a=a: a.T @ y,
            lambda a=a: cr.sparse.sddmm(a, y, x.T),
            a.to_dense,
            a.copy,
        )
    ]
    with writers(change):
        counts = attack(*calls)
    for a in matrices:
        np.testing.assert_allclose(a.to_dense(), found[0].to_dense())
    report(counts, done=True)


if __name__ == "__main__":
    main()

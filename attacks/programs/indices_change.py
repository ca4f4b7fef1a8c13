"""A thread writes indices that lead outside while products follow them."""

from __future__ import annotations

import numpy as np

from attacks.programs._tools import attack, report, writers


def main() -> None:
    """Attack products of a CSR matrix whose indices are writable."""
    import compressrs as cr

    rng = np.random.default_rng(0)
    a = cr.sparse.CSRMatrix.from_dense(rng.standard_normal((200, 300)) * (rng.random(300) < 0.3))
    a = cr.sparse.CSRMatrix((a.data, a.indices.copy(), a.indptr.copy()), a.shape)
    good = a.indices.copy()
    x, y = rng.standard_normal((300, 9)), rng.standard_normal((200, 9))

    def change() -> None:
        a.indices[::3] = np.iinfo(a.indices.dtype).max
        a.indices[1::3] = -5
        a.indices[:] = good

    calls = (
        lambda: a @ x,
        lambda: a.T @ y,
        lambda: cr.sparse.sddmm(a, y, x.T),
        a.to_dense,
        a.transpose,
        a.canonical,
        a.copy,
    )
    with writers(change):
        counts = attack(*calls)
    np.testing.assert_allclose(a @ x, a.to_dense() @ x)
    report(counts, done=True)


if __name__ == "__main__":
    main()

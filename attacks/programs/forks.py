"""Forks in the middle of kernels of other threads; children and grandchildren use the pool."""

from __future__ import annotations

import numpy as np

from attacks.programs._tools import attack, in_fork, report, writers


def main() -> None:
    """Fork while threads take steps; each child takes steps of its own, and forks again."""
    import compressrs as cr

    cr.set_num_threads(3)
    n = 300_000  # large enough for the pool
    w, g = np.ones((2, n), np.float32)
    busy = cr.optim.Adam(np.ones(n, np.float32))
    opt = cr.optim.Adam(w)

    def child(depth: int = 1) -> None:
        opt.step(g)
        busy.step(g)
        cr.set_num_threads(2)
        opt.step(g, max_grad_norm=1.0)
        if depth:
            in_fork(lambda: child(depth - 1))

    def fork() -> None:
        in_fork(child)

    with writers(lambda: busy.step(g)):
        counts = attack(fork, lambda: opt.step(g))
    assert np.isfinite(w).all()
    report(counts, done=True, refused=False)


if __name__ == "__main__":
    main()

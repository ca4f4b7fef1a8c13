"""Threads write to weights, gradients and state, and reshape them, while steps are taken."""

from __future__ import annotations

import numpy as np

from attacks.programs._tools import attack, report, writers


def main() -> None:
    """Attack steps of optimizers with state in full precision and in 8 bits."""
    import compressrs as cr

    rng = np.random.default_rng(0)
    w = [rng.standard_normal((300, 400)).astype(np.float32) for _ in range(2)]
    g = [rng.standard_normal(x.shape).astype(np.float32) for x in w]
    optimizers = [cr.optim.Adam(w[:1]), cr.optim.Adam(w[1:], state_dtype="int8")]
    state = optimizers[1].state[0]

    def reshape() -> None:
        for gradient in g:
            gradient.shape = (400, 300)
            gradient.shape = (300, 400)

    def write() -> None:
        g[0][::2] = np.nan
        state["exp_avg"][...] = -128
        state["exp_avg_scale"][...] = np.inf
        g[0][::2] = 1.0

    calls = [
        call
        for i, opt in enumerate(optimizers)
        for call in (
            lambda opt=opt, i=i: opt.step([g[i]], max_grad_norm=1.0),
            lambda opt=opt, i=i: opt.step([g[i]], nonfinite="raise"),
            opt.state_dict,
        )
    ]
    with writers(reshape, write):
        counts = attack(*calls)
    report(counts, done=True)


if __name__ == "__main__":
    main()

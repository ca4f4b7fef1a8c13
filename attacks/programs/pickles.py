"""Pickles of objects with bytes changed: an error of pickle's or ours, never a crash.

Pickles can run any code; only bytes within arrays are changed here, as a bad disk does.
"""

from __future__ import annotations

import pickle

import numpy as np

from attacks.programs._tools import attack, report


def main() -> None:
    """Load pickles of matrices and tensors whose indices or codes are damaged, and use them."""
    import compressrs as cr

    rng = np.random.default_rng(0)
    w = rng.standard_normal((32, 64)).astype(np.float32)
    x = np.ones((64, 3), np.float32)
    csr = cr.sparse.CSRMatrix.from_dense(w * (rng.random(w.shape) < 0.3))
    q = cr.quantize.quantize(w, cr.quantize.Scheme(dtype="nf4", group_size=32, granularity="group"))
    opt = cr.optim.Adam(w, state_dtype="int8")
    opt.step(np.ones_like(w))
    # Each with the bytes that memory safety depends on.
    targets = [
        (csr, csr.indices.tobytes(), lambda a: a @ x),
        (csr, csr.indptr.tobytes(), lambda a: a @ x),
        (q, q.codes.tobytes(), lambda t: t.dequantize()),
        (opt, opt.state[0]["step"].tobytes(), lambda o: o.step(np.ones_like(w))),
    ]

    def damage() -> None:
        found, part, use = targets[int(rng.integers(len(targets)))]
        data = bytearray(pickle.dumps(found))
        start = bytes(data).find(part)
        assert start >= 0
        for _ in range(3):
            data[start + int(rng.integers(len(part)))] = int(rng.integers(256))
        use(pickle.loads(bytes(data)))

    report(attack(damage, least=40), done=True, refused=True)


if __name__ == "__main__":
    main()

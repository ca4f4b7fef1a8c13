"""A thread writes codes that stand for nothing while they are decoded, packed and multiplied."""

from __future__ import annotations

import numpy as np

from attacks.programs._tools import attack, report, writers


def main() -> None:
    """Attack quantized tensors of few levels, whose codes are indices into a table."""
    import compressrs as cr

    rng = np.random.default_rng(0)
    w = rng.standard_normal((128, 128)).astype(np.float32)
    q = cr.quantize
    tensors = [
        q.quantize(w, q.Scheme(dtype="nf4", granularity="group", group_size=32)),
        q.kmeans(w, q.Scheme(dtype="codebook", bits=3)),
        q.quantize(w, q.Scheme(bits=4, symmetric=False)),
    ]
    good = [t.codes.copy() for t in tensors]
    other = rng.integers(0, 256, w.shape).astype(np.uint8)
    x = rng.standard_normal((5, 128)).astype(np.float32)

    def change() -> None:
        for t, codes in zip(tensors, good, strict=True):
            t.codes[...] = other.view(codes.dtype)
            t.codes[...] = codes

    calls = [
        call for t in tensors for call in (t.dequantize, lambda t=t: q.QuantizedMatrix(t).linear(x))
    ]
    with writers(change):
        counts = attack(*calls)
    for t in tensors:
        assert np.isfinite(t.dequantize()).all()
    report(counts, done=True)


if __name__ == "__main__":
    main()

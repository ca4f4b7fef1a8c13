"""Streams against their decoder in plain Python."""

import os
import subprocess
import sys

import numpy as np
import pytest

from compressrs import _core
from tests.reference import codec as reference

WIDTHS = {np.uint8: 1, np.uint16: 2, np.float16: 2, np.float32: 4, np.float64: 8, np.int64: 8}


def arrays():
    rng = np.random.default_rng(0)
    for n in (0, 1, 2, 31, 33, 1000, 1 << 15, (1 << 17) + 3):
        yield np.zeros(n, np.uint8)
        yield rng.integers(0, 256, n).astype(np.uint8)
        yield rng.integers(0, 3, n).astype(np.uint8)
        yield np.minimum(rng.geometric(0.3, n), 255).astype(np.uint8)
        for dtype in (np.float16, np.float32, np.float64):
            yield rng.normal(0, 0.02, min(n, 5000)).astype(dtype)
        yield np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 5e-324] * min(n, 9))
        yield np.arange(min(n, 2000))


@pytest.mark.parametrize("rotate", [False, True])
def test_planes_are_what_the_format_says(rotate):
    for x in arrays():
        raw, width = x.view(np.uint8), WIDTHS[x.dtype.type]
        stream = np.frombuffer(_core.encode_planes(raw, width, rotate), np.uint8)
        assert reference.planes(stream.tolist(), width, rotate) == raw.tobytes()
        out = np.full_like(raw, 7)
        _core.decode_planes(stream, width, rotate, out)
        assert out.tobytes() == raw.tobytes()
        assert stream.size <= raw.size + 16 * width * (1 + x.size // (1 << 17))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("density", [0, 0.01, 0.3, 1])
def test_positions_are_what_the_format_says(dtype, density):
    rng = np.random.default_rng(1)
    for n in (0, 1, 7, 8, 9, 255, 256, 257, 2000):
        x = (rng.integers(1, 256, n) * (rng.random(n) < density)).astype(dtype)
        for gaps in (False, True):
            places, values = _core.split_positions(x, gaps)
            kept = np.frombuffer(values, dtype)
            decode = reference.gaps if gaps else reference.bits
            assert decode(places, kept.tolist(), n) == x.tolist()
            out = np.full_like(x, 3)
            _core.merge_positions(np.frombuffer(places, np.uint8), kept, gaps, out)
            assert (out == x).all()


def test_streams_do_not_depend_on_threads_or_instruction_sets():
    code = (
        "import numpy as np, sys; from compressrs import _core\n"
        "x = np.random.default_rng(0).normal(0, 0.02, 300_000).astype(np.float32)\n"
        "sys.stdout.buffer.write(_core.encode_planes(x.view(np.uint8), 4, True))"
    )
    results = set()
    for level in _core.simd_levels():
        for threads in ("1", "3"):
            env = {**os.environ, "COMPRESSRS_SIMD": level, "COMPRESSRS_NUM_THREADS": threads}
            child = subprocess.run(
                [sys.executable, "-c", code], env=env, capture_output=True, check=True, timeout=60
            )
            results.add(child.stdout)
    assert len(results) == 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda b: _core.encode_planes(b, 3, False), ValueError, "width must be 1, 2, 4 or 8"),
        (lambda b: _core.encode_planes(b[:5], 2, False), ValueError, "data must be elements of 2"),
        (lambda b: _core.encode_planes(b[::2], 1, False), ValueError, "data must be C-contiguous"),
        (lambda b: _core.encode_planes(b.view(np.int8), 1, False), TypeError, "data must have"),
        (lambda b: _core.encode_planes([1], 1, False), TypeError, "data must be a NumPy array"),
        (lambda b: _core.decode_planes(b, 1, False, b), ValueError, "share memory"),
        (lambda b: _core.decode_planes(b, 1, False, np.zeros(8, np.uint8)), ValueError, "damaged"),
        (lambda b: _core.split_positions(b.view(np.int8), True), TypeError, "x must have"),
        (
            lambda b: _core.merge_positions(b, b, False, np.zeros(8, np.uint16)),
            TypeError,
            "values must have",
        ),
        (lambda b: _core.Checksum().update(b.view("i8")), TypeError, "data must have"),
    ],
)
def test_bad_arguments(call, error, message):
    b = np.arange(8, dtype=np.uint8)
    before = b.copy()
    with pytest.raises(error, match=message):
        call(b)
    assert (b == before).all()


def test_checksums_are_xxh3():
    # The values of the reference implementation, xxHash 0.8.
    assert _core.Checksum().digest() == 0x2D06800538D394C2
    one, parts = _core.Checksum(), _core.Checksum()
    data = np.arange(100_000, dtype=np.int64).view(np.uint8)
    one.update(data)
    for part in np.array_split(data, 7):
        parts.update(part)
    assert one.digest() == parts.digest()

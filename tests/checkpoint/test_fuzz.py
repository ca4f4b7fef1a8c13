"""Any streams and descriptions: what is read has its size, or a clear error; never a panic."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from attacks._tools import container, tensor
from compressrs import _core, checkpoint
from compressrs.checkpoint import Recipe, Rule, _coding, _format

RUNS = settings(
    max_examples=150, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

#: What a byte of a file may make this process allocate, besides what it always does.
PER_BYTE, ALWAYS = 255 * 21_846, 1 << 22


@RUNS
@given(st.binary(max_size=300), st.sampled_from([1, 2, 4, 8]), st.booleans(), st.integers(0, 999))
def test_any_bytes_as_a_stream(data, width, rotate, n):
    out = np.full(n * width, 7, np.uint8)
    try:
        _core.decode_planes(np.frombuffer(data, np.uint8), width, rotate, out)
    except ValueError as error:
        assert "damaged" in str(error)
    else:
        # What can be decoded is coded again to the same elements.
        again = np.frombuffer(_core.encode_planes(out, width, rotate), np.uint8)
        other = np.empty_like(out)
        _core.decode_planes(again, width, rotate, other)
        assert np.array_equal(other, out)


@RUNS
@given(
    st.integers(1, 3000), st.integers(0, 2**32 - 1), st.integers(1, 200), st.integers(1, 255),
    st.sampled_from([1, 2, 4, 8]),
)  # fmt: skip
def test_damaged_streams(n, seed, at, flip, width):
    rng = np.random.default_rng(seed)
    data = np.minimum(rng.geometric(0.2, n * width), 255).astype(np.uint8)
    stream = np.frombuffer(_core.encode_planes(data, width, False), np.uint8).copy()
    stream[at % stream.size] ^= flip
    out = np.empty_like(data)
    try:
        _core.decode_planes(stream, width, False, out)
    except ValueError as error:
        assert "damaged" in str(error)


@RUNS
@given(
    st.binary(max_size=64), st.booleans(), st.binary(max_size=64), st.integers(0, 400),
    st.sampled_from([1, 2, 4, 8]),
)  # fmt: skip
def test_any_positions(places, gaps, values, size, width):
    kept = np.frombuffer(values[: len(values) // width * width], f"u{width}")
    out = np.zeros(size, f"u{width}")
    try:
        _core.merge_positions(np.frombuffer(places, np.uint8), kept, gaps, out)
    except ValueError:
        return
    assert np.count_nonzero(out) <= kept.size


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Return the tensors, descriptions and data of a container of all codings."""
    folder = tmp_path_factory.mktemp("good")
    rng = np.random.default_rng(0)
    names = ("planes", "gaps", "quantized", "shifted", "codebook", "nf4")
    arrays = {name: rng.normal(0, 0.02, (24, 16)).astype(np.float32) for name in names}
    arrays["gaps"] *= rng.random((24, 16)) < 0.05
    save_file(arrays, folder / "a.safetensors")
    rules = [
        ("quantized", Rule("int8")),
        ("shifted", Rule("int4", 8, "hqq")),
        ("codebook", Rule("codebook", prune=0.6)),
        ("nf4", Rule("nf4", 8, prune=0.5)),
    ]
    checkpoint.compress(folder / "a.safetensors", folder / "b.safetensors", Recipe(rules=rules))
    data = (folder / "b.safetensors").read_bytes()
    header = _format.parse_header("", data[: 8 + int.from_bytes(data[:8], "little")])
    found = {}
    for entry in header.entries:
        d = json.loads(header.metadata[f"compressrs:{entry.name}"])
        found[entry.name] = d, data[header.start + entry.begin : header.start + entry.end]
    return folder / "c.safetensors", found


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 300), st.just(2**62), st.floats(),
    st.text(max_size=4), st.lists(st.integers(0, 300), max_size=3),
    st.sampled_from([*_coding.CODINGS, "plain", "F64", "BF16", "F8_E4M3", "F4", "U8", "int"]),
    st.lists(st.lists(st.integers(0, 99), max_size=3)),
    st.lists(st.sampled_from(sorted({"gaps", "bits", *sum(_coding.CODINGS.values(), ())}))),
)  # fmt: skip


@RUNS
@given(
    st.sampled_from(["planes", "gaps", "quantized", "shifted", "codebook", "nf4"]),
    st.sampled_from(
        ["dtype", "shape", "coding", "streams", "bytes", "tile", "counts", "same", "entries",
         "codes", "bits", "group_size", "symmetric"]
    ),
    VALUES,
    st.one_of(st.none(), st.tuples(st.integers(0, 10_000), st.integers(1, 255))),
)  # fmt: skip
def test_any_description_and_any_data(good, name, key, value, flip):
    path, found = good
    description, data = found[name]
    if flip is not None:
        damaged = bytearray(data)
        damaged[flip[0] % len(data)] ^= flip[1]
        data = bytes(damaged)
    description = {**description, key: value}
    container(path, {name: tensor(0, len(data))}, {name: description}, data)
    tracemalloc.start()
    try:
        with checkpoint.open(path, verify=False) as c:
            x = c[name]
            assert x.nbytes == c.description(name).size * x.dtype.itemsize
            c.rows(name, 0, min(2, len(x)))
        with checkpoint.open(path) as c:
            c[name], c.quantized(name), c.linear(name)
    except (ValueError, TypeError, KeyError) as error:
        assert name in str(error) or path.name in str(error) or isinstance(error, KeyError), error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < ALWAYS + PER_BYTE * path.stat().st_size

"""Tensors of every dtype, shape and name go through every command."""

import json

import ml_dtypes
import numpy as np
import pytest

from compressrs import checkpoint
from compressrs.checkpoint import Recipe, Rule
from compressrs.checkpoint._format import DTYPES


def entries():
    rng = np.random.default_rng(0)

    def weights(dtype, *shape):
        return rng.normal(0, 0.02, shape).astype(dtype).tobytes()

    for dtype, kind in DTYPES.items():
        data = rng.integers(0, 2, 1024 * kind.bits // 8, np.uint8).tobytes()
        if dtype in ("F32", "F16", "F64"):
            data = weights(kind.numpy, 32, 32)
        yield dtype, dtype, (32, 32), data
    yield "bf16", "BF16", (32, 32), weights(ml_dtypes.bfloat16, 32, 32)
    yield "none", "F32", (0,), b""
    yield "no rows", "F16", (0, 4), b""
    yield "no columns", "F16", (4, 0), b""
    yield "scalar", "F32", (), weights("f4")
    yield "whole", "I64", (), bytes(8)
    for shape in ((1, 1), (100, 1), (1, 100), (2, 3, 4, 5, 6), (64,)):
        yield str(shape), "F32", shape, weights("f4", *shape)
    for name in ("n" * 3000, "имя/../..\x00\n\"'", "", "__metadata", "compressrs:a", "🎉"):
        yield name, "F32", (40, 40), weights("f4", 40, 40)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("dtypes") / "a.safetensors"
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, dtype, shape, part in entries():
        place = [len(data), len(data) + len(part)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": place}
        data += part
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


RULES = [
    Rule(),
    Rule("int8"),
    Rule("int3", 7),
    Rule("nf4", 32),
    Rule("int4", 32, "hqq"),
    Rule("int5", 16, "mse"),
    Rule("codebook", entries=2, prune=0.9),
    Rule(prune=0.5),
    Rule(dtype="float16"),
    Rule("int8", dtype="bfloat16"),
]


@pytest.mark.parametrize("rule", RULES)
def test_every_command(source, tmp_path, rule):
    small, plain = tmp_path / "b.safetensors", tmp_path / "c.safetensors"
    predicted = checkpoint.compress(source, small, Recipe(rule), dry_run=True)
    report = checkpoint.compress(source, small, Recipe(rule))
    assert [row.name for row in predicted.rows] == [row.name for row in report.rows]
    assert checkpoint.verify(small) == len(report.rows)
    assert len(checkpoint.info(small)) == len(report.rows)
    rows = {row["name"]: row for row in checkpoint.diff(source, small)}
    for dtype, kind in DTYPES.items():
        if rule.lossless or not kind.floating:
            assert rows[dtype]["changed"] == 0
    checkpoint.decompress(small, plain)
    assert checkpoint.verify(plain) == len(report.rows)
    if rule.lossless:
        assert plain.read_bytes() == source.read_bytes()


def test_numpy_has_8_bit_floats_as_float32(source, tmp_path):
    only = tmp_path / "a.safetensors"
    data = np.arange(64, dtype=np.uint8)
    head = {"w": {"dtype": "F8_E4M3", "shape": [64], "data_offsets": [0, 64]}}
    text = json.dumps(head).encode()
    only.write_bytes(len(text).to_bytes(8, "little") + text + data.tobytes())
    checkpoint.export(only, tmp_path / "a.npz", "npz")
    expected = data.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(np.load(tmp_path / "a.npz")["w"], expected)
    with pytest.raises(TypeError, match="NumPy has no dtype"):
        checkpoint.export(source, tmp_path / "b.npz", "npz")
    assert not (tmp_path / "b.npz").exists()

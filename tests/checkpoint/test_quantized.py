"""Codes and scales in containers are those of `compressrs.quantize`."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from compressrs import checkpoint, quantize
from compressrs.checkpoint import Recipe, Rule, _plan, _quantized

if not hasattr(quantize, "QuantizedTensor"):
    pytest.skip("needs quantize.QuantizedTensor", allow_module_level=True)

RULES = [
    Rule("int8"),
    Rule("int4", 32),
    Rule("nf4", 64),
    Rule("int4", 24),
    Rule("int4", 32, "hqq"),
    Rule("int5", 32, "mse"),
    Rule("int7", 32, "hqq"),
    Rule("int2", 16),
    Rule("int3", 32, prune=0.5),
    Rule("nf4", 32, "mse"),
    Rule("int8", prune=0.5),
    Rule("int4", 64, prune=0.9),
    Rule("nf4", prune=0.5),
    Rule("int8", dtype="bfloat16"),
]


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return {
        "w": rng.normal(0, 0.02, (300, 128)).astype(np.float32),
        "h": rng.normal(0, 0.02, (100, 2, 64)).astype(np.float16),
        "d": rng.normal(0, 1e-6, (30, 20)),
        "b": rng.normal(0, 0.02, 300).astype(np.float32),
        "z": np.zeros((64, 64), np.float32),
    }


@pytest.mark.parametrize("tile", [None, 4096])
@pytest.mark.parametrize("rule", RULES)
def test_what_is_decoded_is_what_was_quantized(rule, tile, weights, tmp_path, monkeypatch):
    if tile is not None:
        monkeypatch.setattr(_plan, "MAX_TILE", tile)
    save_file(weights, tmp_path / "a.safetensors")
    report = checkpoint.compress(
        tmp_path / "a.safetensors", tmp_path / "b.safetensors", Recipe(rule)
    )
    errors = {row.name: row.error for row in report.rows}
    checkpoint.verify(tmp_path / "b.safetensors")
    with checkpoint.open(tmp_path / "b.safetensors") as c:
        assert (tile is not None) == (len(c.description("w").lengths) > 1)
        for name in ("w", "h", "d"):
            q = c.quantized(name)
            got = c[name]
            # NumPy rounds what is decoded to the dtype of the tensor.
            numbers = q.scheme
            whole = quantize.QuantizedTensor(q.codes, q.scale, q.zero_point, scheme=numbers)
            assert np.array_equal(whole.dequantize().astype(got.dtype), got)
            # Rounded to the dtype first.
            w = weights[name].astype(got.dtype).astype(np.float32)
            if not rule.prunes:
                # Row by row, so that tiles do not show.
                own = _quantized.Quantizer(rule)(w.reshape(len(w), -1))
                assert np.array_equal(own.codes.reshape(w.shape), q.codes)
                assert np.array_equal(own.scale, q.scale)
                most = {"int8": 0.01, "int7": 0.02, "int5": 0.1, "int2": 0.9}.get(
                    rule.quantize, 0.2
                )
                assert errors[name] < most
            elif rule.prune:
                assert (got == 0).mean() >= rule.prune - 0.01
        assert not c["z"].any()
        if rule.dtype is None:
            assert np.array_equal(c["b"], weights["b"])
        with pytest.raises(ValueError, match="must be stored quantized"):
            c.quantized("b")


def test_scales_have_eleven_significant_bits():
    x = np.random.default_rng(0).normal(0, 1, (50, 64)).astype(np.float32)
    scale = _quantized.Quantizer(Rule("int4", 32))(x).scale
    assert np.array_equal(scale, scale.astype(np.float16))
    assert np.allclose(scale, np.abs(x).reshape(50, 2, 32).max(-1) / 7.5, rtol=2**-11)


def test_hqq_is_refused_where_it_cannot_be():
    for rule in ({"quantize": "nf4"}, {"quantize": "int4", "prune": 0.5}, {}):
        with pytest.raises(ValueError, match="method 'hqq' needs"):
            Rule(method="hqq", **rule)

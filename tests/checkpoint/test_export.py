"""What is exported is what other readers make of it."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from compressrs import checkpoint
from compressrs.checkpoint import Recipe, Rule
from compressrs.checkpoint.export import gguf
from compressrs.checkpoint.export.compressed_tensors import pack


def require_quantize():
    from compressrs import quantize

    if not hasattr(quantize, "QuantizedTensor"):
        pytest.skip("needs quantize.QuantizedTensor")


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return {
        "layer.weight": rng.normal(0, 0.02, (64, 96)).astype(np.float32),
        "half.weight": rng.normal(0, 0.02, (32, 64)).astype(np.float16),
        "embed_tokens.weight": rng.normal(0, 0.02, (50, 64)).astype(np.float32),
        "layer.bias": rng.normal(0, 0.02, 64).astype(np.float32),
        "steps": np.arange(7),
    }


@pytest.fixture
def folder(weights, tmp_path):
    path = tmp_path / "source"
    path.mkdir()
    save_file(weights, path / "model.safetensors")
    (path / "config.json").write_text('{"model_type": "test"}')
    return path


def test_npz(plain, arrays, tmp_path):
    checkpoint.export(plain, tmp_path / "a.npz", "npz")
    with np.load(tmp_path / "a.npz") as found:
        assert set(found) == set(arrays)
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype and found[name].tobytes() == array.tobytes()


def test_safetensors(plain, arrays, tmp_path):
    checkpoint.compress(plain, tmp_path / "b.safetensors")
    checkpoint.export(tmp_path / "b.safetensors", tmp_path / "c.safetensors", "safetensors")
    assert (tmp_path / "c.safetensors").read_bytes() == plain.read_bytes()


@pytest.mark.parametrize("bits", [4, 8])
def test_words_are_packed_with_the_first_code_lowest(bits):
    codes = np.random.default_rng(0).integers(-(1 << bits - 1), 1 << bits - 1, (5, 19))
    words = pack(codes.astype(np.int8), bits)
    each = 32 // bits
    for r in range(5):
        for i in range(19):
            word = int(words[r, i // each]) & 0xFFFFFFFF
            stored = word >> (i % each * bits) & ((1 << bits) - 1)
            assert stored - (1 << (bits - 1)) == codes[r, i]


@pytest.mark.parametrize("rule", [Rule("int8"), Rule("int4", 32), Rule("int8", 32)])
def test_compressed_tensors(rule, folder, weights, tmp_path):
    require_quantize()
    small, out = tmp_path / "small", tmp_path / "out"
    checkpoint.compress(folder, small, Recipe(rule, ignore=["embed_tokens.weight"]))
    checkpoint.export(small, out, "compressed-tensors")
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "test"
    about = config["quantization_config"]
    assert about["ignore"] == ["embed_tokens"]
    found = load_file(out / "model.safetensors")
    assert np.array_equal(found["embed_tokens.weight"], weights["embed_tokens.weight"])
    with checkpoint.open(small) as c:
        expected = {name: c[name] for name in c}
    for name in ("layer.weight", "half.weight"):
        scale = found[f"{name}_scale"].astype(np.float32)
        if about["format"] == "int-quantized":
            assert rule == Rule("int8")
            got = found[name] * scale
        else:
            compressor = pytest.importorskip(
                "compressed_tensors.compressors.pack_quantized.helpers"
            )
            import torch

            codes = compressor.unpack_from_int32(
                torch.from_numpy(found[f"{name}_packed"]),
                about["config_groups"]["group_0"]["weights"]["num_bits"],
                torch.Size(found[f"{name}_shape"].tolist()),
            ).numpy()
            got = codes * np.repeat(scale, rule.group_size, axis=1)
        assert np.array_equal(got.astype(expected[name].dtype), expected[name])


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_gguf_blocks(name):
    library = pytest.importorskip("gguf")
    x = np.random.default_rng(0).normal(0, 1, (7, 96)).astype(np.float32)
    x[0, :32] = 0
    kind = getattr(library.GGMLQuantizationType, name.upper())
    blocks = getattr(gguf, name)(x).reshape(7, -1)
    got = library.quants.dequantize(blocks, kind)
    theirs = library.quants.dequantize(library.quants.quantize(x, kind), kind)
    # Theirs rounds half away from zero; otherwise the same.
    assert np.abs(got - x).max() <= np.abs(theirs - x).max() * 1.001
    assert np.mean(got == theirs) > 0.99


def test_gguf_files(folder, weights, tmp_path):
    library = pytest.importorskip("gguf")
    require_quantize()
    checkpoint.compress(
        folder, tmp_path / "small", Recipe(Rule("int8")).with_rule("half.weight=int4,group_size=32")
    )
    checkpoint.export(tmp_path / "small", tmp_path / "a.gguf", "gguf-tensors")
    reader = library.GGUFReader(tmp_path / "a.gguf")
    types = {t.name: t.tensor_type.name for t in reader.tensors}
    assert types == {
        "layer.weight": "Q8_0", "half.weight": "Q4_0", "embed_tokens.weight": "Q8_0",
        "layer.bias": "F32", "steps": "I64",
    }  # fmt: skip
    for t in reader.tensors:
        x = weights[t.name].astype(np.float32)
        got = library.quants.dequantize(t.data, t.tensor_type) if "Q" in types[t.name] else t.data
        assert np.allclose(
            got.reshape(x.shape), x, atol={"Q8_0": 5e-4, "Q4_0": 0.015}.get(types[t.name], 0)
        )


def test_onnx(folder, weights, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    require_quantize()
    checkpoint.compress(folder, tmp_path / "small", Recipe(Rule("int8")))
    checkpoint.export(tmp_path / "small", tmp_path / "a.onnx", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    names = [o.name for o in session.get_outputs()]
    with checkpoint.open(tmp_path / "small") as c:
        for name, got in zip(names, session.run(None, {}), strict=True):
            assert np.array_equal(got.astype(c[name].dtype), c[name]), name
        assert set(names) == set(c)


def test_what_a_format_cannot_hold_is_said(plain, folder, tmp_path):
    for source, to, message in [
        (plain, "zip", "to must be one of"),
        (plain, "compressed-tensors", "all in one way, got 0 ways"),
        (plain, "gguf-tensors", "GGUF has no type"),
    ]:
        with pytest.raises(ValueError, match=message):
            checkpoint.export(source, tmp_path / "out", to)
        assert not (tmp_path / "out").exists()
    (tmp_path / "taken").mkdir()
    with pytest.raises(ValueError, match="must not exist"):
        checkpoint.export(plain, tmp_path / "taken", "npz")

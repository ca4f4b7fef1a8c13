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


#: What is lost of a tensor quantized to int8, one in nf4, one in int8 and pruned, and a codebook.
LOST = {
    "npz": [("quantized",), ("quantized",), ("quantized", "sparse"), ("codebook",)],
    "safetensors": [("quantized",), ("quantized",), ("quantized", "sparse"), ("codebook",)],
    "compressed-tensors": [(), ("quantized",), ("sparse",), ("codebook",)],
    "gguf-tensors": [(), (), ("sparse",), ("codebook",)],
    "onnx": [(), ("quantized",), ("sparse",), ("codebook",)],
}


@pytest.mark.parametrize("to", LOST)
def test_the_report_has_the_sizes_and_what_the_format_has_no_form_for(to, tmp_path):
    if to == "onnx":
        pytest.importorskip("onnx")
    rng = np.random.default_rng(0)
    names = ["int8", "nf4", "pruned", "shared"]
    weights = {f"{name}.weight": rng.normal(0, 0.02, (64, 96)).astype(np.float32) for name in names}
    weights |= {"bias": np.ones(7, np.float32), "half.weight": np.zeros(0, np.float16)}
    source = tmp_path / "source.safetensors"
    save_file(weights | {"z.weight": weights["int8.weight"]}, source)
    rules = {
        "nf4.weight": Rule("nf4"),
        "pruned.weight": Rule("int8", prune=0.5),
        "shared.weight": Rule("codebook"),
    }
    recipe = Recipe(Rule("int8"), rules=rules)
    small, out = tmp_path / "small.safetensors", tmp_path / "out"
    compressed = checkpoint.compress(source, small, recipe)
    target = out / "model.safetensors" if to == "compressed-tensors" else out
    if to == "safetensors":
        out = target = tmp_path / "out.safetensors"
    report = checkpoint.export(small, out, to)
    assert (report.source, report.destination, report.to) == (str(small), str(out), to)
    assert report.before == small.stat().st_size == compressed.after
    assert report.after == target.stat().st_size
    assert report.ratio == report.before / report.after
    rows = {row.name: row for row in report.rows}
    with checkpoint.open(small) as c:
        assert [*rows] == [*c]
        assert all(row.before == c.nbytes(name) for name, row in rows.items())
    # Headers, alignment, and the archive's own are the rest.
    assert report.after - 200 * len(rows) - 600 < sum(row.after for row in report.rows)
    assert sum(row.after for row in report.rows) < report.after
    assert [rows[f"{name}.weight"].lost for name in names] == LOST[to]
    # The one of the two with the same bytes that has no streams of its own.
    assert rows["z.weight"].lost == rows["int8.weight"].lost
    assert {rows["z.weight"].coding, rows["int8.weight"].coding} == {"quantized", "shared"}
    assert [rows[name].lost for name in ("bias", "half.weight")] == [(), ()]
    assert report.lost == [row for row in report.rows if row.lost]
    for row in report.rows:
        dense = {"F16": 2, "F32": 4}[row.dtype] * int(np.prod(row.shape))
        kept = "quantized" not in row.lost and row.coding in ("quantized", "shared")
        assert row.after < dense / 3.5 if kept else row.after == dense
    parsed = json.loads(report.to_json())
    assert parsed["after"] == report.after and parsed["ratio"] == report.ratio
    assert {row["name"]: tuple(row["lost"]) for row in parsed["rows"]} == {
        name: row.lost for name, row in rows.items()
    }


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

"""Models and layers are made from compressed files in the form in which these store weights."""

import numpy as np
import pytest

import compressrs as cr
from compressrs import checkpoint
from compressrs.checkpoint import Recipe, Rule
from compressrs.nn import Linear, QuantizedLinear, SparseLinear


@pytest.fixture
def model():
    return cr.nn.Sequential(
        Linear(64, 96, rng=0),
        cr.nn.ReLU(),
        cr.nn.Residual(Linear(96, 96, rng=1), cr.nn.LayerNorm(96)),
        Linear(96, 8, rng=2, bias=False),
    )


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(0, 1, (40, 64)).astype(np.float32)


def compressed(model, tmp_path, recipe, calibration=None):
    plain, small = tmp_path / "model.safetensors", tmp_path / "small.safetensors"
    model.save(plain)
    checkpoint.compress(plain, small, recipe, calibration=calibration)
    return plain, small


def kinds(model):
    residual = list(model.children().values())[2]
    layers = [*model.children().values(), *residual.children()["body"].children().values()]
    return [type(layer) for layer in layers if type(layer).__name__.endswith("Linear")]


def test_lossless_files_hold_the_model(model, x, tmp_path):
    plain, small = compressed(model, tmp_path, Recipe())
    loaded = cr.nn.load(small)
    assert kinds(loaded) == kinds(model) == 3 * [Linear]
    assert np.array_equal(loaded(x), model(x))
    other = cr.nn.load(plain)
    other.params["0"]["weight"][...] = 0
    other.load(small)
    assert np.array_equal(other(x), model(x))
    checkpoint.decompress(small, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == plain.read_bytes()


@pytest.mark.parametrize(
    ("rule", "kind", "most"),
    [
        (Rule("int8"), QuantizedLinear, 0.02),
        (Rule("int4", 32, "hqq"), QuantizedLinear, 0.2),
        (Rule("int8", dtype="bfloat16"), QuantizedLinear, 0.02),
        (Rule(prune=0.9), SparseLinear, 1.0),
        (Rule(prune=0.5), SparseLinear, 1.0),
        (Rule(dtype="float16"), Linear, 0.001),
        (Rule("codebook", entries=64), Linear, 0.1),
    ],
)
def test_layers_have_the_form_of_their_streams(model, x, tmp_path, rule, kind, most, monkeypatch):
    recipe = Recipe(rules=[("re:.*weight", rule)], ignore=["2.body.1.weight"])
    plain, small = compressed(model, tmp_path, recipe)
    # What has streams of its own is never decoded as a whole.
    if kind is not Linear:
        get = checkpoint.Checkpoint.__getitem__

        def refuse(self, name):
            assert len(self.shape(name)) < 2, f"{name} is decoded dense"
            return get(self, name)

        monkeypatch.setattr(checkpoint.Checkpoint, "__getitem__", refuse)
    loaded = cr.nn.load(small)
    with checkpoint.open(small) as c:
        layer = c.linear("0")
        assert type(layer) is kind and c.linear("3").bias is None
    monkeypatch.undo()
    assert kinds(loaded) == 3 * [kind]
    # Decoded as a whole, and rounded to the dtype, the weights give nearly the same products.
    dense = cr.nn.load(plain)
    dense.load(small)
    near = 1e-4 if rule.dtype is None else 0.02
    assert np.allclose(loaded(x), dense(x), atol=near)
    assert np.allclose(layer(x), dense.children()["0"](x), atol=near)
    assert np.linalg.norm(loaded(x) - model(x)) < most * np.linalg.norm(model(x))
    # What is decompressed is whole as well: its checksum is that of its content.
    checkpoint.decompress(small, tmp_path / "again.safetensors")
    if rule.dtype is None:
        assert np.array_equal(cr.nn.load(tmp_path / "again.safetensors")(x), dense(x))


def test_scaled_inputs_are_those_of_the_layer(model, x, tmp_path):
    statistics = cr.prune.InputStatistics(64, gram=True)
    statistics.update(x * np.geomspace(0.1, 10, 64, dtype=np.float32))
    recipe = Recipe(rules=[("0.weight", Rule("int4", 32, "awq"))])
    _, small = compressed(model, tmp_path, recipe, {"0": statistics})
    loaded = cr.nn.load(small)
    layer = loaded.children()["0"]
    assert "input_scale" in layer.state_dict()
    dense = cr.nn.load(tmp_path / "model.safetensors")
    dense.load(small)
    assert np.allclose(loaded(x), dense(x), atol=1e-4)


def test_double_precision_stays(x, tmp_path):
    model = cr.nn.Sequential(Linear(64, 8, rng=0, dtype=np.float64))
    _, small = compressed(model, tmp_path, Recipe(Rule("int8")))
    loaded = cr.nn.load(small)
    assert loaded(x.astype(np.float64)).dtype == np.float64


def test_what_is_no_model_is_refused(tmp_path):
    from safetensors.numpy import save_file

    plain, small = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    arrays = {"w": np.ones((500, 3), np.float32), "v": np.ones(3, np.float32)}
    save_file(arrays, plain, metadata={"format": "pt"})
    checkpoint.compress(plain, small)
    for path in (plain, small):
        with pytest.raises(ValueError, match="must have format"):
            cr.nn.load(path)
    with checkpoint.open(small) as c:
        for name, error in (("w", KeyError), ("none", KeyError)):
            with pytest.raises(error):
                c.linear(name)
    save_file({"a.weight": np.ones(600, np.float32)}, plain)
    with checkpoint.open(plain) as c, pytest.raises(ValueError, match="must be a matrix"):
        c.linear("a")


def opened(arrays, tmp_path):
    from safetensors.numpy import save_file

    save_file(arrays, tmp_path / "plain.safetensors")
    return checkpoint.open(tmp_path / "plain.safetensors")


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64", "bool", "complex64"])
def test_weights_and_biases_that_are_no_floats_are_refused(dtype, tmp_path):
    w = np.arange(16).reshape(4, 4)
    floats = np.ones(4, np.float32)
    c = opened({"a.weight": w.astype(dtype), "a.weight_scale": floats}, tmp_path)
    with pytest.raises(ValueError, match=r"'a\.weight' is of .*c\['a\.weight_scale'\]"):
        c.linear("a")
    c = opened({"a.weight": w.astype("f4"), "a.bias": w[0].astype(dtype)}, tmp_path)
    with pytest.raises(ValueError, match=r"'a\.bias' is of "):
        c.linear("a")
    c = opened({"a.weight": w.astype(dtype)}, tmp_path)
    with pytest.raises(ValueError, match="must be a matrix of floats"):
        c.csr("a.weight")


def test_floats_with_a_scale_beside_them_are_refused(tmp_path):
    w = np.ones((4, 4), np.float32)
    for scale in ("a.weight_scale", "a.weight_scale_inv"):
        c = opened({"a.weight": w, scale: w[0].copy()}, tmp_path)
        with pytest.raises(ValueError, match=f"with the scale '{scale}'"):
            c.linear("a")


def test_where_a_weight_is_instead_is_said(tmp_path):
    w = np.ones((4, 4), np.float32)
    words = np.ones((4, 4), np.int32)
    c = opened({"a.weight": w, "b.weight_packed": words, "c.qweight": words}, tmp_path)
    for name, said in (
        ("a.weight", "name the layer, 'a', without '.weight'"),
        ("b", "packed, as 'b.weight_packed'"),
        ("c", "packed, as 'c.qweight'"),
        ("d", "no tensor 'd.weight'"),
    ):
        with pytest.raises(KeyError, match=said):
            c.linear(name)


def test_weights_of_int8_that_were_exported_are_read(tmp_path):
    from safetensors.numpy import save_file

    w = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    (tmp_path / "a").mkdir()
    save_file({"a.weight": w, "a.bias": w[:, 0].copy()}, tmp_path / "a" / "model.safetensors")
    recipe = Recipe(rules=[("a.weight", Rule("int8"))])
    checkpoint.compress(tmp_path / "a", tmp_path / "b", recipe)
    checkpoint.export(tmp_path / "b", tmp_path / "c", "compressed-tensors")
    with checkpoint.open(tmp_path / "b") as b, checkpoint.open(tmp_path / "c") as c:
        expected, layer = b.linear("a"), c.linear("a")
        assert type(layer) is QuantizedLinear
        assert layer(w).tobytes() == expected(w).tobytes()
    config = tmp_path / "c" / "config.json"
    for old, new in (
        ('"int-quantized"', '"float-quantized"'),
        ('"symmetric": true', '"symmetric": false'),
        ('"num_bits": 8', '"num_bits": 4'),
        ('"config_groups"', '"groups"'),
        ("{", "["),
    ):
        text = config.read_text()
        config.write_text(text.replace(old, new))
        with checkpoint.open(tmp_path / "c") as c, pytest.raises(ValueError, match="is of I8"):
            c.linear("a")
        config.write_text(text)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("bias", [True, False])
def test_pruned_and_quantized_weights_stay_both(bits, bias, tmp_path):
    layer = Linear(512, 256, rng=0, bias=bias)
    rule = Rule(f"int{bits}", prune=0.95)
    recipe = Recipe(rules=[("0.weight", rule)])
    plain, small = compressed(cr.nn.Sequential(layer), tmp_path, recipe)
    dense = cr.nn.load(plain)
    dense.load(small)
    x = np.random.default_rng(0).standard_normal((7, 512)).astype(np.float32)
    with checkpoint.open(small) as c:
        found = c.linear("0")
        codes = c.quantized("0.weight")
    for made in (found, cr.nn.load(small)[0]):
        assert type(made) is cr.nn.QuantizedSparseLinear
        assert np.array_equal(made.weight.to_dense(), dense[0].weight)
        assert made.weight.nnz == np.count_nonzero(codes.codes)
        assert made.nbytes < codes.nbytes + (0 if made.bias is None else made.bias.nbytes)
        assert np.allclose(made(x), dense(x), atol=1e-5)


def test_where_indices_take_more_than_zeros_codes_stay_dense(tmp_path):
    # Codes of two bits are mostly 0, but an index takes 16 times as much.
    model = cr.nn.Sequential(Linear(512, 256, rng=0), Linear(256, 512, rng=0, dtype=np.float64))
    rules = [("0.weight", Rule("int2")), ("1.weight", Rule("int8", prune=0.95))]
    _, small = compressed(model, tmp_path, Recipe(rules=rules))
    with checkpoint.open(small) as c:
        assert type(c.linear("0")) is QuantizedLinear
        # Products of sparse codes are in float32.
        assert type(c.linear("1")) is QuantizedLinear


def test_checkpoints_are_named_where_they_are_read(tmp_path):
    opened({"a.weight": np.ones((4, 4), np.float32)}, tmp_path)
    for path in (tmp_path, tmp_path / "plain.safetensors"):
        with pytest.raises((ValueError, IsADirectoryError), match=r"compressrs\.checkpoint\.open"):
            cr.nn.load(path)

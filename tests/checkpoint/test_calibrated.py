"""GPTQ and AWQ with statistics of inputs are those of `compressrs.quantize`."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from compressrs import checkpoint, prune, quantize
from compressrs.checkpoint import Recipe, Rule, _plan
from compressrs.cli import main

ROWS = 400


def inputs(features, seed=0):
    """Return inputs some of which are much larger than others, and correlated."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((ROWS, 8)) @ rng.standard_normal((8, features))
    return (x + 0.3 * rng.standard_normal(x.shape)) * np.exp(rng.standard_normal(features))


def statistics(features, seed=0):
    found = prune.InputStatistics(features, gram=True)
    found.update(inputs(features, seed))
    return found


@pytest.fixture
def weights():
    rng = np.random.default_rng(1)
    return {
        "a.weight": rng.normal(0, 0.02, (200, 64)).astype(np.float32),
        "b.weight": rng.normal(0, 0.02, (60, 96)).astype(np.float16),
        "embed.weight": rng.normal(0, 0.02, (300, 32)).astype(np.float32),
        "a.bias": rng.normal(0, 0.02, 200).astype(np.float32),
    }


@pytest.fixture
def calibration():
    return {"a": statistics(64), "b.weight": statistics(96, 1)}


@pytest.fixture
def path(weights, tmp_path):
    save_file(weights, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def output_error(w, got, x):
    return np.linalg.norm(x @ (got.astype(float) - w.astype(float)).T)


@pytest.mark.parametrize("tile", [None, 2048])
@pytest.mark.parametrize("method", ["gptq", "awq"])
@pytest.mark.parametrize("code", ["int4", "int3", "nf4"])
def test_outputs_change_less_than_by_rounding(
    path, weights, calibration, method, code, tile, tmp_path, monkeypatch
):
    if tile is not None:
        monkeypatch.setattr(_plan, "MAX_TILE", tile)
    found = {}
    for name in ("rtn", method):
        recipe = Recipe(Rule(code, 32, name), ignore=["embed.weight"])
        out = tmp_path / f"{name}.safetensors"
        checkpoint.compress(path, out, recipe, calibration=calibration)
        checkpoint.verify(out)
        with checkpoint.open(out) as c:
            found[name] = {k: c[k] for k in weights}
            if name == method:
                assert (tile is not None) == (len(c.description("a.weight").lengths) > 1)
                q, scale = c.quantized("a.weight"), c.input_scale("a.weight")
                assert (scale is None) == (method == "gptq")
                decoded = q.dequantize() if scale is None else q.dequantize() / scale
                assert np.array_equal(decoded, c["a.weight"])
    for name, x in (("a.weight", inputs(64)), ("b.weight", inputs(96, 1))):
        before = output_error(weights[name], found["rtn"][name], x)
        assert output_error(weights[name], found[method][name], x) < 0.9 * before
    for name in ("embed.weight", "a.bias"):
        assert np.array_equal(found[method][name], weights[name])


def test_they_are_those_of_the_functions(path, weights, calibration, tmp_path):
    w, kind = weights["a.weight"], quantize.Scheme(4, granularity="group", group_size=32)
    out = tmp_path / "b.safetensors"
    for method in ("gptq", "awq"):
        recipe = Recipe(rules=[("a.weight", Rule("int4", 32, method))])
        checkpoint.compress(path, out, recipe, calibration=calibration)
        with checkpoint.open(out) as c:
            q, scale = c.quantized("a.weight"), c.input_scale("a.weight")
        if method == "gptq":
            expected = quantize.gptq(
                w, calibration["a"], kind, scale=q.scale, act_order=True, static_groups=True
            )
            assert np.array_equal(q.codes, expected.codes)
        else:
            expected, expected_scale = quantize.awq(w, calibration["a"], kind)
            assert np.array_equal(scale, expected_scale)
            assert np.allclose(q.scale, expected.scale, rtol=2**-11)
            assert np.abs(q.codes.astype(int) - expected.codes).max() <= 1


def test_statistics_of_a_file_are_those_in_memory(path, calibration, tmp_path):
    recipe = Recipe(Rule("int4", 32, "gptq"), ignore=["embed.weight"])
    given, file, toml = (tmp_path / name for name in ("1.safetensors", "2.safetensors", "r.toml"))
    checkpoint.compress(path, given, recipe, calibration=calibration)
    prune.save_statistics(tmp_path / "calibration.safetensors", calibration)
    options = ["--quantize", "int4", "--group-size", "32", "--method", "gptq", "--ignore",
               "embed.weight", "--calibration", tmp_path / "calibration.safetensors",
               "--save-recipe", toml]  # fmt: skip
    assert main(["compress", *map(str, (path, "-o", file, *options))]) == 0
    assert file.read_bytes() == given.read_bytes()
    again = tmp_path / "3.safetensors"
    assert main(["compress", *map(str, (path, "-o", again, "--recipe", toml))]) == 0
    assert again.read_bytes() == given.read_bytes()
    # A path in a recipe is relative to it.
    toml.write_text(toml.read_text().replace(f"{tmp_path}/", ""))
    assert Recipe.load(toml).calibration == str(tmp_path / "calibration.safetensors")
    checkpoint.compress(path, again, Recipe.load(toml))
    assert again.read_bytes() == given.read_bytes()


def test_tied_tensors_of_shards_have_one_statistics(weights, calibration, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a.weight": weights["a.weight"]}, folder / "1.safetensors")
    tied = {"tied.weight": weights["a.weight"], "a.bias": weights["a.bias"]}
    save_file(tied, folder / "2.safetensors")
    recipe = Recipe(Rule("int4", 32, "gptq"))
    checkpoint.compress(folder, tmp_path / "out", recipe, calibration=calibration)
    with checkpoint.open(tmp_path / "out") as c:
        assert c.is_alias("tied.weight") and not c.is_alias("a.weight")
        assert np.array_equal(c["tied.weight"], c["a.weight"])


def test_resumed_runs_have_the_same_statistics(path, calibration, tmp_path, monkeypatch):
    recipe = Recipe(Rule("int4", 32, "awq"), ignore=["embed.weight"])
    whole, out = tmp_path / "whole.safetensors", tmp_path / "out.safetensors"
    checkpoint.compress(path, whole, recipe, calibration=calibration)
    add, left = checkpoint.compressing.Shard.add, 2

    def end(self, *arguments):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return add(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint.compressing.Shard, "add", end)
        checkpoint.compress(path, out, recipe, calibration=calibration)
    other = {**calibration, "a": statistics(64, 5)}
    with pytest.raises(ValueError, match="had another source, recipe"):
        checkpoint.compress(path, out, recipe, calibration=other, resume=True)
    checkpoint.compress(path, out, recipe, calibration=calibration, resume=True)
    assert out.read_bytes() == whole.read_bytes()


def test_what_calibration_lacks_is_said(path, calibration, tmp_path):
    out = tmp_path / "b.safetensors"
    recipe, rule = Recipe(Rule("int4", 32, "gptq")), Rule("int4", 32, "gptq")
    small = Recipe(rules=[("a.weight", rule)])
    norms = prune.InputStatistics(64)
    norms.update(inputs(64))
    for given, chosen, message in [
        (None, recipe, "calibration must be given for the methods gptq and awq"),
        (calibration, recipe, "calibration must have statistics of 'embed.weight'"),
        ({"a": statistics(32)}, small, "calibration must have 64 inputs for 'a.weight', got 32"),
        ({"a": norms}, small, "must have seen inputs with gram=True"),
        ({}, small, "must hold the statistics of a layer"),
        ({"a": 3}, small, r"calibration\['a'\] must be InputStatistics, got int"),
        (path, small, "must have compressrs 'InputStatistics' in its metadata to be loaded"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            checkpoint.compress(path, out, chosen, calibration=given)
        assert not out.exists()
    with pytest.raises(ValueError, match="takes a memory_limit of"):
        checkpoint.compress(
            path, out, small, calibration=calibration, memory_limit=_plan.MIN_MEMORY
        )
    for method in ("gptq", "awq"):
        with pytest.raises(ValueError, match=f"method '{method}' needs quantize to be"):
            Rule("codebook", method=method)
        with pytest.raises(ValueError, match=f"method '{method}' needs quantize to be"):
            Rule("int4", method=method, prune=0.5)


def test_files_of_statistics_round_trip(calibration, tmp_path):
    path = tmp_path / "c.safetensors"
    norms = prune.InputStatistics(3)
    given = {**calibration, "same": calibration["a"], "norms": norms, "имя": statistics(5)}
    prune.save_statistics(path, given)
    size = sum(each._sums.nbytes for each in given.values()) - calibration["a"]._sums.nbytes
    assert path.stat().st_size < size + 4096
    found = prune.load_statistics(path)
    assert list(found) == list(given)
    for name, each in given.items():
        assert found[name].count == each.count and found[name].features == each.features
        assert np.array_equal(found[name]._sums, each._sums)
    assert found["same"] is found["a"]
    found["a"].update(inputs(64))
    assert found["a"].count == 2 * ROWS
    data = bytearray(path.read_bytes())
    for at in (9, 200, len(data) // 2, len(data) - 1):
        data[at] ^= 1
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"c\.safetensors"):
            prune.load_statistics(path)
        with pytest.raises(ValueError, match=r"c\.safetensors"):
            checkpoint._calibration.Calibration(path)
        data[at] ^= 1

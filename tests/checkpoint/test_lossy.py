"""What is pruned, rounded or shared decodes to what NumPy computes."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import compressrs as cr
from compressrs import checkpoint
from compressrs.checkpoint import Recipe, Rule, _codebook, _plan


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return {
        "a.weight": rng.normal(0, 0.02, (120, 64)).astype(np.float32),
        "a.bias": rng.normal(0, 0.02, 120).astype(np.float32),
        "b.weight": rng.normal(0, 0.02, (40, 8, 4)).astype(np.float16),
        "c.weight": rng.normal(0, 0.02, (50, 60)),
        "steps": np.arange(400),
        "empty": np.zeros((0, 4), np.float32),
    }


@pytest.fixture
def path(weights, tmp_path):
    save_file(weights, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def decoded(path, recipe, tile=None, monkeypatch=None):
    if tile is not None:
        monkeypatch.setattr(_plan, "MAX_TILE", tile)
    out = path.parent / "b.safetensors"
    report = checkpoint.compress(path, out, recipe)
    checkpoint.verify(out)
    with checkpoint.open(out) as c:
        return dict(c.items()), {row.name: row for row in report.rows}


def pruned(w, sparsity):
    """Return weights without the smallest, exactly as many; of equal ones the first go."""
    order = np.argsort(np.abs(w).ravel(), kind="stable")
    found = w.copy()
    found.reshape(-1)[order[: round(sparsity * w.size)]] = 0
    return found


@pytest.mark.parametrize("tile", [None, 1000])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.73, 0.95])
def test_pruning_is_that_of_the_whole_tensor(path, weights, sparsity, tile, monkeypatch):
    rng = np.random.default_rng(1)
    weights["signs"] = np.sign(rng.standard_normal((101, 70))).astype(np.float32)
    weights["few"] = rng.integers(-2, 3, (101, 70)).astype(np.float16)
    save_file(weights, path)
    found, rows = decoded(path, Recipe(Rule(prune=sparsity)), tile, monkeypatch)
    for name, w in weights.items():
        if w.ndim >= 2 and w.size:
            if tile is not None and w.dtype == np.float64:
                # There ranks are those of single precision.
                assert (found[name] == 0).sum() == round(sparsity * w.size)
                continue
            assert np.array_equal(found[name], pruned(w, sparsity))
            lost = np.linalg.norm(found[name].astype(float) - w) / np.linalg.norm(w.astype(float))
            assert rows[name].error == pytest.approx(lost, rel=1e-4)
        else:
            assert found[name].tobytes() == w.tobytes()


def test_one_weight_at_least_stays(tmp_path):
    save_file({"w": np.ones((1, 1), np.float32)}, tmp_path / "a.safetensors")
    found, _ = decoded(tmp_path / "a.safetensors", Recipe(Rule(prune=0.99)))
    assert found["w"] == 1


def test_patterns(path, weights):
    found, _ = decoded(path, Recipe(Rule(pattern="2:4")))
    for name in ("a.weight", "b.weight", "c.weight"):
        rows = weights[name].reshape(len(weights[name]), -1)
        expected = np.where(cr.prune.nm_mask(rows, 2, 4), rows, 0)
        assert np.array_equal(found[name].reshape(rows.shape), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtypes(path, weights, dtype):
    found, rows = decoded(path, Recipe(Rule(dtype=dtype), ignore=["c.weight"]))
    kind = np.dtype(np.float16 if dtype == "float16" else ml_dtypes.bfloat16)
    for name, w in weights.items():
        expected = w.astype(kind) if w.dtype.kind == "f" and name != "c.weight" else w
        assert found[name].dtype == expected.dtype
        assert found[name].tobytes() == expected.tobytes()
    assert rows["a.weight"].error < 0.01 and rows["c.weight"].error is None


@pytest.mark.parametrize("prune", [None, 0.6, 0.95])
@pytest.mark.parametrize("entries", [2, 16, 200, 256])
def test_codebooks(path, weights, entries, prune):
    found, _ = decoded(path, Recipe(Rule(quantize="codebook", entries=entries, prune=prune)))
    for name in ("a.weight", "b.weight", "c.weight"):
        values = np.unique(found[name])
        assert len(values) <= entries
        if prune:
            assert (found[name] == 0).mean() >= prune - 0.01
        # No weight is nearer to another value.
        w, got = weights[name].astype(np.float32), found[name].astype(np.float32)
        kept = got != 0 if prune else np.ones(w.shape, bool)
        others = values[values != 0] if prune else values
        if others.size:
            nearest = np.abs(w[kept][:, None] - others.astype(np.float32)).min(1)
            assert np.allclose(np.abs(w - got)[kept], nearest, atol=1e-6)
    assert found["a.bias"].tobytes() == weights["a.bias"].tobytes()


def test_k_means_is_a_fixed_point_of_lloyd():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-1, 0.1, 1000), rng.normal(2, 0.3, 500)]).astype(np.float32)
    for k in (1, 2, 7, 32):
        c = _codebook.levels(x, k)
        assert len(c) <= k and (np.diff(c) > 0).all()
        nearest = np.abs(x[:, None] - c).argmin(1)
        for i in range(len(c)):
            if (nearest == i).any():
                assert c[i] == pytest.approx(x[nearest == i].astype(float).mean(), abs=2e-3)
    assert np.array_equal(_codebook.levels(np.array([3, 3, 3], np.float32), 4), [3])
    assert _codebook.levels(np.zeros(0, np.float32), 4).size == 0


def test_values_that_are_few_stay_the_same(tmp_path):
    rng = np.random.default_rng(0)
    few = np.array([-1.5, -1.4999, 0.3, 0.31, 7], np.float32)
    x = few[rng.integers(0, 5, (100, 50))] * (rng.random((100, 50)) < 0.1)
    for name, w in (("sparse", x.astype(np.float32)), ("dense", few[rng.integers(0, 5, (90, 7))])):
        save_file({"w": w}, tmp_path / f"{name}.safetensors")
        out = tmp_path / "b.safetensors"
        checkpoint.compress(
            tmp_path / f"{name}.safetensors", out, Recipe(Rule("codebook", entries=6))
        )
        with checkpoint.open(out) as c:
            assert np.array_equal(c["w"], w)


def test_rules_by_name(path, weights):
    recipe = Recipe(Rule(prune=0.5)).with_rule("re:c\\..*=codebook,entries=8")
    recipe = recipe.with_rule("a.bias=float16")
    found, rows = decoded(path, recipe)
    assert (found["a.weight"] == 0).mean() == pytest.approx(0.5, abs=0.01)
    assert len(np.unique(found["c.weight"])) <= 8
    assert found["a.bias"].dtype == np.float16
    assert rows["c.weight"].coding == "codebook"
    found, rows = decoded(path, Recipe(rules=[("re:a.*", Rule("int8", dtype="bfloat16"))]))
    assert rows["a.weight"].coding == "quantized" and rows["a.bias"].coding == "planes"
    assert found["a.bias"].dtype == ml_dtypes.bfloat16
    # What an expression matches besides, such as biases, is not pruned; what is named is.
    found, _ = decoded(path, Recipe(rules={"re:a.*": Rule(prune=0.5)}))
    assert (found["a.weight"] == 0).any() and (found["a.bias"] != 0).all()
    found, _ = decoded(path, Recipe(rules={"a.bias": Rule(prune=0.5)}))
    assert (found["a.bias"] == 0).mean() == 0.5 and (found["a.weight"] != 0).all()


def test_predictions_are_near(path, weights):
    for rule in (Rule(), Rule(prune=0.9), Rule(quantize="codebook"), Rule(dtype="float16")):
        recipe = Recipe(rule)
        out = path.parent / "b.safetensors"
        predicted = checkpoint.compress(path, out, recipe, dry_run=True)
        assert predicted.dry_run and not out.exists()
        done = checkpoint.compress(path, out, recipe)
        assert predicted.seconds > 0 and (predicted.memory is None) == (done.memory is None)
        assert predicted.after == pytest.approx(done.after, rel=0.1)
        for a, b in zip(predicted.rows, done.rows, strict=True):
            assert (a.name, a.before, a.coding) == (b.name, b.before, b.coding)
            assert (a.error is None) == (b.error is None)
            if a.error is not None:
                assert a.error == pytest.approx(b.error, rel=0.1, abs=1e-6)
        assert json.loads(done.to_json())["rows"][0]["name"] == done.rows[0].name
        out.unlink()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"quantize": "int9"}, "quantize must be one of"),
        ({"quantize": "codebook", "group_size": 32}, "group_size needs quantize"),
        ({"group_size": 0, "quantize": "int8"}, "group_size must be at least 1"),
        ({"entries": 1}, "entries must be at least 2"),
        ({"entries": 257}, "entries must be at most 256"),
        ({"prune": 1.0}, "prune must be less than 1"),
        ({"prune": -0.1}, "prune must be"),
        ({"prune": 0.5, "pattern": "2:4"}, "either prune or pattern"),
        ({"pattern": "4:2"}, "pattern must be n:m"),
        ({"pattern": "x"}, "pattern must be n:m"),
        ({"dtype": "float8"}, "dtype must be one of"),
        ({"method": "magic"}, "method must be one of"),
    ],
)
def test_bad_rules(rule, message):
    with pytest.raises(ValueError, match=message):
        Rule(**rule)


def test_recipes_round_trip(tmp_path):
    recipe = Recipe(
        Rule(quantize="int4", group_size=32, prune=0.5),
        [('re:.*"quoted".*', Rule(dtype="float16")), ("x", Rule(pattern="2:4")), ("y", Rule())],
        ["re:.*embed.*", "lm_head.weight"],
    )
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    assert Recipe.load(tmp_path / "recipe.toml") == recipe
    for text, message in [
        ("x = [", "not TOML"),
        ("other = 1", "a recipe has default, set, ignore and calibration"),
        ("[default]\nbits = 3", "got bits"),
        ("default = 3", "must be a table"),
        ("calibration = 3", "calibration must be a path"),
        ("set = 3", "must be a list of tables"),
        ("[[set]]\nprune = 0.5", "must have names"),
        ("[[set]]\nnames = [3]", "must have names"),
        ('ignore = "x"', "must be a list"),
        ('ignore = ["re:("]', "no regular expression"),
    ]:
        with pytest.raises(ValueError, match=message):
            Recipe.from_toml(text)
    several = Recipe.from_toml('[[set]]\nnames = ["a", "re:b.*"]\nquantize = "int8"')
    assert several.rules == (("a", Rule("int8")), ("re:b.*", Rule("int8")))
    assert Rule("int8", method="nearest") == Rule("int8")
    assert Recipe().with_rule("re:a=b.*=int8").rules == (("re:a=b.*", Rule(quantize="int8")),)
    for text in ("x", "x=int9", "=", "x=int8,bits=3", "re:(=int8"):
        with pytest.raises(ValueError):
            Recipe().with_rule(text)


def test_what_a_recipe_cannot_do_is_said(path, weights, tmp_path):
    out = tmp_path / "b.safetensors"
    bad = {**weights, "a.weight": np.full((4, 4), np.nan, np.float32)}
    save_file(bad, tmp_path / "nan.safetensors")
    save_file({"w": np.full((64, 64), 1e6, np.float32)}, tmp_path / "large.safetensors")
    for source, recipe, message in [
        (path, Recipe(Rule(pattern="3:7")), "not a multiple of the pattern"),
        (path, Recipe(rules=[("a.bias", Rule("int8"))]), "no rows that share scales"),
        (path, Recipe(ignore=["re:nothing.*"]), "matches no tensor"),
        (path, Recipe(rules=[("nothing", Rule())]), "matches no tensor"),
        (tmp_path / "nan.safetensors", Recipe(Rule(prune=0.5)), "NaN or infinity"),
        (tmp_path / "large.safetensors", Recipe(Rule(dtype="float16")), "too large for float16"),
    ]:
        with pytest.raises(ValueError, match=message):
            checkpoint.compress(source, out, recipe)
        assert not out.exists()

"""The peak of resident memory stays below the limit, whatever the tensor, shard or method."""

import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from benches.checkpoint_memory import make, run
from compressrs import checkpoint, prune

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]

LIMIT = 250_000_000


@pytest.mark.parametrize(
    "rule",
    ["lossless", "int8", "int4,group_size=32,method=hqq", "nf4,group_size=32,method=mse",
     "codebook,entries=256", "prune=0.5", "pattern=2:4", "float16"],
)  # fmt: skip
def test_shards_and_tensors_larger_than_the_limit(tmp_path, rule):
    source, small, plain = tmp_path / "source", tmp_path / "small", tmp_path / "plain"
    source.mkdir()
    total = make(source, 500_000_000, large=300_000_000)
    assert total > 2 * LIMIT - 10**7
    assert run("compress", source, small, LIMIT, rule)[1] < LIMIT
    assert run("verify", small, plain, LIMIT, rule)[1] < LIMIT
    assert run("decompress", small, plain, LIMIT, rule)[1] < LIMIT
    if rule == "lossless":
        for path in source.glob("*.safetensors"):
            subprocess.run(["cmp", path, plain / path.name], check=True)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_calibrated_methods(tmp_path, method):
    rng = np.random.default_rng(0)
    features, limit = 1536, 350_000_000
    save_file(
        {"w": rng.normal(0, 0.02, (40_000, features)).astype(np.float32)},
        tmp_path / "a.safetensors",
    )
    statistics = prune.InputStatistics(features, gram=True)
    statistics.update(rng.normal(0, 1, (2 * features, features)))
    prune.save_statistics(tmp_path / "c.safetensors", {"w": statistics})
    recipe = checkpoint.Recipe(
        checkpoint.Rule("int4", 128, method), calibration=tmp_path / "c.safetensors"
    )
    (tmp_path / "r.toml").write_text(recipe.to_toml())
    code = (
        "import sys; from compressrs import checkpoint as c\n"
        "src, dst, recipe, limit = sys.argv[1:]\n"
        "print(c.compress(src, dst, c.Recipe.load(recipe), memory_limit=int(limit)).memory)"
    )
    arguments = [tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "r.toml", limit]
    child = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, check=True, timeout=900,
    )  # fmt: skip
    assert int(child.stdout) < limit

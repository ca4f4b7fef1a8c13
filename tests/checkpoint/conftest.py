"""Checkpoints to compress."""

import json

import numpy as np
import pytest
from safetensors.numpy import save, save_file


def tensors(seed=0):
    """Return tensors of all kinds: dense, sparse, of integers, empty, without axes, shared."""
    rng = np.random.default_rng(seed)

    def weights(*shape):
        return rng.normal(0, 0.02, shape).astype(np.float32)

    kept = rng.random((90, 70)) < 0.05
    found = {
        "dense": weights(120, 64),
        "half": weights(50, 33).astype(np.float16),
        "double": rng.normal(0, 1, (20, 30)),
        "sparse": weights(90, 70) * kept,
        "half sparse": weights(40, 41) * (rng.random((40, 41)) < 0.5),
        "bias": weights(200),
        "steps": np.arange(500),
        "flags": rng.random(1001) < 0.5,
        "random": rng.integers(0, 256, 3001).astype(np.uint8),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(3, np.float32),
        "zeros": np.zeros((30, 40), np.float32),
        "extremes": np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-45, 3e38] * 40, np.float32),
        "ключ": weights(64, 8),
    }
    return {**found, "shared": found["dense"].copy()}


@pytest.fixture(scope="session")
def arrays():
    return tensors()


@pytest.fixture
def plain(tmp_path, arrays):
    """Return a plain file."""
    path = tmp_path / "plain.safetensors"
    save_file(arrays, path, metadata={"format": "pt", "note": 'a "quoted" note'})
    return path


@pytest.fixture
def sharded(tmp_path, arrays):
    """Return a folder with three shards, an index, and side files."""
    folder = tmp_path / "sharded"
    (folder / "1_Pooling").mkdir(parents=True)
    names = list(arrays)
    weights = {}
    for i in range(3):
        shard = f"model-0000{i + 1}-of-00003.safetensors"
        mine = {name: arrays[name] for name in names[i::3]}
        (folder / shard).write_bytes(save(mine, {"format": "pt"}))
        weights.update(dict.fromkeys(mine, shard))
    index = {"metadata": {"total_size": 1, "kept": "yes"}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"hidden_size": 64}')
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"weights in another format")
    return folder

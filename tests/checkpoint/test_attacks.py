"""Hostile checkpoints: a clear error or the right bytes, never a panic, never much memory."""

import importlib
import json
import os
import pkgutil
import re
import threading
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save_file

import attacks
from attacks import _tools
from attacks._tools import tensor
from compressrs import checkpoint, prune
from compressrs.checkpoint import _coding, _source

SCRIPTS = [
    m.name
    for m in pkgutil.iter_modules(attacks.__path__)
    if not m.name.startswith("_") and not m.ispkg
]


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("script", SCRIPTS)
def test_attacks_are_refused(script, mapped, tmp_path):
    module = importlib.import_module(f"attacks.{script}")
    path = module.make(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as caught, checkpoint.open(path, mapped=mapped) as c:
            for name in c:
                c[name]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert module.SAYS in str(caught.value)
    # A header of 1 MB is parsed at most; what it says there is, is not allocated.
    assert peak < 50 << 20
    for name in ("x.safetensors", "x"):
        with pytest.raises(ValueError):
            checkpoint.compress(path, tmp_path / "out" / name)


def test_every_attack_has_a_script():
    assert len(SCRIPTS) >= 28


@pytest.fixture(scope="module")
def container(tmp_path_factory):
    """Return a compressed file of every coding, and its tensors."""
    folder = tmp_path_factory.mktemp("container")
    rng = np.random.default_rng(0)
    arrays = {
        "planes": rng.normal(0, 0.02, (60, 40)).astype(np.float32),
        "gaps": (rng.normal(0, 1, (60, 70)) * (rng.random((60, 70)) < 0.05)).astype(np.float32),
        "bits": (rng.normal(0, 1, (60, 40)) * (rng.random((60, 40)) < 0.5)).astype(np.float16),
        "plain": rng.integers(0, 256, 500).astype(np.uint8),
        "book": rng.normal(0, 0.02, (60, 40)).astype(np.float32),
        "sparse book": rng.normal(0, 0.02, (60, 40)).astype(np.float32),
        "int4": rng.normal(0, 0.02, (60, 40)).astype(np.float32),
        "hqq": rng.normal(0, 0.02, (60, 40)).astype(np.float16),
        "awq": rng.normal(0, 0.02, (60, 40)).astype(np.float32),
        "nf4": rng.normal(0, 0.02, (60, 40)).astype(np.float32),
    }
    save_file(arrays, folder / "a.safetensors")
    book = checkpoint.Rule(quantize="codebook")
    sparse = checkpoint.Rule(quantize="codebook", prune=0.8)
    rules = [("book", book), ("sparse book", sparse)]
    rules += [(name, checkpoint.Rule("int4", 8, name)) for name in ("hqq", "awq")]
    rules += [(name, checkpoint.Rule(name, 8)) for name in ("int4", "nf4")]
    statistics = prune.InputStatistics(40, gram=True)
    statistics.update(rng.normal(0, 1, (100, 40)))
    path = folder / "b.safetensors"
    recipe = checkpoint.Recipe(rules=rules)
    checkpoint.compress(folder / "a.safetensors", path, recipe, calibration={"awq": statistics})
    with checkpoint.open(path) as c:
        codings = {c.description(name).coding for name in c}
        assert codings == {"plain", *_coding.CODINGS}
        return path, {name: c[name].tobytes() for name in c}


def read(path, **options):
    with checkpoint.open(path, **options) as c:
        return {name: c[name].tobytes() for name in c}


def test_truncation_anywhere_is_an_error(container, tmp_path):
    data = container[0].read_bytes()
    path = tmp_path / "cut.safetensors"
    for end in range(0, len(data), 97):
        path.write_bytes(data[:end])
        with pytest.raises(ValueError):
            read(path)


@pytest.mark.parametrize("flips", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_flipped_bytes_are_an_error_or_change_nothing(container, tmp_path, flips):
    original, arrays = container
    data = bytearray(original.read_bytes())
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(data)
    rng = np.random.default_rng(1)
    start = 8 + int.from_bytes(data[:8], "little")
    refused = 0
    with open(path, "r+b", buffering=0) as file:
        # Some in the header, where one byte may be as good as another, most in the data.
        for i in range(flips):
            at = int(rng.integers(0, start) if i % 10 == 0 else rng.integers(start, len(data)))
            os.pwrite(file.fileno(), bytes([data[at] ^ int(rng.integers(1, 256))]), at)
            try:
                found = read(path)
            except (ValueError, KeyError):
                refused += 1
            else:
                # Such as one blank of the padding for another.
                assert found == arrays, at
            os.pwrite(file.fileno(), bytes([data[at]]), at)
    assert refused > 0.98 * flips


def test_decoders_alone_survive_flipped_bytes(container, tmp_path):
    """As above, without checksums in front: what decodes wrongly is not caught, but no harm."""
    original, arrays = container
    data = bytearray(original.read_bytes())
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(data)
    rng = np.random.default_rng(2)
    start = 8 + int.from_bytes(data[:8], "little")
    with open(path, "r+b", buffering=0) as file:
        for _ in range(500):
            at = int(rng.integers(start, len(data)))
            os.pwrite(file.fileno(), bytes([data[at] ^ int(rng.integers(1, 256))]), at)
            try:
                found = read(path, verify=False)
            except ValueError:
                pass
            else:
                assert {k: len(v) for k, v in found.items()} == {
                    k: len(v) for k, v in arrays.items()
                }
            os.pwrite(file.fileno(), bytes([data[at]]), at)


def test_descriptions_are_checked():
    good = {
        "dtype": "F32", "shape": [10, 3], "coding": "planes", "streams": ["gaps", "values"],
        "bytes": [[5, 6], [7, 8]], "tile": 20, "counts": [[4, 4], [3, 2]], "xxh3": "0" * 16,
    }  # fmt: skip
    d = _coding.Description.from_json(json.dumps(good))
    assert json.loads(d.to_json()) == good
    changes = [
        ("dtype", "F31"), ("dtype", None), ("shape", [-1]), ("shape", "x"), ("shape", [True]),
        ("coding", "zip"), ("coding", None), ("streams", ["values"]), ("streams", []),
        ("streams", ["values", "gaps"]), ("streams", "gaps"), ("bytes", [[5, 6]]),
        ("bytes", [[5, 6], [7]]), ("bytes", [[5, 6], [7, -8]]), ("bytes", None), ("tile", 0),
        ("tile", -1), ("tile", 1.5), ("tile", True), ("counts", []), ("counts", [[1, 2], [3]]),
        ("xxh3", "0"), ("xxh3", None), ("same", 3), ("dtype", "F4"),
    ]  # fmt: skip
    for key, value in changes:
        with pytest.raises(ValueError):
            _coding.Description.from_json(json.dumps({**good, key: value}))
    for text in ("", "[]", "3", "{", "[" * 100_000):
        with pytest.raises(ValueError):
            _coding.Description.from_json(text)


#: Containers whose parts are well-formed, and do not fit each other.
CONTRADICTIONS = {
    "the same as one of another shape": (
        {"a": tensor(0, 8, [2], "F32")},
        {"a": {}, "b": {"shape": [1], "same": "a"}},
        "'b' is the same as 'a', of another form",
    ),
    "the same as one that is the same": (
        {"a": tensor(0, 8, [2], "F32")},
        {"a": {}, "b": {"same": "a"}, "c": {"same": "b"}},
        "'c' is the same as 'b', which is not stored",
    ),
    "stored and the same": (
        {"a": tensor(0, 8, [2], "F32"), "b": tensor(8, 16, [2], "F32")},
        {"a": {}, "b": {"same": "a"}},
        "it is stored, though it is the same as another",
    ),
    "not stored": ({}, {"a": {}}, "it is described, but not stored"),
    "of another dtype": (
        {"a": tensor(0, 8, [2], "I32")}, {"a": {}}, "another dtype or shape than described",
    ),
    "of another shape": (
        {"a": tensor(0, 8, [2, 1], "F32")}, {"a": {}}, "another dtype or shape than described",
    ),
    "of fewer bytes than its streams": (
        {"a": tensor(0, 8)},
        {"a": {"coding": "planes", "streams": ["values"], "bytes": [[9]], "tile": 20}},
        "its streams take 9 bytes, but it is stored as U8 of 8 bytes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_containers_that_contradict_themselves_are_refused(name, tmp_path):
    tensors, changes, says = CONTRADICTIONS[name]
    whole = {"dtype": "F32", "shape": [2], "xxh3": "0" * 16}
    descriptions = {
        key: {**whole, **({} if "same" in change else {"coding": "plain"}), **change}
        for key, change in changes.items()
    }
    size = max((t["data_offsets"][1] for t in tensors.values()), default=0)
    path = _tools.container(tmp_path / "a.safetensors", tensors, descriptions, bytes(size))
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        checkpoint.open(path)
    # Which files a tensor refers to is checked after all of them were read.
    assert ("same as '" in says) != (f"{path}, '" in str(caught.value))


def test_two_files_that_describe_one_tensor_are_refused(tmp_path):
    description = {"dtype": "F32", "shape": [2], "same": "a"}
    for name in ("1", "2"):
        _tools.container(tmp_path / f"{name}.safetensors", {}, {"b": description}, b"")
    with pytest.raises(ValueError, match=r"2\.safetensors describes 'b', as another file does"):
        checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([], "holds no safetensors file"),
        (["a.safetensors.index.json", "b.safetensors.index.json"], "holds several indexes"),
        (["a.safetensors.index.json"], "is not JSON"),
    ],
)
def test_folders_that_hold_no_one_checkpoint_are_refused(files, says, tmp_path):
    for name in files:
        (tmp_path / name).write_text("{")
    with pytest.raises(ValueError, match=says):
        checkpoint.open(tmp_path)


@pytest.mark.parametrize("how", ["written", "truncated"])
def test_a_source_that_changes_while_it_is_read_is_an_error(plain, tmp_path, how, monkeypatch):
    changed = threading.Event()
    read = _source.File.read

    def change(self, begin, end):
        data = read(self, begin, end)
        if begin > 1000 and not changed.is_set():
            changed.set()
            with open(plain, "r+b") as f:
                if how == "written":
                    f.seek(-1, os.SEEK_END)
                    f.write(b"x")
                else:
                    f.truncate(3000)
        return data

    monkeypatch.setattr(_source.File, "read", change)
    with pytest.raises(ValueError, match=r"was (changed|truncated) while it was read"):
        checkpoint.compress(plain, tmp_path / "out.safetensors")
    assert changed.is_set()
    assert [p.name for p in tmp_path.iterdir()] == ["plain.safetensors"]

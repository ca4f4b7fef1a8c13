"""What is compressed without loss comes back to the bit."""

import json
import os
import stat
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors.numpy import save, save_file

import compressrs as cr
from compressrs import checkpoint
from compressrs.checkpoint import _plan, reader


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def check(path, arrays, **options):
    with checkpoint.open(path, **options) as c:
        assert set(c) == set(arrays) == set(c.keys())
        for name, array in c.items():
            assert same(array, arrays[name]), name
            assert c.shape(name) == array.shape
        assert len(c) == len(arrays) and "dense" in c and "nothing" not in c


@pytest.mark.parametrize("mapped", [False, True])
def test_a_file_comes_back_to_the_byte(plain, arrays, tmp_path, mapped):
    small, again = tmp_path / "small.safetensors", tmp_path / "again.safetensors"
    report = checkpoint.compress(plain, small)
    assert report.before == plain.stat().st_size and report.after == small.stat().st_size
    assert report.after < report.before
    check(plain, arrays, mapped=mapped)
    check(small, arrays, mapped=mapped)
    assert checkpoint.verify(small) == len(arrays)
    assert checkpoint.decompress(small, again) == plain.stat().st_size
    assert again.read_bytes() == plain.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "again.safetensors", "plain.safetensors", "small.safetensors"
    ]  # fmt: skip


def test_headers_that_are_not_canonical_come_back_too(tmp_path):
    header = json.dumps(
        {
            "z": {"dtype": "U8", "shape": [600], "data_offsets": [0, 600]},
            "__metadata__": {"b": "1", "a": "2"},
            "a": {"shape": [300], "data_offsets": [600, 1200], "dtype": "F16"},
        },
        indent=3,
    ).encode()
    data = bytes(600) + np.linspace(0, 1, 300, dtype=np.float16).tobytes()
    plain = tmp_path / "a.safetensors"
    plain.write_bytes(len(header).to_bytes(8, "little") + header + data)
    checkpoint.compress(plain, tmp_path / "b.safetensors")
    checkpoint.decompress(tmp_path / "b.safetensors", tmp_path / "c.safetensors")
    assert (tmp_path / "c.safetensors").read_bytes() == plain.read_bytes()


def test_any_reader_opens_a_container(plain, arrays, tmp_path):
    small = tmp_path / "small.safetensors"
    checkpoint.compress(plain, small)
    with safetensors.safe_open(str(small), "np") as f:
        assert f.metadata()["format"] == "pt"
        assert set(f.keys()) == set(arrays) - {"shared"}
        descriptions = {k[11:]: json.loads(v) for k, v in f.metadata().items() if ":" in k}
        assert set(descriptions) == set(arrays)
        assert descriptions["shared"]["same"] == "dense"
        for name in f.keys():  # noqa: SIM118
            if descriptions[name]["coding"] != "plain":
                assert f.get_tensor(name).dtype == np.uint8
    # Shared tensors are stored once.
    report = {row.name: row for row in checkpoint.compress(plain, small).rows}
    assert report["shared"].after == 0 and report["dense"].after > 0


def test_folders_keep_their_shards_and_side_files(sharded, arrays, tmp_path):
    small, again = tmp_path / "small", tmp_path / "again"
    checkpoint.compress(sharded, small)
    check(small, arrays)
    check(small / "model.safetensors.index.json", arrays)
    names = {p.relative_to(small).as_posix() for p in small.rglob("*") if p.is_file()}
    assert names == {
        "1_Pooling/config.json", "config.json", "model.safetensors.index.json",
        *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
    }  # fmt: skip
    index = json.loads((small / "model.safetensors.index.json").read_text())
    assert index["metadata"]["kept"] == "yes"
    checkpoint.decompress(small, again)
    for i in (1, 2, 3):
        name = f"model-0000{i}-of-00003.safetensors"
        assert (again / name).read_bytes() == (sharded / name).read_bytes()
    check(again, arrays)
    assert (again / "config.json").read_text() == '{"hidden_size": 64}'
    # All in one file, and back in one.
    checkpoint.compress(sharded, tmp_path / "one.safetensors")
    check(tmp_path / "one.safetensors", arrays)
    checkpoint.decompress(small, tmp_path / "all.safetensors")
    check(tmp_path / "all.safetensors", arrays)


def test_shards_of_a_size(plain, arrays, tmp_path):
    small = tmp_path / "small"
    checkpoint.compress(plain, small, max_shard_size=20_000)
    shards = sorted(small.glob("*.safetensors"))
    assert len(shards) > 2
    assert [p.name for p in shards] == [
        f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))
    ]
    check(small, arrays)
    checkpoint.decompress(small, tmp_path / "again")
    check(tmp_path / "again", arrays)
    for path in shards:
        with safetensors.safe_open(str(path), "np") as f:
            sizes = [f.get_tensor(name).nbytes for name in f.keys()]  # noqa: SIM118
        assert sum(sizes) <= 20_000 or len(sizes) == 1


def test_tiles_do_not_show(plain, arrays, tmp_path, monkeypatch):
    monkeypatch.setattr(_plan, "MAX_TILE", 1000)
    monkeypatch.setattr(reader, "PLAIN_TILE", 700)
    small = tmp_path / "small.safetensors"
    checkpoint.compress(plain, small)
    check(small, arrays)
    with checkpoint.open(small) as c:
        assert len(c.description("dense").lengths) == 8
        for name, array in arrays.items():
            if array.ndim == 0:
                continue
            for start, stop in ((0, 0), (0, len(array)), (len(array) // 3, len(array) // 2)):
                assert same(c.rows(name, start, stop), array[start:stop])
        assert np.array_equal(c.csr("sparse").to_dense(), arrays["sparse"])
    checkpoint.decompress(small, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == plain.read_bytes()


def test_bytes_do_not_depend_on_threads(plain, tmp_path):
    before = cr.get_num_threads()
    found = set()
    for n in (1, 2, 5):
        cr.set_num_threads(n)
        checkpoint.compress(plain, tmp_path / "small.safetensors")
        found.add((tmp_path / "small.safetensors").read_bytes())
    cr.set_num_threads(before)
    assert len(found) == 1


@pytest.mark.parametrize(
    ("dtype", "most"), [("float32", 0.85), ("float16", 0.86), (ml_dtypes.bfloat16, 0.68)]
)
def test_how_much_trained_weights_shrink(tmp_path, dtype, most):
    # Weights of layers of different scales, as training leaves them.
    rng = np.random.default_rng(0)
    scales = np.exp(rng.normal(-4, 0.3, 400))[:, None]
    x = (rng.normal(0, 1, (400, 512)) * scales).astype(dtype)
    name = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[x.dtype.name]
    entry = {"dtype": name, "shape": x.shape, "data_offsets": [0, x.nbytes]}
    text = json.dumps({"x": entry}).encode()
    data = len(text).to_bytes(8, "little") + text + x.tobytes()
    (tmp_path / "a.safetensors").write_bytes(data)
    report = checkpoint.compress(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert 1 / report.ratio < most
    with checkpoint.open(tmp_path / "b.safetensors") as c:
        assert same(c["x"], x)


def test_dtypes_that_numpy_lacks_are_kept(tmp_path):
    header = {
        "f8": {"dtype": "F8_E4M3", "shape": [4000], "data_offsets": [0, 4000]},
        "f4": {"dtype": "F4", "shape": [20], "data_offsets": [4000, 4010]},
    }
    f8 = np.random.default_rng(0).normal(0, 1, 4000).astype(ml_dtypes.float8_e4m3fn)
    text = json.dumps(header).encode()
    plain = tmp_path / "a.safetensors"
    plain.write_bytes(len(text).to_bytes(8, "little") + text + f8.tobytes() + bytes(range(10)))
    report = checkpoint.compress(plain, tmp_path / "b.safetensors")
    assert {row.name: row.coding for row in report.rows} == {"f8": "planes", "f4": "plain"}
    with checkpoint.open(tmp_path / "b.safetensors") as c:
        assert same(c["f8"], f8)
        with pytest.raises(TypeError, match="'f4' is of F4"):
            c["f4"]
    checkpoint.info(tmp_path / "b.safetensors")
    checkpoint.decompress(tmp_path / "b.safetensors", tmp_path / "c.safetensors")
    assert (tmp_path / "c.safetensors").read_bytes() == plain.read_bytes()


def test_what_cannot_be_done_is_refused_and_leaves_nothing(plain, sharded, tmp_path):
    (tmp_path / "taken").mkdir()
    small = tmp_path / "small.safetensors"
    checkpoint.compress(plain, small)
    cases = [
        (lambda: checkpoint.compress(small, tmp_path / "x.safetensors"), ValueError, "already"),
        (lambda: checkpoint.compress(plain, tmp_path / "taken"), ValueError, "must not exist"),
        (lambda: checkpoint.compress(plain, plain), ValueError, "dst must be another file"),
        (lambda: checkpoint.compress(plain, tmp_path / "no" / "x"), OSError, "does not exist"),
        (lambda: checkpoint.compress(tmp_path / "no", tmp_path / "x"), OSError, "No such file"),
        (lambda: checkpoint.compress(plain, tmp_path / "x", max_shard_size=0), ValueError, "max_"),
        (lambda: checkpoint.compress(plain, tmp_path / "x", memory_limit=1), ValueError, "least"),
        (lambda: checkpoint.decompress(small, sharded), ValueError, "must not exist"),
    ]  # fmt: skip
    # With nothing to resume, a run begins.
    checkpoint.compress(plain, tmp_path / "begun.safetensors", resume=True)
    assert (tmp_path / "begun.safetensors").read_bytes() == small.read_bytes()
    names = sorted(p.name for p in tmp_path.iterdir())
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
        assert sorted(p.name for p in tmp_path.iterdir()) == names
    with checkpoint.open(small) as c:
        with pytest.raises(KeyError, match="no tensor 'x'"):
            c["x"]
        with pytest.raises(ValueError, match="must lie in"):
            c.rows("dense", 0, 1000)
        with pytest.raises(ValueError, match="must be a matrix"):
            c.csr("bias")


def test_modes_are_kept(plain, tmp_path):
    small = tmp_path / "small.safetensors"
    umask = os.umask(0o027)
    try:
        checkpoint.compress(plain, small)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(small.stat().st_mode) == 0o640
    small.chmod(0o604)
    checkpoint.compress(plain, small)
    assert stat.S_IMODE(small.stat().st_mode) == 0o604


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_a_tensor(tmp_path):
    """A tensor of 300 MB, larger than the limit: only what is sampled and tiles are held."""
    path = tmp_path / "a.safetensors"
    n = 75_000_000
    header = json.dumps({"x": {"dtype": "F32", "shape": [n], "data_offsets": [0, 4 * n]}}).encode()
    with open(path, "wb") as f:
        f.write(len(header).to_bytes(8, "little") + header)
        # A sparse file, with weights at its beginning.
        f.write(np.random.default_rng(0).normal(0, 1, 3_000_000).astype(np.float32).tobytes())
        f.truncate(8 + len(header) + 4 * n)
    code = (
        "import sys; from compressrs import checkpoint as c\n"
        "c.compress(sys.argv[1], sys.argv[2], memory_limit=220_000_000)\n"
        "c.verify(sys.argv[2])\n"
        # Not ru_maxrss, which begins with what the parent had.
        "print(next(x.split()[1] for x in open('/proc/self/status') if 'VmHWM' in x))"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, path, tmp_path / "b.safetensors"],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    assert int(child.stdout) * 1024 < 220_000_000


def test_info_and_diff(plain, arrays, tmp_path):
    small = tmp_path / "small.safetensors"
    checkpoint.compress(plain, small)
    for path in (plain, small):
        rows = {row["name"]: row for row in checkpoint.info(path)}
        assert rows["dense"]["min"] == arrays["dense"].min()
        assert rows["dense"]["max"] == arrays["dense"].max()
        assert rows["sparse"]["zeros"] == pytest.approx((arrays["sparse"] == 0).mean())
        assert rows["zeros"]["entropy"] < 1 < rows["random"]["entropy"]
        assert rows["empty"]["min"] is None
        assert sum(row["bytes"] for row in rows.values()) == sum(a.nbytes for a in arrays.values())
    assert all(
        row["changed"] == 0 and row["only_in"] is None for row in checkpoint.diff(plain, small)
    )
    other = {**arrays, "dense": arrays["dense"] * 1.5, "bias": arrays["bias"][1:]}
    del other["steps"]
    save_file(other, tmp_path / "other.safetensors")
    rows = {row["name"]: row for row in checkpoint.diff(small, tmp_path / "other.safetensors")}
    assert rows["dense"]["relative_error"] == pytest.approx(0.5)
    assert rows["dense"]["cosine"] == pytest.approx(1)
    assert rows["dense"]["changed"] == 1
    assert rows["dense"]["max_error"] == pytest.approx(np.abs(arrays["dense"]).max() / 2)
    assert rows["bias"]["changed"] is None
    assert rows["steps"]["only_in"] == "a"


def test_a_dry_run_knows_what_is_stored_once(plain, tmp_path):
    small = tmp_path / "b.safetensors"
    predicted = checkpoint.compress(plain, small, dry_run=True)
    done = checkpoint.compress(plain, small)
    assert [row.coding for row in predicted.rows] == [row.coding for row in done.rows]
    assert {row["name"] for row in checkpoint.info(small) if row["coding"] == "shared"} == {
        row.name for row in done.rows if row.coding == "shared"
    }


@pytest.mark.parametrize("size", [33, 96, 254, 255, 256, 257, 511, 600])
@pytest.mark.parametrize("ones", [0, 1])
def test_tensors_of_zeros_of_any_size(tmp_path, size, ones):
    x = np.zeros(size, np.float32)
    x[:ones] = 1
    save_file({"x": x}, tmp_path / "a.safetensors")
    checkpoint.compress(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    with checkpoint.open(tmp_path / "b.safetensors") as c:
        assert c.description("x").coding == "planes" or size < 40
        assert np.array_equal(c["x"], x)


def flat(params):
    return {f"{a}.{b}": array for a, layer in params.items() for b, array in layer.items()}


def test_models_load_from_it(tmp_path):
    model = cr.nn.Sequential(cr.nn.Linear(20, 30, rng=1), cr.nn.ReLU(), cr.nn.Linear(30, 4, rng=2))
    x = np.random.default_rng(0).normal(0, 1, (5, 20)).astype(np.float32)
    expected = model(x)
    (tmp_path / "a.safetensors").write_bytes(save(flat(model.params)))
    checkpoint.compress(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    for weights in flat(model.params).values():
        weights[...] = 0
    with checkpoint.open(tmp_path / "b.safetensors") as c:
        for name, weights in flat(model.params).items():
            weights[...] = c[name]
    assert np.array_equal(model(x), expected)

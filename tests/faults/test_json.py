"""JSON in files is read with all checks: whatever stands in it, only a ValueError comes out.

Checksums are no protection: anybody can compute them, as these tests do.
"""

import ast
import copy
import hashlib
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import compressrs as cr
from compressrs._json import MAX_DEPTH, parse_json
from compressrs.nn.files import _LAYERS, _SHAPES

pytest.importorskip("safetensors")
from safetensors.numpy import save_file

PACKAGE = Path(cr.__file__).parent


class Raw:
    """JSON that Python would not write."""

    def __init__(self, text):
        self.text = text


#: What each node is replaced by; None is left out where it removes the node.
VALUES = [
    None, True, 0, -1, 2**70, 1.5, Raw("1e400"), Raw("NaN"), "", "x", "\ud800", [], [0], [[]], {},
    {"x": 1}, Raw("[" * 2000 + "]" * 2000),
]  # fmt: skip


def nodes(value, path=()):
    yield path
    if not isinstance(value, (dict, list)):
        return
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        yield from nodes(child, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    value = copy.deepcopy(value)
    place = value
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return value


def text_of(value):
    raw = []

    def default(given):
        raw.append(given.text)
        return f"raw {len(raw) - 1}"

    text = json.dumps(value, separators=(",", ":"), default=default)
    for i, each in enumerate(raw):
        text = text.replace(f'"raw {i}"', each)
    return text


def trees(tree):
    """Yield the texts of all trees with one node replaced, or one member left out.

    Nodes of a name are read by the same code: from the second on, they are replaced by one value.
    """
    seen = set()
    for number, path in enumerate(nodes(tree)):
        name = path[-1:] and path[-1]
        known = name in seen if isinstance(name, str) else number > 100
        seen.add(name)
        for value in [VALUES[number % len(VALUES)]] if known else VALUES:
            yield text_of(replaced(tree, path, value))
        if path and isinstance(path[-1], str):
            less = copy.deepcopy(tree)
            place = less
            for key in path[:-1]:
                place = place[key]
            del place[path[-1]]
            yield text_of(less)


def parted(data):
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header, body):
    """Return a safetensors file with the checksum of its bytes."""
    zeros = "0" * 32
    metadata = {**header["__metadata__"]}
    checked = "blake2b" in metadata
    if checked:
        metadata["blake2b"] = zeros
    text = json.dumps({**header, "__metadata__": metadata}, separators=(",", ":")).encode()
    data = len(text).to_bytes(8, "little") + text + body
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    return data.replace(f'"blake2b":"{zeros}"'.encode(), f'"blake2b":"{digest}"'.encode(), 1)


def network():
    nn = cr.nn
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, rng=1), nn.BatchNorm(4), nn.ReLU(),
        nn.Residual(nn.Conv2d(4, 4, 3, padding=1, rng=2)), nn.MaxPool(2), nn.Flatten(),
        nn.Linear(64, 8, rng=3), nn.Dropout(0.1),
        nn.SparseLinear.from_linear(nn.Linear(8, 4, rng=5)),
    )  # fmt: skip


def sequences():
    nn = cr.nn
    return nn.Sequential(
        nn.Embedding(10, 8, rng=0), nn.LayerNorm(8), nn.MultiHeadAttention(8, 2, rng=1), nn.GELU()
    )


def adam():
    opt = cr.optim.Adam({"a": np.ones((4, 2)), "b": np.ones(3)})
    opt.step({"a": np.ones((4, 2)), "b": np.ones(3)})
    return opt


def run_of(opt):
    return cr.TrainState(optimizer=opt, rng=np.random.default_rng(0), extra=np.arange(3.0))


def statistics(path):
    seen = cr.prune.InputStatistics(3, gram=True)
    seen.update(np.ones((2, 3)))
    cr.prune.save_statistics(path, {"a": seen, "b": seen, "c": cr.prune.InputStatistics(2)})


def distiller():
    layer = cr.nn.Linear(3, 2, rng=0)
    return cr.distill.Distiller(layer, np.zeros((4, 2)), cr.optim.Adam(layer.params))


#: Files with JSON in their metadata: what writes one, the key, what reads it, and its owner.
METADATA = {
    "nn.load": ("model", lambda: (network(), network().save, cr.nn.load)),
    "nn.load of sequences": ("model", lambda: (sequences(), sequences().save, cr.nn.load)),
    "Layer.load": ("model", lambda: (m := network(), m.save, m.load)),
    "TrainState.load": (
        "state", lambda: (opt := adam(), (run := run_of(opt)).save, run.load),
    ),
    "parts of TrainState": (
        "parts", lambda: (opt := adam(), (run := run_of(opt)).save, run.load),
    ),
    "Optimizer.load": ("param_groups", lambda: (opt := adam(), opt.save, opt.load)),
    "class of Optimizer": ("class", lambda: (opt := adam(), opt.save, opt.load)),
    "names of statistics": ("names", lambda: (None, statistics, cr.prune.load_statistics)),
    "counts of statistics": ("counts", lambda: (None, statistics, cr.prune.load_statistics)),
    "Distiller.load": ("progress", lambda: (d := distiller(), d.save, d.load)),
}  # fmt: skip


def bits(owner):
    if owner is None:
        return None

    def flat(value):
        if isinstance(value, dict):
            return {key: flat(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [flat(item) for item in value]
        return np.asarray(value).tobytes() if hasattr(value, "dtype") else repr(value)

    if not hasattr(owner, "state_dict"):
        return flat(owner._arrays())
    return flat(owner.state_dict())


@pytest.mark.parametrize("name", METADATA)
def test_metadata(tmp_path, name):
    key, make = METADATA[name]
    owner, save, load = make()
    path = tmp_path / "file-of-this-test"
    save(path)
    load(path)
    header, body = parted(path.read_bytes())
    if key not in header["__metadata__"]:
        pytest.skip("it has none")
    before = bits(owner)
    for text in trees(json.loads(header["__metadata__"][key])):
        changed = {**header, "__metadata__": {**header["__metadata__"], key: text}}
        path.write_bytes(joined(changed, body))
        try:
            load(path)
        except ValueError as error:
            assert path.name in str(error), text[:200]
            assert bits(owner) == before, text[:200]
        else:
            # What is as good as before, such as another name of a layer's class that fits.
            before = bits(owner)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "folder"
    made.mkdir()
    return made


def index(folder):
    save_file({"a": np.ones(3)}, folder / "1.safetensors")
    content = {"metadata": {"total_size": 24}, "weight_map": {"a": "1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    return "model.safetensors.index.json", cr.checkpoint.info


def manifest(folder):
    opt = cr.distributed.ShardedOptimizer(cr.optim.Adam, {"a": np.ones((4, 2)), "b": np.ones(3)})
    opt.save(folder / "sharded")
    return "sharded/manifest.json", lambda f: (cr.distributed.read_state(f / "sharded"),
                                               opt.load(f / "sharded"))  # fmt: skip


def teacher(folder):
    x = np.arange(40.0).reshape(20, 2)
    cr.distill.TeacherCache.write(folder / "cache", lambda x: x.copy(), x, shard_rows=10)
    return "cache/index.json", lambda f: cr.distill.TeacherCache(f / "cache")[:]


@pytest.mark.filterwarnings("ignore:.* is of a run with microbatches")
@pytest.mark.parametrize("make", [index, manifest, teacher])
def test_files_of_json(folder, make):
    name, load = make(folder)
    load(folder)
    path = folder / name
    tree = json.loads(path.read_bytes())
    digest = tree.pop("blake2b", None)
    for text in trees(tree):
        if digest is not None and text.startswith("{"):
            try:
                content = json.loads(text)
            except RecursionError:
                continue
            plan = json.dumps(content, sort_keys=True).encode()
            content["blake2b"] = hashlib.blake2b(plan, digest_size=16).hexdigest()
            text = json.dumps(content)
        path.write_text(text)
        try:
            load(folder)
        except (ValueError, FileNotFoundError) as error:
            assert "folder" in str(error), text[:200]


def test_headers_of_containers(tmp_path):
    from compressrs.checkpoint import _format, _header

    plain, small = tmp_path / "a.safetensors", tmp_path / "small.safetensors"
    save_file({"a.weight": np.arange(64.0, dtype=np.float32).reshape(8, 8)}, plain)
    cr.checkpoint.compress(plain, small, cr.checkpoint.Rule(quantize="int4", group_size=4))
    header, body = parted(small.read_bytes())
    for key in header["__metadata__"]:
        for text in trees(json.loads(header["__metadata__"][key])):
            metadata = {**header["__metadata__"], key: text}
            try:
                about = json.loads(metadata["compressrs"])
                entries = tuple(
                    _format._entry(k, v) for k, v in header.items() if k != "__metadata__"
                )
                others = {k: v for k, v in metadata.items() if k != "compressrs"}
                about["xxh3"] = _header.header_checksum(entries, others)
                metadata["compressrs"] = json.dumps(about)
            except (ValueError, TypeError, RecursionError):
                pass
            small.write_bytes(joined({**header, "__metadata__": metadata}, body))
            for read in (
                cr.checkpoint.verify,
                lambda path: cr.checkpoint.decompress(path, tmp_path / "again.safetensors"),
            ):
                try:
                    read(small)
                except ValueError as error:
                    assert small.name in str(error) or "a.weight" in str(error), text[:200]


def test_recipes(tmp_path):
    path = tmp_path / "recipe.toml"
    values = ["true", "0", "-1", "1e400", str(2**70), '""', '"x"', "[]", "[0]", "{}", "nan",
              "[" * 10_000 + "]" * 10_000]  # fmt: skip
    lines = ['ignore = ["a"]', 'calibration = "c"', "default = {quantize = 'int4'}",
             "set = [{names = 'a', prune = 0.5, group_size = 3}]"]  # fmt: skip
    fields = [*cr.checkpoint.Rule.__dataclass_fields__, "names"]
    texts = [f"{line.partition(' = ')[0]} = {value}" for line in lines for value in values]
    texts += [f"default = {{{name} = {value}}}" for name in fields for value in values]
    texts += [f"set = [{{names = 'a', {name} = {value}}}]" for name in fields for value in values]
    for text in texts:
        path.write_text(text)
        try:
            cr.checkpoint.Recipe.load(path)
        except ValueError as error:
            assert path.name in str(error), text[:100]


def test_journals_of_searches(tmp_path):
    pytest.importorskip("optuna")
    space = cr.search.Space({"a": cr.search.Float(0.0, 1.0)})

    def search():
        return cr.search.optimize(
            lambda design: design["a"], space, trials=3, folder=tmp_path, baseline=False
        )

    found = search()
    path = tmp_path / "journal.log"
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        content = json.loads(line)
        for key in content.get("user_attr", {}):
            for text in trees({"user_attr": content["user_attr"]}):
                try:
                    changed = {**content, **json.loads(text)}
                except (ValueError, RecursionError, TypeError):
                    continue
                path.write_text(
                    "\n".join([*lines[:number], json.dumps(changed), *lines[number + 1 :]]) + "\n"
                )
                try:
                    search()
                except ValueError as error:
                    assert tmp_path.name in str(error) or "folder" in str(error), (key, text)
    path.write_text("\n".join(lines) + "\n")
    assert search().table() == found.table()


def test_texts():
    assert parse_json('{"a": [1, "\\u00e9"]}') == {"a": [1, "\u00e9"]}
    assert parse_json(b'"\\ud83d\\ude00"') == "\U0001f600"
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    for bad in ("", "{", "\ufeff1", b"\xff", '"\\ud800"', '{"a":1,"a":2}', "[" * 10**6,
                "[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "9" * 5000):  # fmt: skip
        with pytest.raises(ValueError, match=r"."):
            parse_json(bad)


def test_json_is_parsed_in_one_place():
    known = {"_json.py", "doctor/bits.py"}  # What `doctor` prints itself.
    for source in PACKAGE.rglob("*.py"):
        name = source.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("json.loads", "json.load"):
                parents = ast.unparse(node)
                own = name == "nn/files.py" and "json.loads(json.dumps(" in source.read_text()
                assert name in known or own, (name, parents)


def test_every_layer_with_arrays_says_their_shape():
    made = {
        type(layer).__name__: layer
        for model in (network(), sequences())
        for _, layer in model.named_layers()
        if type(layer).__name__ in _LAYERS
    }
    with_arrays = {name for name, layer in made.items() if layer.params}
    assert with_arrays == set(_SHAPES)
    # The others take no memory by their sizes.
    import inspect

    for name, make in _LAYERS.items():
        if name not in _SHAPES:
            assert not {"dtype", "rng"} & set(inspect.signature(make).parameters) or name in (
                "Dropout",
            )
    for name, (array, shape_of) in _SHAPES.items():
        assert shape_of(made[name].config()) == made[name].params[array].shape


@pytest.mark.parametrize("make", [network, sequences])
def test_memory_is_that_of_the_file(tmp_path, make):
    path = tmp_path / "m"
    make().save(path)
    header, body = parted(path.read_bytes())
    tree = json.loads(header["__metadata__"]["model"])
    sizes = [
        p for p in nodes(tree)
        if "config" in p and p[-1] in ("in_features", "out_features", "channels", "features",
                                       "in_channels", "out_channels", "num_embeddings")
    ]  # fmt: skip
    assert len(sizes) > 3
    cr.nn.load(path)
    tracemalloc.start()
    try:
        for place in sizes:
            text = json.dumps(replaced(tree, place, 2**22))
            changed = {**header, "__metadata__": {**header["__metadata__"], "model": text}}
            path.write_bytes(joined(changed, body))
            with pytest.raises(ValueError, match="has the shape"):
                cr.nn.load(path)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()

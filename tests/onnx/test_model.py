"""Models of named arrays, and their files: all is written back, and nothing else changes."""

import contextlib
import copy
import errno
import os
import pickle

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, external_data_helper, helper, numpy_helper  # noqa: E402

from compressrs import onnx as conn  # noqa: E402
from compressrs.onnx import _tensors  # noqa: E402
from tests.onnx.models import Builder, branches, cnn, mlp, normal, run  # noqa: E402

X = normal(7, 6)


def written(proto, path, **given):
    onnx.save(proto, path, **given)
    return path


def test_names_roles_and_uses():
    model = conn.load(mlp())
    known = model.initializers
    assert [*model] == [*known] == ["w1", "b1", "w2", "b2", "w3", "b3"]
    assert [known[n].role for n in known] == ["weight", "bias"] * 3
    assert [known[n].swapped for n in ("w1", "w2", "w3")] == [False, True, True]
    assert known["w1"].used_by == ("first",) and known["w2"].used_by == ("MatMul_2",)
    assert known["w1"].shape == (16, 6) and known["w1"].dtype == np.float32
    assert not known["w1"].is_input and not known["w1"].external
    roles = {name: i.role for name, i in conn.load(cnn()).initializers.items()}
    assert roles["c1"] == roles["d"] == "weight" and roles["cb2"] == "bias"
    assert roles["n1_mean"] == "normalization" and roles["low"] == "constant"


def test_roles_through_views_and_embeddings():
    b = Builder()
    ids = b.input("ids", ["n"], TensorProto.INT64)
    h = b.node("Gather", b.array("table", normal(9, 4)), ids)
    w = b.node("Transpose", b.array("w", normal(5, 4)))
    h = b.node("MatMul", h, w)
    v = b.node("Cast", b.array("v", normal(5, 2, dtype=np.float16)), to=TensorProto.FLOAT)
    known = conn.load(b.model(b.node("MatMul", h, v))).initializers
    assert known["table"].role == "embedding"
    assert known["w"].role == known["v"].role == "weight"
    assert not known["w"].swapped and known["v"].swapped


def test_arrays_are_changed_in_place_and_written_back(tmp_path):
    path = written(mlp(), tmp_path / "a.onnx")
    model = conn.load(path)
    model["w1"][...] *= 2
    model["b1"] = np.zeros(16, np.float32)
    with pytest.raises(ValueError, match=r"value for 'b1' must be float32 of shape \(16,\)"):
        model["b1"] = np.zeros(16)
    with pytest.raises(KeyError, match="no array 'w9'"):
        model["w9"]
    model.save(tmp_path / "b.onnx")
    got, expected = onnx.load(tmp_path / "b.onnx"), onnx.load(path)
    for tensor in expected.graph.initializer:
        array = numpy_helper.to_array(tensor)
        changed = {"w1": array * 2, "b1": np.zeros_like(array)}.get(tensor.name, array)
        tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    assert got == expected
    assert onnx.load(path) == mlp()


def test_what_is_not_read_is_written_as_it_was(tmp_path):
    """Byte by byte, also numbers that are not in raw data."""
    proto = mlp()
    proto.graph.initializer[0].CopyFrom(
        helper.make_tensor("w1", TensorProto.FLOAT, (16, 6), normal(16, 6).ravel())
    )
    path = written(proto, tmp_path / "a.onnx")
    model = conn.load(path)
    model.save(tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx").read_bytes() == path.read_bytes()
    np.testing.assert_array_equal(model["w1"], normal(16, 6))
    model.save(path)
    np.testing.assert_array_equal(run(path.read_bytes(), X), run(mlp(), X))


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3)])
@pytest.mark.parametrize("dtype", _tensors.DTYPES.values())
def test_dtypes(dtype, shape, raw, tmp_path):
    import ml_dtypes

    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    values = (normal(*shape) * 9).astype(kind)
    b = Builder()
    tensor = numpy_helper.from_array(values, "a")
    if not raw:
        tensor = helper.make_tensor("a", tensor.data_type, shape, values.ravel().tolist())
    b.arrays.append(tensor)
    h = b.node("Identity", "a")
    proto = b.model(h, kind=tensor.data_type, rank=len(shape))
    model = conn.load(proto)
    assert model["a"].dtype == kind and model["a"].shape == shape
    assert model["a"].tobytes() == values.tobytes()
    model["a"][...] = np.ones((), kind)
    for external in (False, True):
        model.save(tmp_path / "a.onnx", external_data=external)
        onnx.checker.check_model(tmp_path / "a.onnx", full_check=True)
        again = conn.load(tmp_path / "a.onnx")["a"]
        assert again.dtype == kind and again.shape == shape and (again == 1).all()


def test_constants_of_nodes():
    b = Builder()
    w = b.node("Constant", value=numpy_helper.from_array(normal(6, 4)))
    h = b.node("MatMul", b.input("x", ["n", 6]), w)
    b.nodes.append(helper.make_node("Constant", [], ["k"], value_float=2.0))
    proto = b.model(b.node("Mul", h, "k"))
    model = conn.load(proto)
    assert [*model] == [w] and model.initializers[w].role == "weight"
    model[w][...] = 0
    assert not run(model.proto(), X).any() and run(proto, X).any()


def test_arrays_of_inner_graphs_have_the_name_of_their_node():
    proto = branches()
    model = conn.load(proto)
    assert sorted(model) == ["choice.else_branch.w", "choice.then_branch.w", "outer"]
    model["choice.else_branch.w"][...] = 0
    made, x = model.proto(), normal(3, 4)
    assert not run(made, x, np.array(False)).any()
    np.testing.assert_array_equal(run(made, x, np.array(True)), run(proto, x, np.array(True)))
    loop = Builder()
    state = helper.make_tensor_value_info("s", TensorProto.FLOAT, [None, 6])
    after = helper.make_tensor_value_info("t", TensorProto.FLOAT, [None, 6])
    flag = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    more = helper.make_tensor_value_info("more", TensorProto.BOOL, [])
    i = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["s", "w"], ["t"]),
            helper.make_node("Identity", ["go"], ["more"]),
        ],
        "body", [i, flag, state], [more, after], [numpy_helper.from_array(normal(6, 6), "w")],
    )  # fmt: skip
    n, go = loop.array("n", np.int64(2)), loop.array("start", np.array(True))
    made = loop.node("Loop", n, go, loop.input("x", ["n", 6]), body=body)
    model = conn.load(loop.model(made))
    masks = conn.prune(model, 0.5)
    assert [*masks] == ["Loop_0.body.w"]
    w = model["Loop_0.body.w"]
    np.testing.assert_allclose(run(model.proto(), X), X @ w @ w, rtol=1e-4, atol=1e-4)


def test_what_is_no_array_is_named_and_left():
    b = Builder(opset=21, ir=10)
    four = helper.make_tensor("four", TensorProto.INT4, (6, 4), np.arange(24) % 8)
    b.arrays.append(four)
    w = b.node("DequantizeLinear", "four", b.array("scale", np.float32(0.5)))
    h = b.node("Mine", b.node("MatMul", b.input("x", ["n", 6]), w), domain="org.mine")
    b.arrays.append(helper.make_tensor("words", TensorProto.STRING, (2,), [b"a", b"b"]))
    proto = b.model(h)
    model = conn.load(proto)
    assert [*model] == ["scale"]
    assert model.left == {"four": "of data type INT4", "words": "of data type STRING"}
    assert model.unknown == {"org.mine::Mine": ["Mine_2"]}
    with pytest.raises(KeyError, match="'four': it is of data type INT4"):
        model["four"]
    assert model.proto() == proto
    with pytest.raises(ValueError, match=r"onnxruntime cannot run the model: .*org\.mine"):
        conn.Runner(model)


def test_opsets_that_onnx_does_not_know():
    proto = mlp()
    proto.opset_import[0].version = 999
    model = conn.load(proto)
    assert sorted(model.unknown) == ["Add", "Gemm", "MatMul", "Relu", "Tanh"]
    model["w1"][...] = 0
    made = model.proto()
    assert made.opset_import[0].version == 999
    assert conn.groups(model) == [] or all(g.size for g in conn.groups(model))


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("touched", [False, True])
def test_external_data(tmp_path, touched, overwrite):
    options = {"save_as_external_data": True, "size_threshold": 0}
    path = written(mlp(wide=40), tmp_path / "a.onnx", location="weights.bin", **options)
    model = conn.load(path)
    assert all(i.external for i in model.initializers.values())
    if touched:
        model["w2"][...] = 0
    target = path if overwrite else tmp_path / "b.onnx"
    for round in range(3):
        model.save(target)
        onnx.checker.check_model(target, full_check=True)
        written_beside = sorted(p.name for p in tmp_path.iterdir())
        data = f"{target.name}.data" if round % 2 == 0 else f"{target.name}.1.data"
        assert written_beside == sorted({"a.onnx", target.name, data, "weights.bin"}), round
        got = onnx.load(target)
        expected = {t.name: numpy_helper.to_array(t) for t in mlp(wide=40).graph.initializer}
        if touched:
            expected["w2"] = np.zeros((640, 320), np.float32)
        for tensor in got.graph.initializer:
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), expected[tensor.name])
        np.testing.assert_array_equal(model["b1"], expected["b1"])
    # Into the file itself again.
    model.save(target, external_data=False)
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".data")]
    again = conn.load(target)
    assert not any(i.external for i in again.initializers.values())
    for name, array in expected.items():
        np.testing.assert_array_equal(again[name], array)


def test_data_are_read_when_they_are_used(tmp_path):
    path = written(
        mlp(), tmp_path / "a.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    model = conn.load(path)
    (tmp_path / "w").write_bytes((tmp_path / "w").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"w must have .* bytes, as the model says, got 40"):
        model["b3"]
    before = path.read_bytes()
    with pytest.raises(ValueError, match="must have"):
        model.save(path)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "w"]
    with pytest.raises(ValueError, match="it is truncated"):
        conn.load(path)
    (tmp_path / "w").unlink()
    with pytest.raises(FileNotFoundError, match="with the data of w1, does not exist"):
        conn.load(path)


@pytest.mark.parametrize("location", ["../w", "/etc/passwd", "", "sub/../../w", "link"])
def test_data_outside_of_the_folder_are_not_read(location, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w").write_bytes(bytes(4096))
    (folder / "link").symlink_to(tmp_path / "w")
    proto = mlp()
    external_data_helper.set_external_data(proto.graph.initializer[0], location)
    proto.graph.initializer[0].ClearField("raw_data")
    (folder / "a.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ValueError, match="w1 must have its data in the folder of the model"):
        conn.load(folder / "a.onnx")
    with pytest.raises(ValueError, match="load the model by its path"):
        conn.load(proto)


def tensor_changed(field, value):
    proto = mlp()
    tensor = proto.graph.initializer[0]
    if field == "dims":
        tensor.dims[:] = value
    else:
        setattr(tensor, field, value)
    return proto.SerializeToString()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "must have a graph"),
        (b"not an onnx file", "is not a complete ONNX model"),
        (mlp().SerializeToString()[:-7], "is not a complete ONNX model"),
        (tensor_changed("dims", [2**40, 2**40]), "w1 must have .* bytes of data"),
        (tensor_changed("dims", [-1, 6]), "lengths of 0 or more"),
        (tensor_changed("dims", [16, 5]), "w1 must have 320 bytes of data"),
        (tensor_changed("data_type", 0), "must have a data type that onnx knows"),
        (tensor_changed("data_type", 99), "must have a data type that onnx knows"),
        (tensor_changed("data_type", 11), "w1 must have 768 bytes"),
        (tensor_changed("raw_data", b""), "w1 must have 384 bytes of data"),
        (tensor_changed("name", "b1"), "must have different names, got 'b1' twice"),
    ],
)
def test_damaged_files(data, match, tmp_path):
    (tmp_path / "a.onnx").write_bytes(data)
    with pytest.raises(ValueError, match=match):
        conn.load(tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"raw_data": bytes(8), "float_data": [1, 2]}, "w must have its data once, got"),
        ({"float_data": [1]}, r"w must have 2 numbers, float32 of shape \(2,\), got 1 in float_da"),
        ({"int32_data": [1, 2]}, "w must have 2 numbers, .*, got 2 in int32_data"),
        ({}, r"w must have 2 numbers, float32 of shape \(2,\), got 0$"),
    ],
)
def test_tensors_whose_data_are_not_what_they_say(fields, match):
    b = Builder()
    b.node("Add", b.input("x", [2]), "w")
    b.arrays.append(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], **fields))
    out = helper.make_tensor_value_info("add_0", TensorProto.FLOAT, [2])
    graph = helper.make_graph(b.nodes, "g", b.inputs, [out], b.arrays)
    with pytest.raises(ValueError, match=match):
        conn.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def test_tensors_in_segments_are_left_as_they_are():
    proto = mlp()
    proto.graph.initializer[0].segment.begin = 0
    proto.graph.initializer[0].segment.end = 96
    model = conn.load(proto)
    assert model.left == {"w1": "a tensor in segments"} and "w1" not in model
    assert model.proto() == proto


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"offset": -4}, "w1 must have 384 bytes of data, got 384 at offset -4"),
        ({"length": 380}, "w1 must have 384 bytes of data, got 380 at offset 0"),
        ({"offset": "first"}, "w1 must have offset and length in numbers"),
        ({"location": "a\0b"}, r"w1 must have its data in a file, got the location 'a\\x00b'"),
    ],
)
def test_places_of_external_data_are_checked(changes, match, tmp_path):
    proto = mlp()
    tensor = proto.graph.initializer[0]
    (tmp_path / "w").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w", "offset": 0, "length": 384, **changes}.items():
        tensor.external_data.add(key=key, value=str(value))
    (tmp_path / "a.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ValueError, match=match):
        conn.load(tmp_path / "a.onnx")


@pytest.mark.parametrize("how", ["read", "written"])
def test_data_that_end_while_they_are_read(how, tmp_path, monkeypatch):
    """A file that is cut after its size was found to be enough."""
    data = tmp_path / "w"
    path = written(
        mlp(), tmp_path / "a.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    model = conn.load(path)
    opened = _tensors.External.opened

    def cut(self):
        @contextlib.contextmanager
        def context():
            with opened(self) as file:
                os.truncate(data, self.offset + 8)
                yield file

        return context()

    monkeypatch.setattr(_tensors.External, "opened", cut)
    with pytest.raises(ValueError, match=r"w was truncated while it was read"):
        model["w1"] if how == "read" else model.save(tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.parametrize("make", [mlp, cnn, branches])
def test_tampered_bytes_give_errors_alone(make, tmp_path):
    """Truncated anywhere, or with a byte changed, a file is a model or a ValueError."""
    data, path = make().SerializeToString(), tmp_path / "a.onnx"
    rng = np.random.default_rng(0)
    places = rng.integers(0, len(data), 50)
    for place in [*places, *range(0, 400, 9)]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.integers(8)
        for tampered in (data[:place], bytes(flipped)):
            path.write_bytes(tampered)
            try:
                model = conn.load(path)
                for name in model:
                    model[name].tobytes()
                conn.groups(model)
                model.save(path)
            except (ValueError, FileNotFoundError) as error:
                assert not isinstance(error, UnicodeDecodeError)


def test_interrupted_writing_changes_nothing(tmp_path, monkeypatch):
    path = written(mlp(wide=40), tmp_path / "a.onnx")
    model = conn.load(path)
    model.save(path, external_data=True)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    model["w1"][...] = 0

    def fail(*args):
        raise OSError(errno.ENOSPC, "the disk is full")

    monkeypatch.setattr("os.fsync", fail)
    for external in (False, True):
        with pytest.raises(OSError, match="the disk is full"):
            model.save(path, external_data=external)
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("external", [False, True])
def test_copies_and_pickles(external, tmp_path):
    path = tmp_path / "a.onnx"
    conn.load(mlp(wide=40)).save(path, external_data=external)
    model = conn.load(path)
    model["w1"][...] *= 3
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert {n: a.tobytes() for n, a in copied.items()} == {
            n: a.tobytes() for n, a in model.items()
        }
        copied["w1"][...] = 0
        assert model["w1"].any()
        copied.save(tmp_path / "b.onnx")
        assert bool([*tmp_path.glob("b.onnx*.data")]) == external


def test_an_invalid_change_is_not_written(tmp_path):
    model = conn.load(mlp())
    model._proto.graph.node[0].input[1] = "nothing"
    with pytest.raises(ValueError, match=r"the model would not be valid: .*nothing"):
        model.save(tmp_path / "a.onnx")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("source", "error"), [(3, TypeError), (b"a.onnx", TypeError), ("no.onnx", FileNotFoundError)]
)
def test_refused_sources(source, error):
    with pytest.raises(error):
        conn.load(source)


@pytest.mark.slow
def test_more_than_2_gb(tmp_path):
    """Three matrices of 800 MB beside a model, of which one is pruned."""
    b = Builder()
    size = 14_142
    h = b.input("x", ["n", size])
    for i in range(3):
        tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[size, size])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "w"), ("offset", 4 * size**2 * i), ("length", 4 * size**2)):
            tensor.external_data.add(key=key, value=str(value))
        b.arrays.append(tensor)
        h = b.node("MatMul", h, f"w{i}")
    out = helper.make_tensor_value_info(h, TensorProto.FLOAT, [None, size])
    graph = helper.make_graph(b.nodes, "g", b.inputs, [out], b.arrays)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "a.onnx").write_bytes(proto.SerializeToString())
    with open(tmp_path / "w", "wb") as file:
        for i in range(3):
            np.eye(size, k=i, dtype=np.float32).tofile(file)
    model = conn.load(tmp_path / "a.onnx")
    model["w1"][0, 1] = 7
    with pytest.raises(ValueError, match="at most 2 GB"):
        model.proto()
    model.save(tmp_path / "b.onnx")
    again = conn.load(tmp_path / "b.onnx")
    assert again["w1"][0, 1] == 7 and again["w1"][1, 2] == 1
    x = np.zeros((1, size), np.float32)
    x[0, 0] = 1
    y = conn.Runner(again)(x)
    assert y[0, 3] == 7 and np.count_nonzero(y) == 1


def test_a_model_does_not_replace_the_data_it_reads(tmp_path):
    path = written(
        mlp(), tmp_path / "a.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    model = conn.load(path)
    before = (tmp_path / "w").read_bytes()
    with pytest.raises(ValueError, match="path must be another file than"):
        model.save(tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_and_folders_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"not a regular file but a pipe: .*pipe"):
        conn.load(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError, match="not a regular file"):
        conn.load(tmp_path)
    with pytest.raises(OSError, match=r"not a regular file but a device: .*null"):
        conn.load("/dev/null")
    with pytest.raises(OSError, match=r"not a regular file but a pipe: .*pipe"):
        conn.load(mlp()).save(tmp_path / "pipe")
    path = written(
        mlp(), tmp_path / "a.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    model = conn.load(path)
    (tmp_path / "w").unlink()
    os.mkfifo(tmp_path / "w")
    with pytest.raises(OSError, match=r"not a regular file but a pipe, with the data of w1: .*w"):
        conn.load(path)
    # Of a model that was loaded before.
    with pytest.raises(OSError, match=r"not a regular file but a pipe: .*w"):
        model["w1"]

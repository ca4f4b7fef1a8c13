"""No reader waits for what is not a regular file, and no writer replaces it.

What is opened for another reason than its content, such as a folder's lock, is tested with its
module.
"""

import ast
import os
import signal
import socket
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import compressrs as cr

pytest.importorskip("safetensors")
from safetensors.numpy import save_file

PACKAGE = Path(cr.__file__).parent

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")

#: Calls that open, read, write, replace or move what a path leads to.
CALLS = {
    "open", "os.open", "io.open", "os.replace", "os.rename", "os.link",
    "shutil.move", "shutil.copy", "shutil.copy2", "shutil.copyfile",
    "np.load", "np.memmap", "np.fromfile", "np.save", "np.savez", "np.savez_compressed",
    ".read_bytes", ".read_text", ".write_bytes", ".write_text", ".rename", ".touch", ".tofile",
    "tempfile.NamedTemporaryFile", "tempfile.mkstemp",
}  # fmt: skip

#: Where else than in `_paths.py`: paths that are no user's, or were checked before.
STAGED = "in the work folder, from which `Work.publish` moves it"
KNOWN = {
    ("_files.py", "open"): "a new file of a name that none has",
    ("_files.py", "os.link"): "of a new file, to a name that none has",
    ("_files.py", "os.open"): "a folder, to sync it",
    ("_files.py", "os.replace"): "after `require_replaceable`",
    ("_files.py", "np.memmap"): "of a file that `open_regular` opened",
    ("checkpoint/_container.py", "os.replace"): STAGED,
    ("checkpoint/_source.py", "shutil.copy2"): "of regular files alone, to the work folder",
    ("checkpoint/_work.py", ".write_text"): STAGED,
    ("checkpoint/compressing.py", ".read_text"): "of /proc",
    ("checkpoint/compressing.py", "os.replace"): STAGED,
    ("checkpoint/decompressing.py", "open"): STAGED,
    ("checkpoint/export/compressed_tensors.py", "open"): STAGED,
    ("checkpoint/export/compressed_tensors.py", ".read_bytes"): STAGED,
    ("checkpoint/export/compressed_tensors.py", ".write_text"): STAGED,
    ("checkpoint/export/gguf.py", "open"): STAGED,
    ("checkpoint/export/onnx.py", ".write_bytes"): STAGED,
    ("cli/_output.py", "open"): "the null device",
    ("cli/_output.py", "os.open"): "the null device",
    ("demo/__init__.py", "np.savez"): "to a folder that is removed",
    ("demo/report.py", "tempfile.NamedTemporaryFile"): "whether a folder can be written to",
    ("distributed/offload.py", "tempfile.mkstemp"): "what is mapped, and has no name",
    ("nn/export.py", "np.savez_compressed"): "to memory",
    ("sparse/files.py", "np.savez"): "to memory",
    ("sparse/files.py", "np.savez_compressed"): "to memory",
}


def test_no_file_is_opened_otherwise():
    found = set()
    for source in PACKAGE.rglob("*.py"):
        module = source.relative_to(PACKAGE).as_posix()
        if module == "_paths.py":
            continue
        for node in ast.walk(ast.parse(source.read_text())):
            # Not only calls: a function may be chosen first, and called later.
            if isinstance(node, (ast.Attribute, ast.Name)):
                name = ast.unparse(node)
                found |= {(module, call) for call in (name, f".{name.rpartition('.')[2]}")}
    # `open` is a name of other things as well, such as `checkpoint.open`.
    found = {(module, call) for module, call in found if call in CALLS} - {
        ("checkpoint/__init__.py", "open"),
        ("checkpoint/reader.py", "open"),
    }
    assert found == set(KNOWN)


@contextmanager
def soon():
    """Fail where a call waits, as for a pipe that nobody writes to."""

    def stop(signum, frame):
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def pipe(path):
    os.mkfifo(path)


def sock(path):
    with socket.socket(socket.AF_UNIX) as s:
        # Its path is shorter than those of tests may be.
        before = os.getcwd()
        os.chdir(path.parent)
        try:
            s.bind(path.name)
        finally:
            os.chdir(before)


def device(path):
    try:
        os.mknod(path, 0o20666, os.makedev(1, 5))
    except (OSError, AttributeError):
        pytest.skip("only root makes devices")


SPECIAL = {"pipe": pipe, "socket": sock, "folder": os.mkdir, "device": device}


def model(rng=0):
    return cr.nn.Linear(32, 4, rng=rng)


def adam():
    return cr.optim.Adam(np.ones(3))


@pytest.fixture
def plain(tmp_path):
    path = tmp_path / "plain.safetensors"
    save_file({"a.weight": np.ones((64, 64), np.float32)}, path)
    return path


CSR = cr.sparse.CSRMatrix.from_dense(np.eye(3))


def sensitivity(path):
    pytest.importorskip("matplotlib")
    cr.prune.sensitivity({"w": np.ones((4, 4))}, lambda: 1.0, [0.5]).plot(path)


def quantized_csr():
    dense = np.eye(32, dtype=np.float32)
    return cr.quantize.QuantizedCSRMatrix.from_csr(
        cr.sparse.CSRMatrix.from_dense(dense), cr.quantize.Scheme(bits=8)
    )


def onnx_model():
    pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    w = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
        [value("x", 1, [1, 4])], [value("y", 1, [1, 4])], [w],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def save_onnx(path):
    proto = onnx_model()
    cr.onnx.load(proto).save(path)


def searched(path, plain):
    cr.search.compress(plain, 20_000, destination=path, options=[cr.checkpoint.Rule()])


def exported(to):
    def write(path, plain):
        if to == "onnx":
            pytest.importorskip("onnx")
        cr.checkpoint.export(plain, path, to)

    return write


#: What writes a file, by the suffix that it must have or gives.
WRITERS = {
    "Layer.save": ("", lambda path, plain: model().save(path)),
    "Layer.export": (".npz", lambda path, plain: model().export(path, show=False)),
    "Optimizer.save": ("", lambda path, plain: adam().save(path)),
    "TrainState.save": ("", lambda path, plain: cr.TrainState(model=model()).save(path)),
    "save_npz": (".npz", lambda path, plain: cr.sparse.save_npz(path, CSR)),
    "QuantizedCSRMatrix.save": (".npz", lambda path, plain: quantized_csr().save(path)),
    "save_statistics": (
        "",
        lambda path, plain: cr.prune.save_statistics(path, {"a": cr.prune.InputStatistics(3)}),
    ),
    "Sensitivity.plot": (".svg", lambda path, plain: sensitivity(path)),
    "onnx save": ("", lambda path, plain: save_onnx(path)),
    "compress": (".safetensors", lambda path, plain: cr.checkpoint.compress(plain, path)),
    "decompress": (".safetensors", lambda path, plain: cr.checkpoint.decompress(plain, path)),
    "search.compress": (".safetensors", searched),
    **{
        f"export {to}": (".safetensors" if to == "safetensors" else "", exported(to))
        for to in ("safetensors", "npz", "gguf-tensors", "onnx")
    },
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", WRITERS)
def test_writers_replace_regular_files_alone(tmp_path, plain, name, kind):
    suffix, write = WRITERS[name]
    folder = tmp_path / "out"
    folder.mkdir()
    path, link = folder / f"a{suffix}", tmp_path / f"link{suffix}"
    SPECIAL[kind](path)
    link.symlink_to(path)
    before = path.stat()
    for target in (path, link):
        with soon(), pytest.raises((OSError, ValueError), match=r"regular file|exist"):
            write(target, plain)
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mode == before.st_mode
    assert os.listdir(folder) == [path.name]
    assert link.is_symlink()


@pytest.mark.parametrize("most", [0, 50])
@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_is_full_leaves_nothing(tmp_path, plain, name, most):
    resource = pytest.importorskip("resource")
    suffix, write = WRITERS[name]
    folder = tmp_path / "out"
    folder.mkdir()
    path = folder / f"a{suffix}"
    path.write_bytes(b"before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal of this limit: writes fail as those to a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        with pytest.raises(OSError):
            write(path, plain)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"before"
    # What is complete of a compression is kept, to be resumed.
    assert set(os.listdir(folder)) <= {path.name, f".{path.name}.compressrs"}
    assert name == "compress" or os.listdir(folder) == [path.name]


@pytest.mark.parametrize("name", WRITERS)
def test_a_link_to_itself_is_not_written_to(tmp_path, plain, name):
    suffix, write = WRITERS[name]
    folder = tmp_path / "out"
    folder.mkdir()
    path = folder / f"a{suffix}"
    path.symlink_to(path)
    with pytest.raises(OSError, match="symbolic links"):
        write(path, plain)
    assert os.listdir(folder) == [path.name]


def out(path):
    return path.with_name("out.safetensors")


def calibrated(path):
    rule = cr.checkpoint.Rule(quantize="int4", method="gptq")
    plain = path.with_name("plain.safetensors")
    return cr.checkpoint.compress(plain, out(path), rule, calibration=path)


def read_external(path):
    """Read a model whose arrays are in another file."""
    pytest.importorskip("onnx")
    from onnx.external_data_helper import set_external_data

    proto = onnx_model()
    set_external_data(proto.graph.initializer[0], path.name)
    proto.graph.initializer[0].ClearField("raw_data")
    made = path.with_name("made.onnx")
    made.write_bytes(proto.SerializeToString())
    found = cr.onnx.load(made)
    return found["w"]


def teacher(path):
    return cr.distill.TeacherCache(path.parent)


def distiller(path):
    layer = model()
    return cr.distill.Distiller(layer, np.zeros((4, 4)), cr.optim.Adam(layer.params)).load(path)


def onnx_load(path):
    pytest.importorskip("onnx")
    return cr.onnx.load(path)


#: What reads a file of a name, in any folder.
READERS = {
    "nn.load": ("a", cr.nn.load),
    "Layer.load": ("a", lambda path: model().load(path)),
    "Optimizer.load": ("a", lambda path: adam().load(path)),
    "TrainState.load": ("a", lambda path: cr.TrainState(model=model()).load(path)),
    "Distiller.load": ("a", distiller),
    "load_npz": ("a.npz", cr.sparse.load_npz),
    "QuantizedCSRMatrix.load": ("a.npz", cr.quantize.QuantizedCSRMatrix.load),
    "load_statistics": ("a", cr.prune.load_statistics),
    "Recipe.load": ("a.toml", cr.checkpoint.Recipe.load),
    "onnx.load": ("a.onnx", onnx_load),
    "external data": ("a.data", read_external),
    "TeacherCache": ("index.json", teacher),
    "read_state": ("manifest.json", lambda path: cr.distributed.read_state(path.parent)),
    "calibration": ("a", calibrated),
    "open": ("a.safetensors", cr.checkpoint.open),
    "open index": ("a.safetensors.index.json", cr.checkpoint.open),
    "open folder": ("a.safetensors.index.json", lambda path: cr.checkpoint.open(path.parent)),
    "open shard": ("a.safetensors", lambda path: cr.checkpoint.open(path.parent)),
    "info": ("a.safetensors", cr.checkpoint.info),
    "verify": ("a.safetensors", cr.checkpoint.verify),
    "diff": ("a.safetensors", lambda path: cr.checkpoint.diff(path, path)),
    "compress": ("a.safetensors", lambda path: cr.checkpoint.compress(path, out(path))),
    "decompress": ("a.safetensors", lambda path: cr.checkpoint.decompress(path, out(path))),
    "export": ("a.safetensors", lambda path: cr.checkpoint.export(path, out(path), "npz")),
    "search.compress": (
        "a.safetensors",
        lambda path: cr.search.compress(path, 1000, destination=out(path)),
    ),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", READERS)
def test_readers_do_not_wait(tmp_path, plain, name, kind):
    file, read = READERS[name]
    if kind == "folder" and name in ("open", "info", "verify", "diff", "compress", "decompress",
                                     "export", "search.compress", "open index"):  # fmt: skip
        pytest.skip("it reads folders")
    if name in ("open folder", "open shard"):
        plain.unlink()
    path = tmp_path / file
    SPECIAL[kind](path)
    before = sorted(os.listdir(tmp_path))
    with soon(), pytest.raises(OSError, match=f"not a regular file but a {kind}[:,].*{path.name}"):
        read(path)
    left = set(os.listdir(tmp_path)) - {"made.onnx"}
    assert sorted(left) == before


def test_a_journal_or_a_lock_that_is_a_pipe(tmp_path, plain):
    work = tmp_path / ".out.safetensors.compressrs"
    for name in ("lock", "journal"):
        work.mkdir()
        pipe(work / name)
        with soon(), pytest.raises(OSError, match="regular"):
            cr.checkpoint.compress(plain, tmp_path / "out.safetensors", resume=True)
        (work / name).unlink()
        for path in work.iterdir():
            path.unlink()
        work.rmdir()


def test_temporary_files_of_others_that_are_pipes(tmp_path):
    adam().save(tmp_path / "a")
    from compressrs import _files

    seen = []
    real = _files._remove_abandoned
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_files, "_remove_abandoned", lambda *args: seen.append(args))
        adam().save(tmp_path / "a")
    folder, prefix = seen[0]
    pipe(folder / f"{prefix}0000{_files._TEMPORARY[1]}")
    with soon():
        real(folder, prefix)
        adam().save(tmp_path / "a")


@pytest.mark.parametrize("name", ["lock", "journal.log"])
def test_the_folder_of_a_search(tmp_path, name):
    pytest.importorskip("optuna")
    pipe(tmp_path / name)
    space = cr.search.Space({"a": cr.search.Float(0.0, 1.0)})
    with soon(), pytest.raises(OSError, match="not a regular file but a pipe"):
        cr.search.optimize(lambda design: design["a"], space, trials=1, folder=tmp_path)

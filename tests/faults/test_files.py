"""Every function that writes a file does so atomically and leaves no other file."""

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import compressrs as cr
from compressrs import _files

pytest.importorskip("safetensors")


def optimizer(path):
    w = np.zeros(100)
    cr.optim.Adam(w).save(path)


def distiller(path):
    layer = cr.nn.Linear(3, 2, rng=0)
    cr.distill.Distiller(layer, np.zeros((4, 2)), cr.optim.Adam(layer.params)).save(path)


def matrix(path):
    cr.sparse.save_npz(path, cr.sparse.CSRMatrix.from_dense(np.eye(3)))


def statistics(path):
    cr.prune.save_statistics(path, {"layer": cr.prune.InputStatistics(3)})


def figure(path):
    pytest.importorskip("matplotlib")
    sensitivity = cr.prune.sensitivity({"w": np.ones((4, 4))}, lambda: 1.0, [0.5])
    sensitivity.plot(path)


#: By file suffix, for every function that writes a file.
WRITERS = {
    "safetensors": optimizer,
    "distiller": distiller,
    "npz": matrix,
    "statistics": statistics,
    "svg": figure,
}
writers = pytest.mark.parametrize("ending", WRITERS)
posix = pytest.mark.skipif(os.name != "posix", reason="permissions, links and devices of POSIX")


@writers
def test_files_of_the_same_content_are_the_same_bytes(tmp_path, ending):
    written = set()
    for number in range(8):
        path = tmp_path / f"{number}.{ending}"
        WRITERS[ending](path)
        written.add(path.read_bytes())
    assert len(written) == 1


@writers
def test_names_as_long_as_names_can_be(tmp_path, ending):
    name = "n" * (255 - len(ending) - 1) + f".{ending}"
    WRITERS[ending](tmp_path / name)
    assert os.listdir(tmp_path) == [name]


@posix
@writers
def test_permissions_links_and_devices(tmp_path, ending):
    write = WRITERS[ending]
    path, link = tmp_path / f"a.{ending}", tmp_path / f"link.{ending}"
    before = os.umask(0o027)
    try:
        write(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    finally:
        os.umask(before)
    path.chmod(0o600)
    link.symlink_to(path)
    inode = path.stat().st_ino
    write(link)
    assert link.is_symlink()
    assert path.stat().st_ino != inode
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    pipe = tmp_path / f"pipe.{ending}"
    os.mkfifo(pipe)
    folder = tmp_path / f"folder.{ending}"
    folder.mkdir()
    for bad in (pipe, folder):
        with pytest.raises(OSError, match="not a regular file"):
            write(bad)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert len(os.listdir(tmp_path)) == 4


@posix
def test_the_umask_of_the_process_stays(tmp_path, monkeypatch):
    def refuse(mask):
        raise AssertionError("the umask is the whole process's")

    monkeypatch.setattr(os, "umask", refuse)
    _files.write_atomically(tmp_path / "a", b"a")


@posix
def test_the_folder_is_synced_after_the_rename(tmp_path, monkeypatch):
    calls = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor):
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real_sync(descriptor)

    def replace(*args):
        calls.append("rename")
        real_replace(*args)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    _files.write_atomically(tmp_path / "a", b"a")
    assert calls == ["file", "rename", "folder"]


@posix
def test_what_killed_processes_leave_is_removed(tmp_path):
    path = tmp_path / "checkpoint"
    code = (
        "import os, sys, pathlib; from compressrs import _files\n"
        "real = os.fsync\n"
        "def stop(descriptor):\n"
        "    print('written', flush=True); sys.stdin.read()\n"
        "os.fsync = stop\n"
        f"_files.write_atomically(pathlib.Path({str(path)!r}), bytes(10000))\n"
    )
    command = [sys.executable, "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as running, subprocess.Popen(command, **pipes) as dead:
        assert running.stdout.readline() == dead.stdout.readline() == b"written\n"
        assert len(os.listdir(tmp_path)) == 2
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        _files.write_atomically(path, b"new")
        # The temporary file of the running process is kept.
        assert len(os.listdir(tmp_path)) == 2
        running.kill()
    _files.write_atomically(path, b"newer")
    assert os.listdir(tmp_path) == ["checkpoint"]
    assert path.read_bytes() == b"newer"


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        _files.write_atomically(path, b"after")
    assert os.listdir(tmp_path) == ["a"]
    assert path.read_bytes() == b"before"


def test_many_writers_of_one_path(tmp_path):
    path = tmp_path / "a"
    threads = [
        threading.Thread(
            target=lambda c=c: [_files.write_atomically(path, c * 999) for _ in range(20)]
        )
        for c in (b"a", b"b", b"c", b"d")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(path.read_bytes())) == 1
    assert os.listdir(tmp_path) == ["a"]


def write_cache(folder, **kwargs):
    x = np.arange(40.0).reshape(20, 2)
    return cr.distill.TeacherCache.write(folder, lambda x: x.copy(), x, shard_rows=3, **kwargs)


def test_two_writers_of_one_teacher_cache(tmp_path):
    for k in range(5):
        folder, errors, start = tmp_path / f"{k}", [], threading.Barrier(4)

        def write(folder=folder, errors=errors, start=start):
            start.wait()
            try:
                write_cache(folder)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert write_cache(folder)[:].shape == (20, 2)


def test_a_teacher_cache_with_leftovers(tmp_path):
    (tmp_path / ".index.json.abcd").write_bytes(b"half")
    (tmp_path / ".compressrs-0123-4567.tmp").write_bytes(b"half")
    assert len(write_cache(tmp_path)) == 20
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"must be empty or hold such a cache, got 'notes.txt'"):
        write_cache(other)


def load_optimizer(path):
    cr.optim.Adam(np.zeros(100)).load(path)


def load_distiller(path):
    layer = cr.nn.Linear(3, 2, rng=1)
    cr.distill.Distiller(layer, np.zeros((4, 2)), cr.optim.Adam(layer.params)).load(path)


@pytest.mark.parametrize(
    ("write", "load"), [(optimizer, load_optimizer), (distiller, load_distiller)]
)
def test_any_flipped_byte_is_noticed(tmp_path, write, load):
    path = tmp_path / "a"
    write(path)
    load(path)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    places = {*range(0, len(data), 7), *rng.integers(0, len(data), 100).tolist()}
    for place in sorted(places):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match="a "):
            load(path)


def test_any_flipped_byte_of_a_teacher_cache_is_noticed(tmp_path):
    write_cache(tmp_path)
    rng = np.random.default_rng(0)
    for file in sorted(tmp_path.iterdir()):
        data = file.read_bytes()
        for place in range(0, len(data), 3):
            flipped = bytearray(data)
            flipped[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(flipped)
            with pytest.raises((ValueError, OSError)):
                cr.distill.TeacherCache(tmp_path)[:]
        file.write_bytes(data)
    assert cr.distill.TeacherCache(tmp_path)[:].shape == (20, 2)


def reindexed(folder, **changes):
    """Write an index with changed entries and a valid checksum."""
    from compressrs.distill import cache

    plan = {**json.loads((folder / "index.json").read_bytes()), **changes}
    del plan["blake2b"]
    plan["blake2b"] = cache._index_digest(plan)
    (folder / "index.json").write_text(json.dumps(plan))


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "float64"},
        {"dtype": "float16"},
        {"dtype": "int32"},
        {"rows": float("inf")},
        {"rows": -1},
        {"rows": True},
        {"shard_rows": 0},
        {"shard_rows": 1.5},
        {"classes": None},
        {"classes": 3},
        {"k": 0},
        {"k": 1, "temperature": None},
        {"k": 1, "temperature": 1.0},
    ],
)
def test_an_index_that_does_not_fit_its_shards(tmp_path, changes):
    write_cache(tmp_path)
    reindexed(tmp_path, **changes)
    with pytest.raises(ValueError, match=r"damaged|lacks"):
        cr.distill.TeacherCache(tmp_path)[:]


def spoilt_headers():
    nested = "[" * 50000 + "]" * 50000
    yield "null metadata", '{"__metadata__":null}'
    yield "list metadata", '{"__metadata__":[]}'
    yield "list", "[]"
    yield "nested", nested
    yield "nested metadata", f'{{"__metadata__":{nested}}}'
    yield "no checksum", '{"__metadata__":{"format":"compressrs.optim","version":"2"}}'


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in spoilt_headers()])
@pytest.mark.parametrize("load", [load_optimizer, load_distiller])
def test_hostile_headers(tmp_path, load, text):
    path = tmp_path / "a"
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode())
    with pytest.raises(ValueError, match="a "):
        load(path)


@pytest.mark.slow
@posix
def test_kill_while_saving(tmp_path):
    """Kill a process at arbitrary moments while it saves in a loop."""
    path = tmp_path / "checkpoint"
    code = (
        "import numpy as np, compressrs as cr\n"
        "opt = cr.optim.Adam(np.zeros(100_000))\n"
        f"while True: opt.save({str(path)!r})\n"
    )
    for k in range(20):
        with subprocess.Popen([sys.executable, "-c", code]) as process:
            time.sleep(0.5 + 0.01 * k)
            process.kill()
        with contextlib.suppress(FileNotFoundError):
            cr.optim.Adam(np.zeros(100_000)).load(path)
    cr.optim.Adam(np.zeros(100_000)).save(path)
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_errors_name_the_path_that_was_given(tmp_path):
    layer = cr.nn.Linear(3, 2, rng=0)
    opt = cr.optim.Adam(layer.params)
    run = cr.TrainState(model=layer, optimizer=opt)
    missing = tmp_path / "missing" / "file.safetensors"
    matrix = cr.sparse.CSRMatrix.from_dense(np.eye(2))
    for save in (
        lambda: layer.save(missing),
        lambda: opt.save(missing),
        lambda: run.save(missing),
        lambda: layer.export(missing.with_suffix(".npz"), show=False),
        lambda: cr.sparse.save_npz(missing.with_suffix(".npz"), matrix),
    ):
        with pytest.raises(FileNotFoundError) as found:
            save()
        assert Path(found.value.filename).with_suffix("") == missing.with_suffix("")
    # Before the first 100 steps rather than after them.
    with pytest.raises(FileNotFoundError, match="missing"):
        run.every(100, missing)
    assert run.step_count == 0

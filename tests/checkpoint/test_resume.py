"""Runs that end early leave nothing half done, and go on to the same bytes."""

import errno
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from compressrs import checkpoint
from compressrs.checkpoint import _work

RUN = (
    "import sys; from compressrs import checkpoint as c\n"
    "size = int(sys.argv[3]) or None\n"
    "c.compress(sys.argv[1], sys.argv[2], max_shard_size=size, resume=len(sys.argv) > 4)"
)


def tree(path):
    """Return the contents of a file, or of all files below a folder."""
    if path.is_file():
        return path.read_bytes()
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


class Ended(KeyboardInterrupt):
    pass


@pytest.mark.parametrize(
    ("source", "target", "size"),
    [
        ("plain", "out.safetensors", None),
        ("sharded", "out", None),
        ("sharded", "out", 15_000),
        ("sharded", "all.safetensors", None),
    ],
)
def test_a_run_that_ends_at_any_write_goes_on_to_the_same_bytes(
    source, target, size, request, tmp_path, monkeypatch
):
    src = request.getfixturevalue(source)
    checkpoint.compress(src, tmp_path / f"whole-{target}", max_shard_size=size)
    expected = tree(tmp_path / f"whole-{target}")
    names = {p.name for p in tmp_path.iterdir()}
    pwrite, left = os.pwrite, 0

    def end(descriptor, data, offset):
        nonlocal left
        left -= 1
        if left < 0:
            # What a crash leaves: half of what was to be written.
            pwrite(descriptor, bytes(data)[: len(data) // 2], offset)
            raise Ended
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", end)
    out = tmp_path / target
    for writes in range(1, 200, 3):
        left = writes
        try:
            checkpoint.compress(src, out, max_shard_size=size)
        except Ended:
            # Nothing is to be seen yet; in the second run it ends again, a little later.
            assert not out.exists()
            left = writes // 2 + 1
            try:
                checkpoint.compress(src, out, max_shard_size=size, resume=True)
            except Ended:
                left = 10**9
                checkpoint.compress(src, out, max_shard_size=size, resume=True)
            assert tree(out) == expected, writes
            assert {p.name for p in tmp_path.iterdir()} == names | {target}
            if out.is_dir():
                import shutil

                shutil.rmtree(out)
            else:
                out.unlink()
        else:
            assert writes > 10
            return
    pytest.fail("it never ran to its end")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
@pytest.mark.parametrize("size", [0, 3_000_000])
def test_a_run_that_is_killed_at_random_moments_goes_on_to_the_same_bytes(tmp_path, size):
    rng = np.random.default_rng(0)
    arrays = {f"{i}": rng.normal(0, 1, (500, 500)).astype(np.float32) for i in range(40)}
    src = tmp_path / "a.safetensors"
    save_file(arrays, src)
    checkpoint.compress(src, tmp_path / "whole", max_shard_size=size or None)
    expected = tree(tmp_path / "whole")
    started = time.perf_counter()
    command = [sys.executable, "-c", RUN, src, tmp_path / "timed", str(size)]
    subprocess.run(command, check=True, timeout=120)
    whole = time.perf_counter() - started
    random.seed(0)
    killed = 0
    for i in range(30):
        out = tmp_path / f"out{i}"
        command = [sys.executable, "-c", RUN, src, out, str(size)]
        # From when the journal is there on, until the run would be done.
        child = subprocess.Popen(command)
        while child.poll() is None and not (tmp_path / f".out{i}.compressrs/journal").exists():
            time.sleep(0.001)
        time.sleep(random.uniform(0, whole / 3))
        child.kill()
        if child.wait() != 0 and (tmp_path / f".out{i}.compressrs/journal").exists():
            killed += 1
            assert not out.exists()
            subprocess.run([*command, "resume"], check=True, timeout=120)
        assert tree(out) == expected
    assert killed >= 10


def test_damage_to_what_was_left_is_done_again(plain, tmp_path, monkeypatch):
    checkpoint.compress(plain, tmp_path / "whole.safetensors")
    out = tmp_path / "out.safetensors"
    record, left = _work.Work.record, 6

    def end(self, what):
        nonlocal left
        record(self, what)
        left -= 1
        if left == 0:
            raise Ended

    monkeypatch.setattr(_work.Work, "record", end)
    with pytest.raises(Ended):
        checkpoint.compress(plain, out)
    part = tmp_path / ".out.safetensors.compressrs" / "files" / "0.safetensors"
    data = bytearray(part.read_bytes())
    data[-3000] ^= 1
    part.write_bytes(data)
    checkpoint.compress(plain, out, resume=True)
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_another_run_is_not_resumed(plain, tmp_path, monkeypatch):
    out = tmp_path / "out.safetensors"

    def end(self, what):
        raise Ended

    with monkeypatch.context() as patch, pytest.raises(Ended):
        patch.setattr(_work.Work, "record", end)
        checkpoint.compress(plain, out)
    other = checkpoint.Recipe(checkpoint.Rule(dtype="float16"), ignore=["double", "extremes"])
    with pytest.raises(ValueError, match="had another source, recipe"):
        checkpoint.compress(plain, out, other, resume=True)
    os.utime(plain, ns=(1, 1))
    with pytest.raises(ValueError, match="had another source, recipe"):
        checkpoint.compress(plain, out, resume=True)
    # Anew, what was left is of no use.
    checkpoint.compress(plain, out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.safetensors", "plain.safetensors"]


def test_two_runs_do_not_write_the_same(plain, tmp_path):
    out = tmp_path / "out.safetensors"
    work = _work.Work(out, {}, resume=False)
    try:
        with pytest.raises(OSError, match="another run is writing"):
            checkpoint.compress(plain, out)
    finally:
        work.close(remove=True)
    checkpoint.compress(plain, out)


def test_a_run_that_cannot_begin_leaves_nothing(plain, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_work.Path, "write_text", full)
        for run in (checkpoint.compress, checkpoint.decompress):
            with pytest.raises(OSError, match=rf"the disk of {tmp_path} is full"):
                run(plain, tmp_path / "out.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["plain.safetensors"]
    # Where no run was interrupted, there is nothing to resume.
    checkpoint.compress(plain, tmp_path / "out.safetensors", resume=True)
    checkpoint.verify(tmp_path / "out.safetensors")


def test_a_full_disk_says_how_much_is_needed_and_loses_nothing(plain, tmp_path, monkeypatch):
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"precious")
    pwrite, written = os.pwrite, 0

    def full(descriptor, data, offset):
        nonlocal written
        written += len(data)
        if written > 10_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(descriptor, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match=r"is full: about [\d,]+ bytes are needed") as caught:
            checkpoint.compress(plain, out)
    assert caught.value.errno == errno.ENOSPC
    assert out.read_bytes() == b"precious"
    checkpoint.compress(plain, out, resume=True)
    checkpoint.verify(out)

"""Signals that end the command: a message, an exit code and no temporary files."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("safetensors")
from safetensors.numpy import load_file, save_file

from compressrs.cli._app import COMMANDS

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

#: Each signal, its exit code and what is said.
SIGNALS = [
    ("SIGINT", 130, "interrupted"),
    ("SIGTERM", 143, "terminated"),
    ("SIGHUP", 129, "hung up"),
]
#: Programs in the background ignore SIGINT, and those of nohup SIGHUP, as do all that they start.
DEFAULTS = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
"""
#: The commands that write checkpoints, and further arguments of theirs.
WRITING = {"compress": [], "decompress": [], "export": ["--to", "npz"]}
#: Those that write none, or reports alone.
OTHERS = {"config", "demo", "diff", "doctor", "info", "verify"}


def program(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", DEFAULTS + textwrap.dedent(code), *map(str, arguments)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "code", "said"), SIGNALS)
def test_while_the_command_is_imported(name, code, said):
    """At the first import of each module."""
    modules = ("numpy", "compressrs._core", "typer", "compressrs.cli._app")
    for module in modules if name == "SIGINT" else modules[1::2]:
        done = program(f"""
            class Finder:
                def find_spec(self, name, path=None, target=None):
                    if name == {module!r}:
                        os.kill(os.getpid(), signal.{name})
            sys.meta_path.insert(0, Finder())
            sys.argv = ["compressrs", "--version"]
            from compressrs.cli import main
            sys.exit(main())
        """)
        assert (done.returncode, done.stderr) == (code, f"compressrs: {said}\n"), module


def test_every_command_is_tried():
    assert set(WRITING) | OTHERS == set(COMMANDS)


@pytest.mark.parametrize(
    ("command", "name", "code", "said"),
    [("decompress", *one) for one in SIGNALS]
    + [(command, *SIGNALS[1]) for command in WRITING if command != "decompress"],
)
def test_while_a_file_is_written(command, name, code, said, tmp_path):
    """When the temporary file is complete but not yet renamed."""
    source, target = tmp_path / "source.safetensors", tmp_path / "target.safetensors"
    save_file({"w": np.ones((64, 64), np.float32)}, source)
    target.write_bytes(b"old")
    done = program(
        f"""
        sys.argv = ["compressrs", *sys.argv[1:]]
        from compressrs import _files
        from compressrs.cli import main
        def ending(descriptor):
            print("begun", len(os.listdir({str(tmp_path)!r})))
            os.kill(os.getpid(), signal.{name})
        _files.os = type("Os", (), {{**vars(os), "fsync": staticmethod(ending)}})
        sys.exit(main())
        """,
        command, source, "-o", target, *WRITING[command],
    )  # fmt: skip
    assert "begun 3\n" in done.stdout, done.stdout + done.stderr
    assert done.returncode == code, done.stderr
    again = "; run again with --resume to continue" if command == "compress" else ""
    assert done.stderr.splitlines()[-1] == f"compressrs: {said}{again}"
    left = {path.name for path in tmp_path.iterdir()} - {source.name, target.name}
    # Completed work is kept for --resume.
    assert left == ({".target.safetensors.compressrs"} if command == "compress" else set())
    assert not list(tmp_path.rglob(".compressrs-*.tmp"))
    assert target.read_bytes() == b"old"
    assert (load_file(source)["w"] == 1).all()


def test_signals_that_are_ignored_stay_so():
    done = program("""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        sys.argv = ["compressrs", "--version"]
        from compressrs.cli import main
        os.kill(os.getpid(), signal.SIGHUP)
        sys.exit(main())
    """)
    assert done.returncode == 0 and done.stdout.startswith("compressrs ")


def test_other_programs_and_workers_keep_their_handlers():
    show = "print(*(signal.getsignal(n) is d for n, d in ["
    show += "(signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL), "
    show += "(signal.SIGHUP, signal.SIG_DFL)]))"
    assert program(f"import compressrs.cli\n{show}").stdout == "True True True\n"
    # A process that multiprocessing starts from the command; it is ended by SIGTERM.
    named = "sys.argv = ['compressrs']; import compressrs.cli\n"
    assert program(named + show).stdout == "False False False\n"
    named = "sys.orig_argv.append('--multiprocessing-fork')\n" + named
    assert program(named + show).stdout == "False True True\n"

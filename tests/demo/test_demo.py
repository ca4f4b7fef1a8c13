"""The demo and its command line."""

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress

pytest.importorskip("typer")

from compressrs import cli, demo
from compressrs.demo import report

COMMAND = [sys.executable, "-c", "import sys; from compressrs.cli import main; sys.exit(main())"]


def run(*args, **kwargs):
    return subprocess.run(
        [*COMMAND, *args], capture_output=True, text=True, timeout=300, check=False, **kwargs
    )


def quiet():
    return Progress(console=Console(file=io.StringIO()))


def test_the_whole_job(tmp_path):
    done = run("demo", "--epochs", "2", "--output", str(tmp_path / "new" / "folder"))
    assert done.returncode == 0, done.stderr
    path = tmp_path / "new" / "folder" / "report.html"
    page = path.read_text(encoding="utf-8")
    for name in (
        "dense",
        "pruned, dense file",
        "sparse, CSR file",
        "student, distilled",
        "student, alone",
        "convolutional",
        "filters removed",
    ):
        assert name in done.stdout
        assert f"<td>{name}</td>" in page
    assert page.count("<svg") == page.count("</svg>") == 3
    # Self-contained: no external resources.
    assert not re.search(r"<(script|link|img)|url\(http|@import|xlink:href=\"http", page)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


@pytest.mark.slow
def test_a_seed_repeats_every_figure_but_times():
    first, again = demo.run(3, 1, quiet()), demo.run(3, 1, quiet())
    other = demo.run(4, 1, quiet())
    assert first.losses == again.losses
    assert first.accuracy_over_sparsity == again.accuracy_over_sparsity
    for a, b in zip(first.rows, again.rows, strict=True):
        assert (a.name, a.stored, a.bytes, a.accuracy) == (b.name, b.stored, b.bytes, b.accuracy)
    assert first.losses != other.losses


@pytest.mark.slow
def test_sparse_models_are_as_accurate_over_five_seeds():
    results = [{row.name: row for row in demo.run(seed, 30, quiet()).rows} for seed in range(5)]
    accuracy = {name: np.mean([r[name].accuracy for r in results]) for name in results[0]}
    assert accuracy["dense"] > 0.965
    assert accuracy["sparse, CSR file"] >= accuracy["dense"] - 0.005
    for rows in results:
        dense, sparse = rows["dense"], rows["sparse, CSR file"]
        biases = 300 + 100 + 10
        weights = 64 * 300 + 300 * 100 + 100 * 10
        assert dense.stored == weights + biases
        assert sparse.stored <= round(0.05 * weights) + biases
        assert sparse.bytes < dense.bytes / 7


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_leaves_no_report(tmp_path):
    main, side = pty.openpty()  # progress is shown on a terminal only

    def read():
        """Return what is shown next, or nothing once the other end is closed."""
        assert select.select([main], [], [], 60)[0], "nothing was shown for a minute"
        try:
            return os.read(main, 1024)
        except OSError:
            return b""

    command = [*COMMAND, "demo", "--epochs", "100000", "--output", str(tmp_path)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=side,
        # A shell starts background jobs with SIGINT ignored, which would be inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as child:
        os.close(side)
        try:
            shown = b""
            while b"dense" not in shown:
                shown += read()
            child.send_signal(signal.SIGINT)
            while chunk := read():
                shown += chunk
            assert child.wait(timeout=60) == 130
        finally:
            child.kill()
    os.close(main)
    assert b"interrupted; no report was written" in shown
    assert b"Traceback" not in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("output", ["file/report.html", "/proc/report.html", "/dev/null"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path, output):
    (tmp_path / "file").write_text("precious")
    done = run("demo", "--epochs", "100000", "--output", output, cwd=tmp_path)
    assert done.returncode == 1
    assert "cannot write the report" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on file sizes")
def test_a_full_disk_loses_nothing(tmp_path):
    """The operating system limits the size of a file to 1,000 bytes."""
    path = tmp_path / "report.html"
    path.write_text("the last report")
    code = (
        "import pathlib, resource, sys; from compressrs.demo import report\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: report.write(pathlib.Path(sys.argv[1]), 'x' * 100_000)\n"
        "except OSError as error: sys.exit(str(error))"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60
    )
    assert child.returncode == 1
    assert f"cannot write the report to {path}: File too large" in child.stderr
    assert path.read_text() == "the last report"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_up_ends_the_command_with_a_message(tmp_path, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "cannot write the report: No space left on device")

    monkeypatch.setattr(report, "write", full)
    code = cli.main(["demo", "--epochs", "1", "--output", str(tmp_path)])
    shown = capsys.readouterr()
    assert code == 1
    assert "No space left on device" in shown.err
    assert "student, alone" in shown.out, "the table is printed first"


def test_written_files_have_the_usual_permissions(tmp_path):
    umask = os.umask(0o022)
    try:
        report.write(tmp_path / "report.html", "text")
    finally:
        os.umask(umask)
    assert (tmp_path / "report.html").stat().st_mode & 0o777 == 0o644


def test_missing_packages_are_named():
    code = (
        "import sys; sys.modules['sklearn'] = None; sys.modules['sklearn.datasets'] = None\n"
        "from compressrs.cli import main; sys.exit(main(['demo']))"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert child.returncode == 2
    assert "pip install 'compressrs[demo]'" in child.stderr
    assert "Traceback" not in child.stderr


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["dance"],
        ["demo", "--epochs", "0"],
        ["demo", "--epochs", "1.5"],
        ["demo", "--seed", "-1"],
        ["demo", "--seed", "4294967296"],
        ["demo", "more"],
    ],
)
def test_wrong_arguments(args, capsys):
    assert cli.main(args) == 2
    shown = capsys.readouterr()
    assert "Usage: compressrs" in shown.out + shown.err


def test_help_has_examples(capsys):
    for args, example in (
        (["demo", "--help"], "compressrs demo --seed 1"),
        (["compress", "--help"], "compressrs compress model.safetensors -o small.safetensors"),
    ):
        assert cli.main(args) == 0
        assert example in " ".join(capsys.readouterr().out.split())


def test_config_and_version(capsys):
    assert cli.main(["config"]) == 0
    assert "instruction set" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("compressrs ")

"""What is shown of names from files, and what happens where nothing can be shown."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("safetensors")
from safetensors.numpy import save_file

import compressrs as cr
from compressrs._text import figure_text, html_text, markdown_table, printable
from compressrs.cli import main
from compressrs.cli._app import COMMANDS

PACKAGE = Path(cr.__file__).parent
#: Names with rich's markup, its emoji, escape sequences, HTML, Markdown, formulas and marks that
#: reorder text, and what is shown of each.
NAMES = {
    "a[/]": "a[/]",
    "experts[red].weight": "experts[red].weight",
    "[link=x]b[/link]": "[link=x]b[/link]",
    "c:smile:": "c:smile:",
    "x\x1b[31mred": r"x\x1b[31mred",
    "e\x9b31m": r"e\x9b31m",
    "f\r\n\tg\b": r"f\r\n\tg\x08",
    "h\u202ei": r"h\u202ei",
    "<script>&amp;'\"": "<script>&amp;'\"",
    r"$\frac{$": r"$\frac{$",
    "a|b": "a|b",
    "\u043a\u043b\u044e\u0447": "\u043a\u043b\u044e\u0447",
}


@pytest.fixture
def hostile(tmp_path):
    path = tmp_path / "m[red].safetensors"
    save_file({name: np.ones((64, 64), np.float32) for name in NAMES}, path)
    return path


def names_of(text):
    return {
        cells[1].strip() for line in text.splitlines() if len(cells := line.split("\u2502")) > 2
    }


def test_every_output_of_the_command_goes_through_one_module():
    for source in (PACKAGE / "cli").glob("*.py"):
        if source.name == "_output.py":
            continue
        for node in ast.walk(ast.parse(source.read_text())):
            name = ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""
            if source.name == "__init__.py" and name in ("print", "sys.stderr"):
                continue  # Where the library of the output is missing.
            assert name not in ("print", "sys.stderr", "typer.echo", "rich.print"), source
            # Progress alone has a console of its own, whose texts are constants.
            assert name != "Console" or source.name == "_options.py", source


def test_html_and_markdown_are_made_in_one_module():
    for source in PACKAGE.rglob("*.py"):
        text = source.read_text()
        if source.name != "_text.py":
            assert "html.escape" not in text and '" | "' not in text, source


def test_tables_show_names_as_they_are(hostile, tmp_path, capsys):
    target = tmp_path / "small.safetensors"
    assert main(["info", str(hostile)]) == 0
    assert set(NAMES.values()) <= names_of(capsys.readouterr().out)
    assert main(["compress", str(hostile), "-o", str(target), "--report",
                 str(tmp_path / "r.html")]) == 0  # fmt: skip
    assert set(NAMES.values()) <= names_of(capsys.readouterr().out)
    assert main(["diff", str(hostile), str(target)]) == 0
    assert set(NAMES.values()) <= names_of(capsys.readouterr().out)
    for command in (
        ["verify", target],
        ["export", target, "-o", tmp_path / "x[red].npz", "--to", "npz"],
        ["decompress", target, "-o", tmp_path / "y[red].safetensors"],
    ):
        assert main([*map(str, command)]) == 0
        assert "\x1b" not in capsys.readouterr().out
    page = (tmp_path / "r.html").read_text()
    assert "<script" not in page and "\x1b" not in page
    for shown in NAMES.values():
        assert f"<td>{html_text(shown)}</td>" in page


def test_errors_show_names_as_they_are(hostile, tmp_path, capsys):
    bad = tmp_path / "\x1b[31m[/].safetensors"
    assert main(["info", str(bad)]) == 1
    shown = capsys.readouterr().err
    assert "\\x1b[31m[/]" in shown and "\x1b" not in shown and shown.count("\n") == 1


def test_texts():
    for name, shown in NAMES.items():
        assert printable(name) == shown
    assert html_text("<a>&\x1b") == "&lt;a&gt;&amp;\\x1b"
    assert printable("\ud800") == "\\ud800"
    assert figure_text("$a$") == r"\$a\$"
    rows = [["Layer", "n"], ["a|b", "1"], ["<b>", "2"], ["x\ny", "3"]]
    assert markdown_table(rows).splitlines() == [
        "| Layer | n |", "| --- | ---: |", r"| a\|b | 1 |", r"| \<b> | 2 |", r"| x\\ny | 3 |",
    ]  # fmt: skip


def test_plots_of_names(tmp_path):
    pytest.importorskip("matplotlib")
    found = cr.prune.sensitivity({r"$\frac{$": np.ones((4, 4))}, lambda: 1.0, [0.5])
    found.plot(tmp_path / "a.svg")


@pytest.fixture
def full(tmp_path):
    path = tmp_path / "full"
    try:
        os.mknod(path, 0o20666, os.makedev(1, 7))
    except (OSError, AttributeError):
        pytest.skip("only root makes devices")
    return path


#: Arguments of every command, which then has something to show; SRC is a checkpoint.
SHOWN = {
    "compress": ["compress", "SRC", "-o", "OUT"],
    "decompress": ["decompress", "SRC", "-o", "OUT"],
    "info": ["info", "SRC"],
    "verify": ["verify", "SRC"],
    "diff": ["diff", "SRC", "SRC"],
    "export": ["export", "SRC", "-o", "OUT", "--to", "npz"],
    "config": ["config"],
    "json": ["info", "SRC", "--json"],
    "help": ["--help"],
    "help of a command": ["compress", "--help"],
    "version": ["--version"],
}
#: Those that take long.
SLOW = {"demo": ["demo", "--epochs", "1", "--output", "OUT"], "doctor": ["doctor"]}


def test_every_command_is_among_them():
    assert {arguments[0] for arguments in (SHOWN | SLOW).values()} >= set(COMMANDS)


@pytest.fixture
def streams(monkeypatch):
    """Return a function that runs a command with a file as a standard stream, or without one."""

    def run(name, path, arguments):
        with (
            open(os.devnull if path is None else path, "w") as stream,
            monkeypatch.context() as own,
        ):
            own.setattr(sys, name, None if path is None else stream)
            return main([str(a) for a in arguments])

    return run


@pytest.mark.skipif(os.name != "posix", reason="devices of POSIX")
@pytest.mark.parametrize(
    "name", [*SHOWN, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_output_that_cannot_be_written(hostile, tmp_path, full, name, streams, capsys):
    paths = {"SRC": hostile, "OUT": tmp_path / "out.safetensors"}
    arguments = [paths.get(a, a) for a in (SHOWN | SLOW)[name]]
    capsys.readouterr()
    assert streams("stdout", full, arguments) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("compressrs: standard output cannot be written: ")
    assert "No space" in shown and shown.count("\n") == 1
    # Without a place for errors, the code tells.
    for nowhere in (full, None):
        assert streams("stderr", nowhere, ["info", tmp_path / "no"]) == 1
    assert streams("stderr", full, ["nothing"]) in (1, 2)


def shell(line, *arguments):
    return subprocess.run(
        ["sh", "-c", line, "sh", sys.executable, "-m", "compressrs", *map(str, arguments)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.skipif(os.name != "posix", reason="descriptors of POSIX")
def test_streams_that_are_closed(hostile, tmp_path, full):
    for line in ('"$@" >&-', f'"$@" >{full}'):
        done = shell(line, "info", hostile)
        assert done.returncode == 1
        assert done.stderr.startswith("compressrs: standard output cannot be written: ")
        assert done.stderr.count("\n") == 1
    target = tmp_path / "out.safetensors"
    # The first file that is opened does not get the number of standard output.
    done = shell('"$@" <&- >&- 2>&-', "compress", hostile, "-o", target)
    assert done.returncode == 1
    assert cr.checkpoint.verify(target) == len(NAMES)

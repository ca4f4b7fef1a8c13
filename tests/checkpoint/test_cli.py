"""The commands, as they are typed."""

import inspect
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("typer")

from safetensors.numpy import load_file, save_file

from compressrs.cli import main
from compressrs.cli._app import COMMANDS


def run(*arguments):
    return main([str(a) for a in arguments])


def test_there_and_back(plain, tmp_path, capsys):
    small, again = tmp_path / "small.safetensors", tmp_path / "again.safetensors"
    assert run("compress", plain, "-o", small, "--lossless") == 0
    shown = capsys.readouterr().out
    assert "times smaller" in shown and "half sparse" in shown
    assert run("verify", small) == 0
    assert "15 tensors are intact" in capsys.readouterr().out
    assert run("verify", plain) == 0
    assert "has no checksums" in capsys.readouterr().out
    assert run("info", small) == 0
    assert "ключ" in capsys.readouterr().out
    assert run("diff", plain, small, "--quiet") == 0
    assert run("decompress", small, "-o", again) == 0
    assert again.read_bytes() == plain.read_bytes()


def test_json(plain, tmp_path, capsys):
    small = tmp_path / "small.safetensors"
    assert run("compress", plain, "-o", small, "--prune", "0.5", "--ignore", "extremes",
               "--memory-limit", "500MB", "--threads", "2", "--json") == 0  # fmt: skip
    report = json.loads(capsys.readouterr().out)
    assert report["after"] == small.stat().st_size
    assert run("info", small, "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["dense"]["zeros"] == pytest.approx(0.5, abs=0.01)
    assert run("diff", plain, small, "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert 0 < rows["dense"]["relative_error"] < 1 and rows["bias"]["changed"] == 0
    assert run("diff", plain, small, "--quiet") == 1


def test_export(plain, tmp_path, capsys):
    small, arrays = tmp_path / "small.safetensors", tmp_path / "arrays.npz"
    assert run("compress", plain, "-o", small) == 0
    assert run("export", small, "-o", arrays, "--to", "npz") == 0
    assert str(arrays) in capsys.readouterr().out.splitlines()[-1]
    with np.load(arrays) as found:
        np.testing.assert_array_equal(found["dense"], load_file(plain)["dense"])
    assert run("export", small, "-o", tmp_path / "x", "--to", "zip") == 2
    assert "compressed-tensors" in capsys.readouterr().err


def test_an_export_says_what_it_wrote(plain, tmp_path, capsys):
    small, arrays = tmp_path / "small.safetensors", tmp_path / "arrays.npz"
    options = ["--prune", "0.5", "--set", "dense=int8", "--ignore", "extremes"]
    assert run("compress", plain, "-o", small, *options) == 0
    capsys.readouterr()
    assert run("export", small, "-o", arrays, "--to", "npz") == 0
    shown = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("│")] for line in shown.splitlines()]
    rows = {row[1]: row for row in cells if len(row) > 2}
    assert rows["dense"][4:7] == ["quantized", "float32", "quantized"]
    assert rows["bias"][6] == "-"
    assert "npz has no form for what " in shown and "1 quantized" in shown
    assert re.search(rf"{re.escape(str(arrays))}: .* -> .*: .* times larger", shown)
    assert run("export", small, "-o", arrays, "--to", "npz", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["before"] == small.stat().st_size and report["after"] == arrays.stat().st_size
    lost = {row["name"]: row["lost"] for row in report["rows"]}
    assert lost["dense"] == ["quantized"] and lost["bias"] == []
    assert sum(kinds == ["sparse"] for kinds in lost.values()) > 0


def test_recipes_and_reports(plain, tmp_path, capsys):
    small, recipe, page = (tmp_path / n for n in ("s.safetensors", "r.toml", "r.html"))
    options = ["--set", "re:dense|shared=codebook,entries=16", "--ignore", "extremes"]
    assert run("compress", plain, "-o", small, *options, "--save-recipe", recipe,
               "--report", page) == 0  # fmt: skip
    first = small.read_bytes()
    html = page.read_text()
    assert html.count("<svg") == html.count("</svg>") == 2 and "<td>half sparse</td>" in html
    assert "http-equiv" not in html and "<script" not in html and "<link" not in html
    assert run("compress", plain, "-o", small, "--recipe", recipe, "--dry-run") == 0
    assert "predicted" in capsys.readouterr().out
    assert run("compress", plain, "-o", small, "--recipe", recipe) == 0
    assert small.read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["compress", "no.safetensors", "-o", "x"], 1, "No such file"),
        (["compress", "PLAIN", "-o", "PLAIN"], 2, "--output must be another file than SRC"),
        (["compress", "PLAIN", "-o", "x", "--quantize", "int9"], 2, "quantize must be one of"),
        (["compress", "PLAIN", "-o", "x", "--lossless", "--prune", "0.5"], 2, "lossless keeps"),
        (["compress", "PLAIN", "-o", "x", "--prune", "nan"], 2, "prune must be"),
        (["compress", "PLAIN", "-o", "x", "--entries", "16"], 2, "entries needs quantize"),
        (["compress", "PLAIN", "-o", "x", "--set", "re:(((=int8"], 2, "no regular expression"),
        (["compress", "PLAIN", "-o", "x", "--set", "re:a.*=int4,groupsize=3"], 2, "got groupsize"),
        (["compress", "PLAIN", "-o", "x", "--ignore", "nothing"], 2, "matches no tensor"),
        (
            ["compress", "PLAIN", "-o", "x", "--quantize", "int4", "--group-size", "9" * 25],
            2,
            "gro",
        ),
        (["compress", "PLAIN", "-o", "x", "--threads", "1000000"], 2, "--threads"),
        (["compress", "PLAIN", "-o", "x", "--report", "PLAIN"], 2, "must be another file"),
        (["compress", "PLAIN", "-o", "x", "--save-recipe", "PLAIN"], 2, "must be another file"),
        (["compress", "PLAIN", "-o", "x", "--report", "x"], 2, "must be another file"),
        (["compress", "PLAIN", "-o", "x", "--report", "x/y.html"], 2, "must not be in --output"),
        (["compress", "PLAIN", "-o", "x", "--recipe", "DEEP"], 2, "nested too deep"),
        (["export", "PLAIN", "-o", "x", "--to", "zip"], 2, "to must be one of"),
        (["compress", "PLAIN", "-o", "x", "--memory-limit", "much"], 2, "must be a size"),
        (["compress", "PLAIN", "-o", "x", "--memory-limit", "1KiB"], 2, "memory_limit must be"),
        (["compress", "PLAIN"], 2, "--output"),
        (["verify", "DAMAGED"], 1, "safetensors file"),
        (["nothing"], 2, "nothing"),
    ],
)
def test_mistakes(arguments, code, message, plain, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged.safetensors").write_bytes(plain.read_bytes()[:-1])
    before = plain.read_bytes()
    (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000)
    paths = {
        "PLAIN": plain,
        "DEEP": tmp_path / "deep.toml",
        "DAMAGED": tmp_path / "damaged.safetensors",
    }
    assert run(*(paths.get(a, a) for a in arguments)) == code
    shown = capsys.readouterr()
    assert message in shown.err and "Traceback" not in shown.err
    assert not (tmp_path / "x").exists() and plain.read_bytes() == before


def test_as_a_module(plain, tmp_path):
    small = tmp_path / "small.safetensors"
    for arguments in (["compress", plain, "-o", small], ["verify", small], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-m", "compressrs", *arguments], capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert load_file(small)["dense"].dtype == np.uint8


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_output_that_is_not_read_to_its_end(plain):
    command = [sys.executable, "-m", "compressrs", "info", plain, "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    assert child.stderr.read() == b""
    assert child.wait(timeout=120) == 141
    child.stderr.close()


def test_without_the_library_the_command_says_what_to_install():
    code = (
        "import sys; sys.modules['typer'] = None\n"
        "from compressrs.cli import main; sys.exit(main(['info', 'x']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False,
        env=os.environ,
    )  # fmt: skip
    assert done.returncode == 2
    assert "pip install 'compressrs[cli]'" in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_patterns_as_they_are_typed(command, capsys):
    """Markdown would take ``.*attention.*`` for emphasis."""
    assert run(command, "--help") == 0
    text = "".join(capsys.readouterr().out.split())
    written = [COMMANDS[command].__doc__ or ""]
    for annotation in inspect.get_annotations(COMMANDS[command], eval_str=True).values():
        written += [getattr(m, "help", None) or "" for m in getattr(annotation, "__metadata__", ())]
    for pattern in re.findall(r"'re:[^']*'", " ".join(written)):
        assert pattern in text


def test_differences_are_shown_by_tensor(tmp_path, capsys):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    same = np.ones((2, 3), np.float32)
    changed, last = np.array([[1.0, 2.0, 4.0], [0.0, 0.0, 1.0]], np.float32)[:, None]
    save_file({"same": same, "changed": changed, "shape": same, "gone": same}, first)
    save_file({"same": same, "changed": changed + last, "shape": same[:1], "new": same}, second)
    assert run("diff", first, second) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1].startswith("1 of 5 tensors are the same, largest relative error 0.")
    assert shown[-1].endswith(
        " of the 2 compared as numbers; 3 are in one only or of another shape, and were not "
        "compared"
    )
    rows = {
        cells[1]: cells[2:-1]
        for line in shown
        if len(cells := [cell.strip() for cell in line.split("│")]) > 2
    }
    assert rows["same"][0] == "0.0%" and rows["changed"][:2] == ["33.3%", "1"]
    assert rows["shape"][0] == "another shape"
    assert rows["gone"][0].startswith("only in") and rows["new"][0].startswith("only in")
    assert run("diff", first, second, "--quiet") == 1


def test_no_error_is_shown_of_what_could_not_be_compared(tmp_path, capsys):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    same = np.ones((2, 3), np.float32)
    save_file({"norm": same, "a.weight": same}, first)
    save_file({"norm": same, "a.weight_packed": same}, second)
    assert run("diff", first, second) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("1 of 3 tensors are the same; 2 are in one only") and "error" not in last
    save_file({"norm": same, "a.weight": same.astype(np.int8)}, second)
    assert run("diff", first, second) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 2 tensors are the same"
    assert run("diff", first, first) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "2 of 2 tensors are the same, largest relative error 0"


def test_a_dry_run_needs_no_output(plain, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    assert run("compress", plain, "--dry-run", "--quantize", "int8") == 0
    assert "predicted" in capsys.readouterr().out
    assert run("compress", plain, "--dry-run", "--json", "--max-shard-size", "1MB") == 0
    assert json.loads(capsys.readouterr().out)["dry_run"] is True
    assert run("compress", plain, "--quantize", "int8") == 2
    assert "--output" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_missing_file_is_named_without_the_number_of_the_error(tmp_path):
    missing = tmp_path / "missing.safetensors"
    for arguments in (
        ("info", missing),
        ("verify", missing),
        ("diff", missing, missing),
        ("compress", missing, "-o", tmp_path / "small.safetensors"),
        ("compress", missing, "-o", tmp_path / "small.safetensors", "--budget", "1MB"),
        ("export", missing, "-o", tmp_path / "a.npz", "--to", "npz"),
    ):
        child = subprocess.run(
            [sys.executable, "-m", "compressrs", *map(str, arguments)],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert child.returncode == 1 and not child.stdout
        assert "Errno" not in child.stderr and str(missing) in child.stderr


def test_a_search_without_a_terminal_writes_lines(tmp_path):
    path = tmp_path / "a.safetensors"
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    save_file({"weight": weight}, path)
    child = subprocess.run(
        [sys.executable, "-m", "compressrs", "compress", path, "-o", tmp_path / "b.safetensors",
         "--budget", "9KB", "--json"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout)
    assert re.search(r"^measuring: 0 of \d+$", child.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target-latency", "fast"], "must be a time such as 5ms"),
        (["--budget", "10kB", "--max-drop", "0.1"], "give max-drop and evaluate together"),
        (["--max-drop", "0.1", "--evaluate", " "], "evaluate must be a command, got none"),
        (["--max-drop", "0.1", "--evaluate", "/no/such/program"], "evaluate cannot be run"),
        (["--budget", "10kB", "--executor", "processes"], "give executor without a budget"),
        (["--quantize", "int8", "--report", "/no/such/folder/x.html"], "/no/such/folder"),
    ],
)
def test_options_of_compress_that_cannot_be_followed(plain, tmp_path, capsys, options, message):
    target = tmp_path / "small.safetensors"
    assert run("compress", plain, "-o", target, *options) in (1, 2)
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not target.exists()

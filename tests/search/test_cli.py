"""``compressrs compress`` under a budget."""

import io
import json
import sys
import time

import numpy as np
import pytest

from compressrs import _progress, checkpoint
from compressrs.search import compressing

pytest.importorskip("typer")
text = pytest.importorskip("rich.text")
save_file = pytest.importorskip("safetensors.numpy").save_file

from compressrs.cli import main  # noqa: E402


def run(*arguments):
    return main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """What is measured once is not measured by each test."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def model(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "model.safetensors"
    save_file(
        {
            "a.weight": rng.normal(0, 0.05, (128, 96)).astype(np.float32),
            "b.weight": rng.standard_t(3, (64, 128)).astype(np.float32),
            "b.bias": rng.normal(0, 1, 64).astype(np.float32),
        },
        path,
    )
    return path


def test_a_budget_is_kept(model, cache, tmp_path, capsys):
    small, recipe = tmp_path / "small.safetensors", tmp_path / "recipe.toml"
    code = run(
        "compress", model, "-o", small, "--budget", "16kB", "--save-recipe", recipe,
        "--cache", cache, "--json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(capsys.readouterr().out)["after"] == small.stat().st_size <= 16_000
    # The recipe gives the same file.
    again = tmp_path / "again.safetensors"
    assert run("compress", model, "-o", again, "--recipe", recipe) == 0
    assert again.read_bytes() == small.read_bytes()
    assert len(list(cache.iterdir())) == 3


def test_the_time_includes_that_of_measuring(model, cache, tmp_path, capsys, monkeypatch):
    later, clock, measure = [0.0], time.perf_counter, compressing.measure

    def slow(*args, **kwargs):
        found = measure(*args, **kwargs)
        later[0] = 1000.0
        return found

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + later[0])
    monkeypatch.setattr(compressing, "measure", slow)
    small = tmp_path / "small.safetensors"
    assert run("compress", model, "-o", small, "--budget", "16kB", "--cache", cache, "--json") == 0
    assert 1000 < json.loads(capsys.readouterr().out)["seconds"] < 2000


@pytest.mark.parametrize("workers", [1, 2])
def test_the_tensor_that_is_measured_is_named(model, tmp_path, capsys, monkeypatch, workers):
    monkeypatch.setattr(_progress, "_INTERVAL", 0.0)
    small = tmp_path / "small.safetensors"
    options = "--budget", "16kB", "--workers", workers
    assert run("compress", model, "-o", small, *options) == 0
    lines = capsys.readouterr().err.splitlines()
    assert {"measuring: 0 of 3", "measuring a.weight: 0 of 3"} <= set(lines)
    if workers == 1:
        assert "measuring b.weight: 2 of 3" in lines
    assert any(line.endswith(": 3 of 3") for line in lines)


@pytest.mark.parametrize("name", ["a[b]", "[/red]", "a\x1b[31m"])
def test_names_of_tensors_are_no_markup(name):
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), force_terminal=True)
    with pytest.importorskip("rich.progress").Progress(console=console) as bars:
        task = bars.add_task("measuring", total=3)
        _progress.Advance("measuring", bars, task).begin(name)
    shown = text.Text.from_markup(bars.tasks[0].description).plain
    assert shown == f"measuring {name}".replace("\x1b", "\\x1b")


def test_a_budget_too_small_says_the_least(model, cache, tmp_path, capsys):
    options = ("-o", tmp_path / "x.safetensors", "--cache", cache)
    code = run("compress", model, *options, "--budget", "1kB")
    assert code == 1
    least = int(capsys.readouterr().err.split("at least ")[1].split(",")[0])
    assert run("compress", model, *options, "--budget", least) == 0


def test_a_latency(model, cache, tmp_path, capsys):
    target = tmp_path / "x.safetensors"
    options = ("-o", target, "--cache", cache)
    assert run("compress", model, *options, "--target-latency", "1s") == 0
    # With so much time nothing need be lost.
    with checkpoint.open(target) as c, checkpoint.open(model) as whole:
        assert all((c[name] == whole[name]).all() for name in whole)
    assert run("compress", model, *options, "--target-latency", "0us") == 1
    assert "budget must be at least" in capsys.readouterr().err


def test_a_drop_of_what_a_command_prints(model, cache, tmp_path, capsys):
    script, target = tmp_path / "evaluate.py", tmp_path / "x.safetensors"
    script.write_text(
        "import sys, numpy as np\n"
        "from safetensors.numpy import load_file\n"
        f"a, b = load_file(sys.argv[1]), load_file({str(model)!r})\n"
        "print('accuracy', 1 - np.abs(a['b.weight'] - b['b.weight']).mean())\n"
    )
    command = f"{sys.executable} {script}"
    options = ("--max-drop", "0.02", "--evaluate", command, "--cache", cache)
    assert run("compress", model, "-o", target, *options) == 0
    with checkpoint.open(target) as c, checkpoint.open(model) as whole:
        lost = np.abs(c["b.weight"] - whole["b.weight"]).mean()
    assert 0 < lost <= 0.02
    assert target.stat().st_size < 0.35 * model.stat().st_size
    capsys.readouterr()
    script.write_text("print('nothing')")
    assert run("compress", model, "-o", target, *options) == 1
    assert "evaluate must print a number" in capsys.readouterr().err
    script.write_text("raise SystemExit('broken')")
    assert run("compress", model, "-o", target, *options) == 1
    assert "evaluate exited with 1 and said: broken" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget", "1MB", "--quantize", "int8"), "without rules"),
        (("--budget", "1MB", "--dry-run"), "without rules"),
        (("--max-drop", "0.1"), "max-drop and evaluate together"),
        (("--evaluate", "true"), "max-drop and evaluate together"),
        (("--cache", "x"), "cache and workers need"),
        (("--budget", "1MB", "--max-shard-size", "1MB"), "max-shard-size"),
        (("--budget", "1MB", "--max-drop", "0.1", "--evaluate", "true"), "without budget"),
    ],
)
def test_options_that_exclude_each_other(model, tmp_path, capsys, options, message):
    assert run("compress", model, "-o", tmp_path / "x.safetensors", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()

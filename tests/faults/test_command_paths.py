"""No command writes a file that it reads, or one file for two reasons."""

import os
import subprocess
import sys
from itertools import permutations
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("safetensors")
from safetensors.numpy import save_file

import compressrs as cr
from compressrs._paths import require_distinct
from compressrs.cli import main
from compressrs.cli._app import COMMANDS
from compressrs.cli._options import Use, path_options

PATHS = {name: path_options(command) for name, command in COMMANDS.items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_path_says_what_is_done_with_it(name):
    def is_path(hint):
        return hint is Path or any(map(is_path, get_args(hint)))

    hints = get_type_hints(COMMANDS[name], include_extras=True)
    assert {key for key, hint in hints.items() if is_path(hint)} == set(PATHS[name])
    for key in PATHS[name]:
        assert sum(isinstance(m, Use) for m in hints[key].__metadata__) == 1


def test_options_are_named_as_they_are_typed():
    assert PATHS["compress"] == {
        "src": ("SRC", Use.CHECKPOINT),
        "output": ("--output", Use.WRITTEN),
        "calibration": ("--calibration", Use.READ),
        "recipe": ("--recipe", Use.READ),
        "save_recipe": ("--save-recipe", Use.WRITTEN),
        "cache": ("--cache", Use.KEPT),
        "report": ("--report", Use.WRITTEN),
    }


def pairs():
    for name, options in PATHS.items():
        for (_, (first, use)), (_, (second, other)) in permutations(options.items(), 2):
            if use is Use.WRITTEN and (other is not Use.WRITTEN or first < second):
                yield name, first, second, other


#: What else a command needs.
REST = {"export": ["--to", "npz"]}


@pytest.fixture
def files(tmp_path):
    """Make a file for each use; those that are written exist from before."""
    weights = {"a.weight": np.ones((64, 64), np.float32)}
    save_file(weights, tmp_path / "source.safetensors")
    seen = cr.prune.InputStatistics(64, gram=True)
    cr.prune.save_statistics(tmp_path / "calibration.safetensors", {"a.weight": seen})
    (tmp_path / "recipe.toml").write_text("# mine\n")
    (tmp_path / "report.html").write_text("before")
    (tmp_path / "cache").mkdir()
    return {
        "SRC": tmp_path / "source.safetensors",
        "--output": tmp_path / "output.safetensors",
        "--calibration": tmp_path / "calibration.safetensors",
        "--recipe": tmp_path / "recipe.toml",
        "--save-recipe": tmp_path / "saved.toml",
        "--report": tmp_path / "report.html",
        "--cache": tmp_path / "cache",
    }


def same(path):
    return path


def dotted(path):
    return path.parent / "cache" / ".." / path.name


def symbolic(path):
    link = path.with_name(f"link{path.suffix}")
    link.symlink_to(path)
    return link


def hard(path):
    if not path.is_file():
        pytest.skip("folders and files that are not made have no hard links")
    link = path.with_name(f"link{path.suffix}")
    os.link(path, link)
    return link


def content(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("alias", [same, dotted, symbolic, hard])
@pytest.mark.parametrize(("name", "first", "second", "use"), [*pairs()])
def test_nothing_is_written_for_two_reasons(
    files, tmp_path, capsys, name, first, second, use, alias
):
    if use is Use.KEPT:
        files[second].mkdir(exist_ok=True)
    given = {**{o: files[o] for o, u in PATHS[name].values() if u is not Use.WRITTEN}}
    given = {o: p for o, p in given.items() if o in ("SRC", second)}
    given |= {"--output": files["--output"], second: files[second], first: alias(files[second])}
    before = content(tmp_path)
    options = [str(x) for o, p in given.items() if o != "SRC" for x in (o, p)]
    assert main([name, str(given["SRC"]), *options, *REST.get(name, [])]) == 2
    shown = capsys.readouterr().err
    assert f"{first} must be another file than {second}" in shown or (
        f"{second} must be another file than {first}" in shown
    )
    assert content(tmp_path) == before


def test_the_calibration_that_a_recipe_names(files, tmp_path, capsys):
    files["--recipe"].write_text('calibration = "calibration.safetensors"\n')
    before = content(tmp_path)
    for option in ("--report", "--save-recipe", "--output"):
        given = {"--output": files["--output"], "--recipe": files["--recipe"]}
        given[option] = files["--calibration"]
        options = [str(x) for pair in given.items() for x in pair]
        assert main(["compress", str(files["SRC"]), *options]) == 2
        assert f"{option} must be another file" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_files_of_a_folder_that_is_read(files, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    files["SRC"].rename(folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "LICENSE").write_text("mine")
    (folder / "report.html").write_text("of an earlier run")
    before = content(tmp_path)
    for taken in ("model.safetensors", "config.json", "LICENSE"):
        for option in ("--report", "--save-recipe"):
            assert main(["compress", str(folder), "-o", str(tmp_path / "x.safetensors"),
                         option, str(folder / taken)]) == 2  # fmt: skip
            assert f"{option} must be another file than SRC" in capsys.readouterr().err
    assert content(tmp_path) == before
    pytest.importorskip("matplotlib")
    assert main(["compress", str(folder), "-o", str(tmp_path / "x.safetensors"),
                 "--report", str(folder / "report.html")]) == 0  # fmt: skip


def test_new_files_whose_names_differ_by_case_or_accents(tmp_path):
    for first, second in (("r.html", "R.HTML"), ("caf\u00e9", "cafe\u0301")):
        with pytest.raises(ValueError, match="b must be another file than a"):
            require_distinct({"a": tmp_path / first, "b": tmp_path / second}, {})
    require_distinct({"a": tmp_path / "x" / "r", "b": tmp_path / "y" / "r"}, {})


def test_the_functions_behind_the_commands(files, tmp_path):
    source, seen = files["SRC"], files["--calibration"]
    gptq = cr.checkpoint.Rule(quantize="int4", method="gptq")
    recipe = cr.checkpoint.Recipe(gptq, calibration=seen)
    before = content(tmp_path)
    for call in (
        lambda: cr.checkpoint.compress(source, source),
        lambda: cr.checkpoint.compress(source, seen, gptq, calibration=seen),
        lambda: cr.checkpoint.compress(source, seen, recipe),
        lambda: cr.checkpoint.decompress(source, source),
        lambda: cr.checkpoint.export(source, source, "npz"),
        lambda: cr.checkpoint.export(source, source, "gguf-tensors"),
        lambda: cr.search.compress(source, 20_000, destination=source),
    ):
        with pytest.raises(ValueError, match=r"(dst|destination) must be another file than"):
            call()
        assert content(tmp_path) == before


def test_folders_of_outputs_are_looked_for_before_the_work(files, tmp_path):
    for option in ("--report", "--save-recipe"):
        command = [sys.executable, "-m", "compressrs", "compress", str(files["SRC"]), "-o",
                   str(files["--output"]), option, str(tmp_path / "no" / "x")]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 1
        assert f"the folder {tmp_path / 'no'} of {option} does not exist" in done.stderr
    assert not files["--output"].exists()

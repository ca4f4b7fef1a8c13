"""The figures in docs/ are those of the runs in benches/results/, and runs keep what they say."""

import json
import re
import shlex

import matplotlib
import pytest

from benches.peers import measure, report, roofline, runs
from compressrs.doctor import Peaks

RUNS = runs.load()
PAGES = report.pages()


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_pages_are_what_the_runs_give(path):
    """`python -m benches.peers.report` changes nothing."""
    assert path.read_text(encoding="utf-8") == report.page(path, RUNS)


def test_pages_show_each_benchmark():
    """No figures are kept that no page shows."""
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    patterns = [
        name for names in re.findall(r"<!-- figures: ([^>]*) -->", text) for name in names.split()
    ]
    for name, run in RUNS.items():
        for benchmark in run["results"]:
            assert any(report.fnmatch(benchmark, p) for p in patterns), (name, benchmark)


def test_other_figures_make_other_pages():
    changed = json.loads(json.dumps(RUNS))
    for run in changed.values():
        for results in run["results"].values():
            for result in results:
                result["seconds"][next(iter(result["seconds"]))] *= 3
    for path in PAGES:
        assert report.page(path, changed) != path.read_text(encoding="utf-8")
    assert roofline.digest(changed) != roofline.digest(RUNS)


def test_the_picture_is_of_the_same_figures():
    text = (report.DOCS / "roofline.svg").read_text(encoding="utf-8")
    assert roofline.digest(RUNS) in text
    for dot in roofline.dots(RUNS):
        assert f">{dot.label}<" in text


def test_pictures_are_drawn_anew(tmp_path):
    """By the same version of matplotlib, to the byte."""
    kept = {path.name: path.read_text(encoding="utf-8") for path in report.DOCS.glob("front_*.svg")}
    kept["roofline.svg"] = (report.DOCS / "roofline.svg").read_text(encoding="utf-8")
    if any(f"Matplotlib v{matplotlib.__version__}" not in text for text in kept.values()):
        pytest.skip("drawn by another version of matplotlib")
    report.pictures(RUNS, tmp_path)
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == kept


@pytest.mark.parametrize("name", RUNS)
def test_runs_name_machine_commands_and_files(name):
    run = RUNS[name]
    assert run["machine"] and re.fullmatch(r"\d{4}-\d\d-\d\d", run["date"])
    assert run["peaks"]["copy"] > 0
    for command in run["commands"]:
        words = shlex.split(command)
        kept = words[words.index("--json") + 1]
        assert json.loads((report.ROOT / kept).read_text())["command"] == command


def test_a_page_without_its_run_is_refused():
    with pytest.raises(ValueError, match=r"no run in .* has figures of adam"):
        report.figures(["adam"], {}, "#runs")


def test_parts_of_a_run_are_of_one_machine():
    run = RUNS["optim"]
    assert runs.merged("both", [run, run])["results"]["adam"] == 2 * run["results"]["adam"]
    with pytest.raises(ValueError, match="benches/results/both are of several"):
        runs.merged("both", [run, {**run, "machine": "another"}])


def test_what_binds_takes_the_longest():
    result = measure.Result(
        "one", {"ours": 2.0, "theirs": 1.0}, {}, {"copy": 40.0, "multiply_adds": 30.0}
    )
    result.compare_with(Peaks(copy=50.0, multiply_adds=20.0, dot_products=1.0))
    assert (result.binds, result.fraction) == ("multiply_adds", 0.75)


def test_a_run_is_kept(tmp_path, monkeypatch, capsys):
    from benches.peers import __main__ as peers

    monkeypatch.setattr(measure, "_plan", measure._Plan())
    monkeypatch.setattr(measure, "results", {})
    assert set(peers.QUICK) <= set(peers.ALL)
    kept = tmp_path / "results" / "kept.json"
    monkeypatch.setattr("sys.argv", ["benches.peers", "overhead", "--quick", "--json", str(kept)])
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    peers.main()
    assert "Adam, 100 elements" in capsys.readouterr().out
    run = runs.load(kept.parent)["kept"]
    assert run["commands"] == [
        f"OPENBLAS_NUM_THREADS=1 python -m benches.peers overhead --quick --json {kept}"
    ]
    ((result,),) = run["results"].values()
    assert result["title"] == "Adam, 100 elements" and result["seconds"]["compressrs"] > 0
    assert "| Adam, 100 elements |" in report.figures(["overhead"], {"kept": run}, "#runs")

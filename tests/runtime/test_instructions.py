"""The comparison of instruction counts; the counts themselves are a step of `.ci/run`."""

import json

import pytest

from benches.instructions import __main__ as instructions

COUNTS = {"a": 10_000, "b": 20_000}


@pytest.mark.parametrize(("factor", "lines"), [(1.0, 0), (1.019, 0), (1.03, 1), (0.9, 1)])
def test_two_percent_are_tolerated(factor, lines):
    found = instructions.differences({**COUNTS, "b": int(COUNTS["b"] * factor)}, COUNTS)
    assert len(found) == lines and all(line.startswith("b: 20,000 -> ") for line in found)


def test_kernels_that_come_and_go_are_named():
    found = instructions.differences({"a": 10_000, "c": 1}, COUNTS)
    assert found == ["b: not counted any more", "c: not recorded"]


def test_what_is_missing_is_said(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(instructions, "COUNTS", tmp_path / "counts.json")
    monkeypatch.setattr("sys.argv", ["instructions"])
    monkeypatch.setattr(instructions.shutil, "which", lambda _: None)
    assert instructions.main() == 0
    assert "NOT COMPARED: valgrind is not installed" in capsys.readouterr().err
    monkeypatch.setattr(instructions.shutil, "which", lambda _: "/usr/bin/valgrind")
    assert instructions.main() == 0
    assert "NOT COMPARED: none are recorded" in capsys.readouterr().err
    instructions.COUNTS.write_text(json.dumps({"rustc": "rustc 0.2.0", "counts": COUNTS}))
    monkeypatch.setattr(instructions, "rustc", lambda: "rustc 0.1.0")
    assert instructions.main() == 0
    assert "and this is rustc 0.1.0" in capsys.readouterr().err

"""Searches over spaces: reproducible, resumable, and not stopped by what objectives do."""

import copy
import itertools
import math
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import compressrs as cr
from compressrs.search import (
    Candidate,
    Choice,
    Float,
    InfeasibleError,
    Int,
    Pruned,
    Space,
    optimize,
)

optuna = pytest.importorskip("optuna")

ROOT = Path(__file__).parents[2]
SPACE = Space(
    {
        "depth": Int(1, 3),
        "width": Int(4, 64, log=True),
        "second": Int(4, 64, when={"depth": (2, 3)}),
        "activation": Choice(["relu", "gelu", "silu"]),
        "lr": Float(1e-4, 1e-1, log=True),
    }
)


def value(design):
    """A smooth function, best at one design."""
    return (
        (math.log(design["width"] / 32)) ** 2
        + math.log10(design["lr"] / 1e-2) ** 2
        + 0.3 * (design["activation"] != "gelu")
        + (0.5 if design["depth"] == 1 else abs(design["second"] - 20) / 40)
    )


def objective(candidate):
    return value(candidate.design)


def size(design):
    return {"bytes": 4 * design["width"] * (1 + design.get("second", 0))}


def designs(study):
    return [(trial.number, trial.design, trial.state, trial.values) for trial in study.trials]


@pytest.mark.parametrize("sampler", ["random", "evolution", "tpe", "nsga2"])
def test_the_same_seed_gives_the_same_trials(sampler):
    one, two = (optimize(objective, SPACE, 30, sampler=sampler, rng=3) for _ in range(2))
    assert designs(one) == designs(two)
    assert [t.number for t in one.trials] == list(range(30))
    other = optimize(objective, SPACE, 30, sampler=sampler, rng=4, baseline=False)
    assert designs(one) != designs(other)
    for trial in one.trials:
        assert SPACE.check(trial.design) == trial.design
        assert trial.values["value"] == value(trial.design)
    assert len({str(trial.design) for trial in one.trials}) == 30
    assert one.best.values["value"] == min(t.values["value"] for t in one.trials)


@pytest.mark.parametrize("sampler", ["evolution", "tpe"])
def test_search_is_better_than_random_search_of_the_same_length(sampler):
    better = 0
    for rng in range(3):
        found = optimize(objective, SPACE, 60, sampler=sampler, rng=rng)
        assert len(found.random.trials) == 60
        better += found.best.values["value"] < found.random.best.values["value"]
        # Until there is something to learn from, both are the same.
        assert designs(found)[:10] == designs(found.random)[:10]
    assert better == 3


def test_random_search_evaluates_no_design_again():
    calls = []
    optimize(lambda c: calls.append(str(c.design)) or objective(c), SPACE, 40)
    assert len(calls) == len(set(calls)) <= 60


def test_a_sampler_and_a_pruner_of_optuna_can_be_given():
    found = optimize(
        objective,
        SPACE,
        5,
        sampler=lambda seed: optuna.samplers.TPESampler(seed=seed, n_ei_candidates=4),
        pruner=optuna.pruners.MedianPruner(),
    )
    assert found.sampler == "TPESampler" and len(found.complete) == 5


@pytest.mark.parametrize("sampler", ["random", "evolution", "tpe", "nsga2"])
def test_designs_over_budget_are_never_evaluated(sampler):
    evaluated = []

    def counted(candidate):
        assert candidate.costs == size(candidate.design)
        evaluated.append(candidate.costs["bytes"])
        return objective(candidate)

    found = optimize(
        counted, SPACE, 25, sampler=sampler, costs=size, budget={"bytes": 700}, baseline=False
    )
    assert len(found.complete) == len(evaluated) == 25 and max(evaluated) <= 700
    assert sum(trial.refused for trial in found.trials) > 0
    assert "refused before training" in found.table()


def test_no_design_within_the_budget_is_an_error_with_the_least():
    with pytest.raises(InfeasibleError, match=r"bytes <= 10; the least are bytes 16"):
        optimize(objective, SPACE, 5, costs=size, budget={"bytes": 10})


def test_a_space_of_few_designs_is_searched_completely():
    space = Space({"a": Int(1, 5), "b": Choice(["x", "y"])})
    for sampler in ("random", "evolution", "tpe", "nsga2"):
        found = optimize(
            lambda c: c["a"], space, 50, sampler=sampler, costs=lambda d: {"a": d["a"]},
            budget={"a": 4},
        )  # fmt: skip
        assert len(found.trials) == 8 and found.exhausted
        assert {(t.design["a"], t.design["b"]) for t in found.trials} == {
            (a, b) for a in range(1, 5) for b in "xy"
        }
    found = optimize(lambda c: c["a"], space, 30, repeats=True, baseline=False)
    assert len(found.trials) == 30 and not found.exhausted


def test_several_objectives_give_a_frontier():
    directions = {"accuracy": "maximize", "bytes": "minimize"}

    def two(candidate):
        return {"accuracy": -value(candidate.design)}

    for sampler in ("evolution", "nsga2", "tpe", "random"):
        found = optimize(two, SPACE, 60, directions=directions, costs=size, sampler=sampler)
        front = found.frontier
        points = [(t.values["accuracy"], t.values["bytes"]) for t in front]
        assert points == sorted(points, reverse=True)
        for trial in found.complete:
            at_least = [
                p for p in points if p[0] >= trial.values["accuracy"]
                and p[1] <= trial.values["bytes"]
            ]  # fmt: skip
            assert at_least
        # Depths 2 and 3 are as good as each other.
        for a, b in itertools.pairwise(dict.fromkeys(points)):
            assert a[0] > b[0] and a[1] > b[1]
        assert found.best.values["accuracy"] == points[0][0]
        assert "frontier" in found.table()


def faulty(candidate):
    """Fail in another way in each trial."""
    kind = candidate.number % 8
    if kind == 0:
        raise RuntimeError("no convergence")
    if kind == 1:
        return math.nan
    if kind == 2:
        return {"value": 1.0, "other": 2.0}
    if kind == 3:
        return "good"
    if kind == 4:
        raise MemoryError
    if kind == 5:
        return {}
    return objective(candidate)


def test_what_objectives_do_is_recorded_and_the_search_goes_on():
    found = optimize(faulty, SPACE, 48, baseline=False)
    assert [t.state == "complete" for t in found.trials] == [n % 8 > 5 for n in range(48)]
    said = [trial.error for trial in found.trials[:6]]
    assert said[0].startswith("RuntimeError: no convergence (test_optimize.py:")
    assert "the value that the objective returned is nan" in said[1]
    assert said[2] == "the objective returned 'other', which directions do not name"
    assert "must be a number, got 'good'" in said[3]
    assert said[4].startswith("MemoryError")
    assert said[5] == "the objective did not return 'value'"
    assert "| failed | 36 |" in found.table()


def test_no_complete_trial_is_said_with_the_first_error():
    def fails(candidate):
        raise RuntimeError("no data")

    found = optimize(fails, SPACE, 3)
    with pytest.raises(ValueError, match=r"no trial of 3 is complete; .*RuntimeError: no data"):
        found.best  # noqa: B018
    assert "none" in found.table()


def dies(candidate):
    if candidate.number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if candidate.number == 4:
        os._exit(3)
    if candidate.number == 6:
        time.sleep(600)
    if candidate.number == 7:
        sys.exit(5)
    return objective(candidate)


def test_killed_and_endless_processes_are_recorded():
    found = optimize(dies, SPACE, 10, workers=2, timeout=5, baseline=False)
    errors = {t.number: t.error for t in found.trials if t.state != "complete"}
    assert errors == {
        2: "the process ended with signal SIGKILL",
        4: "the process ended with exit code 3",
        6: "timed out after 5 s",
        7: "the process ended with exit code 5",
    }
    assert found.trials[6].seconds == 5


def slowly(candidate):
    time.sleep(0.05 * (candidate.rng % 3))
    return objective(candidate)


def test_trials_of_several_workers_do_not_depend_on_who_is_first(tmp_path):
    one, two = (optimize(slowly, SPACE, 30, workers=3, baseline=False) for _ in range(2))
    assert designs(one) == designs(two)
    single = optimize(objective, SPACE, 30, baseline=False)
    # Random draws, and so the first population, are the same for any number.
    assert designs(one)[:20] == designs(single)[:20]


def test_what_cannot_be_sent_to_processes_is_refused(tmp_path):
    with pytest.raises(TypeError, match="objective must be a function of a module"):
        optimize(lambda c: 1.0, SPACE, 3, workers=2, folder=tmp_path / "a")


SCRIPT = """
import sys, time
from compressrs import search
from tests.search.test_optimize import SPACE, objective, size
evaluated = 0
def stopping(candidate):
    global evaluated
    evaluated += 1
    (candidate.folder / "begun").touch()
    if evaluated == int(sys.argv[2]):
        print("ready", flush=True)
        time.sleep(600)
    return objective(candidate)
search.optimize(stopping, SPACE, 40, folder=sys.argv[1], costs=size, budget={"bytes": 1000})
"""


def script(text, *arguments, **options):
    paths = os.pathsep.join([str(ROOT), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        **options,
    )


def bounded(folder=None, trials=40):
    return optimize(objective, SPACE, trials, folder=folder, costs=size, budget={"bytes": 1000})


def test_a_killed_search_goes_on_as_if_it_had_not_been(tmp_path):
    for after in (25, 3, 20):
        process = script(SCRIPT, tmp_path / "run", after)
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        with pytest.raises(ValueError, match="in use by another search"):
            bounded(tmp_path / "run")
        process.kill()
        process.communicate()
    whole = bounded()
    resumed = bounded(tmp_path / "run")
    assert designs(resumed) == designs(whole)
    assert designs(resumed.random) == designs(whole.random)
    assert [t.refused for t in resumed.trials] == [t.refused for t in whole.trials]
    assert [t.parent for t in resumed.trials] == [t.parent for t in whole.trials]
    # It is complete: nothing is evaluated, and more trials can follow.
    before = (tmp_path / "run" / "journal.log").read_bytes()
    assert designs(bounded(tmp_path / "run")) == designs(whole)
    assert (tmp_path / "run" / "journal.log").read_bytes() == before
    assert designs(bounded(tmp_path / "run", trials=44))[:40] == designs(whole)
    with pytest.raises(ValueError, match="folder holds a search with rng 0, not 1"):
        optimize(
            objective, SPACE, 40, folder=tmp_path / "run", costs=size, budget={"bytes": 1000}, rng=1
        )


def test_a_torn_line_of_the_journal_is_dropped_and_damage_is_said(tmp_path):
    whole = bounded(trials=8)
    bounded(tmp_path, trials=5)
    journal = tmp_path / "journal.log"
    with open(journal, "ab") as file:
        file.write(b'{"op_code": 4, "wor')
    (tmp_path / "journal.log.lock").touch()
    assert designs(bounded(tmp_path, trials=8)) == designs(whole)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:3], b"nonsense\n", *lines[3:]]))
    with pytest.raises(ValueError, match="has a damaged journal"):
        bounded(tmp_path, trials=8)


FULL = """
import resource, sys
from tests.search.test_optimize import bounded
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    bounded(sys.argv[1])
except OSError as error:
    print(error.filename)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of file sizes")
def test_a_full_disk_ends_the_search_which_then_goes_on(tmp_path):
    for limit in (3001, 9100):
        out, err = script(FULL, tmp_path, limit).communicate(timeout=100)
        assert out.strip() == str(tmp_path / "journal.log"), err
        data = (tmp_path / "journal.log").read_bytes()
        assert 1000 < len(data) <= limit and data.endswith(b"\n")
    whole = bounded()
    assert designs(bounded(tmp_path)) == designs(whole)


def learning(candidate):
    """A curve that falls to `value`."""
    for step in range(1, 28):
        candidate.report(step, value(candidate.design) + 1 / step)
    return value(candidate.design)


@pytest.mark.parametrize("pruner", ["asha", "hyperband"])
def test_pruners_save_most_steps_and_keep_the_best(pruner):
    found = optimize(learning, SPACE, 60, sampler="random", pruner=pruner)
    again = optimize(learning, SPACE, 60, sampler="random", pruner=pruner)
    assert designs(found) == designs(again)
    steps = sum(len(trial.steps) for trial in found.trials)
    pruned = [t for t in found.trials if t.state == "pruned"]
    assert pruned and steps < 0.6 * 60 * 27
    assert all(t.values == {} and 1 <= len(t.steps) <= 27 for t in pruned)
    every = optimize(learning, SPACE, 60, sampler="random")
    ranks = sorted(t.values["value"] for t in every.trials)
    assert found.best.values["value"] in ranks[:3]


def test_pruning_works_over_processes():
    found = optimize(learning, SPACE, 20, workers=2, pruner="asha", baseline=False)
    states = {trial.state for trial in found.trials}
    assert states == {"complete", "pruned"}


def test_reports_are_checked_and_recorded_without_a_pruner():
    def reporting(candidate):
        with pytest.raises(TypeError, match="step must be an integer"):
            candidate.report(0.5, 1.0)
        with pytest.raises(TypeError, match="value must be a number"):
            candidate.report(1, "x")
        candidate.report(1, 2.0)
        candidate.report(2, math.nan)
        return {"a": 1.0, "b": 2.0}

    found = optimize(reporting, SPACE, 2, directions={"a": "minimize", "b": "minimize"})
    assert found.trials[0].state == "complete", found.trials[0].error
    assert found.trials[0].steps[1] == 2.0 and math.isnan(found.trials[0].steps[2])
    alone = Candidate(0, {"a": 1})
    alone.report(1, 1.0)  # outside of a search nothing listens
    assert issubclass(Pruned, Exception)


def test_children_find_the_files_of_their_parents(tmp_path):
    found_parents = []

    def inheriting(candidate):
        if candidate.parent is not None:
            text = (candidate.parent_folder / "weights").read_text()
            assert text == f"of {candidate.parent}"
            found_parents.append(candidate.parent)
        (candidate.folder / "weights").write_text(f"of {candidate.number}")
        return objective(candidate)

    found = optimize(inheriting, SPACE, 40, folder=tmp_path, baseline=False)
    assert [trial.error for trial in found.trials if trial.error] == []
    assert len(found_parents) == 20
    assert [t.parent for t in found.trials][20:] == found_parents


def test_studies_are_copied_and_pickled():
    found = optimize(objective, SPACE, 6)
    for twin in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert twin == found and twin.table() == found.table()
    assert "random search" in found.table()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"space": {"a": 1}}, "space must be a Space"),
        ({"objective": 3}, "objective must be callable"),
        ({"trials": 0}, "trials must be at least 1"),
        ({"trials": 1.5}, "trials must be an integer"),
        ({"directions": "up"}, "directions must be one of"),
        ({"directions": {"a": "up"}}, r"directions\['a'\] must be one of"),
        ({"directions": {}}, "directions must name at least one"),
        ({"directions": 3}, "directions must be"),
        ({"sampler": "best"}, "sampler must be one of"),
        ({"sampler": 3}, "sampler must be one of"),
        ({"sampler": lambda seed: 3}, "sampler must make a sampler"),
        ({"pruner": "best"}, "pruner must be one of"),
        ({"pruner": 3}, "pruner must be None"),
        ({"pruner": "asha", "directions": {"a": "minimize", "b": "minimize"}}, "pruner must be N"),
        ({"costs": 3}, "costs must be callable"),
        ({"budget": {"bytes": 1}}, "costs must be given with budget"),
        ({"budget": 3, "costs": size}, "budget must be a dict"),
        ({"budget": {}, "costs": size}, "budget must name at least one"),
        ({"budget": {"bytes": math.nan}, "costs": size}, r"budget\['bytes'\] must be a finite"),
        ({"budget": {"latency": 1}, "costs": size}, "costs must return 'latency'"),
        ({"budget": {"a": 1}, "costs": lambda d: {"a": math.nan}}, "'a' that costs returned"),
        ({"budget": {"a": 1}, "costs": lambda d: 3}, "costs must return a dict"),
        ({"rng": -1}, "rng must be at least 0"),
        ({"rng": None}, "rng must be an integer"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"timeout": 0}, "timeout must be a finite number > 0"),
        ({"folder": 3}, "folder must be a string or a path"),
        ({"baseline": 1}, "baseline must be True or False"),
        ({"repeats": None}, "repeats must be True or False"),
        ({"progress": "yes"}, "progress must be True or False"),
    ],
)
def test_wrong_arguments_are_refused(changed, said):
    given = {"objective": objective, "space": SPACE, "trials": 3, **changed}
    with pytest.raises((TypeError, ValueError), match=said):
        optimize(**given)


def test_optuna_is_left_as_it_was():
    before = optuna.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimize(objective, SPACE, 3)
    assert optuna.logging.get_verbosity() == before


def test_without_optuna_the_first_call_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'compressrs\[search\]'"):
        cr.search.optimize(objective, SPACE, 3)


def test_evolution_mutates_the_best_of_the_last():
    """Against a plain loop over lists, for the same draws."""
    from compressrs.search.sampling import seed_of

    space = Space({f"x{i}": Int(0, 9) for i in range(4)})

    def cost(design):
        return float(sum((v - 3) ** 2 for v in design.values()))

    found = optimize(lambda c: cost(c.design), space, 60, rng=5, baseline=False)
    evaluated = [t.design for t in found.trials[:20]]
    for number in range(20, 60):
        rng = np.random.default_rng(seed_of(5, number))
        while True:
            last = evaluated[-20:]
            drawn = [last[i] for i in rng.choice(20, 10, replace=False)]
            least = [d for d in drawn if cost(d) == min(map(cost, drawn))]
            child = space.mutate(least[rng.integers(len(least))], rng)
            while rng.random() < 0.1:
                child = space.mutate(child, rng)
            if child not in evaluated:
                break
        evaluated.append(child)
    assert [t.design for t in found.trials] == evaluated


@pytest.mark.parametrize("several", [False, True])
def test_reports_need_no_network_and_show_every_trial(several, tmp_path):
    pytest.importorskip("plotly")
    directions = {"loss": "minimize", "bytes": "minimize"} if several else {"loss": "minimize"}
    given = {"directions": directions, "costs": size}
    found = optimize(
        lambda c: {"loss": faulty_later(c)}, SPACE, 25, budget={"bytes": 1000}, **given
    )
    found.report(tmp_path / "search.html")
    page = (tmp_path / "search.html").read_text(encoding="utf-8")
    assert "<script src" not in page and "Plotly.newPlot" in page
    for title in ("History", "Parallel coordinates", "Frontier", "Importance", "Trials"):
        assert f"<h2>{title}" in page
    assert page.count("<tr>") > 25 and "no &lt;convergence&gt;" in page
    importances = found.importances()
    assert set(importances) == set(SPACE.parameters)
    assert sum(importances.values()) == pytest.approx(1)


def faulty_later(candidate):
    if candidate.number == 11:
        raise RuntimeError("no <convergence>")
    return value(candidate.design)


def test_importance_is_that_of_the_parameter_that_matters():
    space = Space({name: Float(0, 1) for name in "abc"})
    found = optimize(lambda c: c["b"] ** 2 + 0.01 * c["a"], space, 60, sampler="random")
    importances = found.importances()
    assert importances["b"] > 0.8
    up = optimize(lambda c: -(c["b"] ** 2), space, 60, sampler="random", directions="maximize")
    assert up.importances()["b"] > 0.8
    with pytest.raises(ValueError, match="importances need two complete trials"):
        optimize(lambda c: 1.0, space, 1).importances()


def test_reports_of_searches_that_failed_can_be_written(tmp_path):
    def fails(candidate):
        raise RuntimeError

    optimize(fails, SPACE, 2).report(tmp_path / "search.html")
    assert "RuntimeError" in (tmp_path / "search.html").read_text(encoding="utf-8")
    with pytest.raises(TypeError, match="path must be a string"):
        optimize(objective, SPACE, 2).report(3)
    with pytest.raises(OSError, match="search"):
        optimize(objective, SPACE, 2).report(tmp_path / "search" / "a.html")

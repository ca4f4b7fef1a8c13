"""A page about a search, with plots by Optuna and plotly."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import optuna

from compressrs._checks import file_path
from compressrs._files import write_atomically
from compressrs._text import html_text
from compressrs.search import sampling
from compressrs.search.results import ALONE, Study

if TYPE_CHECKING:
    import plotly.graph_objects as go

_STATES = {
    "complete": optuna.trial.TrialState.COMPLETE,
    "pruned": optuna.trial.TrialState.PRUNED,
    "failed": optuna.trial.TrialState.FAIL,
}

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font-family: sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em }}
table {{ border-collapse: collapse; font-size: 90% }}
td, th {{ border-bottom: 1px solid #ccc; padding: 0.2em 0.8em; text-align: right }}
td:first-child, th:first-child {{ text-align: left }}
</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""


def in_optuna(study: Study, *, losses: bool = False) -> optuna.Study:
    """Return a study of Optuna in memory with the same trials.

    With `losses`, it only has the first objective, with the sign so that less is better.
    """
    directions = ["minimize"] if losses else list(study.directions.values())
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        made = optuna.create_study(directions=directions)
    finally:
        optuna.logging.set_verbosity(verbosity)
    for trial in study.trials:
        values: Any = None
        if trial.state == "complete":
            values = study._losses([trial])[0, :1] if losses else trial.values.values()
        made.add_trial(
            optuna.trial.create_trial(
                state=_STATES[trial.state],
                values=None if values is None else [float(value) for value in values],
                params=trial.design,
                distributions={
                    name: sampling.distribution(study.space.parameters[name])
                    for name in trial.design
                },
                intermediate_values=trial.steps if len(directions) == 1 else None,
            )
        )
    return made


def importances(study: Study) -> dict[str, float]:
    """Return the importance of each parameter for the first objective.

    Raises
    ------
    ValueError
        If less than two trials are complete.
    """
    if len(study.complete) < 2:
        raise ValueError(f"importances need two complete trials, got {len(study.complete)}")
    found: dict[str, float] = optuna.importance.get_param_importances(
        in_optuna(study, losses=True),
        evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
    )
    return found


def write(study: Study, path: str | os.PathLike[str]) -> None:
    """Write the page.

    Raises
    ------
    ModuleNotFoundError
        If plotly is not installed.
    OSError
        If it cannot be written.
    """
    target = file_path(path)
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "reports of searches need plotly: pip install 'compressrs[search]'", name="plotly"
        ) from None
    parts = [_table(study), f"<script>{get_plotlyjs()}</script>"]
    if study.complete:
        for title, figure in _figures(study):
            plot = figure.to_html(full_html=False, include_plotlyjs=False)
            parts.append(f"<h2>{html_text(title)}</h2>\n{plot}")
    parts.append(f"<h2>Trials</h2>\n{_trials(study)}")
    title = f"Search over {', '.join(study.space.parameters)}"
    page = _PAGE.format(title=html_text(title), body="\n".join(parts))
    write_atomically(target, page.encode("utf-8", "replace"))


def _figures(study: Study) -> Iterator[tuple[str, go.Figure]]:
    import plotly.graph_objects as go
    from optuna import visualization

    made, first = in_optuna(study), next(iter(study.directions))

    def target(trial: Any) -> float:
        return float(trial.values[0])

    history = go.Figure()
    for label, one in ((f"search ({study.sampler})", study), ("random search", study.random)):
        if one is not None and one.complete:
            best = list(
                itertools.accumulate(
                    (t.values[first] for t in one.complete),
                    max if study.directions[first] == "maximize" else min,
                )
            )
            numbers = [t.number for t in one.complete]
            history.add_scatter(x=numbers, y=best, name=f"best of {label}", line_shape="hv")
            values = [t.values[first] for t in one.complete]
            history.add_scatter(x=numbers, y=values, name=label, mode="markers", opacity=0.4)
    history.update_layout(xaxis_title="trial", yaxis_title=first)
    yield "History", history
    yield (
        "Parallel coordinates",
        visualization.plot_parallel_coordinate(made, target=target, target_name=first),
    )
    for x, y in _axes(study):
        yield f"Frontier of {y} and {x}", _scatter(study, x, y)
    if len(study.complete) > 1:
        figure = go.Figure()
        found = dict(reversed(list(importances(study).items())))
        figure.add_bar(x=list(found.values()), y=list(found), orientation="h")
        figure.update_layout(xaxis_title=f"importance for {first}")
        yield "Importance", figure
    if any(trial.steps for trial in study.trials) and len(study.directions) == 1:
        yield "Steps", visualization.plot_intermediate_values(made)


def _axes(study: Study) -> list[tuple[str, str]]:
    """Return pairs of what is traded off: objectives, and costs against the first of these."""
    names = list(study.directions)
    costs = [name for name in study.complete[0].costs if name not in names]
    return [*((x, y) for y, x in itertools.combinations(names, 2)), *((x, names[0]) for x in costs)]


def _scatter(study: Study, x: str, y: str) -> go.Figure:
    import numpy as np
    import plotly.graph_objects as go

    from compressrs.search.results import nondominated

    figure = go.Figure()
    signs = [-1 if study.directions.get(name) == "maximize" else 1 for name in (x, y)]
    for label, one in ((f"search ({study.sampler})", study), ("random search", study.random)):
        if one is None or not one.complete:
            continue
        points = np.array([[{**t.costs, **t.values}[n] for n in (x, y)] for t in one.complete])
        text = [f"trial {t.number}: {t.design}" for t in one.complete]
        figure.add_scatter(
            x=points[:, 0], y=points[:, 1], text=text, name=label, mode="markers", opacity=0.4
        )
        front = points[nondominated(points * signs)]
        front = front[np.argsort(front[:, 0])]
        figure.add_scatter(x=front[:, 0], y=front[:, 1], name=f"frontier of {label}")
    if x in study.budget:
        figure.add_vline(x=study.budget[x], line_dash="dot", annotation_text="budget")
    figure.update_layout(xaxis_title=x, yaxis_title=y)
    return figure


def _table(study: Study) -> str:
    cells = ["".join(f"<td>{html_text(c)}</td>" for c in row) for row in study._comparison()]
    body = "\n".join(f"<tr>{row}</tr>" for row in cells)
    alone = study.random is None and study.sampler != "random"
    return f"<table>{body}</table>\n<p>{ALONE if alone else ''}</p>"


def _trials(study: Study) -> str:
    names = list(study.space.parameters)
    costs = sorted({name for trial in study.trials for name in trial.costs})
    costs = [name for name in costs if name not in study.directions]
    heads = ["trial", "state", *study.directions, *costs, *names, "seconds", "error"]
    rows = ["".join(f"<th>{html_text(head)}</th>" for head in heads)]
    for trial in study.trials:
        numbers = [trial.values.get(n) for n in study.directions]
        numbers += [trial.costs.get(n) for n in costs]
        cells = [
            str(trial.number),
            trial.state,
            *("" if x is None else f"{x:.6g}" for x in numbers),
            *(str(trial.design.get(name, "")) for name in names),
            f"{trial.seconds:.2f}",
            trial.error or "",
        ]
        rows.append("".join(f"<td>{html_text(cell)}</td>" for cell in cells))
    return "<table>" + "\n".join(f"<tr>{row}</tr>" for row in rows) + "</table>"

"""Search for architectures and settings: designs are drawn, evaluated and recorded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from compressrs._checks import choice, file_path, flag, function, number, positive, whole
from compressrs._progress import progress_bar
from compressrs.search._workers import Here, Processes
from compressrs.search.candidates import Candidate
from compressrs.search.results import Study, require_optuna
from compressrs.search.space import Design, Space

DIRECTIONS = ("minimize", "maximize")


def optimize(
    objective: Callable[[Candidate], float | Mapping[str, float]],
    space: Space,
    trials: int,
    *,
    directions: str | Mapping[str, str] = "minimize",
    sampler: str | Callable[[int], Any] = "evolution",
    pruner: Any = None,
    costs: Callable[[Design], Mapping[str, float]] | None = None,
    budget: Mapping[str, float] | None = None,
    rng: int = 0,
    workers: int = 1,
    timeout: float | None = None,
    folder: str | os.PathLike[str] | None = None,
    baseline: bool = True,
    repeats: bool = False,
    progress: bool = False,
) -> Study:
    """Return the best designs of a space by trying some, with random search for comparison.

    Optuna draws designs and records trials; designs over budget are refused before they are
    evaluated. What the objective raises, that it returns NaN or takes too long, and how its
    process ended, is recorded, and the search goes on.

    Parameters
    ----------
    objective : callable
        Trains and evaluates a `Candidate`; returns a number, or numbers by the names in
        `directions`.
    space : Space
    trials : int
        How many, with those that fail or are pruned, and with those before an interruption.
    directions : {"minimize", "maximize"} or dict of str to these, default "minimize"
        What is wanted of the number returned, called "value", or of several by name. One that
        `costs` returns is taken from there if the objective does not return it.
    sampler : str or callable, default "evolution"
        "evolution": regularized evolution; "tpe", "nsga2", "random" of Optuna; or what makes
        a sampler of Optuna from a seed, as ``lambda seed: optuna.samplers.GPSampler(seed=seed)``.
        Each trial has its own sampler, with a seed of `rng` and the number of the trial.
    pruner : {"asha", "hyperband"} or a pruner of Optuna, optional
        Ends trials early that are worse than others after as many steps, as
        `Candidate.report` tells; for one objective. "asha" is asynchronous successive
        halving: of the trials that reached 1, 3, 9, ... steps, the best third goes on;
        "hyperband" adds groups of trials that are first judged later.
    costs : callable, optional
        Returns the costs of a design by name, without training: bytes, multiply-adds, or a
        latency measured on this machine.
    budget : dict of str to float, optional
        The most of some of these costs.
    rng : int, default 0
        The same seed gives the same trials, whenever they end: of several workers, trial n is
        drawn with the results of the trials up to n - workers. Not with a pruner and several
        workers, where it matters which trial is ahead.
    workers : int, default 1
        Processes that evaluate; with one and no `timeout`, this one does. The objective must
        be importable there, as for `multiprocessing` with "spawn". Each has its share of the
        threads.
    timeout : float, optional
        Seconds after which the process of a trial is killed.
    folder : path, optional
        Where trials are recorded (``journal.log``, a journal of Optuna) and have folders for
        their files. The same call goes on where one was interrupted, by whatever; trials that
        were not finished are evaluated again. Nothing is kept without it.
    baseline : bool, default True
        Whether as many trials of random search follow, under the same budget, for the table
        of the result. Designs that the search has evaluated are not evaluated again.
    repeats : bool, default False
        Whether a design may be evaluated twice; of use if the objective is noisy.
    progress : bool, default False
        Whether to show a progress bar; requires rich.

    Returns
    -------
    Study

    Raises
    ------
    TypeError, ValueError
        If an argument is none of these, `costs` do not return what `budget` limits, or
        `folder` is in use, damaged, or of a search with other settings.
    InfeasibleError
        If no design is found that is within the budget; the message says what the least is.
    ModuleNotFoundError
        If Optuna is not installed (``pip install 'compressrs[search]'``).
    OSError
        If a trial cannot be recorded, as on a full disk; those before are.
    RuntimeError
        If processes cannot be started.

    References
    ----------
    Akiba et al., "Optuna", arXiv 1907.10902; Real et al., arXiv 1802.01548 (evolution); Li et
    al., arXiv 1810.05934 (ASHA), 1603.06560 (Hyperband); Yang et al., arXiv 2204.07615 (TabNAS).

    Examples
    --------
    >>> import compressrs as cr
    >>> space = cr.search.Space({
    ...     "width": cr.search.Int(4, 64), "lr": cr.search.Float(1e-4, 1e-1, log=True),
    ... })
    >>> def objective(candidate):
    ...     return 1 / candidate["width"] + abs(candidate["lr"] - 0.01)
    >>> found = cr.search.optimize(
    ...     objective, space, 40, costs=lambda d: {"bytes": 400 * d["width"]},
    ...     budget={"bytes": 12_000},
    ... )
    >>> found.best.costs["bytes"] <= 12_000, found.best.values["value"] < 0.05
    (True, True)
    >>> found.best.values["value"] <= found.random.best.values["value"]
    True
    """
    if not isinstance(space, Space):
        raise TypeError(f"space must be a Space, got {type(space).__name__}")
    function(objective, "objective")
    trials = whole(trials, "trials", 1, 2**53)
    wanted = _directions(directions)
    rng = whole(rng, "rng", 0)
    workers = whole(workers, "workers", 1, 4096)
    if timeout is not None:
        timeout = positive(timeout, "timeout")
    if costs is not None:
        function(costs, "costs")
    limits = _budget(budget, costs)
    path = None if folder is None else file_path(folder, "folder")
    baseline, repeats = flag(baseline, "baseline"), flag(repeats, "repeats")
    progress = flag(progress, "progress")
    require_optuna()
    from compressrs.search import sampling, storage
    from compressrs.search.driver import Driver

    name, chosen = sampling.sampler_of(sampler)
    pruning = sampling.pruner_of(pruner)
    if pruning is not None and len(wanted) > 1:
        raise ValueError(f"pruner must be None with several objectives, got {pruner!r}")
    baseline = baseline and name != "random"
    made_with = {
        "space": repr(space), "directions": wanted, "pruner": type(pruning).__name__,
        "budget": limits, "rng": rng, "repeats": repeats,
    }  # fmt: skip

    def searched(
        key: str, label: str, by: sampling.Sampler, before: Study | None, advance: Any
    ) -> Study:
        driver = Driver(
            space, wanted, by, label, pruning, costs, limits, rng, repeats, before,
            None if path is None else path / key,
        )  # fmt: skip
        driver.open(kept, key, {**made_with, "sampler": label})
        pool: Here | Processes
        if workers == 1 and timeout is None:
            pool = Here(objective, driver.ends)
        else:
            pool = Processes(objective, driver.ends, workers, timeout)
        with pool:
            return driver.run(pool, trials, workers, advance)

    with (
        storage.opened(path) as kept,
        progress_bar("searching", trials * (1 + baseline), progress) as advance,
    ):
        found = searched("search", name, chosen, None, advance)
        if baseline:
            by = sampling.SAMPLERS["random"]
            found = found._beside(searched("random", "random", by, found, advance))
    return found


def _directions(directions: Any) -> dict[str, str]:
    if isinstance(directions, str):
        return {"value": choice(directions, "directions", DIRECTIONS)}
    if not isinstance(directions, Mapping):
        raise TypeError(
            "directions must be 'minimize', 'maximize' or a dict of these by name, "
            f"got {type(directions).__name__}"
        )
    if not directions:
        raise ValueError("directions must name at least one objective, got none")
    for name, direction in directions.items():
        if not isinstance(name, str):
            raise TypeError(f"names in directions must be strings, got {name!r}")
        choice(direction, f"directions[{name!r}]", DIRECTIONS)
    return dict(directions)


def _budget(budget: Any, costs: Any) -> dict[str, float]:
    if budget is None:
        return {}
    if not isinstance(budget, Mapping):
        raise TypeError(
            "budget must be a dict of the most of each cost, as {'bytes': 20_000}, "
            f"got {type(budget).__name__}"
        )
    if not budget:
        raise ValueError("budget must name at least one cost, got none")
    if costs is None:
        raise ValueError("costs must be given with budget, which limits them")
    return {str(name): number(most, f"budget[{name!r}]", 0) for name, most in budget.items()}

"""Sensitivity of a model to pruning each layer by itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import ArrayTree, require_in_place
from compressrs._checks import flag, number, returned_number, sequence
from compressrs._plots import new_figure, save_figure
from compressrs._progress import progress_bar
from compressrs._state import restoring
from compressrs._text import figure_text, markdown_table
from compressrs._typing import Figure
from compressrs.prune._weights import named_weights
from compressrs.prune.granularity import Granularity, as_granularity
from compressrs.prune.scores import Magnitude, Score, as_score
from compressrs.prune.selection import Selection

#: The default sparsities.
SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)


@dataclass(frozen=True)
class Sensitivity:
    """A model's metric with one layer pruned at a time.

    Attributes
    ----------
    names : list of str
        Names of the layers' weights.
    sparsities : list of float
    values : array of float64, shape (layers, sparsities)
        The metric, for example accuracy.
    baseline : float
        The metric of the unpruned model.
    """

    names: list[str]
    sparsities: list[float]
    values: npt.NDArray[np.float64]
    baseline: float

    def table(self) -> str:
        """Return the values as a Markdown table, one row per layer."""
        lines = [
            ["Layer", *(f"{s:.4g}" for s in self.sparsities)],
            *(
                [name, *(f"{value:.4f}" for value in row)]
                for name, row in zip(self.names, self.values, strict=True)
            ),
        ]
        return markdown_table(lines)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Plot the metric over sparsity, one line per layer, and save it if a path is given.

        Raises
        ------
        ModuleNotFoundError
            If matplotlib is not installed (``pip install 'compressrs[demo]'``).
        OSError
            If the file cannot be written.
        """
        figure = new_figure()
        axes = figure.subplots()
        for name, row in zip(self.names, self.values, strict=True):
            axes.plot(
                100 * np.array(self.sparsities),
                row,
                marker="o",
                markersize=3,
                label=figure_text(name),
            )
        axes.axhline(self.baseline, color="gray", linestyle="--", label="nothing pruned")
        axes.set(xlabel="zeros in one layer, %", ylabel="value")
        axes.legend()
        if path is not None:
            save_figure(figure, path)
        return figure


def sensitivity(
    params: ArrayTree,
    evaluate: Callable[[], float],
    sparsities: Sequence[float] = SPARSITIES,
    score: Score | None = None,
    *,
    granularity: Granularity | None = None,
    progress: bool = False,
) -> Sensitivity:
    """Return a model's metric with each layer pruned to each sparsity by itself.

    The weights are restored afterwards, also after an exception or Ctrl-C.

    Parameters
    ----------
    params : array, or list or nested dict of arrays
        The weights; C-contiguous and writable.
    evaluate : callable
        Returns the metric of the model in its current state, for example its accuracy on
        validation data.
    sparsities : sequence of float
        Each in [0, 1).
    score : Score, optional
        The pruning criterion, magnitude by default. A score that needs gradients must
        have been updated before.
    granularity : Granularity, optional
        The unit that is removed; single weights by default.
    progress : bool, default False
        Whether to show a progress bar; requires rich.

    Returns
    -------
    Sensitivity
        With a `table` and a `plot`.

    Raises
    ------
    TypeError
        If a parameter is not an array, or `evaluate` is not callable or does not return a
        number.
    ValueError
        If a sparsity is out of range, or an array cannot be updated in place or
        shares memory with another.

    References
    ----------
    Han et al., arXiv 1506.02626, figure 6.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = {"a": np.array([1.0, 2.0]), "b": np.array([3.0, 4.0])}
    >>> scan = cr.prune.sensitivity(w, lambda: float(w["a"].sum() + w["b"].sum()), [0.5])
    >>> print(scan.table())
    | Layer | 0.5 |
    | --- | ---: |
    | a | 9.0000 |
    | b | 7.0000 |
    >>> w["a"]
    array([1., 2.])
    """
    flag(progress, "progress")
    if not callable(evaluate):
        raise TypeError(f"evaluate must be callable, got {type(evaluate).__name__}")
    names, weights = named_weights(params, "params")
    if not isinstance(sparsities, (Sequence, np.ndarray)) or isinstance(sparsities, str):
        raise TypeError(f"sparsities must be a sequence of numbers, got {sparsities!r}")
    chosen = as_granularity(granularity)
    shares = [number(s, "sparsities", 0, below=1) for s in sequence(sparsities, "sparsities")]
    by_magnitude = score is None or type(score) is Magnitude
    scores = weights if by_magnitude else as_score(score).scores(weights)
    for name, w in zip(names, weights, strict=True):
        # Changes nothing; rejects arrays that cannot be updated in place.
        _core.apply_mask(w, np.ones(w.shape, np.bool_), name)
    require_in_place(weights, names)
    baseline = returned_number(evaluate(), "evaluate")
    values = np.empty((len(weights), len(shares)))
    with progress_bar("layers", values.size, progress) as advance:
        for i, (name, w, found) in enumerate(zip(names, weights, scores, strict=True)):
            whole = w.copy()
            with restoring() as undo:
                undo.remember(w)
                for j, share in enumerate(shares):
                    array = whole if by_magnitude else found
                    selection = Selection([array], [name], share, by_value=not by_magnitude)
                    (mask,) = chosen._select(selection)
                    _core.apply_mask(w, mask, name)
                    values[i, j] = returned_number(evaluate(), "evaluate")
                    w[...] = whole
                    advance()
    # The path in the tree, such as "0.weight".
    labels = [".".join(re.findall(r"[^\[\]']+", name)[1:]) or name for name in names]
    return Sensitivity(labels, shares, values, baseline)

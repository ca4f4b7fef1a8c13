"""The range test of the learning rate."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compressrs._checks import flag, function, positive, returned_number, whole
from compressrs._plots import new_figure, save_figure
from compressrs._progress import progress_bar
from compressrs._state import restoring
from compressrs._typing import Figure
from compressrs.optim.base import Optimizer

#: Weight of the mean so far in the smoothed loss.
_SMOOTHING = 0.9
#: The test ends where the smoothed loss exceeds its least by this many times the size of that,
#: or of how far it fell.
_DIVERGED = 3.0


@dataclass
class _Mean:
    """A moving average without the bias of its beginning at 0."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float) -> float:
        self.total = _SMOOTHING * self.total + (1 - _SMOOTHING) * value
        self.weight = _SMOOTHING * self.weight + (1 - _SMOOTHING)
        return self.total / self.weight


@dataclass(frozen=True)
class LRRange:
    """Losses over growing learning rates.

    Attributes
    ----------
    rates : list of float
        The learning rate of each step, up to where the loss diverged.
    losses : list of float
        The loss of each step, before it.
    """

    rates: list[float]
    losses: list[float]

    @property
    def smoothed(self) -> list[float]:
        """Moving averages of the losses, with weights that fall by 0.9 a step."""
        mean = _Mean()
        return [mean.add(loss) for loss in self.losses]

    @property
    def suggestion(self) -> float:
        """The rate at which the smoothed loss falls fastest over the logarithm of the rate."""
        smoothed = self.smoothed
        if len(smoothed) < 2:
            return self.rates[0]
        return self.rates[int(np.argmin(np.gradient(smoothed)))]

    def plot(self, path: str | Path | None = None) -> Figure:
        """Plot losses over learning rates, and save the plot if a path is given.

        Raises
        ------
        ModuleNotFoundError
            If matplotlib is not installed (``pip install 'compressrs[demo]'``).
        OSError
            If the file cannot be written.
        """
        figure = new_figure()
        axes = figure.subplots()
        axes.plot(self.rates, self.losses, color="lightgray", label="loss of a step")
        axes.plot(self.rates, self.smoothed, label="smoothed")
        axes.axvline(self.suggestion, color="gray", linestyle="--", label="falls fastest")
        axes.set(xlabel="learning rate", ylabel="loss", xscale="log")
        axes.legend()
        if path is not None:
            save_figure(figure, path)
        return figure


def lr_range_test(
    optimizer: Optimizer,
    train: Callable[[], float],
    low: float = 1e-7,
    high: float = 10.0,
    steps: int = 100,
    *,
    progress: bool = False,
) -> LRRange:
    r"""Train with a learning rate that grows from step to step, then undo it.

    .. math:: \gamma_i = low \, (high / low)^{i / (steps - 1)}

    A good maximum of a schedule is the rate at which the loss falls fastest, or a third of the
    one at which it diverges. Parameters and the optimizer's state are put back; what else
    `train` changes, such as the statistics of batch norms or a random generator, is not.

    Parameters
    ----------
    optimizer : Optimizer
        All groups are given the same rates.
    train : callable
        ``train()`` takes one step of training with the optimizer, on a batch of its own, and
        returns the loss before it. With a `ShardedOptimizer` all ranks call this function, and the
        mean of what `train` returns on them is taken.
    low, high : float
        The learning rates of the first and the last step, 0 < low < high.
    steps : int, default 100
        At least 2. The test ends earlier where the smoothed loss exceeds its least by three
        times the size of that, or of how far the loss fell, if that is more.
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    LRRange

    Raises
    ------
    TypeError
        If an argument is of a wrong type, or `train` does not return a number.
    ValueError
        If a number is out of range, or `train` adds a group. After any other exception, also
        of `train`, parameters and state are as before.

    References
    ----------
    Smith, "Cyclical learning rates for training neural networks", arXiv 1506.01186, section 3.3.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.ones(3)
    >>> opt = cr.optim.SGD(w)
    >>> def train():
    ...     loss = float(w @ w)
    ...     opt.step(2 * w)
    ...     return loss
    >>> found = cr.optim.lr_range_test(opt, train)
    >>> bool(0.01 < found.suggestion < 1), w
    (True, array([1., 1., 1.]))
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be an Optimizer, got {type(optimizer).__name__}")
    function(train, "train")
    low, high = positive(low, "low"), positive(high, "high")
    if not low < high:
        raise ValueError(f"low must be less than high, got {low} and {high}")
    whole(steps, "steps", 2, 2**53 - 1)
    flag(progress, "progress")
    arrays = optimizer._arrays()
    state = copy.deepcopy(optimizer.state_dict())
    rates: list[float] = []
    losses: list[float] = []
    mean = _Mean()
    first = least = math.nan

    def load() -> None:
        if len(optimizer._arrays()) == len(arrays):
            optimizer.load_state_dict(state)

    with restoring() as undo:
        undo.remember(*arrays)
        undo.on_failure(load)
        with (
            optimizer._together("lr_range_test"),
            progress_bar("learning rates", steps, progress) as advance,
        ):
            for step in range(steps):
                share = step / (steps - 1)
                rate = low ** (1 - share) * high**share
                for group in optimizer.param_groups:
                    group["lr"] = rate
                loss = optimizer._mean_over_ranks(returned_number(train(), "train"))
                if len(optimizer._arrays()) != len(arrays):
                    raise ValueError("train must not add groups to the optimizer")
                smoothed = mean.add(loss)
                if step == 0:
                    first = least = smoothed
                if not smoothed - least <= _DIVERGED * max(abs(least), first - least):
                    break
                rates.append(rate)
                losses.append(loss)
                least = min(least, smoothed)
                advance()
    if not rates:
        raise ValueError("train must return a finite loss in its first step")
    return LRRange(rates, losses)

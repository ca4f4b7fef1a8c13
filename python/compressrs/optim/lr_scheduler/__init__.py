"""Learning-rate schedules, with the names, arguments and values of PyTorch.

A schedule sets ``param_groups[i]["lr"]``; call its `step` once after each step (or epoch)
of the optimizer. Schedules are closed-form functions of the step, not recursive updates of
the current rate, so they compose exactly: in sequence (`SequentialLR`, for warm-up) and
multiplied (`ChainedScheduler`).

Examples
--------
Warm-up over 10 steps, then a cosine down to 0 over 90:

>>> import numpy as np, compressrs as cr
>>> from compressrs.optim import lr_scheduler
>>> opt = cr.optim.AdamW(np.zeros(2), lr=0.1)
>>> schedule = lr_scheduler.SequentialLR(
...     opt,
...     [
...         lr_scheduler.LinearLR(opt, start_factor=0.1, total_iters=10),
...         lr_scheduler.CosineAnnealingLR(opt, T_max=90),
...     ],
...     milestones=[10],
... )
>>> rates = []
>>> for _ in range(101):
...     rates.append(opt.param_groups[0]["lr"])
...     schedule.step()
>>> [round(rates[t], 4) for t in (0, 5, 10, 55, 100)]
[0.01, 0.055, 0.1, 0.05, 0.0]
"""

from compressrs.optim.lr_scheduler.base import LRScheduler
from compressrs.optim.lr_scheduler.composed import ChainedScheduler, SequentialLR
from compressrs.optim.lr_scheduler.cosines import CosineAnnealingLR, CosineAnnealingWarmRestarts
from compressrs.optim.lr_scheduler.cycles import CyclicLR, OneCycleLR
from compressrs.optim.lr_scheduler.factors import (
    ConstantLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)
from compressrs.optim.lr_scheduler.plateau import ReduceLROnPlateau

__all__ = [
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]

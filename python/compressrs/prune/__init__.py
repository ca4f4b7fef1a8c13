"""Magnitude pruning: thresholds, masks, schedules and the pruner.

A value is removed where its magnitude is below the threshold and kept where it
is equal or above. A mask is a boolean array, True where a weight is kept.
"""

from compressrs.prune.masks import magnitude_mask, magnitude_threshold
from compressrs.prune.pruner import MagnitudePruner
from compressrs.prune.schedules import (
    CubicSchedule,
    ExponentialSchedule,
    LinearSchedule,
    OneShot,
    Schedule,
)

__all__ = [
    "CubicSchedule",
    "ExponentialSchedule",
    "LinearSchedule",
    "MagnitudePruner",
    "OneShot",
    "Schedule",
    "magnitude_mask",
    "magnitude_threshold",
]

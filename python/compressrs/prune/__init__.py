"""Pruning: scores, masks and schedules, and the removal of pruned parts from the arrays.

A mask is a boolean array, True where a weight is kept. Thresholds remove magnitudes below
them and keep those equal or above. Sparsities are exact: among equal values, the first are
removed.

- Masks: `magnitude_mask`, `nm_mask`, `block_mask`, `neuron_mask`, and `masks` from any scores.
- Scores: `Magnitude`, `Random`, `Snip`, `Taylor`, `Movement`, `Wanda`.
- Distribution over layers: ``scope="global"``, "layer", "row", `erdos_renyi`,
  `erdos_renyi_kernel`, or a function.
- During training: `Pruner` and `MagnitudePruner` with schedules; `SET` and `RigL` for layers
  in CSR format; `LotteryTicket`.
- One-shot: `sparsegpt`.
- Removal: `groups` of dependent units, `GroupPruner`, `shrink` and `neurons`, and the layers
  of `compressrs.sparse`.
- Sensitivity of layers: `sensitivity`.
"""

from compressrs.prune.allocation import erdos_renyi, erdos_renyi_kernel
from compressrs.prune.dependencies import Group, Member, groups
from compressrs.prune.dynamic import SET, RigL, rewire
from compressrs.prune.granularity import NM, Blocks, Granularity, Neurons
from compressrs.prune.group_pruner import GroupPruner
from compressrs.prune.layer_sensitivity import Sensitivity, sensitivity
from compressrs.prune.masking import (
    block_mask,
    magnitude_mask,
    magnitude_threshold,
    masks,
    neuron_mask,
    nm_mask,
)
from compressrs.prune.pruner import MagnitudePruner, Pruner
from compressrs.prune.reconstruction import CalibrationWarning, sparsegpt
from compressrs.prune.rewinding import LotteryTicket
from compressrs.prune.schedules import (
    CubicSchedule,
    ExponentialSchedule,
    IterativeSchedule,
    LinearSchedule,
    OneShot,
    Schedule,
)
from compressrs.prune.scores import Magnitude, Movement, Random, Score, Snip, Taylor, Wanda
from compressrs.prune.selection import EmptyLayerWarning
from compressrs.prune.shrinking import shrink
from compressrs.prune.statistics import (
    InputStatistics,
    input_statistics,
    load_statistics,
    save_statistics,
)
from compressrs.prune.structure import neurons

__all__ = [
    "NM",
    "SET",
    "Blocks",
    "CalibrationWarning",
    "CubicSchedule",
    "EmptyLayerWarning",
    "ExponentialSchedule",
    "Granularity",
    "Group",
    "GroupPruner",
    "InputStatistics",
    "IterativeSchedule",
    "LinearSchedule",
    "LotteryTicket",
    "Magnitude",
    "MagnitudePruner",
    "Member",
    "Movement",
    "Neurons",
    "OneShot",
    "Pruner",
    "Random",
    "RigL",
    "Schedule",
    "Score",
    "Sensitivity",
    "Snip",
    "Taylor",
    "Wanda",
    "block_mask",
    "erdos_renyi",
    "erdos_renyi_kernel",
    "groups",
    "input_statistics",
    "load_statistics",
    "magnitude_mask",
    "magnitude_threshold",
    "masks",
    "neuron_mask",
    "neurons",
    "nm_mask",
    "rewire",
    "save_statistics",
    "sensitivity",
    "shrink",
    "sparsegpt",
]

"""Pruning: what to remove, how much of it and when, and taking it away for real.

A mask is a boolean array, True where a weight is kept. A value is removed where its
magnitude is below a threshold and kept where it is equal or above; of equal values, those
that come first go, so that exactly as many do as were asked for.

- Masks: `magnitude_mask`, `nm_mask`, `block_mask`, `neuron_mask`, and `masks` of any scores.
- Scores: `Magnitude`, `Random`, `Snip`, `Taylor`, `Movement`, `Wanda`.
- How much from which layer: ``scope="global"``, "layer", "row", `erdos_renyi`,
  `erdos_renyi_kernel`, and your own.
- While training: `Pruner` and `MagnitudePruner` with schedules; `SET` and `RigL` on layers
  in CSR form; `LotteryTicket`.
- At once: `sparsegpt`.
- For real: `neurons` and `shrink`, and the layers of `compressrs.sparse`.
- What it costs: `sensitivity`.
"""

from compressrs.prune.allocation import erdos_renyi, erdos_renyi_kernel
from compressrs.prune.dynamic import SET, RigL, rewire
from compressrs.prune.granularity import NM, Blocks, Granularity, Neurons
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
from compressrs.prune.statistics import InputStatistics, input_statistics
from compressrs.prune.structure import neurons, shrink

__all__ = [
    "NM",
    "SET",
    "Blocks",
    "CalibrationWarning",
    "CubicSchedule",
    "EmptyLayerWarning",
    "ExponentialSchedule",
    "Granularity",
    "InputStatistics",
    "IterativeSchedule",
    "LinearSchedule",
    "LotteryTicket",
    "Magnitude",
    "MagnitudePruner",
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
    "input_statistics",
    "magnitude_mask",
    "magnitude_threshold",
    "masks",
    "neuron_mask",
    "neurons",
    "nm_mask",
    "rewire",
    "sensitivity",
    "shrink",
    "sparsegpt",
]

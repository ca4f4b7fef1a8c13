"""Search: the best sparsity, bits and widths under a budget.

- The whole loop, for a model or a checkpoint: `compress`.
- From tables of errors and costs: `allocate`, exact, and the whole frontier: `pareto`.
- The tables: `measure`, of models and checkpoints; what layers may become: `Option`.
- Errors that do not add up: `correct`.
"""

from compressrs.search.allocation import Allocation, InfeasibleError, UnprovenWarning, allocate
from compressrs.search.compressing import Compressed, compress
from compressrs.search.correction import Correction, Trial, correct
from compressrs.search.frontier import Frontier, pareto
from compressrs.search.measurements import Measurements
from compressrs.search.measuring import measure
from compressrs.search.options import Option

__all__ = [
    "Allocation",
    "Compressed",
    "Correction",
    "Frontier",
    "InfeasibleError",
    "Measurements",
    "Option",
    "Trial",
    "UnprovenWarning",
    "allocate",
    "compress",
    "correct",
    "measure",
    "pareto",
]

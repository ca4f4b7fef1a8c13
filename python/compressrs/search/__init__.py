"""Search: the best sparsity, bits and widths under a budget.

- The whole loop, for a model or a checkpoint: `compress`.
- From tables of errors and costs: `allocate`, exact, and the whole frontier: `pareto`.
- The tables: `measure`, of models and checkpoints; what layers may become: `Option`.
- Errors that do not add up: `correct`.
- Architectures and settings: `Space` and `optimize`, which needs Optuna; `resize`, by which
  children inherit weights.
"""

from compressrs.search.allocation import Allocation, InfeasibleError, UnprovenWarning, allocate
from compressrs.search.candidates import Candidate, Evaluation, Pruned
from compressrs.search.compressing import Compressed, compress
from compressrs.search.correction import Correction, Trial, correct
from compressrs.search.frontier import Frontier, pareto
from compressrs.search.inheritance import resize
from compressrs.search.measurements import Measurements
from compressrs.search.measuring import measure
from compressrs.search.options import Option
from compressrs.search.results import Study
from compressrs.search.space import Choice, Float, Int, Space
from compressrs.search.trials import optimize

__all__ = [
    "Allocation",
    "Candidate",
    "Choice",
    "Compressed",
    "Correction",
    "Evaluation",
    "Float",
    "Frontier",
    "InfeasibleError",
    "Int",
    "Measurements",
    "Option",
    "Pruned",
    "Space",
    "Study",
    "Trial",
    "UnprovenWarning",
    "allocate",
    "compress",
    "correct",
    "measure",
    "optimize",
    "pareto",
    "resize",
]

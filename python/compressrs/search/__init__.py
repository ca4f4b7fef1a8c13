"""Search: the best sparsity, bits and widths under a budget."""

from compressrs.search.allocation import Allocation, InfeasibleError, UnprovenWarning, allocate
from compressrs.search.frontier import Frontier, pareto

__all__ = ["Allocation", "Frontier", "InfeasibleError", "UnprovenWarning", "allocate", "pareto"]

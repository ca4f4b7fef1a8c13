"""Model optimization and compression for NumPy on the CPU.

- `compressrs.optim`: optimizers that update arrays in place;
- `compressrs.prune`: magnitude pruning, masks and schedules;
- `compressrs.sparse`: CSR matrices with fast products, forward and backward;
- `compressrs.distill`: softmax with temperature and distillation losses;
- `compressrs.nn`: the smallest layers that can be trained, pruned and distilled.

Results have the same bits for any number of threads and any instruction set.
"""

from compressrs import distill, nn, optim, prune, sparse
from compressrs._core import __version__
from compressrs._threads import get_num_threads, set_num_threads, show_config

__all__ = [
    "__version__",
    "distill",
    "get_num_threads",
    "nn",
    "optim",
    "prune",
    "set_num_threads",
    "show_config",
    "sparse",
]

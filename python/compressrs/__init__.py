"""Model optimization and compression for NumPy on the CPU.

- `compressrs.optim`: optimizers that update arrays in place;
- `compressrs.prune`: scores, masks, schedules and pruning methods;
- `compressrs.sparse`: sparse matrices with fast products, forward and backward;
- `compressrs.distill`: softmax with temperature and distillation losses;
- `compressrs.quantize`: weights in few bits, and fast products with them;
- `compressrs.nn`: layers that can be trained, pruned, distilled, saved and exported;
- `compressrs.checkpoint`: compressed files of weights;
- `compressrs.distributed`: training on many machines;
- `compressrs.search`: the best sparsity, bits and widths under a budget;
- `compressrs.TrainState`: the state of a training run, saved and resumed;
- `compressrs.torch`: the same for PyTorch's tensors, where PyTorch is installed;
- `compressrs.onnx`: the same for the weights in ONNX files, where onnx is installed.

Results are bit-identical for any number of threads and any instruction set.

Subpackages are imported on first use, so that ``import compressrs`` takes little longer than
``import numpy``.
"""

import sys

from compressrs._startup import end_when_interrupted, is_command

# Before anything that takes time to be imported.
if is_command(sys.argv[:1], sys.orig_argv):
    end_when_interrupted(sys.orig_argv)

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

try:
    from compressrs._core import __version__
    from compressrs._threads import get_num_threads, set_num_threads, show_config
except ImportError as error:
    # The command imports this package before any code of its own: it, too, has to say in a line
    # what is wrong with a setting of the environment.
    if not is_command(sys.argv[:1], sys.orig_argv):
        raise
    print(f"compressrs: {error}", file=sys.stderr)
    raise SystemExit(2) from None

if TYPE_CHECKING:
    from compressrs import (
        checkpoint,
        distill,
        distributed,
        nn,
        optim,
        prune,
        quantize,
        search,
        sparse,
    )
    from compressrs.train_state import TrainState

__all__ = [
    "TrainState",
    "__version__",
    "checkpoint",
    "distill",
    "distributed",
    "get_num_threads",
    "nn",
    "optim",
    "prune",
    "quantize",
    "search",
    "set_num_threads",
    "show_config",
    "sparse",
]


#: Subpackages that need the extra of their name, and so are not in `__all__`: an
#: ``import *`` works without them.
_EXTRAS = ("onnx", "torch")


def __getattr__(name: str) -> ModuleType | type:
    if name == "TrainState":
        state: type = import_module(f"{__name__}.train_state").TrainState
        return state
    # Other names in __all__ that are not defined yet are subpackages.
    if name in __all__ or name in _EXTRAS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_EXTRAS]

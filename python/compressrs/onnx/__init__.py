"""compressrs for ONNX files: pruning, removal of neurons, and quantization of their weights.

- `load` gives the weights of a file as a `Model` of named arrays, which `Model.save` writes back;
- `prune`, `sensitivity`: scores, masks and metrics, as of `compressrs.prune`;
- `groups`, `shrink`: removal of neurons and filters from the arrays of the graph;
- `quantize`: weights in few bits, behind `DequantizeLinear` or in `MatMulNBits`;
- `input_statistics`: what calibrated scores and methods need;
- `Runner`: the model as a function, run by onnxruntime.

Requires onnx, which is imported here alone, and onnxruntime where a model runs
(``pip install 'compressrs[onnx]'``).
"""

try:
    import onnx as _onnx
except ModuleNotFoundError as error:
    if error.name != "onnx":
        raise
    raise ModuleNotFoundError(
        "compressrs.onnx needs onnx: pip install 'compressrs[onnx]'", name="onnx"
    ) from None

from compressrs.onnx.dependencies import Group, groups
from compressrs.onnx.model import Initializer, Model, load
from compressrs.onnx.pruning import prune, sensitivity
from compressrs.onnx.quantization import quantize
from compressrs.onnx.running import Runner, input_statistics
from compressrs.onnx.shrinking import shrink

__all__ = [
    "Group",
    "Initializer",
    "Model",
    "Runner",
    "groups",
    "input_statistics",
    "load",
    "prune",
    "quantize",
    "sensitivity",
    "shrink",
]

del _onnx

"""ONNX: tensors as initializers, those of 8 bits with a scale a row behind DequantizeLinear."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from compressrs.checkpoint.export._report import Written
from compressrs.checkpoint.export._staging import staged
from compressrs.checkpoint.reader import Checkpoint

#: What protobuf can hold in one message.
_MOST = 2**31 - 2**20


def write(
    c: Checkpoint, target: Path, progress: Callable[[int, int], None]
) -> tuple[int, dict[str, Written]]:
    """Write a model without inputs, each of whose outputs is a tensor, under its name.

    Raises
    ------
    ModuleNotFoundError
        If onnx is not installed.
    ValueError
        If the checkpoint is larger than ONNX allows in one file.
    """
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ModuleNotFoundError:
        raise ModuleNotFoundError("ONNX files need onnx: pip install onnx") from None
    total = sum(c.nbytes(name) for name in c)
    nodes: list[Any] = []
    initializers: list[Any] = []
    outputs: list[Any] = []
    written: dict[str, Written] = {}
    done = held = 0
    for name in c:
        d = c.description(name)
        codes = d.coding == "quantized" and d.options.get("codes") == "int"
        rows = codes and d.options["bits"] == 8 and "group_size" not in d.options
        if rows:
            q = c.quantized(name)
            parts = {f"{name}_quantized": q.codes, f"{name}_scale": q.scale.reshape(-1)}
            node = helper.make_node("DequantizeLinear", [*parts], [name], axis=0)
            kind, dtype = TensorProto.FLOAT, np.dtype(np.float32)
        else:
            x = c[name]
            own = x.dtype.isbuiltin == 1 and x.dtype.kind in "biuf"
            dtype = x.dtype if own else np.dtype(np.float32)
            parts = {f"{name}_stored": x.astype(dtype, copy=False)}
            node = helper.make_node("Identity", [*parts], [name])
            kind = helper.np_dtype_to_tensor_dtype(dtype)
        nodes.append(node)
        initializers += [numpy_helper.from_array(x, n) for n, x in parts.items()]
        outputs.append(helper.make_tensor_value_info(name, kind, d.shape))
        nbytes = sum(x.nbytes for x in parts.values())
        written[name] = Written("int8" if rows else dtype.name, nbytes, quantized=rows)
        held += nbytes
        if held > _MOST:
            raise ValueError("ONNX holds 2 GB in a file, which the checkpoint exceeds")
        done += c.nbytes(name)
        progress(done, total)
    graph = helper.make_graph(nodes, "checkpoint", [], outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    with staged(target, held) as path:
        size = path.write_bytes(model.SerializeToString())
    return size, written

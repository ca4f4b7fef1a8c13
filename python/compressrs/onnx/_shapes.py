"""Shapes of the values in a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from compressrs.onnx._graph import STANDARD, small_constant
from compressrs.onnx.model import Model

#: The largest tensors whose numbers may be lengths.
_LENGTHS = 64


class Shapes:
    """The shapes of values, as far as onnx can infer them."""

    def __init__(self, model: Model) -> None:
        made = model._structure(_LENGTHS)
        try:
            graph = onnx.shape_inference.infer_shapes(made, data_prop=True).graph
        except (onnx.shape_inference.InferenceError, ValueError):
            # Operators or opsets that onnx does not know: what the file says is left.
            graph = made.graph
        self._shapes: dict[str, list[int | str | None]] = {}
        for value in (*graph.input, *graph.value_info, *graph.output):
            kind = value.type.tensor_type
            if kind.HasField("shape"):
                self._shapes[value.name] = [_length(d) for d in kind.shape.dim]
        for tensor in graph.initializer:
            self._shapes[tensor.name] = [*tensor.dims]
        self._numbers = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in graph.initializer
            if tensor.data_type == onnx.TensorProto.INT64 and sum(tensor.dims) <= _LENGTHS
        }
        self._numbers |= {
            node.output[0]: found
            for node in graph.node
            if (found := small_constant(node)) is not None
        }
        self._makers = {name: node for node in graph.node for name in node.output}

    def of(self, name: str) -> list[int | None] | None:
        """Return the lengths of a value, None for unknown ones, or None."""
        shape = self._shapes.get(name)
        return None if shape is None else [n if isinstance(n, int) else None for n in shape]

    def rank(self, name: str) -> int | None:
        """Return the number of axes of a value, if it is known."""
        shape = self._shapes.get(name)
        return None if shape is None else len(shape)

    def length(self, name: str, axis: int) -> int | None:
        """Return the length of an axis of a value, if it is known."""
        shape = self.of(name)
        return shape[axis] if shape is not None and axis < len(shape) else None

    def target(self, node: Any, constant: Any) -> list[int] | None:
        """Return the shape that ``Reshape`` gives, 0 for the length that there was before.

        That is known if it is a constant, or made of the first length of the value and -1.
        """
        if any(a.name == "allowzero" and a.i for a in node.attribute):
            return None
        if constant is not None:
            return [int(length) for length in constant]
        before, after = self._shapes.get(node.input[0]), self._shapes.get(node.output[0])
        maker = self._makers.get(node.input[1])
        if not before or not after or maker is None or len(after) != 2:
            return None
        if maker.op_type != "Concat" or maker.domain not in STANDARD or len(maker.input) != 2:
            return None
        same = before[0] is not None and before[0] == after[0]
        return [0, -1] if same and self._number(maker.input[1]) == -1 else None

    def _number(self, name: str) -> int | None:
        """Return the single number that a value is, also with an axis added, or None."""
        maker = self._makers.get(name)
        if maker is not None and maker.op_type in ("Unsqueeze", "Identity"):
            name = maker.input[0]
        found = self._numbers.get(name)
        return int(np.ravel(found)[0]) if found is not None and np.size(found) == 1 else None


def _length(dimension: Any) -> int | str | None:
    if dimension.HasField("dim_value"):
        return int(dimension.dim_value)
    return str(dimension.dim_param) if dimension.HasField("dim_param") else None

"""Shapes through a model, and its summary."""

from __future__ import annotations

import numpy as np

from compressrs.nn.container import Residual
from compressrs.nn.layer import Layer
from compressrs.nn.summary import Row, Summary


def summarize(model: Layer, input_shape: tuple[int, ...] | None) -> Summary:
    """Return the summary of a model.

    Raises
    ------
    ValueError
        If the model takes no input of this shape; the layer is named.
    """
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    if input_shape is not None:
        trace(model, "", input_shape, shapes)
    rows = []
    for name, layer in model.named_layers():
        arrays = list(layer._values() if isinstance(layer, Layer) else layer.params.values())
        state = layer.state_dict() if hasattr(layer, "state_dict") else layer.params
        found = shapes.get(name)
        rows.append(
            Row(
                name,
                type(layer).__name__,
                None if found is None else found[1],
                sum(array.size for array in arrays),
                sum(int(np.count_nonzero(array)) for array in arrays),
                sum(array.nbytes for array in state.values()),
                None if found is None else layer.multiply_adds(found[0]),
            )
        )
    return Summary(tuple(rows))


def trace(
    layer: Layer,
    name: str,
    shape: tuple[int, ...],
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]],
) -> tuple[int, ...]:
    """Record input and output shape of each layer; return the output shape."""
    children = layer.children()
    if not children:
        try:
            out = layer.output_shape(shape)
        except ValueError as error:
            raise ValueError(
                f"input_shape does not fit layer {name} ({type(layer).__name__}): {error}"
            ) from None
        shapes[name] = shape, out
        return out
    out = shape
    for key, child in children.items():
        # Both parts of a residual block take the input; others form a chain.
        given = shape if isinstance(layer, Residual) else out
        out = trace(child, f"{name}.{key}" if name else key, given, shapes)
    return out

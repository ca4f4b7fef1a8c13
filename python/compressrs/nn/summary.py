"""What a model is made of, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compressrs.nn.container import Residual
from compressrs.nn.layer import Layer

_HEADINGS = ("name", "layer", "output", "parameters", "non-zeros", "bytes", "multiply-adds")


@dataclass(frozen=True)
class Row:
    """One layer."""

    name: str
    layer: str
    #: Of the output without the batch, if that of the input was given.
    shape: tuple[int, ...] | None
    parameters: int
    nonzeros: int
    nbytes: int
    multiply_adds: int | None


@dataclass(frozen=True)
class Summary:
    """The layers of a model and their sums; printed as a table."""

    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        """Number of trained values."""
        return sum(row.parameters for row in self.rows)

    @property
    def nonzeros(self) -> int:
        """Number of those that are not 0."""
        return sum(row.nonzeros for row in self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of parameters, buffers and patterns."""
        return sum(row.nbytes for row in self.rows)

    @property
    def multiply_adds(self) -> int | None:
        """Multiplications for one input, if its shape was given."""
        counts = [row.multiply_adds for row in self.rows if row.multiply_adds is not None]
        return sum(counts) if len(counts) == len(self.rows) else None

    def __str__(self) -> str:
        lines: list[tuple[str, ...]] = [_HEADINGS]
        for row in (*self.rows, self._total()):
            numbers = (row.parameters, row.nonzeros, row.nbytes, row.multiply_adds)
            shape = "" if row.shape is None else str(row.shape)
            cells = ("" if number is None else f"{number:,}" for number in numbers)
            lines.append((row.name, row.layer, shape, *cells))
        widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADINGS))]
        aligned = (
            "  ".join(
                cell.ljust(width) if i < 3 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )
        return "\n".join(aligned)

    __repr__ = __str__

    def _total(self) -> Row:
        shape = self.rows[-1].shape if self.rows else None
        return Row(
            "total", "", shape, self.parameters, self.nonzeros, self.nbytes, self.multiply_adds
        )


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
        arrays = list(layer.params.values())
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
    """Note what shapes go into each layer and come out; return the last."""
    children = layer.children()
    if not children:
        try:
            out = layer.output_shape(shape)
        except ValueError as error:
            raise ValueError(f"layer {name} ({type(layer).__name__}): {error}") from None
        shapes[name] = shape, out
        return out
    out = shape
    for key, child in children.items():
        # Of a residual each part takes the input; else each takes what the one before gives.
        given = shape if isinstance(layer, Residual) else out
        out = trace(child, f"{name}.{key}" if name else key, given, shapes)
    return out

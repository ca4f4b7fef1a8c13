"""The summary of a model."""

from __future__ import annotations

from dataclasses import dataclass

_HEADINGS = ("name", "layer", "output", "parameters", "non-zeros", "bytes", "multiply-adds")


@dataclass(frozen=True)
class Row:
    """One layer."""

    name: str
    layer: str
    #: Output shape without the batch axis, if the input shape was given.
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
        """Number of weights, quantized ones included."""
        return sum(row.parameters for row in self.rows)

    @property
    def nonzeros(self) -> int:
        """Number of weights that are not 0."""
        return sum(row.nonzeros for row in self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of parameters, buffers and patterns in memory, where each code takes a byte.

        Files have codes packed, as `nbytes` of a quantized layer counts them.
        """
        return sum(row.nbytes for row in self.rows)

    @property
    def multiply_adds(self) -> int | None:
        """Multiplications for one input, or None if its shape was not given."""
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

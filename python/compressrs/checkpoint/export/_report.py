"""What an export wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

from compressrs.checkpoint._coding import POSITIONS, QUANTIZED, Description
from compressrs.checkpoint.reader import Checkpoint


class Written(NamedTuple):
    """How a tensor stands in an exported file."""

    form: str
    nbytes: int
    #: Whether it has codes of few bits there.
    quantized: bool = False


@dataclass(frozen=True)
class ExportRow:
    """A tensor in the report of an export."""

    name: str
    #: Of the source, as in safetensors.
    dtype: str
    shape: tuple[int, ...]
    #: How the source stores it.
    coding: str
    #: How it was written: a dtype, or a format of codes.
    form: str
    before: int
    after: int
    #: What it was in the source, "quantized", "codebook" or "sparse", and is no longer, since the
    #: format has no form for it.
    lost: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExportReport:
    """What `export` wrote."""

    source: str
    destination: str
    to: str
    rows: list[ExportRow] = field(default_factory=list)
    #: Size of the files of tensors in bytes, including headers.
    before: int = 0
    after: int = 0

    @property
    def ratio(self) -> float:
        """Size of the source divided by the size of the result."""
        return self.before / self.after if self.after else 1.0

    @property
    def lost(self) -> list[ExportRow]:
        """The tensors that the format could not hold as they were stored."""
        return [row for row in self.rows if row.lost]

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps({**asdict(self), "ratio": self.ratio}, indent=2)


def rows(c: Checkpoint, written: Mapping[str, Written]) -> list[ExportRow]:
    """Return the rows of all tensors, in the order of the checkpoint."""
    found = []
    for name in c:
        d, new = c.description(name), written[name]
        coding = "shared" if c.is_alias(name) else d.coding
        found.append(
            ExportRow(
                name, d.dtype, d.shape, coding, new.form, c.nbytes(name), new.nbytes, _lost(d, new)
            )
        )
    return found


def _lost(d: Description, new: Written) -> tuple[str, ...]:
    """Return what is not kept of the form of a tensor in the source."""
    lost = []
    if not new.quantized and d.coding in QUANTIZED:
        lost.append("quantized")
    if d.coding == "codebook":
        lost.append("codebook")
    # No format of these stores positions.
    if d.streams[:1] and d.streams[0] in POSITIONS:
        lost.append("sparse")
    return tuple(lost)

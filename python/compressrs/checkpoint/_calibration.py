"""Statistics of the inputs of layers, as GPTQ and AWQ need them, read one at a time."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np

from compressrs import _files
from compressrs._checks import file_path
from compressrs.checkpoint._source import File
from compressrs.prune import statistics
from compressrs.prune.statistics import InputStatistics

#: A file of `prune.save_statistics`, or statistics by name.
Given: TypeAlias = str | os.PathLike[str] | Mapping[str, InputStatistics]

#: What a name of statistics may lack of the name of a weight.
SUFFIX = ".weight"

#: Bytes that the calibrated methods take for each number of a Gram matrix: it, its damped
#: copy in the order of columns, its factor, and the inverse of that, with temporaries.
PER_NUMBER = 64

#: Bytes per read.
_PART = 1 << 24


class Calibration:
    """Statistics by the names of layers.

    Parameters
    ----------
    given : path or dict of str to InputStatistics
        A file is read one matrix at a time.

    Raises
    ------
    OSError
        If the file cannot be read.
    TypeError, ValueError
        If it is no file of statistics, or is damaged; if `given` is no such dict.
    """

    def __init__(self, given: Given) -> None:
        self._file: File | None = None
        if isinstance(given, Mapping):
            statistics.require_statistics(given, "calibration")
            self._given = dict(given)
            self._names = {name: name for name in given}
            self._features = {name: each.features for name, each in given.items()}
            return
        self._file = File(file_path(given, "calibration"))
        try:
            self._describe(self._file)
        except BaseException:
            self._file.close()
            raise

    def _describe(self, file: File) -> None:
        metadata, self._entries = file.header.metadata, {e.name: e for e in file.header.entries}
        _files.require(file.path, metadata, statistics.KIND)
        _files.require_checksum(file.path, file.raw_header(), metadata, _parts(file))
        self._names, self._counts = statistics.described(file.path, metadata, self._entries)
        self._features = {name: math.prod(e.shape[:1]) for name, e in self._entries.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        given: Any = self._given if self._file is None else self._file.path.absolute()
        return Calibration, (given,)

    @property
    def paths(self) -> list[Path]:
        """The file that they are read from, if there is one."""
        return [] if self._file is None else [self._file.path]

    def find(self, tensor: str) -> str | None:
        """Return the name of the statistics of a weight's inputs, or None."""
        for name in (tensor, tensor.removesuffix(SUFFIX)):
            if name in self._names:
                return self._names[name]
        return None

    def features(self, name: str) -> int:
        """Return the number of inputs that statistics are of."""
        return self._features[name]

    def load(self, name: str) -> InputStatistics:
        """Read statistics.

        Raises
        ------
        ValueError
            If they are damaged, or the file was changed since it was opened.
        """
        if self._file is None:
            return self._given[name]
        entry = self._entries[name]
        data = self._file.read(entry.begin, entry.end)
        self._file.check_unchanged()
        if entry.dtype != "F64":
            raise ValueError(f"{self._file.path}, {name!r}: must be F64, got {entry.dtype}")
        sums = data.view(np.float64).reshape(entry.shape)
        return statistics.restored(self._file.path, name, sums, self._counts[name])

    def fingerprint(self) -> str:
        """Return what tells these statistics from others."""
        if self._file is not None:
            return self._file.header.metadata[_files.CHECKSUM]
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(self._given):
            sums = np.ascontiguousarray(self._given[name]._sums)
            digest.update(repr((name, sums.shape, self._given[name].count)).encode())
            digest.update(sums.data)
        return digest.hexdigest()

    def __enter__(self) -> Calibration:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()


def _parts(file: File) -> Iterator[memoryview]:
    size = file.fingerprint[0] - file.header.start
    for begin in range(0, size, _PART):
        yield file.read(begin, min(size, begin + _PART)).data


@dataclass(frozen=True)
class Inputs:
    """The statistics of the inputs of a weight."""

    calibration: Calibration
    name: str

    def load(self) -> InputStatistics:
        """Read them."""
        return self.calibration.load(self.name)

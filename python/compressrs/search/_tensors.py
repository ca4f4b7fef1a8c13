"""Tensors of checkpoints: bytes and errors of rules, by the encoder itself."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compressrs import __version__
from compressrs._files import write_atomically
from compressrs.checkpoint import Recipe, Rule, compress
from compressrs.checkpoint import open as open_checkpoint
from compressrs.checkpoint._format import FLOATS, Entry, serialize
from compressrs.checkpoint._source import Files
from compressrs.checkpoint.recipe import CALIBRATED
from compressrs.prune import InputStatistics

#: Elements that are decoded at once.
PART = 1 << 22


def chosen(name: str, entry: Entry) -> bool:
    """Whether rules apply to a tensor: to floating-point ones with two axes or more."""
    return entry.dtype in FLOATS and len(entry.shape) >= 2 and entry.size > 0


def digest(path: str, name: str) -> str:
    """Return a hash of a tensor's dtype, shape and bytes."""
    with Files(path) as files:
        located = files.tensors[name]
        entry = located.entry
        found = hashlib.blake2b(f"{entry.dtype}{entry.shape}".encode(), digest_size=16)
        for begin in range(entry.begin, entry.end, 1 << 24):
            found.update(located.file.read(begin, min(entry.end, begin + (1 << 24))).data)
    return found.hexdigest()


def key_of(tensor: str, rules: Sequence[Rule], seen: InputStatistics | None) -> str:
    """Return a hash of all that a measurement depends on."""
    gram = b"" if seen is None or seen.gram is None else seen.gram.tobytes()
    text = "\n".join([__version__, tensor, *(Recipe(rule).to_toml() for rule in rules)])
    return hashlib.blake2b(text.encode() + gram, digest_size=16).hexdigest()


def statistics_of(name: str, given: Mapping[str, InputStatistics] | None) -> InputStatistics | None:
    """Return the statistics of a tensor's inputs, by its name or that of its layer."""
    if given is None:
        return None
    return given.get(name, given.get(name.removesuffix(".weight")))


def measure(
    path: str, name: str, rules: Sequence[Rule], seen: InputStatistics | None
) -> list[dict[str, Any]]:
    """Return bytes and relative squared error of a tensor for each rule.

    A rule that does not apply to the tensor gives what is said of it instead.
    """
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        source = _alone(Path(folder), path, name)
        for rule in rules:
            try:
                target, size = _compressed(source, name, rule, seen)
            except (ValueError, TypeError) as error:
                found.append({"refused": str(error)})
                continue
            lost = 0.0 if rule.lossless else error_of(source, target, name, seen)
            found.append({"bytes": size, "error": lost})
    return found


def error_of(source: Path, target: Path, name: str, seen: InputStatistics | None) -> float:
    """Return the relative squared error, weighted by the Gram matrix of inputs if there is one."""
    gram = None if seen is None else seen.gram
    above, below = [], []
    with open_checkpoint(source) as whole, open_checkpoint(target) as small:
        shape = whole.shape(name)
        row = math.prod(shape[1:])
        if gram is not None and len(gram) != row:
            raise ValueError(f"calibration of {name!r} must be of {row} features, got {len(gram)}")
        step = max(PART // row, 1)
        for start in range(0, shape[0], step):
            stop = min(start + step, shape[0])
            before = np.asarray(whole.rows(name, start, stop), np.float64).reshape(-1, row)
            lost = np.asarray(small.rows(name, start, stop), np.float64).reshape(-1, row) - before
            above.append(float(np.vdot(lost if gram is None else lost @ gram, lost)))
            below.append(float(np.vdot(before if gram is None else before @ gram, before)))
    total = math.fsum(below)
    return max(math.fsum(above), 0.0) / total if total > 0 else 0.0


def decoded(path: str, name: str, rule: Rule, seen: InputStatistics | None) -> Any:
    """Return a tensor as a rule leaves it."""
    with tempfile.TemporaryDirectory() as folder:
        small, _ = _compressed(_alone(Path(folder), path, name), name, rule, seen)
        with open_checkpoint(small) as c:
            return np.array(c[name])


def layer(path: str, name: str, rule: Rule, seen: InputStatistics | None) -> Any:
    """Return the linear layer that a rule makes of a weight, in the form it is stored in."""
    with tempfile.TemporaryDirectory() as folder:
        small, _ = _compressed(_alone(Path(folder), path, name), name, rule, seen)
        with open_checkpoint(small) as c:
            return c.linear(name.removesuffix(".weight"))


def _alone(folder: Path, path: str, name: str) -> Path:
    """Write one tensor of a checkpoint to a file of its own."""
    source = folder / "tensor.safetensors"
    with Files(path) as files:
        located = files.tensors[name]
        entry, data = located.entry, located.file.read(located.entry.begin, located.entry.end)
    alone = Entry(name, entry.dtype, entry.shape, 0, entry.nbytes)
    write_atomically(source, serialize([alone], {}), data.data)
    return source


def _compressed(
    source: Path, name: str, rule: Rule, seen: InputStatistics | None
) -> tuple[Path, int]:
    """Compress a file of one tensor; return the new file and its size."""
    target = source.with_name("small.safetensors")
    calibration = None if seen is None or rule.method not in CALIBRATED else {name: seen}
    report = compress(source, target, Recipe(rule), calibration=calibration)
    return target, report.after

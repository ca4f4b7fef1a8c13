"""Selection of the coding of each tensor, from its header and samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from compressrs._arrays import dtype_of
from compressrs.checkpoint import _coding, _quantized
from compressrs.checkpoint._calibration import PER_NUMBER, Calibration, Inputs
from compressrs.checkpoint._coding import PLAIN, Bytes, Description
from compressrs.checkpoint._format import DTYPES, FLOATS
from compressrs.checkpoint._source import Files, Located, equal
from compressrs.checkpoint.recipe import Recipe, RecipeError, Rule

#: Elements of a tile at most, and at least where memory is short.
MAX_TILE, MIN_TILE = 1 << 22, 1 << 16

#: Bytes that Python, NumPy and the threads take before any tile, and for an element of a
#: tile: what is read ahead, encoded and written at once, and the arrays of the codings.
BASE, PER_ELEMENT = 128 << 20, 160

#: Minimum memory limit.
MIN_MEMORY = BASE + MIN_TILE * PER_ELEMENT

#: Samples of a tensor, and elements of each.
SAMPLES, SAMPLE = 4, 1 << 16

#: A tensor is coded if that saves this share of it, and so many bytes, at least: what
#: coded tensors need is a description.
WORTHWHILE, OVERHEAD = 0.02, 128


@dataclass(frozen=True)
class Step:
    """The processing of one tensor."""

    name: str
    located: Located
    rule: Rule
    #: The dtype to which it is decoded.
    dtype: str
    coding: str
    streams: tuple[str, ...]
    #: Elements of a tile, a multiple of those of a row.
    tile: int
    #: Bytes that it will take, estimated from the samples.
    predicted: int
    #: Statistics of its inputs, for calibrated methods.
    inputs: Inputs | None = None

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return -(-self.located.entry.size // self.tile) if self.tile else 0

    def description(self) -> Description:
        """Return the description of the tensor, without what is known when it is encoded."""
        options: dict[str, Any] = {}
        if self.coding == "codebook":
            options = {"entries": self.rule.entries}
        elif self.coding in _coding.QUANTIZED:
            options = _quantized.options(self.rule)
        shape = self.located.entry.shape
        return Description(self.dtype, shape, self.coding, self.streams, self.tile, options=options)

    def largest_description(self) -> str:
        """Return a description of the maximum length for the tensor."""
        d = self.description()
        # A stream is at most what it codes and heads of blocks; no number has more digits.
        longest = 10 ** len(str(self.tile * 16 + 4096)) - 1
        lengths = ((longest,) * len(self.streams),) * self.tiles
        counts = (
            ((longest,) * 2,) * self.tiles if self.streams[:1] in (("bits",), ("gaps",)) else ()
        )
        whole = Description(
            d.dtype,
            d.shape,
            d.coding,
            d.streams,
            d.tile,
            lengths,
            counts,
            "0" * 16,
            None,
            d.options,
        )
        return whole.to_json()


def tile_elements(memory_limit: int) -> int:
    """Return the number of elements per tile that a memory limit allows.

    Raises
    ------
    ValueError
        If the limit is too low.
    """
    if memory_limit < MIN_MEMORY:
        raise ValueError(f"memory_limit must be at least {MIN_MEMORY} bytes, got {memory_limit}")
    allowed = (memory_limit - BASE) // PER_ELEMENT
    return int(min(MAX_TILE, 1 << (allowed.bit_length() - 1)))


def plan(
    files: Files, recipe: Recipe, memory_limit: int, calibration: Calibration | None = None
) -> list[Step]:
    """Return the step of each tensor, in file order.

    Raises
    ------
    ValueError
        If the recipe cannot be applied to a tensor, or names a tensor that does not exist.
    """
    unused = recipe.unused(files.tensors)
    if unused:
        raise RecipeError(f"{', '.join(map(repr, unused))} matches no tensor of {files.path}")
    inputs = _inputs(files, recipe, calibration)
    ordered = sorted(
        files.tensors.items(),
        key=lambda item: (files.files.index(item[1].file), item[1].entry.begin),
    )
    tile_elements(memory_limit)
    return [
        _step(name, located, recipe, memory_limit, inputs.get(name)) for name, located in ordered
    ]


def _inputs(files: Files, recipe: Recipe, calibration: Calibration | None) -> dict[str, Inputs]:
    """Return the statistics of the inputs of each tensor whose method needs them.

    A tensor without any has those of a tensor with the same bytes, to which it may be tied.

    Raises
    ------
    ValueError
        If some are missing, or of another number of inputs.
    """
    needed = [
        name
        for name, located in files.tensors.items()
        if located.entry.dtype in FLOATS
        and located.entry.size
        and recipe.rule(name, len(located.entry.shape)).calibrated
    ]
    if needed and calibration is None:
        raise RecipeError(
            "calibration must be given for the methods gptq and awq: a file of "
            "prune.save_statistics, got None"
        )
    found, missing = {}, []
    for name in needed:
        assert calibration is not None
        located = files.tensors[name]
        others = (
            other
            for other, at in files.tensors.items()
            if other != name
            and (at.entry.dtype, at.entry.shape) == (located.entry.dtype, located.entry.shape)
            and calibration.find(other) is not None
            and equal(at, located)
        )
        statistics = calibration.find(name) or calibration.find(next(others, ""))
        if statistics is None:
            missing.append(name)
            continue
        row = row_elements(located)
        if calibration.features(statistics) != row:
            raise RecipeError(
                f"calibration must have {row} inputs for {name!r}, "
                f"got {calibration.features(statistics)}"
            )
        found[name] = Inputs(calibration, statistics)
    if missing:
        shown = ", ".join(map(repr, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise RecipeError(
            f"calibration must have statistics of {shown}; ignore what has none, or set a rule "
            f"with another method for it, as --set 'NAME=int8' does"
        )
    return found


def row_elements(located: Located) -> int:
    """Return the number of elements of a tensor for each index of its first axis."""
    entry = located.entry
    return entry.size // entry.shape[0] if entry.shape and entry.shape[0] else 1


def _step(
    name: str, located: Located, recipe: Recipe, memory_limit: int, inputs: Inputs | None
) -> Step:
    entry = located.entry
    floating = entry.dtype in FLOATS
    rule = recipe.rule(name, len(entry.shape)) if floating else Rule()
    dtype = {"float16": "F16", "bfloat16": "BF16", None: entry.dtype}[rule.dtype]
    if entry.size == 0 or DTYPES[entry.dtype].bits < 8:
        return Step(name, located, Rule(), dtype, PLAIN, (), 0, entry.nbytes)
    row = row_elements(located)
    # What a calibrated method holds besides tiles.
    held = 0 if inputs is None else PER_NUMBER * row * row
    if memory_limit - held < MIN_MEMORY:
        raise RecipeError(
            f"{name!r} has rows of {row} elements; to calibrate them takes a memory_limit of "
            f"{MIN_MEMORY + held} bytes"
        )
    most = tile_elements(memory_limit - held)
    tile = max(most // row, 1) * row
    if rule.lossless:
        # Elements stand for themselves: any number of them is a tile.
        tile = most
    elif tile > 4 * most:
        raise RecipeError(
            f"{name!r} has rows of {row} elements; to {_what(rule)} it takes a memory_limit of "
            f"{BASE + held + row * PER_ELEMENT} bytes"
        )
    if rule.has_scales and len(entry.shape) < 2:
        raise RecipeError(
            f"{name!r} has no rows that share scales; ignore it, or set codebook or float16 for it"
        )
    if rule.pattern is not None and row % rule.kept_of()[1]:
        raise RecipeError(
            f"{name!r} has rows of {row}, not a multiple of the pattern {rule.pattern}; "
            "ignore it, or set another rule for it"
        )
    if rule.dtype is not None or (floating and rule.quantize is not None):
        dtype_of(DTYPES[entry.dtype].numpy or "")
    dtype_of("bfloat16" if dtype == "BF16" and not rule.lossless else "float32")
    zeros, ratio = _sample(located)
    if rule.prunes:
        n, m = rule.kept_of() if rule.pattern is not None else (0, 0)
        zeros = max(zeros, 1 - n / m if m else rule.prune or 0)
    positions = () if zeros < 1 / 16 else ("gaps",) if zeros > 7 / 8 else ("bits",)
    if rule.quantize is not None:
        coding = {"hqq": "shifted", "awq": "scaled"}.get(rule.method, "quantized")
        coding = "codebook" if rule.quantize == "codebook" else coding
        # The code of 0 is another in each group there.
        positions = () if coding == "shifted" else positions
        bits = {"nf4": 4, "codebook": (rule.entries - 1).bit_length()}.get(rule.quantize)
        bits = int(rule.quantize[3:]) if bits is None else bits
        kept = bits * (1 - zeros) + (_entropy(zeros) if positions else 0)
        predicted = int(entry.size * kept / 8)
        predicted += 2 * entry.size // (rule.group_size or row) if coding != "codebook" else 0
        predicted += 4 * row if coding == "scaled" else 0
    else:
        coding = "planes"
        width = DTYPES[dtype].bits
        sampled = ratio * DTYPES[entry.dtype].bits
        # Rounding removes mantissa bits, which lossless coding cannot compress.
        sampled -= DTYPES[entry.dtype].bits - width
        if rule.prunes:
            sampled = sampled * (1 - zeros) + _entropy(zeros)
        predicted = int(entry.size * max(sampled, 1) / 8)
        if rule.lossless and entry.nbytes - predicted < max(OVERHEAD, WORTHWHILE * entry.nbytes):
            return Step(name, located, rule, entry.dtype, PLAIN, (), 0, entry.nbytes)
    streams = (*positions, *_coding.CODINGS[coding])
    return Step(name, located, rule, dtype, coding, streams, tile, predicted, inputs)


def _what(rule: Rule) -> str:
    return "prune" if rule.quantize is None and rule.prunes else rule.quantize or "round"


def _entropy(p: float) -> float:
    """Return the entropy in bits of an event with probability p."""
    return 0.0 if p in (0, 1) else float(-p * np.log2(p) - (1 - p) * np.log2(1 - p))


def samples(located: Located, count: int = SAMPLES, size: int = SAMPLE) -> list[Bytes]:
    """Return evenly spaced samples of a tensor's bytes."""
    entry = located.entry
    width = DTYPES[entry.dtype].bits // 8
    starts = np.unique(np.linspace(0, max(entry.size - size, 0), count).astype(np.int64))
    if entry.size <= count * size:
        starts, size = np.zeros(1, np.int64), entry.size
    begin = entry.begin
    return [
        located.file.read(begin + s * width, begin + min(s + size, entry.size) * width)
        for s in starts.tolist()
    ]


def _sample(located: Located) -> tuple[float, float]:
    """Return the fraction of zeros and the compression ratio, estimated from samples."""
    parts = samples(located)
    raw = np.concatenate(parts)
    width = DTYPES[located.entry.dtype].bits // 8
    zeros = 1 - np.count_nonzero(raw.view(f"u{width}")) / (raw.size // width)
    stream = _coding.encode_bytes(raw, located.entry.dtype)
    return zeros, len(stream) / raw.size

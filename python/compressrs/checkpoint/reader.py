"""Readers of compressed and plain checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressrs import _core
from compressrs._arrays import dtype_of
from compressrs._checks import file_path, flag, string, whole
from compressrs.checkpoint import _coding, _quantized
from compressrs.checkpoint._coding import PLAIN, Bytes, Description, Parts
from compressrs.checkpoint._decoding import decode
from compressrs.checkpoint._format import DTYPES, FLOATS
from compressrs.checkpoint._header import KEY, container_info
from compressrs.checkpoint._source import File, Files, Located
from compressrs.nn import Layer
from compressrs.sparse import CSRMatrix

#: Elements of a plain tensor per read.
PLAIN_TILE = 1 << 22


class Checkpoint(Mapping[str, NDArray[Any]]):
    """A mapping from names to the tensors of a checkpoint, decoded on access.

    Parameters
    ----------
    path : path
        A safetensors file, the index of a sharded checkpoint, or a folder that contains
        either; compressed or plain.
    mapped : bool, default False
        Map files into memory, so that plain tensors are views. Otherwise they are read with
        pread, which raises an error if a file is truncated meanwhile, where a mapping would
        kill the process.
    verify : bool, default True
        Verify the checksum of each tensor of a compressed checkpoint when it is read.

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError
        If a file is damaged, or the index contradicts the files.

    Examples
    --------
    >>> import numpy as np, compressrs as cr, tempfile, pathlib
    >>> from safetensors.numpy import save_file
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> save_file({"weight": np.eye(64, dtype=np.float32)}, folder / "a.safetensors")
    >>> _ = cr.checkpoint.compress(folder / "a.safetensors", folder / "b.safetensors")
    >>> with cr.checkpoint.open(folder / "b.safetensors") as c:
    ...     print(list(c), c["weight"].shape, c["weight"].sum())
    ['weight'] (64, 64) 64.0
    """

    def __init__(
        self, path: str | os.PathLike[str], *, mapped: bool = False, verify: bool = True
    ) -> None:
        path = file_path(path)
        mapped, self._verify = flag(mapped, "mapped"), flag(verify, "verify")
        self._options = os.fspath(path), mapped, self._verify
        self._checked: set[str] = set()
        self._files = Files(path, mapped)
        try:
            self._descriptions = self._describe()
        except BaseException:
            self._files.close()
            raise

    def _describe(self) -> dict[str, Description]:
        found: dict[str, Description] = {}
        self._homes: dict[str, File] = {}
        for file in self._files.files:
            about = container_info(file)
            if about is None:
                for entry in file.header.entries:
                    found[entry.name] = Description(entry.dtype, entry.shape, PLAIN)
                    self._homes[entry.name] = file
                continue
            for name, text in file.header.metadata.items():
                if not name.startswith(f"{KEY}:"):
                    continue
                name = name.removeprefix(f"{KEY}:")
                if name in found:
                    raise ValueError(f"{file.path} describes {name!r}, as another file does")
                self._homes[name] = file
                try:
                    found[name] = d = Description.from_json(text)
                    self._check(file, name, d)
                except ValueError as error:
                    raise ValueError(f"{file.path}, {name!r}: {error}") from None
            for entry in file.header.entries:
                if entry.name not in found:
                    raise ValueError(f"{file.path} does not describe its tensor {entry.name!r}")
        for name, d in found.items():
            if d.same is not None:
                other = found.get(d.same)
                if other is None or other.same is not None:
                    raise ValueError(f"{name!r} is the same as {d.same!r}, which is not stored")
                if (other.dtype, other.shape) != (d.dtype, d.shape):
                    raise ValueError(f"{name!r} is the same as {d.same!r}, of another form")
        return found

    def _check(self, file: File, name: str, d: Description) -> None:
        """Raise a ValueError if a description does not match the stored tensor."""
        located = self._files.tensors.get(name)
        stored = located is not None and located.file is file
        if d.same is not None:
            if stored:
                raise ValueError("it is stored, though it is the same as another")
            return
        if not stored or located is None:
            raise ValueError("it is described, but not stored")
        entry = located.entry
        if d.coding == PLAIN:
            if (entry.dtype, entry.shape) != (d.dtype, d.shape):
                raise ValueError("it is stored with another dtype or shape than described")
        elif (entry.dtype, entry.nbytes) != ("U8", -(-d.stored // 8) * 8):
            raise ValueError(
                f"its streams take {d.stored} bytes, but it is stored as "
                f"{entry.dtype} of {entry.nbytes} bytes"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how a copy opens the files again."""
        return _again, self._options

    @property
    def compressed(self) -> bool:
        """Whether any file was written by `compress`."""
        return any(container_info(file) is not None for file in self._files.files)

    @property
    def files(self) -> Files:
        """The open files of the checkpoint."""
        return self._files

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the files; for a compressed checkpoint, of its source."""
        merged: dict[str, str] = {}
        for file in self._files.files:
            about = container_info(file)
            merged.update(file.header.metadata if about is None else about["metadata"])
        return merged

    def __len__(self) -> int:
        return len(self._descriptions)

    def __iter__(self) -> Iterator[str]:
        return iter(self._descriptions)

    def __contains__(self, name: object) -> bool:
        return name in self._descriptions

    def description(self, name: str) -> Description:
        """Return how a tensor is stored; for an alias, the description of the other tensor.

        Raises
        ------
        KeyError
            If there is no tensor of this name.
        """
        try:
            d = self._descriptions[string(name, "name")]
        except KeyError:
            raise KeyError(f"no tensor {name!r} in {self._files.path}") from None
        return d if d.same is None else self._descriptions[d.same]

    def is_alias(self, name: str) -> bool:
        """Whether a tensor is stored as an alias of an identical tensor."""
        self.description(name)
        return self._descriptions[name].same is not None

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, without reading it."""
        return self.description(name).shape

    def dtype(self, name: str) -> str:
        """Return the name of a tensor's dtype in safetensors, such as ``'BF16'``."""
        return self.description(name).dtype

    def nbytes(self, name: str) -> int:
        """Return the size of a tensor in the file; 0 for an alias."""
        return 0 if self.is_alias(name) else self._located(name).entry.nbytes

    def home(self, name: str) -> File:
        """Return the file that describes a tensor."""
        self.description(name)
        return self._homes[name]

    def _located(self, name: str) -> Located:
        d = self._descriptions[name]
        return self._files.tensors[name if d.same is None else d.same]

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Read and decode a tensor.

        Raises
        ------
        KeyError
            If there is no tensor of this name.
        ValueError
            If it is damaged, or its file was changed since it was opened.
        TypeError
            If NumPy has no dtype for it.
        ModuleNotFoundError
            If it is of bfloat16 or 8-bit floating point and ml_dtypes is not installed.
        """
        d = self.description(name)
        return self._array(name, self._whole(name), d.shape)

    def _whole(self, name: str) -> Bytes:
        d = self.description(name)
        located = self._located(name)
        if d.coding == PLAIN:
            data = located.file.read(located.entry.begin, located.entry.end)
            self._check_sum(name, d, data)
            located.file.check_unchanged()
            return data
        self._check_allocation(name, d)
        parts = [data for _, data in self.tiles(name)]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint8), *parts])

    def _check_allocation(self, name: str, d: Description) -> None:
        # A symbol of a stream of values stands for one element, one of positions for up to 255;
        # as many zeros at the end of a tile need none.
        most = d.stored * _coding.MAX_EXPANSION
        if d.counts:
            most = 255 * (most + len(d.lengths))
        if d.size > most:
            raise ValueError(
                f"{name!r} is damaged: {d.stored} bytes cannot stand for {d.size} elements"
            )

    def _array(self, name: str, data: Bytes, shape: tuple[int, ...]) -> NDArray[Any]:
        return data.view(self.numpy_dtype(name)).reshape(shape)

    def numpy_dtype(self, name: str) -> np.dtype[Any]:
        """Return the dtype of the array that a tensor is read to.

        Raises
        ------
        TypeError
            If NumPy has no dtype for it.
        ModuleNotFoundError
            If it is of bfloat16 or 8-bit floating point and ml_dtypes is not installed.
        """
        dtype = self.dtype(name)
        kind = DTYPES[dtype].numpy
        if kind is None:
            raise TypeError(f"{name!r} is of {dtype}, for which NumPy has no dtype")
        if not kind.startswith("float8"):
            return dtype_of(kind)
        try:
            import ml_dtypes
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                f"{name!r} of {dtype} needs ml_dtypes: pip install 'compressrs[bfloat16]'"
            ) from None
        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, kind))
        return found

    def tiles(self, name: str) -> Iterator[tuple[int, Bytes]]:
        """Yield the bytes of a tensor part by part, each with the index of its first element.

        Memory is needed for one part at a time. A wrong checksum is detected before the first
        part of a compressed tensor is yielded, and after the last part of a plain one.

        Raises
        ------
        ValueError
            If the tensor is damaged, or its file was changed since it was opened.
        """
        d = self.description(name)
        located = self._located(name)
        if d.coding == PLAIN:
            yield from self._plain_tiles(name, d, located)
            return
        if self._verify and name not in self._checked:
            self.check(name)
        for i, parts in enumerate(self._parts(name)):
            with self._damage_named(name):
                data = decode(d, parts)
            yield i * d.tile, data
        located.file.check_unchanged()

    @contextmanager
    def _damage_named(self, name: str) -> Iterator[None]:
        """Add the file and the tensor to errors of the streams."""
        try:
            yield
        except ValueError as error:
            place = f"{self._located(name).file.path}, {name!r}: "
            if str(error).startswith(place):
                raise
            raise ValueError(place + str(error)) from None

    def _parts(self, name: str) -> Iterator[Parts]:
        """Yield the streams of each tile of a compressed tensor."""
        d = self.description(name)
        located = self._located(name)
        offset = located.entry.begin
        for i, lengths in enumerate(d.lengths):
            yield Parts.of(d, i, located.file.read(offset, offset + sum(lengths)))
            offset += sum(lengths)

    def _plain_tiles(
        self, name: str, d: Description, located: Located
    ) -> Iterator[tuple[int, Bytes]]:
        bits = DTYPES[d.dtype].bits
        checksum = _core.Checksum()
        for first in range(0, d.size, PLAIN_TILE):
            last = min(d.size, first + PLAIN_TILE)
            begin = located.entry.begin
            data = located.file.read(begin + first * bits // 8, begin + last * bits // 8)
            if d.checksum and self._verify:
                checksum.update(data)
            yield first, data
        if d.checksum and self._verify:
            self._require_sum(name, d, checksum)
        located.file.check_unchanged()

    def check(self, name: str) -> None:
        """Verify the checksum of a tensor's bytes in the file, if there is one.

        Raises
        ------
        ValueError
            If they do not match.
        """
        d = self.description(name)
        if not d.checksum:
            return
        located = self._located(name)
        checksum = _core.Checksum()
        step = 1 << 24
        for begin in range(located.entry.begin, located.entry.end, step):
            checksum.update(located.file.read(begin, min(located.entry.end, begin + step)))
        self._require_sum(name, d, checksum)
        self._checked.add(name)

    def _check_sum(self, name: str, d: Description, data: Bytes) -> None:
        if d.checksum and self._verify:
            checksum = _core.Checksum()
            checksum.update(data)
            self._require_sum(name, d, checksum)

    def _require_sum(self, name: str, d: Description, checksum: _core.Checksum) -> None:
        if f"{checksum.digest():016x}" != d.checksum:
            path = self._located(name).file.path
            raise ValueError(f"{path}, {name!r}: damaged: its checksum is not {d.checksum}")

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return rows ``start:stop`` of a tensor, decoding only the tiles that contain them.

        Parameters
        ----------
        name : str
        start, stop : int
            ``0 <= start <= stop <= shape[0]``.

        Raises
        ------
        KeyError
            If there is no tensor of this name.
        ValueError
            If the tensor has no axes or fewer rows, or is damaged.
        """
        d = self.description(name)
        start, stop = whole(start, "start", 0), whole(stop, "stop", 0)
        if not d.shape or not 0 <= start <= stop <= d.shape[0]:
            raise ValueError(
                f"rows from start {start} to stop {stop} must lie in {name!r} of shape {d.shape}"
            )
        row = d.size // d.shape[0] if d.shape[0] else 0
        first, last = start * row, stop * row
        bits = DTYPES[d.dtype].bits
        located = self._located(name)
        if d.coding == PLAIN:
            begin = located.entry.begin
            data = located.file.read(begin + first * bits // 8, begin + last * bits // 8)
        else:
            data = self._tile_part(name, d, located, first, last)
        return self._array(name, data, (stop - start, *d.shape[1:]))

    def _tile_part(
        self, name: str, d: Description, located: Located, first: int, last: int
    ) -> Bytes:
        width = DTYPES[d.dtype].bits // 8
        parts = [np.empty(0, np.uint8)]
        offset = located.entry.begin
        for i, lengths in enumerate(d.lengths):
            begin, end = d.tile_range(i)
            if begin < last and end > first:
                with self._damage_named(name):
                    stored = located.file.read(offset, offset + sum(lengths))
                    data = decode(d, Parts.of(d, i, stored))
                parts.append(data[max(first - begin, 0) * width : (last - begin) * width])
            offset += sum(lengths)
        return np.concatenate(parts)

    def csr(self, name: str) -> CSRMatrix:
        """Return a matrix in CSR format, decoded tile by tile without a dense copy.

        Raises
        ------
        KeyError
            If there is no tensor of this name.
        ValueError
            If it is not a matrix of floating-point numbers (codes of integers are not), or is
            damaged.
        """
        d = self.description(name)
        if len(d.shape) != 2 or d.dtype not in FLOATS:
            raise ValueError(f"{name!r} must be a matrix of floats, got {d.dtype} {d.shape}")
        kind = self.numpy_dtype(name)
        dtype = np.dtype(np.float64 if d.dtype == "F64" else np.float32)
        rows, columns = d.shape
        counts = np.zeros(rows + 1, np.int64)
        index = np.int32 if columns < 2**31 else np.int64
        data, indices = [np.empty(0, dtype)], [np.empty(0, index)]
        for first, tile in self.tiles(name):
            x = tile.view(kind)
            at = np.flatnonzero(x)
            data.append(x[at].astype(dtype))
            row, column = np.divmod(at + first, max(columns, 1))
            indices.append(column.astype(index))
            np.add.at(counts, row + 1, 1)
        parts = np.concatenate(data), np.concatenate(indices), np.cumsum(counts)
        return CSRMatrix(parts, (rows, columns))

    def quantized(self, name: str) -> Any:
        """Read the codes and scales of a tensor, as a `quantize.QuantizedTensor`.

        They are of the weight times `input_scale`, if it has one.

        Raises
        ------
        KeyError
            If there is no tensor of this name.
        ValueError
            If it is not stored as codes and scales, or is damaged.
        """
        d = self.description(name)
        with self._damage_named(name):
            parts = list(self._quantized_tiles(name))
            if not parts:
                raise ValueError("it has no elements")
            return _quantized.joined(parts, d.shape, self.numpy_dtype(name))

    def _quantized_tiles(self, name: str) -> Iterator[Any]:
        """Yield the codes and scales of the rows of each tile, as `quantize.QuantizedTensor`."""
        d = self.description(name)
        with self._damage_named(name):
            for parts in self._quantized_parts(name):
                yield _quantized.tensor(d, parts)

    def input_scale(self, name: str) -> NDArray[np.float32] | None:
        """Read what the inputs of a quantized weight are divided by, if it is of method "awq".

        The weight is ``quantized(name).dequantize() / input_scale(name)``.

        Raises
        ------
        KeyError
            If there is no tensor of this name.
        ValueError
            If it is not stored as codes and scales, or is damaged.
        """
        with self._damage_named(name):
            for first in self._quantized_parts(name):
                return _quantized.input_scale(self.description(name), first)
            return None

    def _quantized_parts(self, name: str) -> Iterator[Parts]:
        d = self.description(name)
        if d.coding not in _coding.QUANTIZED:
            raise ValueError(f"{name!r} must be stored quantized, got {d.coding}")
        self.check(name)
        yield from self._parts(name)

    def linear(self, name: str) -> Layer:
        """Return a linear layer in the form in which its weight is stored, never dense.

        Parameters
        ----------
        name : str
            The layer's: its weight is ``name.weight``, and its bias ``name.bias`` if there is
            one.

        Returns
        -------
        compressrs.nn.QuantizedLinear, QuantizedSparseLinear, SparseLinear or Linear
            In float64 if the weight is, else in float32. A `QuantizedSparseLinear` where codes
            with a scale for each row are stored sparse and take less memory with their indices
            than all codes packed. A weight of int8 with a `weight_scale` in the format
            "int-quantized" of compressed-tensors is a `QuantizedLinear` with inputs in float32.

        Raises
        ------
        KeyError
            If there is no such weight; it is said if the weight is packed in a format of
            other programs, as ``name.weight_packed``.
        ValueError
            If it is no matrix, is of integers in another format than these, or is damaged.

        Examples
        --------
        >>> import numpy as np, compressrs as cr, tempfile, pathlib
        >>> from safetensors.numpy import save_file
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> w = np.random.default_rng(0).normal(0, 1, (64, 64)).astype(np.float32)
        >>> save_file({"a.weight": w, "a.bias": w[0].copy()}, folder / "a.safetensors")
        >>> recipe = cr.checkpoint.Recipe(cr.checkpoint.Rule(quantize="int8"))
        >>> _ = cr.checkpoint.compress(folder / "a.safetensors", folder / "b.safetensors", recipe)
        >>> with cr.checkpoint.open(folder / "b.safetensors") as c:
        ...     layer = c.linear("a")
        >>> type(layer).__name__, layer(w).shape
        ('QuantizedLinear', (64, 64))
        """
        # Its module needs this one.
        from compressrs.checkpoint import _models

        bias = f"{string(name, 'name')}.bias"
        return _models.linear(self, f"{name}.weight", bias if bias in self else None)

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        kind = "compressed" if self.compressed else "plain"
        return f"<Checkpoint {self._files.path}, {kind}, {len(self)} tensors>"


def _again(path: str, mapped: bool, verify: bool) -> Checkpoint:
    return Checkpoint(path, mapped=mapped, verify=verify)


def open(path: str | os.PathLike[str], *, mapped: bool = False, verify: bool = True) -> Checkpoint:
    """Open a checkpoint, compressed or plain, sharded or not; see `Checkpoint`."""
    return Checkpoint(path, mapped=mapped, verify=verify)

"""Decompression and verification of checkpoints."""

from __future__ import annotations

import base64
import binascii
import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressrs._checks import file_path, function
from compressrs._files import CHECKSUM, restore_checksum, write_atomically
from compressrs.checkpoint import _format
from compressrs.checkpoint._coding import Bytes
from compressrs.checkpoint._format import Entry, Header
from compressrs.checkpoint._header import CANONICAL, canonical_header, container_info
from compressrs.checkpoint._pipeline import Background
from compressrs.checkpoint._source import INDEX, SUFFIX, File
from compressrs.checkpoint._work import Work, disk_full_said
from compressrs.checkpoint.compressing import check_target
from compressrs.checkpoint.reader import Checkpoint


@dataclass(frozen=True)
class Output:
    """A plain output file."""

    name: str
    header: bytes
    entries: tuple[Entry, ...]


def decompress(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Decompress a checkpoint to a plain one.

    Files that were compressed losslessly one by one are restored to the byte, including the
    header. Memory is needed for one tile at a time.

    Parameters
    ----------
    src : path
        As for `open`.
    dst : path
        A file for all tensors if it ends in ``.safetensors``, else a folder, which must not
        exist, with one file per file of `src`.
    progress : callable, optional
        Called with bytes done and bytes in total.

    Returns
    -------
    int
        Total size of the files written.

    Raises
    ------
    OSError
        If a file cannot be read or written.
    ValueError
        If `src` is damaged, or `dst` exists as a folder.
    """
    src, target = file_path(src, "src"), Path(os.path.realpath(file_path(dst, "dst")))
    if progress is not None:
        function(progress, "progress")
    with Checkpoint(src) as c:
        single = target.name.endswith(SUFFIX)
        check_target(c.files, target, single)
        outputs = _outputs(c, single)
        # A checksum over a whole file is kept with its bytes, and is another for others.
        changed = len(outputs) != len(c.files.files) or any(
            (container_info(file) or {}).get("lossy") for file in c.files.files
        )
        total = sum(o.entries[i].nbytes for o in outputs for i in range(len(o.entries)))
        work = Work(target, {"decompress": os.fspath(src)}, resume=False)
        done = 0
        try:
            folder = work.folder / "files"
            folder.mkdir()
            with disk_full_said(target, lambda: total):
                for output in outputs:
                    for n in _write(c, output, folder / output.name):
                        done += n
                        if progress is not None:
                            progress(done, total)
                    if changed and _has_checksum(output):
                        restore_checksum(folder / output.name, len(output.header))
                c.files.check_unchanged()
                if single:
                    work.publish(folder / outputs[0].name)
                else:
                    _write_rest(c, outputs, folder, total)
                    work.publish(folder)
        finally:
            work.close(remove=True)
    return total + sum(len(output.header) for output in outputs)


def _outputs(c: Checkpoint, single: bool) -> list[Output]:
    of_file: dict[str, list[str]] = {file.path.name: [] for file in c.files.files}
    for name in c:
        of_file[c.home(name).path.name].append(name)
    if single and len(c.files.files) > 1:
        return [_canonical("all" + SUFFIX, c, list(c), c.metadata)]
    outputs = []
    for file in c.files.files:
        names = of_file[file.path.name]
        about = container_info(file)
        if about is None:
            outputs.append(Output(file.path.name, file.raw_header(), file.header.entries))
        elif about.get("header", CANONICAL) == CANONICAL:
            outputs.append(_canonical(file.path.name, c, names, about["metadata"]))
        else:
            outputs.append(_restored(file, c, names, about["header"]))
    return outputs


def _canonical(name: str, c: Checkpoint, names: list[str], metadata: dict[str, str]) -> Output:
    entries = [
        Entry(n, c.dtype(n), c.shape(n), 0, _format.tensor_bytes(c.dtype(n), c.shape(n)))
        for n in names
    ]
    header = canonical_header(entries, metadata)
    return Output(name, header, _format.parse_header(name, header).entries)


def _restored(file: File, c: Checkpoint, names: list[str], packed: Any) -> Output:
    """Return the output with the stored header of the source, if it has the same tensors.

    Raises
    ------
    ValueError
        If the stored header is invalid.
    """
    try:
        unpack = zlib.decompressobj()
        raw = unpack.decompress(base64.b85decode(packed), _format.MAX_HEADER + 8)
        header: Header = _format.parse_header(file.path, raw)
    except (TypeError, ValueError, binascii.Error, zlib.error) as error:
        raise ValueError(f"{file.path} keeps a damaged header of its source: {error}") from None
    kept = {e.name: e.shape for e in header.entries}
    if kept != {name: c.shape(name) for name in names}:
        raise ValueError(f"{file.path} keeps a header of other tensors than it holds")
    if any(e.dtype != c.dtype(e.name) for e in header.entries):
        # Deliberately converted, so the file cannot be restored exactly.
        return _canonical(file.path.name, c, names, header.metadata)
    return Output(file.path.name, raw, header.entries)


def _write(c: Checkpoint, output: Output, path: Path) -> Iterator[int]:
    """Write a file and yield the size of each part."""
    background = Background()
    with open(path, "wb") as file:
        try:
            file.write(output.header)
            for entry in sorted(output.entries, key=lambda e: e.begin):
                written = 0
                for _, data in c.tiles(entry.name):
                    background.submit(_writer(file, data))
                    written += data.nbytes
                    yield data.nbytes
                background.wait()
                if written != entry.nbytes:
                    raise ValueError(f"{entry.name!r} gave {written} bytes, not {entry.nbytes}")
        finally:
            background.close()


def _has_checksum(output: Output) -> bool:
    """Whether a file is one of compressrs's own, whose metadata has a checksum of all of it."""
    return CHECKSUM in _format.parse_header(output.name, output.header).metadata


def _writer(file: Any, data: Bytes) -> Callable[[], None]:
    return lambda: file.write(data) and None


def _write_rest(c: Checkpoint, outputs: list[Output], folder: Path, total: int) -> None:
    c.files.copy_side_files(folder)
    if c.files.index is None and len(outputs) == 1:
        return
    weights = {entry.name: output.name for output in outputs for entry in output.entries}
    metadata = {**c.files.index_metadata, "total_size": total}
    text = json.dumps({"metadata": metadata, "weight_map": weights}, indent=2)
    name = f"model{INDEX}" if c.files.index is None else c.files.index.name
    write_atomically(folder / name, text.encode())


def verify(
    path: str | os.PathLike[str], *, progress: Callable[[int, int], None] | None = None
) -> int:
    """Decode every tensor and verify checksums.

    Parameters
    ----------
    path : path
        As for `open`.
    progress : callable, optional
        Called with tensors done and tensors in total.

    Returns
    -------
    int
        Number of tensors.

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError
        If a tensor or file is damaged; the message names it.
    """
    if progress is not None:
        function(progress, "progress")
    with Checkpoint(path) as c:
        _outputs(c, single=False)
        for i, name in enumerate(c):
            for _ in c.tiles(name):
                pass
            if progress is not None:
                progress(i + 1, len(c))
        return len(c)

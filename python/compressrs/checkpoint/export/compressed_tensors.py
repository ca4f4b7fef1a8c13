"""The layout of compressed-tensors, which vLLM and transformers load.

As in its ``compressors/pack_quantized`` and ``naive_quantized``: codes of 4 bits, or of 8 in
groups, are stored as ``q + 2^(bits - 1)`` in words of 32 bits along the inputs, the first
lowest; codes of 8 bits with a scale for each row as int8.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressrs._json import parse_json
from compressrs.checkpoint import _format
from compressrs.checkpoint._coding import Bytes, Description
from compressrs.checkpoint._format import DTYPES, Entry
from compressrs.checkpoint.export._report import Written
from compressrs.checkpoint.export._staging import staged
from compressrs.checkpoint.reader import Checkpoint

_SUFFIX = ".weight"


def _is_packable(name: str, d: Description) -> bool:
    return (
        d.coding == "quantized"
        and d.options.get("codes") == "int"
        and d.options["bits"] in (4, 8)
        and len(d.shape) == 2
        and name.endswith(_SUFFIX)
    )


def _scheme(d: Description) -> tuple[int, int | None]:
    return d.options["bits"], d.options.get("group_size")


def pack(codes: NDArray[np.int8], bits: int) -> NDArray[np.int32]:
    """Pack rows of codes in words of 32 bits, the first code lowest."""
    each = 32 // bits
    rows, columns = codes.shape
    unsigned = np.zeros((rows, -(-columns // each) * each), np.uint32)
    unsigned[:, :columns] = codes.astype(np.int16) + (1 << (bits - 1))
    shifts = (np.arange(each, dtype=np.uint32) * np.uint32(bits))[None, None]
    words: NDArray[np.uint32] = np.bitwise_or.reduce(
        unsigned.reshape(rows, -1, each) << shifts, axis=2
    )
    return words.view(np.int32)


def write(
    c: Checkpoint, target: Path, progress: Callable[[int, int], None]
) -> tuple[int, dict[str, Written]]:
    """Write a folder: model.safetensors, and config.json with how its matrices are quantized.

    Embeddings are written dense: only linear layers are loaded quantized. Which matrices
    are embeddings is told by their names, that hold "embed" or are "lm_head.weight".

    Raises
    ------
    ValueError
        If matrices are quantized in several ways, of which the format has one, or none is.
    """
    packed = {n for n in c if _is_packable(n, c.description(n)) and not _is_embedding(n)}
    schemes = {_scheme(c.description(n)) for n in packed}
    if len(schemes) != 1:
        shifted = sum(c.description(n).coding in ("shifted", "scaled") for n in c)
        raise ValueError(
            "compressed-tensors needs matrices named *.weight, quantized to int4 or int8 all in "
            f"one way, got {len(schemes)} ways"
            + (f"; {shifted} are of hqq or awq, which it has no form for" if shifted else "")
        )
    (bits, group), *_ = schemes
    form = "int-quantized" if bits == 8 and group is None else "pack-quantized"
    entries: list[Entry] = []
    written: dict[str, Written] = {}
    for name in c:
        shape, dtype = c.shape(name), c.dtype(name)
        if name not in packed:
            entries.append(_entry(name, dtype, shape))
            written[name] = Written(dtype, entries[-1].nbytes)
            continue
        first = len(entries)
        scales = (shape[0], 1 if group is None else -(-shape[1] // group))
        if form == "int-quantized":
            entries.append(_entry(name, "I8", shape))
        else:
            words = -(-shape[1] * bits // 32)
            entries.append(_entry(f"{name}_packed", "I32", (shape[0], words)))
            entries.append(_entry(f"{name}_shape", "I64", (2,)))
        entries.append(_entry(f"{name}_scale", dtype, scales))
        nbytes = sum(entry.nbytes for entry in entries[first:])
        written[name] = Written(f"int{bits}", nbytes, quantized=True)
    header = _format.serialize(*_placed(entries))
    total = sum(entry.nbytes for entry in entries)
    with staged(target, total, folder=True) as folder:
        with open(folder / "model.safetensors", "wb") as file:
            file.write(header)
            done = 0
            for entry in _format.parse_header("", header).entries:
                for data in _data(c, entry.name, packed, bits):
                    file.write(data.data)
                    done += data.nbytes
                    progress(done, total)
        c.files.copy_side_files(folder)
        _amend_config(folder / "config.json", form, bits, group, c, packed)
    return len(header) + total, written


def _is_embedding(name: str) -> bool:
    return "embed" in name or name == "lm_head.weight"


def _entry(name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
    return Entry(name, dtype, shape, 0, _format.tensor_bytes(dtype, shape))


def _placed(entries: list[Entry]) -> tuple[list[Entry], dict[str, str]]:
    placed, end = [], 0
    for e in sorted(entries, key=lambda e: (-DTYPES[e.dtype].bits, e.name)):
        placed.append(Entry(e.name, e.dtype, e.shape, end, end + e.nbytes))
        end += e.nbytes
    return placed, {"format": "pt"}


def _data(c: Checkpoint, name: str, packed: set[str], bits: int) -> Any:
    """Yield the bytes of a tensor of the export."""
    for suffix in ("_packed", "_shape", "_scale", ""):
        base = name.removesuffix(suffix)
        if base in packed and name.endswith(suffix):
            break
    else:
        yield from (data for _, data in c.tiles(name))
        return
    if suffix == "_shape":
        yield np.array(c.shape(base), np.int64).view(np.uint8)
        return
    q = c.quantized(base)
    found: NDArray[Any]
    if suffix == "_scale":
        found = q.scale.astype(c.numpy_dtype(base))
    else:
        found = pack(q.codes, bits) if suffix == "_packed" else q.codes
    yield _bytes(found)


def _bytes(x: NDArray[Any]) -> Bytes:
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8)


def _amend_config(
    path: Path, form: str, bits: int, group: int | None, c: Checkpoint, packed: set[str]
) -> None:
    config = parse_json(path.read_bytes()) if path.exists() else {}
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "channel" if group is None else "group",
        "group_size": group,
        "dynamic": False,
    }
    activations = {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "strategy": "token",
        "dynamic": True,
    }
    group_0 = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": activations if form == "int-quantized" else None,
    }
    ignored = [
        n.removesuffix(_SUFFIX)
        for n in c
        if n not in packed and n.endswith(_SUFFIX) and len(c.shape(n)) == 2
    ]
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ignored,
        "config_groups": {"group_0": group_0},
    }
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")

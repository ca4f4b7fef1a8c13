"""Headers of containers: what a container says of itself, and the header of its source."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from compressrs import _core
from compressrs._json import parse_json
from compressrs.checkpoint import _format
from compressrs.checkpoint._format import Entry
from compressrs.checkpoint._source import File

#: The key of what a container says of itself in its metadata, and the start of the keys
#: of what it says of its tensors.
KEY = "compressrs"
VERSION = 1

#: Marks a source whose header `canonical_header` reproduces.
CANONICAL = "canonical"


def container_info(file: File) -> dict[str, Any] | None:
    """Return the metadata of a container, or None for a plain file.

    Raises
    ------
    ValueError
        If it is damaged or of an unknown version.
    """
    text = file.header.metadata.get(KEY)
    if text is None:
        if any(key.startswith(f"{KEY}:") for key in file.header.metadata):
            raise ValueError(f"{file.path} is damaged: it describes tensors, but not itself")
        return None
    try:
        about = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{file.path} says of itself what is not JSON: {error}") from None
    version = about.get("version") if isinstance(about, dict) else None
    if version != VERSION:
        raise ValueError(f"{file.path} must be of version {VERSION} to be read, got {version!r}")
    others = {key: value for key, value in file.header.metadata.items() if key != KEY}
    if about.get("xxh3") != header_checksum(file.header.entries, others):
        raise ValueError(f"{file.path} is damaged: its header is not the one that was written")
    metadata = about.setdefault("metadata", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"{file.path} has metadata of its source that are not strings")
    return dict(about)


def header_checksum(entries: Iterable[Entry], metadata: Mapping[str, str]) -> str:
    """Return the XXH3 of a container's header without the container's own metadata."""
    placed = sorted([e.begin, e.end, e.name, e.dtype, list(e.shape)] for e in entries)
    text = json.dumps([placed, sorted(metadata.items())], separators=(",", ":"))
    checksum = _core.Checksum()
    checksum.update(np.frombuffer(text.encode(), np.uint8))
    return f"{checksum.digest():016x}"


def canonical_header(entries: Iterable[Entry], metadata: Mapping[str, str]) -> bytes:
    """Return the header that the safetensors library writes for these tensors.

    It sorts tensors by descending bit width, then by name.
    """
    placed, end = [], 0
    for entry in sorted(entries, key=lambda e: (-_format.DTYPES[e.dtype].bits, e.name)):
        placed.append(replace(entry, begin=end, end=end + entry.nbytes))
        end += entry.nbytes
    return _format.serialize(placed, metadata)

"""Files with the data of a model beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from compressrs._paths import open_regular
from compressrs.onnx._graph import Index, tensors
from compressrs.onnx._tensors import External, Stored


def streamed(places: list[tuple[Stored, External]]) -> Iterator[bytes | memoryview]:
    """Yield the content of a file with the data of arrays at these places."""
    end = 0
    for own, place in places:
        yield bytes(place.offset - end)
        yield from own.parts()
        end = place.offset + place.length


def written_beside(target: Path) -> set[Path]:
    """Return the files that `Model.save` wrote beside a model of this path."""
    try:
        with open_regular(target) as file:
            proto = onnx.ModelProto.FromString(file.read())
    except (OSError, DecodeError):
        return set()
    names = {
        entry.value
        for _, _, tensor in tensors(Index(proto.graph))
        for entry in tensor.external_data
        if entry.key == "location"
    }
    own = re.compile(re.escape(target.name) + r"(\.\d+)?\.data")
    return {target.with_name(name) for name in names if own.fullmatch(name)}

"""What the scripts share."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write(
    path: Path, header: bytes | dict[str, Any], data: bytes, length: int | None = None
) -> Path:
    """Write a safetensors file with whatever header, and whatever length it says it has."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def tensor(
    begin: int, end: int, shape: list[int] | None = None, dtype: str = "U8"
) -> dict[str, Any]:
    """Return the header's entry of a tensor."""
    return {
        "dtype": dtype,
        "shape": [end - begin] if shape is None else shape,
        "data_offsets": [begin, end],
    }


def container(
    path: Path, tensors: dict[str, Any], descriptions: dict[str, Any], data: bytes
) -> Path:
    """Write a compressed file with whatever descriptions, and the checksum that goes with them."""
    from compressrs.checkpoint._format import Entry
    from compressrs.checkpoint._header import header_checksum

    metadata = {f"compressrs:{name}": json.dumps(d) for name, d in descriptions.items()}
    entries = [
        Entry(name, t["dtype"], tuple(t["shape"]), *t["data_offsets"])
        for name, t in tensors.items()
    ]
    about = {"version": 1, "metadata": {}, "xxh3": header_checksum(entries, metadata)}
    header = {"__metadata__": {"compressrs": json.dumps(about), **metadata}, **tensors}
    return write(path, header, data)


def show(make: Callable[[Path], Path]) -> None:
    """Open what a script made, and print what becomes of it."""
    import compressrs as cr

    with tempfile.TemporaryDirectory() as folder:
        path = make(Path(folder))
        try:
            with cr.checkpoint.open(path) as c:
                print({name: c[name] for name in c})
        except (OSError, ValueError) as error:
            print(f"{type(error).__name__}: {error}")

"""NumPy's archives."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from compressrs.checkpoint.export._report import Written
from compressrs.checkpoint.export._staging import staged
from compressrs.checkpoint.reader import Checkpoint


def write(
    c: Checkpoint, target: Path, progress: Callable[[int, int], None]
) -> tuple[int, dict[str, Written]]:
    """Write all tensors, tile by tile; in float32 what has no dtype in NumPy itself."""
    total = sum(d.size for d in map(c.description, c))
    done, written = 0, {}
    with staged(target, 4 * total) as path:
        with zipfile.ZipFile(path, "w") as archive:
            for name in c:
                kind = c.numpy_dtype(name)
                stored = kind if kind.isbuiltin == 1 else np.dtype(np.float32)
                written[name] = Written(stored.name, c.description(name).size * stored.itemsize)
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    header = {"descr": stored.str, "fortran_order": False, "shape": c.shape(name)}
                    np.lib.format.write_array_header_1_0(file, header)
                    for _, data in c.tiles(name):
                        x = data.view(kind)
                        file.write(x.astype(stored, copy=False).data.cast("B"))
                        done += x.size
                        progress(done, total)
        size = path.stat().st_size
    return size, written

"""``compressrs decompress``."""

from __future__ import annotations

from compressrs.cli._options import Destination, Source, Threads, progress, set_threads, shown
from compressrs.cli._output import say


def run(src: Source, output: Destination, threads: Threads = None) -> None:
    """Restore a plain checkpoint; lossless compression is undone to the byte.

    compressrs decompress small.safetensors -o model.safetensors
    """
    from compressrs import checkpoint

    set_threads(threads)
    with progress("decompressing") as bar:
        n = checkpoint.decompress(src, output, progress=bar)
    say(f"{output}: {shown(n)}")

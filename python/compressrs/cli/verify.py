"""``compressrs verify``."""

from __future__ import annotations

from compressrs.cli._options import Source, progress
from compressrs.cli._output import say


def run(src: Source) -> None:
    """Decode every tensor of a checkpoint and compare it with its checksum.

    compressrs verify small.safetensors
    """
    from compressrs import checkpoint

    with progress("verifying") as bar:
        n = checkpoint.verify(src, progress=bar)
    with checkpoint.open(src) as c:
        compressed = c.compressed
    if compressed:
        say(f"{src}: {n} tensors are intact")
    else:
        say(f"{src}: {n} tensors can be read; a checkpoint that is not compressed has no checksums")

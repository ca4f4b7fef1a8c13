"""Peak memory and throughput of compressing a sharded checkpoint of any size.

    python -m benches.checkpoint_memory --size 20GB --no-restore --folder /somewhere/with/40GB

Makes shards of 1 GB of bfloat16 weights, all different, one of them a tensor larger than the
memory limit; compresses, verifies and restores it by the commands, and prints for each the peak
of the process's resident memory, and its throughput beside that of copying the files with
the same fsync. What it writes is removed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from compressrs.checkpoint._format import Entry, serialize
from compressrs.cli._options import size

ROW = 4096
SHARD = 10**9
#: Rows of a usual tensor, of 64 MB.
ROWS = 8192

#: A command, and the measure of memory that `compressrs compress` reports.
RUN = """
import json, sys, time
from compressrs.checkpoint.compressing import peak_memory
from compressrs.cli import main
started = time.perf_counter()
code = main(sys.argv[1:])
print(json.dumps([time.perf_counter() - started, peak_memory()]))
sys.exit(code)
"""


def make(folder: Path, total: int, large: int) -> int:
    """Write shards of weights, the first a tensor of `large` bytes; return their size."""
    rng = np.random.default_rng(0)
    # bfloat16 is the upper half of float32.
    pool = (rng.normal(0, 0.02, ROW * ROWS).astype(np.float32).view(np.uint32) >> 16).astype("u2")
    shards, left, weights = [], total, {}
    while left > 0:
        room = min(SHARD, left) if shards else large
        rows = [room // (2 * ROW)] if not shards else [ROWS] * max(room // (2 * ROW * ROWS), 1)
        shards.append(rows)
        left -= 2 * ROW * sum(rows)
    for i, rows in enumerate(shards):
        name = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        entries, end = [], 0
        for j, n in enumerate(rows):
            begin, end = end, end + 2 * ROW * n
            entries.append(Entry(f"layers.{i}.{j}.weight", "BF16", (n, ROW), begin, end))
        with open(folder / name, "wb") as file:
            file.write(serialize(entries, {"format": "pt"}))
            for entry in entries:
                # All tensors are different: the pool from another place on, with other signs.
                shift = int(rng.integers(pool.size))
                flip = np.uint16(rng.integers(2)) << np.uint16(15)
                data = np.roll(pool, shift) ^ flip
                for at in range(0, entry.nbytes, data.nbytes):
                    file.write(data.view(np.uint8)[: entry.nbytes - at].data)
                weights[entry.name] = name
    index = {"metadata": {"total_size": 0}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(path.stat().st_size for path in folder.iterdir())


def run(*arguments: object) -> tuple[float, int]:
    """Return seconds and the peak memory of a command in a process of its own."""
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def copy(source: Path, target: Path) -> float:
    """Return the time of copying a folder and syncing it."""
    started = time.perf_counter()
    shutil.copytree(source, target)
    for path in target.iterdir():
        subprocess.run(["sync", str(path)], check=True)
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=size, default=size("2GB"))
    parser.add_argument("--limit", type=size, default=size("1GB"))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rules", nargs="*", default=["lossless", "int8"])
    parser.add_argument("--restore", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        source, small, plain = (Path(temporary, name) for name in ("source", "small", "plain"))
        source.mkdir()
        total = make(source, given.size, large=int(1.2 * given.limit))
        print(f"{total / 1e9:.2f} GB in {len(list(source.iterdir())) - 1} shards, ", end="")
        print(f"limit {given.limit / 1e6:.0f} MB")
        print(
            "| operation | GB | seconds | GB/s of the source | peak MB |\n|---|---:|---:|---:|---:|"
        )
        seconds = copy(source, plain)
        shutil.rmtree(plain)
        print(f"| copying | {total / 1e9:.2f} | {seconds:.1f} | {total / 1e9 / seconds:.2f} | |")
        for rule in given.rules:
            options = ["--lossless"] if rule == "lossless" else ["--set", f"re:.*={rule}"]
            options += ["--memory-limit", given.limit]
            for what, arguments in (
                (f"compress, {rule}", (source, "-o", small, *options)),
                ("verify", (small,)),
                ("decompress", (small, "-o", plain)),
            ):
                if what == "decompress" and not given.restore:
                    continue
                seconds, peak = run(what.split(",")[0], *arguments)
                written = plain if what == "decompress" else small
                stored = sum(path.stat().st_size for path in written.iterdir()) / 1e9
                print(
                    f"| {what} | {stored:.2f} | {seconds:.1f} | {total / 1e9 / seconds:.2f} "
                    f"| {peak / 1e6:.0f} |",
                    flush=True,
                )
            if rule == "lossless" and given.restore:
                same = all(
                    (plain / path.name).stat().st_size == path.stat().st_size
                    and subprocess.run(["cmp", path, plain / path.name]).returncode == 0
                    for path in source.glob("*.safetensors")
                )
                print(f"restored to the byte: {same}")
            shutil.rmtree(small)
            shutil.rmtree(plain, ignore_errors=True)


if __name__ == "__main__":
    main()

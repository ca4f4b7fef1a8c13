"""Compression of checkpoints."""

from __future__ import annotations

import base64
import json
import os
import time
import zlib
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from compressrs._checks import file_path, flag, function, whole
from compressrs._files import write_atomically
from compressrs._paths import require_distinct
from compressrs.checkpoint import _format
from compressrs.checkpoint._calibration import Calibration, Given
from compressrs.checkpoint._coding import PLAIN, Description
from compressrs.checkpoint._container import (
    Shard,
    Stored,
    reserved,
)
from compressrs.checkpoint._encoding import predict
from compressrs.checkpoint._header import CANONICAL, VERSION, canonical_header, container_info
from compressrs.checkpoint._plan import Step, plan, samples
from compressrs.checkpoint._source import INDEX, SUFFIX, File, Files, equal
from compressrs.checkpoint._tasks import Encoded, Executor, encoded
from compressrs.checkpoint._work import Work, disk_full_said
from compressrs.checkpoint.recipe import Recipe, Rule

#: Default memory limit.
MEMORY_LIMIT = 1_000_000_000


@dataclass(frozen=True)
class Row:
    """A tensor in a report."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    coding: str
    before: int
    after: int
    #: ``|w - decoded| / |w|`` in the Euclidean norm; None for lossless codings.
    error: float | None = None


@dataclass(frozen=True)
class Report:
    """The result of a run, or the prediction of a dry run."""

    source: str
    destination: str
    rows: list[Row] = field(default_factory=list)
    #: Size of the files in bytes, including headers.
    before: int = 0
    after: int = 0
    #: Whether sizes are predicted and nothing was written.
    dry_run: bool = False
    memory_limit: int = MEMORY_LIMIT
    #: Time and peak memory: of a run, measured (memory only on Linux and macOS), of a dry run,
    #: predicted.
    seconds: float = 0.0
    memory: int | None = None

    @property
    def ratio(self) -> float:
        """Size of the source divided by the size of the result."""
        return self.before / self.after if self.after else 1.0

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps({**asdict(self), "ratio": self.ratio}, indent=2)


def compress(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str] | None,
    recipe: Recipe | Rule | None = None,
    *,
    calibration: Given | None = None,
    memory_limit: int = MEMORY_LIMIT,
    max_shard_size: int | None = None,
    dry_run: bool = False,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
    executor: Executor | None = None,
) -> Report:
    """Compress a checkpoint in bounded memory.

    The result is one or more safetensors files that `open` reads and `decompress` restores to a
    plain checkpoint. It is published atomically at `dst`; the files of an interrupted run are in
    the folder ``.NAME.compressrs`` beside it.

    Parameters
    ----------
    src : path
        A safetensors file, the index of a sharded checkpoint, or a folder that contains
        either. Other files of a folder are copied.
    dst : path
        A file if it ends in ``.safetensors``, else a folder, which must not exist. None is
        for a dry run alone.
    recipe : Recipe or Rule, optional
        How tensors are compressed. Lossless by default.
    calibration : path or dict of str to prune.InputStatistics, optional
        What the methods "gptq" and "awq" need: the statistics of the inputs of layers, by the
        name of the layer or its weight, or a file of `compressrs.prune.save_statistics`. By
        default the recipe's. A tensor without statistics has those of a tensor with the same
        bytes, to which it may be tied.
    memory_limit : int, default 1,000,000,000
        Maximum memory of the process in bytes.
    max_shard_size : int, optional
        Maximum size of the tensors in a file in bytes; a larger tensor has its own file. By
        default the files correspond to those of the source.
    dry_run : bool, default False
        Predict sizes, errors, time and memory from samples without writing anything.
    resume : bool, default False
        Resume an interrupted run with the same arguments, if there is one. The result is
        byte-identical to that of an uninterrupted run.
    progress : callable, optional
        Called with bytes done and bytes in total.
    executor : executor of concurrent.futures, optional
        Where tensors are encoded, such as one of `distributed.executor`: in other processes or
        on other machines, which read `src` under the same path. The result is the same to the
        byte. Each worker has the memory limit, and some encoded tensors are held here.

    Returns
    -------
    Report

    Raises
    ------
    OSError
        If a file cannot be read or written. Files written so far are kept for `resume`.
    ValueError
        If the source is damaged, already compressed or modified during the run; if the
        recipe cannot be applied; if `dst` exists as a folder.
    RuntimeError
        If workers of the executor keep being killed.

    Examples
    --------
    >>> import numpy as np, compressrs as cr, tempfile, pathlib
    >>> from safetensors.numpy import save_file
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> rng = np.random.default_rng(0)
    >>> weights = rng.normal(0, 0.02, (512, 512)).astype(np.float32)
    >>> save_file({"weight": weights}, folder / "a.safetensors")
    >>> report = cr.checkpoint.compress(folder / "a.safetensors", folder / "b.safetensors")
    >>> 1.15 < report.ratio < 1.25
    True
    >>> with cr.checkpoint.open(folder / "b.safetensors") as c:
    ...     bool((c["weight"] == weights).all())
    True
    """
    recipe = Recipe() if recipe is None else recipe
    if isinstance(recipe, Rule):
        recipe = Recipe(recipe)
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a Recipe, got {type(recipe).__name__}")
    memory_limit = whole(memory_limit, "memory_limit", 0)
    if max_shard_size is not None:
        max_shard_size = whole(max_shard_size, "max_shard_size", 1)
    dry_run, resume = flag(dry_run, "dry_run"), flag(resume, "resume")
    if progress is not None:
        function(progress, "progress")
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise TypeError(
            "executor must have submit, as those of concurrent.futures, got "
            f"{type(executor).__name__}"
        )
    target = None
    if dst is not None or not dry_run:
        target = Path(os.path.realpath(file_path(dst, "dst")))
    with ExitStack() as opened:
        files = opened.enter_context(Files(src, name="src"))
        for file in files.files:
            if container_info(file) is not None:
                raise ValueError(f"{file.path} is compressed already; decompress it first")
        single = files.folder is None if target is None else target.name.endswith(SUFFIX)
        given = recipe.calibration if calibration is None else calibration
        found = None if given is None else opened.enter_context(Calibration(given))
        if target is not None:
            check_target(files, target, single, () if found is None else found.paths)
        if target is not None and max_shard_size is not None and single:
            raise ValueError(f"max_shard_size needs dst to be a folder, got {target.name}")
        steps = plan(files, recipe, memory_limit, found)
        run = _Run(
            files, target or Path(), recipe, steps, single, max_shard_size, memory_limit, found,
            progress, executor,
        )  # fmt: skip
        return run.predict() if dry_run else run.write(resume)


def check_target(
    files: Files, target: Path, single: bool, calibration: Sequence[Path] = ()
) -> None:
    """Raise an error unless a file or a folder can be created at `target`."""
    if target.is_dir():
        raise ValueError(f"{target} must not exist, it is a folder")
    if not single and target.exists():
        raise ValueError(f"{target} exists; a folder is made there, a file ends in {SUFFIX}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} of the destination does not exist")
    require_distinct({"dst": target}, {"src": files.paths, "calibration": calibration})


class _Run:
    """A compression run."""

    def __init__(
        self,
        files: Files,
        target: Path,
        recipe: Recipe,
        steps: list[Step],
        single: bool,
        max_shard_size: int | None,
        memory_limit: int,
        calibration: Calibration | None,
        progress: Callable[[int, int], None] | None,
        executor: Executor | None,
    ) -> None:
        self.files, self.target, self.recipe, self.steps = files, target, recipe, steps
        self.single, self.max_shard_size = single, max_shard_size
        self.by_name = {step.name: step for step in steps}
        self.memory_limit = memory_limit
        self.calibration = calibration
        self.total = sum(step.located.entry.nbytes for step in steps)
        self.done = 0
        self.progress = progress
        self.executor = executor
        destination = os.fspath(target) if target.name else ""
        self.report = Report(os.fspath(files.path), destination, memory_limit=memory_limit)

    def advance(self, n: int) -> None:
        self.done += n
        if self.progress is not None:
            self.progress(self.done, self.total)

    def before(self) -> int:
        return sum(file.header.start for file in self.files.files) + self.total

    def predict(self) -> Report:
        rows, seconds, memory = [], 0.0, 0
        seen: set[tuple[Any, ...]] = set()
        for step in self.steps:
            found = predict(step)
            entry = step.located.entry
            # Samples tell tensors that will be stored once.
            key = *self._kind(step.name), *(part.tobytes() for part in samples(step.located))
            shared = key in seen and entry.size > 0
            coding, after = ("shared", 0) if shared else (step.coding, found.after)
            seen.add(key)
            rows.append(self._row(step.name, coding, after, found.error))
            seconds, memory = seconds + found.seconds, max(memory, found.memory)
            self.advance(entry.nbytes)
        headers = 256 * len(self.steps)
        after = sum(row.after for row in rows) + headers
        used = peak_memory()
        return replace(
            self.report,
            rows=rows,
            before=self.before(),
            after=after,
            dry_run=True,
            seconds=seconds,
            memory=None if used is None else used + memory,
        )

    def _row(self, name: str, coding: str, after: int, error: float | None) -> Row:
        entry = self.files.tensors[name].entry
        return Row(name, entry.dtype, entry.shape, coding, entry.nbytes, after, error)

    def groups(self) -> list[tuple[list[Step], dict[str, Any]]]:
        """Return the tensors and the container metadata of each output file."""
        ordered = sorted(self.steps, key=_alignment)
        if self.max_shard_size is not None or (self.single and len(self.files.files) > 1):
            return [(ordered, _about(None, self.files, ordered))]
        found = []
        for file in self.files.files:
            steps = [s for s in ordered if s.located.file is file]
            found.append((steps, _about(file, self.files, steps)))
        return found

    def write(self, resume: bool) -> Report:
        started = time.perf_counter()
        groups = self.groups()
        reserves = [reserved(steps, about) for steps, about in groups]
        work = Work(self.target, self.fingerprint(), resume)
        removed = True
        try:
            with disk_full_said(self.target, self.needed, "resume"):
                shards = self._shards(work, groups, reserves)
                after = self._publish(work, shards, groups)
        except (OSError, KeyboardInterrupt):
            # Keep completed work, since the cause may be temporary.
            removed = False
            raise
        finally:
            work.close(removed)
        rows = [self._stored_row(s) for shard in shards for s in shard.stored]
        order = {step.name: i for i, step in enumerate(self.steps)}
        rows.sort(key=lambda row: order[row.name])
        return replace(
            self.report,
            rows=rows,
            before=self.before(),
            after=after,
            seconds=time.perf_counter() - started,
            memory=peak_memory(),
        )

    def _stored_row(self, stored: Stored) -> Row:
        coding = stored.description.coding if stored.description.same is None else "shared"
        after = 0 if stored.entry is None else stored.entry.nbytes
        return self._row(stored.name, coding, after, stored.error)

    def needed(self) -> int:
        return sum(step.predicted + 256 for step in self.steps)

    def fingerprint(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "source": [[str(f.path.resolve()), *f.fingerprint] for f in self.files.files],
            "recipe": self.recipe.to_toml(),
            "calibration": self.calibration and self.calibration.fingerprint(),
            "tile": [step.tile for step in self.steps],
            "max_shard_size": self.max_shard_size,
        }

    def _shards(
        self,
        work: Work,
        groups: list[tuple[list[Step], dict[str, Any]]],
        reserves: list[int],
    ) -> list[Shard]:
        output = work.folder / "files"
        output.mkdir(exist_ok=True)
        done, shards = self._restore(work, output, reserves)
        known = {
            (s.source, self._kind(s.name)): s
            for shard in shards
            for s in shard.stored
            if s.entry is not None
        }
        results = self._encoded([s for steps, _ in groups for s in steps if s.name not in done])
        try:
            for number, (steps, _) in enumerate(groups):
                if number >= len(shards):
                    shards.append(Shard(output / f"{number}{SUFFIX}", reserves[number]))
                shard = shards[number if self.max_shard_size is None else -1]
                for step in steps:
                    if step.name in done:
                        self.advance(step.located.entry.nbytes)
                        continue
                    stored = shard.add(step, self.advance, next(results))
                    same = known.get((stored.source, self._kind(step.name)))
                    if same is not None and equal(self.files.tensors[same.name], step.located):
                        shard.drop_last()
                        d = Description(same.description.dtype, same.description.shape, PLAIN)
                        stored = Stored(
                            step.name, None, replace(d, same=same.name), stored.source, stored.error
                        )
                        shard.stored.append(stored)
                    elif (
                        self.max_shard_size is not None
                        and shard.size > self.max_shard_size
                        and sum(s.entry is not None for s in shard.stored) > 1
                    ):
                        shards.append(Shard(output / f"{len(shards)}{SUFFIX}", reserves[0]))
                        stored = shard.move_last(shards[-1])
                        shard = shards[-1]
                    if stored.entry is not None:
                        known[stored.source, self._kind(step.name)] = stored
                    work.record({**stored.record(), "shard": shards.index(shard)})
            self.files.check_unchanged()
        except BaseException:
            for shard in shards:
                shard.close()
            raise
        finally:
            results.close()
        return shards

    def _encoded(self, steps: list[Step]) -> Generator[Encoded | None, None, None]:
        """Yield what an executor has encoded of each tensor; None to encode it here."""
        if self.executor is None:
            yield from (None for _ in steps)
        else:
            yield from encoded(self.executor, steps)

    def _kind(self, name: str) -> tuple[Any, ...]:
        """Return what must be equal for two tensors to be stored once."""
        step = self.by_name[name]
        entry = step.located.entry
        return entry.dtype, entry.shape, step.rule, step.inputs

    def _restore(
        self, work: Work, output: Path, reserves: list[int]
    ) -> tuple[set[str], list[Shard]]:
        """Restore the intact part of an interrupted run."""
        shards: list[Shard] = []
        kept: list[list[Stored]] = []
        records = []
        for record in work.records:
            number, stored = record["shard"], Stored.of_record(record)
            while len(shards) <= number:
                reserve = reserves[0 if self.max_shard_size is not None else len(shards)]
                shards.append(Shard(output / f"{len(shards)}{SUFFIX}", reserve))
                kept.append([])
            if not shards[number].intact(stored):
                break
            kept[number].append(stored)
            records.append(record)
        work.keep(records)
        for shard, stored_of in zip(shards, kept, strict=True):
            shard.restore(stored_of)
        return {record["tensor"] for record in records}, shards

    def _publish(
        self, work: Work, shards: list[Shard], groups: list[tuple[list[Step], dict[str, Any]]]
    ) -> int:
        for number, shard in enumerate(shards):
            shard.finish(groups[0 if self.max_shard_size is not None else number][1])
        size = sum(shard.path.stat().st_size for shard in shards)
        paths = [shard.path for shard in shards]
        # Left by a run that was interrupted at this point.
        for path in (work.folder / "files").iterdir():
            if path not in paths:
                path.unlink()
        if self.single:
            work.publish(shards[0].path)
            return size
        folder = work.folder / "files"
        if self.max_shard_size is None:
            names = [file.path.name for file in self.files.files]
        else:
            n = len(shards)
            names = [f"model-{i + 1:05}-of-{n:05}{SUFFIX}" for i in range(n)]
        # Rename in two passes, through names that no file has.
        for shard, name in zip(shards, names, strict=True):
            os.replace(shard.path, folder / f".{name}")
        for shard, name in zip(shards, names, strict=True):
            shard.path = folder / name
            os.replace(folder / f".{name}", shard.path)
        if self.files.index is not None or len(shards) > 1:
            self._write_index(folder, shards)
        self.files.copy_side_files(folder)
        work.publish(folder)
        return size

    def _write_index(self, folder: Path, shards: list[Shard]) -> None:
        weights = {s.name: shard.path.name for shard in shards for s in shard.stored if s.entry}
        metadata = {**self.files.index_metadata, "total_size": sum(s.size for s in shards)}
        text = json.dumps({"metadata": metadata, "weight_map": weights}, indent=2)
        name = f"model{INDEX}" if self.files.index is None else self.files.index.name
        write_atomically(folder / name, text.encode())


def peak_memory() -> int | None:
    """Return the peak of the process's resident memory, where the system tells it."""
    try:
        # Not ru_maxrss, which begins with what the parent had before exec.
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return 1024 * int(text.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ModuleNotFoundError:  # on Windows
        return None
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on macOS


def _alignment(step: Step) -> int:
    """Return the sort key of a tensor in its file: streams first, then descending width."""
    if step.coding != PLAIN:
        return 0
    return 100 - _format.DTYPES[step.dtype].bits


def _about(file: File | None, files: Files, steps: list[Step]) -> dict[str, Any]:
    """Return the container metadata from which the source's header can be restored exactly."""
    metadata: dict[str, str] = {}
    for each in files.files if file is None else [file]:
        metadata.update(each.header.metadata)
    about: dict[str, Any] = {"metadata": metadata}
    if not all(step.rule.lossless for step in steps):
        about["lossy"] = True
    if file is not None:
        raw = file.raw_header()
        if raw == canonical_header(file.header.entries, metadata):
            about["header"] = CANONICAL
        else:
            about["header"] = base64.b85encode(zlib.compress(raw, 9)).decode()
    return about

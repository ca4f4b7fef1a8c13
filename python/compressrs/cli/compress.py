"""``compressrs compress``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from compressrs.cli import _budget
from compressrs.cli._options import (
    Json,
    OptionalDestination,
    Source,
    Threads,
    Usage,
    Use,
    arguments,
    duration,
    progress,
    set_threads,
    shown,
    size,
)
from compressrs.cli._output import console, write


def run(
    src: Source,
    output: OptionalDestination = None,
    lossless: Annotated[
        bool, typer.Option("--lossless", help="Compress without loss (the default).")
    ] = False,
    quantize: Annotated[str | None, typer.Option(help="int8 to int2, nf4 or codebook.")] = None,
    group_size: Annotated[int | None, typer.Option(help="Elements that share a scale.")] = None,
    method: Annotated[
        str, typer.Option(help="rtn, mse or hqq; with calibration, gptq or awq.")
    ] = "rtn",
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Statistics of inputs, of prune.save_statistics."),
        Use.READ,
    ] = None,
    entries: Annotated[
        int | None, typer.Option(help="Values of a codebook, 2 to 256 (default: 32).")
    ] = None,
    prune: Annotated[
        float | None, typer.Option(help="Fraction of weights to set to 0, by magnitude.")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(help="Prune to a pattern such as 2:4 instead.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Round to float16 or bfloat16.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PATTERN=RULE",
            help="Rule for some tensors, such as `'re:.*attn.*=int4'`; may be repeated.",
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Tensors to store without loss: a name or re:..."),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Read the options from a TOML file."),
        Use.READ,
    ] = None,
    save_recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the options to a TOML file."),
        Use.WRITTEN,
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(parser=size, metavar="SIZE", help="Find the best rules within a size."),
    ] = None,
    target_latency: Annotated[
        float | None,
        typer.Option(parser=duration, metavar="TIME", help="... or a time of one row, as 5ms."),
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Find the smallest file whose --evaluate drops by less.")
    ] = None,
    evaluate: Annotated[
        str | None,
        typer.Option(metavar="COMMAND", help="Prints the accuracy of the file it is given."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep what --budget and the like measure."),
        Use.KEPT,
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Processes of --budget and of --executor.", min=1)
    ] = 1,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Predict sizes, errors, time, memory; write nothing."),
    ] = False,
    memory_limit: Annotated[
        int, typer.Option(parser=size, metavar="SIZE", help="Memory limit.")
    ] = 10**9,
    threads: Threads = None,
    max_shard_size: Annotated[
        int | None, typer.Option(parser=size, metavar="SIZE", help="Maximum size of a file.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume an interrupted run, if there is one.")
    ] = False,
    executor: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Encode in processes, mpi, dask://HOST:PORT or ray."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write an HTML report with plots."),
        Use.WRITTEN,
    ] = None,
    json: Json = False,
) -> None:
    """Compress a checkpoint.

    Without options, compression is lossless. Examples:

        compressrs compress model.safetensors -o small.safetensors

        compressrs compress model/ -o small/ --quantize int4 --group-size 32

        compressrs compress model/ --prune 0.5 --dry-run

        compressrs compress model/ -o small/ --quantize int4 --group-size 32 --method gptq
        --calibration statistics.safetensors `--set 're:.*embed.*=int5,group_size=64'`

        compressrs compress model.safetensors -o small.safetensors --budget 20MB
    """
    from compressrs import checkpoint
    from compressrs._files import write_atomically
    from compressrs._paths import require_distinct, require_replaceable
    from compressrs.checkpoint._plan import tile_elements
    from compressrs.checkpoint.report import require_matplotlib, to_html

    with arguments():
        if output is None and not dry_run:
            raise ValueError("give -o, --output; only --dry-run needs none")
        rule = checkpoint.Rule(
            quantize=quantize, group_size=group_size, method=method,
            entries=32 if entries is None else entries,
            prune=prune, pattern=pattern, dtype=dtype,
        )  # fmt: skip
        if entries is not None and quantize != "codebook":
            raise ValueError("entries needs quantize to be codebook")
        if lossless and (not rule.lossless or set_ or recipe):
            raise ValueError("lossless keeps all bits; give it without rules")
        if recipe is None:
            whole = checkpoint.Recipe(rule)
        elif rule != checkpoint.Rule():
            raise ValueError("give the rule for all tensors in the recipe or as options, not both")
        else:
            whole = checkpoint.Recipe.load(recipe)
        for assignment in set_ or []:
            whole = whole.with_rule(assignment)
        whole = replace(whole, ignore=(*whole.ignore, *(ignore or [])))
        tile_elements(memory_limit)
        measuring = workers if executor is None else 1
        target = _budget.Target(budget, target_latency, max_drop, evaluate, cache, measuring)
        if target.given and (lossless or whole != checkpoint.Recipe() or dry_run or resume):
            raise ValueError(
                "budget, target-latency and max-drop find the rules; give them without rules, "
                "lossless, dry-run and resume"
            )
        if target.given and (max_shard_size is not None or memory_limit != 10**9):
            raise ValueError("give max-shard-size and memory-limit without a budget")
        if executor is not None and (target.given or dry_run):
            raise ValueError("give executor without a budget and dry-run, which run here")
        files = {"--output": output, "--report": report, "--save-recipe": save_recipe}
        written = {name: path for name, path in files.items() if path is not None}
        if whole.calibration is not None:
            require_distinct(written, {"calibration in the recipe": [whole.calibration]})
    # Before hours of work.
    if report is not None:
        require_matplotlib()
    for name, path in written.items():
        if not path.absolute().parent.is_dir():
            raise FileNotFoundError(f"the folder {path.parent} of {name} does not exist")
        if name != "--output":
            require_replaceable(path)
    if calibration is not None and not target.given:
        whole = replace(whole, calibration=str(calibration.absolute()))
    if save_recipe is not None and not target.given:
        write_atomically(save_recipe, whole.to_toml().encode())
    set_threads(threads)
    if target.given and output is not None:
        done, whole = target.compress(src, output, calibration)
        if save_recipe is not None:
            write_atomically(save_recipe, whole.to_toml().encode())
    else:
        with _executor(executor, workers) as pool, progress("compressing") as bar:
            try:
                done = checkpoint.compress(
                    src, output, whole, memory_limit=memory_limit, max_shard_size=max_shard_size,
                    dry_run=dry_run, resume=resume, progress=bar, executor=pool,
                )  # fmt: skip
            except KeyboardInterrupt:
                raise KeyboardInterrupt("run again with --resume to continue") from None
    if report is not None:
        write_atomically(report, to_html(done).encode())
    if json:
        write(f"{done.to_json()}\n")
    else:
        _show(done)


@contextmanager
def _executor(kind: str | None, workers: int) -> Iterator[Any]:
    """Return a context with the executor of --executor, or None."""
    if kind is None:
        yield None
        return
    from compressrs.distributed import executor
    from compressrs.distributed.executors import MAY_COUNT

    with ExitStack() as stack:
        try:
            made = executor(kind, workers if workers > 1 and kind in MAY_COUNT else None)
            pool = stack.enter_context(made)
        except (ValueError, ModuleNotFoundError) as error:
            raise Usage(f"--executor {kind}: {error}") from None
        yield pool


def _show(done: Any) -> None:
    table = Table(title="predicted" if done.dry_run else None)
    for column in ("tensor", "dtype", "shape", "coding"):
        table.add_column(column)
    for column in ("before", "after", "ratio", "relative error"):
        table.add_column(column, justify="right")
    for row in done.rows:
        ratio = f"{row.before / row.after:.2f}" if row.after else "-"
        shape = " x ".join(map(str, row.shape)) or "scalar"
        error = "-" if row.error is None else f"{row.error:.4f}"
        table.add_row(
            row.name,
            row.dtype,
            shape,
            row.coding,
            shown(row.before),
            shown(row.after),
            ratio,
            error,
        )
    out = console()
    out.print(table)
    memory = "" if done.memory is None else f", memory {shown(done.memory)}"
    change = f"{done.ratio:.2f} times smaller" if done.ratio >= 1 else "larger"
    out.print(
        f"{shown(done.before)} -> {shown(done.after)}: {change}, "
        f"{'predicted: about' if done.dry_run else 'in'} {done.seconds:.1f} s{memory}",
        highlight=False,
    )

"""The table of commands and their error handling."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from compressrs import __version__
from compressrs._errors import WorkersKilledError
from compressrs.checkpoint.recipe import RecipeError
from compressrs.cli import compress, config, decompress, demo, diff, doctor, export, info, verify
from compressrs.cli._options import Usage, require_other_files

COMMANDS: dict[str, Callable[..., None]] = {
    "compress": compress.run,
    "decompress": decompress.run,
    "info": info.run,
    "verify": verify.run,
    "diff": diff.run,
    "export": export.run,
    "demo": demo.run,
    "config": config.run,
    "doctor": doctor.run,
}


def run(arguments: list[str]) -> int:
    """Run the command with these arguments and return its exit code."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )
    app.callback()(_version)
    for name, command in COMMANDS.items():
        app.command(name)(_reported(command))
    try:
        app(args=arguments, prog_name="compressrs")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"compressrs {__version__}")
        raise typer.Exit


def _version(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Model optimization and compression for NumPy on the CPU."""


#: What may fail without a fault in the program.
_FAILURES = (OSError, ValueError, TypeError, OverflowError, MemoryError, WorkersKilledError)


def _reported(command: Callable[..., None]) -> Callable[..., None]:
    """Convert errors that a user can fix into a message and an exit code."""

    @functools.wraps(command)
    def reported(**kwargs: Any) -> None:
        code, message = 0, ""
        try:
            require_other_files(command, kwargs)
            command(**kwargs)
        except KeyboardInterrupt as error:
            code, message = 130, f"interrupted{'; ' if str(error) else ''}{error}"
        except BrokenPipeError:
            # Such as `head`, which has read enough; nothing is written when Python ends.
            with open(os.devnull, "ab") as nothing:
                os.dup2(nothing.fileno(), sys.stdout.fileno())
            raise typer.Exit(141) from None
        except (ModuleNotFoundError, Usage, RecipeError) as error:
            code, message = 2, str(error)
        except _FAILURES as error:
            code, message = 1, str(error) or type(error).__name__
        if code:
            print(f"compressrs: {message}", file=sys.stderr)
            raise typer.Exit(code)

    return reported

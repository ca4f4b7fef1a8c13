"""The table of commands and their error handling."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from compressrs import __version__
from compressrs._errors import WorkersKilledError
from compressrs._startup import ending, interruptible
from compressrs.checkpoint.recipe import RecipeError
from compressrs.cli import compress, config, decompress, demo, diff, doctor, export, info, verify
from compressrs.cli._options import Usage, require_other_files
from compressrs.cli._output import OutputError, complain, give_up_streams, require_streams, say

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
    require_streams()
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except (OutputError, OSError) as error:
        # Help is printed by the library of the command line.
        cause = error.__cause__ or error
        if isinstance(cause, BrokenPipeError):
            # Such as `head`, which has read enough.
            return 141
        complain(f"standard output cannot be written: {cause}")
        return 1
    finally:
        give_up_streams()


def _run(arguments: list[str]) -> int:
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
        say(f"compressrs {__version__}")
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
            with interruptible(), warnings.catch_warnings():
                warnings.showwarning = _show_warning
                require_other_files(command, kwargs)
                command(**kwargs)
        except KeyboardInterrupt as error:
            code, message = ending()
            message += f"; {error}" if str(error) else ""
        except (ModuleNotFoundError, Usage, RecipeError) as error:
            code, message = 2, str(error)
        except _FAILURES as error:
            code, message = 1, _said(error)
        if code:
            complain(message)
            raise typer.Exit(code)

    return reported


def _said(error: BaseException) -> str:
    """Return what an error says, without the number that the system gives it."""
    if isinstance(error, OSError) and error.strerror:
        names = [repr(n) for n in (error.filename, error.filename2) if n is not None]
        return ": ".join([error.strerror, " -> ".join(names)] if names else [error.strerror])
    return str(error) or type(error).__name__


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    complain(f"warning: {message}")

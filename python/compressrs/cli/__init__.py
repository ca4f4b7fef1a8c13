"""The command line ``compressrs``, one file per command."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    0 on success, 1 if a file cannot be read or written or is damaged, 2 for invalid
    arguments or missing packages, 130 after Ctrl-C, 143 after SIGTERM, 129 after
    SIGHUP.
    """
    try:
        from compressrs.cli import _app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print(
            f"compressrs: the command needs the package {error.name}; "
            "install what it needs with: pip install 'compressrs[cli]'",
            file=sys.stderr,
        )
        return 2
    return _app.run(sys.argv[1:] if argv is None else list(argv))

"""The command ``compressrs``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from compressrs import __version__, show_config

EXAMPLES = """\
examples:
  compressrs demo                        train, prune, sparsify and distill; writes report.html
  compressrs demo --seed 1 --output runs/one.html
  compressrs demo --epochs 5             a quick look
  compressrs config                      versions, instruction set, threads
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    0 on success, 1 if a file could not be written, 2 for wrong arguments or
    missing packages, 130 after Ctrl-C.
    """
    args = _parser().parse_args(argv)
    if args.command == "config":
        show_config()
        return 0
    try:
        return _demo(args)
    except KeyboardInterrupt:
        print("compressrs: interrupted; no report was written", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"compressrs: {error}", file=sys.stderr)
        return 1


def _demo(args: argparse.Namespace) -> int:
    try:
        from compressrs import demo
    except ModuleNotFoundError as error:
        print(
            f"compressrs: the demo needs the package {error.name}; "
            "install what it needs with: pip install 'compressrs[demo]'",
            file=sys.stderr,
        )
        return 2
    demo.main(seed=args.seed, epochs=args.epochs, output=args.output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="compressrs",
        description="Model optimization and compression for NumPy on the CPU.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"compressrs {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="train, prune, sparsify and distill a network on handwritten digits",
        description=(
            "Trains a dense network on scikit-learn's handwritten digits, prunes it to 95 % "
            "zeros, fine-tunes it as a sparse one, and distills it into a student of 16 hidden "
            "units. Prints a table and writes a report with plots."
        ),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument(
        "--seed", type=_whole(0), default=0, metavar="N", help="seed of all random choices (0)"
    )
    demo.add_argument(
        "--epochs",
        type=_whole(1),
        default=30,
        metavar="N",
        help="epochs of the dense network; the other phases take a fixed multiple (30)",
    )
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("report.html"),
        metavar="PATH",
        help="the report's file, or a folder to put report.html in (report.html)",
    )
    commands.add_parser("config", help="print versions, instruction set and threads")
    return parser


class _whole:
    """Parses a whole number that is not below a bound."""

    def __init__(self, low: int) -> None:
        self.low = low

    def __call__(self, text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = self.low - 1
        if value < self.low or value >= 2**32:
            raise argparse.ArgumentTypeError(
                f"must be a whole number from {self.low} to {2**32 - 1}, got {text!r}"
            )
        return value

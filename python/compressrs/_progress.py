"""Progress: bars, which require rich, and lines where no terminal shows bars."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, cast

from compressrs._text import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

#: Seconds between two lines of a task.
_INTERVAL = 5.0


class Lines:
    """Progress as lines on standard error, with the methods of `rich.progress.Progress`."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._done: list[int] = []
        self._totals: list[int | None] = []
        self._written: list[float] = []

    def add_task(self, name: str, total: int | None) -> TaskID:
        """Write that a task begins, if its length is known, and return its number."""
        self._names.append(name)
        self._done.append(0)
        self._totals.append(total)
        self._written.append(time.monotonic())
        task = len(self._names) - 1
        if total is not None:
            self._write(task)
        return cast("TaskID", task)

    def advance(self, task: TaskID) -> None:
        """Add one to what is done."""
        self.update(task, completed=self._done[task] + 1, total=self._totals[task])

    def update(self, task: TaskID, *, completed: int, total: int | None) -> None:
        """Set what is done, and write it if the task's last line is some seconds old."""
        self._done[task], self._totals[task] = completed, total
        if time.monotonic() - self._written[task] >= _INTERVAL:
            self._write(task)

    def relabel(self, task: int, name: str) -> None:
        """Set the name of a task, and write it if the task's last line is some seconds old."""
        self._names[task] = name
        self.update(cast("TaskID", task), completed=self._done[task], total=self._totals[task])

    def _write(self, task: int) -> None:
        self._written[task] = time.monotonic()
        # A closed pipe ends the lines, not the work.
        with contextlib.suppress(OSError):
            done, total = self._done[task], self._totals[task]
            print(f"{self._names[task]}: {done} of {total}", file=sys.stderr, flush=True)


class Advance:
    """Advances a progress bar when called; one that is not shown has no `bars`."""

    def __init__(self, name: str, bars: Progress | Lines | None = None, task: int = 0) -> None:
        self._name, self._bars, self._task = name, bars, cast("TaskID", task)

    def __call__(self) -> None:
        if self._bars is not None:
            self._bars.advance(self._task)

    def begin(self, part: str) -> None:
        """Show which part is worked on, for parts that take long."""
        name = printable(f"{self._name} {part}")
        if isinstance(self._bars, Lines):
            self._bars.relabel(self._task, name)
        elif self._bars is not None:
            from rich.markup import escape

            self._bars.update(self._task, description=escape(name))


@contextmanager
def progress_bar(name: str, total: int, show: bool) -> Iterator[Advance]:
    """Yield a function that advances a progress bar, which is shown if `show` is True.

    Raises
    ------
    ModuleNotFoundError
        If `show` is True and rich is not installed.
    """
    if not show:
        yield Advance(name)
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "a progress bar needs rich: pip install 'compressrs[demo]'"
        ) from None
    console = Console(stderr=True)
    with Progress(console=console) if console.is_terminal else nullcontext(Lines()) as bars:
        task = bars.add_task(name, total=total)
        yield Advance(name, bars, task)

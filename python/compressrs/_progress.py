"""Progress bars on long work, for those who have rich."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(name: str, total: int, show: bool) -> Iterator[Callable[[], None]]:
    """Show a bar, if one is wanted, that the function given advances.

    Raises
    ------
    ModuleNotFoundError
        If one is wanted, and rich is not installed.
    """
    if not show:
        yield lambda: None
        return
    try:
        from rich.progress import Progress
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "a progress bar needs rich: pip install 'compressrs[demo]'"
        ) from None
    with Progress() as bars:
        task = bars.add_task(name, total=total)
        yield lambda: bars.advance(task)

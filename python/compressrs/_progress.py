"""Progress bars, which require rich."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(name: str, total: int, show: bool) -> Iterator[Callable[[], None]]:
    """Yield a function that advances a progress bar, which is shown if `show` is True.

    Raises
    ------
    ModuleNotFoundError
        If `show` is True and rich is not installed.
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

"""Files of an export, which appear when they are whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compressrs.checkpoint._work import Work, disk_full_said


@contextmanager
def staged(target: Path, needed: int, folder: bool = False) -> Iterator[Path]:
    """Give a path to write a file or folder to, which is moved to `target` afterwards.

    Raises
    ------
    ValueError
        If `target` exists as a folder, or, for a folder, at all.
    """
    if target.is_dir() or (folder and target.exists()):
        raise ValueError(f"{target} must not exist")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} of the destination does not exist")
    work = Work(target, {"export": target.name}, resume=False)
    try:
        path = work.folder / "output"
        if folder:
            path.mkdir()
        with disk_full_said(target, lambda: needed):
            yield path
            work.publish(path)
    finally:
        work.close(remove=True)

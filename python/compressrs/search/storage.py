"""The journal of a search: a file that survives kills and full disks, by Optuna."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from compressrs._files import lock
from compressrs._paths import open_regular


class _Journal(JournalFileBackend):  # type: ignore[misc]
    """A journal that is the same after a write that failed, and whose errors name it."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        size = os.path.getsize(self._file_path)
        try:
            super().append_logs(logs)
        except OSError as error:
            os.truncate(self._file_path, size)
            raise OSError(error.errno, error.strerror, self._file_path) from error


@contextmanager
def opened(folder: Path | None) -> Iterator[BaseStorage]:
    """Yield the storage of a search, in a folder that no other process may use meanwhile.

    Raises
    ------
    ValueError
        If another process uses it, or it is damaged.
    OSError
        If the folder cannot be made or written to.
    """
    if folder is None:
        yield InMemoryStorage()
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "journal.log"
    with open_regular(folder / "lock", "ab") as file:
        if not lock(file):
            raise ValueError(f"folder {folder} is in use by another search")
        _drop_torn_end(path)
        # Of a process that was killed: who holds the lock of the folder is alone.
        Path(f"{path}.lock").unlink(missing_ok=True)
        try:
            storage = JournalStorage(_Journal(str(path), JournalFileOpenLock(str(path))))
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise ValueError(f"folder {folder} has a damaged journal: {error}") from error
        yield storage


def _drop_torn_end(path: Path) -> None:
    """Remove what a killed process wrote of a line."""
    if not path.exists():
        return
    with open_regular(path, "rb+") as file:
        data = file.read()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            file.truncate(end)


def study_of(
    storage: BaseStorage,
    name: str,
    directions: Mapping[str, str],
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner | None,
    made_with: Mapping[str, Any],
) -> optuna.Study:
    """Return a study of a storage, which is made if there is none of that name.

    Raises
    ------
    ValueError
        If it was made with other settings.
    """
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        by: dict[str, Any] = {"sampler": sampler, "pruner": pruner or optuna.pruners.NopPruner()}
        try:
            study = optuna.load_study(storage=storage, study_name=name, **by)
        except KeyError:
            study = optuna.create_study(
                storage=storage, study_name=name, directions=list(directions.values()), **by
            )
    finally:
        optuna.logging.set_verbosity(verbosity)
    before = study.user_attrs.get("made_with")
    if before is None:
        study.set_user_attr("made_with", dict(made_with))
    elif not isinstance(before, Mapping):
        raise ValueError(f"folder has a damaged journal: a search made with {before!r}")
    else:
        for key, value in made_with.items():
            if before.get(key) != value:
                raise ValueError(
                    f"folder holds a search with {key} {before.get(key)}, not {value}; give "
                    "another folder"
                )
    return study

"""On-disk cache of a teacher's logits for a data set."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from compressrs._arrays import Array, as_array
from compressrs._checks import choice, file_path, flag, whole, with_length
from compressrs._files import (
    map_tensors,
    require,
    require_safetensors,
    save_tensors,
    write_atomically,
)
from compressrs._json import parse_json
from compressrs._paths import read_regular
from compressrs._progress import progress_bar
from compressrs.distill.probabilities import one_temperature
from compressrs.distill.teachers import TopK, indices_of, top_k
from compressrs.sparse import CSRMatrix

FORMAT = "compressrs.teacher"
VERSION = "2"

_NEED = {"format": FORMAT, "version": VERSION}

_INDEX = "index.json"

#: Dtypes in which logits can be stored.
_LOGITS = ("float32", "float16", "float64")


class TeacherCache:
    """A teacher's logits for all rows of a data set, in a folder of safetensors files.

    The teacher is evaluated once. Batches are then read from memory-mapped files, so neither
    the teacher nor its logits have to fit into memory. With ``k``, only the largest logits of
    each row are stored, and the log-sum-exp of the others: 64 of 200,000 classes take 520
    bytes per row instead of 800,000.

    Each file holds a fixed number of rows, is replaced atomically, and has a checksum, which
    is verified before its first row is read. After a crash or a full disk, calling `write`
    again resumes where it stopped.

    Parameters
    ----------
    path : path
        The folder that `write` filled.

    Attributes
    ----------
    shape : pair of int
        Rows and classes.
    k : int or None
        Number of logits stored per row; None for all.
    temperature : float or None
        Temperature of the log-sum-exp of the other logits.

    Raises
    ------
    OSError
        If the folder or a file cannot be read.
    ValueError
        If the folder is not a complete cache, or, when rows are read, a file is corrupt.

    Examples
    --------
    >>> import numpy as np, compressrs as cr, tempfile, pathlib
    >>> x = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)
    >>> w = np.random.default_rng(1).standard_normal((8, 50)).astype(np.float32)
    >>> folder = pathlib.Path(tempfile.mkdtemp()) / "teacher"
    >>> cache = cr.distill.TeacherCache.write(folder, lambda x: x @ w, x, k=5, temperature=2.0)
    >>> cache
    <TeacherCache of shape (1000, 50), the 5 largest logits of each row at temperature 2.0>
    >>> cache[np.array([3, 999, 3])]
    <TopK of shape (3, 50) at temperature 2.0, with 15 stored logits>
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = file_path(path)
        plan = _read_index(self.path)
        try:
            self._rows, self._classes, self._shard_rows = (
                whole(plan[name], name, 1) for name in ("rows", "classes", "shard_rows")
            )
            self.k: int | None = None if plan["k"] is None else whole(plan["k"], "k", 1)
            self.temperature: float | None = (
                None if self.k is None else one_temperature(plan["temperature"])
            )
            self._dtype = np.dtype(choice(plan["dtype"], "dtype", _LOGITS))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path / _INDEX} is damaged: {error!r}") from None
        self._shards: dict[int, dict[str, Array]] = {}
        for first in range(0, self._rows, self._shard_rows):
            if not _shard_path(self.path, first).exists():
                raise ValueError(
                    f"{self.path} lacks the rows from {first} on; call TeacherCache.write again "
                    "with the same arguments to go on"
                )

    @classmethod
    def write(
        cls,
        path: str | os.PathLike[str],
        teacher: Callable[[Any], Array],
        x: Any,
        *,
        k: int | None = None,
        temperature: float = 1.0,
        dtype: str = "float32",
        batch_size: int = 256,
        shard_rows: int = 4096,
        progress: bool = False,
    ) -> TeacherCache:
        """Evaluate a teacher and store its logits, resuming an interrupted call.

        Parameters
        ----------
        path : path
            A folder, which is created if it does not exist.
        teacher : callable
            Returns logits of shape (rows, classes) for a slice of `x`.
        x : array or sequence
            The data set: must support ``len(x)`` and ``x[a:b]``.
        k : int, optional
            Number of logits to store per row. None stores all.
        temperature : float, default 1.0
            With `k`, the temperature of the losses that will use the cache.
        dtype : {"float32", "float16", "float64"}, default "float32"
            Dtype of the stored logits.
        batch_size : int, default 256
            Rows per call of the teacher.
        shard_rows : int, default 4096
            Rows per file.
        progress : bool, default False
            Whether to show a progress bar (requires rich).

        Returns
        -------
        TeacherCache

        Raises
        ------
        OSError
            If a file cannot be written. Files that are complete are kept.
        TypeError
            If the teacher does not return a floating-point array.
        ValueError
            If the teacher returns another shape, NaN, or logits beyond the range of the
            dtype; if the folder holds other files; or if it was written with other
            arguments, or with another teacher or data set, as a comparison of its last
            rows shows.
        ModuleNotFoundError
            If safetensors, or rich for progress, is not installed.
        """
        options = (k, temperature, dtype, batch_size, shard_rows, progress)
        cls._write(path, teacher, x, *options, lambda first: True)
        return cls(path)

    @staticmethod
    def _write(
        path: str | os.PathLike[str],
        teacher: Callable[[Any], Array],
        x: Any,
        k: int | None,
        temperature: float,
        dtype: str,
        batch_size: int,
        shard_rows: int,
        progress: bool,
        mine: Callable[[int], bool],
    ) -> None:
        """Write those files that are not there yet and whose number `mine` accepts."""
        require_safetensors()
        flag(progress, "progress")
        folder = file_path(path)
        choice(dtype, "dtype", _LOGITS)
        batch_size = whole(batch_size, "batch_size", 1)
        shard_rows = whole(shard_rows, "shard_rows", 1)
        temperature = one_temperature(temperature)
        x, rows = with_length(x, "x")
        if rows == 0:
            raise ValueError("x must have at least one row, got none")
        ask = _Teacher(teacher, x, None if k is None else whole(k, "k", 1), temperature, dtype)
        plan = {
            "format": FORMAT,
            "version": VERSION,
            "rows": rows,
            "classes": ask.classes(),
            "k": ask.k,
            "temperature": None if ask.k is None else temperature,
            "dtype": dtype,
            "shard_rows": shard_rows,
        }
        folder.mkdir(parents=True, exist_ok=True)
        _begin(folder, plan)
        left: list[int] = []
        done: list[int] = []
        for first in filter(lambda first: mine(first // shard_rows), range(0, rows, shard_rows)):
            (done if _shard_path(folder, first).exists() else left).append(first)
        if done:
            ask.compare(folder, done[-1], min(batch_size, rows - done[-1], shard_rows))
        with progress_bar("teacher", len(left), progress) as advance:
            for first in left:
                end = min(first + shard_rows, rows)
                starts = range(first, end, batch_size)
                parts = [ask(start, min(start + batch_size, end)) for start in starts]
                arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
                save_tensors(_shard_path(folder, first), arrays, _NEED)
                advance()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and classes."""
        return self._rows, self._classes

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, rows: slice | Array) -> Array | TopK:
        """Return the rows given by a slice or an array of indices or bool.

        The result is an array if all logits are stored, else a `TopK`.
        """
        wanted = indices_of(rows, self._rows)
        shards = wanted // self._shard_rows
        out = {
            name: np.empty((len(wanted), *shape), dtype)
            for name, (shape, dtype) in self._layout().items()
        }
        for shard in np.unique(shards):
            of_shard = shards == shard
            arrays = self._shard(int(shard) * self._shard_rows)
            for name in out:
                out[name][of_shard] = arrays[name][wanted[of_shard] % self._shard_rows]
        if self.k is None:
            return out["logits"]
        assert self.temperature is not None
        indptr = np.arange(0, len(wanted) * self.k + 1, self.k, dtype=np.int64)
        data = out["logits"].astype(np.float64 if self._dtype == np.float64 else np.float32)
        parts = data.reshape(-1), out["classes"].reshape(-1), indptr
        return TopK(CSRMatrix(parts, (len(wanted), self._classes)), out["rest"], self.temperature)

    def __repr__(self) -> str:
        kept = (
            "all logits"
            if self.k is None
            else f"the {self.k} largest logits of each row at temperature {self.temperature}"
        )
        return f"<TeacherCache of shape {self.shape}, {kept}>"

    def _layout(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Return the shape and dtype of a row of each array."""
        if self.k is None:
            return {"logits": ((self._classes,), self._dtype)}
        return {
            "logits": ((self.k,), self._dtype),
            "classes": ((self.k,), np.dtype(np.int32)),
            "rest": ((), np.dtype(np.float64)),
        }

    def _shard(self, first: int) -> dict[str, Array]:
        """Return the memory-mapped arrays of a file after verifying its checksum."""
        if first not in self._shards:
            rows = min(self._shard_rows, self._rows - first)
            need = {
                name: ((rows, *shape), dtype) for name, (shape, dtype) in self._layout().items()
            }
            self._shards[first] = map_tensors(_shard_path(self.path, first), need, _NEED)
        return self._shards[first]


class _Teacher:
    """A teacher with its data set; computes the stored outputs for a range of rows."""

    def __init__(
        self, teacher: Callable[[Any], Array], x: Any, k: int | None, temperature: float, dtype: str
    ) -> None:
        if not callable(teacher):
            raise TypeError(f"teacher must be callable, got {type(teacher).__name__}")
        self._teacher, self._x = teacher, x
        self._temperature, self._dtype = temperature, np.dtype(dtype)
        self._classes: int | None = None
        self.k = k

    def classes(self) -> int:
        """Return the number of classes, evaluating one row."""
        self(0, 1)
        assert self._classes is not None
        return self._classes

    def __call__(self, start: int, end: int) -> dict[str, Array]:
        z = as_array(self._teacher(self._x[start:end]), "teacher(x)")
        if z.ndim != 2 or len(z) != end - start or z.shape[1] != (self._classes or z.shape[1] or 1):
            classes = "classes" if self._classes is None else self._classes
            raise ValueError(
                f"teacher(x) must have shape ({end - start}, {classes}), got {z.shape}"
            )
        self._classes = z.shape[1]
        if self.k is not None:
            kept = top_k(z, self.k, self._temperature)
            arrays = {
                "logits": kept.logits.data.reshape(len(z), self.k),
                "classes": np.asarray(kept.logits.indices, np.int32).reshape(len(z), self.k),
                "rest": kept.rest,
            }
        else:
            arrays = {"logits": z}
        with np.errstate(over="ignore"):
            logits = arrays["logits"].astype(self._dtype)
        # Classes may be masked with -inf.
        if not (np.isfinite(logits) | np.isneginf(arrays["logits"])).all():
            raise ValueError(
                f"teacher(x) must hold logits that fit {self._dtype}, got others in rows "
                f"{start} to {end - 1}"
            )
        return {**arrays, "logits": logits}

    def compare(self, folder: Path, first: int, count: int) -> None:
        """Raise a ValueError if the rows of a file differ from the teacher's current output."""
        now = self(first, first + count)
        need = {name: ((-1, *array.shape[1:]), array.dtype) for name, array in now.items()}
        mapped = map_tensors(_shard_path(folder, first), need, _NEED)
        before = {name: array[:count] for name, array in mapped.items()}
        if any(before[name].shape != array.shape for name, array in now.items()) or not all(
            np.allclose(old, new, rtol=1e-3, atol=1e-3)
            for old, new in zip(self._comparable(before), self._comparable(now), strict=True)
        ):
            raise ValueError(
                f"{folder} was begun with another teacher or data set: rows from {first} on "
                "differ; remove it, or choose another folder"
            )

    def _comparable(self, arrays: dict[str, Array]) -> list[Array]:
        """Return float64 arrays that are close if the teacher is the same.

        Rounding on another machine may select other classes among logits that nearly tie with
        the smallest stored one; classes that are not stored are replaced by the smallest.
        """
        logits = arrays["logits"].astype(np.float64)
        if "classes" not in arrays:
            return [logits]
        assert self._classes is not None
        dense = np.repeat(logits.min(axis=1, keepdims=True), self._classes, axis=1)
        np.put_along_axis(dense, arrays["classes"].astype(np.intp), logits, axis=1)
        return [dense, arrays["rest"].astype(np.float64)]


def _shard_path(folder: Path, first: int) -> Path:
    return folder / f"rows-{first:012}.safetensors"


def _begin(folder: Path, plan: dict[str, Any]) -> None:
    """Write a folder's index, or check that an existing one matches `plan`."""
    index = folder / _INDEX
    # Hidden files are ignored: temporary files of other writers, or files of the system.
    others = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
    # The index is the first file that any writer creates.
    if others and not index.exists():
        raise ValueError(f"{folder} must be empty or hold such a cache, got {sorted(others)[0]!r}")
    if not index.exists():
        content = json.dumps({**plan, "blake2b": _index_digest(plan)}, indent=1)
        try:
            write_atomically(index, content.encode(), exclusive=True)
        except FileExistsError:
            pass  # Another process started at the same time.
        else:
            return
    before = _read_index(folder)
    for key, value in plan.items():
        if before.get(key) != value:
            raise ValueError(
                f"{folder} was begun with {key} {before.get(key)!r}, got {value!r}; "
                "remove it, or choose another folder"
            )


def _index_digest(plan: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(plan, sort_keys=True).encode(), digest_size=16).hexdigest()


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / _INDEX
    try:
        plan = parse_json(read_regular(path))
        if not isinstance(plan, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    require(path, plan, _NEED)
    if plan.pop("blake2b", None) != _index_digest(plan):
        raise ValueError(f"{path} is damaged: its checksum is another")
    return plan

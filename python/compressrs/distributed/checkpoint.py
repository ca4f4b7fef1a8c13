"""Checkpoints of sharded optimizers: a file of each rank, and a manifest that is written last."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from compressrs import _core
from compressrs._arrays import Array
from compressrs._checks import file_path
from compressrs._files import load_tensors, save_tensors, write_atomically
from compressrs._json import parse_json
from compressrs._paths import read_regular
from compressrs.distributed.communicator import Communicator, together
from compressrs.distributed.partition import Part
from compressrs.distributed.pieces import overlaps
from compressrs.optim._moments import SCALE
from compressrs.optim._weights import unpacked

FORMAT = "compressrs.optim.sharded"
VERSION = "1"
MANIFEST = "manifest.json"

_SHARD = re.compile(r"state-(\d{8})-\d{5}-of-\d{5}\.safetensors")

#: Name of a part's weights among its buffers.
WEIGHTS = "weights"


class Manifest(NamedTuple):
    """What a checkpoint holds."""

    folder: Path
    rule: str
    generation: int
    #: Identifies the files that were written together.
    save: str
    files: list[str]
    #: The owner of a part is the number of its file.
    parts: list[Part]
    shapes: list[tuple[int, ...]]
    param_groups: list[dict[str, Any]]
    codes: dict[str, Any] | None
    weights: bool
    #: None if the checkpoint does not say.
    microbatches: int | None = None


def check(head: Mapping[str, Any]) -> None:
    """Raise a TypeError if JSON cannot represent the entries of a manifest."""
    json.dumps(head)


def write(
    comm: Communicator,
    folder: Path,
    head: Mapping[str, Any],
    parts: Sequence[Part],
    arrays: Mapping[str, Array],
) -> None:
    """Write the arrays of all ranks to a folder, replacing a checkpoint that is there.

    Files of a checkpoint that is replaced are removed when the new one is complete: a rank
    that is killed loses nothing.

    Parameters
    ----------
    comm : Communicator
    folder : path
    head : dict
        The further entries of the manifest.
    parts : sequence of Part
        All parts, of all ranks.
    arrays : dict of array
        Those of this rank, by number of the part and name of the buffer: ``"3.exp_avg"``.
    """
    with together(comm, "save"):
        before = None
        if comm.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / MANIFEST).exists():
                before = read(folder).generation
            elif any(folder.iterdir()) and not _only_shards(folder):
                raise FileExistsError(f"{folder} holds something else than a checkpoint")
    number = comm.broadcast(None if comm.rank else (before or 0) + 1)
    token = comm.broadcast(None if comm.rank else secrets.token_hex(16))
    files = [f"state-{number:08d}-{r:05d}-of-{comm.size:05d}.safetensors" for r in range(comm.size)]
    with together(comm, "save"):
        metadata = {"format": FORMAT, "version": VERSION, "save": token}
        save_tensors(folder / files[comm.rank], arrays, metadata)
    with together(comm, "save"):
        if comm.rank == 0:
            content = {
                "format": FORMAT,
                "version": VERSION,
                "generation": number,
                "save": token,
                "files": files,
                "parts": [list(part) for part in parts],
                **head,
            }
            write_atomically(folder / MANIFEST, json.dumps(content).encode())
            for path in folder.iterdir():
                if _SHARD.fullmatch(path.name) and path.name not in files:
                    with contextlib.suppress(OSError):
                        path.unlink()


def _only_shards(folder: Path) -> bool:
    """Whether a folder holds what a first checkpoint that was not completed leaves."""
    return all(
        _SHARD.fullmatch(path.name) or path.name.startswith(".compressrs-")
        for path in folder.iterdir()
    )


def read(folder: Path) -> Manifest:
    """Return the manifest of a checkpoint.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is damaged, or of another format.
    """
    path = folder / MANIFEST
    data = read_regular(path)
    try:
        content = parse_json(data)
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            raise ValueError(f"it has the format {content['format']!r} {content['version']!r}")
        manifest = Manifest(
            folder,
            str(content["rule"]),
            int(content["generation"]),
            str(content["save"]),
            [str(name) for name in content["files"]],
            [Part(*map(int, part)) for part in content["parts"]],
            [tuple(map(int, shape)) for shape in content["shapes"]],
            [_group(group, len(content["shapes"])) for group in content["param_groups"]],
            content.get("codes"),
            bool(content["weights"]),
            int(content["microbatches"]) if "microbatches" in content else None,
        )
        if not all(_SHARD.fullmatch(name) for name in manifest.files):
            raise ValueError("it names other files")
        _require_whole(manifest)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} is not the manifest of a checkpoint: {error!r}") from None
    return manifest


def _group(group: Any, count: int) -> dict[str, Any]:
    """Return a group of a manifest, whose parameters must be among so many."""
    numbers, names = group["params"], group["param_names"]
    if not isinstance(numbers, list) or not all(type(i) is int and 0 <= i < count for i in numbers):
        raise ValueError(f"a group has the parameters {numbers!r}")
    if not isinstance(names, list) or list(map(type, names)) != [str] * len(numbers):
        raise ValueError(f"a group has the names {names!r}")
    return dict(group)


def _require_whole(manifest: Manifest) -> None:
    """Raise a ValueError unless the parts make up all tensors."""
    ends = dict.fromkeys(range(len(manifest.shapes)), 0)
    seen = set()
    for part in sorted(manifest.parts, key=lambda part: (part.tensor, part.start)):
        if not 0 <= part.owner < len(manifest.files) or ends[part.tensor] != part.start:
            raise ValueError("its parts do not fit")
        ends[part.tensor] = part.stop
        seen.add(part.tensor)
    sizes = [_size(shape) for shape in manifest.shapes]
    if list(ends.values()) != sizes or len(seen) != len(sizes):
        raise ValueError("its parts are not all of the parameters")


def require_parameters(
    manifest: Manifest, kind: str, groups: list[list[tuple[str, tuple[int, ...]]]]
) -> None:
    """Raise a ValueError, which names those that differ, unless these are its parameters.

    Parameters
    ----------
    manifest : Manifest
    kind : str
        Name of the rule's class.
    groups : list of list of (str, tuple of int)
        Names and shapes of the parameters of each group. The name of a single one may differ.
    """
    try:
        saved = [
            [
                (str(name), manifest.shapes[int(i)])
                for name, i in zip(group["param_names"], group["params"], strict=True)
            ]
            for group in manifest.param_groups
        ]
    except (TypeError, LookupError, ValueError) as error:
        raise ValueError(f"{manifest.folder} has damaged groups: {error!r}") from None
    ours, theirs = [x for group in groups for x in group], [x for group in saved for x in group]
    if len(ours) == len(theirs) == 1:
        same = ours[0][1] == theirs[0][1]
    else:
        same = [sorted(group) for group in groups] == [sorted(group) for group in saved]
    if manifest.rule == kind and same:
        return
    need = [x for x in ours if x not in theirs]
    got = [x for x in theirs if x not in ours]
    if need or got:
        what, found = _listed(need), _listed(got)
    else:
        what, found = (f"groups of {[len(group) for group in each]}" for each in (groups, saved))
    raise ValueError(
        f"{manifest.folder} must be of a {kind} with {what}, got a {manifest.rule} with {found}"
    )


def _listed(parameters: list[tuple[str, tuple[int, ...]]], most: int = 5) -> str:
    if not parameters:
        return "no further parameters"
    rest = len(parameters) - most
    shown = ", ".join(f"{name} of shape {shape}" for name, shape in parameters[:most])
    return shown + (f" and {rest} others" if rest > 0 else "")


def _size(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


class Reader:
    """Reads buffers of parts from a checkpoint that may be divided in another way.

    Parameters
    ----------
    manifest : Manifest
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    def _file(self, number: int) -> dict[str, Array]:
        manifest = self.manifest
        need = {"format": FORMAT, "version": VERSION, "save": manifest.save}
        return load_tensors(manifest.folder / manifest.files[number], need)[0]

    def masks(self) -> dict[int, Array]:
        """Return the masks by number of the tensor."""
        shapes = self.manifest.shapes
        arrays = self._file(0)
        found = {int(k[5:]): a for k, a in arrays.items() if k.startswith("mask.")}
        return {i: unpacked(bits, shapes[i]) for i, bits in found.items()}

    def parts(self, wanted: Sequence[Part]) -> list[dict[str, Array]]:
        """Return the buffers of each of these parts, flat where they are of the elements.

        Only files that have something of them are read, one after the other.

        Raises
        ------
        OSError
            If a file cannot be read.
        ValueError
            If a file is damaged, or of another checkpoint.
        """
        manifest = self.manifest
        results: list[dict[str, Array]] = [{} for _ in wanted]
        for number in range(len(manifest.files)):
            saved = [
                (k, part, j)
                for k, part in enumerate(manifest.parts)
                if part.owner == number
                for j, own in enumerate(wanted)
                if overlaps(part, own)
            ]
            if not saved:
                continue
            arrays = self._file(number)
            names: dict[int, list[str]] = {}
            for key in arrays:
                first, _, name = key.partition(".")
                if first != "mask":
                    names.setdefault(int(first), []).append(name)
            for k, part, j in saved:
                own = {name: arrays[f"{k}.{name}"] for name in names.get(k, [])}
                try:
                    _copy(own, part, wanted[j], results[j])
                except ValueError as error:
                    raise ValueError(f"{manifest.folder} is damaged: {error}") from None
        return results


def _copy(saved: Mapping[str, Array], part: Part, wanted: Part, result: dict[str, Array]) -> None:
    """Copy what a saved part has of a wanted one."""
    for name, values in saved.items():
        is_scale = name.endswith(SCALE) and name.removesuffix(SCALE) in saved
        if (part.start, part.stop) == (wanted.start, wanted.stop):
            result[name] = values
            continue
        if values.ndim == 0:
            result.setdefault(name, values)
            continue
        unit = _core.CODE_BLOCK if is_scale else 1
        low, high = max(part.start, wanted.start), min(part.stop, wanted.stop)
        target = result.setdefault(
            name, np.empty(-(-(wanted.stop - wanted.start) // unit), values.dtype)
        )
        flat = values.reshape(-1)
        there = slice((low - wanted.start) // unit, -(-(high - wanted.start) // unit))
        target[there] = flat[(low - part.start) // unit : -(-(high - part.start) // unit)]


def read_state(path: Any) -> dict[str, Any]:
    """Return the state dict of a checkpoint of a `ShardedOptimizer`, for one in one process.

    Parameters
    ----------
    path : str or path
        The folder that `ShardedOptimizer.save` wrote, on any number of ranks.

    Returns
    -------
    dict
        As `Optimizer.state_dict` returns, for `Optimizer.load_state_dict`.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is damaged, or of another format.

    Examples
    --------
    >>> import numpy as np, compressrs as cr, tempfile
    >>> w, folder = np.ones(3), tempfile.mkdtemp()
    >>> sharded = cr.distributed.ShardedOptimizer(cr.optim.Adam, w)
    >>> sharded.step(np.ones(3))
    >>> sharded.save(folder)
    >>> opt = cr.optim.Adam(w)
    >>> opt.load_state_dict(cr.distributed.read_state(folder))
    >>> opt.state[0]["exp_avg"].round(3)
    array([0.1, 0.1, 0.1])
    """
    manifest = read(file_path(path))
    sizes = [_size(shape) for shape in manifest.shapes]
    wholes = [Part(0, i, 0, size) for i, size in enumerate(sizes)]
    reader = Reader(manifest)
    state = {}
    for i, buffers in enumerate(reader.parts(wholes)):
        buffers.pop(WEIGHTS, None)
        state[i] = {
            name: values.reshape(manifest.shapes[i])
            if values.shape == (sizes[i],) and not _is_scale(name, buffers)
            else values
            for name, values in buffers.items()
        }
    return {
        "class": manifest.rule,
        "state": state,
        "param_groups": manifest.param_groups,
        "masks": reader.masks(),
        **({} if manifest.codes is None else {"codes": manifest.codes}),
    }


def _is_scale(name: str, buffers: Mapping[str, Array]) -> bool:
    return name.endswith(SCALE) and name.removesuffix(SCALE) in buffers


def named(number: int, buffers: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """Yield the names of a part's buffers in files, and the buffers."""
    for name, array in buffers.items():
        yield f"{number}.{name}", array

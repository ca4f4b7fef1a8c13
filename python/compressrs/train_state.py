"""Training runs in one file, saved at any step and resumed to the same bits."""

from __future__ import annotations

import copy
import errno
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compressrs._arrays import Array, dtype_of, flatten
from compressrs._checks import count, file_path, whole
from compressrs._files import load_tensors, save_tensors
from compressrs._json import parse_json
from compressrs._state import Undo, checked_generator
from compressrs.optim import EMA, Optimizer
from compressrs.optim._weights import changes_undone

FORMAT = "compressrs.run"
VERSION = "1"

#: Dtypes that files store directly; others are stored as bytes.
_AS_SUCH = frozenset(
    ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool")
)


class TrainState:
    """The state of a training run, which can be resumed to the same bits.

    Parameters
    ----------
    **parts
        Under names of your choice, usually ``model=``, ``optimizer=``, ``scheduler=``,
        ``ema=``, ``pruner=`` and ``rng=``: objects with `state_dict` and `load_state_dict`,
        ``numpy.random.Generator``, and arrays, or lists and dicts of arrays, which are restored
        in place.

    Attributes
    ----------
    parts : dict
    step_count : int
        Number of calls of `every`; part of the state.

    Raises
    ------
    TypeError
        If a part has another type.
    ValueError
        If there are no parts.

    Examples
    --------
    >>> import numpy as np, compressrs as cr, tempfile, pathlib
    >>> def start():
    ...     model = cr.nn.Sequential(cr.nn.Linear(3, 2, rng=0))
    ...     optimizer = cr.optim.Adam(model.params)
    ...     rng = np.random.default_rng(0)
    ...     return cr.TrainState(model=model, optimizer=optimizer, rng=rng)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "run.safetensors"
    >>> run = start()
    >>> run.save(path)
    >>> expected = run.parts["rng"].random()
    >>> resumed = start()
    >>> resumed.load(path)
    >>> resumed.parts["rng"].random() == expected
    True
    """

    def __init__(self, **parts: Any) -> None:
        if not parts:
            raise ValueError("a run must have at least one part, such as model=, got none")
        for name, part in parts.items():
            _access(name, part)
        self.parts = parts
        self.step_count = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all parts by name, and ``"step"``; arrays are not copied."""
        states = {name: _access(name, part)[0]() for name, part in self.parts.items()}
        return {"step": self.step_count, "parts": states}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned.

        Raises
        ------
        ValueError
            If its parts differ, or one does not fit; nothing is changed then.
        """
        try:
            step, states = count(state_dict["step"], "step"), dict(state_dict["parts"])
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"state_dict must be one that state_dict() returns: {error}") from None
        if states.keys() != self.parts.keys():
            raise ValueError(
                f"state_dict must have the parts {sorted(self.parts)}, got {list(states)}"
            )
        before = copy.deepcopy(self.state_dict()["parts"])
        done: list[str] = []
        try:
            with changes_undone():
                try:
                    for name in self._order():
                        done.append(name)
                        _access(name, self.parts[name])[1](states[name])
                except BaseException:
                    # All of them: masks of one part reach the averages of another.
                    for name in self._order():
                        _access(name, self.parts[name])[1](before[name])
                    raise
        except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"the state of {done[-1]} does not fit: {error}") from error
        self.step_count = step

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the run to one safetensors file.

        The file is replaced atomically: if the process is killed, `path` holds either the new
        or the previous run, complete. Requires the package safetensors
        (``pip install 'compressrs[save]'``).

        Raises
        ------
        OSError
            If it cannot be written.
        TypeError
            If a state contains anything but arrays, numbers, strings, and lists and dicts of
            these.
        """
        arrays: dict[str, Array] = {}
        structure = pack(self.state_dict(), "", arrays)
        kinds = {name: type(part).__name__ for name, part in self.parts.items()}
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "parts": json.dumps(kinds),
            "state": json.dumps(structure),
        }
        save_tensors(file_path(path), arrays, metadata)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Load a run that `save` wrote, or the latest that `every` wrote for this path.

        Raises
        ------
        OSError
            If there is no such file, or it cannot be read.
        ValueError
            If it is damaged, of another version, or of a run with other parts; nothing is
            changed then.
        """
        file = file_path(path)
        if not file.exists() and (found := _series(file)):
            file = found[-1][1]
        arrays, metadata = load_tensors(file, {"format": FORMAT, "version": VERSION})
        try:
            kinds, structure = (parse_json(metadata[key]) for key in ("parts", "state"))
            state = unpack(structure, arrays)
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"{file} holds no state of a run: {error!r}") from None
        own = {name: type(part).__name__ for name, part in self.parts.items()}
        if kinds != own:
            raise ValueError(f"{file} must hold a run with the parts {own}, got {kinds}")
        try:
            self.load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"{file} holds another run: {error}") from error

    def every(self, n: int, path: str | os.PathLike[str], keep: int = 3) -> Path | None:
        """Count a step, and save the run after every `n` of them.

        Call it at the end of each training step. ``run.load(path)`` loads the latest file.

        Parameters
        ----------
        n : int
            At least 1.
        path : path
            The step is inserted into the names of files: ``run.safetensors`` gives
            ``run-00000100.safetensors``.
        keep : int, default 3
            Number of files to keep, the latest.

        Returns
        -------
        path or None
            The file that was written, if any.

        Raises
        ------
        ValueError
            If `n` or `keep` is less than 1.
        OSError
            If the file cannot be written.
        """
        n, keep = whole(n, "n", 1), whole(keep, "keep", 1)
        folder = file_path(path).parent
        if not folder.is_dir():
            # Before the first n steps rather than after them.
            raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(folder))
        self.step_count += 1
        if self.step_count % n:
            return None
        base = file_path(path)
        file = base.with_name(f"{base.stem}-{self.step_count:08d}{base.suffix}")
        self.save(file)
        # After going back to an earlier step, later files belong to another history.
        series = _series(base)
        for step, other in series:
            if step > self.step_count:
                other.unlink(missing_ok=True)
        for _, other in [entry for entry in series if entry[0] <= self.step_count][:-keep]:
            other.unlink(missing_ok=True)
        return file

    def _order(self) -> list[str]:
        """Return the names of the parts in the order in which they are restored.

        Models first, since their patterns decide what the entries of all others belong to; then
        pruners, since they set masks in optimizers; then optimizers, whose state decides which
        masks there are; then whatever is masked, among it the models again.
        """

        def rank(name: str) -> int:
            part = self.parts[name]
            if isinstance(part, Optimizer):
                return 1
            masked = isinstance(part, EMA) or hasattr(part, "named_layers")
            return 2 if masked or not hasattr(part, "load_state_dict") else 0

        models = [name for name, part in self.parts.items() if hasattr(part, "named_layers")]
        return sorted(models) + sorted(self.parts, key=rank)

    def __repr__(self) -> str:
        kinds = ", ".join(f"{name}={type(part).__name__}" for name, part in self.parts.items())
        return f"<TrainState({kinds}) at step {self.step_count}>"


def _access(name: str, part: Any) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """Return the functions that read and restore the state of a part."""
    if hasattr(part, "state_dict") and hasattr(part, "load_state_dict"):
        return part.state_dict, part.load_state_dict
    if isinstance(part, np.random.Generator):
        source: Any = part.bit_generator

        def set_generator(state: Any) -> None:
            checked_generator(part, state, name)(Undo())

        return (lambda: source.state), set_generator
    leaves = [(path.removeprefix(name), leaf) for path, leaf in flatten(part, name)]
    if not leaves or not all(isinstance(leaf, np.ndarray) for _, leaf in leaves):
        raise TypeError(
            f"{name} must have state_dict and load_state_dict, be a numpy Generator, or hold "
            f"arrays, got {type(part).__name__}"
        )
    arrays = dict(leaves)

    def set_arrays(state: Mapping[str, Array]) -> None:
        if not isinstance(state, Mapping) or not all(
            isinstance(value, np.ndarray) for value in state.values()
        ):
            raise ValueError(f"arrays must be a dict of arrays, got {type(state).__name__}")
        # In either byte order; assignment converts.
        shapes = {k: (value.shape, value.dtype.newbyteorder("=")) for k, value in state.items()}
        own = {k: (value.shape, value.dtype.newbyteorder("=")) for k, value in arrays.items()}
        if shapes != own:
            raise ValueError(f"arrays must be {own}, got {shapes}")
        for key, value in state.items():
            arrays[key][...] = value

    return (lambda: dict(arrays)), set_arrays


def _series(base: Path) -> list[tuple[int, Path]]:
    """Return the files that `every` wrote for a path, with their steps, in order."""
    pattern = re.compile(re.escape(base.stem) + r"-(\d{8,})" + re.escape(base.suffix))
    if not base.parent.is_dir():
        return []
    found = [(pattern.fullmatch(file.name), file) for file in base.parent.iterdir()]
    return sorted((int(match[1]), file) for match, file in found if match)


def pack(value: Any, path: str, arrays: dict[str, Array]) -> Any:
    """Return a state in types that JSON can represent; its arrays are collected in `arrays`."""
    if isinstance(value, np.generic):
        return pack(value.item(), path, arrays)
    if isinstance(value, np.ndarray):
        # In native byte order, which files have.
        array = np.asarray(value, value.dtype.newbyteorder("="), order="C")
        # Keys may contain dots, so that names may collide.
        name = path if path not in arrays else f"{path}#{len(arrays)}"
        arrays[name] = array
        if array.dtype.name not in _AS_SUCH:
            if array.dtype.kind not in "iufc":
                raise TypeError(f"{name} must hold numbers to be saved, got {array.dtype}")
            arrays[name] = np.frombuffer(array.tobytes(), np.uint8)
        return {"array": name, "dtype": array.dtype.name, "shape": list(array.shape)}
    if isinstance(value, Mapping):
        items = [
            [_key(key, path), pack(item, f"{path}.{key}" if path else str(key), arrays)]
            for key, item in value.items()
        ]
        return {"dict": items}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [pack(item, f"{path}.{i}", arrays) for i, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{path} cannot be saved: it is a {type(value).__name__}")


def _key(key: Any, path: str) -> Any:
    if not isinstance(key, (str, int)):
        raise TypeError(f"{path} has a key that is neither a string nor an integer: {key!r}")
    return key


def unpack(value: Any, arrays: Mapping[str, Array]) -> Any:
    """Return the state that `pack` was given.

    Raises
    ------
    KeyError, OverflowError, TypeError, ValueError
        If it is none that `pack` returned.
    """
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise ValueError("a list must say whether it is one")
        return value
    if value.keys() == {"array", "dtype", "shape"}:
        dtype, array = dtype_of(value["dtype"]), arrays[value["array"]]
        if array.dtype != dtype:
            array = np.frombuffer(array.tobytes(), dtype)
        return array.reshape(value["shape"]).copy()
    if len(value) != 1 or not value.keys() <= {"dict", "list", "tuple"}:
        raise ValueError(f"{list(value)} is no kind of value")
    ((kind, items),) = value.items()
    if not isinstance(items, list):
        raise TypeError(f"a {kind} must have a list of items, got {items!r}")
    if kind == "dict":
        return {_key(key, "dict"): unpack(item, arrays) for key, item in items}
    unpacked = [unpack(item, arrays) for item in items]
    return tuple(unpacked) if kind == "tuple" else unpacked

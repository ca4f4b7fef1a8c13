"""ONNX models as named arrays, and their files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from compressrs._arrays import Array, as_gradient, is_number
from compressrs._checks import file_path, flag
from compressrs._files import stream_atomically, write_atomically
from compressrs._paths import open_regular, require_distinct
from compressrs.onnx._graph import Index, Scope, label, role, tensors, unknown_operators
from compressrs.onnx._tensors import (
    External,
    Stored,
    aligned,
    clear,
    data_type,
    embed,
    refer,
    stored,
)
from compressrs.onnx._writing import streamed, written_beside

#: What protobuf can hold in one message, less what surrounds the arrays.
LARGEST = 2**31 - 2**20

#: Arrays of fewer bytes stay in the model's file, as onnx does by default.
_SMALL = 1024


@dataclass(frozen=True)
class Initializer:
    """What is known of an array of a model.

    Attributes
    ----------
    name : str
        In the model.
    shape : tuple of int
    dtype : numpy.dtype
    role : str
        "weight" of a product, convolution or recurrent operator, "bias", "normalization",
        "embedding", or "constant".
    swapped : bool
        Whether a weight has its inputs along the first axis and its outputs along the second,
        as those of ``MatMul``.
    used_by : tuple of str
        The nodes that take it.
    is_input : bool
        Whether it is the default of a graph input, in whose place a caller may give another
        array.
    external : bool
        Whether its data are outside of the model's file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    role: str
    swapped: bool
    used_by: tuple[str, ...]
    is_input: bool
    external: bool


class Model(Mapping[str, Array]):
    """The arrays of an ONNX model by name: initializers, and tensors of ``Constant`` nodes.

    Arrays are read when they are first used, and may be changed in place; assignments are copied
    into them. Everything else in the model, such as operators and opsets, is left as it is.
    Arrays in the graphs of ``If``, ``Loop`` and ``Scan`` have the node, the attribute and the
    name as their name, such as ``"if_0.then_branch.w"``. Use `load` to make one.

    Attributes
    ----------
    initializers : dict of str to Initializer
        What is known of each array.
    left : dict of str to str
        Tensors that are none of these arrays, by name, with the reason: strings, numbers of less
        than a byte, sparse tensors. They stay as they are.
    unknown : dict of str to list of str
        Operators that onnx does not know, as ``"domain::operator"``, with the nodes that have
        them. They stay as they are, and what they take and make cannot be removed.
    """

    def __init__(self, proto: Any, folder: Path | None) -> None:
        if not proto.HasField("graph") or not proto.graph.node or not proto.opset_import:
            raise ValueError("the model must have a graph with nodes, and name its opset")
        self._proto, self._folder = proto, folder
        self._stored: dict[str, Stored] = {}
        self._structure_changed()
        # What onnx refuses already, as a later opset than it knows, is not checked again.
        self._valid = self._problem() is None
        self._outside = any(own.external is not None for own in self._stored.values())

    def _structure_changed(self, arrays: Mapping[str, Array] | None = None) -> None:
        """Find the arrays again after tensors or nodes have changed, some with these data."""
        before, self._stored = self._stored, {}
        self._index = Index(self._proto.graph)
        self._scopes: dict[str, Scope] = {}
        self.left: dict[str, str] = {}
        for scope, name, tensor in tensors(self._index):
            key = scope.prefix + name
            if key in self._stored or key in self.left:
                raise ValueError(
                    f"arrays of the model must have different names, got {key!r} twice"
                )
            own = before.get(key)
            if own is not None and own.array is not None:
                own.tensor = tensor
            elif arrays is not None and key in arrays:
                array = arrays[key]
                own = Stored(key, tensor, array.shape, array.dtype, array=array)
            else:
                found = stored(tensor, key, self._folder)
                if isinstance(found, str):
                    self.left[key] = found
                    continue
                own = found
            self._stored[key], self._scopes[key] = own, scope
        for scope in self._index.scopes:
            for sparse in scope.graph.sparse_initializer:
                self.left[scope.prefix + sparse.values.name] = "a sparse tensor"
        self.unknown = unknown_operators(self._proto, self._index)
        self._known: dict[str, Initializer] | None = None

    @property
    def initializers(self) -> dict[str, Initializer]:
        """What is known of each array, by name."""
        if self._known is None:
            self._known = {name: self._described(name) for name in self._stored}
        return dict(self._known)

    def _described(self, key: str) -> Initializer:
        own, scope = self._stored[key], self._scopes[key]
        name = key.removeprefix(scope.prefix)
        floating = is_number(own.dtype) and own.dtype.kind not in "iu"
        found, swapped = role(self._index, scope, name, len(own.shape), floating)
        names = {
            id(node): s.prefix + label(node, i)
            for s in {id(u.scope): u.scope for u in self._index.uses(scope, name)}.values()
            for i, node in enumerate(s.graph.node)
        }
        used = [names[id(use.node)] for use in self._index.uses(scope, name)]
        return Initializer(
            key,
            own.shape,
            own.dtype,
            found,
            swapped,
            tuple(dict.fromkeys(used)),
            is_input=any(value.name == name for value in scope.graph.input),
            external=own.external is not None,
        )

    def __getitem__(self, name: str) -> Array:
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, got {type(name).__name__}")
        if name not in self._stored:
            reason = f": it is {self.left[name]}" if name in self.left else ""
            raise KeyError(f"the model has no array {name!r}{reason}")
        # A view, so that its shape stays when that of another changes.
        array: Array = self._stored[name].read().view()
        return array

    def __setitem__(self, name: str, value: Array) -> None:
        own = self[name]
        array = as_gradient(value, f"the value for {name!r}")
        if array.shape != own.shape or array.dtype != own.dtype:
            raise ValueError(
                f"the value for {name!r} must be {own.dtype} of shape {own.shape}, got "
                f"{array.dtype} of shape {array.shape}"
            )
        own[...] = array

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __repr__(self) -> str:
        return (
            f"<Model of {len(self)} arrays, {self.nbytes} bytes, "
            f"{len(self._proto.graph.node)} nodes>"
        )

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(own.nbytes for own in self._stored.values())

    def freeze_inputs(self) -> None:
        """Remove initializers from the inputs of the graph, so that no caller replaces them.

        They are inputs in files of IR version 3, which becomes 4. `shrink` and `quantize` change
        only what is no input.
        """
        graph = self._proto.graph
        names = {tensor.name for tensor in graph.initializer}
        kept = [value for value in graph.input if value.name not in names]
        if len(kept) < len(graph.input):
            set_repeated(graph.input, kept)
            self._proto.ir_version = max(self._proto.ir_version, 4)
            self._structure_changed()

    def proto(self) -> Any:
        """Return a copy of the model with the arrays as they are now, without external data.

        Raises
        ------
        OSError
            If external data cannot be read.
        ValueError
            If it would be larger than the 2 GB that protobuf holds; use `save`.
        """
        if self.nbytes > LARGEST:
            raise ValueError(f"a model must have at most 2 GB without external data, got {self!r}")
        made = onnx.ModelProto()
        made.CopyFrom(self._proto)
        for own, tensor in self._pairs(made):
            embed(tensor, own)
        return made

    def save(self, path: str | os.PathLike[str], *, external_data: bool | None = None) -> None:
        """Write the model, atomically.

        Parameters
        ----------
        path : path
            May be that of the file that was loaded.
        external_data : bool, optional
            Whether arrays of 1,024 bytes and more are written to another file beside, called
            ``NAME.data``, or ``NAME.1.data`` and so on while one of that name exists. By default
            if some had been, or if the model is larger than 2 GB. What an earlier `save` to
            `path` wrote beside is removed.

        Raises
        ------
        OSError
            If a file cannot be read or written; an existing model is then unchanged.
        ValueError
            If onnx finds the model to be invalid, which it was not before, it is larger than
            2 GB without external data, or `path` is a file of data that it still reads. Nothing is
            written then.
        """
        target = Path(os.path.realpath(file_path(path)))
        if external_data is None:
            external = self._outside or self.nbytes > LARGEST
        else:
            external = flag(external_data, "external_data")
        if self._valid and (problem := self._problem()) is not None:
            raise ValueError(f"the model would not be valid: {problem}")
        read = [own.external.path for own in self._stored.values() if own.external is not None]
        require_distinct({"path": target}, {"the file that the model's data are read from": read})
        old = written_beside(target)
        if external:
            for own, place in self._write_external(target):
                # From now on, what has not been read is read from there.
                if own.external is not None:
                    own.external = place
        else:
            write_atomically(target, self.proto().SerializeToString())
        for own in self._stored.values():
            # What is about to be removed.
            if own.external is not None and own.external.path in old:
                own.read()
        for file in old - {own.external.path for own in self._stored.values() if own.external}:
            with contextlib.suppress(OSError):
                os.unlink(file)

    def _write_external(self, target: Path) -> list[tuple[Stored, External]]:
        """Write the model and its data beside; return where the data of arrays are."""
        made = onnx.ModelProto()
        made.CopyFrom(self._proto)
        number, data = 0, target.with_name(f"{target.name}.data")
        while data.exists():
            number += 1
            data = target.with_name(f"{target.name}.{number}.data")
        places: list[tuple[Stored, External]] = []
        end = 0
        for own, tensor in self._pairs(made):
            if own.nbytes < _SMALL:
                embed(tensor, own)
                continue
            offset = aligned(end)
            end = offset + own.nbytes
            refer(tensor, data.name, offset, own.nbytes)
            places.append((own, External(data, offset, own.nbytes)))
        text = made.SerializeToString()
        if places:
            stream_atomically(data, streamed(places), exclusive=True)
        try:
            write_atomically(target, text)
        except BaseException:
            data.unlink(missing_ok=True)
            raise
        return places

    def _pairs(self, made: Any) -> Iterator[tuple[Stored, Any]]:
        """Yield each array with its tensor in a copy of the model."""
        for scope, name, tensor in tensors(Index(made.graph)):
            own = self._stored.get(scope.prefix + name)
            if own is not None:
                yield own, tensor

    def _cut(
        self,
        arrays: Mapping[str, Array],
        lengths: Mapping[str, tuple[int, int]],
        numbers: Sequence[tuple[Any, int | None, int]],
    ) -> None:
        """Replace arrays by smaller ones, with the lengths of values and numbers in nodes."""
        graph = self._proto.graph
        for name, array in arrays.items():
            self._replace(name, array)
        for value in (*graph.value_info, *graph.output):
            axis, length = lengths.get(value.name, (0, 0))
            dimensions = value.type.tensor_type.shape.dim
            if value.name in lengths and axis < len(dimensions):
                dimensions[axis].dim_value = length
        for node, each, count in numbers:
            if each is None:
                next(a for a in node.attribute if a.name == "group").i = count
                continue
            to = self[node.input[1]].copy()
            to[1] = count * each
            node.input[1] = self._add(f"{node.input[1]}_{node.output[0]}", to)
        self._structure_changed()

    def _replace(self, key: str, array: Array) -> None:
        """Have an array of another shape in place of one."""
        own = self._stored[key]
        clear(own.tensor)
        del own.tensor.dims[:]
        own.tensor.dims.extend(array.shape)
        self._stored[key] = replace(own, shape=array.shape, external=None, array=array)

    def _add(self, name: str, array: Array, scope: Scope | None = None) -> str:
        """Add an initializer; return its name, which is another if it was taken."""
        scope = self._index.scopes[0] if scope is None else scope
        name = self._add_tensor(name, array.shape, data_type(array.dtype), b"", scope)
        key, tensor = scope.prefix + name, scope.graph.initializer[-1]
        self._stored[key] = Stored(key, tensor, array.shape, array.dtype, array=array)
        return name

    def _add_tensor(
        self, name: str, shape: tuple[int, ...], kind: int, data: bytes, scope: Scope
    ) -> str:
        """Add an initializer of any data type; return its name."""
        taken = {n for s in self._index.scopes for n in s.makers} | {*self._stored}
        taken |= {t.name for t in scope.graph.initializer}
        name = next(n for n in (name, *(f"{name}_{i}" for i in range(1, 1000))) if n not in taken)
        tensor = scope.graph.initializer.add(name=name, data_type=kind)
        tensor.dims.extend(shape)
        tensor.raw_data = data
        return name

    def _structure(self, largest: int) -> Any:
        """Return a copy of the model in which only small tensors, such as shapes, have data."""
        made = onnx.ModelProto()
        made.CopyFrom(self._proto)
        for own, tensor in self._pairs(made):
            if own.dtype == np.int64 and own.nbytes <= 8 * largest:
                embed(tensor, own)
            elif own.nbytes > 8 * largest:
                clear(tensor)
            elif own.array is not None:
                embed(tensor, own)
        return made

    def _problem(self) -> str | None:
        """Return what onnx finds wrong with the structure, apart from the data, or None."""
        made = self._structure(0)
        for _, tensor in self._pairs(made):
            clear(tensor)
            tensor.ClearField("dims")
            tensor.dims.append(0)
        try:
            onnx.checker.check_model(made)
        except (onnx.checker.ValidationError, ValueError) as error:
            return str(error).strip()
        return None

    def __getstate__(self) -> dict[str, Any]:
        arrays = {key: own.array for key, own in self._stored.items() if own.array is not None}
        proto = self._proto.SerializeToString()
        rest = {"folder": self._folder, "valid": self._valid, "outside": self._outside}
        return {"proto": proto, "arrays": arrays, **rest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._proto = onnx.ModelProto.FromString(state["proto"])
        self._folder, self._stored = state["folder"], {}
        self._valid, self._outside = state["valid"], state["outside"]
        self._structure_changed(state["arrays"])


def set_repeated(field: Any, values: list[Any]) -> None:
    """Have a repeated field of protobuf hold these messages, some of which it may hold now."""
    kept = []
    for value in values:
        copied = type(value)()
        copied.CopyFrom(value)
        kept.append(copied)
    del field[:]
    field.extend(kept)


def load(source: str | os.PathLike[str] | Any) -> Model:
    """Return the arrays of an ONNX model.

    Parameters
    ----------
    source : path or onnx.ModelProto
        A model is copied. External data are read from the folder of the path.

    Returns
    -------
    Model

    Raises
    ------
    OSError
        If a file cannot be read, or is not a regular file, such as a folder or a pipe.
    TypeError
        If `source` is neither.
    ValueError
        If the file is no ONNX model, is truncated or damaged, or names data outside of its
        folder.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> from onnx import parser
    >>> model = cr.onnx.load(parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["": 17]>
    ...     g (float[n, 3] x) => (float[n, 2] y) <float[3, 2] w = {1, 2, 3, 4, 5, 6}>
    ...     { y = MatMul(x, w) }
    ... '''))
    >>> model
    <Model of 1 arrays, 24 bytes, 1 nodes>
    >>> model["w"][0, 0] = 0
    >>> model.initializers["w"].role
    'weight'
    """
    if isinstance(source, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(source)
        return Model(proto, None)
    path = file_path(source, "source")
    with open_regular(path) as file:
        data = file.read()
    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise ValueError(f"{path} is not a complete ONNX model: {error}") from None
    try:
        return Model(proto, path.parent)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None

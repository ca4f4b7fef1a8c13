"""Graphs of a model and those in their nodes: which node uses which value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from onnx import AttributeProto, TensorProto, defs, numpy_helper

#: Domains whose operators are those of ONNX.
STANDARD = ("", "ai.onnx")


class Scope:
    """A graph: that of the model, or one in a node, as the branches of an ``If``."""

    def __init__(self, graph: Any, prefix: str = "", outer: Scope | None = None) -> None:
        self.graph, self.prefix, self.outer = graph, prefix, outer
        _require_text(graph)
        #: The node that makes a value, or None for inputs and initializers, by the value's name.
        self.makers: dict[str, Any] = {v.name: None for v in graph.input}
        self.makers |= {t.name: None for t in graph.initializer}
        self.makers |= {t.values.name: None for t in graph.sparse_initializer}
        self.makers |= {name: node for node in graph.node for name in node.output if name}

    def find(self, name: str) -> Scope | None:
        """Return the graph in which a value has this name, seen from this one."""
        if name in self.makers or self.outer is None:
            return self if name in self.makers else None
        return self.outer.find(name)


def _require_text(graph: Any) -> None:
    """Raise a ValueError unless all names are text: protobuf returns other bytes as they are."""
    names = [value.name for value in (*graph.input, *graph.output, *graph.value_info)]
    names += [tensor.name for tensor in graph.initializer]
    names += [sparse.values.name for sparse in graph.sparse_initializer]
    for node in graph.node:
        names += [node.name, node.op_type, node.domain, *node.input, *node.output]
        names += [attribute.name for attribute in node.attribute]
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"the names in the model must be text, got {name!r}")


class Use(NamedTuple):
    """An input of a node."""

    scope: Scope
    node: Any
    position: int


def label(node: Any, position: int) -> str:
    """Return the name of a node, or its type and position if it has none."""
    return node.name or f"{node.op_type}_{position}"


def scopes(graph: Any, prefix: str = "", outer: Scope | None = None) -> Iterator[Scope]:
    """Yield a graph and all graphs in its nodes."""
    scope = Scope(graph, prefix, outer)
    yield scope
    for i, node in enumerate(graph.node):
        for attribute in node.attribute:
            inner = f"{prefix}{label(node, i)}.{attribute.name}"
            if attribute.type == AttributeProto.GRAPH:
                yield from scopes(attribute.g, f"{inner}.", scope)
            for j, each in enumerate(attribute.graphs):
                yield from scopes(each, f"{inner}.{j}.", scope)


class Index:
    """All graphs of a model, and the uses of each value, by its graph's prefix and its name."""

    def __init__(self, graph: Any) -> None:
        self.scopes = list(scopes(graph))
        self._uses: dict[tuple[str, str], list[Use]] = {}
        self._outputs: set[tuple[str, str]] = set()
        for scope in self.scopes:
            for node in scope.graph.node:
                for position, name in enumerate(node.input):
                    owner = scope.find(name) if name else None
                    if owner is not None:
                        self._uses.setdefault((owner.prefix, name), []).append(
                            Use(scope, node, position)
                        )
            for value in scope.graph.output:
                owner = scope.find(value.name)
                if owner is not None:
                    self._outputs.add((owner.prefix, value.name))

    def uses(self, scope: Scope, name: str) -> list[Use]:
        """Return the inputs of nodes that a value is, in all graphs."""
        return self._uses.get((scope.prefix, name), [])

    def is_output(self, scope: Scope, name: str) -> bool:
        """Whether a value is an output of a graph."""
        return (scope.prefix, name) in self._outputs


def attributes(node: Any) -> dict[str, Any]:
    """Return the attributes of a node by name: numbers, strings and lists of them."""
    found: dict[str, Any] = {}
    for a in node.attribute:
        if a.type == AttributeProto.INT:
            found[a.name] = a.i
        elif a.type == AttributeProto.FLOAT:
            found[a.name] = a.f
        elif a.type == AttributeProto.STRING:
            found[a.name] = a.s.decode(errors="replace")
        elif a.type == AttributeProto.INTS:
            found[a.name] = list(a.ints)
        elif a.type == AttributeProto.FLOATS:
            found[a.name] = list(a.floats)
    return found


def constant(node: Any) -> Any:
    """Return the tensor of a ``Constant``, or None if it has none or of another form."""
    if node.op_type != "Constant" or node.domain not in STANDARD:
        return None
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.type == AttributeProto.TENSOR:
            return attribute.t
    return None


def tensors(index: Index) -> Iterator[tuple[Scope, str, Any]]:
    """Yield the graph, the name and the tensor of all initializers and constants."""
    for scope in index.scopes:
        for tensor in scope.graph.initializer:
            yield scope, tensor.name, tensor
        for node in scope.graph.node:
            tensor = constant(node)
            if tensor is not None and node.output:
                yield scope, node.output[0], tensor


def small_constant(node: Any) -> Any:
    """Return what a ``Constant`` holds as an array, also one of numbers, or None."""
    if node.op_type != "Constant" or node.domain not in STANDARD:
        return None
    for a in node.attribute:
        if a.name in ("value_int", "value_float"):
            return np.array(a.i if a.name == "value_int" else np.float32(a.f))
        if a.name in ("value_ints", "value_floats"):
            kind = np.int64 if a.name == "value_ints" else np.float32
            return np.array(a.ints if a.name == "value_ints" else a.floats, kind)
    tensor = constant(node)
    if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
        return None
    return numpy_helper.to_array(tensor)


def opset(model: Any, domain: str = "") -> int:
    """Return the version of a domain that a model is in, or 0 if it names none."""
    same = STANDARD if domain in STANDARD else (domain,)
    return next((o.version for o in model.opset_import if o.domain in same), 0)


def unknown_operators(model: Any, index: Index) -> dict[str, list[str]]:
    """Return the labels of nodes of operators that onnx does not know, by operator."""
    own = {(f.domain, f.name) for f in model.functions}
    found: dict[str, list[str]] = {}
    for scope in index.scopes:
        for i, node in enumerate(scope.graph.node):
            domain = "" if node.domain in STANDARD else node.domain
            if (node.domain, node.op_type) in own or _has_schema(node, opset(model, domain)):
                continue
            full = f"{domain}::{node.op_type}" if domain else node.op_type
            found.setdefault(full, []).append(scope.prefix + label(node, i))
    return found


def _has_schema(node: Any, version: int) -> bool:
    """Whether onnx knows the operator of a node in this version of its domain."""
    domain = "" if node.domain in STANDARD else node.domain
    if domain == "" and version > defs.onnx_opset_version():
        return False
    try:
        defs.get_schema(node.op_type, max(version, 1), domain)
    except defs.SchemaError:
        return False
    return True


#: What the inputs of operators hold, by position.
_ROLES = {
    "MatMul": {0: "weight", 1: "weight"},
    "Gemm": {1: "weight", 2: "bias"},
    "Conv": {1: "weight", 2: "bias"},
    "ConvTranspose": {1: "weight", 2: "bias"},
    "LSTM": {1: "weight", 2: "weight", 3: "bias"},
    "GRU": {1: "weight", 2: "weight", 3: "bias"},
    "RNN": {1: "weight", 2: "weight", 3: "bias"},
    "BatchNormalization": dict.fromkeys((1, 2, 3, 4), "normalization"),
    "InstanceNormalization": dict.fromkeys((1, 2), "normalization"),
    "GroupNormalization": dict.fromkeys((1, 2), "normalization"),
    "LayerNormalization": dict.fromkeys((1, 2), "normalization"),
    "RMSNormalization": {1: "normalization"},
    "Gather": {0: "embedding"},
    "Add": {0: "bias", 1: "bias"},
}

#: Operators whose result is what their first input holds, in another form.
_VIEWS = ("Identity", "Cast", "Transpose")


def role(index: Index, scope: Scope, name: str, ndim: int, floating: bool) -> tuple[str, bool]:
    """Return what an initializer is for, and whether its first axis holds inputs, not outputs.

    That of its first use, "constant" if it is for nothing that has weights.
    """
    swapped = False
    for _ in range(8):
        uses = index.uses(scope, name)
        if not uses or not floating:
            break
        scope, node, position = uses[0]
        if node.domain not in STANDARD:
            break
        kind, given = node.op_type, attributes(node)
        if kind in _VIEWS and node.output:
            swapped ^= kind == "Transpose" and ndim == 2 and given.get("perm", [1, 0]) == [1, 0]
            name = node.output[0]
            continue
        found = _ROLES.get(kind, {}).get(position, "constant")
        if found == "weight" and (
            (kind == "MatMul" and position == 1 and ndim == 2)
            or (kind == "Gemm" and not given.get("transB", 0))
            or (kind == "ConvTranspose" and given.get("group", 1) == 1)
        ):
            swapped ^= True
        if (found == "embedding" and ndim < 2) or (found == "bias" and ndim > 2):
            found = "constant"
        return found, swapped
    return "constant", False

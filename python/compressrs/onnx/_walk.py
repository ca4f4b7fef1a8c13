"""How units of the layers of an ONNX graph pass through its operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from compressrs.onnx._graph import STANDARD, attributes, label, opset, small_constant
from compressrs.onnx._shapes import Shapes
from compressrs.onnx._units import (
    CHANNELWISE,
    ELEMENTWISE,
    ELEMENTWISE_ZERO,
    Change,
    Lost,
    Member,
    Value,
)
from compressrs.onnx.model import Initializer, Model
from compressrs.prune.dependencies import Space


class Walk:
    """Follows units through a graph."""

    def __init__(self, model: Model) -> None:
        self.model, self.known = model, model.initializers
        self.shapes = Shapes(model)
        self.members: list[tuple[Space, Member]] = []
        self.changes: list[Change] = []
        #: Values that nodes make and that the model is given; None has no units to be removed.
        self.values: dict[str, Value | None] = {}
        self._spaces: list[Space] = []
        #: Inputs of nodes that are arrays, with the axes along which units can be removed there.
        self._accounted: dict[tuple[int, int], set[int]] = {}
        self._constants: dict[str, Any] = {}
        #: Arrays under other names, of ``Identity`` and ``Transpose``: the array's own name, and
        #: whether its two axes are swapped.
        self._views: dict[str, tuple[str, bool]] = {}
        self._name = ""
        graph = model._proto.graph
        self._opset = opset(model._proto)
        for value in graph.input:
            if value.name not in self.known:
                self.values[value.name] = None
        for i, node in enumerate(graph.node):
            self._name = f"node {label(node, i)} ({node.op_type})"
            self._visit(node)
        for value in graph.output:
            if (made := self.values.get(value.name)) is not None:
                made.space.root().is_output = True
        self._inner_graphs()
        self._shared_arrays()
        order = {name: i for i, name in enumerate(self.known)}
        #: The space whose units a weight makes, by its name, in the order of the arrays.
        made_by = {name: s.root() for s in self._spaces for name in s.root().makers}
        self.made_by = {name: made_by[name] for name in sorted(made_by, key=order.__getitem__)}
        for space in self.made_by.values():
            space.makers = sorted(set(space.makers), key=order.__getitem__)

    def _visit(self, node: Any) -> None:
        if (found := small_constant(node)) is not None:
            self._constants[node.output[0]] = found
            return
        if self._is_view(node):
            return
        visit = _VISITS.get(node.op_type) if node.domain in STANDARD else None
        inputs = [self.values.get(name) for name in node.input]
        made: Value | None = None
        try:
            if visit is not None and (visit in _BEGINNING or any(inputs)):
                made = visit(self, node)
            elif any(inputs):
                raise Lost("is none whose units can be followed")
        except Lost as lost:
            for value in filter(None, inputs):
                self._fix(value.space, f"{self._name} {lost}")
        for name in filter(None, node.output):
            self.values[name] = made

    def _is_view(self, node: Any) -> bool:
        """Whether a node gives an array another name, which is noted."""
        if node.op_type not in ("Identity", "Transpose") or node.domain not in STANDARD:
            return False
        name, swapped = self._views.get(node.input[0], (node.input[0], False))
        if name in self.values or name not in self.known:
            return False
        if node.op_type == "Transpose":
            perm = attributes(node).get("perm", [1, 0])
            if len(self.known[name].shape) != 2 or sorted(perm) != [0, 1]:
                return False
            swapped ^= perm == [1, 0]
        # What takes the view says which axes can be cut.
        self._stay(node, 0)
        self._accounted[id(node), 0].update(range(len(self.known[name].shape)))
        self._views[node.output[0]] = name, swapped
        return True

    def _fix(self, space: Space, reason: str) -> None:
        root = space.root()
        root.fixed = root.fixed or reason

    def _made(self, node: Any, position: int, out: int, axis: int) -> Value:
        """Return the units that a weight makes."""
        space = Space(self._array(node, position).shape[out])
        space.makers.append(self._array(node, position).name)
        self._spaces.append(space)
        value = Value(space, axis)
        self._member(value, node, position, out)
        return value

    def _member(self, value: Value, node: Any, position: int, axis: int) -> None:
        self._stay(node, position)
        name, swapped = self._views.get(node.input[position], (node.input[position], False))
        member = Member(name, 1 - axis if swapped else axis, value.each)
        self.members.append((value.space, member))
        self._accounted[id(node), position].add(member.axis)

    def _stay(self, node: Any, position: int) -> None:
        """Note that an input of a node is an array, which is cut along the axes of members."""
        self._accounted.setdefault((id(node), position), set())

    def _tracked(self, node: Any) -> tuple[Value, int]:
        """Return the first input of a node, and its number of axes."""
        value, rank = self.values.get(node.input[0]), self.shapes.rank(node.input[0])
        if value is None or rank is None:
            raise Lost("takes them in another form")
        return value, rank

    def _array(self, node: Any, position: int) -> Initializer:
        """Return what is known of the array that an input of a node is."""
        name = node.input[position] if position < len(node.input) else ""
        name, swapped = self._views.get(name, (name, False))
        if name in self.values or name not in self.known:
            raise Lost("takes an array that is computed")
        known = self.known[name]
        return replace(known, shape=known.shape[::-1]) if swapped else known

    def _constant(self, node: Any, position: int) -> Any:
        """Return an input of a node as an array of its own, or None if there is none."""
        name = node.input[position] if position < len(node.input) else ""
        if not name:
            return None
        self._stay(node, position)
        if name in self._constants:
            return self._constants[name]
        self._array(node, position)
        name, swapped = self._views.get(name, (name, False))
        return self.model[name].T if swapped else self.model[name]

    def _combine(self, value: Value | None) -> None:
        """Check that a masked unit adds nothing to an operator that sums over units."""
        if value is not None and not value.zero:
            raise Lost("sums over them after an operator that does not keep 0")

    # Operators with weights

    def _matmul(self, node: Any) -> Value | None:
        x = node.input[0]
        weight, rank = self._array(node, 1), self.shapes.rank(x)
        if x not in self.values or len(weight.shape) != 2 or rank is None or rank < 2:
            raise Lost("is a product of another form")
        value = self.values[x]
        if value is not None and value.axis != rank - 1:
            # Units are the rows of the product; each of them reads all of the weight.
            self._stay(node, 1)
            return value
        self._combine(value)
        if value is not None:
            self._member(value, node, 1, 0)
        return self._made(node, 1, 1, rank - 1)

    def _gemm(self, node: Any) -> Value | None:
        x, given = node.input[0], attributes(node)
        weight, out = self._array(node, 1), 0 if given.get("transB", 0) else 1
        value = self.values.get(x)
        if x not in self.values or given.get("transA", 0) or (value and value.axis != 1):
            raise Lost("is a product of another form")
        has_bias = len(node.input) > 2 and bool(node.input[2])
        if has_bias and self._array(node, 2).shape[-1:] != weight.shape[out : out + 1]:
            raise Lost("adds numbers that are not one for each of them")
        self._combine(value)
        if value is not None:
            self._member(value, node, 1, 1 - out)
        made = self._made(node, 1, out, 1)
        if has_bias:
            self._member(made, node, 2, len(self._array(node, 2).shape) - 1)
        return made

    def _conv(self, node: Any) -> Value | None:
        x, transposed = node.input[0], node.op_type == "ConvTranspose"
        weight, value = self._array(node, 1), self.values.get(node.input[0])
        if x not in self.values or (value and (value.axis != 1 or value.each != 1)):
            raise Lost("is a convolution of another form")
        has_bias = len(node.input) > 2 and bool(node.input[2])
        if has_bias:
            self._array(node, 2)
        groups = attributes(node).get("group", 1)
        self._combine(value)
        if groups == 1:
            out = 1 if transposed else 0
            if value is not None:
                self._member(value, node, 1, 1 - out)
            made: Value | None = self._made(node, 1, out, 1)
        elif groups == weight.shape[0] == self.shapes.length(x, 1) and not transposed:
            # Each filter reads one channel and makes one.
            made = value
            self._stay(node, 1)
            if value is not None:
                self._member(value, node, 1, 0)
                self.changes.append(Change(node, value.space))
        else:
            raise Lost("divides them into groups")
        if has_bias and made is not None:
            self._member(made, node, 2, 0)
        return made

    # Operators that keep units apart

    def _elementwise(self, node: Any) -> Value:
        value, _ = self._tracked(node)
        return replace(value, zero=value.zero and node.op_type in ELEMENTWISE_ZERO)

    def _clip(self, node: Any) -> Value:
        value, _ = self._tracked(node)
        given = attributes(node)
        low, high = (self._constant(node, position) for position in (1, 2))
        low = given.get("min", -np.inf) if low is None else float(low)
        high = given.get("max", np.inf) if high is None else float(high)
        return replace(value, zero=value.zero and low <= 0 <= high)

    def _channelwise(self, node: Any) -> Value:
        value, _ = self._tracked(node)
        if value.axis != 1:
            raise Lost("combines them")
        return value

    def _pad(self, node: Any) -> Value:
        value, rank = self._tracked(node)
        given = attributes(node)
        pads = given["pads"] if "pads" in given else self._constant(node, 1)
        filled = self._constant(node, 2)
        filled = given.get("value", 0) if filled is None else float(filled)
        plain = given.get("mode", "constant") == "constant" and len(node.input) < 4
        if not plain or pads is None or len(pads) != 2 * rank:
            raise Lost("pads in another way")
        if pads[value.axis] or pads[value.axis + rank]:
            raise Lost("adds to them")
        return replace(value, zero=value.zero and filled == 0)

    def _normalization(self, node: Any) -> Value:
        value, _ = self._tracked(node)
        if value.axis != 1:
            raise Lost("normalizes over them")
        for position in range(1, 5):
            self._array(node, position)
        for position in range(1, 5):
            self._member(value, node, position, 0)
        # Its own scale and shift are masked with the units.
        return replace(value, zero=True)

    def _prelu(self, node: Any) -> Value:
        value, rank = self._tracked(node)
        self._along(value, rank, node, 1)
        return value

    def _along(self, value: Value, rank: int, node: Any, position: int) -> bool:
        """Whether an array has entries for the units of a value, which are cut with them."""
        shape = self._array(node, position).shape
        axis = value.axis - (rank - len(shape))
        if len(shape) > rank:
            raise Lost("adds axes")
        if axis < 0 or shape[axis] == 1:
            self._stay(node, position)
            return False
        self._member(value, node, position, axis)
        return True

    def _binary(self, node: Any) -> Value:
        left, right = (self.values.get(name) for name in node.input)
        if left is not None and right is not None:
            return self._joined(node, left, right)
        position = 1 if right is None else 0
        if node.input[position] in self.values:
            raise Lost("combines them with others")
        value, kind = left if right is None else right, node.op_type
        rank = self.shapes.rank(node.input[1 - position])
        assert value is not None
        if rank is None or (kind == "Div" and position == 0):
            raise Lost("takes them in another form")
        constant = self._constant(node, position)
        alike = constant.size == 1 and constant.ndim <= rank
        if not alike and self._along(value, rank, node, position):
            if kind == "Div":
                raise Lost("divides them by numbers of their own")
            # The numbers of a unit are masked with it.
            return replace(value, zero=value.zero or kind == "Mul")
        if kind in ("Mul", "Div"):
            return value
        return replace(value, zero=value.zero and not np.any(constant))

    def _joined(self, node: Any, left: Value, right: Value) -> Value:
        """Return the units of a sum or product of two values, which go together."""
        ranks = [self.shapes.rank(name) for name in node.input]
        if ranks[0] is None or ranks[1] is None:
            raise Lost("combines values of unknown shapes")
        rank = max(ranks[0], ranks[1])
        axis = left.axis + rank - ranks[0]
        if axis != right.axis + rank - ranks[1] or left.each != right.each:
            raise Lost("combines them in another order")
        zeros = {
            "Mul": left.zero or right.zero,
            "Div": left.zero and not right.zero,
        }
        space = left.space.root().join(right.space.root())
        return Value(space, axis, left.each, zeros.get(node.op_type, left.zero and right.zero))

    def _power(self, node: Any) -> Value:
        value, _ = self._tracked(node)
        exponent = self._constant(node, 1)
        if np.size(exponent) != 1:
            raise Lost("has an exponent for each of them")
        return replace(value, zero=value.zero and float(np.ravel(exponent)[0]) > 0)

    def _flatten(self, node: Any) -> Value:
        value, rank = self._tracked(node)
        if attributes(node).get("axis", 1) % rank != 1 or value.axis != 1:
            raise Lost("flattens them in another way")
        return self._flat(node, value)

    def _flat(self, node: Any, value: Value) -> Value:
        each = value.each
        for length in (self.shapes.of(node.input[0]) or [])[2:]:
            if length is None:
                raise Lost("flattens feature maps of unknown size")
            each *= length
        return replace(value, each=each)

    def _reshape(self, node: Any) -> Value:
        """Follow a reshape of (batch, units, ...) to (batch, all others)."""
        value, _ = self._tracked(node)
        shape = self.shapes.of(node.input[0])
        name = node.input[1]
        constant = self._constant(node, 1) if name not in self.values else None
        to = self.shapes.target(node, constant)
        if to is None or shape is None or value.axis != 1 or len(to) != 2:
            raise Lost("gives them another shape")
        made, size = self._flat(node, value), value.space.root().size
        if to[0] not in (0, -1, shape[0]) or size is None or to[1] not in (-1, size * made.each):
            raise Lost("gives them another shape")
        if to[1] != -1:
            self.changes.append(Change(node, value.space, made.each))
        return made

    def _transpose(self, node: Any) -> Value:
        value, rank = self._tracked(node)
        perm = attributes(node).get("perm", [*range(rank)][::-1])
        return replace(value, axis=perm.index(value.axis))

    def _axes(self, node: Any) -> list[int]:
        given = attributes(node)
        axes = given["axes"] if "axes" in given else self._constant(node, 1)
        if axes is None or not len(axes):
            raise Lost("takes all axes")
        return [int(a) for a in axes]

    def _reduce(self, node: Any) -> Value:
        value, rank = self._tracked(node)
        gone = {a % rank for a in self._axes(node)}
        if value.axis in gone:
            raise Lost("combines them")
        keep = node.op_type != "Squeeze" and attributes(node).get("keepdims", 1)
        return replace(value, axis=value.axis - (0 if keep else sum(a < value.axis for a in gone)))

    def _unsqueeze(self, node: Any) -> Value:
        value, rank = self._tracked(node)
        axes = self._axes(node)
        new = {a % (rank + len(axes)) for a in axes}
        old = [a for a in range(rank + len(axes)) if a not in new]
        return replace(value, axis=old[value.axis])

    def _softmax(self, node: Any) -> Value:
        value, rank = self._tracked(node)
        # Before opset 13, all axes from this one on are normalized together.
        axis = attributes(node).get("axis", -1 if self._opset >= 13 else 1) % rank
        if value.axis == axis or (self._opset < 13 and value.axis > axis):
            raise Lost("normalizes over them")
        return replace(value, zero=False)

    def _lengths(self, node: Any) -> None:
        """Do nothing: a length that is read when the model runs follows by itself."""

    # What is outside of the walk

    def _inner_graphs(self) -> None:
        """Fix what graphs in nodes take from outside."""
        for scope in self.model._index.scopes[1:]:
            names = [name for node in scope.graph.node for name in node.input]
            names += [value.name for value in scope.graph.output]
            for name in names:
                value = self.values.get(name)
                if value is not None and name not in scope.makers:
                    self._fix(value.space, f"the graph {scope.prefix[:-1]} takes them")

    def _shared_arrays(self) -> None:
        """Join the units of shared arrays, and fix those of arrays that something else takes."""
        index = self.model._index
        main = index.scopes[0]
        first: dict[tuple[str, int], tuple[Space, int]] = {}
        for space, (name, axis, each) in self.members:
            other, others_each = first.setdefault((name, axis), (space, each))
            other.root().join(space.root())
            if each != others_each:
                self._fix(space, f"{name} is shared by units of several sizes")
            if self.known[name].is_input:
                self._fix(
                    space,
                    f"{name} is also an input of the graph; model.freeze_inputs() changes that",
                )
            for known_as in (
                name,
                *(view for view, (own, _) in self._views.items() if own == name),
            ):
                if index.is_output(main, known_as):
                    self._fix(space, f"{name} is also an output of the model")
                for use in index.uses(main, known_as):
                    # Such as inputs of the graph, along an axis of a shared weight.
                    if axis not in self._accounted.get((id(use.node), use.position), ()):
                        kind = use.node.op_type
                        self._fix(space, f"{name} is also for a {kind} that does not lose them")


#: Operators at whose outputs units begin.
_BEGINNING = (Walk._matmul, Walk._gemm, Walk._conv)

_VISITS: dict[str, Callable[[Walk, Any], Value | None]] = {
    **dict.fromkeys(ELEMENTWISE_ZERO | ELEMENTWISE, Walk._elementwise),
    **dict.fromkeys(CHANNELWISE, Walk._channelwise),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), Walk._binary),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "Squeeze"), Walk._reduce),
    **dict.fromkeys(("Softmax", "LogSoftmax"), Walk._softmax),
    **dict.fromkeys(("Shape", "Size"), Walk._lengths),
    **dict.fromkeys(("Conv", "ConvTranspose"), Walk._conv),
    "BatchNormalization": Walk._normalization,
    "Clip": Walk._clip,
    "Flatten": Walk._flatten,
    "Gemm": Walk._gemm,
    "MatMul": Walk._matmul,
    "PRelu": Walk._prelu,
    "Pad": Walk._pad,
    "Pow": Walk._power,
    "Reshape": Walk._reshape,
    "Transpose": Walk._transpose,
    "Unsqueeze": Walk._unsqueeze,
}

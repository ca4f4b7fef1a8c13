"""Weights of ONNX models in few bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from compressrs._arrays import Array
from compressrs._checks import choice, whole
from compressrs.onnx._graph import STANDARD, Scope, attributes, opset
from compressrs.onnx._tensors import data_type
from compressrs.onnx.model import Initializer, Model
from compressrs.onnx.pruning import oriented, require_model, weights_named
from compressrs.prune import InputStatistics
from compressrs.quantize import QuantizedTensor, Scheme, gptq
from compressrs.quantize import quantize as nearest

#: The domain of `MatMulNBits`.
_MICROSOFT = "com.microsoft"


def quantize(
    model: Model,
    scheme: Scheme,
    names: Sequence[str] | None = None,
    *,
    format: str = "qdq",
    statistics: Mapping[str, InputStatistics] | None = None,
    accuracy_level: int = 0,
) -> dict[str, QuantizedTensor]:
    r"""Store weights of a model as codes of few bits, with their scales.

    ============= =======================================================================
    ``format``    what takes the place of a weight
    ============= =======================================================================
    qdq           ``DequantizeLinear`` of codes and scales, under the weight's name, for any
                  operator. From opset 10, with a scale for each output from 13, with groups
                  from 21. Codes of 5 to 8 bits are stored as INT8 or UINT8; those of 4 bits as
                  INT4 or UINT4, which need opset 21; those of 2 and 3 bits in 4 bits from
                  opset 21, in 8 bits before.
    matmulnbits   onnxruntime's operator ``com.microsoft::MatMulNBits`` in place of ``MatMul``
                  and ``Gemm``, in any opset: 4 or 8 bits in groups of 16, 32, 64, 128 or 256.
                  A weight that products take in both orientations, as ``MatMul(x, w)`` and
                  ``Gemm(x, w, transB=1)``, is refused: its groups would differ.
    ============= =======================================================================

    Codes and scales are initializers, called as the weight with ``_quantized``, ``_scale``
    and ``_zero_point`` at the end. Groups, in both formats, are of weights with two axes: those of
    ``Conv`` stay as they are, and so do weights with an axis of length 0. The result lists what
    is quantized.

    Parameters
    ----------
    model : Model
        Is changed in place; `Model.save` writes it.
    scheme : Scheme
        Of "int" or "uint" codes, with a scale for each tensor, channel (output) or group (of
        inputs). Rows are the outputs of a layer, however the file stores its weight.
    names : sequence of str, optional
        Names of weights; by default all with at least two axes that the format takes.
    format : {"qdq", "matmulnbits"}, default "qdq"
    statistics : dict of str to InputStatistics, optional
        Of the weights' inputs, by name, with ``gram=True``; see `input_statistics`. Weights that
        have them are rounded by `compressrs.quantize.gptq`, others to nearest.
    accuracy_level : int, default 0
        Of ``MatMulNBits``: 4 lets onnxruntime compute with 8-bit inputs.

    Returns
    -------
    dict of str to QuantizedTensor
        The codes by name of the weight, with outputs along the first axis.

    Raises
    ------
    TypeError
        If an argument has another type, or a weight is not of floating-point numbers.
    ValueError
        If the format has no such codes or needs a later opset, a name is unknown or of a weight
        that the format does not take, no weight is left that it takes, with the reason for each,
        a weight is also an input of the graph, or is not finite. Nothing is changed then.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> from onnx import parser
    >>> model = cr.onnx.load(parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["": 17]>
    ...     g (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {4, 1, 3, 2}>
    ...     { y = MatMul(x, w) }
    ... '''))
    >>> codes = cr.onnx.quantize(model, cr.quantize.Scheme(bits=8))
    >>> {name: (array.dtype.name, array.shape) for name, array in model.items()}
    {'w_quantized': ('int8', (2, 2)), 'w_scale': ('float32', (2,))}
    """
    require_model(model)
    if not isinstance(scheme, Scheme):
        raise TypeError(f"scheme must be a Scheme, got {type(scheme).__name__}")
    choice(format, "format", tuple(FORMATS))
    accuracy_level = whole(accuracy_level, "accuracy_level", 0, 4)
    if statistics is not None and not isinstance(statistics, Mapping):
        got = type(statistics).__name__
        raise TypeError(f"statistics must be a dict by the weight's name, got {got}")
    form = FORMATS[format](model, scheme, accuracy_level)
    chosen = weights_named(model, names)
    refused = {n: reason for n, known in chosen.items() if (reason := form.refusal(known))}
    if refused and names is not None:
        listed = "; ".join(f"{n} cannot be in {format!r}: {why}" for n, why in refused.items())
        raise ValueError(listed)
    if len(refused) == len(chosen):
        listed = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise ValueError(f"no weight of the model can be in {format!r}: {listed}")
    chosen = {name: known for name, known in chosen.items() if name not in refused}
    for name in statistics or {}:
        if name not in chosen:
            raise ValueError(f"statistics must be of {list(chosen)}, got {name!r}")
    found = {}
    for name, known in chosen.items():
        weight = oriented(model[name], known)
        own = None if statistics is None else statistics.get(name)
        found[name] = form.rounded(weight, own)
    for name, q in found.items():
        form.replace(chosen[name], q)
    model._structure_changed()
    return found


class _Format:
    """A form of weights in few bits, for a scheme."""

    def __init__(self, model: Model, scheme: Scheme, accuracy_level: int) -> None:
        self.model, self.scheme, self.accuracy_level = model, scheme, accuracy_level
        if scheme.dtype not in ("int", "uint"):
            raise ValueError(f"scheme must have codes of dtype int or uint, got {scheme.dtype!r}")
        if scheme.granularity == "block":
            raise ValueError("scheme must not have scales of blocks, which ONNX has not")

    def refusal(self, known: Initializer) -> str | None:
        """Return why a weight cannot be in this form, or None."""
        if 0 in known.shape:
            return f"it has no numbers, with shape {known.shape}"
        if known.is_input:
            return "it is also an input of the graph; model.freeze_inputs() changes that"
        return None

    def rounded(self, weight: Array, statistics: InputStatistics | None) -> QuantizedTensor:
        """Return the codes of a weight with outputs along the first axis."""
        if statistics is None:
            return nearest(weight, self.scheme)
        return gptq(weight, statistics, self.scheme)

    def replace(self, known: Initializer, q: QuantizedTensor) -> None:
        """Put codes in the place of a weight."""
        raise NotImplementedError

    def _remove(self, known: Initializer) -> tuple[Scope, str]:
        """Remove an array; return the graph that it was in, and its name there."""
        scope = self.model._scopes[known.name]
        name = known.name.removeprefix(scope.prefix)
        graph = scope.graph
        for field, named in (
            (graph.initializer, lambda tensor: tensor.name == name),
            (graph.node, lambda node: name in node.output),
        ):
            for i in [i for i, message in enumerate(field) if named(message)]:
                del field[i]
        del self.model._stored[known.name]
        return scope, name


class _Qdq(_Format):
    """``DequantizeLinear``."""

    def __init__(self, model: Model, scheme: Scheme, accuracy_level: int) -> None:
        super().__init__(model, scheme, accuracy_level)
        own = opset(model._proto)
        for what, there, least in (
            ("4 bits", scheme.bits == 4, 21),
            ("groups", scheme.granularity == "group", 21),
            ("scales of channels", scheme.granularity == "channel", 13),
            ("DequantizeLinear", True, 10),
        ):
            if there and own < least:
                raise ValueError(
                    f"scheme must be one of opset {own}, which the model has: {what} need opset "
                    f"{least}. Convert it by onnx.version_converter, or use format='matmulnbits'"
                )

    def refusal(self, known: Initializer) -> str | None:
        if self.scheme.granularity == "group" and len(known.shape) != 2:
            return f"groups are along the inputs of two axes, but it has shape {known.shape}"
        return super().refusal(known)

    def replace(self, known: Initializer, q: QuantizedTensor) -> None:
        scope, name = self._remove(known)
        axis = 1 if known.swapped else 0
        options: dict[str, Any] = {}
        if self.scheme.granularity == "channel":
            options = {"axis": axis}
        elif self.scheme.granularity == "group":
            options = {"axis": 1 - axis, "block_size": self.scheme.group_size}
        inputs = [
            self._codes(scope, f"{name}_quantized", oriented(q.codes, known)),
            self.model._add(f"{name}_scale", self._placed(q.scale, known), scope),
        ]
        if q.zero_point is not None:
            zero = self._placed(q.zero_point, known)
            inputs.append(self._codes(scope, f"{name}_zero_point", zero))
        # Scales are float32, and so is their product with codes; other weights are cast.
        cast = known.dtype != np.float32
        result = f"{name}_dequantized" if cast else name
        if cast:
            to = data_type(known.dtype)
            scope.graph.node.insert(0, helper.make_node("Cast", [result], [name], to=to))
        node = helper.make_node("DequantizeLinear", inputs, [result], **options)
        scope.graph.node.insert(0, node)

    def _codes(self, scope: Scope, name: str, codes: Array) -> str:
        if self.scheme.bits > 4 or opset(self.model._proto) < 21:
            return self.model._add(name, codes, scope)
        kind = TensorProto.INT4 if self.scheme.dtype == "int" else TensorProto.UINT4
        return self.model._add_tensor(name, codes.shape, kind, packed(codes, 4), scope)

    def _placed(self, array: Array, known: Initializer) -> Array:
        """Return scales or zero points in the shape of this granularity."""
        if array.dtype.kind == "f":
            array = array.astype(np.float32)
        if self.scheme.granularity == "tensor":
            return array.reshape(())
        return array.reshape(-1) if self.scheme.granularity == "channel" else oriented(array, known)


class _NBits(_Format):
    """``MatMulNBits``."""

    def __init__(self, model: Model, scheme: Scheme, accuracy_level: int) -> None:
        super().__init__(model, scheme, accuracy_level)
        size = scheme.group_size
        if scheme.bits not in (4, 8) or size not in (16, 32, 64, 128, 256):
            raise ValueError(
                "scheme must have 4 or 8 bits, and groups of 16, 32, 64, 128 or 256, for "
                f"MatMulNBits, got {scheme}"
            )

    def refusal(self, known: Initializer) -> str | None:
        model = self.model
        if len(known.shape) != 2 or known.dtype.name not in ("float32", "float16"):
            return f"it is {known.dtype} of shape {known.shape}"
        scope = model._scopes[known.name]
        name = known.name.removeprefix(scope.prefix)
        if model._index.is_output(scope, name):
            return "it is also an output"
        for use in model._index.uses(scope, name):
            if not self._product(use.node, use.position, known):
                return f"a {use.node.op_type} takes it"
            if self._swapped(use.node) != known.swapped:
                return (
                    f"a {use.node.op_type} takes it in the other orientation than the first "
                    "product, and groups are along the inputs of one"
                )
        return super().refusal(known)

    def _swapped(self, node: Any) -> bool:
        """Whether a product has the inputs along the first axis of its weight."""
        return node.op_type == "MatMul" or not attributes(node).get("transB", 0)

    def _product(self, node: Any, position: int, known: Initializer) -> bool:
        """Whether a node is a product with a weight that the operator can take the place of."""
        if node.domain not in STANDARD or position != 1:
            return False
        return node.op_type == "MatMul" or self._plain(node, known.shape[self._swapped(node)])

    def _plain(self, node: Any, outputs: int) -> bool:
        """Whether a ``Gemm`` is a product with the weight alone, and a bias."""
        given = attributes(node)
        if node.op_type != "Gemm" or given.get("transA", 0):
            return False
        if given.get("alpha", 1.0) != 1 or given.get("beta", 1.0) != 1:
            return False
        bias = self.model._stored.get(node.input[2]) if len(node.input) > 2 else None
        return len(node.input) < 3 or (bias is not None and bias.shape == (outputs,))

    def rounded(self, weight: Array, statistics: InputStatistics | None) -> QuantizedTensor:
        if weight.dtype == np.float32:
            return super().rounded(weight, statistics)
        # Scales are stored in the dtype of the weight, and codes are those for such scales.
        found = nearest(weight, self.scheme)
        least = np.finfo(weight.dtype).smallest_subnormal
        scale = np.maximum(found.scale.astype(weight.dtype), least).astype(np.float32)
        given: dict[str, Any] = {"scale": scale, "zero_point": found.zero_point}
        if statistics is None:
            return nearest(weight, self.scheme, **given)
        return gptq(weight, statistics, self.scheme, **given)

    def replace(self, known: Initializer, q: QuantizedTensor) -> None:
        model, bits, size = self.model, self.scheme.bits, int(str(self.scheme.group_size))
        (outputs, inputs), groups = q.shape, q.scale.shape[1]
        middle = 1 << (bits - 1)
        scope = model._scopes[known.name]
        uses = model._index.uses(scope, known.name.removeprefix(scope.prefix))
        scope, name = self._remove(known)
        signed = self.scheme.dtype == "int"
        codes = np.full((outputs, groups * size), middle, np.uint8)
        codes[:, :inputs] = unsigned(q.codes, middle if signed else 0)
        blob = packed(codes.reshape(outputs * groups, size), bits)
        parts = [
            model._add(
                f"{name}_quantized",
                np.frombuffer(blob, np.uint8).reshape(outputs, groups, -1).copy(),
                scope,
            ),
            model._add(f"{name}_scale", q.scale.astype(known.dtype), scope),
            "",
        ]
        if q.zero_point is not None:
            zero = unsigned(q.zero_point, middle if signed else 0)
            each = -(-groups * bits // 8)
            rows = [np.frombuffer(packed(row, bits), np.uint8) for row in zero]
            parts[2] = model._add(
                f"{name}_zero_point", np.stack(rows).reshape(outputs, each), scope
            )
        options = {"K": inputs, "N": outputs, "bits": bits, "block_size": size}
        if self.accuracy_level:
            options["accuracy_level"] = self.accuracy_level
        for use in uses:
            node = use.node
            bias = ["", node.input[2]] if len(node.input) > 2 else []
            arguments = [node.input[0], *parts, *bias]
            while not arguments[-1]:
                arguments.pop()
            new = helper.make_node(
                "MatMulNBits", arguments, [*node.output], node.name, domain=_MICROSOFT, **options
            )
            node.CopyFrom(new)
        if not any(o.domain == _MICROSOFT for o in model._proto.opset_import):
            model._proto.opset_import.add(domain=_MICROSOFT, version=1)


def unsigned(codes: Array, middle: int) -> npt.NDArray[np.uint8]:
    """Return codes, or zero points, counted from the least one."""
    return (codes.astype(np.int16) + middle).astype(np.uint8)


def packed(codes: Array, bits: int) -> bytes:
    """Return codes in C order, two of 4 bits in a byte, the first in its low half."""
    flat = codes.reshape(-1).view(np.uint8)
    if bits == 8:
        return flat.tobytes()
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    pairs = flat.reshape(-1, 2) & 15
    return bytes((pairs[:, 0] | pairs[:, 1] << 4).astype(np.uint8).tobytes())


#: What can take the place of a weight.
FORMATS: dict[str, type[_Format]] = {"qdq": _Qdq, "matmulnbits": _NBits}

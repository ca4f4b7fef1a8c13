"""Small ONNX models, made node by node."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Any:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


class Builder:
    """A graph that grows by arrays and nodes."""

    def __init__(self, opset: int = 17, ir: int = 8) -> None:
        self.opset, self.ir = opset, ir
        self.arrays: list[Any] = []
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []

    def input(self, name: str, shape: Any, kind: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def array(self, name: str, values: Any) -> str:
        values = np.asarray(values)
        self.arrays.append(numpy_helper.from_array(values, name))
        return name

    def node(self, kind: str, *inputs: str, name: str = "", outputs: int = 1, **given: Any) -> Any:
        names = [f"{kind.lower()}_{len(self.nodes)}{'' if i == 0 else i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, [*inputs], names, name=name, **given))
        return names[0] if outputs == 1 else names

    def model(self, *outputs: str, kind: int = TensorProto.FLOAT, rank: int = 2) -> Any:
        domains = {node.domain for node in self.nodes} - {""}
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(domain, 1) for domain in sorted(domains)]
        made = [helper.make_tensor_value_info(name, kind, [None] * rank) for name in outputs]
        if self.ir < 4:
            # All initializers are inputs, too.
            for tensor in self.arrays:
                self.input(tensor.name, tensor.dims, tensor.data_type)
        graph = helper.make_graph(self.nodes, "graph", self.inputs, made, self.arrays)
        model = helper.make_model(graph, opset_imports=opsets, ir_version=self.ir)
        onnx.checker.check_model(model)
        return model


def mlp(dtype: Any = np.float32, wide: int = 1, **given: Any) -> Any:
    """x [n, 6] -> Gemm transB (16) -> Relu -> MatMul + Add (8) -> Tanh -> Gemm (3)."""
    b = Builder(**given)
    m, n = 16 * wide, 8 * wide
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x = b.input("x", ["n", 6], kind)
    w1, b1 = b.array("w1", normal(m, 6, dtype=dtype)), b.array("b1", normal(m, dtype=dtype))
    h = b.node("Relu", b.node("Gemm", x, w1, b1, transB=1, name="first"))
    w2, b2 = b.array("w2", normal(m, n, dtype=dtype)), b.array("b2", normal(n, dtype=dtype))
    h = b.node("Tanh", b.node("Add", b.node("MatMul", h, w2), b2))
    w3, b3 = b.array("w3", normal(n, 3, dtype=dtype)), b.array("b3", normal(3, dtype=dtype))
    return b.model(b.node("Gemm", h, w3, b3, name="last"), kind=kind)


def norm(b: Builder, x: str, prefix: str, channels: int) -> str:
    """Add a BatchNormalization that is far from the identity."""
    scale, shift = normal(channels, seed=1), normal(channels, seed=2)
    mean, var = normal(channels, seed=3), np.abs(normal(channels, seed=4)) + 0.5
    names = [
        b.array(f"{prefix}_{name}", value)
        for name, value in (("scale", scale), ("shift", shift), ("mean", mean), ("var", var))
    ]
    return str(b.node("BatchNormalization", x, *names))


def cnn(flat: str = "Flatten", **given: Any) -> Any:
    """x [n, 3, 8, 8] -> Conv, BatchNormalization, Clip, depthwise, pool, flat, Gemm, Gemm."""
    b = Builder(**given)
    x = b.input("x", ["n", 3, 8, 8])
    h = b.node("Conv", x, b.array("c1", normal(8, 3, 3, 3)), pads=[1, 1, 1, 1])
    h = norm(b, h, "n1", 8)
    h = b.node("Clip", h, b.array("low", np.float32(0)), b.array("high", np.float32(6)))
    d, db = b.array("d", normal(8, 1, 3, 3)), b.array("db", normal(8))
    h = b.node("Conv", h, d, db, group=8, pads=[1, 1, 1, 1])
    h = b.node("MaxPool", b.node("Relu", h), kernel_shape=[2, 2], strides=[2, 2])
    c2, cb2 = b.array("c2", normal(5, 8, 3, 3)), b.array("cb2", normal(5))
    h = b.node("Relu", b.node("Conv", h, c2, cb2))
    if flat == "Flatten":
        h = b.node("Flatten", h)
    elif flat == "Reshape":
        h = b.node("Reshape", h, b.array("to", np.array([-1, 20])))
    elif flat == "Reshape -1":
        h = b.node("Reshape", h, b.array("to", np.array([0, -1])))
    elif flat == "Shape":
        first = b.node("Gather", b.node("Shape", h), b.array("zero", np.array([0])))
        h = b.node("Reshape", h, b.node("Concat", first, b.array("rest", np.array([-1])), axis=0))
    elif flat == "Unsqueeze":
        axes = b.array("axes", np.array([0]))
        first = b.node("Gather", b.node("Shape", h), b.array("zero", np.int64(0)))
        parts = [b.node("Unsqueeze", x, axes) for x in (first, b.array("rest", np.int64(-1)))]
        h = b.node("Reshape", h, b.node("Concat", *parts, axis=0))
    else:
        h = b.node("Squeeze", b.node("GlobalAveragePool", h), b.array("axes", np.array([2, 3])))
    inputs = 5 if flat == "GlobalAveragePool" else 20
    h = b.node("Gemm", h, b.array("w3", normal(6, inputs)), b.array("b3", normal(6)), transB=1)
    h = b.node("MatMul", b.node("Sigmoid", h), b.array("w4", normal(6, 4)))
    return b.model(h)


def residual() -> Any:
    """Two convolutions whose results are added, and a squeeze-and-excitation product."""
    b = Builder()
    x = b.input("x", ["n", 3, 6, 6])
    h = b.node("Conv", x, b.array("a", normal(6, 3, 1, 1)))
    g = b.node("Conv", b.node("Relu", h), b.array("b", normal(6, 6, 3, 3)), pads=[1, 1, 1, 1])
    h = b.node("Add", h, norm(b, g, "n", 6))
    s = b.node("GlobalAveragePool", h)
    s = b.node("Relu", b.node("Conv", s, b.array("down", normal(2, 6, 1, 1))))
    s = b.node("Sigmoid", b.node("Conv", s, b.array("up", normal(6, 2, 1, 1))))
    h = b.node("Mul", h, s)
    # Swish, node by node.
    h = b.node("Mul", h, b.node("Sigmoid", h))
    h = b.node("ReduceMean", h, axes=[2, 3], keepdims=0)
    return b.model(b.node("MatMul", h, b.array("w", normal(6, 3))))


def branches() -> Any:
    """An If with arrays of its own in both branches, and one of the outer graph."""
    b = Builder()
    x, c = b.input("x", ["n", 4]), b.input("c", [], TensorProto.BOOL)
    outer = b.array("outer", normal(4, 5))
    h = b.node("Relu", b.node("MatMul", x, outer))
    inner = []
    for seed in (1, 2):
        w = numpy_helper.from_array(normal(5, 2, seed=seed), "w")
        info = helper.make_tensor_value_info(f"out{seed}", TensorProto.FLOAT, [None, 2])
        nodes = [helper.make_node("MatMul", [h, "w"], [f"out{seed}"])]
        inner.append(helper.make_graph(nodes, f"branch{seed}", [], [info], [w]))
    out = b.node("If", c, name="choice", then_branch=inner[0], else_branch=inner[1])
    return b.model(out)


def run(model: Any, *inputs: Any, fused: bool = True) -> Any:
    """Return the outputs of a model in onnxruntime, not through compressrs.

    Fused, products with quantized weights may have inputs of 8 bits.
    """
    import onnxruntime

    source = model if isinstance(model, bytes) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not fused:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))[0]

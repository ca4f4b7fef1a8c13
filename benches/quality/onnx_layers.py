"""Dense layers by onnxruntime, quantized by its own quantizers, to compare with ours.

pip install onnx onnxruntime
"""

import logging
import tempfile
from pathlib import Path

import numpy as np


def available():
    """Return whether the packages are installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError:
        return False
    return True


class Layer:
    """A dense layer whose product onnxruntime computes."""

    def __init__(self, layer, quantize):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        model = quantize(_graph(layer))
        self.nbytes = _weight_bytes(model)
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options)

    def forward(self, x):
        return self.session.run(None, {"x": x})[0]


def dynamic(per_channel):
    """Return onnxruntime's dynamic quantizer: weights in int8, inputs in uint8 by their range."""

    def quantize(model):
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with tempfile.TemporaryDirectory() as folder:
            source, to = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            onnx.save(model, source)
            logging.disable(logging.WARNING)
            try:
                quantize_dynamic(source, to, per_channel=per_channel, weight_type=QuantType.QInt8)
            finally:
                logging.disable(logging.NOTSET)
            return onnx.load(to)

    return quantize


def blockwise(model):
    """Quantize weights to 4 bits in blocks of 32, to the nearest, symmetric."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.disable(logging.WARNING)
    try:
        quantizer = MatMulNBitsQuantizer(model, bits=4, block_size=32, is_symmetric=True)
        quantizer.process()
    finally:
        logging.disable(logging.NOTSET)
    return quantizer.model.model


def _graph(layer):
    """Return a model of one product."""
    from onnx import TensorProto, checker, helper, numpy_helper

    outputs, inputs = layer.weight.shape
    constants = [
        numpy_helper.from_array(np.ascontiguousarray(layer.weight.T), "w"),
        numpy_helper.from_array(layer.bias, "b"),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size])
        for name, size in (("x", inputs), ("y", outputs))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"], "product"),
        helper.make_node("Add", ["xw", "b"], ["y"], "bias"),
    ]
    graph = helper.make_graph(nodes, "dense", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    checker.check_model(model)
    return model


def _weight_bytes(model):
    """Return the bytes of all constants but the bias."""
    return sum(len(t.raw_data) for t in model.graph.initializer if t.name != "b")

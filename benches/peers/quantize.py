"""Products with quantized weights, against NumPy in float32 and onnxruntime's kernels.

onnxruntime chooses its instruction set itself and uses VNNI where the machine has it,
whatever ``COMPRESSRS_SIMD`` says; NumPy's OpenBLAS is held to AVX2 by
``OPENBLAS_CORETYPE=Haswell``. Give all the same threads: ``COMPRESSRS_NUM_THREADS`` and
``OPENBLAS_NUM_THREADS``.
"""

import importlib.util
import itertools
from collections import defaultdict

import numpy as np

import compressrs as cr
from benches.peers.measure import Work, medians, moved, record

#: Outputs and inputs.
SHAPES = ((384, 384), (1536, 384), (384, 1536), (768, 3072), (4096, 4096), (11008, 4096))
#: The shape in the roofline picture.
DRAWN = (4096, 4096)
ROWS = (1, 8, 32, 128, 512)
GROUP = 128
ROUNDS = 3

OURS = {
    "int8": "onnxruntime int8",
    "int4": "onnxruntime int4",
    "int8 weights": "NumPy",
    "int4 weights": "NumPy",
}


def _session(nodes, initializers, inputs, outputs):
    """Return a function of x that runs a graph in onnxruntime with our number of threads."""
    import onnx
    import onnxruntime

    graph = onnx.helper.make_graph(
        nodes,
        "product",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, inputs])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, outputs])],
        [onnx.numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cr.get_num_threads()
    # Idle threads that spin would slow down whoever is measured next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda x: session.run(None, {"x": x})[0]


def _onnxruntime_int8(codes, scale):
    from onnx import helper

    node = helper.make_node(
        "DynamicQuantizeMatMul", ["x", "b", "scale", "zero"], ["y"], domain="com.microsoft"
    )
    arrays = {
        "b": np.ascontiguousarray(codes.T),
        "scale": scale[:, 0],
        "zero": np.zeros(len(codes), np.int8),
    }
    return _session([node], arrays, codes.shape[1], len(codes))


def _onnxruntime_int4(codes, scale):
    from onnx import helper

    outputs, inputs = codes.shape
    node = helper.make_node(
        "MatMulNBits",
        ["x", "b", "scales"],
        ["y"],
        domain="com.microsoft",
        K=inputs,
        N=outputs,
        bits=4,
        block_size=GROUP,
        accuracy_level=4,
    )
    unsigned = (codes + 8).astype(np.uint8).reshape(outputs, -1, GROUP)
    arrays = {"b": unsigned[..., ::2] | unsigned[..., 1::2] << 4, "scales": scale}
    return _session([node], arrays, inputs, outputs)


def _contenders(w):
    """Yield the name and the function of x of each contender."""
    yield "NumPy", lambda x: x @ w.T
    scale8 = (abs(w).max(axis=1, keepdims=True) / 127).astype(np.float32)
    codes8 = np.rint(w / scale8).astype(np.int8)
    groups = w.reshape(len(w), -1, GROUP)
    scale4 = (abs(groups).max(axis=2) / 7).astype(np.float32)
    codes4 = np.rint(groups / scale4[..., None]).astype(np.int8).reshape(w.shape)
    int8 = cr.quantize.QuantizedMatrix.from_codes(codes8, scale8)
    int4 = cr.quantize.QuantizedMatrix.from_codes(codes4, scale4, bits=4, group_size=GROUP)
    yield "int8", lambda x: int8.linear(x, input="int8")
    yield "int4", lambda x: int4.linear(x, input="int8")
    yield "int8 weights", int8.linear
    yield "int4 weights", int4.linear
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx"):
        yield "onnxruntime int8", _onnxruntime_int8(codes8, scale8)
        yield "onnxruntime int4", _onnxruntime_int4(codes4, scale4)


def _keep(name, shape, rows, times):
    """Keep the times of one of our products and of what it is compared with."""
    outputs, inputs = shape
    peers = [peer for peer in dict.fromkeys(("NumPy", OURS[name])) if peer in times]
    bits, of_codes = int(name[3]), "weights" not in name
    label = f"{name}, {rows} row{'s' * (rows > 1)}"
    record(
        f"{name}, {outputs} x {inputs}, {rows} row{'s' * (rows > 1)}",
        {"compressrs": times[name]} | {peer: times[peer] for peer in peers},
        (
            Work("dot_products" if of_codes else "multiply_adds", rows * outputs * inputs),
            moved(outputs * inputs * bits / 8 + 4 * rows * (inputs + outputs)),
        ),
        dot=label if shape == DRAWN and rows in (1, 512)[: 1 + of_codes] else None,
        case={"kernel": name, "shape": shape, "rows": rows},
    )


def products(shapes=SHAPES):
    """Compare all shapes and numbers of rows: speed relative to NumPy's float32 product."""
    rng = np.random.default_rng(0)
    cells = defaultdict(dict)
    print("\nQuantized products: how many times as fast as NumPy in float32")
    for shape in shapes:
        w = (rng.standard_normal(shape) / 30).astype(np.float32)
        functions = dict(_contenders(w))
        for rows in ROWS:
            x = rng.standard_normal((rows, shape[1])).astype(np.float32)
            truth = x @ w.T
            for name, function in functions.items():
                error = np.linalg.norm(function(x) - truth) / np.linalg.norm(truth)
                assert error < (0.03 if "int8" in name else 0.2), (name, error)
            times = medians(
                {name: lambda f=f: f(x) for name, f in functions.items()}, rounds=ROUNDS
            )
            for name in OURS:
                _keep(name, shape, rows, times)
            base = times.pop("NumPy")
            line = ", ".join(f"{name} {base / t:5.2f}" for name, t in times.items())
            print(
                f"  {shape[0]:5} x {shape[1]:4} {rows:4} rows {base * 1e6:9.1f} us: {line}",
                flush=True,
            )
            for name, time in times.items():
                cells[name][shape, rows] = base / time
    for name, ratios in cells.items():
        mean, least = np.exp(np.mean(np.log([*ratios.values()]))), min(ratios.values())
        print(f"  {name:18} geometric mean {mean:5.2f}, least {least:5.2f}")
    for ours, theirs in itertools.islice(OURS.items(), 2):
        if theirs in cells:
            ratios = [cells[ours][cell] / cells[theirs][cell] for cell in cells[ours]]
            mean = np.exp(np.mean(np.log(ratios)))
            print(f"  {ours} over {theirs}: geometric mean {mean:.2f}, least {min(ratios):.2f}")

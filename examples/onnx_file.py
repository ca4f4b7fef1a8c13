"""Shrink and quantize an ONNX file, and compare the files in onnxruntime."""

import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

import compressrs as cr


def exported(mlp):
    """Return a perceptron as an ONNX model, as exporters write it."""
    arrays, nodes, value = [], [], "x"
    for i, (w, b) in enumerate(zip(mlp.coefs_, mlp.intercepts_, strict=True)):
        arrays.append(numpy_helper.from_array(w.astype(np.float32), f"w{i}"))
        arrays.append(numpy_helper.from_array(b.astype(np.float32), f"b{i}"))
        last = i == len(mlp.coefs_) - 1
        made = "y" if last else f"h{i}"
        nodes.append(helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], [made]))
        if not last:
            nodes.append(helper.make_node("Relu", [made], [f"r{i}"]))
        value = f"r{i}"
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])
        for name, width in (("x", mlp.n_features_in_), ("y", mlp.n_outputs_))
    )
    graph = helper.make_graph(nodes, "perceptron", [x], [y], arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main():
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        (x / 16).astype(np.float32), y, random_state=0
    )
    mlp = MLPClassifier((256, 64), random_state=0, max_iter=20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        mlp.fit(x_train, y_train)

    def accuracy(path):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"x": x_test})
        return float(np.mean(logits.argmax(1) == y_test))

    with tempfile.TemporaryDirectory() as folder:
        whole, zeros, small, codes = (
            Path(folder) / f"{name}.onnx" for name in ("whole", "zeros", "small", "codes")
        )
        onnx.save(exported(mlp), whole)

        # Zeros, chosen by weights and inputs of each output.
        model = cr.onnx.load(whole)
        statistics = cr.onnx.input_statistics(model, x_train)
        score = cr.prune.Wanda([*statistics.values()])
        cr.onnx.prune(model, 0.4, [*statistics], score=score, scope="row")
        model.save(zeros)

        # Fewer neurons: those whose outputs are the weakest on training data go.
        model = cr.onnx.load(whole)
        statistics = cr.onnx.input_statistics(model, x_train)
        used = statistics["w1"].norms * np.linalg.norm(model["w1"], axis=1)
        cr.onnx.shrink(model, {"w0": used > np.quantile(used, 0.2)})
        model.save(small)

        # Eight bits for each weight.
        cr.onnx.quantize(model, cr.quantize.Scheme(bits=8))
        model.save(codes)

        found = {p.stem: (accuracy(p), p.stat().st_size) for p in (whole, zeros, small, codes)}
        for path in (whole, zeros, small, codes):
            onnx.checker.check_model(path, full_check=True)
    for name, (right, size) in found.items():
        print(f"{name:6} accuracy {right:.3f}, {size:7,} bytes")
    assert found["zeros"][0] > found["whole"][0] - 0.03
    assert found["codes"][0] > found["whole"][0] - 0.03
    assert found["codes"][1] < 0.25 * found["whole"][1]
    return found


if __name__ == "__main__":
    main()

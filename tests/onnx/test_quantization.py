"""Weights in few bits: onnxruntime computes with what the codes represent."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from compressrs import onnx as conn  # noqa: E402
from compressrs.quantize import Scheme, gptq  # noqa: E402
from compressrs.quantize import quantize as nearest  # noqa: E402
from tests.onnx.models import Builder, branches, cnn, mlp, normal, run  # noqa: E402

X = normal(9, 6)

SCHEMES = {
    "int8 tensor": Scheme(bits=8, granularity="tensor"),
    "int8": Scheme(bits=8),
    "uint8": Scheme(bits=8, dtype="uint", symmetric=False),
    "int8 asymmetric": Scheme(bits=8, symmetric=False),
    "int5": Scheme(bits=5),
    "int4": Scheme(bits=4),
    "uint4": Scheme(bits=4, dtype="uint", symmetric=False),
    "int8 groups": Scheme(bits=8, granularity="group", group_size=4),
    "uint4 groups": Scheme(
        bits=4, dtype="uint", symmetric=False, granularity="group", group_size=16
    ),
}


def replaced(proto, codes):
    """Return the model with what the codes represent in place of the weights."""
    model = conn.load(proto)
    known = model.initializers
    for name, q in codes.items():
        w = q.dequantize()
        model[name][...] = np.swapaxes(w, 0, 1) if known[name].swapped else w
    return model.proto()


def checked(model):
    made = model.proto()
    onnx.checker.check_model(made, full_check=True)
    return made


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_qdq(scheme, dtype):
    proto = mlp(dtype, opset=21, ir=10)
    model = conn.load(proto)
    codes = conn.quantize(model, SCHEMES[scheme])
    assert [*codes] == ["w1", "w2", "w3"]
    made = checked(model)
    assert [o.version for o in made.opset_import] == [21]
    for name, q in codes.items():
        w = conn.load(proto)[name]
        expected = nearest(np.ascontiguousarray(w if name == "w1" else w.T), SCHEMES[scheme])
        np.testing.assert_array_equal(q.codes, expected.codes)
    expected = run(replaced(proto, codes), X.astype(dtype))
    x = X.astype(dtype)
    reference = ReferenceEvaluator(made).run(None, {"x": x})[0]
    for found in (run(made, x, fused=False), reference):
        tolerance = 0.02 if dtype == np.float16 else 1e-5
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    assert np.abs(run(made, x) - expected).max() <= 0.06 * np.abs(expected).max()


@pytest.mark.parametrize("make", [cnn, branches])
def test_convolutions_and_inner_graphs(make):
    proto = make()
    model = conn.load(proto)
    codes = conn.quantize(model, Scheme(bits=8))
    made = checked(model)
    inputs = [normal(2, 3, 8, 8)] if make is cnn else [normal(3, 4), np.array(False)]
    expected = run(replaced(proto, codes), *inputs)
    np.testing.assert_allclose(run(made, *inputs, fused=False), expected, rtol=1e-5, atol=1e-5)
    assert len(made.SerializeToString()) < len(proto.SerializeToString()) or make is branches


def test_constants_and_shared_weights():
    b = Builder()
    x, w = b.input("x", ["n", 6]), b.node("Constant", value=numpy_helper.from_array(normal(6, 6)))
    h = b.node("Gemm", b.node("MatMul", x, w), w, transB=1)
    proto = b.model(h)
    model = conn.load(proto)
    codes = conn.quantize(model, Scheme(bits=8))
    assert sorted(model) == [f"{w}_quantized", f"{w}_scale"]
    np.testing.assert_allclose(
        run(checked(model), X, fused=False), run(replaced(proto, codes), X), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("accuracy_level", [0, 4])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["int", "int asymmetric", "uint"])
@pytest.mark.parametrize(("inputs", "group"), [(64, 32), (50, 16), (33, 32), (128, 128)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_matmulnbits(kind, bits, inputs, group, dtype, accuracy_level):
    b = Builder()
    x = b.input("x", ["n", inputs], onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    h = b.node("Relu", b.node("MatMul", x, b.array("a", normal(inputs, 40, dtype=dtype))))
    w, c = b.array("b", normal(24, 40, dtype=dtype)), b.array("c", normal(24, dtype=dtype))
    h = b.node("Gemm", h, w, c, transB=1)
    h = b.node("Gemm", h, b.array("d", normal(24, 16, dtype=dtype)))
    proto = b.model(h, kind=b.inputs[0].type.tensor_type.elem_type)
    model = conn.load(proto)
    scheme = Scheme(
        bits=bits, granularity="group", group_size=group,
        dtype=kind.split()[0], symmetric=kind == "int",
    )  # fmt: skip
    codes = conn.quantize(model, scheme, format="matmulnbits", accuracy_level=accuracy_level)
    assert [*codes] == ["a", "b", "d"]
    made = checked(model)
    assert {o.domain: o.version for o in made.opset_import} == {"": 17, "com.microsoft": 1}
    assert [n.op_type for n in made.graph.node] == ["MatMulNBits", "Relu", *["MatMulNBits"] * 2]
    rows = normal(5, inputs, dtype=dtype)
    expected = run(replaced(proto, codes), rows).astype(np.float32)
    tolerance = 1e-4 if dtype == np.float32 and not accuracy_level else 0.03
    error = np.abs(run(made, rows).astype(np.float32) - expected).max()
    assert error <= tolerance * np.abs(expected).max()


def test_gptq_with_statistics():
    proto = mlp(opset=21, ir=10)
    model = conn.load(proto)
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(200, 3)) @ rng.normal(size=(3, 6)) + 0.1).astype(np.float32)
    statistics = conn.input_statistics(model, x, ["w2"], gram=True)
    scheme = Scheme(bits=4)
    w2 = np.ascontiguousarray(model["w2"].T)
    expected = gptq(w2, statistics["w2"], scheme)
    codes = conn.quantize(model, scheme, ["w1", "w2"], statistics=statistics)
    np.testing.assert_array_equal(codes["w2"].codes, expected.codes)
    np.testing.assert_array_equal(codes["w1"].codes, nearest(normal(16, 6), scheme).codes)
    np.testing.assert_allclose(
        run(checked(model), x, fused=False), run(replaced(proto, codes), x), rtol=1e-5, atol=1e-5
    )


def test_names_that_are_taken():
    b = Builder()
    h = b.node("MatMul", b.input("x", ["n", 6]), b.array("w", normal(6, 6)))
    h = b.node("Add", h, b.array("w_scale", normal(6)))
    proto = b.model(h)
    model = conn.load(proto)
    codes = conn.quantize(model, Scheme(bits=8))
    assert sorted(model) == ["w_quantized", "w_scale", "w_scale_1"]
    np.testing.assert_allclose(
        run(checked(model), X, fused=False), run(replaced(proto, codes), X), rtol=1e-5, atol=1e-5
    )


def test_files_are_smaller(tmp_path):
    b = Builder(opset=21, ir=10)
    h = b.node("MatMul", b.input("x", ["n", 256]), b.array("w", normal(256, 256)))
    model = conn.load(b.model(h))
    model.save(tmp_path / "a.onnx")
    scheme = Scheme(bits=4, granularity="group", group_size=64)
    conn.quantize(model, scheme)
    for external in (False, True):
        model.save(tmp_path / "b.onnx", external_data=external)
        size = sum(p.stat().st_size for p in tmp_path.glob("b.onnx*"))
        assert (tmp_path / "a.onnx").stat().st_size > 6.5 * (size - 4096 * external)
        assert np.isfinite(conn.Runner(conn.load(tmp_path / "b.onnx"))(normal(3, 256))).all()


@pytest.mark.parametrize(
    ("opset", "given", "match"),
    [
        (17, {"scheme": Scheme(bits=4)}, "4 bits need opset 21"),
        (20, {"scheme": Scheme(granularity="group", group_size=16)}, "groups need opset 21"),
        (12, {"scheme": Scheme()}, "scales of channels need opset 13"),
        (9, {"scheme": Scheme(granularity="tensor")}, "DequantizeLinear need opset 10"),
        (17, {"scheme": Scheme(dtype="nf4")}, "codes of dtype int or uint, got 'nf4'"),
        (17, {"scheme": Scheme(granularity="block", group_size=4)}, "scales of blocks"),
        (17, {"scheme": Scheme(), "names": ["w9"]}, "got 'w9'"),
        (17, {"scheme": Scheme(), "format": "gguf"}, "format must be one of"),
        (17, {"scheme": Scheme(), "format": "matmulnbits"}, "4 or 8 bits, and groups of 16"),
        (17, {"scheme": Scheme(), "accuracy_level": 7}, "accuracy_level must be at most 4"),
        (17, {"scheme": Scheme(), "statistics": {"w9": None}}, "statistics must be of"),
    ],
)
def test_refused(opset, given, match):
    model = conn.load(mlp(opset=opset))
    before = model.proto().SerializeToString()
    with pytest.raises(ValueError, match=match):
        conn.quantize(model, **given)
    assert model.proto().SerializeToString() == before


def test_refused_weights():
    groups = Scheme(granularity="group", group_size=16)
    model = conn.load(cnn(opset=21, ir=10))
    before = model.proto().SerializeToString()
    with pytest.raises(ValueError, match="c1 cannot be in 'qdq': groups are along the inputs"):
        conn.quantize(model, groups, ["c1"])
    with pytest.raises(ValueError, match="c1 cannot be in 'matmulnbits': it is float32 of shape"):
        conn.quantize(model, groups, ["c1"], format="matmulnbits")
    assert [*conn.quantize(conn.load(cnn()), groups, format="matmulnbits")] == ["w3", "w4"]
    model["w3"][0, 0] = np.inf
    with pytest.raises(ValueError, match="must be finite"):
        conn.quantize(model, Scheme(bits=8))
    model["w3"][0, 0] = normal(6, 20)[0, 0]
    assert model.proto().SerializeToString() == before
    inputs = conn.load(mlp(ir=3))
    with pytest.raises(ValueError, match="w1 cannot be in 'qdq': it is also an input"):
        conn.quantize(inputs, Scheme(bits=8), ["w1"])
    inputs.freeze_inputs()
    codes = conn.quantize(inputs, Scheme(bits=8), ["w1"])
    expected = run(replaced(mlp(), codes), X)
    np.testing.assert_allclose(run(checked(inputs), X, fused=False), expected, rtol=1e-5, atol=1e-5)
    for wrong in ({"scheme": 8}, {"scheme": Scheme(), "statistics": []}):
        with pytest.raises(TypeError, match="must be a"):
            conn.quantize(conn.load(mlp()), **wrong)


def test_products_that_matmulnbits_does_not_replace():
    b = Builder()
    x = b.input("x", ["n", 16])
    w = b.array("w", normal(16, 16))
    h = b.node("Gemm", x, w, b.array("c", normal(16)), alpha=2.0)
    v = b.array("v", normal(16, 16))
    h = b.node("Add", b.node("MatMul", h, v), v)
    model = conn.load(b.model(h))
    scheme = Scheme(bits=4, granularity="group", group_size=16)
    with pytest.raises(ValueError, match="no weight of the model can be in 'matmulnbits'"):
        conn.quantize(model, scheme, format="matmulnbits")
    with pytest.raises(ValueError, match="w cannot be in 'matmulnbits': a Gemm takes it"):
        conn.quantize(model, scheme, ["w"], format="matmulnbits")
    with pytest.raises(ValueError, match="v cannot be in 'matmulnbits': a Add takes it"):
        conn.quantize(model, scheme, ["v"], format="matmulnbits")


@pytest.mark.parametrize("first", ["MatMul", "Gemm"])
@pytest.mark.parametrize("shape", [(16, 16), (32, 16)])
def test_matmulnbits_of_weights_in_two_orientations(first, shape):
    b = Builder()
    w = b.array("w", normal(*shape))
    x, z = b.input("x", ["n", shape[0]]), b.input("z", ["n", shape[1]])
    if first == "MatMul":
        outputs = [b.node("MatMul", x, w), b.node("Gemm", z, w, transB=1)]
    else:
        outputs = [b.node("Gemm", z, w, transB=1), b.node("MatMul", x, w)]
    model = conn.load(b.model(*outputs))
    before = model.proto().SerializeToString()
    scheme = Scheme(bits=4, granularity="group", group_size=16)
    for names in (None, ["w"]):
        with pytest.raises(ValueError, match="takes it in the other orientation"):
            conn.quantize(model, scheme, names, format="matmulnbits")
    assert model.proto().SerializeToString() == before


@pytest.mark.parametrize("transposed", [False, True])
def test_matmulnbits_of_shared_weights(transposed):
    b = Builder()
    x, w = b.input("x", ["n", 16]), b.array("w", normal(16, 16))
    if transposed:
        h = b.node("Gemm", b.node("Gemm", x, w, b.array("c", normal(16)), transB=1), w, transB=1)
    else:
        h = b.node("Gemm", b.node("MatMul", x, w), w)
    proto = b.model(h)
    model = conn.load(proto)
    scheme = Scheme(bits=4, granularity="group", group_size=16)
    codes = conn.quantize(model, scheme, format="matmulnbits")
    rows = normal(5, 16)
    np.testing.assert_allclose(
        run(checked(model), rows), run(replaced(proto, codes), rows), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("format", ["qdq", "matmulnbits"])
def test_empty_weights_stay(format):
    b = Builder(opset=21, ir=10)
    x = b.input("x", ["n", 16])
    h = b.node("MatMul", x, b.array("w", normal(16, 16)))
    empty = b.node("MatMul", x, b.array("e", np.zeros((16, 0), np.float32)))
    model = conn.load(b.model(b.node("Concat", h, empty, axis=1)))
    scheme = Scheme(bits=4, granularity="group", group_size=16)
    with pytest.raises(ValueError, match=r"e cannot be in .*: it has no numbers"):
        conn.quantize(model, scheme, ["w", "e"], format=format)
    assert [*conn.quantize(model, scheme, format=format)] == ["w"]
    assert model["e"].shape == (16, 0) and model["e"].dtype == np.float32
    checked(model)
    with pytest.raises(ValueError, match=r"can be in .*: e: it has no numbers, with shape \(16, 0"):
        conn.quantize(model, scheme, format=format)


@pytest.mark.parametrize("dtype", ["int", "uint"])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("opset", [17, 21])
def test_types_of_codes_in_the_file(opset, bits, dtype):
    proto = mlp(opset=opset, ir=10)
    model = conn.load(proto)
    scheme = Scheme(bits=bits, dtype=dtype, symmetric=dtype == "int")
    if bits == 4 and opset < 21:
        with pytest.raises(ValueError, match="4 bits need opset 21"):
            conn.quantize(model, scheme)
        return
    codes = conn.quantize(model, scheme)
    made = checked(model)
    kinds = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in made.graph.initializer}
    expected = f"{dtype}{4 if bits <= 4 and opset >= 21 else 8}".upper()
    assert {kinds[f"{name}_quantized"] for name in codes} == {expected}
    assert {kinds.get(f"{name}_zero_point", expected) for name in codes} == {expected}
    np.testing.assert_allclose(
        run(made, X, fused=False), run(replaced(proto, codes), X), rtol=1e-5, atol=1e-5
    )


def test_weights_that_stay_are_named():
    groups = Scheme(bits=4, granularity="group", group_size=16)
    with pytest.raises(ValueError, match=r"c1 cannot be in 'qdq': groups .*; c2 cannot be in"):
        conn.quantize(conn.load(cnn(opset=21, ir=10)), groups, ["c1", "c2"])
    b = Builder(opset=21, ir=10)
    h = b.node("Conv", b.input("x", ["n", 3, 4, 4]), b.array("c", normal(2, 3, 1, 1)))
    with pytest.raises(ValueError, match="no weight of the model can be in 'qdq': c: groups are"):
        conn.quantize(conn.load(b.model(h, rank=4)), groups)


@pytest.mark.parametrize("format", ["qdq", "matmulnbits"])
def test_quantized_models_have_no_weights_left(format):
    model = conn.load(mlp(wide=4, opset=21, ir=10))
    scheme = Scheme(bits=4, granularity="group", group_size=16)
    conn.quantize(model, scheme, format=format)
    before = model.proto().SerializeToString()
    kind = "DequantizeLinear" if format == "qdq" else "MatMulNBits"
    with pytest.raises(
        ValueError, match=f"got none: its weights are quantized already, for {kind}"
    ):
        conn.quantize(model, scheme, format=format)
    assert model.proto().SerializeToString() == before

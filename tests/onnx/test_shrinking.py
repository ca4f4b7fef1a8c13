"""Removal of neurons and filters from graphs: the outputs are those of masked arrays."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import compressrs as cr  # noqa: E402
from compressrs import onnx as conn  # noqa: E402
from tests.onnx.models import (  # noqa: E402
    Builder,
    branches,
    cnn,
    mlp,
    norm,
    normal,
    residual,
    run,
)

X = {"mlp": normal(7, 6), "cnn": normal(4, 3, 8, 8), "residual": normal(4, 3, 6, 6)}


def masked(proto, group, keep):
    """Return the model with the arrays that produce units set to 0 for those not kept.

    They are those of the group but the inputs of the next layers, which are found by what the
    removed units are multiplied by.
    """
    model = conn.load(proto)
    known = model.initializers
    for name, axis, each in group.members:
        role, swapped = known[name].role, known[name].swapped
        depthwise = role == "weight" and known[name].shape[1] == 1 and axis == 0
        inputs = 0 if swapped else 1
        if role == "weight" and axis == inputs and not depthwise:
            continue
        shape = [1] * len(known[name].shape)
        shape[axis] = -1
        model[name][...] *= np.repeat(keep, each).reshape(shape)
    return model.proto()


def check(proto, x, expected, rtol=1e-5):
    """Remove units of each group alone, then of all groups, and compare with masks."""
    model = conn.load(proto)
    groups = conn.groups(model)
    assert [group.name for group in groups] == expected
    rng = np.random.default_rng(0)
    keeps = {}
    for group in groups:
        keep = rng.random(group.size) > 0.5
        keep[0] = True
        keep[-1] = False
        keeps[group.name] = keep
    for chosen in [[group] for group in groups] + [groups]:
        reference = proto
        for group in chosen:
            reference = masked(reference, group, keeps[group.name])
        small = conn.load(proto)
        conn.shrink(small, {group.name: keeps[group.name] for group in chosen})
        made = small.proto()
        onnx.checker.check_model(made, full_check=True)
        y = run(reference, x)
        np.testing.assert_allclose(run(made, x), y, rtol=rtol, atol=rtol * np.abs(y).max())
        for group in chosen:
            for name, axis, each in group.members:
                now = small[name].shape[axis]
                assert now == each * keeps[group.name].sum(), name
    return model


def test_perceptron():
    check(mlp(), X["mlp"], ["w1", "w2"])


@pytest.mark.parametrize(
    "flat", ["Flatten", "Reshape", "Reshape -1", "Shape", "Unsqueeze", "GlobalAveragePool"]
)
def test_convolutions(flat):
    model = check(cnn(flat), X["cnn"], ["c1", "c2"])
    c1, c2 = conn.groups(model)
    assert {m.array for m in c1.members} == {
        "c1", "n1_scale", "n1_shift", "n1_mean", "n1_var", "d", "db", "c2",
    }  # fmt: skip
    assert {(m.array, m.each) for m in c2.members} == {
        ("c2", 1), ("cb2", 1), ("w3", 1 if flat == "GlobalAveragePool" else 4),
    }  # fmt: skip


def test_sums_and_products_of_values_go_together():
    model = check(residual(), X["residual"], ["a", "down"])
    assert conn.groups(model)[0].makers == ("a", "b", "up")


def test_units_behind_an_operator_that_does_not_keep_zeros_stay():
    """A sigmoid of 0 is not 0, and the next layer adds it."""
    model = conn.load(cnn())
    with pytest.raises(ValueError, match=r"w3 makes units that cannot be removed: .*keep 0"):
        conn.shrink(model, {"w3": np.array([True, False] * 3)})


def test_gelu_node_by_node():
    b = Builder()
    h = b.node("MatMul", b.input("x", ["n", 6]), b.array("w1", normal(6, 8)))
    h = b.node("Add", b.array("b1", normal(8)), h)
    e = b.node("Erf", b.node("Div", h, b.array("root", np.float32(2**0.5))))
    e = b.node("Mul", h, b.node("Add", e, b.array("one", np.float32(1))))
    h = b.node("Mul", e, b.array("half", np.float32(0.5)))
    model = b.model(b.node("MatMul", h, b.array("w2", normal(8, 3))))
    check(model, X["mlp"], ["w1"])


def test_shared_weights_are_cut_once():
    b = Builder()
    w, x = b.array("w", normal(6, 6)), b.input("x", ["n", 6])
    out = b.array("out", normal(6, 3))
    v = b.array("v", normal(6, 6))
    h = b.node("Relu", b.node("MatMul", b.node("Relu", b.node("MatMul", x, v)), w))
    g = b.node("Relu", b.node("MatMul", b.node("Abs", b.node("MatMul", x, v)), w))
    model = b.model(b.node("MatMul", b.node("Add", h, g), out))
    check(model, X["mlp"], ["w", "v"])


def test_arrays_under_other_names():
    """As exporters write weights that are equal, and those they do not fold."""
    b = Builder()
    x, first = b.input("x", ["n", 6]), b.array("first", normal(8, 6))
    h = b.node("MatMul", x, b.node("Transpose", first, perm=[1, 0]))
    zeros = b.array("zeros", np.zeros(8, np.float32))
    ones = b.array("ones", np.abs(normal(8)) + 1)
    h = b.node("BatchNormalization", h, ones, zeros, b.node("Identity", zeros), ones)
    h = b.node("Relu", h)
    last = b.node("Transpose", b.node("Identity", b.array("last", normal(3, 8))))
    check(b.model(b.node("MatMul", h, last)), X["mlp"], ["first"])


def test_other_names_of_arrays_may_be_outputs():
    b = Builder()
    h = b.node("MatMul", b.input("x", ["n", 6]), b.array("w", normal(6, 8)))
    out = b.node("MatMul", h, b.array("v", normal(8, 3)))
    model = conn.load(b.model(out, b.node("Identity", "w")))
    with pytest.raises(ValueError, match="w is also an output of the model"):
        conn.shrink(model, {"w": np.arange(8) > 3})


def test_a_weight_that_feeds_itself_is_cut_along_both_axes():
    b = Builder()
    x, first = b.input("x", ["n", 6]), b.array("first", normal(6, 4))
    w = b.array("w", normal(4, 4))
    h = b.node("Relu", b.node("MatMul", x, first))
    h = b.node("Add", h, b.node("Relu", b.node("MatMul", h, w)))
    model = b.model(b.node("MatMul", h, b.array("out", normal(4, 2))))
    check(model, X["mlp"], ["first"])


def test_a_shared_weight_that_reads_inputs_of_the_graph_stays():
    b = Builder()
    x, w = b.input("x", ["n", 6]), b.array("w", normal(6, 6))
    h = b.node("Relu", b.node("MatMul", x, w))
    refused(b.model(b.node("MatMul", h, w)), "w")


def test_a_shared_weight_that_other_layers_need_whole_stays():
    """Under other names, after units that are fixed, in convolutions, or for rows of a value."""
    b = Builder()
    x, w = b.input("x", ["n", 6]), b.array("w", normal(6, 6))
    h = b.node("Relu", b.node("MatMul", x, b.node("Transpose", w)))
    refused(b.model(b.node("Gemm", h, b.node("Identity", w), transB=1)), "w")
    b = Builder()
    x, w, v = b.input("x", ["n", 6]), b.array("w", normal(6, 6)), b.array("v", normal(6, 6))
    h = b.node("Softmax", b.node("MatMul", x, v))
    h = b.node("Relu", b.node("MatMul", h, w))
    refused(b.model(b.node("MatMul", h, w)), "w")
    b = Builder()
    x, w = b.input("x", ["n", 4, 5, 5]), b.array("w", normal(4, 4, 1, 1))
    refused(b.model(b.node("Conv", b.node("Relu", b.node("Conv", x, w)), w), rank=4), "w")
    b = Builder()
    x, w, v = b.input("x", [6, 6]), b.array("w", normal(6, 6)), b.array("v", normal(6, 6))
    h = b.node("MatMul", b.node("MatMul", x, v), w)
    rows = b.node(
        "MatMul", b.node("Transpose", b.node("MatMul", x, b.array("u", normal(6, 6, seed=1)))), w
    )
    refused(b.model(b.node("Add", h, rows)), "v")


def refused(proto, name):
    """Check that no units of a weight are listed, and that none are removed."""
    model = conn.load(proto)
    before = model.proto().SerializeToString()
    for outputs in (False, True):
        assert name not in {m for g in conn.groups(model, outputs=outputs) for m in g.makers}
        keep = np.arange(model[name].shape[0]) > 1
        with pytest.raises(ValueError, match=r"w is also for a .* that does not lose them"):
            conn.shrink(model, {name: keep}, outputs=outputs)
    assert model.proto().SerializeToString() == before


def test_transposed_values_and_convolutions():
    b = Builder()
    h = b.node("ConvTranspose", b.input("x", ["n", 3, 6, 6]), b.array("a", normal(3, 5, 2, 2)))
    h = b.node("PRelu", h, b.array("slope", normal(5, 1, 1)))
    h = b.node("Transpose", h, perm=[0, 2, 3, 1])
    h = b.node("MatMul", h, b.array("w", normal(5, 4)))
    h = b.node("Add", h, b.array("shift", normal(4)))
    h = b.node("Transpose", h, perm=[0, 3, 1, 2])
    h = b.node("Conv", h, b.array("c", normal(2, 4, 1, 1)))
    check(b.model(h, rank=4), X["residual"], ["a", "w"])


def test_only_what_can_be_removed_is_listed():
    b = Builder()
    h = b.node("MatMul", b.input("x", ["n", 6]), b.array("w1", normal(6, 8)))
    h = b.node("LayerNormalization", h, b.array("s", normal(8)))
    h = b.node("MatMul", h, b.array("w2", normal(8, 8)))
    h = b.node("Custom", h, domain="my", name="mine")
    h = b.node("MatMul", h, b.array("w3", normal(8, 8)))
    h = b.node("Softmax", h)
    h = b.node("MatMul", h, b.array("w4", normal(8, 8)))
    proto = b.model(h)
    # What onnx cannot infer of an operator that it does not know.
    custom = onnx.helper.make_tensor_value_info("custom_3", onnx.TensorProto.FLOAT, [None, 8])
    proto.graph.value_info.append(custom)
    model = conn.load(proto)
    assert conn.groups(model) == []
    assert [g.name for g in conn.groups(model, outputs=True)] == ["w4"]
    assert model.unknown == {"my::Custom": ["mine"]}
    for name, why in (
        ("w1", "LayerNormalization"),
        ("w2", r"mine \(Custom\)"),
        ("w3", "normalizes over them"),
        ("w4", "the model's outputs"),
    ):
        with pytest.raises(ValueError, match=why):
            conn.shrink(model, {name: np.arange(8) > 3})


def test_outputs_can_be_removed_if_asked_for():
    proto, keep = mlp(), np.array([True, False, True])
    model = conn.load(proto)
    conn.shrink(model, {"w3": keep}, outputs=True)
    made = model.proto()
    onnx.checker.check_model(made, full_check=True)
    np.testing.assert_allclose(run(made, X["mlp"]), run(proto, X["mlp"])[:, keep], rtol=1e-5)
    assert made.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 2


def test_inner_graphs_hold_what_they_take():
    model = conn.load(branches())
    with pytest.raises(ValueError, match="outer makes units that cannot be removed: the graph ch"):
        conn.shrink(model, {"outer": np.arange(5) > 2})
    with pytest.raises(ValueError, match="keep must be of weights that make units"):
        conn.shrink(model, {"choice.then_branch.w": np.array([True, False])})


def test_initializers_that_are_inputs():
    proto = mlp(ir=3)
    model, keep = conn.load(proto), np.arange(16) % 2 == 0
    assert conn.groups(model) == [] and model.initializers["w1"].is_input
    with pytest.raises(ValueError, match="w1 is also an input of the graph"):
        conn.shrink(model, {"w1": keep})
    model.freeze_inputs()
    conn.shrink(model, {"w1": keep})
    made = model.proto()
    onnx.checker.check_model(made, full_check=True)
    assert made.ir_version == 4 and [v.name for v in made.graph.input] == ["x"]
    group = conn.groups(conn.load(mlp()))[0]
    expected = run(masked(mlp(), group, keep), X["mlp"])
    np.testing.assert_allclose(run(made, X["mlp"]), expected, rtol=1e-5, atol=1e-5)


def test_groups_are_scored_by_their_weights():
    model = conn.load(mlp())
    for group in conn.groups(model):
        for order in (1, 2):
            w = model[group.name]
            rows = np.abs(w if group.name == "w1" else w.T).astype(np.float64)
            expected = (rows**order).mean(axis=1) ** (1 / order)
            expected *= rows.shape[1] ** (1 / order) / rows.shape[1] ** (1 / order)
            np.testing.assert_allclose(group.scores(model, order), expected)


@pytest.mark.parametrize(
    ("keep", "error", "match"),
    [
        ([True] * 16, TypeError, "keep must be a dict"),
        ({"w9": np.ones(16, bool)}, ValueError, "got 'w9'"),
        ({"w1": np.ones(15, bool)}, ValueError, r"keep\['w1'\] must have length 16, got 15"),
        ({"w1": np.zeros(16, bool)}, ValueError, "must keep at least one neuron"),
        ({"w1": np.ones(16)}, TypeError, "must be a boolean array"),
        ({"w1": np.arange(16) > 3, "w2": np.ones(7, bool)}, ValueError, "must have length 8"),
    ],
)
def test_refused(keep, error, match):
    model = conn.load(mlp())
    before = model.proto().SerializeToString()
    with pytest.raises(error, match=match):
        conn.shrink(model, keep)
    assert model.proto().SerializeToString() == before


def test_units_are_named_once():
    model = conn.load(residual())
    keep = np.arange(6) > 2
    with pytest.raises(ValueError, match="keep must name units once, got 'a' and 'b'"):
        conn.shrink(model, {"a": keep, "b": keep})


def test_shrunk_models_are_pruned_quantized_and_shrunk_again(tmp_path):
    model = conn.load(cnn())
    conn.shrink(model, {"c1": np.arange(8) % 2 == 0})
    conn.shrink(model, {"c1": np.arange(4) > 0, "c2": np.arange(5) > 1})
    conn.prune(model, 0.5)
    conn.quantize(model, cr.quantize.Scheme(bits=8))
    model.save(tmp_path / "small.onnx")
    y = run((tmp_path / "small.onnx").read_bytes(), X["cnn"])
    assert y.shape == (4, 4) and np.isfinite(y).all()


def test_batch_normalization_after_flattening():
    b = Builder()
    h = b.node("Conv", b.input("x", ["n", 3, 6, 6]), b.array("c", normal(4, 3, 3, 3)))
    h = norm(b, b.node("Flatten", h), "n", 64)
    check(b.model(b.node("MatMul", h, b.array("w", normal(64, 2)))), X["residual"], ["c"])


def between(operate, rank=2):
    """Return two products, or convolutions for rank 4, and what some nodes make between them."""
    b = Builder()
    if rank < 4:
        shape = ["n", 6] if rank == 2 else ["n", 4, 6]
        h = b.node("MatMul", b.input("x", shape), b.array("w1", normal(6, 8)))
        h = operate(b, b.node("Relu", h))
        return b.model(b.node("MatMul", h, b.array("w2", normal(8, 3))), rank=rank)
    h = b.node("Conv", b.input("x", ["n", 3, 8, 8]), b.array("w1", normal(8, 3, 1, 1)))
    h = operate(b, b.node("Relu", h))
    return b.model(b.node("Conv", h, b.array("w2", normal(3, 8, 1, 1))), rank=4)


def constant(b, **value):
    return b.node("Constant", **value)


def integers(b, name, *values):
    return b.array(name, np.array(values))


THROUGH = {
    "power": (2, lambda b, h: b.node("Pow", h, constant(b, value_float=2.0))),
    "scaled": (2, lambda b, h: b.node("Mul", h, constant(b, value_floats=[0.5]))),
    "wider": (
        2,
        lambda b, h: b.node(
            "Squeeze",
            b.node("Unsqueeze", h, constant(b, value_ints=[0, 3])),
            integers(b, "axes", 0, 3),
        ),
    ),
    "turned": (
        2,
        lambda b, h: b.node("Transpose", b.node("Transpose", h), perm=[1, 0]),
    ),
    "clipped": (
        2,
        lambda b, h: b.node(
            "Clip",
            b.node("Clip", h, constant(b, value_float=-0.5), constant(b, value_float=0.5)),
            "",
            constant(b, value_float=0.25),
        ),
    ),
    "columns": (4, lambda b, h: b.node("Mul", h, b.array("columns", normal(8)))),
    "padded": (4, lambda b, h: b.node("Pad", h, integers(b, "pads", 0, 0, 1, 1, 0, 0, 1, 1))),
    "slopes": (4, lambda b, h: b.node("PRelu", h, b.array("slopes", normal(8, 1, 1)))),
}


@pytest.mark.parametrize("name", THROUGH)
def test_units_pass_through(name):
    rank, operate = THROUGH[name]
    check(between(operate, rank), X["mlp" if rank == 2 else "cnn"], ["w1"])


def _first(b):
    """Return the inputs by which ``Slice`` leaves out all behind the first 8 units."""
    return [integers(b, name, value) for name, value in (("s", 0), ("e", 8), ("along", 1))]


STAY = {
    "edges": (
        4,
        lambda b, h: b.node("Pad", h, integers(b, "p", 0, 0, 1, 1, 0, 0, 1, 1), mode="edge"),
        "pads in another way",
    ),
    "powers": (
        2,
        lambda b, h: b.node("Pow", h, b.array("e", np.arange(1, 9, dtype=np.float32))),
        "has an exponent for each of them",
    ),
    "divided": (
        2,
        lambda b, h: b.node("Div", h, b.array("d", np.arange(1, 9, dtype=np.float32))),
        "divides them by numbers of their own",
    ),
    "divisor": (
        2,
        lambda b, h: b.node("Div", b.array("one", np.float32(1)), b.node("Exp", h)),
        "takes them in another form",
    ),
    "turned": (
        2,
        lambda b, h: b.node("Add", h, b.node("Transpose", h, perm=[1, 0])),
        "combines them in another order",
    ),
    "squeezed": (2, lambda b, h: b.node("Squeeze", h), "takes all axes"),
    "summed": (
        2,
        lambda b, h: b.node("Mul", h, b.node("ReduceMax", h, axes=[1])),
        "combines them",
    ),
    "softmax": (2, lambda b, h: b.node("Softmax", h), "normalizes over them"),
    "pooled": (
        2,
        lambda b, h: b.node(
            "Squeeze",
            b.node("GlobalMaxPool", b.node("Unsqueeze", h, integers(b, "a", 1))),
            integers(b, "c", 1),
        ),
        "combines them|axis",
    ),
    "reshaped": (
        2,
        lambda b, h: b.node(
            "Reshape",
            b.node("Reshape", h, integers(b, "a", -1, 2, 4)),
            integers(b, "c", -1, 8),
        ),
        "gives them another shape",
    ),
    "flattened": (2, lambda b, h: b.node("Flatten", h, axis=0), "flattens them in another way"),
    "more units": (
        2,
        lambda b, h: b.node("Slice", b.node("Pad", h, integers(b, "p", 0, 0, 0, 1)), *_first(b)),
        "adds to them",
    ),
    "ones around": (
        2,
        lambda b, h: b.node("Pad", h, integers(b, "p", 1, 0, 0, 0), b.array("one", np.float32(1))),
        "does not keep 0",
    ),
    "power of 0": (2, lambda b, h: b.node("Pow", h, constant(b, value_float=0.0)), "not keep 0"),
    "more axes": (2, lambda b, h: b.node("Add", h, b.array("c", normal(1, 1, 8))), "adds axes"),
    "another input": (
        2,
        lambda b, h: b.node("Add", h, b.input("y", ["n", 8])),
        "combines them with others",
    ),
    "pooled along the units": (
        3,
        lambda b, h: b.node("MaxPool", h, kernel_shape=[1]),
        "combines them",
    ),
    "normalized along places": (
        3,
        lambda b, h: b.node(
            "BatchNormalization", h, *(b.array(n, np.ones(4, np.float32)) for n in "cdef")
        ),
        "normalizes over them",
    ),
    "running sums": (
        2,
        lambda b, h: b.node("CumSum", h, integers(b, "axis", 1)),
        "is none whose units can be followed",
    ),
}


@pytest.mark.parametrize("name", STAY)
def test_units_stay_where_they_do_not_pass_through(name):
    rank, operate, reason = STAY[name]
    model = conn.load(between(operate, rank))
    before = {key: array.copy() for key, array in model.items()}
    with pytest.raises(ValueError, match=f"w1 makes units that cannot be removed: .*({reason})"):
        conn.shrink(model, {"w1": np.array([True, False] * 4)})
    assert not conn.groups(model)
    for key, array in model.items():
        np.testing.assert_array_equal(array, before[key])


def test_units_stay_where_images_are_of_unknown_size():
    b = Builder()
    x = b.input("x", ["n", 3, "h", "w"])
    h = b.node("Flatten", b.node("Conv", x, b.array("w1", normal(6, 3, 3, 3))))
    model = conn.load(b.model(b.node("MatMul", h, b.array("w2", normal(6, 3)))))
    with pytest.raises(ValueError, match=r"w1 makes units that .*flattens feature maps of unknown"):
        conn.shrink(model, {"w1": np.arange(6) % 2 == 0})


def test_weights_shared_by_units_of_several_sizes_stay():
    """Those of flattened feature maps have 4 rows of the weight each, others have one."""
    b = Builder()
    w = b.array("w", normal(16, 3))
    h = b.node("Conv", b.input("x", ["n", 3, 3, 3]), b.array("c", normal(4, 3, 2, 2)))
    h = b.node("MatMul", b.node("Flatten", h), w)
    g = b.node("MatMul", b.input("y", ["n", 6]), b.array("v", normal(6, 16)))
    model = conn.load(b.model(b.node("Add", h, b.node("MatMul", g, w))))
    for name, size in (("c", 4), ("v", 16)):
        says = f"{name} makes units that cannot be removed: units of .* are added"
        with pytest.raises(ValueError, match=says):
            conn.shrink(model, {name: np.arange(size) % 2 == 0})
    assert conn.groups(model) == []


def test_filters_that_are_turned_stay():
    """Only of matrices is it followed which axis is which."""
    b = Builder()
    h = b.node("Conv", b.input("x", ["n", 3, 6, 6]), b.array("w1", normal(6, 3, 2, 2)))
    turned = b.node("Transpose", b.array("w2", normal(2, 2, 6, 4)), perm=[3, 2, 0, 1])
    model = conn.load(b.model(b.node("Conv", h, turned), rank=4))
    with pytest.raises(ValueError, match=r"w1 makes units that .*takes an array that is computed"):
        conn.shrink(model, {"w1": np.arange(6) % 2 == 0})

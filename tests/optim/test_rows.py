"""Gradients of some rows against recorded trajectories, the reference, and dense steps."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

import compressrs as cr
from compressrs.optim import RowGradient
from tests.optim.test_optim import RULES, TOLERANCE
from tests.reference import optim as reference

DATA = Path(__file__).parents[1] / "data"
CASES = json.loads((DATA / "rows.json").read_text())["cases"]
REFUSED = {
    cr.optim.ASGD: "averages",
    cr.optim.Lamb: "sums over the whole",
    cr.optim.Adafactor: "sums over the whole",
    cr.optim.Muon: "sums over the whole",
    cr.optim.Shampoo: "sums over the whole",
    cr.optim.SOAP: "sums over the whole",
    cr.optim.Prodigy: "sums over the whole",
}
LAZY = [
    (cls, rule, kwargs)
    for cls, (rule, variants) in RULES.items()
    if cls not in REFUSED
    for kwargs in (
        {k: v for k, v in variant.items() if k != "weight_decay"}
        for variant in variants
        if not variant.get("cautious")
    )
]
#: Those whose default is another.
NO_DECAY = {cr.optim.AdamW: {"weight_decay": 0}, cr.optim.Lion: {"weight_decay": 0}}


def bits(opt):
    arrays = [a for group in opt.param_groups for a in group["params"]]
    arrays += [a for buffers in opt.state.values() for a in buffers.values()]
    return [a.tobytes() for a in arrays]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["source"])
def test_recorded_trajectories(case):
    with np.load(DATA / "rows.npz") as data:
        p, rows, values, truth = (
            data[f"{case['id']}/{k}"] for k in ("p0", "rows", "values", "traj")
        )
    opt = getattr(cr.optim, case["optimizer"])(p, **case["kwargs"])
    for r, v, expected in zip(rows, values, truth, strict=True):
        opt.step(RowGradient(r, v))
        assert np.abs(p - expected).max() <= TOLERANCE[case["dtype"]] * np.abs(truth).max()


@pytest.mark.parametrize("shape", [(9,), (9, 5), (7, 2, 3)])
@pytest.mark.parametrize(("cls", "rule", "kwargs"), LAZY, ids=lambda x: getattr(x, "__name__", x))
def test_every_elementwise_rule_agrees_with_the_reference(cls, rule, kwargs, shape):
    rng = np.random.default_rng(0)
    kwargs = {**kwargs, **NO_DECAY.get(cls, {})}
    p = rng.standard_normal(shape)
    opt, truth, state = cls(p, lr=0.05, **kwargs), p.copy(), {}
    for t in range(1, 7):
        rows = rng.integers(0, len(p), 6)
        values = rng.standard_normal((6, *shape[1:]))
        opt.step(RowGradient(rows, values))
        truth = reference.of_rows(rule, truth, rows, values, state, t, lr=0.05, **kwargs)
        np.testing.assert_allclose(p, truth, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("width", [256, 3])
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        ("float64", "nearest"),
        ("float32", "nearest"),
        ("bfloat16", "stochastic"),
        ("bfloat16", "master"),
        ("float16", "kahan"),
    ],
)
def test_a_gradient_of_all_rows_gives_the_bits_of_the_dense_one(
    dtype, precision, state_dtype, width
):
    if dtype == "bfloat16" or state_dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    if state_dtype == "int8" and width == 3:
        pytest.skip("rows share scales")
    rng = np.random.default_rng(1)
    start = rng.standard_normal((40, width)).astype(np.float32)
    params = [start.astype(cr._arrays.dtype_of(dtype)) for _ in range(2)]
    storage = {"state_dtype": state_dtype, "precision": precision}
    dense, sparse = (cr.optim.Adam(p, lr=0.1, amsgrad=True, **storage) for p in params)
    for opt in (dense, sparse):
        opt.set_masks(np.random.default_rng(2).random(start.shape) < 0.7)
    for _ in range(3):
        gradient = rng.standard_normal(start.shape).astype(np.float32)
        order = rng.permutation(40)
        norms = [
            dense.step(gradient, max_grad_norm=1.0),
            sparse.step(RowGradient(order, gradient[order]), max_grad_norm=1.0),
        ]
        assert norms[0] == norms[1]
    assert bits(dense) == bits(sparse)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_other_rows_keep_their_bits_and_threads_change_none(threads):
    rng = np.random.default_rng(3)
    p = rng.standard_normal((5000, 64), np.float32)
    rows, values = rng.integers(0, 2000, 1500), rng.standard_normal((1500, 64), np.float32)
    p[3000:] = np.nan
    before, twin = p.copy(), p.copy()
    one, many = cr.optim.Adam(twin), cr.optim.Adam(p)
    count = cr.get_num_threads()
    try:
        cr.set_num_threads(1)
        one.step(RowGradient(rows, values))
        cr.set_num_threads(threads)
        many.step(RowGradient(rows, values))
    finally:
        cr.set_num_threads(count)
    rest = np.setdiff1d(np.arange(5000), rows)
    assert p[rest].tobytes() == before[rest].tobytes()
    assert not many.state[0]["exp_avg"][rest].any()
    assert (p[np.unique(rows)] != before[np.unique(rows)]).all()
    assert bits(one) == bits(many)


def test_repeated_rows_are_added_in_the_order_given():
    p = np.zeros((2, 1), np.float32)
    opt = cr.optim.SGD(p, lr=1.0)
    opt.step(RowGradient([1, 1, 1], np.array([[1e8], [-1e8], [1.0]], np.float32)))
    assert p[1] == -1
    opt.step(RowGradient([0, 0, 0], np.array([[1.0], [1e8], [-1e8]], np.float32)))
    assert p[0] == 0
    # Half precision is added in single precision.
    opt.step(RowGradient([0] * 4, np.array([[2048], [1], [1], [1]], np.float16)))
    assert p[0] == -2051


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32", "int64", "uint64"])
def test_rows_of_any_integer_dtype(dtype):
    p = np.zeros((3, 2))
    cr.optim.SGD(p, lr=1.0).step(RowGradient(np.array([2, 0], dtype), np.ones((2, 2))))
    assert p.tolist() == [[-1, -1], [0, 0], [-1, -1]]


def test_in_lists_dicts_and_groups_beside_dense_gradients():
    table, w, b = np.zeros((4, 2)), np.zeros(3), np.zeros((2, 2))
    opt = cr.optim.SGD([{"params": {"table": table, "w": w}}, {"params": [b], "lr": 2.0}], lr=1.0)
    opt.step([{"table": RowGradient([3], np.ones((1, 2))), "w": np.ones(3)}, [None]])
    opt.step([{"table": None, "w": None}, [RowGradient([0], np.ones((1, 2), np.float32))]])
    assert table.tolist() == [[0, 0]] * 3 + [[-1, -1]]
    assert (w.tolist(), b.tolist()) == ([-1] * 3, [[-2, -2], [0, 0]])
    opt.param_groups[0]["frozen"] = True
    opt.step([{"table": RowGradient([2], np.ones((1, 2))), "w": None}, [None]])
    assert table[3, 0] == -1


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (4, 3)])
def test_no_rows_are_a_step_that_changes_no_weight(shape):
    p = np.ones(shape)
    opt = cr.optim.Adam(p)
    opt.step(RowGradient([], np.zeros((0, *shape[1:]))), max_grad_norm=1.0)
    assert (p == 1).all()
    assert opt.state[0]["step"] == 1


def test_clipping_and_checks_are_of_the_sums():
    p, q = np.zeros((3, 2)), np.zeros((3, 2))
    rows, values = [1, 1, 0], np.array([[3.0, 0], [0, 4], [12, 0]])
    sparse, dense = cr.optim.SGD(p, lr=1.0), cr.optim.SGD(q, lr=1.0)
    assert sparse.step(RowGradient(rows, values), max_grad_norm=1.0) == 13
    assert dense.step(RowGradient(rows, values).dense(3), max_grad_norm=1.0) == 13
    assert p.tobytes() == q.tobytes()
    before = p.copy()
    cancelled = RowGradient([0, 0], np.array([[np.inf, 0], [1, 1]]))
    with pytest.raises(cr.optim.NonFiniteGradientError, match="grads holds NaN or infinity"):
        sparse.step(cancelled, nonfinite="raise")
    assert sparse.step(cancelled, nonfinite="skip") == np.inf
    assert p.tobytes() == before.tobytes()
    with pytest.raises(cr.optim.NonFiniteGradientError, match="grads holds finite gradients of"):
        sparse.step(RowGradient([1, 1], np.full((2, 2), 1e308)), nonfinite="raise")
    narrow = cr.optim.SGD([np.ones(2), {"w": np.ones((3, 2), np.float32)}], lr=1.0)
    large = RowGradient([1, 1], np.full((2, 2), 3e38, np.float32))
    with pytest.raises(
        cr.optim.NonFiniteGradientError,
        match=r"grads\[1\]\['w'\] holds finite gradients of the same row .* range of float32",
    ):
        narrow.step([None, {"w": large}], nonfinite="raise")
    with pytest.raises(cr.optim.NonFiniteGradientError, match=r"grads\[0\] holds NaN"):
        narrow.step([np.full(2, np.nan), {"w": large}], nonfinite="raise")
    sparse.set_masks(np.array([[False, True]] * 3))
    sparse.step(cancelled, nonfinite="raise")
    assert p[0].tolist() == [0, before[0, 1] - 1]


@pytest.mark.parametrize("cls", [*REFUSED, cr.optim.AdamW, cr.optim.Lion])
def test_rules_that_touch_all_rows_are_refused_with_the_reason(cls):
    p = np.ones((3, 4))
    opt = cls(p)
    before = bits(opt)
    with pytest.raises(ValueError, match=REFUSED.get(cls, "weight_decay is 0")):
        opt.step(RowGradient([0], np.ones((1, 4))))
    assert bits(opt) == before


def test_cautious_rules_count_over_the_whole_parameter():
    opt = cr.optim.Adam(np.ones((3, 4)), cautious=True)
    with pytest.raises(ValueError, match="sums over the whole"):
        opt.step(RowGradient([0], np.ones((1, 4))))


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (
            lambda: RowGradient([1, 3], np.ones((2, 4))),
            r"grads\[1\].rows\[1\] must be a row .*got 3",
        ),
        (lambda: RowGradient([1], np.ones((1, 5))), r"grads\[1\] must have the shape \(1, 4\)"),
        (lambda: RowGradient([1], np.ones(1)), r"grads\[1\] must have the shape \(1, 4\)"),
    ],
)
def test_what_does_not_fit_the_parameter_changes_nothing(gradient, message):
    a, b = np.ones(2), np.ones((3, 4))
    opt = cr.optim.Adam([a, b])
    before = bits(opt)
    with pytest.raises(ValueError, match=message):
        opt.step([np.ones(2), gradient()])
    assert bits(opt) == before


@pytest.mark.parametrize(
    ("gradient", "error", "message"),
    [
        (
            np.ones((4, 3)),
            ValueError,
            r"grads\[0\]\[0\] must have the shape \(3, 4\) of params\[0\]\[0\]",
        ),
        (np.ones((3, 4), int), TypeError, r"grads\[0\]\[0\] must have dtype float32.*got int64"),
        ([1.0], TypeError, r"grads\[0\]\[0\] must be a NumPy array"),
        (RowGradient([3], np.ones((1, 4))), ValueError, r"grads\[0\]\[0\].rows.* 0 to 2 .*got 3"),
        (RowGradient([1], np.ones((1, 3))), ValueError, r"the shape \(1, 4\) of rows and"),
        (RowGradient([1], np.ones(1)), ValueError, r"the shape \(1, 4\) of rows and"),
    ],
)
def test_gradients_of_frozen_groups_are_checked(gradient, error, message):
    opt = cr.optim.Adam([np.ones((3, 4)), np.ones(2)])
    opt.add_param_group({"params": np.ones(2), "frozen": True})
    opt.step([[None, np.ones(2)], np.ones(2, np.float16)])
    opt.param_groups[0]["frozen"] = True
    before = bits(opt)
    with pytest.raises(error, match=message):
        opt.step([[gradient, np.ones(2)], None])
    opt.step([[np.ones((3, 4)), None], None])
    opt.step([[RowGradient([2, 0, 2], np.ones((3, 4))), np.ones(2)], np.ones(2)])
    opt.step([[RowGradient([], np.zeros((0, 4))), None], None])
    assert bits(opt) == before


def test_complex_gradients_of_frozen_groups_are_checked():
    w = np.ones((3, 2), np.complex64)
    opt = cr.optim.SGD([{"params": w, "frozen": True}])
    opt.step([w.copy()])
    opt.step([RowGradient([1], np.ones((1, 2), np.complex64))])
    for wrong in (np.ones((2, 3), np.complex64), RowGradient([3], np.ones((1, 2), np.complex64))):
        with pytest.raises(ValueError, match="grads"):
            opt.step([wrong])
    large = np.full((2, 2), 3e38 + 1j, np.complex64)
    opt.param_groups[0]["frozen"] = False
    with pytest.raises(cr.optim.NonFiniteGradientError, match=r"sum is beyond .* float32"):
        opt.step([RowGradient([1, 1], large)], nonfinite="raise")
    assert (w == 1).all()


def test_errors_say_what_is_beyond_the_range():
    w = np.ones((3, 2), np.float32)
    opt = cr.optim.SGD(w)
    finite, large = np.ones((2, 2), np.float32), np.full((2, 2), 3e38, np.float32)
    for gradient, factor, reason in (
        (RowGradient([1, 1], large), 1.0, "sum"),
        (RowGradient([1, 1], np.float32("nan") * finite), 1.0, "nonfinite"),
        (RowGradient([1, 2], large), 2.0, "scale"),
        (RowGradient([1, 1], large.astype(np.float64)), 1.0, "scale"),
        (RowGradient([1, 1], np.full((2, 2), 1e308)), 1.0, "sum"),
        (np.full_like(w, np.inf), 1.0, "nonfinite"),
        (np.full_like(w, 3e38), 2.0, "scale"),
    ):
        with pytest.raises(cr.optim.NonFiniteGradientError) as caught:
            opt.step(gradient, nonfinite="raise", grad_scale=factor)
        for error in (
            caught.value,
            copy.copy(caught.value),
            pickle.loads(pickle.dumps(caught.value)),
        ):
            assert error.reason == reason
    with pytest.raises(cr.optim.NonFiniteGradientError) as caught:
        cr.optim.clip_grad_norm_([np.full(2, np.nan)], 1.0, error_if_nonfinite=True)
    assert caught.value.reason == "nonfinite"
    assert (w == 1).all()


def test_other_parameters_that_have_no_rows():
    with pytest.raises(ValueError, match="has no rows"):
        cr.optim.Adam(np.array(1.0)).step(RowGradient([0], np.ones(1)))
    opt = cr.optim.Adam(np.zeros((100, 64), np.float32), state_dtype="int8")
    with pytest.raises(ValueError, match="share a scale among 256 elements, and its rows have 64"):
        opt.step(RowGradient([0], np.ones((1, 64))))


@pytest.mark.parametrize(
    ("rows", "values", "error", "message"),
    [
        ([-1], np.ones((1, 2)), ValueError, "rows must not be negative, got -1"),
        ([0.5], np.ones((1, 2)), TypeError, "rows must be integers, got float64"),
        ([True], np.ones((1, 2)), TypeError, "rows must be integers, got bool"),
        ([[0]], np.ones((1, 2)), ValueError, "rows must have 1 axis"),
        ([0, 1], np.ones((1, 2)), ValueError, r"one gradient for each of the 2 rows.*\(1, 2\)"),
        ([0], np.array(1.0), ValueError, "one gradient for each"),
        ([0], np.ones((1, 2), int), TypeError, "values must be floating-point numbers, got int64"),
        (np.array([2**63], np.uint64), np.ones((1, 2)), ValueError, "rows must be below"),
        ([1, 2**70], np.ones((2, 2)), ValueError, "rows must be from 0 to 2.*63 - 1, got 1180"),
        ([-1, 2**63], np.ones((2, 2)), ValueError, "rows must be from 0 to .* got -1"),
        (np.array([1, -(2**70)], object), np.ones((2, 2)), ValueError, "got -1180"),
        (np.array([1, 2], object), np.ones((2, 2)), TypeError, "rows must be integers, got object"),
        ([0], "ab", TypeError, "values"),
        (None, np.ones((1, 2)), TypeError, "rows must be integers"),
    ],
)
def test_what_is_no_gradient_of_rows(rows, values, error, message):
    with pytest.raises(error, match=message):
        RowGradient(rows, values)


def test_the_rows_are_a_copy():
    rows = np.array([0])
    gradient = RowGradient(rows, np.ones((1, 2)))
    rows[0] = 99
    assert gradient.rows.tolist() == [0]
    with pytest.raises(ValueError, match="read-only"):
        gradient.rows[0] = 1
    with pytest.raises(AttributeError):
        gradient.rows = rows


@pytest.mark.parametrize("shape", [(), (3,), (0,)])
def test_sums_and_dense_gradients(shape):
    rng = np.random.default_rng(4)
    rows, values = rng.integers(0, 5, 8), rng.standard_normal((8, *shape))
    gradient = RowGradient(rows, values)
    expected = np.zeros((6, *shape))
    np.add.at(expected, rows, values)
    np.testing.assert_array_equal(gradient.dense(6), expected)
    assert gradient.summed().rows.tolist() == sorted(set(rows.tolist()))
    with pytest.raises(ValueError, match="n must be above the largest row"):
        gradient.dense(int(rows.max()))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_state_continues_with_the_same_bits(duplicate):
    rng = np.random.default_rng(5)
    p = rng.standard_normal((8, 3))
    opt = cr.optim.Adam(p)
    gradients = [RowGradient(rng.integers(0, 8, 4), rng.standard_normal((4, 3))) for _ in range(4)]
    for gradient in gradients[:2]:
        opt.step(gradient)
    twin = duplicate(opt)
    for gradient in gradients[2:]:
        opt.step(gradient)
        twin.step(duplicate(gradient))
    assert bits(opt) == bits(twin)


def test_wrappers_take_them():
    for wrap in (
        lambda p: cr.optim.Lookahead(cr.optim.SGD(p, lr=0.1), k=2),
        lambda p: cr.optim.ScheduleFree(p, lambda z: cr.optim.SGD(z, lr=0.1)),
    ):
        p, q = np.ones((4, 2)), np.ones((4, 2))
        sparse, dense = wrap(p), wrap(q)
        for row in (1, 3, 1):
            gradient = RowGradient([row], np.ones((1, 2)))
            sparse.step(gradient)
            dense.step(gradient.dense(4))
        assert p.tobytes() == q.tobytes()


def test_an_embedding_trains_in_a_sequential_as_with_dense_gradients():
    rng = np.random.default_rng(6)
    tokens, labels = rng.integers(0, 50, (2, 16, 3)), rng.integers(0, 4, (2, 16))
    models = [
        cr.nn.Sequential(
            cr.nn.Embedding(50, 6, rng=0, sparse=sparse),
            cr.nn.Flatten(),
            cr.nn.Linear(18, 4, rng=1),
        )
        for sparse in (False, True)
    ]
    losses = []
    for model in models:
        opt = cr.optim.Adagrad(model.params, lr=0.3)
        for i in range(20):
            x, y = tokens[i % 2], labels[i % 2]
            loss, dy = cr.nn.cross_entropy(model(x), y)
            model.backward(dy)
            opt.step(model.grads, max_grad_norm=10.0)
            losses.append(loss)
    dense, sparse = (model.state_dict() for model in models)
    for name in dense:
        np.testing.assert_allclose(sparse[name], dense[name], rtol=2e-5, atol=1e-6)
    assert isinstance(models[1].grads["0"]["weight"], RowGradient)
    assert losses[-1] < losses[20] / 2


def test_a_sparse_embedding_is_copied_and_loaded_as_one(tmp_path):
    layer = cr.nn.Embedding(5, 3, rng=0, sparse=True)
    assert layer.grads["weight"].values.shape == (0, 3)
    layer.backward(layer(np.array([[4, 1]])))
    cr.optim.Adam(layer.params).step(layer.grads)
    for twin in (layer.copy(), pickle.loads(pickle.dumps(layer))):
        assert twin.weight.tobytes() == layer.weight.tobytes()
        assert len(twin.grads["weight"].rows) == 0
        assert twin.sparse
    pytest.importorskip("safetensors")
    layer.save(tmp_path / "table.safetensors")
    loaded = cr.nn.load(tmp_path / "table.safetensors")
    assert loaded.sparse
    assert repr(loaded) == repr(layer)
    assert loaded.weight.tobytes() == layer.weight.tobytes()
    with pytest.raises(TypeError, match="sparse"):
        cr.nn.Embedding(5, 3, sparse=1)


GRADIENT = RowGradient([1, 1], np.ones((2, 2), np.float32))


def _table():
    return np.ones((4, 2), np.float32)


def _distilled():
    model = cr.nn.Sequential(
        cr.nn.Embedding(4, 2, sparse=True, rng=0), cr.nn.Flatten(), cr.nn.Linear(2, 2, rng=0)
    )
    opt = cr.distributed.ShardedOptimizer(cr.optim.Adam, model.params)
    teacher = np.zeros((3, 2), np.float32)
    distiller = cr.distributed.DataParallelDistiller(model, teacher, opt, alpha=1.0)
    distiller.fit(np.arange(3).reshape(3, 1), epochs=1)


ARRAYS_ONLY = {
    "SAM": lambda: cr.optim.SAM(cr.optim.SGD(_table(), lr=1.0)).step(lambda: (0.0, GRADIENT)),
    "LBFGS": lambda: cr.optim.LBFGS(_table()).step(lambda: (0.0, GRADIENT)),
    "clip_grad_norm_": lambda: cr.optim.clip_grad_norm_([GRADIENT], 1.0),
    "clip_grad_value_": lambda: cr.optim.clip_grad_value_([GRADIENT], 1.0),
    "GradientAccumulator": lambda: cr.optim.GradientAccumulator(2).add(GRADIENT),
    "ShardedOptimizer.step": lambda: cr.distributed.ShardedOptimizer(cr.optim.Adam, _table()).step(
        GRADIENT
    ),
    "ShardedOptimizer.accumulate": lambda: cr.distributed.ShardedOptimizer(
        cr.optim.Adam, _table(), microbatches=2
    ).accumulate(0, GRADIENT),
    "ExactMean": lambda: cr.distributed.ExactMean().mean(GRADIENT),
    "DataParallelDistiller": _distilled,
    "Snip": lambda: cr.prune.Snip().update(_table(), GRADIENT),
}


@pytest.mark.parametrize("who", ARRAYS_ONLY)
def test_where_only_arrays_are_taken_the_message_says_what_to_give(who):
    message = (
        r"must be an array here, got a RowGradient: give gradient\.dense\(len\(table\)\), or make "
        r"the layer with Embedding\(sparse=False\)"
    )
    with pytest.raises(TypeError, match=message):
        ARRAYS_ONLY[who]()

"""Values that only one check refuses, each with its message, and files that are well-formed but
hold something else. Wrong types of every argument are in `test_raw_errors.py`."""

import json

import numpy as np
import pytest

import compressrs as cr
from compressrs import checkpoint, distill, nn, optim, prune, quantize, search, sparse
from compressrs._files import save_tensors
from compressrs.quantize import Scheme

W = np.arange(24, dtype=np.float32).reshape(4, 6) - 11
W16 = np.arange(64, dtype=np.float32).reshape(4, 16)
NAN = np.full((4, 6), np.nan, np.float32)
INT8, CODEBOOK = Scheme(), Scheme(bits=2, dtype="codebook")
BY_COLUMN = Scheme(bits=2, dtype="codebook", granularity="group", group_size=2)
GROUPS = Scheme(bits=4, granularity="group", group_size=2)


def seen(features=6):
    """Return statistics of some rows, with products."""
    found = prune.InputStatistics(features, gram=True)
    found.update(np.random.default_rng(0).standard_normal((50, features)).astype(np.float32))
    return found


def linear(inputs, outputs, **options):
    return nn.QuantizedLinear.from_linear(nn.Linear(inputs, outputs, rng=0, **options), INT8)


def ordered():
    """Return a matrix whose columns are in groups by another order."""
    q = quantize.gptq(W, seen(), GROUPS, act_order=True)
    return quantize.QuantizedMatrix(q)


def stepped():
    opt = optim.Adam(np.ones(5000, np.float32), state_dtype="int8")
    opt.step(np.ones(5000, np.float32))
    return opt


def codes(**change):
    """Return Adam's 8-bit state with one entry replaced, assigned to its own optimizer."""
    opt = stepped()
    opt.state[0] = {**{k: np.array(v) for k, v in opt.state[0].items()}, **change}


REFUSED = {
    # quantize
    "kmeans-scheme": (lambda: quantize.kmeans(W, INT8), ValueError, "scheme must have dtype"),
    "kmeans-nan": (lambda: quantize.kmeans(NAN, CODEBOOK), ValueError, "w must be finite"),
    "codebook_gradient": (
        lambda: quantize.codebook_gradient(quantize.kmeans(W, CODEBOOK), W.astype(int)),
        TypeError,
        "dw must have a floating-point dtype, got int64",
    ),
    "quantize-codebook": (
        lambda: quantize.quantize(W, CODEBOOK),
        ValueError,
        "scheme must not be a codebook, whose levels kmeans finds",
    ),
    "quantize-nan": (
        lambda: quantize.quantize(NAN, INT8, scale=np.ones((4, 1), np.float32)),
        ValueError,
        "w must be finite",
    ),
    "fake_quantize": (
        lambda: quantize.fake_quantize(W, INT8, zero_point=np.zeros((4, 1), np.int8)),
        ValueError,
        "zero_point needs scale",
    ),
    "lsq_scale": (lambda: quantize.lsq_scale(NAN, INT8), ValueError, "w must be finite"),
    "adaround": (
        lambda: quantize.adaround(W, seen(), CODEBOOK),
        ValueError,
        "scheme must have dtype 'int' or 'uint', got 'codebook'",
    ),
    "bias_correction": (
        lambda: quantize.bias_correction(
            W, quantize.quantize(W, INT8), np.ones(6), np.full(4, np.inf)
        ),
        ValueError,
        "w, mean and bias must be finite",
    ),
    "gptq-codebook": (
        lambda: quantize.gptq(W, seen(), CODEBOOK, scale=np.ones((4, 1), np.float32)),
        ValueError,
        "scale must be None for a codebook",
    ),
    "gptq-order": (
        lambda: quantize.gptq(W, seen(), BY_COLUMN, act_order=True),
        ValueError,
        "act_order must be False for codebooks of groups",
    ),
    "awq-unseen": (
        lambda: quantize.awq(W, prune.InputStatistics(6, gram=True), INT8),
        ValueError,
        "statistics must have seen inputs with gram=True, got 0 rows",
    ),
    "awq-gram": (
        lambda: quantize.awq(W, prune.InputStatistics(6), INT8),
        ValueError,
        "got 0 rows without",
    ),
    "awq-nan": (lambda: quantize.awq(NAN, seen(), INT8), ValueError, "w must be finite"),
    "linear-order": (
        lambda: ordered().linear(np.ones((1, 5), np.float32)),
        ValueError,
        r"x must have shape \(batch, 6\), got \(1, 5\)",
    ),
    "group_index": (
        lambda: quantize.QuantizedTensor(
            np.zeros((4, 6), np.int8),
            np.ones((4, 3), np.float32),
            scheme=GROUPS,
            group_index=np.zeros(6),
        ),
        TypeError,
        "group_index must have dtype int32, got float64",
    ),
    "codebook-shape": (
        lambda: quantize.QuantizedTensor(
            np.zeros((4, 6), np.uint8),
            np.ones((4, 1), np.float32),
            scheme=CODEBOOK,
            codebook=np.zeros((4, 9), np.float32),
        ),
        ValueError,
        r"codebook must have shape \(.*\), got \(4, 9\)",
    ),
    "rows": (
        lambda: quantize.kmeans(W[0], Scheme(bits=2, dtype="codebook", granularity="tensor")).rows(
            0, 1
        ),
        ValueError,
        "rows needs at least two axes",
    ),
    "histogram": (lambda: quantize.Histogram(bins=100), ValueError, "bins must be a power of 2"),
    # prune
    "sparsegpt-nm": (
        lambda: prune.sparsegpt(W.copy(), seen(), nm=3),
        TypeError,
        "nm must be a pair of integers, got 3",
    ),
    "statistics-keys": (
        lambda: prune.save_statistics("x", {3: seen()}),
        TypeError,
        "must have names of layers as keys, got 3",
    ),
    "statistics-size": (lambda: prune.InputStatistics(2**62), MemoryError, "features=.* is more"),
    "iterative": (
        lambda: prune.IterativeSchedule(rate=1e-13),
        ValueError,
        "rate must be at least 1e-12",
    ),
    # sparse
    "shape": (
        lambda: sparse.CSRMatrix(
            (np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(1, np.int32)), (0, -1)
        ),
        ValueError,
        "shape must not be negative",
    ),
    "bsr-mask": (
        lambda: sparse.BSRMatrix.from_dense(W16, (4, 4), mask=np.ones((4, 5), bool)),
        ValueError,
        r"mask must have the shape \(4, 16\) of w",
    ),
    "bsr-both": (
        lambda: sparse.BSRMatrix.from_dense(W16, (4, 4), 0.5, mask=W16 > 0),
        ValueError,
        "give either threshold or mask",
    ),
    "nm-dtype": (
        lambda: sparse.NMMatrix.from_dense(W.astype(int), 1, 2),
        TypeError,
        "w must have dtype float32, float64, float16 or bfloat16, got int64",
    ),
    "nm-mask": (
        lambda: sparse.NMMatrix.from_dense(W, 1, 2, mask=np.ones((4, 5), bool)),
        ValueError,
        r"mask must have the shape \(4, 6\) of w",
    ),
    "scale_rows": (
        lambda: sparse.CSRMatrix.from_dense(W).scale_rows(np.ones(4)),
        TypeError,
        "factors must have dtype float32 like data, got float64",
    ),
    "add": (
        lambda: sparse.CSRMatrix.from_dense(W) + sparse.CSRMatrix.from_dense(W.astype(float)),
        TypeError,
        "dtypes must agree, got float32 and float64",
    ),
    # nn
    "attention-shapes": (
        lambda: nn.QuantizedMultiHeadAttention(linear(4, 8), linear(4, 4), 2),
        ValueError,
        r"got \(8, 4\) and \(4, 4\)",
    ),
    "attention-dtypes": (
        lambda: nn.QuantizedMultiHeadAttention(linear(4, 12), linear(4, 4, dtype="float64"), 2),
        TypeError,
        "out_proj must have dtype float32 like in_proj",
    ),
    "residual": (
        lambda: nn.Sequential(nn.Residual(nn.Linear(6, 5)))(W),
        ValueError,
        r"the body must give the shape \(4, 6\) of its input, got \(4, 5\)",
    ),
    "embedding-size": (lambda: nn.Embedding(2**40, 2**40), MemoryError, "more than memory"),
    "linear-size": (lambda: nn.Linear(2**40, 2**40), MemoryError, "more than memory"),
    "norm-size": (lambda: nn.LayerNorm(2**62), MemoryError, "more than memory can hold"),
    # distill
    "dkd_loss": (
        lambda: distill.dkd_loss(
            np.zeros((1, 3), np.float32),
            distill.top_k(np.zeros((1, 3), np.float32), 2),
            labels=[0],
        ),
        TypeError,
        "teacher must be logits of all classes, got TopK",
    ),
    # optim
    "state-keys": (
        lambda: stepped().state.__setitem__(0, {"step": 1}),
        ValueError,
        r"state\[0\] must be a dict with the keys",
    ),
    "state-step": (lambda: codes(step=1.5), ValueError, "'step' must be a whole number >= 0"),
    "sequential": (
        lambda: optim.lr_scheduler.SequentialLR(
            optim.SGD(np.ones(3), lr=0.1),
            [lambda o: optim.lr_scheduler.ConstantLR(o)] * 3,
            milestones=[5, 3],
        ),
        (TypeError, ValueError),
        "milestones|schedulers",
    ),
    # search
    "model": (lambda: search.measure(nn.ReLU()), TypeError, "model must be made of layers"),
    "layers": (
        lambda: search.measure(nn.Sequential(nn.ReLU())),
        ValueError,
        "model must have at least one Linear layer",
    ),
    "option-nm": (lambda: search.Option(nm=3), TypeError, r"nm must be a pair \(n, m\), got 3"),
    "checkpoint": (
        lambda: search.compress("model.safetensors", 100),
        ValueError,
        "destination must be given where model is a checkpoint",
    ),
    "tables": (
        lambda: search.allocate([np.zeros(2, complex)], [[1, 2]], 2),
        TypeError,
        "must be an array of numbers",
    ),
    # checkpoint
    "rule": (
        lambda: checkpoint.Rule(method="mse"),
        ValueError,
        "method 'mse' needs quantize to be int2 to int8 or nf4",
    ),
    "path": (lambda: nn.load("a\0b"), ValueError, "path must not contain a null character"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_values_are_refused_with_what_is_needed(name):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()


def of_statistics(**change):
    content = {
        "arrays": {"0": np.eye(3)},
        "metadata": {"names": '{"a": "0"}', "counts": '{"0": 5}'},
    }
    content["metadata"] |= change.pop("metadata", {})
    return {**content, **change}


STATISTICS = {
    "other names": (of_statistics(metadata={"names": '{"a": "1"}'}), "describes other statistics"),
    "negative": (of_statistics(metadata={"counts": '{"0": -5}'}), "describes other statistics"),
    "no json": (of_statistics(metadata={"counts": "{"}), "."),
    "dtype": (of_statistics(arrays={"0": np.eye(3, dtype=np.float32)}), "must be float64 of shape"),
    "shape": (of_statistics(arrays={"0": np.ones((3, 4))}), "must be float64 of shape"),
    "infinite": (of_statistics(arrays={"0": np.full((3, 3), np.inf)}), "must hold finite sums"),
    "negative sums": (of_statistics(arrays={"0": -np.eye(3)}), "must hold finite sums"),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_files_of_statistics_are_examined(name, tmp_path):
    path = tmp_path / "x.safetensors"
    prune.save_statistics(path, {"a": seen(3)})
    assert prune.load_statistics(path)["a"].count == 50
    content, message = STATISTICS[name]
    from compressrs.prune.statistics import KIND

    save_tensors(path, content["arrays"], {**KIND, **content["metadata"]})
    with pytest.raises(ValueError, match=message):
        prune.load_statistics(path)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{", "does not say what its model is made of"),
        (None, "does not say what its model is made of"),
        (json.dumps({"type": "Cake", "config": {}, "layers": {}}), "is a Cake, which is none of"),
        (json.dumps({"type": "Linear", "config": {}, "layers": {}}), "holds no model"),
        (json.dumps({"type": "Linear", "config": [], "layers": 3}), "holds no model"),
        (json.dumps([]), "holds no model|is made of"),
    ],
)
def test_files_that_describe_no_model(model, message, tmp_path):
    path = tmp_path / "x.safetensors"
    metadata = {"format": "compressrs.nn", "version": "1"}
    save_tensors(path, {"weight": W}, metadata | ({} if model is None else {"model": model}))
    with pytest.raises(ValueError, match=message):
        nn.load(path)
    own = nn.Sequential(nn.Linear(6, 4))
    before = own.copy()
    with pytest.raises(ValueError, match=str(path)):
        own.load(path)
    np.testing.assert_array_equal(own[0].weight, before[0].weight)


def test_a_file_of_a_run_without_state(tmp_path):
    path = tmp_path / "x.safetensors"
    run = cr.TrainState(optimizer=optim.SGD(np.ones(3)))
    run.save(path)
    from compressrs.train_state import FORMAT, VERSION

    for metadata in ({}, {"parts": "{}", "state": "["}, {"parts": "{}", "state": '{"array": 3}'}):
        save_tensors(path, {}, {"format": FORMAT, "version": VERSION, **metadata})
        with pytest.raises(ValueError, match="holds no state of a run"):
            run.load(path)
    # Without the file, the last of the series is looked for, in a folder that need not exist.
    with pytest.raises(OSError):
        run.load(tmp_path / "absent" / "x.safetensors")


def test_a_file_of_an_optimizer_with_other_arrays(tmp_path):
    path = tmp_path / "x.safetensors"
    opt = optim.Adam(np.ones(3))
    opt.save(path)
    from compressrs.optim.storage import FORMAT, VERSION

    metadata = {"format": FORMAT, "version": VERSION, "rule": "Adam"}
    for name in ("cake", "state.0", "state.x.step", "mask.0.1"):
        save_tensors(path, {name: np.ones(3)}, metadata)
        with pytest.raises(ValueError, match=r"is not a valid optimizer file|must have rule"):
            opt.load(path)


@pytest.mark.parametrize(
    "value", [object(), {(1, 2): 3}, np.array(["a"]), {"a": [3, {None: 1}]}, 1j]
)
def test_what_no_file_of_a_run_can_hold_is_named(value, tmp_path):
    class Part:
        def state_dict(self):
            return {"x": value}

        def load_state_dict(self, state_dict):
            raise AssertionError

    path = tmp_path / "x.safetensors"
    with pytest.raises(TypeError, match=r"x.*(cannot be saved|must hold numbers|has a key)"):
        cr.TrainState(part=Part()).save(path)
    assert not path.exists()


def test_parts_of_a_run_that_are_the_users_own_go_back():
    class Part:
        def __init__(self):
            self.value, self.fails = 1, False

        def state_dict(self):
            return {"value": self.value}

        def load_state_dict(self, state_dict):
            self.value = state_dict["value"]
            if self.fails:
                self.fails = False
                raise ValueError("no")

    first, second = Part(), Part()
    run = cr.TrainState(first=first, second=second)
    state = run.state_dict()
    first.value = second.value = 5
    second.fails = True
    with pytest.raises(ValueError, match="no"):
        run.load_state_dict(state)
    assert (first.value, second.value) == (5, 5)
    run.load_state_dict(state)
    assert (first.value, second.value) == (1, 1)


def test_batch_norms_are_folded_at_any_depth():
    rng = np.random.default_rng(0)
    inner = nn.Sequential(nn.Linear(6, 6, rng=rng), nn.BatchNorm(6))
    shortcut = nn.Sequential(nn.Linear(6, 6, rng=rng), nn.BatchNorm(6))
    body = nn.Residual(nn.Linear(6, 6, rng=rng), nn.BatchNorm(6), shortcut=shortcut)
    model = nn.Sequential(inner, nn.ReLU(), body)
    for _ in range(3):
        model(rng.standard_normal((50, 6)).astype(np.float32))
    folded = nn.fold_batch_norm(model.eval())
    assert not [name for name, x in folded.named_layers() if isinstance(x, nn.BatchNorm)]
    x = rng.standard_normal((20, 6)).astype(np.float32)
    np.testing.assert_allclose(folded(x), model(x), rtol=1e-4, atol=1e-5)


def test_labels_of_rules():
    from compressrs.search.options import rule_label

    rule = checkpoint.Rule
    assert {
        rule_label(rule()),
        rule_label(rule(quantize="int4", group_size=32)),
        rule_label(rule(quantize="int8", method="mse")),
        rule_label(rule(quantize="codebook", entries=16)),
        rule_label(rule(prune=0.5)),
        rule_label(rule(dtype="bfloat16")),
    } == {"lossless", "int4 g32", "int8 mse", "codebook 16", "50% sparse", "bfloat16"}

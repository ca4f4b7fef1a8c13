"""Weights, gradients and state in half precision and 8 bits."""

import copy
import json
import pickle
import sys

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

import compressrs as cr
from compressrs import _core
from tests.reference import few_bytes as reference

BF16 = np.dtype(ml_dtypes.bfloat16)
HALVES = (np.dtype(np.float16), BF16)
N = 5000  # above the least that is kept in 8 bits, and no whole number of blocks

#: Rules that keep moments, with what else their state depends on.
KEEPERS = [
    (cr.optim.SGD, {"momentum": 0.9}),
    (cr.optim.Momentum, {}),
    (cr.optim.Adagrad, {"initial_accumulator_value": 0.1}),
    (cr.optim.RMSprop, {"momentum": 0.9}),
    (cr.optim.Adadelta, {}),
    (cr.optim.Adam, {"amsgrad": True}),
    (cr.optim.AdamW, {}),
    (cr.optim.Adamax, {}),
    (cr.optim.NAdam, {}),
    (cr.optim.RAdam, {}),
    (cr.optim.Lion, {}),
]
IDS = [cls.__name__ for cls, _ in KEEPERS]
ALL = [getattr(cr.optim, name) for name in cr.optim.__all__]
RULES = [cls for cls in ALL if isinstance(cls, type) and issubclass(cls, cr.optim.Optimizer)]
RULES = [cls for cls in RULES if cls is not cr.optim.Optimizer]


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def buffers(opt, i=0):
    """The state without what is one number."""
    return {name: a for name, a in opt.state[i].items() if a.ndim}


def snapshot(opt):
    return pickle.dumps([opt.state_dict(), [w.tobytes() for w in opt._arrays()]])


finite = st.floats(-(2.0**100), 2.0**100, width=32)
blocks = hnp.arrays(np.float32, st.integers(1, 600), elements=finite)


@given(blocks)
def test_codes_are_those_of_the_reference(x):
    half = np.full(x.size, 2**31, np.uint32)
    for code, dtype, values in (
        (reference.SIGNED, np.int8, x),
        (reference.DIVISOR, np.uint8, np.abs(x)),
    ):
        codes, scales = np.zeros(x.size, dtype), np.zeros(-(-x.size // 256), np.float32)
        _core.encode_state(values, codes, scales, "x")
        expected, expected_scales = code.encode(values, half)
        np.testing.assert_array_equal(codes, expected)
        np.testing.assert_array_equal(scales, expected_scales)
        decoded = np.empty_like(values)
        _core.decode_state(codes, scales, decoded, "x")
        np.testing.assert_array_equal(decoded, code.decode(codes, scales))


def test_codes_keep_nan_and_infinity_beside_finite_numbers():
    x = normal(300)
    x[[3, 4, 5]] = np.nan, np.inf, -np.inf
    codes, scales = np.zeros(300, np.int8), np.zeros(2, np.float32)
    _core.encode_state(x, codes, scales, "x")
    expected, expected_scales = reference.SIGNED.encode(x, np.full(300, 2**31, np.uint32))
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(scales, expected_scales)
    decoded = np.empty_like(x)
    _core.decode_state(codes, scales, decoded, "x")
    np.testing.assert_array_equal(decoded[3:6], x[3:6])
    others = np.r_[0:3, 6:300]
    np.testing.assert_allclose(decoded[others], x[others], rtol=0.07, atol=4e-3)


@pytest.mark.parametrize(("cls", "kwargs"), KEEPERS, ids=IDS)
@pytest.mark.parametrize("state_dtype", ["int8", "bfloat16"])
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BF16], ids=str)
def test_a_step_is_one_in_full_precision_then_rounded(cls, kwargs, state_dtype, dtype):
    """Bit for bit: decoded state, our own float32 step, stored by the reference."""
    w, seed = normal(N, dtype=dtype), 7
    opt = cls(w, state_dtype=state_dtype, precision="stochastic", seed=seed, **kwargs)
    assert any(a.dtype != np.float32 for a in buffers(opt).values())
    for t in range(1, 5):
        full = w.astype(np.float32)
        exact = cls(full, **kwargs)
        exact.load_state_dict(opt.state_dict())
        scale = np.float32(10.0) ** np.arange(-4, 1, dtype=np.float32).repeat(1000)
        g = (normal(N, seed=t) * scale).astype(dtype)
        opt.step(g)
        exact.step(g)
        if dtype == BF16:
            full = reference.bfloat16(full, reference.thresholds(seed, 0, t, N, weights=True))
        np.testing.assert_array_equal(w.astype(np.float32), full)
        threshold = reference.thresholds(seed, 0, t, N)
        for name, value in buffers(exact).items():
            got = opt.state[0][name]
            if state_dtype == "bfloat16":
                expected = reference.bfloat16(value, threshold)
                np.testing.assert_array_equal(got.astype(np.float32), expected)
            else:
                codes, scales = reference.code_of(got).encode(value, threshold)
                np.testing.assert_array_equal(got, codes)
                np.testing.assert_array_equal(opt.state[0][name + "_scale"], scales)


@pytest.mark.parametrize("cls", RULES)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_rule_steps_half_precision_as_single_and_rounds(cls, dtype):
    shapes = [(40, 130)] if cls is cr.optim.Muon else [(3,), (40, 130), ()]
    half = [normal(*s, dtype=dtype) for s in shapes]
    single = [w.astype(np.float32) for w in half]
    grads = [normal(*s, seed=1, dtype=dtype) for s in shapes]
    kwargs = {} if cls is cr.optim.Adafactor else {"lr": 0.01}
    cls(half, **kwargs).step(grads)
    cls(single, **kwargs).step([g.astype(np.float32) for g in grads])
    for h, s in zip(half, single, strict=True):
        np.testing.assert_array_equal(h, s.astype(dtype))


@pytest.mark.parametrize("cls", RULES)
@pytest.mark.parametrize("precision", ["stochastic", "kahan", "master"])
def test_small_steps_add_up(cls, precision):
    """A step of less than half of the last place moves the weight in the mean."""
    others = {cr.optim.Adafactor, cr.optim.Adadelta, cr.optim.Lamb, cr.optim.ASGD, cr.optim.Rprop}
    if cls in others | {cr.optim.Prodigy, cr.optim.SOAP}:
        pytest.skip("takes steps of another size")
    shape = (40, 130)
    g = np.abs(normal(*shape, seed=1)) + np.float32(0.1)
    single, half = np.ones(shape, np.float32), np.ones(shape, BF16)
    lr = 1e-3 if cls is cr.optim.Muon else 1e-4
    opts = [cls(single, lr=lr), cls(half, lr=lr, precision=precision)]
    for _ in range(200):
        for opt in opts:
            opt.step(g)
    moved = 1 - single.astype(np.float64)
    assert np.abs(moved).mean() > 1e-3
    difference = half.astype(np.float64) - single
    place = np.where(single < 1, 2.0**-8, 2.0**-7)  # of bfloat16
    if precision == "stochastic":
        assert abs(difference.mean()) < 0.03 * np.abs(moved).mean()
        assert np.abs(difference).mean() < 2.0**-8
    else:
        # What Kahan's compensation, itself in bfloat16, cuts off in each step.
        cut = 200 * 2.0**-18 if precision == "kahan" else 0
        assert (np.abs(difference) <= place / 2 + cut).all()


def test_rounding_to_nearest_loses_small_steps():
    w = np.ones(N, BF16)
    opt = cr.optim.Adam(w, lr=1e-4)
    for _ in range(200):
        opt.step(np.ones(N, BF16))
    assert (w == 1).all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_stochastic_rounding_is_right_in_the_mean_for_every_magnitude(dtype):
    """Over steps, for one element, and over elements, for one step."""
    info = ml_dtypes.finfo(dtype)
    for start in (1.0, float(info.smallest_normal), float(info.smallest_normal) / 8, 1000.0):
        place = float(np.spacing(np.array(start, dtype)))
        w = np.full(100_000, start, dtype)
        opt = cr.optim.SGD(w, lr=1.0, precision="stochastic")
        opt.step(np.full(w.shape, -0.3 * place, np.float32))
        share = np.mean(w.astype(np.float64) != start)
        assert share == pytest.approx(0.3, abs=0.01), start
        ups = 0
        for _ in range(1000):
            w[0] = start
            opt.step(np.full(w.shape, -0.3 * place, np.float32))
            ups += int(w[0] != np.array(start, dtype))
        assert ups == pytest.approx(300, abs=5), start


def test_masters_follow_what_others_write():
    w = normal(N, dtype=BF16)
    opt = cr.optim.SGD(w, lr=1.0, precision="master")
    opt.step(np.full(N, 1e-4, np.float32))
    w[:10] = 3.0
    opt.step(np.full(N, 0.5, np.float32))
    assert (w[:10] == 2.5).all()


@pytest.mark.parametrize("grad_dtype", [np.float16, BF16, np.float32, np.float64], ids=str)
@pytest.mark.parametrize("dtype", [np.float16, BF16, np.float32, np.float64], ids=str)
def test_gradients_of_any_dtype(dtype, grad_dtype):
    compute = np.float64 if dtype == np.float64 else np.float32
    w, g = normal(N, dtype=dtype), normal(N, seed=1).astype(grad_dtype)
    same, converted = w.copy(), g.astype(compute)
    norms = [
        cr.optim.Adam(a, lr=0.1).step(b, max_grad_norm=1.0) for a, b in ((w, g), (same, converted))
    ]
    if grad_dtype == np.float64 != compute:
        # Clipped before it is rounded.
        np.testing.assert_allclose(*(a.astype(np.float64) for a in (w, same)), rtol=1e-2, atol=1e-6)
        factor = min(1.0, 1.0 / (norms[0] + 1e-6))
        plain = normal(N, dtype=dtype)
        cr.optim.Adam(plain, lr=0.1).step((factor * g).astype(compute))
        np.testing.assert_array_equal(w, plain)
    else:
        np.testing.assert_array_equal(w, same)
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_8_bit_state_takes_two_bytes_a_parameter():
    w = np.zeros(1_000_000, np.float32)
    opt = cr.optim.Adam(w, state_dtype="int8")
    opt.step(np.ones_like(w))
    assert sum(a.nbytes for a in opt.state[0].values()) / w.size < 2.1


def test_small_tensors_keep_full_state():
    sizes = (4095, 4096)
    opt = cr.optim.Adam([np.zeros(n, np.float32) for n in sizes], state_dtype="int8")
    assert [opt.state[i]["exp_avg"].dtype for i in range(2)] == [np.float32, np.int8]


@pytest.mark.parametrize("state_dtype", ["int8", "bfloat16"])
def test_slow_means_neither_stick_nor_drift(state_dtype):
    """With beta2 = 0.999 a mean moves by less than codes are apart."""
    w = np.zeros(N, np.float32)
    opt = cr.optim.Adam(w, state_dtype=state_dtype)
    exact = cr.optim.Adam(w.copy())
    rng = np.random.default_rng(0)
    sizes = rng.lognormal(0, 1, N).astype(np.float32)
    for t in range(1500):
        g = sizes * rng.standard_normal(N).astype(np.float32)
        if t == 700:  # the gradients shrink, and the mean must come down
            sizes /= 3
        opt.step(g)
        exact.step(g)
    got = cr.optim.Adam(w.copy())
    got.load_state_dict(opt.state_dict())
    ratio = got.state[0]["exp_avg_sq"] / exact.state[0]["exp_avg_sq"]
    assert np.mean(ratio) == pytest.approx(1, abs=0.02)
    assert np.std(ratio) < 0.2


def test_rare_rows_of_an_embedding_do_not_explode():
    """Rows that share a block: some see gradients a million times those of others."""
    w = np.zeros((64, 64), np.float32)
    opt = cr.optim.Adam(w, lr=1.0, state_dtype="int8")
    scale = np.float32(10.0) ** np.linspace(-6, 0, 64, dtype=np.float32)[:, None]
    rng = np.random.default_rng(0)
    for t in range(300):
        before = w.copy()
        seen = rng.random((64, 1)) < 0.05
        opt.step(np.where(seen, scale * rng.standard_normal((64, 64), np.float32), np.float32(0)))
        # In full precision |m| <= (1 - beta1) / sqrt(1 - beta2) sqrt(v) = 3.2 sqrt(v),
        # less the bias corrections of the first steps.
        if t > 20:
            assert np.abs(w - before).max() < 10


def test_centered_rmsprop_keeps_what_it_subtracts():
    w = np.zeros(N, np.float32)
    opt = cr.optim.RMSprop(w, centered=True, momentum=0.9, state_dtype="int8")
    dtypes = {name: a.dtype for name, a in buffers(opt).items()}
    assert dtypes["square_avg"] == dtypes["grad_avg"] == np.float32
    assert dtypes["momentum_buffer"] == np.int8
    for t in range(50):
        opt.step(1 + 1e-3 * normal(N, seed=t))
    assert np.isfinite(w).all()


@pytest.mark.parametrize("cls", [cr.optim.Lamb, cr.optim.Muon])
def test_rules_of_whole_tensors_keep_few_bytes_too(cls):
    w, full = normal(70, 90), normal(70, 90)
    opts = [cls(w, lr=0.01, state_dtype="int8"), cls(full, lr=0.01)]
    assert any(a.dtype == np.int8 for a in buffers(opts[0]).values())
    for t in range(5):
        for opt in opts:
            opt.step(normal(70, 90, seed=t))
    error = np.linalg.norm(w - full) / np.linalg.norm(full - normal(70, 90))
    assert error < 0.1


@pytest.mark.parametrize("cls", [cr.optim.Rprop, cr.optim.ASGD, cr.optim.Adafactor])
def test_rules_without_moments_refuse(cls):
    with pytest.raises(ValueError, match="state_dtype must be 'float32' for this rule"):
        cls(normal(N), state_dtype="int8")


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"state_dtype": "int4"}, ValueError, "state_dtype must be 'float32', 'bfloat16' or"),
        ({"state_dtype": 8}, TypeError, "state_dtype must be a string"),
        ({"precision": "high"}, ValueError, "precision must be 'nearest', 'stochastic'"),
        ({"precision": None}, TypeError, "precision must be a string"),
        ({"seed": -1}, ValueError, "seed must be an integer from 0"),
        ({"seed": 2**64}, ValueError, "seed must be an integer from 0"),
        ({"seed": 1.5}, TypeError, "seed must be an integer from 0"),
        ({"state_type": "int8"}, TypeError, "Adam has no parameter 'state_type'; it takes lr, "),
    ],
)
def test_bad_settings(kwargs, error, message):
    with pytest.raises(error, match=message):
        cr.optim.Adam(normal(N), **kwargs)
    groups = [{"params": normal(N), **kwargs}]
    if "state_type" not in kwargs:
        with pytest.raises(error, match=message):
            cr.optim.Adam(groups)


def test_settings_cannot_be_changed_in_a_group():
    w = normal(N, dtype=BF16)
    for key, value in (("state_dtype", "int8"), ("precision", "kahan")):
        opt = cr.optim.Adam(w)
        opt.param_groups[0][key] = value
        before = snapshot(opt)
        with pytest.raises(ValueError, match="use convert_state"):
            opt.step(np.ones(N, np.float32))
        assert snapshot(opt) == before


def test_groups_have_settings_of_their_own():
    opt = cr.optim.Adam(
        [{"params": normal(N), "state_dtype": "float32"}, {"params": normal(N)}],
        state_dtype="int8",
    )
    assert [opt.state[i]["exp_avg"].dtype for i in range(2)] == [np.float32, np.int8]


@pytest.mark.parametrize("start", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("end", ["float32", "bfloat16", "int8"])
def test_a_running_optimizer_changes_its_storage(start, end):
    w = normal(N)
    opt = cr.optim.Adam(w, state_dtype=start)
    for t in range(5):
        opt.step(normal(N, seed=t))
    values = cr.optim.Adam(w.copy())
    values.load_state_dict(opt.state_dict())
    opt.convert_state(end)
    assert opt.param_groups[0]["state_dtype"] == end
    converted = cr.optim.Adam(w.copy())
    converted.load_state_dict(opt.state_dict())
    tolerance = {"float32": 0, "bfloat16": 2.0**-8, "int8": 2.0**-4}[end]
    for name in ("exp_avg", "exp_avg_sq"):
        expected, got = values.state[0][name], converted.state[0][name]
        atol = 1e-3 * np.abs(expected).max() if end == "int8" else 0
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=atol)
    assert opt.state[0]["step"] == 5
    opt.step(normal(N, seed=5))
    before = snapshot(opt)
    with pytest.raises(ValueError, match="state_dtype must be"):
        opt.convert_state("int4")
    assert snapshot(opt) == before


def test_precision_is_converted_too():
    w = normal(N, dtype=BF16)
    opt = cr.optim.Adam(w, precision="master")
    opt.step(normal(N, seed=1))
    opt.convert_state(precision="kahan")
    assert set(buffers(opt)) == {"exp_avg", "exp_avg_sq", "compensation"}
    opt.step(normal(N, seed=2))


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("precision", ["stochastic", "kahan", "master"])
def test_saved_pickled_copied_it_goes_on_with_the_same_bits(tmp_path, state_dtype, precision):
    def make():
        w = [normal(N, dtype=BF16), normal(70, 90)]
        return w, cr.optim.AdamW(w, state_dtype=state_dtype, precision=precision, seed=3)

    def go_on(opt, w):
        for t in range(3, 6):
            opt.step([normal(N, seed=t), normal(70, 90, seed=t)])
        return [a.tobytes() for a in w]

    w, opt = make()
    for t in range(3):
        opt.step([normal(N, seed=t), normal(70, 90, seed=t)])
    opt.save(tmp_path / "opt.safetensors")
    pickled, copied = pickle.dumps(opt), copy.deepcopy(opt)
    kept = [a.copy() for a in w]
    expected = go_on(opt, w)
    assert go_on(copied, copied._arrays()) == expected
    unpickled = pickle.loads(pickled)
    assert go_on(unpickled, unpickled._arrays()) == expected
    fresh_w, fresh = make()
    for a, b in zip(fresh_w, kept, strict=True):
        a[...] = b
    fresh.load(tmp_path / "opt.safetensors")
    assert go_on(fresh, fresh_w) == expected


def spoilt(state_dict, how):
    """A state dict in which something is wrong, and what is said of it."""
    state = state_dict["state"][0]
    if how == "version":
        state_dict["codes"]["version"] = 99
        return "must have 8-bit codes"
    if how == "block size":
        state_dict["codes"]["block_size"] = 128
        return "must have 8-bit codes"
    if how == "no word of codes":
        del state_dict["codes"]
        return "must have 8-bit codes"
    if how == "truncated scales":
        state["exp_avg_scale"] = state["exp_avg_scale"][:-1]
        return r"\['exp_avg_scale'\] must be numbers of shape"
    if how == "truncated codes":
        state["exp_avg"] = state["exp_avg"][:-1]
        return r"\['exp_avg'\] must be numbers of shape"
    if how == "no scales":
        del state["exp_avg_scale"]
        return "must be codes with their 'exp_avg_scale'"
    if how == "no codes":
        state["exp_avg"] = state["exp_avg"].astype(np.float32)
        return "must be codes with their 'exp_avg_scale'"
    assert how == "strings"
    state["exp_avg"] = state["exp_avg"].astype(str)
    return "must be numbers"


@pytest.mark.parametrize("target", ["int8", "float32"])
@pytest.mark.parametrize(
    "how",
    [
        "version",
        "block size",
        "no word of codes",
        "truncated scales",
        "truncated codes",
        "no scales",
        "no codes",
        "strings",
    ],
)
def test_a_spoilt_state_is_refused(how, target):
    opt = cr.optim.Adam(normal(N), state_dtype="int8")
    opt.step(normal(N, seed=1))
    state_dict = copy.deepcopy(opt.state_dict())
    message = spoilt(state_dict, how)
    other = cr.optim.Adam(normal(N), state_dtype=target)
    before = snapshot(other)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(state_dict)
    assert snapshot(other) == before


def test_a_spoilt_file_is_refused(tmp_path):
    path = tmp_path / "opt.safetensors"
    opt = cr.optim.Adam(normal(N), state_dtype="int8")
    opt.step(normal(N, seed=1))
    opt.save(path)
    data = path.read_bytes()
    before = snapshot(opt)
    for length in (0, 7, 100, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="is not a complete safetensors file"):
            opt.load(path)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["codes"]) == {"version": 1, "block_size": 256}
    path.write_bytes(data.replace(rb"{\"version\": 1", rb"{\"version\": 2"))
    with pytest.raises(ValueError, match="is damaged: its checksum is another"):
        opt.load(path)
    assert snapshot(opt) == before


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_half_precision_gradients_that_are_not_finite(state_dtype, bad):
    w = normal(N, dtype=np.float16)
    opt = cr.optim.Adam(w, state_dtype=state_dtype, precision="stochastic")
    opt.step(normal(N, seed=1, dtype=np.float16))
    before = snapshot(opt)
    g = normal(N, seed=2, dtype=np.float16)
    g[17] = bad
    with pytest.raises(cr.optim.NonFiniteGradientError, match="grads holds NaN or infinity"):
        opt.step(g, nonfinite="raise")
    assert snapshot(opt) == before
    assert not np.isfinite(opt.step(g, nonfinite="skip"))
    assert snapshot(opt) == before
    opt.step(g, nonfinite="ignore")
    assert np.isnan(w[17])
    # Its neighbours, though they share a scale, are as they would be.
    assert np.isfinite(np.delete(w, 17)).all()
    opt.step(normal(N, seed=3, dtype=np.float16))
    assert np.isfinite(np.delete(w, 17)).all()


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("precision", ["nearest", "stochastic", "kahan", "master"])
def test_masked_weights_and_their_state_are_0(state_dtype, precision):
    w = normal(N, dtype=BF16)
    opt = cr.optim.Adam(w, state_dtype=state_dtype, precision=precision)
    opt.step(normal(N, seed=1))
    mask = np.random.default_rng(0).random(N) < 0.5
    opt.set_masks(mask)
    for t in range(2, 5):
        for name, a in {"w": w, **buffers(opt)}.items():
            if not name.endswith("_scale"):
                assert not a[~mask].any(), name
        opt.step(normal(N, seed=t))
    assert w[mask].astype(bool).mean() > 0.99
    opt.convert_state("float32")
    for a in buffers(opt).values():
        assert not a[~mask].any()


def test_a_masked_step_is_a_plain_one_elsewhere():
    mask = np.arange(N) < 4096 + 256
    w, plain = normal(N), normal(N)
    opts = [cr.optim.Adam(a, state_dtype="int8") for a in (w, plain)]
    opts[0].set_masks(mask)
    for t in range(5):
        for opt in opts:
            opt.step(normal(N, seed=t))
    np.testing.assert_array_equal(w[mask], plain[mask])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_averages_move_in_half_precision_too(dtype):
    w = np.ones(N, dtype)
    ema = cr.optim.EMA(w, decay=0.999)
    w[...] = 2
    for _ in range(1000):
        ema.update()
    assert ema.average.dtype == np.float32
    np.testing.assert_allclose(ema.average, 2 - 0.999**1000, rtol=1e-4)
    with ema.applied():
        np.testing.assert_array_equal(w, ema.average.astype(dtype))
    assert (w == 2).all()
    w = np.full(N, 1, dtype)
    ahead = cr.optim.Lookahead(cr.optim.SGD(w, lr=1.0), k=1, alpha=1e-3)
    for _ in range(10):
        ahead.step(np.ones(N, dtype))
    assert ahead.state_dict()["slow"][0].mean() == pytest.approx(1 - 0.01, rel=1e-3)
    w = np.ones(N, dtype)
    free = cr.optim.ScheduleFree(w, lambda z: cr.optim.SGD(z, lr=1e-4))
    for _ in range(100):
        free.step(np.ones(N, dtype))
    free.eval()
    assert 0.99 < w.astype(np.float64).mean() < 0.998


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_what_is_done_to_gradients_in_half_precision(dtype):
    sums = cr.optim.GradientAccumulator(100)
    for _ in range(99):
        assert sums.add([np.full(3, 1 / 256, dtype)]) is None
    (mean,) = sums.add([np.full(3, 1, dtype)])
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, (99 / 256 + 1) / 100, rtol=1e-5)
    g = [normal(N, dtype=dtype), normal(7, dtype=np.float64)]
    truth = np.sqrt(sum((a.astype(np.float64) ** 2).sum() for a in g))
    norm = cr.optim.clip_grad_norm_(g, 1.0)
    assert norm == pytest.approx(truth, rel=1e-6)
    assert cr.optim.clip_grad_norm_(g, 1e9) == pytest.approx(1, rel=1e-2)
    cr.optim.clip_grad_value_(g, 1e-3)
    assert max(float(np.abs(a).max()) for a in g) <= float(np.array(1e-3, dtype)) * 1.001


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_pruning_in_half_precision(dtype):
    w = normal(60, 100, dtype=dtype)
    mask = cr.prune.magnitude_mask(w, sparsity=0.9)
    assert mask.sum() == 600
    magnitudes = np.abs(w.astype(np.float64))
    assert magnitudes[mask].min() >= magnitudes[~mask].max()
    threshold = cr.prune.magnitude_threshold(w, 0.9)
    assert threshold == np.sort(magnitudes, axis=None)[5400]
    np.testing.assert_array_equal(
        cr.prune.magnitude_mask(w, threshold=threshold), magnitudes >= threshold
    )
    opt = cr.optim.Adam(w, state_dtype="int8", precision="stochastic")
    schedule = cr.prune.CubicSchedule(final=0.9, begin=0, end=4)
    pruner = cr.prune.MagnitudePruner(w, schedule, optimizer=opt)
    for t in range(6):
        opt.step(normal(60, 100, seed=t))
        pruner.step()
    assert np.count_nonzero(w) <= 600


def test_without_ml_dtypes_an_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'compressrs\[bfloat16\]'"):
        cr.optim.Adam(normal(N), state_dtype="bfloat16")


def test_training_loses_nothing():
    """Logistic regression: 8-bit state, and bfloat16 throughout, end where float32 does."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 60)).astype(np.float32)
    truth = rng.standard_normal((60, 80)).astype(np.float32)
    y = (x @ truth + 2 * rng.standard_normal((2000, 80)) > 0).astype(np.float32)

    def train(dtype, **storage):
        w = np.zeros((60, 80), dtype)
        opt = cr.optim.Adam(w, lr=0.01, **storage)
        batches = np.random.default_rng(1)
        for t in range(600):
            opt.param_groups[0]["lr"] = 0.01 * 0.5 * (1 + np.cos(np.pi * t / 600))
            rows = batches.integers(0, 2000, 100)
            p = 1 / (1 + np.exp(-x[rows] @ w.astype(np.float32)))
            opt.step(x[rows].T @ (p - y[rows]) / 100)
        z = x @ w.astype(np.float32)
        return float(np.mean(np.logaddexp(0, z) - y * z))

    exact = train(np.float32)
    assert train(np.float32, state_dtype="int8") == pytest.approx(exact, rel=0.01)
    storage = {"state_dtype": "bfloat16", "precision": "stochastic"}
    assert train(BF16, **storage) == pytest.approx(exact, rel=0.01)

"""Clipping, scaling, non-finite gradients, freezing, averages, wrappers, files."""

import copy
import json
import os
import pickle
import resource
import subprocess
import sys

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import compressrs as cr
from tests.reference import optim as reference

FINITE = st.floats(-(2.0**99), 2.0**99, width=32)


@st.composite
def gradients(draw):
    dtypes = st.sampled_from([np.float32, np.float64])
    shapes = hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=70)
    return [
        draw(hnp.arrays(draw(dtypes), draw(shapes), elements=FINITE))
        for _ in range(draw(st.integers(1, 4)))
    ]


@given(gradients(), st.sampled_from([1.0, 2.0, 3.0, 0.5, np.inf]))
def test_norms(grads, order):
    truth = 0.0 if sum(g.size for g in grads) == 0 else reference.norm(grads, order)
    got = cr.optim.clip_grad_norm_([g.copy() for g in grads], np.finfo(float).max, order)
    assert got == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e-30, 1e200, 1.7e308])
def test_norms_do_not_overflow_or_vanish(scale):
    g = np.array([3.0, -4.0]) * (scale / 4)
    assert cr.optim.clip_grad_norm_(g, 1e308) == pytest.approx(1.25 * scale, rel=1e-3)


def test_clipping_is_that_of_pytorch():
    g = [np.array([[3.0, 0.0]]), {"a": np.array([4.0], np.float32), "b": None}]
    assert cr.optim.clip_grad_norm_(g, 1.0) == 5.0
    np.testing.assert_allclose(g[0], [[3 / (5 + 1e-6), 0]], rtol=1e-15)
    assert cr.optim.clip_grad_norm_(g, 2.0) < 1
    np.testing.assert_allclose(g[0], [[3 / (5 + 1e-6), 0]], rtol=1e-15)
    cr.optim.clip_grad_value_(g, 0.5)
    np.testing.assert_array_equal(g[0], [[0.5, 0]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_clipping_by_a_norm_that_is_not_finite(bad):
    g = np.array([1.0, bad])
    before = g.copy()
    with pytest.raises(cr.optim.NonFiniteGradientError, match="nothing was changed"):
        cr.optim.clip_grad_norm_(g, 1.0, error_if_nonfinite=True)
    np.testing.assert_array_equal(g, before)
    norm = cr.optim.clip_grad_norm_(g, 1.0)
    assert not np.isfinite(norm)
    cr.optim.clip_grad_value_(np.array([np.nan]), 1.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda g: cr.optim.clip_grad_norm_(g, -1.0), ValueError, "max_norm must be"),
        (lambda g: cr.optim.clip_grad_norm_(g, 1.0, 0), ValueError, "norm_type must be"),
        (lambda g: cr.optim.clip_grad_norm_(g, 1.0, "two"), TypeError, "norm_type must be"),
        (lambda g: cr.optim.clip_grad_norm_([g, g], 1.0), ValueError, "share memory"),
        (lambda g: cr.optim.clip_grad_norm_(g[::2], 1.0), ValueError, "C-contiguous"),
        (lambda g: cr.optim.clip_grad_norm_(g.astype(int), 1.0), TypeError, "dtype float32"),
        (lambda g: cr.optim.clip_grad_value_(g, np.nan), ValueError, "clip_value must be"),
        (lambda g: cr.optim.clip_grad_value_(g[::-1], 1.0), ValueError, "C-contiguous"),
    ],
)
def test_bad_clipping_changes_nothing(call, error, message):
    g = np.array([3.0, 4.0, 5.0])
    with pytest.raises(error, match=message):
        call(g)
    np.testing.assert_array_equal(g, [3, 4, 5])


@given(gradients(), st.floats(0.01, 10), st.sampled_from([1.0, 1 / 1024, -0.5]))
def test_fused_clipping_is_scaling_and_clipping_before(grads, max_norm, scale):
    params = [np.ones_like(g) for g in grads]
    twins = [p.copy() for p in params]
    fused, plain = cr.optim.SGD(params, lr=0.1), cr.optim.SGD(twins, lr=0.1)
    norm = fused.step(grads, max_grad_norm=max_norm, grad_scale=scale)
    scaled = [np.asarray(g * g.dtype.type(scale)) for g in grads]
    assert norm == pytest.approx(cr.optim.clip_grad_norm_(scaled, max_norm), rel=1e-6)
    plain.step(scaled)
    for p, q in zip(params, twins, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-6, atol=1e-6 * max_norm)


def test_a_step_without_options_returns_none():
    opt = cr.optim.SGD(np.ones(2))
    assert opt.step(np.ones(2)) is None
    assert opt.step(np.array([3.0, 4.0]), nonfinite="raise") == 5.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_non_finite_gradients(bad, dtype):
    params = {"a": np.ones(5), "b": [np.ones(100_000, dtype), np.ones(3, dtype)]}
    opt = cr.optim.Adam(params)
    grads = {"a": np.ones(5), "b": [np.ones(100_000, dtype), np.ones(3, dtype)]}
    opt.step(grads)
    before = pickle.dumps(opt)
    grads["b"][0][77_777] = bad
    with pytest.raises(cr.optim.NonFiniteGradientError, match=r"grads\['b'\]\[0\] holds NaN"):
        opt.step(grads, nonfinite="raise")
    assert pickle.dumps(opt) == before
    assert not np.isfinite(opt.step(grads, nonfinite="skip", max_grad_norm=1.0))
    assert pickle.dumps(opt) == before
    opt.step(grads, nonfinite="ignore")
    assert not np.isfinite(params["b"][0][77_777])
    assert np.isfinite(params["b"][1]).all()
    assert issubclass(cr.optim.NonFiniteGradientError, ValueError)


def test_gradients_too_large_for_their_square_are_finite():
    p = np.zeros(2)
    norm = cr.optim.SGD(p, lr=1.0).step(np.full(2, 1e200), nonfinite="raise", max_grad_norm=1.0)
    assert norm == pytest.approx(np.sqrt(2) * 1e200)
    np.testing.assert_allclose(p, -np.sqrt(0.5))


def test_masked_gradients_do_not_count():
    p = np.zeros(20)
    opt = cr.optim.SGD(p, lr=1.0)
    mask = np.arange(20) % 2 == 0
    opt.set_masks(mask)
    g = np.where(mask, 1.0, np.inf)
    assert opt.step(g, nonfinite="raise") == pytest.approx(np.sqrt(10))
    np.testing.assert_array_equal(p, np.where(mask, -1.0, 0.0))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"max_grad_norm": -1}, ValueError, r"max_grad_norm must be a (finite )?number >= 0"),
        ({"max_grad_norm": "1"}, TypeError, "max_grad_norm must be a number"),
        ({"grad_scale": np.nan}, ValueError, "grad_scale must be a finite number"),
        ({"nonfinite": "panic"}, ValueError, "nonfinite must be 'raise', 'skip' or 'ignore'"),
    ],
)
def test_bad_options(kwargs, error, message):
    p = np.ones(2)
    with pytest.raises(error, match=message):
        cr.optim.SGD(p).step(np.ones(2), **kwargs)
    assert (p == 1).all()


def test_frozen_groups_are_left_alone():
    a, b = np.ones(2), np.ones(2)
    opt = cr.optim.Adam([{"params": a, "frozen": True}, {"params": b}], lr=0.1)
    opt.step([np.ones(2), np.ones(2)])
    assert (a == 1).all()
    assert opt.state[0]["step"] == 0
    opt.param_groups[0]["frozen"] = False
    opt.step([np.ones(2), np.ones(2)])
    assert (a != 1).all()
    with pytest.raises(TypeError, match="frozen must be True or False"):
        opt.param_groups[0]["frozen"] = "no"
    assert opt.param_groups[0]["frozen"] is False


def test_csr_patterns_are_masks():
    w = np.array([[0.0, 2.0], [3.0, 0.0]])
    a = cr.sparse.CSRMatrix.from_dense(w)
    a.data[0] = 0  # stored all the same
    p = np.ones((2, 2))
    opt = cr.optim.SGD(p, lr=1.0)
    opt.set_masks(a)
    np.testing.assert_array_equal(p, [[0, 1], [1, 0]])
    with pytest.raises(ValueError, match=r"masks must have the shape \(2, 2\)"):
        opt.set_masks(np.ones((2, 3), bool))


def test_a_masked_optimizer_survives_pickling():
    p = np.ones(13)
    opt = cr.optim.SGD(p, lr=1.0)
    mask = np.arange(13) % 3 > 0
    opt.set_masks(mask)
    twin = pickle.loads(pickle.dumps(opt))
    twin.step(np.ones(13))
    np.testing.assert_array_equal(twin.param_groups[0]["params"][0][~mask], 0)


def test_accumulated_gradients_are_the_mean():
    rng = np.random.default_rng(0)
    batches = [{"w": rng.standard_normal((3, 4)), "b": rng.standard_normal(3)} for _ in range(8)]
    accumulator = cr.optim.GradientAccumulator(4)
    means = [accumulator.add(g) for g in batches]
    assert [m is None for m in means] == [True, True, True, False] * 2
    for name in ("w", "b"):
        np.testing.assert_allclose(means[7][name], np.mean([g[name] for g in batches[4:]], axis=0))
    assert accumulator.add({"w": None, "b": np.ones(3)}) is None
    for _ in range(3):
        mean = accumulator.add({"w": None, "b": np.ones(3)})
    assert mean["w"] is None
    np.testing.assert_array_equal(mean["b"], np.ones(3))
    before = accumulator.count
    for bad in ({"w": np.ones((3, 4))}, {"w": np.ones((3, 4)), "b": np.ones(4)}, np.ones(3)):
        with pytest.raises(ValueError):
            accumulator.add(bad)
    assert accumulator.count == before
    for steps, error in ((0, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="steps must be"):
            cr.optim.GradientAccumulator(steps)


def test_moving_averages():
    rng = np.random.default_rng(0)
    params = {"w": rng.standard_normal((5, 3)).astype(np.float32), "b": [rng.standard_normal(2)]}
    ema = cr.optim.EMA(params, decay=0.9)
    truth = copy.deepcopy(params)
    for _ in range(5):
        params["w"] += 1
        params["b"][0] -= 2
        ema.update()
        truth["w"] = 0.9 * truth["w"] + 0.1 * params["w"]
        truth["b"][0] = 0.9 * truth["b"][0] + 0.1 * params["b"][0]
    np.testing.assert_allclose(ema.average["w"], truth["w"], rtol=1e-6)
    np.testing.assert_allclose(ema.average["b"][0], truth["b"][0], rtol=1e-12)
    before = copy.deepcopy(params)
    with pytest.raises(RuntimeError, match="inside"), ema.applied():
        np.testing.assert_allclose(params["w"], truth["w"], rtol=1e-6)
        raise RuntimeError("inside")
    np.testing.assert_array_equal(params["w"], before["w"])
    saved = copy.deepcopy(ema.state_dict())
    other = cr.optim.EMA(copy.deepcopy(params))
    other.load_state_dict(saved)
    np.testing.assert_array_equal(other.average["w"], ema.average["w"])
    for bad in ({}, {"averages": [np.ones(2)], "step_count": 1}, {"averages": 3, "step_count": 1}):
        with pytest.raises(ValueError, match="state_dict"):
            other.load_state_dict(bad)
    ema.copy_to_params()
    np.testing.assert_array_equal(params["w"], ema.average["w"])
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\)"):
        cr.optim.EMA(np.ones(2), decay=1.0)
    with pytest.raises(ValueError, match="params must be writable"):
        cr.optim.EMA(np.broadcast_to(np.ones(1), (1,)))


def test_warmed_up_averages_forget_the_start():
    w = np.zeros(1)
    ema = cr.optim.EMA(w, decay=0.999, warmup=True)
    w += 1
    for _ in range(20):
        ema.update()
    assert ema.average[0] > 0.99


def test_lookahead_is_its_algorithm():
    rng = np.random.default_rng(0)
    p = rng.standard_normal(7)
    fast, slow = p.copy(), p.copy()
    opt = cr.optim.Lookahead(cr.optim.SGD(p, lr=0.1), k=3, alpha=0.25)
    twin = None
    for t in range(1, 10):
        g = rng.standard_normal(7)
        opt.step(g)
        if twin is not None:
            twin.step(g)
        fast = fast - 0.1 * g
        if t % 3 == 0:
            slow = slow + 0.25 * (fast - slow)
            fast = slow.copy()
        np.testing.assert_allclose(p, fast, rtol=1e-12)
        if t == 4:
            q = p.copy()
            twin = cr.optim.Lookahead(cr.optim.SGD(q, lr=5.0), k=3, alpha=0.25)
            twin.load_state_dict(copy.deepcopy(opt.state_dict()))
    np.testing.assert_array_equal(q, p)
    for kwargs, error in (
        ({"k": 0}, ValueError),
        ({"k": 0.5}, TypeError),
        ({"alpha": 2}, ValueError),
    ):
        with pytest.raises(error):
            cr.optim.Lookahead(cr.optim.SGD(np.ones(1)), **kwargs)
    with pytest.raises(TypeError, match="optimizer must be an Optimizer"):
        cr.optim.Lookahead(np.ones(1))


def test_schedule_free_is_its_algorithm():
    rng = np.random.default_rng(0)
    p = rng.standard_normal(7)
    x, z, y = p.copy(), p.copy(), p.copy()
    opt = cr.optim.ScheduleFree(p, lambda z: cr.optim.SGD(z, lr=0.1), momentum=0.8)
    weights = 0.0
    for t in range(8):
        lr = 0.1 * min(1, (t + 1) / 4)
        opt.optimizer.param_groups[0]["lr"] = lr
        np.testing.assert_allclose(p, y, rtol=1e-12)
        g = rng.standard_normal(7)
        opt.step(g)
        z = z - lr * g
        weights += lr**2
        x = x + lr**2 / weights * (z - x)
        y = 0.8 * x + 0.2 * z
    opt.eval()
    np.testing.assert_allclose(p, x, rtol=1e-12)
    with pytest.raises(RuntimeError, match="call train"):
        opt.step(g)
    opt.train()
    np.testing.assert_allclose(p, y, rtol=1e-12)
    q = np.zeros(7)
    twin = cr.optim.ScheduleFree(q, lambda z: cr.optim.SGD(z), momentum=0.8)
    twin.load_state_dict(copy.deepcopy(opt.state_dict()))
    np.testing.assert_array_equal(q, p)
    before = p.copy()
    with pytest.raises(ValueError, match="grads must have the shape"):
        opt.step(np.ones(3))
    np.testing.assert_array_equal(p, before)
    with pytest.raises(TypeError, match="make must return an Optimizer"):
        cr.optim.ScheduleFree(np.ones(2), lambda z: z)


def test_files_continue_exactly(tmp_path):
    rng = np.random.default_rng(0)
    p = {"a": rng.standard_normal((4, 3)).astype(np.float32), "b": rng.standard_normal(5)}
    for cls in (cr.optim.Adam, cr.optim.NAdam, cr.optim.Adafactor, cr.optim.SGD):
        kwargs = {"momentum": 0.9} if cls is cr.optim.SGD else {}
        opt = cls(p, lr=0.1, **kwargs)
        grads = {k: rng.standard_normal(v.shape).astype(v.dtype) for k, v in p.items()}
        opt.step(grads)
        path = tmp_path / "opt.safetensors"
        opt.save(path)
        assert list(tmp_path.iterdir()) == [path]
        q = copy.deepcopy(p)
        other = cls(q, **kwargs)
        other.load(str(path))
        for o in (opt, other):
            o.step(grads)
        np.testing.assert_array_equal(q["a"], p["a"])
        np.testing.assert_array_equal(q["b"], p["b"])


def test_bad_files_change_nothing(tmp_path):
    opt = cr.optim.Adam(np.ones(4))
    opt.step(np.ones(4))
    good = tmp_path / "good"
    opt.save(good)
    data = good.read_bytes()
    before = pickle.dumps(opt)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])

    def with_metadata(**changes):
        changed = copy.deepcopy(header)
        changed["__metadata__"].update(changes)
        text = json.dumps(changed).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    bad = tmp_path / "bad"
    for content, message in [
        (b"", "not a complete safetensors file"),
        (data[:40], "not a complete safetensors file"),
        (data[:-1], "not a complete safetensors file"),
        (b"\xff" * 100, "not a complete safetensors file"),
        (with_metadata(version="1"), "must have version '2'"),
        (with_metadata(rule="SGD"), "must have rule 'Adam'"),
        (with_metadata(format="pt"), "must have format"),
        (with_metadata(param_groups="{"), "is damaged"),
    ]:
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            opt.load(bad)
        assert pickle.dumps(opt) == before
    with pytest.raises(OSError):
        opt.load(tmp_path / "missing")
    with pytest.raises(ValueError, match="must be numbers of shape"):
        cr.optim.Adam(np.ones(5)).load(good)
    with pytest.raises(OSError):
        opt.save(tmp_path / "no" / "folder")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_a_full_disk_loses_no_file(tmp_path):
    path = tmp_path / "opt"
    path.write_text("the last state")
    code = (
        "import resource, sys, numpy as np, compressrs as cr\n"
        "opt = cr.optim.Adam(np.ones(10_000))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: opt.save(sys.argv[1])\n"
        "except OSError as error: sys.exit(str(error))"
    )
    child = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert child.returncode == 1
    assert "File too large" in child.stderr
    assert path.read_text() == "the last state"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_DATA"), reason="Linux only")
def test_parameters_in_a_memory_map_larger_than_the_memory_that_is_allowed(tmp_path):
    """Save 64 MiB of weights while the process may allocate only 40 MiB."""
    path = tmp_path / "weights.bin"
    code = (
        "import re, resource, sys, numpy as np, compressrs as cr\n"
        "n = 16 * 2**20\n"
        "w = np.memmap(sys.argv[1], np.float32, 'w+', shape=n)\n"
        "g = np.memmap(sys.argv[1] + '.grad', np.float32, 'w+', shape=n)\n"
        "g[:] = 1\n"
        "opt = cr.optim.SGD(w, lr=0.5)\n"
        "opt.step(g)\n"
        "used = int(re.search(r'VmData:\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (used + 40 * 2**20,) * 2)\n"
        "try: np.ones(n, np.float32)\n"
        "except MemoryError: pass\n"
        "else: sys.exit('the limit does not hold')\n"
        "opt.step(g, max_grad_norm=1e9)\n"
        "w.flush()"
    )
    # Threads count towards the limit with their stacks and heaps.
    environment = {**os.environ, "COMPRESSRS_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    child = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    assert path.stat().st_size == 64 * 2**20
    np.testing.assert_array_equal(np.memmap(path, np.float32, "r")[:: 2**20], -1)
    os.unlink(path)


@pytest.mark.parametrize("kind", ["lookahead", "schedule free"])
def test_wrappers_load_all_or_nothing(kind):
    def make():
        p = np.ones(3)
        if kind == "lookahead":
            return p, cr.optim.Lookahead(cr.optim.Adam(p), k=2)
        return p, cr.optim.ScheduleFree(p, lambda z: cr.optim.Adam(z))

    _, source = make()
    source.step(np.ones(3))
    good = copy.deepcopy(source.state_dict())
    p, target = make()
    target.step(np.full(3, 2.0))
    before, weights = copy.deepcopy(target.state_dict()), p.copy()
    for key in good:
        bad = copy.deepcopy(good)
        bad[key] = "no"
        with pytest.raises(ValueError):
            target.load_state_dict(bad)
        np.testing.assert_equal(target.state_dict(), before)
        np.testing.assert_array_equal(p, weights)
    target.load_state_dict(good)
    np.testing.assert_equal(target.state_dict(), good)


def test_hyperparameters_that_need_other_state_are_not_loaded():
    """A PyTorch optimizer that has taken no step has an empty state."""
    opt = cr.optim.SGD(np.ones(3), momentum=0.9)
    group = {**opt.state_dict()["param_groups"][0], "momentum": 0.0}
    with pytest.raises(ValueError, match=r"that need \['momentum_buffer'\] for params, got"):
        opt.load_state_dict({"state": {}, "param_groups": [group]})
    assert opt.param_groups[0]["momentum"] == 0.9
    opt.step(np.ones(3))


def test_an_infinite_bound_only_measures():
    for kind in (cr.optim.SGD, cr.optim.Adam):
        clipped, plain = np.ones(3), np.ones(3)
        first, second = kind(clipped), kind(plain)
        grads = np.array([3e200, 0.0, 4e200])
        assert first.step(grads, max_grad_norm=np.inf) == pytest.approx(5e200)
        second.step(grads)
        np.testing.assert_array_equal(clipped, plain)
    for bad in (np.nan, -1.0):
        with pytest.raises(ValueError, match="max_grad_norm"):
            first.step(grads, max_grad_norm=bad)

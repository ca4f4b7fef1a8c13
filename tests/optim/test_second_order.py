"""Muon, Shampoo and SOAP: recorded trajectories, exactness, blocks, and what goes wrong."""

import copy
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import compressrs as cr
from tests.reference import optim as reference

DATA = np.load(Path(__file__).parents[1] / "data" / "second_order.npz")
CASES = list(enumerate(json.loads(str(DATA["cases"]))))
RULES = [cr.optim.Shampoo, cr.optim.SOAP]


@pytest.mark.parametrize(("i", "case"), CASES, ids=lambda c: str(c)[:60])
def test_recorded_trajectories(i, case):
    p, grads, truth = (DATA[f"{i}/{name}"].copy() for name in ("p0", "grads", "traj"))
    opt = getattr(cr.optim, case["optimizer"])(p, **case["kwargs"])
    for g, expected in zip(grads, truth, strict=True):
        opt.step(g)
        assert np.abs(p - expected).max() <= case["tolerance"] * np.abs(truth).max()


def newton_schulz(x, rounded):
    """The iteration on what `rounded` leaves of each intermediate result."""
    a, b, c = 3.4445, -4.775, 2.0315
    for _ in range(5):
        gram = rounded(x @ x.T)
        x = rounded(a * x + rounded(b * gram + c * rounded(gram @ gram)) @ x)
    return x


@pytest.mark.parametrize("shape", [(64, 64), (24, 150), (150, 24), (40, 61), (3, 500)])
@pytest.mark.parametrize("condition", [1e1, 1e4, 1e9])
def test_muon_is_far_more_exact_than_bfloat16(shape, condition):
    """Also where wide and tall matrices iterate on the square of their shorter side."""
    rng = np.random.default_rng(0)
    left, _, right = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    g = left @ np.diag(np.logspace(0, -np.log10(condition), min(shape))) @ right
    g = g.astype(np.float32)
    w = np.zeros(shape, np.float32)
    cr.optim.Muon(w, lr=1.0, weight_decay=0, nesterov=False, adjust_lr_fn="original").step(g)
    w /= -np.sqrt(max(1, shape[0] / shape[1]))
    x = (g if shape[0] <= shape[1] else g.T).astype(np.float64)
    x /= np.linalg.norm(x)
    truth = newton_schulz(x, lambda x: x)
    coarse = newton_schulz(x, lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float64))

    def error(y):
        return np.linalg.norm(y - truth, 2)

    own = error((w if shape[0] <= shape[1] else w.T).astype(np.float64))
    assert own < 5e-3
    assert own < error(coarse) / 20


@pytest.mark.parametrize(
    "shape", [(12, 12), (7, 11), (11, 7), (6, 2, 3), (5, 1, 2, 2), (1, 9), (9, 1)]
)
@pytest.mark.parametrize("block_size", [4, 512])
def test_soap_steps_in_the_eigenbases(shape, block_size):
    """Eigenvectors of repeated eigenvalues are arbitrary, so that the reference goes on from
    those that were found."""
    rng = np.random.default_rng(1)
    p = rng.standard_normal(shape)
    truth, state = p.copy(), {}
    options = {"block_size": block_size, "precondition_frequency": 100}
    opt = cr.optim.SOAP(p, lr=0.05, **options)
    for t in range(1, 6):
        g = rng.standard_normal(shape)
        opt.step(g)
        truth = reference.soap(truth, g, state, t, lr=0.05, **options)
        if t > 1:
            continue
        matrix = (shape[0], p.size // shape[0])
        found = reference.blocks(matrix, block_size)
        size = [-(-n // -(-n // block_size)) for n in matrix]
        for rows, columns in found:
            own = state[str((rows, columns))]
            places = {
                "left": (columns.start // size[1], rows),
                "right": (rows.start // size[0], columns),
            }
            for side, (across, part) in places.items():
                n = part.stop - part.start
                moment, basis = (
                    np.array(opt.state[0][name][across, part, :n])
                    for name in (side, side + "_basis")
                )
                np.testing.assert_allclose(moment, own[side], atol=1e-12)
                np.testing.assert_allclose(basis.T @ basis, np.eye(n), atol=1e-12)
                values = basis.T @ moment @ basis
                np.testing.assert_allclose(values, np.diag(np.diag(values)), atol=1e-12)
                assert (np.diff(np.diag(values)) <= 1e-12).all()
                own[side + "_basis"] = basis
    np.testing.assert_allclose(p, truth, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("cls", RULES)
def test_convolutions_are_matrices_of_their_first_axis(cls):
    rng = np.random.default_rng(2)
    p = rng.standard_normal((6, 2, 3, 3))
    flat = p.reshape(6, -1).copy()
    ours, theirs = cls(p, precondition_frequency=2), cls(flat, precondition_frequency=2)
    for _ in range(5):
        g = rng.standard_normal(p.shape)
        ours.step(g)
        theirs.step(g.reshape(6, -1))
    np.testing.assert_array_equal(p.reshape(6, -1), flat)


@pytest.mark.parametrize("cls", RULES)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (0, 4), (4, 0), (1, 1), (2, 0, 3), (3, 600)])
def test_any_shape(cls, shape):
    p = np.ones(shape, np.float32)
    opt = cls(p, lr=0.1, block_size=256)
    for _ in range(12):
        opt.step(p.copy())
    assert np.isfinite(p).all()
    assert p.size == 0 or p.mean() < 1


@pytest.mark.parametrize("cls", RULES)
@pytest.mark.parametrize("shape", [(70, 130), (4, 9, 5)])
def test_the_same_bits_for_any_number_of_threads(cls, shape):
    rng = np.random.default_rng(3)
    start = rng.standard_normal(shape).astype(np.float32)
    grads = [rng.standard_normal(shape).astype(np.float32) for _ in range(7)]
    found, threads = [], cr.get_num_threads()
    try:
        for n in (1, 3):
            cr.set_num_threads(n)
            p = start.copy()
            opt = cls(p, precondition_frequency=3, block_size=48)
            for g in grads:
                opt.step(g)
            found.append(p)
    finally:
        cr.set_num_threads(threads)
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("cls", RULES)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "int8"])
def test_few_bytes_and_half_precision(cls, dtype, state_dtype):
    p = np.ones((70, 66), dtype)
    opt = cls(p, lr=0.01, state_dtype=state_dtype, precision="stochastic")
    for _ in range(5):
        opt.step(p.astype(np.float32))
    kept = {"float32": "float32", "bfloat16": "bfloat16", "int8": "int8"}[state_dtype]
    assert opt.state[0]["exp_avg"].dtype.name == kept
    assert opt.state[0]["left"].dtype == np.float32
    values = p.astype(np.float32)
    assert np.isfinite(values).all()
    assert (values < 1).any()


@pytest.mark.parametrize("cls", RULES)
def test_not_finite_gradients(cls):
    p = np.ones((4, 3))
    opt = cls(p, precondition_frequency=1)
    opt.step(p.copy())
    before = copy.deepcopy(opt.state_dict()), p.copy()
    bad = np.full((4, 3), np.nan)
    with pytest.raises(cr.optim.NonFiniteGradientError):
        opt.step(bad, nonfinite="raise")
    assert not np.isfinite(opt.step(bad, nonfinite="skip"))
    np.testing.assert_array_equal(p, before[1])
    for name, value in before[0]["state"][0].items():
        np.testing.assert_array_equal(opt.state[0][name], value)
    for _ in range(2):  # no endless iteration, no panic
        opt.step(bad)
    assert np.isnan(p).all()


@pytest.mark.parametrize("cls", RULES)
def test_a_changed_block_size_is_refused(cls):
    p = np.ones((8, 6))
    opt = cls(p, block_size=4)
    opt.step(p.copy())
    before = p.copy()
    for size in (2, 8, 0, 1.5, -1, 1e12, np.nan):
        opt.param_groups[0]["block_size"] = size
        with pytest.raises(ValueError, match="block_size"):
            opt.step(p.copy())
    np.testing.assert_array_equal(p, before)
    opt.param_groups[0]["block_size"] = 4
    opt.param_groups[0]["precondition_frequency"] = 3
    opt.step(p.copy())
    other = cls(np.ones((8, 6)), block_size=3)
    state = copy.deepcopy(opt.state_dict())
    with pytest.raises(ValueError, match=r"block_size|shape"):
        other.load_state_dict(state)
    other.step(np.ones((8, 6)))
    with pytest.raises(ValueError, match="precondition_frequency must be a whole number"):
        cls(np.ones(3), precondition_frequency=0)


def test_shampoo_orthogonalizes_whatever_the_scale():
    for scale in (1e-12, 1.0, 1e12):
        g = scale * np.random.default_rng(4).standard_normal((20, 20))
        w = np.zeros_like(g)
        cr.optim.Shampoo(w, lr=1.0, grafting="none", matrix_eps=0).step(g)
        np.testing.assert_allclose(np.linalg.svd(w)[1], 1, rtol=1e-3)


def test_grafting_keeps_the_norm_of_adam():
    rng = np.random.default_rng(5)
    p, q = np.zeros((2, 30, 20))
    shampoo = cr.optim.Shampoo(p, lr=0.1, betas=(0, 0.9))
    adam = cr.optim.Adam(q, lr=0.1, betas=(0, 0.9))
    for _ in range(4):
        before = p.copy(), q.copy()
        g = rng.standard_normal((30, 20))
        shampoo.step(g)
        adam.step(g)
        np.testing.assert_allclose(np.linalg.norm(p - before[0]), np.linalg.norm(q - before[1]))


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize(("cls", "name"), [("Muon", "momentum_buffer"), ("Adafactor", "exp_avg")])
def test_first_moments_take_few_bytes(cls, name, state_dtype):
    """Stored moments stay near those in full precision, at a half or a quarter of the memory."""
    rng = np.random.default_rng(6)
    target = rng.standard_normal((64, 100)).astype(np.float32)
    options = {"beta1": 0.9} if cls == "Adafactor" else {}
    moments = []
    for dtype in ("float32", state_dtype):
        p = np.zeros_like(target)
        opt = getattr(cr.optim, cls)(p, lr=0.02, state_dtype=dtype, **options)
        for _ in range(30):
            opt.step(p - target)
        assert opt.state[0][name].dtype.name == dtype
        opt.convert_state("float32")
        moments.append((opt.state[0][name], p))
    (full, p), (coarse, q) = moments
    scale = np.abs(full).max()
    assert np.abs(full - coarse).max() < 0.1 * scale
    assert np.linalg.norm(p - q) < 0.05 * np.linalg.norm(p)

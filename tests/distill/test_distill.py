"""Softmax and the distillation losses."""

import functools
import json
from pathlib import Path

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings

import compressrs as cr
from tests.reference import distill as reference

DATA = Path(__file__).parents[1] / "data"
CASES = json.loads((DATA / "distill.json").read_text())["cases"]
BOTH = [cr.distill.softmax, cr.distill.log_softmax]
#: One class; sizes around a tile; sizes around a row's vector loop.
CLASSES = st.sampled_from([1, 2, 3, 10, 16, 63, 64, 65, 80, 129, 1500])


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"])
def test_recorded_losses(case):
    with np.load(DATA / "distill.npz") as data:
        student, teacher, labels, softmax, grad = (
            data[f"{case['id']}/{k}"] for k in ("student", "teacher", "labels", "softmax", "grad")
        )
    t, alpha = case["temperature"], case["alpha"]
    got = cr.distill.softmax(teacher, t)
    assert np.abs(got - softmax).max() <= 1e-12
    loss, gradient = cr.distill.kd_loss(student, teacher, t, labels, alpha)
    assert abs(loss - case["loss"]) <= 1e-12 * abs(case["loss"])
    assert np.abs(gradient - grad).max() <= 1e-12 * np.abs(grad).max()
    single, _ = cr.distill.kd_loss(
        student.astype(np.float32), teacher.astype(np.float32), t, labels, alpha
    )
    # Rounding the logits to float32 alone changes small losses by this much.
    assert single == pytest.approx(case["loss"], rel=2e-6, abs=2e-6)


logits = hnp.arrays(
    st.sampled_from([np.float32, np.float64]),
    hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=80),
    elements=st.floats(-50, 50, width=32),
)


@given(logits, st.floats(0.1, 20), st.data())
def test_softmax_along_any_axis(z, t, data):
    axis = data.draw(st.integers(-z.ndim, z.ndim - 1))
    tol = 2e-6 if z.dtype == np.float32 else 1e-14
    truth = scipy.special.log_softmax(z.astype(np.float64) / t, axis=axis)
    p, log_p = cr.distill.softmax(z, t, axis), cr.distill.log_softmax(z, t, axis)
    assert p.dtype == log_p.dtype == z.dtype
    np.testing.assert_allclose(p, np.exp(truth), rtol=200 * tol, atol=tol)
    np.testing.assert_allclose(log_p, truth, rtol=tol, atol=50 * tol)
    for function, expected in zip(BOTH, (p, log_p), strict=True):
        out = z.copy()
        assert function(out, t, axis, out=out) is out
        np.testing.assert_array_equal(out, expected)


def close(got, expected, tol=1e-11, least=1e-3):
    """Compare loss and gradient, relative to the largest value, or `least`."""
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tol * max(least, np.abs(b).max()))


@st.composite
def options(draw):
    """Draw the inputs of a loss: student, teacher, arguments, and keywords."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, classes = draw(st.integers(1, 40)), draw(CLASSES)
    scale = draw(st.sampled_from([0.1, 3.0, 20.0]))
    student, *teachers = scale * rng.standard_normal((4, n, classes))
    each = rng.uniform(0.3, 8, n)
    temperature = draw(st.sampled_from([1.0, 4.0, 2.3, 0.5, each]))
    labels = rng.integers(0, classes, n)
    labels[rng.random(n) < draw(st.sampled_from([0, 0.5, 1]))] = -100
    kind, teacher = draw(
        st.sampled_from(
            [
                ("logits", teachers[0]),
                ("logits", teachers),
                ("probabilities", reference.softmax(teachers[0])),
            ]
        )
    )
    kwargs = {
        "teacher_kind": kind,
        "divergence": draw(st.sampled_from(list(reference.DIVERGENCES))),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1])),
        "class_weight": draw(st.sampled_from([None, rng.uniform(0.1, 2, classes)])),
        "sample_weight": draw(st.sampled_from([None, rng.uniform(0.1, 2, n)])),
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
    }
    alpha = draw(st.sampled_from([0.0, 0.3, 1.0]))
    return student, teacher, temperature, labels, alpha, kwargs


@settings(max_examples=400)
@given(options())
def test_loss_and_gradient_agree_with_the_reference(drawn):
    student, teacher, temperature, labels, alpha, kwargs = drawn
    got = cr.distill.kd_loss(student, teacher, temperature, labels, alpha, **kwargs)
    expected = reference.kd_loss(student, teacher, temperature, labels, alpha, **kwargs)
    close(got, expected)
    if kwargs["teacher_kind"] == "logits":
        single = [z.astype(np.float32) for z in np.atleast_3d(teacher).reshape(-1, *student.shape)]
        single = single if isinstance(teacher, list) else single[0]
        got = cr.distill.kd_loss(
            student.astype(np.float32), single, temperature, labels, alpha, **kwargs
        )
        assert got[1].dtype == np.float32
        close(got, expected, 1e-3 if np.abs(student).max() > 20 else 2e-4)


SPECIAL = {
    "standardized": (
        lambda s, t, y, T: cr.distill.kd_loss(s, t, T, standardize=True),
        lambda s, t, y, T: reference.standardized_kd_loss(s, t, T),
    ),
    "top 1": (
        lambda s, t, y, T: cr.distill.kd_loss(s, cr.distill.top_k(t, 1, T), T),
        lambda s, t, y, T: reference.top_k_loss(s, t, 1, T),
    ),
    "top half": (
        lambda s, t, y, T: cr.distill.kd_loss(s, cr.distill.top_k(t, -(-t.shape[1] // 2), T), T),
        lambda s, t, y, T: reference.top_k_loss(s, t, -(-t.shape[1] // 2), T),
    ),
    "decoupled": (
        lambda s, t, y, T: cr.distill.dkd_loss(s, t, T, y, 1.5, 4.0),
        lambda s, t, y, T: reference.dkd_loss(s, t, T, y, 1.5, 4.0),
    ),
    "dist": (
        lambda s, t, y, T: cr.distill.dist_loss(s, t, T, 1.3, 0.7),
        lambda s, t, y, T: reference.dist_loss(s, t, T, 1.3, 0.7),
    ),
    "hint": (
        lambda s, t, y, T: cr.distill.hint_loss(s, t),
        lambda s, t, y, T: reference.hint_loss(s, t),
    ),
    "distances": (
        lambda s, t, y, T: cr.distill.rkd_distance_loss(s, t[:, 1:]),
        lambda s, t, y, T: reference.rkd_distance_loss(s, t[:, 1:]),
    ),
    "angles": (
        lambda s, t, y, T: cr.distill.rkd_angle_loss(s, t[:, 1:]),
        lambda s, t, y, T: reference.rkd_angle_loss(s, t[:, 1:]),
    ),
}


@pytest.mark.parametrize("name", SPECIAL)
@given(st.integers(2, 24), CLASSES.filter(lambda c: c > 1), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_other_losses_agree_with_their_references(name, n, classes, seed):
    rng = np.random.default_rng(seed)
    student, teacher = 3 * rng.standard_normal((2, n, classes))
    labels = rng.integers(0, classes, n)
    ours, theirs = SPECIAL[name]
    for temperature in (1.0, 3.0):
        expected = theirs(student, teacher, labels, temperature)
        close(ours(student, teacher, labels, temperature), expected, 1e-10)
    single = ours(student.astype(np.float32), teacher.astype(np.float32), labels, 3.0)
    assert single[1].dtype == np.float32
    # Two rows are perfectly correlated, so the gradient consists of rounding errors.
    if name != "dist" or n > 2:
        close(single, expected, 1e-4, least=0.1)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(1, 40))
@settings(max_examples=50)
def test_attention_agrees_with_its_reference(n, channels, of_teacher, places):
    rng = np.random.default_rng(0)
    student = rng.standard_normal((n, channels, places, 2))
    teacher = rng.standard_normal((n, of_teacher, places, 2))
    expected = reference.attention_loss(student, teacher)
    close(cr.distill.attention_loss(student, teacher), expected)
    single = cr.distill.attention_loss(student.astype(np.float32), teacher.astype(np.float32))
    close(single, expected, 1e-4)


@pytest.mark.parametrize("classes", [5, 70])
@pytest.mark.parametrize("name", [*SPECIAL, "js", "reverse_kl", "all", "attention"])
def test_gradients_are_those_of_the_losses(name, classes):
    rng = np.random.default_rng(1)
    student, teacher = rng.standard_normal((2, 4, classes))
    labels = np.array([0, 4, 3, 0])
    weights = rng.uniform(0.5, 2, classes)
    others = {
        "all": lambda s: cr.distill.kd_loss(
            s, teacher, 2.0, labels, 0.4, label_smoothing=0.2, class_weight=weights
        ),
        "attention": lambda s: cr.distill.attention_loss(s[None], teacher[None] + 3),
    }
    if name in SPECIAL:
        loss = functools.partial(SPECIAL[name][0], t=teacher, y=labels, T=2.0)
    else:
        loss = others.get(name, lambda s: cr.distill.kd_loss(s, teacher, 2.0, divergence=name))
    grad = loss(student)[1].reshape(student.shape)
    h = 1e-5
    for i in [(0, 0), (1, 3), (3, 4), (2, classes - 1)]:
        values = []
        for sign in (1, -1):
            moved = student.copy()
            moved[i] += sign * h
            values.append(loss(moved)[0])
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(grad[i], rel=1e-5, abs=1e-8)


def test_batches_of_more_axes():
    rng = np.random.default_rng(1)
    student, teacher = rng.standard_normal((2, 4, 5, 9)).astype(np.float32)
    labels = rng.integers(0, 9, (4, 5))
    loss, grad = cr.distill.kd_loss(student, teacher, 2.0, labels, 0.5)
    flat, flat_grad = cr.distill.kd_loss(
        student.reshape(20, 9), teacher.reshape(20, 9), 2.0, labels.ravel(), 0.5
    )
    assert loss == flat
    np.testing.assert_array_equal(grad, flat_grad.reshape(4, 5, 9))
    strided, _ = cr.distill.kd_loss(student[::-1], teacher[::-1], 2.0, labels[::-1], 0.5)
    assert strided == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("divergence", reference.DIVERGENCES)
def test_single_precision_over_many_classes(divergence):
    rng = np.random.default_rng(2)
    student, teacher = rng.standard_normal((2, 2, 200_000)).astype(np.float32) * 3
    labels = np.array([5, 199_999])
    for alpha in (1.0, 0.5):
        loss, grad = cr.distill.kd_loss(student, teacher, 4.0, labels, alpha, divergence=divergence)
        truth, grad_truth = cr.distill.kd_loss(
            *(z.astype(np.float64) for z in (student, teacher)),
            4.0,
            labels,
            alpha,
            divergence=divergence,
        )
        assert loss == pytest.approx(truth, rel=1e-6)
        np.testing.assert_allclose(grad, grad_truth, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("t", [1e-3, 1.0, 1e6])
def test_extreme_logits(t):
    z = np.array([[1e30, -1e30, 0.0, -np.inf]], np.float32)
    np.testing.assert_array_equal(cr.distill.softmax(z, t), [[1, 0, 0, 0]])
    loss, grad = cr.distill.kd_loss(z, z, t)
    assert loss == 0
    assert (grad == 0).all()
    assert np.isnan(cr.distill.softmax(np.array([1.0, np.nan]), t)).all()
    assert np.isnan(cr.distill.softmax(np.full(3, -np.inf), t)).all()
    np.testing.assert_array_equal(cr.distill.softmax(np.full((2, 1), 7.0), t), [[1], [1]])


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (2, 0, 3)])
def test_empty_softmax(shape):
    for function in BOTH:
        assert function(np.ones(shape)).shape == shape


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"temperature": 0}, ValueError, "temperature must be a finite number > 0, got 0"),
        ({"temperature": -1.0}, ValueError, "temperature must be"),
        ({"temperature": np.inf}, ValueError, "temperature must be"),
        ({"temperature": "hot"}, TypeError, "temperature must be a number"),
        ({"alpha": 1.5}, ValueError, r"alpha must be in \[0, 1\]"),
        ({"alpha": 0.5, "labels": None}, ValueError, "labels must be given unless alpha is 1"),
        ({"labels": np.array([0, 3])}, ValueError, "labels must be from 0 to 2, got 3 in row 1"),
        ({"labels": np.array([0, -1])}, ValueError, "got -1 in row 1"),
        ({"labels": np.array([0, 2**64 - 1], np.uint64)}, ValueError, "labels must be from"),
        ({"labels": np.array([0.0, 1.0])}, TypeError, "labels must be integers"),
        ({"labels": np.array([0])}, ValueError, r"labels must have shape \(2,\)"),
        ({"teacher": np.ones((2, 4))}, ValueError, r"teacher must have the shape \(2, 3\)"),
        ({"teacher": np.ones((2, 3), np.float32)}, TypeError, "teacher must have dtype float64"),
        ({"student": np.ones(3), "teacher": np.ones(3)}, ValueError, "student must have shape"),
        ({"student": np.ones((2, 3), int)}, TypeError, "student must have dtype"),
        ({"student": [[1.0]]}, TypeError, "student must be a NumPy array"),
    ],
)
def test_bad_losses(kwargs, error, message):
    good = {"student": np.ones((2, 3)), "teacher": np.ones((2, 3)), "labels": np.array([0, 1])}
    with pytest.raises(error, match=message):
        cr.distill.kd_loss(**{**good, **kwargs})


def test_empty_losses():
    for shape in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match="at least one row and one class"):
            cr.distill.kd_loss(np.ones(shape), np.ones(shape))


def test_bad_outputs():
    z = np.ones((4, 6))
    with pytest.raises(ValueError, match="out and z share memory"):
        flat = np.ones(30)
        cr.distill.softmax(flat[:24].reshape(4, 6), out=flat[6:].reshape(4, 6))
    with pytest.raises(ValueError, match=r"out must have the shape \(4, 6\)"):
        cr.distill.softmax(z, out=np.ones((4, 5)))
    with pytest.raises(TypeError, match="out must have dtype float64"):
        cr.distill.softmax(z, out=np.ones((4, 6), np.float32))
    with pytest.raises(ValueError, match="out must have the shape"):
        cr.distill.softmax(z, axis=0, out=np.ones((4, 5)))
    with pytest.raises(ValueError, match="axis must be from -2 to 1"):
        cr.distill.softmax(z, axis=2)


HALVES = ["float16", "bfloat16"]


def half(name):
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("classes", [7, 64, 65, 1000])
def test_half_precision_is_single_precision_rounded(name, classes):
    rng = np.random.default_rng(3)
    dtype = half(name)
    s, t = (3 * rng.standard_normal((2, 20, classes))).astype(dtype)
    wide = s.astype(np.float32), t.astype(np.float32)
    for axis in (0, 1):
        for function in (*BOTH, cr.distill.logsumexp):
            got = function(s, 2.0, axis)
            assert got.dtype == dtype
            np.testing.assert_array_equal(got, function(wide[0], 2.0, axis).astype(dtype))
    labels = rng.integers(0, classes, 20)
    for teacher, wide_teacher in ((t, wide[1]), ([t, s], [wide[1], wide[0]])):
        loss, grad = cr.distill.kd_loss(s, teacher, 2.0, labels, 0.5)
        truth, grad_truth = cr.distill.kd_loss(wide[0], wide_teacher, 2.0, labels, 0.5)
        assert loss == truth
        np.testing.assert_array_equal(grad, grad_truth.astype(dtype))


def test_the_range_of_float16():
    z = np.array([[65504, -65504, 0, -np.inf], [1, 2, 3, 4]], np.float16)
    np.testing.assert_array_equal(cr.distill.softmax(z)[0], [1, 0, 0, 0])
    np.testing.assert_array_equal(cr.distill.logsumexp(z)[0], np.float16(65504))
    loss, grad = cr.distill.kd_loss(z, z, 1e-3, np.array([0, 3]), 0.5)
    assert np.isfinite(loss)
    assert np.isfinite(grad).all()


@given(logits, st.floats(0.1, 20), st.data())
def test_logsumexp_along_any_axis(z, t, data):
    axis = data.draw(st.integers(-z.ndim, z.ndim - 1))
    truth = scipy.special.logsumexp(z.astype(np.float64) / t, axis=axis)
    got = cr.distill.logsumexp(z, t, axis)
    assert got.dtype == z.dtype
    tol = 2e-6 if z.dtype == np.float32 else 1e-14
    np.testing.assert_allclose(got, truth, rtol=tol, atol=10 * tol)


def test_logsumexp_of_infinities():
    inf = np.inf
    z = np.array([[inf, 1, inf], [-inf, -inf, -inf], [-inf, 3, -inf], [np.nan, inf, 1]])
    for rows in (z, np.tile(z, (1, 50))):
        got = cr.distill.logsumexp(rows)
        expected = [inf, -inf, 3 + np.log(rows.shape[1] // 3), np.nan]
        np.testing.assert_allclose(got, expected, rtol=1e-14)
    assert (cr.distill.logsumexp(np.ones((2, 0))) == -inf).all()
    assert cr.distill.logsumexp(np.ones((0, 2))).shape == (0,)


def test_a_temperature_for_each_row():
    rng = np.random.default_rng(4)
    z = rng.standard_normal((6, 5, 7))
    t = rng.uniform(0.5, 3, (6, 7))
    got = cr.distill.log_softmax(z, t, axis=1)
    np.testing.assert_allclose(got, reference.log_softmax(z, t[:, None], axis=1), atol=1e-14)
    long = rng.standard_normal((6, 300))
    t = rng.uniform(0.5, 3, 6)
    np.testing.assert_allclose(
        cr.distill.softmax(long, t), reference.softmax(long, t[:, None]), rtol=1e-13
    )
    with pytest.raises(ValueError, match=r"have the shape \(6,\) of the rows, got \(5,\)"):
        cr.distill.softmax(long, t[:5])
    t[3] = 0
    with pytest.raises(ValueError, match="> 0 in every row"):
        cr.distill.softmax(long, t)
    with pytest.raises(TypeError, match="temperature must be numbers"):
        cr.distill.softmax(long, np.array(["hot"] * 6))


@pytest.mark.parametrize("classes", [5, 100])
@pytest.mark.parametrize("divergence", reference.DIVERGENCES)
def test_extreme_logits_and_temperatures_of_losses(classes, divergence):
    rows = [
        np.where(np.arange(classes) == 1, 1e30, -1e30),
        np.zeros(classes),
        np.where(np.arange(classes) < 2, 0, -np.inf),
        np.arange(classes) * 1e4,
    ]
    z = np.array(rows, np.float32)
    labels = np.array([1, 0, 1, 2])
    for t in (1e-3, 1.0, 1e6):
        loss, grad = cr.distill.kd_loss(z, z, t, divergence=divergence)
        assert loss == pytest.approx(0, abs=1e-5 * t * t)
        np.testing.assert_allclose(grad, 0, atol=1e-6 * t)
        turned = np.roll(z, 1, axis=0)[:, ::-1].copy()
        loss, grad = cr.distill.kd_loss(z[[0, 1, 3]], turned[[0, 1, 3]], t, divergence=divergence)
        assert loss >= 0
        loss, grad = cr.distill.kd_loss(z, z, t, labels, 0.5, divergence=divergence)
        assert np.isfinite(loss)
        assert np.isfinite(grad).all()


@pytest.mark.parametrize("classes", [4, 100])
def test_nan_is_reported_by_row(classes):
    rng = np.random.default_rng(5)
    student, teacher = rng.standard_normal((2, 20, classes))
    student[3, 1] = np.nan
    teacher[17, 0] = np.nan
    with pytest.warns(RuntimeWarning, match="the loss is NaN in rows 3, 17, whose logits"):
        losses, grad = cr.distill.kd_loss(student, teacher, reduction="none")
    assert np.flatnonzero(np.isnan(losses)).tolist() == [3, 17]
    assert np.flatnonzero(np.isnan(grad).any(axis=1)).tolist() == [3, 17]
    # Rows with weight 0 may contain anything.
    weight = np.ones(20)
    weight[[3, 17]] = 0
    loss, grad = cr.distill.kd_loss(student, teacher, sample_weight=weight)
    rest = weight > 0
    expected = reference.kd_loss(student[rest], teacher[rest], 4.0)
    close((loss, grad[rest]), expected)
    assert (grad[~rest] == 0).all()


def test_one_class_costs_nothing():
    z, labels = np.full((3, 1), 7.0), np.zeros(3, int)
    for loss, grad in (
        cr.distill.kd_loss(z, z + 1, 2.0, labels, 0.5, label_smoothing=0.1),
        cr.distill.dkd_loss(z, z + 1, 4.0, labels),
        cr.distill.kd_loss(z, cr.distill.top_k(z, 1, 2.0), 2.0),
        cr.distill.dist_loss(z, z, gamma=0, beta=0),
    ):
        assert loss == 0
        assert (grad == 0).all()


def test_a_sure_label_loses_nothing_in_the_decoupled_loss():
    rng = np.random.default_rng(6)
    student, teacher = rng.standard_normal((2, 3, 10)).astype(np.float32)
    labels = np.array([0, 5, 9])
    base = cr.distill.dkd_loss(student, teacher, 4.0, labels, alpha=0)
    student[np.arange(3), labels] += 500
    teacher[np.arange(3), labels] += 1000
    got = cr.distill.dkd_loss(student, teacher, 4.0, labels, alpha=0)
    assert got[0] == pytest.approx(base[0], rel=1e-6)
    np.testing.assert_allclose(got[1], base[1], atol=1e-7)


def test_a_sparse_teacher_who_is_sure_loses_nothing():
    rng = np.random.default_rng(7)
    student, teacher = rng.standard_normal((2, 3, 200)).astype(np.float32)
    student[:, :2] += 60
    teacher[:, :2] += 60
    kept = cr.distill.top_k(teacher, 2, 1.0)
    loss, grad = cr.distill.kd_loss(student, kept, 1.0)
    expected = reference.top_k_loss(student.astype(float), teacher.astype(float), 2, 1.0)
    close((loss, grad), expected, 1e-5)


def test_top_k_and_its_rows():
    rng = np.random.default_rng(8)
    z = rng.integers(0, 9, (7, 300)).astype(np.float32)
    kept = cr.distill.top_k(z, 20, 3.0)
    assert kept.shape == (7, 300)
    assert len(kept) == 7
    for i, row in enumerate(z):
        chosen = np.sort(np.argsort(-row, kind="stable")[:20])
        part = slice(*kept.logits.indptr[i : i + 2])
        np.testing.assert_array_equal(kept.logits.indices[part], chosen)
        np.testing.assert_array_equal(kept.logits.data[part], row[chosen])
        others = np.delete(row.astype(float), chosen)
        assert kept.rest[i] == pytest.approx(scipy.special.logsumexp(others / 3), rel=1e-6)
    student = rng.standard_normal((7, 300)).astype(np.float32)
    for rows in (np.array([5, 0, 5]), slice(1, 4), np.arange(7) % 2 == 0):
        a = cr.distill.kd_loss(student[rows], kept[rows], 3.0)
        b = cr.distill.kd_loss(student[rows], cr.distill.top_k(z[rows], 20, 3.0), 3.0)
        assert a[0] == b[0]
    assert (cr.distill.top_k(z, 300).rest == -np.inf).all()
    assert len(cr.distill.top_k(np.ones((0, 5)), 2)) == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda z, k: cr.distill.top_k(z, 0), ValueError, "k must be at least 1"),
        (lambda z, k: cr.distill.top_k(z, 6), ValueError, "k must be at most the 5 classes"),
        (lambda z, k: cr.distill.top_k(z[0], 1), ValueError, "z must have shape"),
        (lambda z, k: cr.distill.top_k(z * np.nan, 1), ValueError, "in rows 0, 1, 2$"),
        (lambda z, k: cr.distill.top_k(z.astype(int), 1), TypeError, "z must have dtype"),
        (lambda z, k: cr.distill.kd_loss(z, k, 3.0), ValueError, "temperature must be 2.0"),
        (lambda z, k: cr.distill.kd_loss(z[:2], k, 2.0), ValueError, "teacher must have the shape"),
        (
            lambda z, k: cr.distill.kd_loss(z, k, 2.0, divergence="js"),
            ValueError,
            "divergence must be 'forward_kl' for TopK",
        ),
        (
            lambda z, k: cr.distill.kd_loss(z, k, 2.0, standardize=True),
            ValueError,
            "standardize takes one teacher's logits",
        ),
        (
            lambda z, k: cr.distill.kd_loss(z, k, 2.0, teacher_kind="probabilities"),
            ValueError,
            "teacher_kind must be 'logits' for TopK",
        ),
        (lambda z, k: cr.distill.TopK(z, k.rest, 1.0), TypeError, "logits must be a CSRMatrix"),
        (lambda z, k: cr.distill.TopK(k.logits, k.rest[:1], 1.0), ValueError, "rest must have"),
        (lambda z, k: cr.distill.TopK(k.logits, k.rest * np.nan, 1.0), ValueError, "in row 0"),
        (
            lambda z, k: cr.distill.kd_loss(z, cr.distill.TopK(turned(k.logits), k.rest, 2.0), 2.0),
            ValueError,
            "classes that ascend",
        ),
        (lambda z, k: k[np.ones((2, 2), int)], TypeError, "rows must be a slice"),
    ],
)
def test_bad_sparse_teachers(call, error, message):
    z = np.arange(15.0).reshape(3, 5)
    with pytest.raises(error, match=message):
        call(z, cr.distill.top_k(z, 2, 2.0))


def turned(a):
    return cr.sparse.CSRMatrix((a.data, a.indices[::-1].copy(), a.indptr), a.shape)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"divergence": "kl"}, "divergence must be one of 'forward_kl', 'reverse_kl', 'js'"),
        ({"teacher_kind": "odds"}, "teacher_kind must be one of"),
        ({"reduction": "max"}, "reduction must be one of"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be a.* in \[0, 1\)|label_smoothing"),
        ({"class_weight": np.ones(2)}, r"class_weight must have the shape \(3,\)"),
        ({"class_weight": -np.ones(3)}, "class_weight must be finite and at least 0"),
        ({"sample_weight": np.zeros(2)}, "sample_weight must not be 0 in all rows"),
        ({"sample_weight": np.array([1, np.nan])}, "sample_weight must be finite"),
        ({"teacher": []}, "at least one array of logits"),
        ({"teacher": [np.ones((2, 3)), np.ones((2, 4))]}, r"teacher\[1\] must have the shape"),
        ({"teacher": [np.ones((2, 3))], "teacher_kind": "probabilities"}, "several teachers"),
        ({"teacher": [np.ones((2, 3))], "standardize": True}, "one teacher's logits"),
        ({"out": np.ones((3, 2))}, "out must be C-contiguous and have the shape"),
        ({"temperature": np.ones(3)}, r"temperature must be a number or have the shape \(2,\)"),
        ({"ignore_index": 0, "labels": np.array([0, 3])}, "labels must be from 0 to 2, got 3"),
    ],
)
def test_bad_options(kwargs, message):
    good = {"student": np.ones((2, 3)), "teacher": np.ones((2, 3)), "labels": np.array([0, 1])}
    with pytest.raises(ValueError, match=message):
        cr.distill.kd_loss(**{**good, **kwargs})


def test_where_the_gradient_goes():
    rng = np.random.default_rng(9)
    s, t = rng.standard_normal((2, 4, 6))
    out = np.empty_like(s)
    _, grad = cr.distill.kd_loss(s, t, out=out)
    assert grad is out
    np.testing.assert_array_equal(out, cr.distill.kd_loss(s, t)[1])
    with pytest.raises(ValueError, match="out and student share memory"):
        cr.distill.kd_loss(s, t, out=s)
    with pytest.raises(ValueError, match="out and teacher share memory"):
        cr.distill.hint_loss(s, t, out=t)
    out.setflags(write=False)
    with pytest.raises(ValueError, match="out must be writable"):
        cr.distill.kd_loss(s, t, out=out)


@pytest.mark.parametrize(
    "loss",
    [
        cr.distill.hint_loss,
        cr.distill.rkd_distance_loss,
        cr.distill.rkd_angle_loss,
        cr.distill.dist_loss,
    ],
)
def test_bad_features(loss):
    x = np.ones((3, 4))
    with pytest.raises(TypeError, match="student must have dtype float32 or float64"):
        loss(x.astype(int), x)
    with pytest.raises(TypeError, match="teacher must have dtype float64 like student"):
        loss(x, x.astype(np.float32))
    with pytest.raises(ValueError, match="teacher must have the shape"):
        loss(x, x[:2])
    with pytest.raises(ValueError, match="student must not be empty"):
        loss(x[:0], x[:0])
    with pytest.raises(ValueError, match="student must have"):
        loss(x[0, 0:1].reshape(()), x)


def test_bad_maps():
    x = np.ones((2, 3, 4))
    with pytest.raises(ValueError, match=r"student must have shape \(n, channels, ...\)"):
        cr.distill.attention_loss(x[0], x[0])
    with pytest.raises(ValueError, match="but for the channels"):
        cr.distill.attention_loss(x, np.ones((2, 3, 5)))


def test_relations_of_samples_that_coincide():
    x = np.ones((4, 3))
    y = np.arange(12.0).reshape(4, 3)
    for loss in (cr.distill.rkd_distance_loss, cr.distill.rkd_angle_loss):
        value, grad = loss(x, y)
        assert value > 0
        assert (grad == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [1e-30, 1e-10, 1e10, 1e30])
def test_results_are_finite_at_the_ends_of_temperature(temperature, dtype):
    rng = np.random.default_rng(0)
    z, t = (rng.standard_normal((4, 9)).astype(dtype) for _ in range(2))
    assert np.isfinite(cr.distill.softmax(z, temperature)).all()
    labels = np.zeros(4, np.int64)
    for loss in (
        cr.distill.kd_loss(z, t, temperature),
        cr.distill.dkd_loss(z, t, temperature, labels),
        cr.distill.dist_loss(z, t, temperature),
    ):
        assert np.isfinite(loss[0])
        assert np.isfinite(loss[1]).all()


@pytest.mark.parametrize("temperature", [5e-324, 1e-39, 9.9e-31, 1.1e30, 1e300])
def test_temperatures_whose_reciprocals_are_no_numbers_are_refused(temperature):
    z = np.ones((2, 3), np.float32)
    for call in (
        lambda: cr.distill.softmax(z, temperature),
        lambda: cr.distill.softmax(z, np.full(2, temperature)),
        lambda: cr.distill.kd_loss(z, z, temperature),
        lambda: cr.distill.top_k(z, 1, temperature),
        lambda: cr.distill.dist_loss(z, z, temperature),
    ):
        with pytest.raises(ValueError, match=r"temperature must be in \[1e-30, 1e\+30\]"):
            call()

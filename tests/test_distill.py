"""Softmax and the distillation loss."""

import json
from pathlib import Path

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.special
from hypothesis import given

import compressrs as cr
from tests.reference import distill as reference

DATA = Path(__file__).parent / "data"
CASES = json.loads((DATA / "distill.json").read_text())["cases"]
BOTH = [cr.distill.softmax, cr.distill.log_softmax]


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
    # Rounding the logits alone moves small losses by so much.
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


@given(
    st.integers(1, 6),
    st.integers(1, 300),
    st.floats(0.2, 20),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_loss_and_gradient_agree_with_the_reference(n, classes, t, alpha, seed):
    rng = np.random.default_rng(seed)
    student, teacher = 5 * rng.standard_normal((2, n, classes))
    labels = rng.integers(0, classes, n)
    loss, grad = cr.distill.kd_loss(student, teacher, t, labels, alpha)
    loss_true, grad_true = reference.kd_loss(student, teacher, t, labels, alpha)
    assert loss == pytest.approx(loss_true, rel=1e-11, abs=1e-11)
    np.testing.assert_allclose(grad, grad_true, atol=1e-12 * max(1, t))


def test_gradient_is_that_of_the_loss():
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal((2, 3, 7))
    labels = np.array([0, 6, 3])
    _, grad = cr.distill.kd_loss(student, teacher, 3.0, labels, 0.4)
    h = 1e-6
    for i in np.ndindex(student.shape):
        values = []
        for sign in (1, -1):
            moved = student.copy()
            moved[i] += sign * h
            values.append(cr.distill.kd_loss(moved, teacher, 3.0, labels, 0.4)[0])
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(grad[i], abs=1e-8)


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


def test_single_precision_over_many_classes():
    rng = np.random.default_rng(2)
    student, teacher = rng.standard_normal((2, 2, 200_000)).astype(np.float32) * 3
    truth, grad_truth = cr.distill.kd_loss(
        student.astype(np.float64), teacher.astype(np.float64), 4.0
    )
    loss, grad = cr.distill.kd_loss(student, teacher, 4.0)
    assert loss == pytest.approx(truth, rel=1e-5)
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
        ({"labels": np.array([0])}, ValueError, r"labels must have the shape \(2,\)"),
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
    with pytest.raises(ValueError, match="z itself or share no memory"):
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

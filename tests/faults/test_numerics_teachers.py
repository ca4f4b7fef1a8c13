"""Ensembles, TopK teachers and DIST at any temperature, against extended precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import compressrs as cr

D = cr.distill
L = np.longdouble
TEMPERATURES = st.floats(-3, 6).map(lambda x: 10.0**x)
#: Relative to the largest element of a gradient, and to the loss.
TOLERANCE = {np.float32: 3e-5, np.float64: 3e-8}


def log_softmax(z: Any, temperature: float) -> Any:
    x = (z.astype(L) - z.max(axis=1, keepdims=True)) / L(temperature)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def kl(p: Any, q: Any) -> Any:
    """KL(p || q) of rows as a sum of terms that do not cancel."""
    d = np.where(p > 0, np.log(q / np.where(p > 0, p, 1)), 0)
    small = d**2 / 2 * (1 + d / 3 * (1 + d / 4 * (1 + d / 5 * (1 + d / 6 * (1 + d / 7)))))
    large = q - p - p * d
    return np.where(np.abs(d) < 1e-2, p * small, large).sum(axis=1)


def logits(rng: Any, dtype: Any, shape: tuple[int, ...], scale: float) -> Any:
    return (scale * rng.standard_normal(shape)).astype(dtype)


def close(got: Any, loss: Any, gradient: Any, dtype: Any) -> None:
    tolerance = TOLERANCE[dtype]
    # Where the teacher is sure of what the student is sure of, nothing is left to compare.
    assert got[0] == pytest.approx(float(loss), rel=tolerance, abs=1e-30)
    least = max(float(np.abs(gradient).max()), 1e-30)
    np.testing.assert_allclose(got[1], gradient.astype(float), rtol=0, atol=tolerance * least)


cases = given(
    st.sampled_from([np.float32, np.float64]),
    TEMPERATURES,
    st.integers(2, 70),
    st.sampled_from([0.1, 2.0, 10.0]),
    st.integers(0, 2**32 - 1),
)


@cases
@settings(max_examples=150, deadline=None)
def test_ensembles(dtype: Any, temperature: float, classes: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    s, *members = logits(rng, dtype, (4, 5, classes), scale)
    q = np.exp(log_softmax(s, temperature))
    p = sum(np.exp(log_softmax(t, temperature)) for t in members) / 3
    if q.min() < 1e-30:
        return  # Beyond what the sums of kl resolve.
    gradient = temperature * (q - p) / len(s)
    for each in (temperature, np.full(len(s), temperature)):
        got = D.kd_loss(s, members, each)
        close(got, L(temperature) ** 2 * kl(p, q).mean(), gradient, dtype)


@cases
@settings(max_examples=150, deadline=None)
def test_top_k(dtype: Any, temperature: float, classes: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    s, t = logits(rng, dtype, (2, 5, classes), scale)
    k = int(rng.integers(1, classes + 1))
    teacher = D.top_k(t, k, temperature)
    q, p = (np.exp(log_softmax(z, temperature)) for z in (s, t))
    if q.min() < 1e-30:
        return
    known = np.zeros(s.shape, bool)
    np.put_along_axis(known, teacher.logits.indices.reshape(len(s), k), True, axis=1)
    buckets = [
        np.concatenate([x[known].reshape(len(s), k), (x * ~known).sum(axis=1, keepdims=True)], 1)
        for x in (p, q)
    ]
    if k == classes:
        buckets = [x[:, :-1] for x in buckets]
    ratio = (buckets[0][:, -1] / buckets[1][:, -1])[:, None]
    gradient = temperature * np.where(known, q - p, q * (1 - ratio)) / len(s)
    loss = L(temperature) ** 2 * kl(*buckets).mean()
    close(D.kd_loss(s, teacher, temperature), loss, gradient, dtype)


def correlation(q: Any, p: Any) -> tuple[Any, Any]:
    """1 - the mean of Pearson's correlation of rows, and its gradient with respect to q."""
    u, v = (x - x.mean(axis=1, keepdims=True) for x in (q, p))
    uu, vv, uv = ((a * b).sum(axis=1, keepdims=True) for a, b in ((u, u), (v, v), (u, v)))
    lengths = np.sqrt(uu * vv) + L(1e-8)
    d = v / lengths - uv * np.sqrt(vv) / (lengths**2 * np.sqrt(uu)) * u
    return 1 - (uv / lengths).mean(), -(d - d.mean(axis=1, keepdims=True)) / len(q)


@cases
@settings(max_examples=150, deadline=None)
def test_dist(dtype: Any, temperature: float, classes: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    s, t = logits(rng, dtype, (2, 7, classes + 1), scale)
    q, p = (np.exp(log_softmax(z, temperature)) for z in (s, t))
    if min(q.std(axis=0).min(), p.std(axis=0).min()) < 1e-6 / max(temperature, 1):
        return  # The gradient of a correlation with a constant is not defined.
    inter, of_rows = correlation(q, p)
    intra, of_columns = correlation(q.T, p.T)
    g = of_rows + of_columns.T
    gradient = L(temperature) * q * (g - (g * q).sum(axis=1, keepdims=True))
    loss = L(temperature) ** 2 * (inter + intra)
    got = D.dist_loss(s, t, temperature)
    tolerance = 100 * TOLERANCE[dtype]
    assert got[0] == pytest.approx(float(loss), rel=tolerance, abs=tolerance * temperature**2)
    # Of probabilities of 0 and 1, gradients consist of rounding errors.
    least = max(float(np.abs(gradient).max()), 1e-6 * temperature)
    np.testing.assert_allclose(got[1], gradient.astype(float), rtol=0, atol=tolerance * least)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3, 1e6])
def test_a_student_that_is_its_teacher_has_no_loss(dtype: Any, temperature: float) -> None:
    z = logits(np.random.default_rng(0), dtype, (5, 12), 2.0)
    for teacher in ([z], [z, z, z], D.top_k(z, 3, temperature)):
        loss, gradient = D.kd_loss(z, teacher, temperature)
        assert 0 <= loss < 1e-6
        np.testing.assert_allclose(gradient, 0, atol=1e-6 * min(temperature, 1.0))
    assert math.isfinite(D.dist_loss(z, z, temperature)[0])

"""Losses at the ends of the range: the value that float64 has where it has one."""

import numpy as np
import pytest

from compressrs import nn

TOP = float(np.finfo(np.float32).max)
LOGITS = np.array([[-TOP, TOP, 0], [TOP, -TOP, 1], [TOP, TOP, TOP], [0, TOP, -1]], np.float32)
LABELS = np.array([0, 1, 2, 2])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("copies", [1, 40])
def test_cross_entropy_of_distant_logits(smoothing, weighted, copies):
    logits, labels = np.tile(LOGITS, (copies, 1)), np.tile(LABELS, copies)
    given = dict(label_smoothing=smoothing, reduction="none")
    if weighted:
        given["class_weight"] = np.array([0.5, 2.0, 0.0])
    loss, grad = nn.cross_entropy(logits, labels, **given)
    wide, wide_grad = nn.cross_entropy(logits.astype(np.float64), labels, **given)
    assert np.isfinite(loss).all()
    np.testing.assert_allclose(loss, wide, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(grad, wide_grad, rtol=1e-6, atol=1e-7)


def test_cross_entropy_of_a_masked_label_is_infinite():
    logits = np.array([[-np.inf, TOP, 0]], np.float32)
    assert nn.cross_entropy(logits, np.array([0]))[0] == np.inf
    assert nn.cross_entropy(logits, np.array([1]))[0] == 0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_squares_of_distant_predictions(reduction):
    p = np.array([1e19, -3e20, TOP, 1, 2], np.float32)
    t = np.array([-1e19, 3e20, -TOP, 1, 5], np.float32)
    loss, grad = nn.mse_loss(p, t, reduction=reduction)
    wide, wide_grad = nn.mse_loss(p.astype(np.float64), t.astype(np.float64), reduction=reduction)
    assert loss == pytest.approx(wide, rel=1e-12)
    expected = np.clip(wide_grad, -np.inf, np.inf)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(grad, expected.astype(np.float32), rtol=1e-6)
    assert np.isnan(nn.mse_loss(np.array([np.nan, 1.0]), np.zeros(2))[0])

"""Losses of squared differences, of numbers of every size, alone and beside others: as in float64.

In float64 the formulas are those of `tests/reference/distill.py`, with inputs whose squares are far
from its limits.
"""

import inspect

import numpy as np
import pytest

import compressrs as cr
from tests.reference import distill as reference

D = cr.distill
EXPONENTS = [-37, -30, -25, -20, -16, -12, -8, -4, 0, 4, 8, 12, 16, 20, 25, 30, 36]


def maps(x):
    return x.reshape(3, 2, -1)


def attention(s, t):
    """As the authors' code: lengths below 1e-12 are not divided by."""
    q_s, q_t = ((maps(x) ** 2).sum(axis=1) for x in (s, t))
    length, other = (np.linalg.norm(q, axis=1, keepdims=True) for q in (q_s, q_t))
    a_s, a_t = q_s / np.maximum(length, 1e-12), q_t / np.maximum(other, 1e-12)
    g = 2 * (a_s - a_t) / a_s.size
    along = (g * a_s).sum(axis=1, keepdims=True) * (length > 1e-12)
    g = (g - along * a_s) / np.maximum(length, 1e-12)
    return ((a_s - a_t) ** 2).mean(), (2 * maps(s) * g[:, None]).reshape(s.shape)


def mse(s, t):
    return ((s - t) ** 2).mean(), 2 * (s - t) / s.size


#: Each loss of features, and its formula.
LOSSES = {
    "hint_loss": (D.hint_loss, reference.hint_loss),
    "attention_loss": (
        lambda s, t: (lambda loss, g: (loss, g.reshape(s.shape)))(
            *D.attention_loss(maps(s), maps(t))
        ),
        attention,
    ),
    "rkd_distance_loss": (D.rkd_distance_loss, reference.rkd_distance_loss),
    "rkd_angle_loss": (D.rkd_angle_loss, reference.rkd_angle_loss),
    "mse_loss": (cr.nn.mse_loss, mse),
}


def test_every_loss_of_features_is_tried():
    """Others are of logits, which differ by at most their range before they are compared."""
    found = {
        name
        for module in (D, cr.nn)
        for name in module.__all__
        if name.endswith("_loss")
        and not {"temperature", "labels"} & set(inspect.signature(getattr(module, name)).parameters)
    }
    assert found == set(LOSSES)


def check(name, s, t):
    """Compare with float64, up to what float32 can represent."""
    ours, formula = LOSSES[name]
    loss, gradient = ours(s, t)
    expected, of_formula = formula(s.astype(np.float64), t.astype(np.float64))
    assert loss == pytest.approx(expected, rel=2e-5, abs=1e-300)
    assert gradient.dtype == s.dtype
    info = np.finfo(s.dtype)
    scale = np.abs(of_formula).max()
    # What is left where terms of the gradient cancel, such as the part along a length of 1.
    left = 1e-6 * expected / np.abs(s).max()
    if scale < float(info.max):
        tolerance = 2e-5 * scale + left + 8 * float(info.smallest_subnormal)
        np.testing.assert_allclose(gradient, of_formula, rtol=0, atol=tolerance)
    # A part that is far smaller than others is right for itself as well.
    for row, truth in zip(gradient, of_formula, strict=True):
        largest = np.abs(truth).max()
        if max(1e4 * float(info.tiny), 1e3 * left) < largest < float(info.max):
            np.testing.assert_allclose(row, truth, rtol=0, atol=1e-3 * largest)


def pair(seed=0):
    return np.random.default_rng(seed).standard_normal((2, 6, 8))


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("name", LOSSES)
def test_numbers_of_one_size(name, exponent):
    for of_s, of_t in ((exponent, exponent), (exponent, 0), (0, exponent)):
        s, t = pair()
        check(name, (s * 10.0**of_s).astype("f4"), (t * 10.0**of_t).astype("f4"))


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("name", LOSSES)
def test_small_numbers_beside_large_ones(name, exponent):
    """Some rows of another size, which are near one another, and rows that are the same."""
    s, t = pair(1)
    s[:3] *= 10.0**exponent
    t[1:3] *= 10.0**exponent
    s[4], t[4] = s[5], t[3]
    check(name, s.astype("f4"), t.astype("f4"))


@pytest.mark.parametrize("name", ["rkd_distance_loss", "rkd_angle_loss"])
@pytest.mark.parametrize("exponent", [-200, -170, -150, 150, 170, 200])
def test_sizes_beside_one_another_in_float64(name, exponent):
    """As in long double, whose squares are in range."""
    rng = np.random.default_rng(2)
    s, t = rng.standard_normal((2, 5, 7)).astype(np.longdouble)
    scale = np.longdouble(2) ** round(exponent * np.log2(10))
    s[:2] *= scale
    t[1:3] *= scale
    if np.finfo(np.longdouble).maxexp <= np.finfo(np.float64).maxexp:
        pytest.skip("long double has no larger range here")
    ours, formula = LOSSES[name]
    loss, gradient = ours(s.astype("f8"), t.astype("f8"))
    expected, of_formula = formula(s.astype("f8").astype("g"), t.astype("f8").astype("g"))
    assert loss == pytest.approx(float(expected), rel=1e-10)
    for row, truth in zip(gradient, of_formula, strict=True):
        largest = float(np.abs(truth).max())
        if 1e-290 < largest < 1e290:
            np.testing.assert_allclose(row, truth.astype("f8"), rtol=0, atol=1e-6 * largest)

"""Losses at the edge of their range: temperatures, infinities, sure teachers, dtypes of labels."""

import inspect
import warnings

import numpy as np
import pytest

import compressrs as cr

D = cr.distill
TEMPERATURES = [1e-3, 0.1, 1.0, 30.0, 1e3, 1e4, 1e5, 1e6]
LARGEST = {np.float32: 1e38, np.float64: 1e300}


def labels_of(z):
    return np.arange(len(z)) % z.shape[-1]


#: How each loss of cr.distill is called with logits and a temperature (or features).
LOSSES = {
    "kd_loss": lambda s, t, T: D.kd_loss(s, t, T),
    "dkd_loss": lambda s, t, T: D.dkd_loss(s, t, T, labels_of(s)),
    "dist_loss": lambda s, t, T: D.dist_loss(s, t, T),
    "hint_loss": lambda s, t, T: D.hint_loss(s, t),
    "attention_loss": lambda s, t, T: D.attention_loss(s[None], t[None]),
    "rkd_distance_loss": lambda s, t, T: D.rkd_distance_loss(s, t),
    "rkd_angle_loss": lambda s, t, T: D.rkd_angle_loss(s, t),
}
NAMES = sorted(name for name in D.__all__ if name.endswith("_loss"))


def test_every_loss_is_tried_here():
    assert sorted(LOSSES) == NAMES


def test_all_losses_take_their_arguments_in_one_order():
    order = ["student", "teacher", "temperature", "labels", "alpha", "beta", "gamma"]
    for name in NAMES:
        parameters = inspect.signature(getattr(D, name)).parameters.values()
        positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert positional == [x for x in order if x in positional], name


# The references of tests/reference/distill.py, with nothing lost where p and q are close:
# of each row ln p, and ln(q / p).


def log_softmax(z, temperature):
    """Logarithm of the softmax, and what the shifted logits' mean exponential comes to."""
    x = (z - z.max(axis=1, keepdims=True)) / temperature
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def pair(s, t, temperature):
    """Return p, q and ln(q / p) of each row."""
    a, b = ((z - z[:, :1]) / temperature for z in (t, s))
    log_p, log_q = log_softmax(t, temperature), log_softmax(s, temperature)
    p, q = np.exp(log_p), np.exp(log_q)
    if temperature < 100:
        return p, q, log_q - log_p
    # With the ratio of the sums as a small number.
    ratio = np.log1p((np.exp(a) * np.expm1(b - a)).sum(axis=1) / np.exp(a).sum(axis=1))
    return p, q, b - a - ratio[:, None]


def rest(x):
    """e^x - 1 - x"""
    x = np.clip(x, -1, 1)
    small = x**2 / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6))))
    return np.where(np.abs(x) < 1e-2, small, np.expm1(x) - x)


def forward_kl(p, q, log):
    large = q - p - p * np.where(p > 0, log, 0)
    value = np.where(np.abs(log) < 1, p * rest(log), large)
    small = p * np.expm1(np.where(np.abs(log) < 1, log, 0))
    return value.sum(axis=1), np.where(np.abs(log) < 1, small, q - p)


def reverse_kl(p, q, log):
    value = forward_kl(q, p, -log)[0]
    return value, q * (np.where(q > 0, log, 0) - value[:, None])


def js(p, q, log):
    m, h = (p + q) / 2, np.tanh(log / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        series = h**2 * (1 + h**2 / 6 + h**4 / 15 + h**6 / 28)
        full = (1 - h) * np.log1p(-h) + (1 + h) * np.log1p(h)
        full = np.where(np.abs(h) == 1, 2 * np.log(2), full)
        value = (m * np.where(np.abs(h) < 1e-2, series, full)).sum(axis=1) / 2
        log_q = np.where(q > 0, np.log(2) + log - np.logaddexp(0, log), 0)
    return value, 0.5 * q * (log_q - (q * log_q).sum(axis=1, keepdims=True))


DIVERGENCES = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "js": js}


def kd(s, t, temperature, divergence="forward_kl"):
    value, gradient = DIVERGENCES[divergence](*pair(s, t, temperature))
    return temperature**2 * value.mean(), temperature * gradient / len(s)


def dkd(s, t, temperature, labels, alpha, beta):
    n, classes = s.shape
    others = np.arange(classes) != labels[:, None]
    loss, gradient = 0.0, np.zeros_like(s)
    for i in range(n):
        p, q, log = (x[0] for x in pair(s[i : i + 1], t[i : i + 1], temperature))
        own, rests = ~others[i], others[i]
        # Two outcomes: the label, and all others as one.
        binary = np.array([[p[own][0], p[rests].sum()]]), np.array([[q[own][0], q[rests].sum()]])
        ratio = p[rests] / p[rests].sum()
        both = np.array([[log[own][0], np.log1p((ratio * np.expm1(log[rests])).sum())]])
        value, difference = forward_kl(*binary, both)
        inner = [z[i : i + 1][:, rests] for z in (s, t)]
        p_hat = pair(*inner, temperature)
        rest_value, rest_difference = forward_kl(*p_hat)
        loss += temperature**2 * (alpha * value[0] + beta * rest_value[0]) / n
        scale = temperature / n
        gradient[i, own] = scale * alpha * difference[0, 0]
        gradient[i, rests] = scale * (
            beta * rest_difference[0] - alpha * difference[0, 0] * p_hat[1][0]
        )
    return loss, gradient


def close(got, expected, tolerance, temperature=1.0):
    # Where student and teacher are sure of the same class nothing is left to compare.
    assert got[0] == pytest.approx(expected[0], rel=tolerance, abs=1e-30)
    least = 1e-1 * min(temperature, 1) / len(expected[1])
    scale = max(np.abs(expected[1]).max(), least)
    np.testing.assert_allclose(got[1], expected[1], rtol=0, atol=tolerance * scale)


def logits(dtype, classes, seed=0, n=7):
    """Return logits of student and teacher in this dtype, and in float64."""
    z = 2 * np.random.default_rng(seed).standard_normal((2, n, classes))
    s, t = z.astype(dtype)
    return (s, t), (s.astype(np.float64), t.astype(np.float64))


CASES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float32, 5e-5), (np.float64, 2e-8)], ids=["float32", "float64"]
)


@CASES
@pytest.mark.parametrize("classes", [2, 10, 63, 300])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_losses_are_right_at_every_temperature(dtype, tolerance, classes, divergence, temperature):
    (s, t), wide = logits(dtype, classes)
    expected = kd(*wide, temperature, divergence)
    close(D.kd_loss(s, t, temperature, divergence=divergence), expected, tolerance, temperature)
    each = np.full(len(s), temperature)
    close(D.kd_loss(s, t, each, divergence=divergence), expected, tolerance, temperature)
    # A row's result does not depend on the rows beside it.
    whole = D.kd_loss(s, t, temperature, divergence=divergence, reduction="none")
    for i in range(len(s)):
        row = D.kd_loss(s[i : i + 1], t[i : i + 1], temperature, divergence=divergence)
        assert row[0] == whole[0][i]
        np.testing.assert_array_equal(row[1][0], whole[1][i])


@CASES
@pytest.mark.parametrize("temperature", TEMPERATURES[1:])
@pytest.mark.parametrize("classes", [3, 10, 300])
def test_the_decoupled_loss_is_right_at_every_temperature(dtype, tolerance, classes, temperature):
    (s, t), wide = logits(dtype, classes)
    labels = labels_of(s)
    # Sums over many classes are close where the label itself is not.
    expected = dkd(*wide, temperature, labels, 1.5, 4.0)
    close(D.dkd_loss(s, t, temperature, labels, 1.5, 4.0), expected, tolerance, temperature)


@CASES
@pytest.mark.parametrize("temperature", [0.1, 1.0, 30.0, 1e3, 1e5])
def test_other_teachers_at_every_temperature(dtype, tolerance, temperature):
    (s, t), (wide, _) = logits(dtype, 10)
    p = np.exp(log_softmax(t.astype(np.float64), 1.0)).astype(dtype)
    given = np.log(p.astype(np.float64))
    close(D.kd_loss(s, p, temperature, teacher_kind="probabilities"), kd(wide, given, temperature),
          4 * tolerance, temperature)  # fmt: skip

    def standardized(z):
        z = z.astype(np.float64)
        return (z - z.mean(axis=1, keepdims=True)) / (z.std(axis=1, keepdims=True) + 1e-7)

    loss, _ = D.kd_loss(s, t, temperature, standardize=True)
    truth, _ = kd(standardized(s), standardized(t), temperature)
    assert loss == pytest.approx(truth, rel=4 * tolerance)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_students_that_have_nearly_learnt(dtype, divergence):
    """Losses of distributions that differ by ever less go down with the square."""
    rng = np.random.default_rng(1)
    t = rng.standard_normal((20, 12)).astype(dtype)
    assert D.kd_loss(t, t, 1.0, divergence=divergence)[0] == 0
    direction = rng.standard_normal(t.shape)
    for step in (1e-1, 1e-2, 1e-3):
        s = (t + step * direction).astype(dtype)
        got = D.kd_loss(s, t, 2.0, divergence=divergence)
        close(got, kd(s.astype(float), t.astype(float), 2.0, divergence), 1e-4)


def rows_of_infinities(dtype):
    """Return rows of logits that are large, or masked."""
    inf, big = np.inf, LARGEST[dtype]
    return np.array(
        [
            [0, -inf, 1, 2, -inf],
            [-inf, 3, 1, 2, 0],
            [1, 2, 3, 4, 5],
            [big, -big, 0, 1, 2],
            [-big, -big, -big, -big, big],
            [0, -inf, -inf, -inf, -inf],
        ],
        dtype,
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("divergence", [*DIVERGENCES, "decoupled"])
def test_masked_and_large_logits_give_no_nan(dtype, temperature, divergence):
    rows = rows_of_infinities(dtype)
    for shift in range(len(rows)):
        s, t = rows, np.roll(rows, shift, axis=0)
        if divergence == "decoupled":
            loss, gradient = D.dkd_loss(s, t, temperature, np.full(len(s), 2), reduction="none")
        else:
            loss, gradient = D.kd_loss(s, t, temperature, divergence=divergence, reduction="none")
        assert not np.isnan(loss).any()
        assert (loss >= 0).all()
        assert np.isfinite(gradient).all()
        if divergence == "js":
            assert (loss <= 1.0001 * np.log(2) * temperature**2).all()
        if shift == 0 and divergence != "decoupled":
            assert (loss == 0).all()
            assert (gradient == 0).all()


def test_reverse_kl_against_a_masked_class_pushes_it_down():
    s, t = np.zeros((1, 3)), np.array([[0.0, 1.0, -np.inf]])
    loss, gradient = D.kd_loss(s, t, 1.0, divergence="reverse_kl")
    assert loss == np.inf
    assert gradient[0, 2] > 0 > gradient[0, :2].max()
    opt = cr.optim.SGD(s, lr=0.01)
    for _ in range(300):
        _, gradient = D.kd_loss(s, t, 1.0, divergence="reverse_kl")
        opt.step(gradient, nonfinite="raise")
    p = D.softmax(s)[0]
    assert p[2] < 0.01
    assert p[1] > p[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [2, 5, 100])
@pytest.mark.parametrize("name", [*DIVERGENCES, "decoupled"])
def test_probabilities_of_0_and_1(dtype, classes, name):
    """What forests and trees give."""
    rng = np.random.default_rng(2)
    s = rng.standard_normal((8, classes)).astype(dtype)
    hot = np.eye(classes)[rng.integers(0, classes, 8)].astype(dtype)
    half = hot / 2 + np.roll(hot, 1, axis=1) / 2
    for p in (hot, half):
        for labels in (p.argmax(axis=1), p.argmin(axis=1)):
            if name == "decoupled":
                loss, gradient = D.dkd_loss(s, p, 2.0, labels, teacher_kind="probabilities")
            else:
                loss, gradient = D.kd_loss(s, p, 2.0, teacher_kind="probabilities", divergence=name)
            assert not np.isnan(loss)
            assert np.isfinite(gradient).all()
            if name != "reverse_kl":
                assert np.isfinite(loss)
    if name == "decoupled":
        # Nothing is known of the others: what is left is the cross-entropy of the label.
        labels = hot.argmax(axis=1)
        loss, gradient = D.dkd_loss(s, hot, 2.0, labels, 1.5, teacher_kind="probabilities")
        hard = -log_softmax(s.astype(float), 2.0)[np.arange(8), labels].mean()
        assert loss == pytest.approx(1.5 * 4 * hard, rel=1e-5)
        truth = 1.5 * 2 * (np.exp(log_softmax(s.astype(float), 2.0)) - hot) / 8
        np.testing.assert_allclose(gradient, truth, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("exponent", [-0.75, -0.3, 0.3, 0.55, 0.75])
def test_squares_that_are_out_of_range(name, dtype, exponent):
    """Features whose squares overflow, or vanish: as such of usual size, which scale."""
    rng = np.random.default_rng(3)
    s, t = rng.standard_normal((2, 4, 6)).astype(dtype)
    scale = dtype(2.0 ** round(np.log2(float(np.finfo(dtype).max)) * exponent))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss, gradient = LOSSES[name](s * scale, t * scale, 1.0)
    assert not np.isnan(loss)
    assert np.isfinite(gradient).all()
    if name.startswith(("rkd", "attention")) and not (name == "attention_loss" and exponent < 0):
        usual, of_usual = LOSSES[name](s, t, 1.0)
        assert loss == pytest.approx(usual, rel=1e-5)
        np.testing.assert_allclose(gradient.astype(float) * float(scale), of_usual, atol=1e-4)
    if name == "hint_loss" and dtype == np.float32:
        truth = ((s.astype(float) - t) ** 2).sum() / 8 * float(scale) ** 2
        assert loss == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [5, 100])
def test_standardized_logits_of_any_size(dtype, classes):
    rng = np.random.default_rng(4)
    s, t = rng.standard_normal((2, 4, classes)).astype(dtype)
    usual = D.kd_loss(s, t, 2.0, standardize=True)
    scale = dtype(2.0 ** round(np.log2(float(np.finfo(dtype).max)) * 0.7))
    loss, gradient = D.kd_loss(s * scale, t * scale, 2.0, standardize=True)
    assert loss == pytest.approx(usual[0], rel=1e-4)
    assert np.isfinite(gradient).all()


INTEGERS = [np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)]


@pytest.mark.parametrize("dtype", [*INTEGERS, np.dtype(">i4"), np.dtype(np.longlong)], ids=str)
def test_labels_of_every_integer_dtype(dtype):
    rng = np.random.default_rng(5)
    s, t = rng.standard_normal((2, 6, 4))
    labels = np.array([0, 1, 2, 3, 2, 1])
    given = labels.astype(dtype)
    for loss in (
        lambda y: D.kd_loss(s, t, 2.0, y, 0.5),
        lambda y: D.kd_loss(s, t, 2.0, y, 0.0),
        lambda y: D.dkd_loss(s, t, 2.0, y),
    ):
        (a, grad_a), (b, grad_b) = loss(given), loss(labels)
        assert a == b
        np.testing.assert_array_equal(grad_a, grad_b)
    if dtype.kind == "i" and dtype.itemsize == 1:
        hidden = given.copy()
        hidden[2] = -100
        assert np.isfinite(D.kd_loss(s, t, 2.0, hidden, 0.5)[0])
    model = cr.nn.Linear(4, 4, dtype=np.float64, rng=0)
    opt = cr.optim.SGD(model.params, lr=0.1)
    cr.distill.Distiller(model, t, opt).fit(s, given, epochs=1, hard_epochs=1)
    high = given.copy()
    high[3] = np.iinfo(dtype).max
    with pytest.raises(ValueError, match=r"labels must be from 0 to .*, got"):
        D.kd_loss(s, t, 2.0, high, 0.5)


@pytest.mark.parametrize("dtype", [bool, float, complex, object, "U1"])
def test_labels_that_are_no_integers(dtype):
    s = np.zeros((2, 2))
    labels = np.array([0, 1]).astype(dtype)
    for loss in (lambda y: D.kd_loss(s, s, 2.0, y, 0.5), lambda y: D.dkd_loss(s, s, 2.0, y)):
        with pytest.raises(TypeError, match="labels must be integers"):
            loss(labels)

"""GPTQ, pruning with it, codebooks, AWQ, HQQ, AdaRound, corrections, rotations."""

import numpy as np
import pytest

import compressrs as cr
from compressrs.quantize import (
    HadamardRotation,
    QuantizedTensor,
    Scheme,
    adaround,
    awq,
    bias_correction,
    codebook_gradient,
    equalize,
    fake_quantize,
    fake_quantize_backward,
    gptq,
    hqq,
    kmeans,
    lsq_scale,
    mse_scale,
    prune_and_quantize,
    quantize,
    smooth_scale,
)
from tests.reference import quantize as reference

INTEGERS = [
    Scheme(bits=4),
    Scheme(bits=3, symmetric=False),
    Scheme(bits=2, dtype="uint", granularity="tensor"),
    Scheme(bits=4, granularity="group", group_size=8),
    Scheme(bits=4, symmetric=False, dtype="uint", granularity="group", group_size=7),
    Scheme(bits=8, granularity="block", group_size=(2, 5)),
]
OTHERS = [Scheme(dtype="nf4", granularity="group", group_size=8), Scheme(dtype="fp8_e4m3")]


def layer(outputs=5, inputs=24, rows=300, seed=0):
    """Weights, correlated inputs, and what statistics say of them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, inputs // 3)) @ rng.standard_normal((inputs // 3, inputs))
    x = (x + 0.3 * rng.standard_normal(x.shape)) * np.exp(0.5 * rng.standard_normal(inputs))
    statistics = cr.prune.InputStatistics(inputs, gram=True)
    statistics.update(x)
    return rng.standard_normal((outputs, inputs)), x, statistics


def error(w, q, x):
    values = q.dequantize() if isinstance(q, QuantizedTensor) else q
    return np.square(x @ (values - w).T).sum()


def spread(of_blocks, q):
    """What each weight's block has."""
    rows, columns = q.shape
    height, width = q.scheme.block(q.shape)
    return of_blocks[np.arange(rows)[:, None] // height, np.arange(columns) // width]


@pytest.mark.parametrize("scheme", INTEGERS + OTHERS, ids=str)
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("static", [False, True])
def test_gptq_is_that_of_the_paper(scheme, act_order, static):
    w, x, statistics = layer()
    q = gptq(w, statistics, scheme, act_order=act_order, static_groups=static, block=16)
    nearest = quantize(w, scheme)
    scale = spread(nearest.scale, nearest)
    zero = np.zeros(w.shape, int)
    if nearest.zero_point is not None:
        zero = spread(nearest.zero_point, nearest).astype(int)
    order = np.argsort(-np.square(x).sum(0), kind="stable") if act_order else None
    find = scheme.granularity == "group" and not static
    codes, scale, zero = reference.gptq(w, x, scheme, scale, zero, order=order, find=find)
    np.testing.assert_array_equal(q.codes, codes)
    if q.group_index is None:
        np.testing.assert_allclose(spread(q.scale, q), scale, rtol=1e-9)
    else:
        assert act_order and find
        rows = np.arange(len(w))[:, None]
        np.testing.assert_allclose(q.scale[rows, q.group_index], scale, rtol=1e-9)
    values = reference.values(codes, scale, zero, scheme)
    np.testing.assert_allclose(q.dequantize(), values, rtol=1e-9)


@pytest.mark.parametrize("scheme", [*INTEGERS, *OTHERS, Scheme(bits=3, dtype="codebook")], ids=str)
def test_gptq_is_better_than_rounding_to_the_nearest(scheme):
    w, x, statistics = layer(16, 64, 1000, seed=1)
    nearest = kmeans(w, scheme) if scheme.dtype == "codebook" else quantize(w, scheme)
    q = gptq(w, statistics, scheme)
    assert error(w, q, x) < 0.8 * error(w, nearest, x)


def test_gptq_takes_scales_and_leaves_the_weights():
    w, x, statistics = layer(seed=2)
    before = w.copy()
    scheme = Scheme(bits=3, granularity="group", group_size=8)
    scale, _ = mse_scale(w, scheme)
    q = gptq(w, statistics, scheme, scale=scale)
    np.testing.assert_array_equal(q.scale, scale)
    np.testing.assert_array_equal(w, before)
    assert error(w, q, x) < error(w, quantize(w, scheme, scale=scale), x)


def test_gptq_in_any_dtype_and_with_idle_inputs():
    w, x, _ = layer()
    x[:, 3] = 0
    statistics = cr.prune.InputStatistics(24, gram=True)
    statistics.update(x)
    for dtype in ("f4", "f2"):
        q = gptq(w.astype(dtype), statistics, Scheme(bits=4))
        assert q.dtype == dtype and (q.dequantize()[:, 3] == 0).all()
    with pytest.warns(cr.prune.CalibrationWarning):
        few = cr.prune.InputStatistics(24, gram=True)
        few.update(x[:5])
        assert np.isfinite(gptq(w, few, Scheme(bits=4)).dequantize()).all()


def test_gptq_refuses():
    w, _, statistics = layer()
    scheme = Scheme(bits=4)
    bad = w.copy()
    bad[1, 2] = np.nan
    for arguments, match in [
        ((bad, statistics, scheme), "w must be finite"),
        ((w[:, :3], statistics, scheme), "w must have shape"),
        ((w, cr.prune.InputStatistics(24), scheme), "statistics"),
        ((w, cr.prune.InputStatistics(24, gram=True), scheme), "statistics"),
        ((w, None, scheme), "statistics"),
        ((w, statistics, "int4"), "scheme"),
        ((w.astype(int), statistics, scheme), "w must have dtype"),
    ]:
        with pytest.raises((TypeError, ValueError), match=match):
            gptq(*arguments)
        with pytest.raises((TypeError, ValueError), match=match):
            prune_and_quantize(*arguments, 0.5)
    with pytest.raises(ValueError, match="damping"):
        gptq(w, statistics, scheme, damping=-1)
    with pytest.raises(ValueError, match="block"):
        gptq(w, statistics, scheme, block=0)
    with pytest.raises(ValueError, match="codebook"):
        prune_and_quantize(w, statistics, Scheme(dtype="codebook"), 0.5)


@pytest.mark.parametrize("scheme", [*INTEGERS, OTHERS[0]], ids=str)
@pytest.mark.parametrize("choice", [{"sparsity": 0.5}, {"nm": (2, 4)}], ids=str)
def test_pruning_and_quantizing_at_once(scheme, choice):
    w, x, statistics = layer(32, 96, 1000, seed=3)
    q, mask = prune_and_quantize(w, statistics, scheme, **choice)
    assert mask.sum() == w.size // 2 and (q.dequantize()[~mask] == 0).all()
    if "nm" in choice:
        assert (mask.reshape(-1, 4).sum(1) == 2).all()
    pruned = w.copy()
    cr.prune.sparsegpt(pruned, statistics, **choice)
    after = quantize(pruned, scheme).dequantize() * (pruned != 0)
    # In small groups and many bits, it is pruning that makes the errors.
    if scheme.bits < 8 and scheme.granularity != "group":
        assert error(w, q, x) < 0.95 * error(w, after, x)
    assert error(w, q, x) < 1.15 * error(w, after, x)


def test_with_many_bits_pruning_decides_as_sparsegpt_does():
    w, _, statistics = layer(seed=4)
    q, mask = prune_and_quantize(w, statistics, Scheme(bits=8), 0.4)
    pruned = w.copy()
    other = cr.prune.sparsegpt(pruned, statistics, 0.4)
    assert (mask == other).mean() > 0.95
    assert np.abs(q.dequantize() - pruned)[mask & other].mean() < 0.05


def test_kmeans_is_lloyds():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((3, 40))
    for scheme in (
        Scheme(bits=3, dtype="codebook"),
        Scheme(bits=2, dtype="codebook", granularity="group", group_size=16),
    ):
        q = kmeans(w, scheme)
        grid = reference.blocks(w.shape, scheme)
        found = q.codebook.reshape(*q.scale.shape, -1)
        for i, row in enumerate(grid):
            for j, block in enumerate(row):
                means = reference.kmeans(w[block].ravel(), 2**scheme.bits)
                np.testing.assert_allclose(found[i, j], means, atol=1e-12)
                nearest = np.abs(w[block][..., None] - means).min(-1)
                np.testing.assert_allclose(
                    np.abs(q.dequantize()[block] - w[block]), nearest, atol=1e-12
                )


def test_kmeans_keeps_zeros_of_pruned_weights():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((8, 30)).astype(np.float32)
    w[rng.random(w.shape) < 0.7] = 0
    q = kmeans(w, Scheme(bits=4, dtype="codebook", granularity="tensor"), keep_zero=True)
    assert (q.codebook == 0).any() and ((q.dequantize() == 0) >= (w == 0)).all()
    free = kmeans(w, Scheme(bits=4, dtype="codebook", granularity="tensor"))
    assert np.square(q.dequantize() - w).sum() < 1.5 * np.square(free.dequantize() - w).sum()


def test_the_gradient_of_a_codebook():
    rng = np.random.default_rng(1)
    scheme = Scheme(bits=2, dtype="codebook", granularity="block", group_size=(2, 3))
    w, dw = rng.standard_normal((5, 7)), rng.standard_normal((5, 7))
    q = kmeans(w, scheme)
    gradient = codebook_gradient(q, dw)
    for index in np.ndindex(q.codebook.shape):
        moved = q.copy()
        moved.codebook[index] += 1.0
        change = ((moved.dequantize() - q.dequantize()) * dw).sum()
        np.testing.assert_allclose(gradient[index], change, atol=1e-12)
    with pytest.raises(ValueError, match="dw"):
        codebook_gradient(q, dw[:2])
    with pytest.raises(TypeError, match="codebook"):
        codebook_gradient(quantize(w, Scheme()), dw)


def test_training_a_codebook_lowers_the_loss():
    w, x, _ = layer(seed=5)
    q = kmeans(w, Scheme(bits=2, dtype="codebook", granularity="tensor"))
    before = error(w, q, x)
    opt = cr.optim.Adam([q.codebook], lr=1e-2)
    for _ in range(100):
        opt.step([codebook_gradient(q, 2 * (q.dequantize() - w) @ (x.T @ x))])
    assert error(w, q, x) < 0.9 * before


@pytest.mark.parametrize("scheme", INTEGERS, ids=str)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_gradients_of_fake_quantization(scheme, dtype):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((7, 33)).astype(dtype)
    dy = rng.standard_normal(x.shape).astype(dtype)
    q = quantize(x, scheme)
    scale = (q.scale * 0.6).astype(dtype)
    y = fake_quantize(x, scheme, scale, q.zero_point)
    np.testing.assert_array_equal(
        y, quantize(x, scheme, scale=scale, zero_point=q.zero_point).dequantize()
    )
    dx, ds = fake_quantize_backward(x, dy, scheme, scale, q.zero_point, lsq=False)
    zero = np.zeros(scale.shape, int) if q.zero_point is None else q.zero_point.astype(int)
    expected = reference.fake_quantize_gradients(x, dy, scheme, scale, zero)
    np.testing.assert_array_equal(dx, expected[0])
    np.testing.assert_allclose(ds, expected[1], rtol=1e-4, atol=2e-4 if dtype == "f4" else 1e-10)
    _, scaled = fake_quantize_backward(x, dy, scheme, scale, q.zero_point)
    sizes = [[x[b].size for b in row] for row in reference.blocks(x.shape, scheme)]
    factor = 1 / np.sqrt(np.array(sizes) * reference.limits(scheme)[1])
    np.testing.assert_allclose(scaled, ds * factor, rtol=1e-5)


@pytest.mark.parametrize("scheme", [*INTEGERS, *OTHERS], ids=str)
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
def test_fake_quantization_saturates_as_dequantize_does(scheme, kind):
    if kind == "bfloat16":
        dtype = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
        top = float(pytest.importorskip("ml_dtypes").finfo(dtype).max)
    else:
        dtype, top = np.dtype(kind), float(np.finfo(kind).max)
    shares = np.random.default_rng(0).uniform(-1, 1, (6, 40))
    shares[:, ::7] = np.where(np.arange(6) % 2, 1, -1)[:, None]
    x = (shares * top).astype(dtype)
    q = quantize(x, scheme)
    y = fake_quantize(x, scheme)
    np.testing.assert_array_equal(y, q.dequantize())
    assert np.isfinite(y.astype(float)).all()
    if kind in ("float32", "float64") and scheme in INTEGERS:
        dy = np.full_like(x, 1e-3)
        dx, dscale = fake_quantize_backward(x, dy, scheme, q.scale, q.zero_point)
        assert np.isfinite(dx).all() and np.isfinite(dscale).all()


def test_fake_quantization_of_what_is_not_finite_or_not_like_it():
    x = np.array([[np.nan, np.inf, -np.inf, 1.0]], np.float32)
    one = np.ones((1, 1), np.float32)
    y = fake_quantize(x, Scheme(bits=2), one)
    assert np.isnan(y[0, 0]) and y[0, 1:].tolist() == [1, -2, 1]
    dx, _ = fake_quantize_backward(x, np.ones_like(x), Scheme(bits=2), one)
    assert dx.tolist() == [[0, 0, 0, 1]]
    with pytest.raises(ValueError, match="x must be finite"):
        fake_quantize(x, Scheme(bits=2))
    x = np.ones((2, 3), np.float32)
    with pytest.raises(TypeError, match="dy"):
        fake_quantize_backward(x, np.ones((2, 3)), Scheme(), np.ones((2, 1), "f4"))
    with pytest.raises(ValueError, match="dy"):
        fake_quantize_backward(x, x[:1], Scheme(), np.ones((2, 1), "f4"))
    with pytest.raises(ValueError, match="memory"):
        fake_quantize(x, Scheme(), np.ones((2, 1), "f4"), out=x)
    with pytest.raises(ValueError, match="codebook"):
        fake_quantize(x, Scheme(dtype="codebook"))


def test_the_step_size_of_lsq_learns():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((4, 64))
    scheme = Scheme(bits=2)
    scale = lsq_scale(w, scheme)
    np.testing.assert_allclose(scale, 2 * np.abs(w).mean(1, keepdims=True))
    scale *= 3
    first = np.square(fake_quantize(w, scheme, scale) - w).sum()
    opt = cr.optim.Adam([scale], lr=0.02)
    for _ in range(150):
        y = fake_quantize(w, scheme, scale)
        opt.step([fake_quantize_backward(w, 2 * (y - w), scheme, scale)[1]])
    assert np.square(fake_quantize(w, scheme, scale) - w).sum() < 0.4 * first
    with pytest.raises(ValueError, match="scheme"):
        lsq_scale(w, Scheme(dtype="nf4"))


@pytest.mark.parametrize("scheme", INTEGERS + OTHERS, ids=str)
def test_scales_of_least_error(scheme):
    rng = np.random.default_rng(0)
    w = rng.standard_t(3, (6, 66)).astype(np.float32)
    scale, zero = mse_scale(w, scheme)
    errors = [
        np.square(q.dequantize() - w).sum()
        for q in (quantize(w, scheme, scale=scale, zero_point=zero), quantize(w, scheme))
    ]
    assert errors[0] <= errors[1]
    if scheme.bits < 4 and scheme.granularity != "tensor":
        assert errors[0] < 0.9 * errors[1]
    for bad in ({"steps": 0}, {"least": 0}, {"least": 1.5}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            mse_scale(w, scheme, **bad)


def test_awq_scales_and_knows_when_not_to():
    w, x, statistics = layer(8, 24, seed=6)
    scheme = Scheme(bits=3)
    q, scale = awq(w, statistics, scheme)
    values = q.dequantize() / scale
    assert error(w, values, x) < error(w, quantize(w, scheme), x)
    # By hand, over all exponents.
    rms = np.sqrt(np.square(x).mean(0))
    errors = []
    for alpha in np.linspace(0, 1, 21):
        s = rms**alpha
        s /= np.sqrt(s.max() * s.min())
        errors.append(error(w, quantize(w * s, scheme).dequantize() / s, x))
    np.testing.assert_allclose(error(w, values, x), min(errors), rtol=1e-6)
    # Inputs alike: nothing to gain.
    even = cr.prune.InputStatistics(24, gram=True)
    even.update(np.eye(24))
    q, scale = awq(w, even, scheme)
    np.testing.assert_array_equal(scale, 1)
    np.testing.assert_array_equal(q.codes, quantize(w, scheme).codes)


def test_smoothing_keeps_the_outputs():
    w, x, _ = layer(seed=7)
    ranges = np.abs(x).max(0)
    scale = smooth_scale([w, 2 * w], ranges, 0.5)
    np.testing.assert_allclose(scale, np.sqrt(ranges / np.abs(2 * w).max(0)))
    np.testing.assert_allclose((x / scale) @ (w * scale).T, x @ w.T)
    w[:, 2], ranges[3] = 0, 0
    assert (smooth_scale(w, ranges)[2:4] == 1).all()
    for bad in ((w, -ranges), (w, ranges[:3]), (w, ranges * np.nan), ([], ranges), (w[0], ranges)):
        with pytest.raises((TypeError, ValueError), match=r"ranges|weights"):
            smooth_scale(*bad)
    with pytest.raises(ValueError, match="alpha"):
        smooth_scale(w, ranges, 1.5)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_equalization_keeps_the_outputs(dtype):
    rng = np.random.default_rng(0)
    first = (rng.standard_normal((6, 4)) * np.exp(3 * rng.standard_normal((6, 1)))).astype(dtype)
    bias, second = rng.standard_normal(6).astype(dtype), rng.standard_normal((3, 6)).astype(dtype)
    first[2] = 0
    x = rng.standard_normal((10, 4)).astype(dtype)

    def outputs():
        return np.maximum(x @ first.T + bias, 0) @ second.T

    before = outputs()
    scale = equalize(first, bias, second)
    np.testing.assert_allclose(outputs(), before, rtol=1e-3 if dtype == "f4" else 1e-9)
    rows, columns = np.abs(first).max(1), np.abs(second).max(0)
    used = np.arange(6) != 2
    np.testing.assert_allclose(rows[used], columns[used], rtol=1e-5)
    assert scale[2] == 1
    bits = first.tobytes(), second.tobytes()
    for arguments in (
        (first, bias[:2], second),
        (first, None, second[:, :2]),
        (first, None, second.astype("f2")),
        (first * np.nan, None, second),
        (second, None, second),
    ):
        with pytest.raises((TypeError, ValueError)):
            equalize(*arguments)
    assert (first.tobytes(), second.tobytes()) == bits


@pytest.mark.parametrize("scheme", INTEGERS, ids=str)
def test_hqq_fits_the_bulk(scheme):
    rng = np.random.default_rng(0)
    w = rng.standard_t(2, (6, 66))
    q = hqq(w, scheme)

    def loss(q):
        return (np.abs(w - q.dequantize()) ** 0.7).sum()

    assert loss(q) <= loss(quantize(w, scheme)) * 1.0001
    if scheme.bits < 8:
        assert loss(q) < 0.97 * loss(quantize(w, scheme))
    for bad in ({"p": 1.0}, {"beta": 0}, {"kappa": -1}, {"rounds": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            hqq(w, scheme, **bad)
    with pytest.raises(ValueError, match="dtype"):
        hqq(w, OTHERS[0])


@pytest.mark.parametrize("scheme", [Scheme(bits=3), INTEGERS[4]], ids=str)
def test_adaround_rounds_up_or_down_for_the_outputs(scheme):
    w, x, statistics = layer(8, 24, 500, seed=8)
    nearest = quantize(w, scheme)
    q = adaround(w, statistics, scheme, steps=400)
    assert error(w, q, x) < 0.8 * error(w, nearest, x)
    np.testing.assert_array_equal(q.scale, nearest.scale)
    assert np.abs(q.codes.astype(int) - nearest.codes).max() <= 1
    with pytest.raises(ValueError, match="steps"):
        adaround(w, statistics, scheme, steps=0)


def test_the_mean_of_the_outputs_is_kept():
    w, x, _ = layer(seed=9)
    x += 3
    q = quantize(w, Scheme(bits=2))
    bias = np.arange(5.0)
    fixed = bias_correction(w, q, x.mean(0), bias)
    np.testing.assert_allclose(
        (x @ q.dequantize().T + fixed).mean(0), (x @ w.T + bias).mean(0), rtol=1e-9
    )
    for bad in ((w[:2], q, x.mean(0)), (w, w, x.mean(0)), (w, q, x), (w, q, x.mean(0), bias[:1])):
        with pytest.raises((TypeError, ValueError)):
            bias_correction(*bad)


@pytest.mark.parametrize("n", [1, 2, 3, 12, 16, 40])
def test_rotations(n):
    rotation = HadamardRotation(n, rng=n)
    x = np.random.default_rng(0).standard_normal((2, 3, n))
    expected = (x * rotation.signs) @ reference.hadamard(n).T
    np.testing.assert_allclose(rotation(x), expected, atol=1e-12)
    np.testing.assert_allclose(rotation.inverse(rotation(x)), x, atol=1e-12)
    with pytest.raises(ValueError, match="x must"):
        rotation(x[..., :0])
    with pytest.raises(TypeError, match="x must"):
        rotation(x.astype(int))


def test_a_rotation_helps_where_there_are_outliers():
    w, x, _ = layer(8, 32, seed=10)
    w[:, 5] *= 30
    rotation, scheme = HadamardRotation(32, rng=0), Scheme(bits=4)
    plain = x @ (quantize(w, scheme).dequantize() - w).T
    rotated = rotation(x) @ (quantize(rotation(w), scheme).dequantize() - rotation(w)).T
    assert np.square(rotated).sum() < 0.5 * np.square(plain).sum()

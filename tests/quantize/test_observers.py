"""Ranges from batches."""

import copy
import pickle
from itertools import pairwise

import numpy as np
import pytest

from compressrs.quantize import (
    MSE,
    Entropy,
    Histogram,
    MinMax,
    MovingAverage,
    Percentile,
    Scheme,
    quantize,
)
from tests.reference import quantize as reference

OBSERVERS = [
    MinMax,
    lambda channels=None: Percentile(channels, percentile=99),
    lambda channels=None: MSE(channels, bits=4),
    lambda channels=None: MSE(channels, bits=4, symmetric=False),
    lambda channels=None: Entropy(channels, bits=4, bins=256),
]


def batches(count=6, features=5, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 50, count)
    return [(rng.standard_t(3, (n, features)) * 2.0**i) for i, n in enumerate(sizes)]


def of(make, xs, channels):
    observer = make(channels)
    for x in xs:
        observer.update(x)
    return observer


@pytest.mark.parametrize("make", OBSERVERS)
@pytest.mark.parametrize("channels", [None, 5])
def test_neither_batches_nor_order_nor_merging_count(make, channels):
    xs = batches()
    one = of(make, [np.concatenate(xs)], channels)
    others = [
        of(make, xs, channels),
        of(make, xs[::-1], channels),
        of(make, xs[:3], channels).merge(of(make, xs[3:], channels)),
        of(make, xs[3:], channels).merge(of(make, xs[:3], channels)),
        make(channels).merge(of(make, xs, channels)),
        of(make, xs, channels).merge(make(channels)),
    ]
    for other in others:
        assert other.count == one.count
        for a, b in zip(one.range(), other.range(), strict=True):
            assert a.shape == (channels or 1,) and a.tobytes() == b.tobytes()
        for c in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
            assert c.range()[1].tobytes() == one.range()[1].tobytes()


@pytest.mark.parametrize("make", OBSERVERS)
def test_each_channel_is_as_if_alone(make):
    xs = batches()
    together = of(make, xs, 5).range()
    for j in range(5):
        alone = of(make, [x[:, j : j + 1] for x in xs], None).range()
        assert (together[0][j], together[1][j]) == (alone[0][0], alone[1][0])


@pytest.mark.parametrize("make", [*OBSERVERS, MovingAverage])
def test_padding_does_not_count(make):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 7, 5)).astype(np.float32)
    mask = rng.random((4, 7)) < 0.6
    x[~mask] = np.nan
    observer, other = make(), make()
    observer.update(x, mask=mask)
    other.update(x[mask])
    assert observer.count == mask.sum()
    for a, b in zip(observer.range(), other.range(), strict=True):
        assert a.tobytes() == b.tobytes()
    observer.update(x, mask=np.zeros((4, 7), bool))
    assert observer.count == mask.sum()


@pytest.mark.parametrize("make", [*OBSERVERS, MovingAverage])
def test_what_observers_refuse(make):
    observer = make(3)
    with pytest.raises(ValueError, match="calibration"):
        observer.range()
    with pytest.raises(ValueError, match="calibration"):
        observer.parameters(Scheme())
    x = np.ones((2, 3))
    x[1, 2] = np.nan
    with pytest.raises(ValueError, match="nan in row 1, column 2"):
        observer.update(x)
    for bad in (np.ones((2, 4)), np.float64(1), np.ones((2, 3), int), [1.0]):
        with pytest.raises((TypeError, ValueError), match="x must"):
            observer.update(bad)
    with pytest.raises(TypeError, match="mask"):
        observer.update(np.ones((2, 3)), mask=np.ones(2))
    with pytest.raises(ValueError, match="mask"):
        observer.update(np.ones((2, 3)), mask=np.ones(3, bool))
    assert observer.count == 0
    with pytest.raises((TypeError, ValueError)):
        make(0)


def test_observers_that_do_not_merge():
    with pytest.raises(TypeError, match="order"):
        MovingAverage().merge(MovingAverage())
    with pytest.raises(TypeError, match="MinMax"):
        MinMax().merge(Histogram())
    with pytest.raises(ValueError, match="channels"):
        MinMax(2).merge(MinMax(3))


def test_histograms_count_every_value_in_its_bin():
    xs = batches()
    x = np.concatenate([x.ravel() for x in xs])
    observer = of(lambda c: Histogram(c, bins=64), xs, None)
    edges = observer.edges[0]
    assert (
        edges[0] <= x.min()
        and x.max() < edges[-1]
        and max(-edges[0], edges[-1]) / 2 <= abs(x).max()
    )
    expected = [((x >= a) & (x < b)).sum() for a, b in pairwise(edges)]
    assert observer.counts[0].tolist() == expected
    assert Histogram().counts.nbytes == of(Histogram, xs, None).counts.nbytes


@pytest.mark.parametrize("value", [0.0, 1.0, -4.0, 1e-300, 1e300])
@pytest.mark.parametrize("make", [*OBSERVERS, MovingAverage])
def test_one_value(value, make):
    observer = make()
    observer.update(np.full((3, 2), value))
    low, high = observer.range()
    tolerance = 0.1 * abs(value)  # of the middle of a bin
    assert low - tolerance <= value <= high + tolerance
    observer.update(np.zeros((3, 2)))
    assert np.isfinite(observer.range()).all()
    if abs(value) < 1e30:
        assert np.isfinite(observer.parameters(Scheme(granularity="tensor"))[0]).all()


def test_percentiles_are_those_of_numpy_to_within_a_bin():
    x = np.random.default_rng(0).standard_normal(20000)
    observer = Percentile(percentile=99.5)
    observer.update(x)
    width = np.diff(observer.edges[0])[0]
    np.testing.assert_allclose(
        np.ravel(observer.range()), np.quantile(x, [0.005, 0.995]), atol=2 * width
    )
    for bad in (50, 101, np.nan):
        with pytest.raises(ValueError, match="percentile"):
            Percentile(percentile=bad)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_least_error_is_found(symmetric):
    x = np.random.default_rng(0).standard_t(3, (1, 5000))
    observer = MSE(bits=4, symmetric=symmetric)
    observer.update(x)
    scheme = Scheme(bits=4, symmetric=symmetric, granularity="tensor")

    def error(low, high):
        from compressrs.quantize import parameters

        scale, zero = parameters(np.reshape(low, (1, 1)), np.reshape(high, (1, 1)), scheme)
        return np.square(quantize(x, scheme, scale=scale, zero_point=zero).dequantize() - x).sum()

    least = min(error(r * x.min(), r * x.max()) for r in np.linspace(0.01, 1, 100))
    assert error(*observer.range()) < 1.02 * least


@pytest.mark.parametrize("positive", [False, True])
def test_entropy_is_that_of_the_loop(positive):
    x = np.random.default_rng(0).standard_t(3, 3000)
    x = np.abs(x) if positive else x
    observer = Entropy(bits=4, bins=256)
    observer.update(x)
    counts = observer.counts[0]
    magnitudes = counts[128:] + counts[:128][::-1]
    width = np.diff(observer.edges[0])[0]
    threshold = min(reference.entropy_threshold(magnitudes, width, 8), abs(x).max())
    np.testing.assert_allclose(np.ravel(observer.range()), [-threshold, threshold])
    with pytest.raises(ValueError, match="bins"):
        Entropy(bits=8, bins=128)


def test_moving_averages():
    xs = batches()
    observer = of(lambda c: MovingAverage(c, momentum=0.3), xs, None)
    low, high = xs[0].min(), xs[0].max()
    for x in xs[1:]:
        low, high = low + 0.3 * (x.min() - low), high + 0.3 * (x.max() - high)
    np.testing.assert_allclose(np.ravel(observer.range()), [low, high])
    for bad in (0, 1.5, -1):
        with pytest.raises(ValueError, match="momentum"):
            MovingAverage(momentum=bad)

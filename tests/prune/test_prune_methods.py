"""Scores, granularities, allocations and SparseGPT against the reference."""

import math
import warnings

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

import compressrs as cr
from compressrs.prune import CalibrationWarning, EmptyLayerWarning
from tests.reference import prune as reference

# Small integers, so that there are ties and sums are exact.
VALUES = st.integers(-4, 4).map(float)
SPARSITY = st.floats(0, 0.999)


def arrays(min_dims=1, max_dims=3):
    return hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        hnp.array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=1, max_side=6),
        elements=VALUES,
    )


@given(
    st.lists(arrays().map(lambda a: a.astype(np.float64)), min_size=1, max_size=4),
    SPARSITY,
    st.sampled_from(["global", "layer", "row"]),
)
def test_masks_of_scores(scores, sparsity, scope):
    masks = cr.prune.masks(scores, sparsity, scope, allow_empty=True)
    if scope == "global":
        expected = reference.lowest(scores, round(sparsity * sum(s.size for s in scores)))
    elif scope == "layer":
        expected = [reference.lowest([s], round(sparsity * s.size))[0] for s in scores]
    else:
        expected = [
            reference.lowest_of_rows(s, round(sparsity * (s.size // len(s)))) for s in scores
        ]
    for mask, truth in zip(masks, expected, strict=True):
        np.testing.assert_array_equal(mask, truth)
    if scope != "global":
        shares = [sparsity] * len(scores)
        for again in (
            cr.prune.masks(scores, shares, scope, allow_empty=True),
            cr.prune.masks(scores, np.array(shares), scope, allow_empty=True),
        ):
            for mask, truth in zip(again, masks, strict=True):
                np.testing.assert_array_equal(mask, truth)


@given(st.lists(arrays(), min_size=1, max_size=4), st.floats(0, 0.9))
def test_no_layer_is_pruned_to_nothing(scores, sparsity):
    scores = [s.astype(np.float32) for s in scores]
    total = sum(s.size for s in scores)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptyLayerWarning)
        masks = cr.prune.masks(scores, sparsity)
    assert all(mask.any() for mask in masks)
    removed = sum(int((~mask).sum()) for mask in masks)
    assert removed == min(round(sparsity * total), total - len(scores))
    for mask, s in zip(masks, scores, strict=True):
        assert s[mask].max() == s.max()


def test_the_layer_that_would_be_empty_is_named():
    scores = {"small": np.array([0.1, 0.3, 0.2]), "large": np.arange(1.0, 8.0)}
    with pytest.warns(EmptyLayerWarning, match=r"all of scores\['small'\] would be") as warned:
        masks = cr.prune.masks(scores, 0.5)
    assert [w.filename for w in warned] == [__file__]
    np.testing.assert_array_equal(masks["small"], [False, True, False])
    # Another weight is removed instead of the one that is kept.
    np.testing.assert_array_equal(masks["large"], [False] * 3 + [True] * 4)
    masks = cr.prune.masks(scores, 0.5, allow_empty=True)
    assert not masks["small"].any()
    assert masks["large"].sum() == 5
    for make in (
        lambda: cr.prune.magnitude_mask(np.array([1.0, -3.0, 3.0]), sparsity=0.9),
        lambda: cr.prune.magnitude_mask(np.array([1.0, -3.0, 3.0]), threshold=5),
        lambda: cr.prune.masks(np.array([[1.0, 2.0, 3.0]]), 0.9, "row")[0],
        lambda: cr.prune.neuron_mask(np.array([1.0, -3.0, 3.0]), 0, 0.9),
    ):
        with pytest.warns(EmptyLayerWarning, match="its largest is kept"):
            np.testing.assert_array_equal(make(), [False, False, True])
    w = np.ones((4, 4))
    with pytest.warns(EmptyLayerWarning, match="all of w would be"):
        assert cr.prune.block_mask(w, (2, 2), 0.9).sum() == 4
    assert not cr.prune.block_mask(w, (2, 2), 0.9, allow_empty=True).any()


@given(arrays(2, 4), st.sampled_from([(1, 2), (2, 4), (1, 3), (4, 8), (3, 3)]), st.data())
def test_n_of_m(w, pair, data):
    n, m = pair
    axis = data.draw(st.integers(-w.ndim, w.ndim - 1))
    w = np.repeat(w, m, axis)
    w += np.arange(w.shape[axis]).reshape([-1 if a == axis % w.ndim else 1 for a in range(w.ndim)])
    mask = cr.prune.nm_mask(w, n, m, axis)
    np.testing.assert_array_equal(mask, reference.n_of_m(w, n, m, axis))
    assert mask.flags.c_contiguous
    if w.ndim == 2 and axis in (1, -1):
        stored = cr.sparse.NMMatrix.from_dense(w, n, m)
        np.testing.assert_array_equal(stored.to_dense(), np.where(mask, w, 0))


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([(1, 1), (2, 3), (4, 4), (1, 16)]),
    SPARSITY,
    st.sampled_from([1, 2, math.inf, "sum"]),
    st.integers(0, 1000),
)
def test_blocks(rows, columns, block, sparsity, norm, seed):
    w = np.random.default_rng(seed).integers(-4, 5, (rows * block[0], columns * block[1])) * 1.0
    mask = cr.prune.block_mask(w, block, sparsity, norm, allow_empty=True)
    np.testing.assert_array_equal(mask, reference.blocks(w, block, sparsity, norm))


@given(arrays(1, 4), SPARSITY, st.sampled_from([1, 2, math.inf, "sum"]), st.data())
def test_neurons_and_filters(w, sparsity, norm, data):
    axes = data.draw(
        st.lists(st.integers(0, w.ndim - 1), min_size=1, max_size=w.ndim, unique=True).map(sorted)
    )
    axis = axes[0] if len(axes) == 1 else tuple(axes)
    mask = cr.prune.neuron_mask(w, axis, sparsity, norm, allow_empty=True)
    np.testing.assert_array_equal(mask, reference.slices(w, axes, sparsity, norm))


def test_groups_over_several_layers():
    a, b = np.ones((4, 4)), np.full((4, 8), 2.0)
    # Three of twelve blocks, all of them with the smaller values.
    masks = cr.prune.masks([a, b], 0.25, granularity=cr.prune.Blocks((2, 2)))
    assert [int(mask.sum()) for mask in masks] == [4, 32]
    masks = cr.prune.masks([a, b], 0.25, granularity=cr.prune.Neurons(0, norm="sum"))
    assert [int(mask.any(axis=1).sum()) for mask in masks] == [2, 4]
    masks = cr.prune.masks([a, b], 0.3, granularity=cr.prune.NM(1, 4))
    # Rounded down: one of every four is removed.
    assert [int(mask.sum()) for mask in masks] == [12, 24]
    assert cr.prune.masks(a, 0.9, granularity=cr.prune.NM(2, 4)).sum() == 8


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision(dtype):
    w = np.random.default_rng(0).standard_normal((8, 16)).astype(dtype)
    wide = w.astype(np.float64)
    np.testing.assert_array_equal(cr.prune.nm_mask(w), reference.n_of_m(wide, 2, 4, -1))
    np.testing.assert_array_equal(
        cr.prune.block_mask(w, (4, 4), 0.5), reference.blocks(wide, (4, 4), 0.5)
    )
    np.testing.assert_array_equal(cr.prune.masks(w, 0.3), reference.lowest([wide], 38)[0])
    score = cr.prune.Taylor()
    score.update(w, w)
    assert score.scores(w).dtype == np.float32
    statistics = cr.prune.InputStatistics(16, gram=True)
    statistics.update(w)
    np.testing.assert_allclose(statistics.gram, wide.T @ wide, rtol=1e-12, atol=1e-12)
    with pytest.warns(CalibrationWarning, match="8 calibration inputs for 16 features"):
        mask = cr.prune.sparsegpt(w, statistics, 0.5)
    assert (w[~mask] == 0).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda w: cr.prune.masks(w, 1.0), ValueError, r"sparsity must be in \[0, 1\)"),
        (lambda w: cr.prune.masks(w, -0.1), ValueError, r"sparsity must be in \[0, 1\)"),
        (lambda w: cr.prune.masks(w, 0.5, "half"), ValueError, "scope must be one of"),
        (
            lambda w: cr.prune.masks([], 0.5),
            ValueError,
            "scores must hold at least one value",
        ),
        (lambda w: cr.prune.masks(np.zeros(0), 0.5), ValueError, "at least one value"),
        (lambda w: cr.prune.masks(w > 0, 0.5), TypeError, "dtype"),
        (lambda w: cr.prune.masks([w, 3], 0.5), TypeError, r"scores\[1\] must be a NumPy array"),
        (
            lambda w: cr.prune.masks(w, 0.5, lambda shapes, s: [0.5, 0.5]),
            ValueError,
            "scope must give 1 sparsities",
        ),
        (lambda w: cr.prune.masks(w, [0.5, 0.5]), ValueError, "sparsity must give 1 sparsities"),
        (lambda w: cr.prune.masks(w, [1.5]), ValueError, "the sparsity of scores must be in"),
        (lambda w: cr.prune.masks(w, "0.5"), TypeError, "sparsity must be a number"),
        (
            lambda w: cr.prune.masks(w, [0.5], cr.prune.erdos_renyi),
            ValueError,
            "scope must not be callable",
        ),
        (
            lambda w: cr.prune.masks(w, 0.5, lambda shapes, s: [1.5]),
            ValueError,
            r"the sparsity of scores must be in \[0, 1\)",
        ),
        (
            lambda w: cr.prune.masks(w, 0.5, "row", cr.prune.Blocks((2, 2))),
            ValueError,
            "scope must not be 'row'",
        ),
        (lambda w: cr.prune.nm_mask(w, 5, 4), ValueError, "n must be at most m"),
        (lambda w: cr.prune.nm_mask(w, 0, 4), ValueError, "n must be at least 1"),
        (lambda w: cr.prune.nm_mask(w, 1, 3), ValueError, "a multiple of m=3"),
        (lambda w: cr.prune.nm_mask(w, 1, 2, axis=2), ValueError, "axis must be one of w"),
        (lambda w: cr.prune.block_mask(w, (3, 3), 0.5), ValueError, "multiples of 3 and 3"),
        (lambda w: cr.prune.block_mask(w[0], (1, 1), 0.5), ValueError, "two axes"),
        (lambda w: cr.prune.block_mask(w, 4, 0.5), TypeError, "block must be a pair"),
        (lambda w: cr.prune.block_mask(w, (0, 1), 0.5), ValueError, "block must be at least 1"),
        (lambda w: cr.prune.block_mask(w, (2, 2), 0.5, 3), ValueError, "norm must be 1, 2, inf"),
        (lambda w: cr.prune.neuron_mask(w, 2, 0.5), ValueError, "axis must name axes of w"),
        (lambda w: cr.prune.neuron_mask(w, (0, -2), 0.5), ValueError, "axis must name axes"),
        (lambda w: cr.prune.neuron_mask(w, (), 0.5), ValueError, "at least one axis"),
        (lambda w: cr.prune.neuron_mask(w, 0, 1.0), ValueError, "sparsity must be"),
        (lambda w: cr.prune.masks(w, 0.5, granularity="block"), TypeError, "granularity must be a"),
        (lambda w: cr.prune.Wanda(None), TypeError, "statistics must be InputStatistics"),
        (lambda w: cr.prune.input_statistics(w, w), TypeError, "model must be a Sequential"),
        (lambda w: cr.prune.erdos_renyi(3, 0.5), TypeError, "shapes must be tuples"),
        (lambda w: cr.prune.erdos_renyi([3, "x"], 0.5), TypeError, "shapes must be tuples"),
        (lambda w: cr.prune.erdos_renyi([(3,)], 0.5), ValueError, "two axes or more"),
        (lambda w: cr.prune.erdos_renyi([(3, 0)], 0.5), ValueError, "not be empty"),
        (lambda w: cr.prune.erdos_renyi([(3, 3)], 1), ValueError, "sparsity must be"),
    ],
)
def test_what_cannot_be_pruned(call, error, message):
    w = np.arange(16.0).reshape(4, 4)
    with pytest.raises(error, match=message):
        call(w)


@pytest.mark.parametrize(
    "call",
    [
        lambda w: cr.prune.masks(w, 0.5),
        lambda w: cr.prune.masks(w, 0.5, "row"),
        lambda w: cr.prune.nm_mask(w),
        lambda w: cr.prune.block_mask(w, (2, 2), 0.5),
        lambda w: cr.prune.neuron_mask(w, 0, 0.5),
    ],
)
def test_nan_is_named(call):
    w = np.ones((4, 4))
    w[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"(w|scores) must hold no NaN.*flat index 6"):
        call(w)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_are_their_formulas(dtype):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((7, 5)).astype(dtype)
    grads = [rng.standard_normal((7, 5)).astype(dtype) for _ in range(4)]
    close = {"rtol": 1e-5 if dtype == np.float32 else 1e-12, "atol": 1e-6}
    for score, formula in (
        (cr.prune.Snip(), reference.snip),
        (cr.prune.Taylor(), reference.taylor),
        (cr.prune.Movement(), reference.movement),
    ):
        assert score.needs_gradients
        for g in grads:
            score.update({"w": w}, {"w": g})
        (found,) = score.scores([w])
        assert found.dtype == dtype
        np.testing.assert_allclose(found, formula(w, grads), **close)
        again = type(score)()
        again.load_state_dict(score.state_dict())
        np.testing.assert_array_equal(again.scores([w])[0], found)
    x = rng.standard_normal((20, 5)).astype(dtype)
    statistics = cr.prune.InputStatistics(5)
    for part in (x[:3], x[3:3], x[3:]):
        statistics.update(part)
    assert statistics.count == 20
    found = cr.prune.Wanda(statistics).scores(w)
    np.testing.assert_allclose(found, reference.wanda(w, x), rtol=1e-5)
    np.testing.assert_array_equal(cr.prune.Magnitude().scores(w), np.abs(w))
    first, second = (cr.prune.Random(3).scores([w, w]) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first[0].dtype == dtype
    assert (first[0] != first[1]).any()


def test_scores_refuse_what_does_not_fit():
    w = np.ones((2, 3))
    score = cr.prune.Movement()
    with pytest.raises(ValueError, match="update must come first"):
        score.scores(w)
    with pytest.raises(ValueError, match=r"grads must have the shapes \[\(2, 3\)\]"):
        score.update(w, np.ones((3, 2)))
    with pytest.raises(TypeError, match="grads must have a floating-point dtype"):
        score.update(w, np.ones((2, 3), int))
    score.update(w, w)
    with pytest.raises(ValueError, match=r"they had before, got \[\(3, 2\)\]"):
        score.update(w.T, w.T)
    np.testing.assert_array_equal(score.scores(w), -1)
    # The same rows with other strides, and the weights themselves as gradients.
    score.update(w[::-1], w[:, ::-1])
    np.testing.assert_array_equal(score.scores(w), -2)
    for state in ({}, {"sums": [np.ones(3, int)]}, {"sums": [np.ones((3, 3))]}, {"sums": 3}):
        with pytest.raises(ValueError, match="state_dict"):
            score.load_state_dict(state)
    with pytest.raises(ValueError, match="must be the state of a PCG64"):
        cr.prune.Random(0).load_state_dict({"rng": 3})
    with pytest.raises(TypeError, match="statistics must be InputStatistics"):
        cr.prune.Wanda([3])
    statistics = cr.prune.InputStatistics(3)
    with pytest.raises(ValueError, match="must have seen inputs"):
        cr.prune.Wanda(statistics).scores(w)
    with pytest.raises(ValueError, match="must have 3 inputs"):
        cr.prune.Wanda(statistics).scores(w.T)
    with pytest.raises(ValueError, match="1 arrays"):
        cr.prune.Wanda(statistics).scores([w, w])


def test_statistics_refuse_what_does_not_fit():
    statistics = cr.prune.InputStatistics(3, gram=True)
    with pytest.raises(ValueError, match=r"x must have shape \(..., 3\)"):
        statistics.update(np.ones((2, 4)))
    with pytest.raises(ValueError, match="x must be finite"):
        statistics.update(np.array([[1.0, np.inf, 0.0]]))
    with pytest.raises(TypeError, match="dtype"):
        statistics.update(np.ones((2, 3), bool))
    assert statistics.count == 0
    assert not statistics.gram.any()
    statistics.update(np.ones((2, 5, 3), np.float32)[:, ::2])
    assert statistics.count == 6
    np.testing.assert_array_equal(statistics.gram, np.full((3, 3), 6))
    assert cr.prune.InputStatistics(3).gram is None
    with pytest.raises(ValueError, match="features must be at least 1"):
        cr.prune.InputStatistics(0)


@given(
    st.lists(
        st.lists(st.integers(1, 40), min_size=2, max_size=4).map(tuple), min_size=1, max_size=5
    ),
    st.floats(0, 0.99),
)
def test_erdos_renyi(shapes, sparsity):
    for function, kernel in ((cr.prune.erdos_renyi, False), (cr.prune.erdos_renyi_kernel, True)):
        sparsities = function(shapes, sparsity)
        np.testing.assert_allclose(
            sparsities, reference.erdos_renyi(shapes, sparsity, kernel), atol=1e-9
        )
        assert all(0 <= s < 1 for s in sparsities)
    masks = cr.prune.masks(
        [np.ones(s) for s in shapes], sparsity, cr.prune.erdos_renyi, allow_empty=True
    )
    kept = sum(int(mask.sum()) for mask in masks)
    total = sum(mask.size for mask in masks)
    assert abs(kept - (1 - sparsity) * total) <= len(shapes) / 2 + 1e-6


CHOICES = [
    {"sparsity": 0.5},
    {"sparsity": 0.5, "block": 7},
    {"sparsity": 0.0},
    {"sparsity": 0.93, "damping": 0.1},
    {"nm": (2, 4)},
    {"nm": (1, 2), "block": 3},
]


@pytest.mark.parametrize("kwargs", CHOICES, ids=str)
@pytest.mark.parametrize("shape", [(5, 8), (1, 12), (30, 72), (6, 4)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sparsegpt_is_its_algorithm(kwargs, shape, dtype):
    rng = np.random.default_rng(1)
    # Linearly dependent inputs.
    mix = rng.standard_normal((shape[1], shape[1])) / 2 + np.eye(shape[1])
    x = rng.standard_normal((200, shape[1])) @ mix
    w = rng.standard_normal(shape).astype(dtype)
    # Blocks of 3 columns are rounded up to pairs.
    rounded = {"block": 4} if kwargs.get("block") == 3 else {}
    expected, mask = reference.sparsegpt(w, x, **{**kwargs, **rounded})
    statistics = cr.prune.InputStatistics(shape[1], gram=True)
    statistics.update(x)
    before = w.copy()
    found = cr.prune.sparsegpt(w, statistics, **kwargs)
    np.testing.assert_array_equal(found, mask)
    np.testing.assert_allclose(w, expected, rtol=2e-6 if dtype == np.float32 else 1e-9, atol=1e-9)
    assert (w[~found] == 0).all()
    if kwargs.get("sparsity") == 0:
        np.testing.assert_array_equal(w, before)
    elif "sparsity" in kwargs:
        assert (~found).sum() == round(kwargs["sparsity"] * w.size)


def test_sparsegpt_changes_outputs_less_than_magnitudes_do():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 64)) @ rng.standard_normal((64, 64))
    statistics = cr.prune.InputStatistics(64, gram=True)
    statistics.update(x)
    start = rng.standard_normal((50, 64))

    def error(w):
        return np.linalg.norm(x @ (w - start).T) / np.linalg.norm(x @ start.T)

    plain = np.where(reference.mask(start, 0.5), start, 0)
    wanda = cr.prune.masks(cr.prune.Wanda(statistics).scores(start), 0.5, "row")
    w, pairs = start.copy(), start.copy()
    cr.prune.sparsegpt(w, statistics, 0.5, block=8)
    cr.prune.sparsegpt(pairs, statistics, nm=(2, 4))
    assert error(w) < 0.8 * error(np.where(wanda, start, 0))
    assert error(w) < 0.8 * error(plain)
    assert error(pairs) < 0.9 * error(np.where(cr.prune.nm_mask(start), start, 0))


def test_sparsegpt_has_the_same_bits_for_any_threads():
    rng = np.random.default_rng(0)
    statistics = cr.prune.InputStatistics(150, gram=True)
    threads = cr.get_num_threads()
    results = []
    x, start = rng.standard_normal((900, 150)), rng.standard_normal((200, 150))
    try:
        for n in (1, 3):
            cr.set_num_threads(n)
            statistics = cr.prune.InputStatistics(150, gram=True)
            statistics.update(x)
            w = start.copy()
            cr.prune.sparsegpt(w, statistics, 0.7)
            results.append(w)
    finally:
        cr.set_num_threads(threads)
    np.testing.assert_array_equal(*results)


def test_calibration_inputs_that_do_not_determine_the_weights():
    rng = np.random.default_rng(0)
    start = rng.standard_normal((4, 8))

    def prune(x, **kwargs):
        statistics = cr.prune.InputStatistics(8, gram=True)
        statistics.update(x)
        w = start.copy()
        mask = cr.prune.sparsegpt(w, statistics, 0.5, **kwargs)
        assert np.isfinite(w).all()
        assert (~mask).sum() == 16
        return w, mask

    few = rng.standard_normal((5, 8))
    with pytest.warns(CalibrationWarning, match="5 calibration inputs for 8 features"):
        w, mask = prune(few)
    expected, truth = reference.sparsegpt(start, few, 0.5)
    np.testing.assert_array_equal(mask, truth)
    np.testing.assert_allclose(w, expected, rtol=1e-9, atol=1e-9)

    dependent = rng.standard_normal((50, 8))
    dependent[:, 3] = dependent[:, 1] - 2 * dependent[:, 6]
    with pytest.warns(CalibrationWarning, match="linear combinations of others") as warned:
        prune(dependent)
    assert {w.filename for w in warned} == {__file__}
    with pytest.warns(CalibrationWarning) as warned:
        prune(np.ones((50, 8)), damping=0)
    assert any("cannot be factored; damped by" in str(w.message) for w in warned)

    # Weights of an input that is always 0 are removed first, without a warning.
    idle = rng.standard_normal((50, 8))
    idle[:, 2] = 0
    w, mask = prune(idle)
    assert not mask[:, 2].any()
    np.testing.assert_allclose(w, reference.sparsegpt(start, idle, 0.5)[0], rtol=1e-9, atol=1e-9)


def test_bad_arguments_of_sparsegpt():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((3, 4))
    before = w.copy()
    full, empty = (cr.prune.InputStatistics(4, gram=True) for _ in range(2))
    full.update(rng.standard_normal((20, 4)))
    no_gram = cr.prune.InputStatistics(4)
    no_gram.update(w)
    nan, frozen = w.copy(), w.copy()
    nan[0, 0] = np.nan
    frozen.flags.writeable = False
    for args, kwargs, error, message in (
        ((w, full), {}, ValueError, "either sparsity or nm"),
        ((w, full, 0.5), {"nm": (2, 4)}, ValueError, "either sparsity or nm"),
        ((w, full, 1.0), {}, ValueError, r"sparsity must be in \[0, 1\)"),
        ((w, full), {"nm": (2, 3)}, ValueError, "m a divisor of 4"),
        ((w, full), {"nm": (4, 2)}, ValueError, "n <= m"),
        ((w, full, 0.5), {"damping": -1}, ValueError, "damping must be"),
        ((w, full, 0.5), {"block": 0}, ValueError, "block must be at least 1"),
        ((w, empty, 0.5), {}, ValueError, "must have seen inputs with gram=True, got 0 rows"),
        ((w, no_gram, 0.5), {}, ValueError, "3 rows without"),
        ((w, 3, 0.5), {}, TypeError, "statistics must be InputStatistics"),
        ((w.T, full, 0.5), {}, ValueError, r"w must have shape \(outputs, 4\)"),
        ((w[0], full, 0.5), {}, ValueError, r"w must have shape \(outputs, 4\)"),
        ((w[:0], full, 0.5), {}, ValueError, r"w must have shape \(outputs, 4\)"),
        ((w.astype(int), full, 0.5), {}, TypeError, "floating-point dtype"),
        ((nan, full, 0.5), {}, ValueError, "w must be finite"),
        ((frozen, full, 0.5), {}, ValueError, "w must be writable"),
    ):
        with pytest.raises(error, match=message):
            cr.prune.sparsegpt(*args, **kwargs)
    np.testing.assert_array_equal(w, before)


def test_kernels_count_as_their_inputs():
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((4, 2, 3, 3)).astype(np.float32)
    flat = kernel.reshape(4, 18).copy()
    statistics = cr.prune.InputStatistics(18, gram=True)
    statistics.update(rng.standard_normal((100, 18)))
    mask = cr.prune.sparsegpt(kernel, statistics, 0.5)
    np.testing.assert_array_equal(mask.reshape(4, 18), cr.prune.sparsegpt(flat, statistics, 0.5))
    np.testing.assert_array_equal(kernel.reshape(4, 18), flat)
    wanda = cr.prune.Wanda(statistics)
    np.testing.assert_array_equal(
        wanda.scores(kernel).reshape(4, 18), wanda.scores(kernel.reshape(4, 18))
    )

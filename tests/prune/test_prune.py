"""Thresholds, masks, schedules and the pruner."""

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import compressrs as cr
from tests.reference import prune as reference

DTYPES = st.sampled_from([np.float32, np.float64])


@st.composite
def weight_arrays(draw, dtype=DTYPES):
    dtype = draw(dtype)
    # A few distinct values besides arbitrary ones, to produce ties.
    elements = st.one_of(
        st.integers(-2, 2).map(float),
        st.floats(allow_nan=False, width=32),
    )
    shape = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9)
    return draw(hnp.arrays(dtype, shape, elements=elements))


@given(st.lists(weight_arrays(st.just(np.float32)), min_size=1, max_size=3), st.floats(0, 0.999))
def test_threshold_is_the_order_statistic(arrays, sparsity):
    if sum(a.size for a in arrays) == 0:
        with pytest.raises(ValueError, match="at least one value"):
            cr.prune.magnitude_threshold(arrays, sparsity)
    else:
        assert cr.prune.magnitude_threshold(arrays, sparsity) == reference.threshold(
            arrays, sparsity
        )


@given(weight_arrays(), st.floats(0, 0.999))
def test_masks_agree_with_sorting(w, sparsity):
    if w.size:
        mask = cr.prune.magnitude_mask(w, sparsity=sparsity, allow_empty=True)
        np.testing.assert_array_equal(mask, reference.mask(w, sparsity))
        assert mask.dtype == np.bool_


@given(weight_arrays(), st.floats(0, 10))
def test_threshold_masks(w, threshold):
    mask = cr.prune.magnitude_mask(w, threshold=threshold, allow_empty=True)
    np.testing.assert_array_equal(mask, np.abs(w) >= w.dtype.type(threshold))


def test_views_and_nested_parameters():
    w = np.arange(24.0).reshape(4, 6)
    np.testing.assert_array_equal(
        cr.prune.magnitude_mask(w.T[::2, ::-1], sparsity=0.5),
        reference.mask(w.T[::2, ::-1], 0.5),
    )
    assert cr.prune.magnitude_threshold({"a": [w[0], w[1]], "b": w[2:]}, 0.5) == 12


def test_large_arrays_of_both_dtypes():
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        w = rng.standard_normal(2_500_000).astype(dtype)
        tau = cr.prune.magnitude_threshold([w[:1_000_000], w[1_000_000:]], 0.9)
        assert tau == np.sort(np.abs(w))[round(0.9 * w.size)]
        assert np.count_nonzero(cr.prune.magnitude_mask(w, sparsity=0.9)) == 250_000


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, np.nan, np.inf])
def test_sparsity_out_of_range(sparsity):
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\)"):
        cr.prune.magnitude_threshold(np.ones(3), sparsity)


def test_nan_weights_are_named():
    good, bad = np.ones((2, 2)), np.array([1.0, 2.0, np.nan])
    with pytest.raises(ValueError, match=r"arrays\['b'\] must hold no NaN.*flat index 2"):
        cr.prune.magnitude_threshold({"a": good, "b": bad}, 0.5)
    with pytest.raises(ValueError, match="w must hold no NaN"):
        cr.prune.magnitude_mask(bad, threshold=0.5)


GRADUAL = {
    cr.prune.CubicSchedule: reference.cubic,
    cr.prune.LinearSchedule: reference.linear,
    cr.prune.ExponentialSchedule: reference.exponential,
}


@pytest.mark.parametrize("kind", GRADUAL)
@given(
    st.floats(0, 0.99),
    st.floats(0, 0.99),
    st.integers(0, 50),
    st.integers(1, 20),
    st.integers(1, 9),
)
def test_schedules_are_their_formulas(kind, initial, final, begin, n, dt):
    schedule = kind(initial, final, begin, begin + n * dt, dt)
    for k in range(n + 1):
        t = begin + k * dt
        expected = GRADUAL[kind](t, initial, final, begin, n, dt)
        assert schedule(t) == pytest.approx(expected, abs=1e-12)
        if k < n:
            assert schedule(t + dt - 1) == schedule(t)
    assert schedule(begin + n * dt + 1000) == final
    if begin:
        assert schedule(begin - 1) == 0


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"final": 1.0}, ValueError),
        ({"initial": -0.1}, ValueError),
        ({"begin": -1}, ValueError),
        ({"begin": 10, "end": 10}, ValueError),
        ({"frequency": 0}, ValueError),
        ({"end": 10.5}, TypeError),
        ({"final": "much"}, TypeError),
    ],
)
def test_bad_schedules(kwargs, error):
    for kind in (*GRADUAL, cr.prune.OneShot):
        if kind is not cr.prune.OneShot or set(kwargs) <= {"final"}:
            with pytest.raises(error, match=f"{list(kwargs)[-1]} must be"):
                kind(**kwargs)


@pytest.mark.parametrize("kind", [*GRADUAL, cr.prune.OneShot])
def test_steps_of_schedules(kind):
    schedule = kind(final=0.5, begin=3)
    assert eval(repr(schedule), vars(cr.prune))(4) == schedule(4)
    with pytest.raises(ValueError, match="step must be at least 0"):
        schedule(-1)
    with pytest.raises(TypeError, match="step must be an integer"):
        schedule(1.5)


@pytest.mark.parametrize("with_optimizer", [True, False])
def test_a_pruner_that_was_interrupted_goes_on(with_optimizer):
    def start():
        w = np.random.default_rng(0).standard_normal(500)
        opt = cr.optim.Adam(w, lr=0.01)
        schedule = cr.prune.ExponentialSchedule(final=0.9, end=20, frequency=4)
        return (
            w,
            opt,
            cr.prune.MagnitudePruner(w, schedule, optimizer=opt if with_optimizer else None),
        )

    def train(w, opt, pruner, steps):
        for step in steps:
            opt.step(np.random.default_rng(step).standard_normal(500))
            pruner.step()

    whole, opt, pruner = start()
    train(whole, opt, pruner, range(30))
    w, opt, pruner = start()
    train(w, opt, pruner, range(10))
    kept = w.copy(), opt.state_dict(), pruner.state_dict()
    w, opt, pruner = start()
    w[...] = kept[0]
    opt.load_state_dict(kept[1])
    pruner.load_state_dict(kept[2])
    train(w, opt, pruner, range(10, 30))
    np.testing.assert_array_equal(w, whole)
    assert pruner.sparsity == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scope": "layer"}, "must have scope global, got layer"),
        ({"score": "Movement()"}, r"must have score Magnitude\(\), got Movement"),
        ({"granularity": "NM(2, 4, axis=-1)"}, r"must have granularity Granularity\(\), got NM"),
        ({"schedule": "OneShot(final=0.5, begin=0)"}, "must have schedule OneShot"),
        ({"masks": [np.ones(3, bool)]}, r"boolean, of shapes \[\(4,\)\]"),
        ({"masks": [np.ones(4)]}, "masks'\\] must be boolean"),
        ({"masks": []}, "masks'\\] must be boolean"),
        ({"step_count": -1}, "step_count'\\] must be at least 0"),
        ({"target": 1}, "target'\\] must be in"),
        (None, "state_dict must have the key"),
        ({"masks": None}, "masks'\\] must be a list of masks"),
    ],
)
def test_bad_states_of_pruners(change, message):
    w = np.arange(4.0)
    pruner = cr.prune.MagnitudePruner(w, cr.prune.OneShot(0.25))
    state = pruner.state_dict()
    with pytest.raises(ValueError, match=message):
        pruner.load_state_dict({} if change is None else {**state, **change})
    assert pruner.step_count == 0
    assert pruner.masks[0].all()
    pruner.load_state_dict(state)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("with_optimizer", [True, False])
def test_pruner_reaches_its_sparsity_and_weights_stay_zero(scope, with_optimizer):
    rng = np.random.default_rng(0)
    # The second layer is half as large: global pruning hits it harder.
    a, b = rng.standard_normal((40, 30)), rng.standard_normal((20, 10)) / 2
    bias = np.ones(7)
    opt = cr.optim.Adam({"a": a, "b": b, "bias": bias})
    schedule = cr.prune.CubicSchedule(final=0.9, begin=2, end=12, frequency=5)
    pruner = cr.prune.MagnitudePruner(
        [a, b], schedule, scope=scope, optimizer=opt if with_optimizer else None
    )
    removed = [np.zeros(a.shape, bool), np.zeros(b.shape, bool)]
    for step in range(20):
        opt.step(
            {
                "a": rng.standard_normal(a.shape),
                "b": rng.standard_normal(b.shape),
                "bias": np.ones(7),
            }
        )
        pruner.step()
        target = schedule(step)
        assert pruner.sparsity == pytest.approx(target, abs=1e-3)
        for w, mask, before in zip((a, b), pruner.masks, removed, strict=True):
            assert (w[~mask] == 0).all()
            assert not (before & mask).any(), "what was removed stays removed"
            before |= ~mask
    per_layer = [1 - mask.mean() for mask in pruner.masks]
    if scope == "layer":
        assert per_layer == pytest.approx([0.9, 0.9])
    else:
        assert per_layer[0] < 0.9 < per_layer[1]
    assert (bias != 1).all()


def test_pruner_keeps_the_optimizer_s_other_masks():
    a, b = np.ones(4), np.arange(4.0)
    opt = cr.optim.SGD([a, b], lr=0.0)
    opt.set_masks([np.array([True, False, True, True]), None])
    pruner = cr.prune.MagnitudePruner(b, lambda step: 0.5, optimizer=opt)
    pruner.step()
    opt.step([np.ones(4), np.ones(4)])
    np.testing.assert_array_equal(a, [1, 0, 1, 1])
    np.testing.assert_array_equal(b, [0, 0, 2, 3])


def test_bad_pruners():
    w = np.ones(4)
    schedule = cr.prune.CubicSchedule(final=0.5, end=10)
    with pytest.raises(ValueError, match="scope must be"):
        cr.prune.MagnitudePruner(w, schedule, scope="half")
    with pytest.raises(TypeError, match="schedule must be callable"):
        cr.prune.MagnitudePruner(w, 0.5)
    with pytest.raises(ValueError, match="at least one weight"):
        cr.prune.MagnitudePruner([], schedule)
    with pytest.raises(ValueError, match="parameter of the optimizer"):
        cr.prune.MagnitudePruner(w, schedule, optimizer=cr.optim.SGD(np.ones(4)))
    with pytest.raises(TypeError, match=r"params\[1\] must have dtype float64"):
        cr.prune.MagnitudePruner([w, np.ones(3, np.float32)], schedule)
    read_only = np.ones(4)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="must be writable"):
        cr.prune.MagnitudePruner(read_only, schedule)
    pruner = cr.prune.MagnitudePruner(w, lambda step: 1.0)
    with pytest.raises(ValueError, match=r"schedule's sparsity must be in \[0, 1\)"):
        pruner.step()
    assert (w == 1).all()
    assert pruner.step_count == 0

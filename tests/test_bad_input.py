"""Every public function with arrays that it must reject or handle.

Whatever it is given, a function returns or raises a TypeError or ValueError with
a message, and what it might have written to is bit for bit what it was.
"""

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import compressrs as cr

DTYPES = ["<f4", "<f8", ">f4", ">f8", "f2", "i4", "i8", "c8", "?", "O", "S3", "M8[s]"]
VALUES = st.sampled_from([0.0, 1.0, -1.5, 1e-40, 3e38, np.nan, np.inf, -np.inf])


@st.composite
def arrays(draw, max_dims=3):
    """An array of any dtype, shape, order and strides, perhaps read-only or unaligned."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES + ["<f4", "<f8"] * 6)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=max_dims, min_side=0, max_side=4))
    if dtype.kind == "f":
        a = draw(hnp.arrays("f8", shape, elements=VALUES))
        with np.errstate(over="ignore"):
            a = a.astype(dtype)
    else:
        a = np.zeros(shape, dtype)
    layout = draw(st.sampled_from(["C", "C", "F", "reversed", "broadcast", "unaligned"]))
    if layout == "F":
        a = np.asfortranarray(a)
    elif layout == "reversed" and a.ndim:
        a = a[::-1]
    elif layout == "broadcast":
        a = np.broadcast_to(a, (2, *shape))
    elif layout == "unaligned" and a.dtype != object:
        raw = np.zeros(a.nbytes + 1, np.uint8)
        view = raw[1:].view(a.dtype).reshape(shape)
        view[...] = a
        a = view
    if draw(st.booleans()) and draw(st.booleans()):
        a.flags.writeable = False
    return a


ANYTHING = st.one_of(
    arrays(),
    st.none(),
    st.floats(),
    st.integers(-3, 3),
    st.text(max_size=2),
    st.lists(st.floats(), max_size=2),
    st.dictionaries(st.text(max_size=1), st.floats(), max_size=2),
)


def bits(*objects):
    return [
        (o.tobytes(), o.shape, o.strides) if isinstance(o, np.ndarray) else None for o in objects
    ]


def check(call, *written):
    """Run a call; if it raises, nothing may have changed."""
    before = bits(*written)
    try:
        with np.errstate(all="ignore"):
            return call()
    except (TypeError, ValueError) as error:
        assert len(str(error)) > 10
        assert bits(*written) == before
        return None


RULES = [
    value
    for value in vars(cr.optim).values()
    if isinstance(value, type) and issubclass(value, cr.optim.Optimizer)
    if value is not cr.optim.Optimizer
]


@given(ANYTHING, ANYTHING, st.sampled_from(RULES))
def test_optimizers(p, g, cls):
    opt = check(lambda: cls(p), p)
    if opt is not None:
        before = bits(*opt._arrays(), *(s for state in opt.state.values() for s in state.values()))
        try:
            opt.step(g)
        except (TypeError, ValueError):
            buffers = [s for state in opt.state.values() for s in state.values()]
            assert bits(*opt._arrays(), *buffers) == before
        check(lambda: opt.step(g, max_grad_norm=1.0, nonfinite="raise"), *opt._arrays())
        check(lambda: opt.step(None, max_grad_norm=g), *opt._arrays())
        check(lambda: opt.step(None, grad_scale=g), *opt._arrays())
        check(lambda: opt.step(None, nonfinite=g), *opt._arrays())
        check(lambda: opt.set_masks(g), *opt._arrays())
        check(lambda: opt.load_state_dict(g), *opt._arrays())


@given(ANYTHING, st.sampled_from(RULES), st.data())
def test_hyperparameters(value, cls, data):
    """Any value for any hyperparameter, when made and between steps."""
    p = np.ones((3, 2))
    name = data.draw(st.sampled_from(sorted(cls(np.ones((1, 1))).defaults)))
    check(lambda: cls(p, **{name: value}), p)
    opt = cls(p)
    check(lambda: opt.param_groups[0].update({name: value}), p)
    state = list(opt.state[0].values())
    check(lambda: opt.step(np.ones((3, 2))), p, *state)


@given(ANYTHING, ANYTHING)
def test_around_the_step(x, y):
    check(lambda: cr.optim.clip_grad_norm_(x, y), x)
    check(lambda: cr.optim.clip_grad_norm_(x, 1.0, norm_type=y), x)
    check(lambda: cr.optim.clip_grad_norm_(x, 1.0), x)
    check(lambda: cr.optim.clip_grad_value_(x, y), x)
    check(lambda: cr.optim.clip_grad_value_(x, 1.0), x)
    check(lambda: cr.optim.EMA(x, y), x)
    ema = check(lambda: cr.optim.EMA(x), x)
    if ema is not None:
        check(ema.update, x)
        check(lambda: ema.load_state_dict(y), x)
    accumulator = check(lambda: cr.optim.GradientAccumulator(y))
    if accumulator is not None:
        check(lambda: accumulator.add(x), x)
        check(lambda: accumulator.add(y), x)
    p = np.ones(3)
    check(lambda: cr.optim.Lookahead(x), x)
    check(lambda: cr.optim.Lookahead(cr.optim.SGD(p), y), p)
    check(lambda: cr.optim.ScheduleFree(x, lambda z: cr.optim.SGD(z)), x)
    check(lambda: cr.optim.ScheduleFree(p, lambda z: cr.optim.SGD(z), y), p)


@given(ANYTHING, ANYTHING)
def test_schedules(x, y):
    def opt():
        return cr.optim.SGD(np.ones(2), momentum=0.9)

    schedulers = cr.optim.lr_scheduler
    for name in schedulers.__all__:
        if name not in ("LRScheduler", "ChainedScheduler"):
            cls = getattr(schedulers, name)
            check(lambda cls=cls: cls(opt(), x))
            check(lambda cls=cls: cls(opt(), x, y))
            check(lambda cls=cls: cls(x, y))
    check(lambda: schedulers.ChainedScheduler(x))
    check(lambda: schedulers.StepLR(opt(), 1).load_state_dict(x))


@given(arrays(), st.data())
def test_overlapping_arrays(base, data):
    """Slices of one buffer as parameters and gradients."""
    buffer = np.arange(20.0)
    slices = st.builds(lambda start, n: buffer[start : start + n], st.integers(0, 15), st.just(5))
    a, b, g = data.draw(slices), data.draw(slices), data.draw(slices)
    opt = check(lambda: cr.optim.SGD([a, b], lr=1.0), buffer)
    if np.shares_memory(a, b):
        assert opt is None
        return
    assert opt is not None
    before = buffer.copy()
    if np.shares_memory(a, g) or np.shares_memory(b, g):
        with pytest.raises(ValueError, match=r"grads\[1\] shares memory with params\[[01]\]"):
            opt.step([np.ones(5), g])
        np.testing.assert_array_equal(buffer, before)
    else:
        opt.step([g, g])


def test_a_gradient_that_is_state():
    p = np.ones(4)
    opt = cr.optim.SGD(p, momentum=0.9)
    opt.step(np.ones(4))
    with pytest.raises(ValueError, match="grads shares memory with params or its state"):
        opt.step(opt.state[0]["momentum_buffer"])


def test_one_bad_gradient_stops_all():
    params = [np.ones(3), np.ones(3, np.float32), np.ones(3)]
    opt = cr.optim.Adam(params)
    for bad in (np.ones(4), np.ones(3, np.int64), np.ones(3, ">f8"), "no"):
        with pytest.raises((TypeError, ValueError), match=r"grads\[2\]"):
            opt.step([np.ones(3), np.ones(3, np.float32), bad])
    assert all((p == 1).all() for p in params)
    assert all(not s["exp_avg"].any() and s["step"] == 0 for s in opt.state.values())


def test_arrays_that_change_behind_the_optimizer_s_back():
    p = np.ones(4)
    opt = cr.optim.Adam(p)
    p.flags.writeable = False
    with pytest.raises(ValueError, match="params must be writable"):
        opt.step(np.ones(4))
    p.flags.writeable = True
    p.shape = (2, 2)
    with pytest.raises(ValueError, match="params was resized or reshaped"):
        opt.step(np.ones((2, 2)))
    p.shape = (4,)
    # The optimizer goes on from its memory, so NumPy does not move it.
    with pytest.raises(ValueError, match="cannot resize"):
        p.resize(400_000, refcheck=False)
    opt.step(np.ones(4))


def test_groups_and_states_that_change_behind_the_optimizer_s_back():
    p, q = np.ones(4), np.ones(4)
    opt = cr.optim.Adam([{"params": p}, {"params": q}])
    group = opt.param_groups[1]
    for change in (
        lambda: opt.param_groups.pop(),
        lambda: opt.param_groups.append(group),
        lambda: opt.param_groups.__setitem__(1, {"lr": 3}),
    ):
        with pytest.raises(TypeError, match="use add_param_group"):
            change()
    with pytest.raises(TypeError, match="'lr' cannot be removed"):
        del group["lr"]
    group["lr"] = 0.1
    # Values are written into the buffer that steps use, or refused.
    buffer = opt.state[1]["exp_avg"]
    with pytest.raises(ValueError, match="'exp_avg' must be numbers of shape"):
        opt.state[1]["exp_avg"] = np.ones(3)
    assert not buffer.any()
    for values in (np.ones(4, np.float32), np.ones(8)[::2], p):
        opt.state[1]["exp_avg"] = values
        assert opt.state[1]["exp_avg"] is buffer
        assert np.array_equal(buffer, values)
    opt.state[0]["step"][...] = np.iinfo(np.int64).max
    opt.step([np.ones(4), np.ones(4)])
    assert np.isfinite(p).all()


@pytest.mark.filterwarnings("ignore::compressrs.prune.EmptyLayerWarning")
@given(ANYTHING, ANYTHING)
def test_pruning(w, s):
    check(lambda: cr.prune.magnitude_threshold(w, s), w)
    check(lambda: cr.prune.magnitude_mask(w, sparsity=s), w)
    check(lambda: cr.prune.magnitude_mask(w, threshold=s), w)
    check(lambda: cr.prune.CubicSchedule(s, w), w)
    pruner = check(lambda: cr.prune.MagnitudePruner(w, lambda step: 0.5), w)
    if pruner is not None:
        check(pruner.step)
    check(lambda: cr.prune.IterativeSchedule(s, w), w)
    check(lambda: cr.prune.nm_mask(w, 1, 2, s), w, s)
    check(lambda: cr.prune.nm_mask(w, s, 4), w, s)
    check(lambda: cr.prune.block_mask(w, s, 0.5), w, s)
    check(lambda: cr.prune.block_mask(w, (1, 1), s), w, s)
    check(lambda: cr.prune.neuron_mask(w, s, 0.5), w, s)
    check(lambda: cr.prune.neuron_mask(w, 0, s), w, s)
    check(lambda: cr.prune.neuron_mask(w, 0, 0.5, s), w, s)
    for scope in ("global", "layer", "row", cr.prune.erdos_renyi, s):
        check(lambda scope=scope: cr.prune.masks(w, 0.5, scope), w, s)
    check(lambda: cr.prune.masks(w, s), w, s)
    check(lambda: cr.prune.erdos_renyi_kernel(w, s), w, s)


@pytest.mark.filterwarnings("ignore::compressrs.prune.EmptyLayerWarning")
@pytest.mark.filterwarnings("ignore::compressrs.prune.CalibrationWarning")
@given(ANYTHING, ANYTHING, ANYTHING)
def test_scores_and_what_is_pruned_by_them(w, x, s):
    for score in (cr.prune.Random(0), cr.prune.Snip(), cr.prune.Taylor(), cr.prune.Movement()):
        check(lambda score=score: score.update(w, x), w, x)
        check(lambda score=score: score.scores(w), w)
        check(lambda score=score: score.load_state_dict(s), s)
    statistics = cr.prune.InputStatistics(3, gram=True)
    check(lambda: statistics.update(x), x)
    check(lambda: cr.prune.Wanda(statistics).scores(w), w)
    check(lambda: cr.prune.sparsegpt(w, statistics, 0.5))
    check(lambda: cr.prune.sparsegpt(w, statistics, s), s)
    check(lambda: cr.prune.sparsegpt(w, statistics, nm=s), s)
    check(lambda: cr.prune.neurons(w, [x], [s]), w, x, s)
    check(lambda: cr.prune.neurons(x, w, s), w, x, s)
    ticket = check(lambda: cr.prune.LotteryTicket(w), w)
    if ticket is not None:
        check(lambda: ticket.rewind(s), s)
    check(lambda: cr.prune.sensitivity(w, lambda: 0.0, [0.5]), w)
    matrix = cr.sparse.CSRMatrix.from_dense(np.eye(3))
    check(lambda: cr.prune.rewire(matrix, x, 1), x)
    check(lambda: cr.prune.rewire(matrix, np.ones((3, 3)), s), s)


@given(ANYTHING, ANYTHING, ANYTHING, st.tuples(st.integers(-1, 4), st.integers(-1, 4)))
def test_sparse_construction(data, indices, indptr, shape):
    check(lambda: cr.sparse.CSRMatrix((data, indices, indptr), shape), data, indices, indptr)
    check(lambda: cr.sparse.CSRMatrix.from_dense(data), data)
    check(lambda: cr.sparse.CSRMatrix.from_dense(data, indices), data)
    check(lambda: cr.sparse.CSRMatrix.from_dense(data, mask=indices), data, indices)
    check(lambda: cr.sparse.CSRMatrix.from_scipy(data), data)
    check(lambda: cr.sparse.BSRMatrix((data, indices, indptr), shape), data, indices, indptr)
    check(lambda: cr.sparse.BSRMatrix.from_dense(data, (4, 4), mask=indices), data, indices)


@given(arrays(max_dims=2), arrays(), ANYTHING, ANYTHING)
def test_sparse_products(w, x, y, out):
    a = check(lambda: cr.sparse.CSRMatrix.from_dense(w), w)
    if a is None:
        return
    for matrix in (a, a.T):
        check(lambda matrix=matrix: matrix.matmul(x), x)
        check(lambda matrix=matrix: matrix.matmul(x, out=out), x, out)
        check(lambda matrix=matrix: matrix @ y, y)
        check(lambda matrix=matrix: x @ matrix, x)
        check(lambda matrix=matrix: matrix.matmul(x, out, bias=y, relu=True), x, y, out)
        check(lambda matrix=matrix: matrix.rmatmul(x, out, accumulate=True), x, out)
    check(lambda: cr.sparse.sddmm(a, x, y), x, y)
    check(lambda: cr.sparse.sddmm(a, x, x.T, out=out), x, out)


@pytest.mark.filterwarnings("ignore:the loss is NaN:RuntimeWarning")
@given(ANYTHING, ANYTHING, ANYTHING, ANYTHING)
def test_distillation(student, teacher, labels, number):
    check(lambda: cr.distill.softmax(student, out=teacher), student, teacher)
    check(lambda: cr.distill.log_softmax(student, axis=number), student)
    check(lambda: cr.distill.softmax(student, temperature=number), student)
    check(lambda: cr.distill.kd_loss(student, teacher, 2.0, labels, 0.5), student, teacher)
    check(lambda: cr.distill.kd_loss(student, student, number), student)
    check(lambda: cr.distill.kd_loss(student, [teacher, student]), student, teacher)
    check(lambda: cr.distill.kd_loss(student, teacher, out=labels), student, teacher)
    for name in ("class_weight", "sample_weight", "label_smoothing", "ignore_index"):
        given = {name: number}
        check(lambda given=given: cr.distill.kd_loss(student, student, **given), student)
    check(lambda: cr.distill.dkd_loss(student, teacher, 4.0, labels), student, teacher)
    check(lambda: cr.distill.logsumexp(student, number, out=teacher), student)
    check(lambda: cr.distill.top_k(student, number), student)


@given(ANYTHING, ANYTHING, ANYTHING)
def test_features(student, teacher, out):
    for loss in (
        cr.distill.hint_loss,
        cr.distill.attention_loss,
        cr.distill.rkd_distance_loss,
        cr.distill.rkd_angle_loss,
        cr.distill.dist_loss,
    ):
        check(lambda loss=loss: loss(student, teacher), student, teacher)
        check(lambda loss=loss: loss(student, teacher, out=out), student, teacher, out)


@given(ANYTHING, ANYTHING)
def test_layers(x, dy):
    layer = cr.nn.Linear(3, 2, rng=0)
    sparse = cr.nn.SparseLinear.from_linear(layer)
    for module in (layer, sparse, cr.nn.ReLU()):
        if check(lambda module=module: module(x), x) is not None:
            check(lambda module=module: module.backward(dy), dy)


LAYERS = [
    lambda: cr.nn.Conv2d(2, 3, 2, padding=1, rng=0),
    lambda: cr.nn.Conv2d(2, 2, 1, stride=2, groups=2, dtype=np.float64, rng=0),
    lambda: cr.nn.BatchNorm(3),
    lambda: cr.nn.LayerNorm(3, dtype=np.float64),
    lambda: cr.nn.Embedding(3, 2, rng=0),
    lambda: cr.nn.MultiHeadAttention(2, 1, rng=0),
    lambda: cr.nn.Residual(cr.nn.Linear(3, 3, rng=0)),
    lambda: cr.nn.MaxPool(2, padding=1),
    lambda: cr.nn.AvgPool(2),
    cr.nn.Flatten,
    cr.nn.GELU,
    cr.nn.SiLU,
    cr.nn.Softmax,
    lambda: cr.nn.Dropout(0.5, rng=0),
]


@given(arrays(max_dims=4), ANYTHING, st.sampled_from(LAYERS))
def test_layers_with_kernels(x, other, make):
    layer = make()
    state = list(layer.state_dict().values())
    y = check(lambda: layer(x), x)
    if y is not None:
        check(lambda: layer.backward(other), *state)
        check(lambda: layer.backward(y), *state)
    check(lambda: layer.load_state_dict(other), *state)
    check(lambda: layer.load_state_dict(dict.fromkeys(layer.state_dict(), other)), *state)
    check(lambda: layer.summary(other), *state)
    check(lambda: setattr(layer, "weight", other), *state)
    check(lambda: cr.nn.Sequential(layer, other))


@given(ANYTHING, ANYTHING)
def test_what_layers_are_made_of(x, y):
    nn = cr.nn
    small = x if isinstance(x, int) else "x"
    for make in (nn.Linear, nn.Embedding, nn.MultiHeadAttention):
        check(lambda make=make: make(small, y))
    check(lambda: nn.Conv2d(small, 2, y))
    check(lambda: nn.Dropout(y))
    check(lambda: nn.LayerNorm(3, eps=y))
    check(lambda: nn.Linear.from_arrays(x, y), x)
    check(lambda: nn.Conv2d.from_arrays(x, y), x)
    check(lambda: nn.MaxPool(2, stride=x, padding=y))
    check(lambda: nn.mse_loss(x, y))
    check(lambda: nn.cross_entropy(x, y))
    check(lambda: nn.fold_batch_norm(x))
    check(lambda: cr.prune.groups(x))
    check(lambda: cr.prune.GroupPruner(x, y))
    check(lambda: cr.TrainState(a=x))
    run = cr.TrainState(a=np.ones(3))
    check(lambda: run.load_state_dict(x), run.parts["a"])
    check(lambda: run.load_state_dict({"step": 1, "parts": {"a": y}}), run.parts["a"])


@given(ANYTHING)
def test_threads(n):
    before = cr.get_num_threads()
    check(lambda: cr.set_num_threads(n))
    cr.set_num_threads(before)

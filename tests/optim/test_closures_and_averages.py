"""SAM, SWA, statistics of batch norms, and the range test of the learning rate."""

import copy

import numpy as np
import pytest

import compressrs as cr


def half_square(params):
    """Return a loss and its gradients: each weight times its position."""
    loss, grads = 0.0, {}
    for name, w in params.items():
        scale = np.arange(1, w.size + 1).reshape(w.shape)
        loss += float(0.5 * (scale * w.astype(float) ** 2).sum())
        grads[name] = (scale * w).astype(w.dtype)
    return loss, grads


def weights(dtype=np.float64):
    rng = np.random.default_rng(0)
    return {
        "a": rng.standard_normal((3, 4)).astype(dtype),
        "b": rng.standard_normal(5).astype(dtype),
    }


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_takes_the_gradient_of_the_worst_point_nearby(adaptive):
    params = weights()
    twin = copy.deepcopy(params)
    opt = cr.optim.SAM(cr.optim.SGD(params, lr=0.01, momentum=0.9), rho=0.3, adaptive=adaptive)
    momentum = {name: None for name in twin}
    for _ in range(4):
        loss, grads = half_square(twin)
        size = {name: np.abs(w) if adaptive else np.ones_like(w) for name, w in twin.items()}
        norm = np.sqrt(sum((np.square(size[n] * g)).sum() for n, g in grads.items()))
        moved = {n: w + 0.3 / norm * size[n] ** 2 * grads[n] for n, w in twin.items()}
        for name, g in half_square(moved)[1].items():
            momentum[name] = g if momentum[name] is None else 0.9 * momentum[name] + g
            twin[name] = twin[name] - 0.01 * momentum[name]
        assert opt.step(lambda: half_square(params)) == pytest.approx(loss)
        for name in twin:
            np.testing.assert_allclose(params[name], twin[name], rtol=1e-12)


def test_sam_leaves_masked_and_frozen_weights_alone():
    params = weights(np.float32)
    inner = cr.optim.SGD([{"params": params["a"]}, {"params": params["b"], "frozen": True}], lr=0.1)
    mask = np.ones((3, 4), bool)
    mask[1] = False
    inner.set_masks([mask, None])
    before = params["b"].copy()
    seen = []

    def closure():
        seen.append((params["a"].copy(), params["b"].copy()))
        return half_square(params)[0], [*half_square(params)[1].values()]

    cr.optim.SAM(inner, rho=0.5).step(closure)
    assert (seen[1][0] != seen[0][0]).any()
    assert all((a[1] == 0).all() and (b == before).all() for a, b in [*seen, params.values()])


@pytest.mark.parametrize("call", [1, 2])
def test_sam_changes_nothing_if_the_closure_raises(call):
    params = weights()
    opt = cr.optim.SAM(cr.optim.Adam(params))
    opt.step(lambda: half_square(params))
    before, state = copy.deepcopy(params), copy.deepcopy(opt.state_dict())
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return half_square(params)

    with pytest.raises(KeyboardInterrupt):
        opt.step(closure)
    for name in params:
        assert params[name].tobytes() == before[name].tobytes()
    assert str(opt.state_dict()) == str(state)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_swa_is_the_mean_of_what_it_has_seen(dtype):
    rng = np.random.default_rng(1)
    w = np.zeros((30, 40), dtype)
    swa = cr.optim.SWA(w)
    seen = []
    for _ in range(7):
        w[:] = rng.standard_normal(w.shape)
        swa.update()
        seen.append(w.astype(np.float64))
        wanted = np.mean(seen, axis=0)
        tolerance = 1e-12 if dtype == np.float64 else 1e-6
        np.testing.assert_allclose(swa.average, wanted, atol=tolerance)
        if len(seen) == 1:
            assert (swa.average == w).all()
    other = cr.optim.SWA(w.copy())
    other.load_state_dict(swa.state_dict())
    assert other.average.tobytes() == swa.average.tobytes()


def test_statistics_of_batch_norms_are_means_over_batches():
    rng = np.random.default_rng(2)
    batches = [rng.standard_normal((8, 3, 4)).astype(np.float32) * k for k in (1, 2, 3)]
    model = cr.nn.Sequential(cr.nn.BatchNorm(3), cr.nn.ReLU(), cr.nn.BatchNorm(3, momentum=0.5))
    model[2].eval()
    cr.nn.update_batch_norm(model, iter(batches))
    buffers = model[0].buffers
    np.testing.assert_allclose(
        buffers["running_mean"], np.mean([b.mean((0, 2)) for b in batches], 0), atol=1e-6
    )
    np.testing.assert_allclose(
        buffers["running_var"], np.mean([b.var((0, 2), ddof=1) for b in batches], 0), rtol=1e-5
    )
    assert buffers["num_batches_tracked"] == 3
    assert model[0].training and not model[2].training
    assert model[2].momentum == 0.5

    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="shape"):
        cr.nn.update_batch_norm(model, [batches[0], batches[0][:, :2]])
    with pytest.raises(ValueError, match="at least one"):
        cr.nn.update_batch_norm(model, [])
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match=r"batches\[1\] must give finite statistics"):
            cr.nn.update_batch_norm(model, [batches[0], np.full_like(batches[0], bad)])
    for name, value in model.state_dict().items():
        assert value.tobytes() == before[name].tobytes()
    assert model[0].momentum == 0.1


def test_the_range_test_finds_where_the_loss_falls_and_puts_everything_back(tmp_path):
    params = weights(np.float32)
    opt = cr.optim.Adam(params, lr=0.5)
    opt.step(half_square(params)[1])
    before, state = copy.deepcopy(params), copy.deepcopy(opt.state_dict())

    def train():
        loss, grads = half_square(params)
        opt.step(grads)
        return loss

    found = cr.optim.lr_range_test(opt, train, 1e-5, 1e3, 200)
    assert 1e-3 < found.suggestion < 10
    assert len(found.rates) < 200 and found.rates[0] == 1e-5  # it diverged, and ended
    np.testing.assert_allclose(np.diff(np.log(found.rates)), np.log(1e8) / 199)
    for name in params:
        assert params[name].tobytes() == before[name].tobytes()
    assert str(opt.state_dict()) == str(state)
    found.plot(tmp_path / "rates.svg")
    assert (tmp_path / "rates.svg").stat().st_size > 1000


@pytest.mark.parametrize("result", ["raises", "nan", "text"])
def test_the_range_test_puts_everything_back_whatever_train_does(result):
    w = np.ones(3)
    opt = cr.optim.SGD(w, lr=0.1, momentum=0.9)

    def train():
        opt.step(w.copy())
        if result == "raises":
            raise KeyError("x")
        return float("nan") if result == "nan" else result

    error = {"raises": KeyError, "nan": ValueError, "text": TypeError}[result]
    with pytest.raises(error):
        cr.optim.lr_range_test(opt, train)
    assert (w == 1).all() and opt.param_groups[0]["lr"] == 0.1
    assert not opt.state[0]["momentum_buffer"].any()


def test_the_range_test_refuses_new_groups():
    w = np.ones(2)
    opt = cr.optim.Adam(w)

    def train():
        if len(opt.param_groups) == 1:
            opt.step(w.copy())
            opt.add_param_group({"params": np.ones(3)})
        return 1.0

    with pytest.raises(ValueError, match="must not add groups"):
        cr.optim.lr_range_test(opt, train)
    assert (w == 1).all()


@pytest.mark.parametrize("size", [1e-310, 1e-200, 1.0, 1e150])
def test_sam_goes_as_far_whatever_the_scale_of_the_gradients(size):
    w = np.ones(2)
    seen = []

    def closure():
        seen.append(w.copy())
        return 0.0, np.full(2, size)

    cr.optim.SAM(cr.optim.SGD(w, lr=0.0), rho=0.5).step(closure)
    np.testing.assert_allclose(seen[1], 1 + 0.5 / np.sqrt(2), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("start", [np.nan, np.inf, 1e8, 1e30])
def test_what_was_there_before_the_first_value_of_a_mean_does_not_matter(dtype, start):
    w = np.full(2, start, dtype)
    swa = cr.optim.SWA(w)
    w[:] = [1.25, 0.3]
    swa.update()
    np.testing.assert_array_equal(swa.average, w)

    layer = cr.nn.BatchNorm(3, dtype=dtype)
    fresh = cr.nn.BatchNorm(3, dtype=dtype)
    layer.buffers["running_mean"][:] = layer.buffers["running_var"][:] = start
    batches = [np.random.default_rng(i).standard_normal((64, 3)).astype(dtype) for i in range(3)]
    for one in (layer, fresh):
        cr.nn.update_batch_norm(one, batches)
    for name in ("running_mean", "running_var"):
        np.testing.assert_array_equal(layer.buffers[name], fresh.buffers[name])
    mean = np.mean([b.mean(axis=0) for b in batches], axis=0)
    var = np.mean([b.var(axis=0, ddof=1) for b in batches], axis=0)
    np.testing.assert_allclose(fresh.buffers["running_mean"], mean, atol=1e-6)
    np.testing.assert_allclose(fresh.buffers["running_var"], var, rtol=1e-5)


def test_a_batch_norm_that_is_used_twice_averages_over_its_uses():
    norm = cr.nn.BatchNorm(1, dtype=np.float64)
    model = cr.nn.Residual(norm, cr.nn.ReLU(), shortcut=norm)
    x = np.array([[1.0], [3.0]])
    cr.nn.update_batch_norm(model, [x, x + 4])
    assert norm.buffers["running_mean"][0] == 4
    assert norm.momentum == 0.1


@pytest.mark.parametrize("what", ["update_batch_norm", "recommend"])
def test_a_forward_before_is_still_the_one_that_backward_uses(what):
    rng = np.random.default_rng(0)
    linear = cr.nn.Linear(16, 16, rng=0)
    model = cr.nn.Sequential(linear, cr.nn.BatchNorm(16))
    x, dy = rng.standard_normal((2, 8, 16)).astype(np.float32)
    model(x)
    model.backward(dy)
    expected = linear.grads["weight"].copy()
    model(x)
    if what == "recommend":
        cr.nn.recommend(linear, seconds=0.001)
    else:
        cr.nn.update_batch_norm(model, [x + 1])
    model.backward(dy)
    np.testing.assert_array_equal(linear.grads["weight"], expected)


def test_batch_norm_without_momentum_keeps_the_mean_of_all_batches():
    layer = cr.nn.BatchNorm(2, momentum=None, dtype=np.float64)
    batches = np.random.default_rng(0).standard_normal((4, 5, 2))
    for x in batches:
        layer(x)
    np.testing.assert_allclose(layer.buffers["running_mean"], batches.mean(axis=(0, 1)))
    assert layer.config()["momentum"] is None


def test_the_range_test_takes_losses_below_zero():
    w = np.ones(3)
    optimizer = cr.optim.SGD(w)

    def train():
        loss = float(w @ w) - 10
        optimizer.step(2 * w)
        return loss

    found = cr.optim.lr_range_test(optimizer, train, steps=50)
    assert 0.01 < found.suggestion < 2
    assert len(found.rates) > 40


def test_the_range_test_takes_rates_far_apart():
    w = np.ones(3)
    optimizer = cr.optim.SGD(w)
    seen = []

    def train():
        seen.append(optimizer.param_groups[0]["lr"])
        return 1.0

    cr.optim.lr_range_test(optimizer, train, 1e-200, 1e200, steps=5)
    np.testing.assert_allclose(seen, [1e-200, 1e-100, 1, 1e100, 1e200], rtol=1e-12)


def test_sam_refuses_closures_that_change_parameters_and_undoes_them():
    w = np.ones(3)
    sam = cr.optim.SAM(cr.optim.SGD(w, lr=0.1))

    def changing():
        w[:] = 5
        return 1.0, np.ones(3)

    with pytest.raises(ValueError, match="closure must not change parameters, but changed params"):
        sam.step(changing)
    assert w.tolist() == [1, 1, 1]

    def raising():
        w[:] = 5
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sam.step(raising)
    assert w.tolist() == [1, 1, 1]


@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 3e38), (np.float64, 1e308)])
@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_climbs_with_gradients_whose_norm_is_beyond_the_type(dtype, size, adaptive):
    w = np.ones(8, dtype)
    sam = cr.optim.SAM(cr.optim.SGD(w, lr=1e-3), rho=0.5, adaptive=adaptive)
    seen = []

    def closure():
        seen.append(w.copy())
        return 1.0, np.full(8, size if len(seen) == 1 else 0, dtype)

    sam.step(closure)
    np.testing.assert_allclose(seen[1] - 1, np.full(8, 0.5 / np.sqrt(8)), rtol=1e-6)

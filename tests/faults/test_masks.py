"""Masked weights stay 0 in every operation that writes weights."""

import contextlib
import copy
import gc
import inspect
import pickle

import numpy as np
import pytest

import compressrs as cr
from compressrs._arrays import flatten
from tests.faults.public import EXAMPLES, classes
from tests.faults.test_hostile_state import same

MASK = np.arange(12).reshape(4, 3) % 3 != 0


def weights():
    return np.random.default_rng(0).standard_normal((4, 3)) + 5


def gone(*arrays):
    return all((a[~MASK] == 0).all() and (a[MASK] != 0).all() for a in arrays)


#: The parameters by which a class is given the weights that it may write to.
ROLES = {"optimizer", "params", "model", "student"}


def writers():
    """Return the names of the public classes that are given weights."""
    # SET and RigL change the pattern of a sparse matrix, which is its mask.
    without = {"prune.SET", "prune.RigL"}
    kinds = {name: kind for name, kind in classes().items() if not issubclass(kind, Exception)}
    return [
        name
        for name in kinds.keys() & EXAMPLES.keys() - without
        if ROLES & set(inspect.signature(kinds[name]).parameters)
    ]


def test_writers_are_found():
    assert {"optim.EMA", "optim.Lookahead", "optim.ScheduleFree", "optim.Adam"} <= {*writers()}
    assert {"prune.LotteryTicket", "prune.GroupPruner", "distill.Distiller"} <= {*writers()}


def operations(found):
    """Yield the public methods of an object that take no arguments, but `step` (see `use`)."""
    for name in dir(type(found)):
        method = inspect.getattr_static(type(found), name)
        if name.startswith("_") or name == "step" or not inspect.isfunction(method):
            continue
        if method.__module__.startswith("compressrs") and all(
            p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            for p in list(inspect.signature(method).parameters.values())[1:]
        ):
            yield getattr(found, name)
    if hasattr(found, "load_state_dict"):
        yield lambda: found.load_state_dict(copy.deepcopy(found.state_dict()))


@pytest.mark.parametrize("name", sorted(writers()))
def test_everything_that_writes_weights_keeps_masks(name):
    example = EXAMPLES[name]
    objects = example.make()
    found, *rest = objects if isinstance(objects, tuple) else (objects,)
    held = [found, *rest, *vars(found).values()]
    optimizer = next((x for x in held if isinstance(x, cr.optim.Optimizer)), None)
    model = next((x for x in held if isinstance(x, cr.nn.Layer)), None)
    arrays = optimizer._arrays() if model is None else [a for _, a in flatten(model.params)]
    if optimizer is not None and all(a is not arrays[0] for a in optimizer._arrays()):
        optimizer = None  # ScheduleFree's trains other arrays.
    pruner = cr.prune.Pruner(arrays, cr.prune.OneShot(0.5), cr.prune.Random(0), optimizer=optimizer)
    pruner.step()

    def assert_masked():
        for array, mask in zip(arrays, pruner.masks, strict=True):
            assert (array[~mask] == 0).all()

    assert pruner.sparsity > 0.4
    if hasattr(found, "state_dict") and not isinstance(found, cr.prune.Pruner):
        # What is derived from weights, such as averages, is masked at once: a state that is saved
        # now is the one that is loaded.
        state = copy.deepcopy(found.state_dict())
        found.load_state_dict(copy.deepcopy(state))
        assert same(found.state_dict(), state)
    for operation in (lambda: example.use(objects), *operations(found)):
        result = operation()
        assert_masked()
        if isinstance(result, contextlib.AbstractContextManager):
            with result:
                assert_masked()
        assert_masked()


def by_optimizer(w, opt):
    opt.set_masks(MASK)


def by_pruner(w, opt):
    pruner = cr.prune.Pruner(w, lambda t: 1 / 3, cr.prune.Magnitude())
    w[~MASK] = 1e-3
    pruner.step()
    return pruner


removals = pytest.mark.parametrize("remove", [by_optimizer, by_pruner])


@removals
def test_averages(remove):
    w = weights()
    opt, ema = cr.optim.SGD(w, lr=1e-3), cr.optim.EMA(w)
    kept = remove(w, opt)
    with ema.applied():
        assert gone(w)
    assert gone(w)
    ema.update()
    assert gone(ema.average)
    state = copy.deepcopy(ema.state_dict())
    state["averages"][0] += 1
    ema.load_state_dict(state)
    ema.copy_to_params()
    assert gone(w, ema.average), kept


@removals
def test_lookahead(remove):
    w = weights()
    opt = cr.optim.Lookahead(cr.optim.SGD(w, lr=1e-3), k=2)
    kept = remove(w, opt.optimizer)
    for _ in range(4):
        opt.step(np.ones_like(w))
        if kept is not None:
            kept.step()
    assert gone(w, opt.state_dict()["slow"][0])


def test_schedule_free():
    w = weights()
    opt = cr.optim.ScheduleFree(w, lambda z: cr.optim.SGD(z, lr=1e-3))
    opt.step(np.ones_like(w))
    kept = by_pruner(w, None)
    for use in (lambda: opt.step(np.ones_like(w)), opt.eval, opt.train):
        use()
        assert gone(w)
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert gone(w), kept
    w = weights()
    opt = cr.optim.ScheduleFree(w, lambda z: cr.optim.SGD(z, lr=1e-3))
    opt.step(np.ones_like(w))
    opt.optimizer.set_masks(MASK)
    for use in (opt.eval, opt.train, lambda: opt.step(np.ones_like(w))):
        use()
        assert gone(w)


@removals
def test_tickets(remove):
    w = weights()
    opt = cr.optim.SGD(w, lr=1e-3)
    ticket = cr.prune.LotteryTicket(w, opt)
    kept = remove(w, opt)
    ticket.rewind()
    assert gone(w), kept


def test_a_resumed_run_keeps_its_masks(tmp_path):
    pytest.importorskip("safetensors")

    def make():
        layer = cr.nn.Linear(3, 4, rng=0)
        opt = cr.optim.Adam(layer.params)
        return layer, opt, cr.distill.Distiller(layer, np.zeros((8, 4), np.float32), opt)

    x, y = np.ones((8, 3), np.float32), np.zeros(8, int)
    layer, opt, distiller = make()
    opt.set_masks({"weight": MASK, "bias": None})
    path = tmp_path / "checkpoint"
    distiller.fit(x, y, epochs=1, checkpoint=path)
    layer, opt, distiller = make()
    distiller.fit(x, y, epochs=3, checkpoint=path)
    assert gone(layer.weight)
    layer, other, _ = make()
    other.load_state_dict(opt.state_dict())
    other.step({"weight": np.ones((4, 3), np.float32), "bias": None})
    assert gone(layer.weight)


def test_after_shrinking():
    model = cr.nn.Sequential(cr.nn.Linear(3, 4, rng=0), cr.nn.ReLU(), cr.nn.Linear(4, 2, rng=0))
    opt = cr.optim.Adam(model.params)
    ema = cr.optim.EMA(model.params)
    ahead = cr.optim.Lookahead(opt)
    ticket = cr.prune.LotteryTicket(model.params, opt)
    weights = [model[0].weight, model[2].weight]
    pruner = cr.prune.Pruner(weights, lambda t: 0.5, optimizer=opt)
    keep = np.array([True, False, True, True])
    cr.prune.shrink(model, {0: keep}, opt)
    grads = [np.ones_like(a) for a in opt._arrays()]
    grads = {
        "0": dict(zip(("weight", "bias"), grads[:2], strict=True)),
        "2": dict(zip(("weight", "bias"), grads[2:], strict=True)),
    }
    kept = copy.deepcopy((model.params, opt.state_dict(), ema.state_dict(), pruner.state_dict()))
    for use in (
        ema.update,
        ema.copy_to_params,
        lambda: ema.applied().__enter__(),
        lambda: ahead.step(grads),
        pruner.step,
        ticket.rewind,
    ):
        with pytest.raises(ValueError, match=r"make a new"):
            use()
    now = model.params, opt.state_dict(), ema.state_dict(), pruner.state_dict()
    np.testing.assert_equal(now, kept)
    cr.optim.Lookahead(opt, k=1).step(grads)
    cr.optim.EMA(model.params).update()


def test_after_a_group_is_added():
    a, b = np.ones(3), np.ones(2)
    opt = cr.optim.SGD([a], lr=1.0)
    ahead = cr.optim.Lookahead(opt, k=1)
    opt.add_param_group({"params": [b]})
    ahead.step([[np.ones(3)], [np.ones(2)]])
    assert (a == 0.5).all()
    assert (b == 0.5).all()
    w = np.ones(3)
    free = cr.optim.ScheduleFree(w, lambda z: cr.optim.SGD([z], lr=1.0))
    free.optimizer.add_param_group({"params": [b]})
    with pytest.raises(ValueError, match="make a new ScheduleFree"):
        free.step([[np.ones(3)], [np.ones(2)]])
    assert (w == 1).all()


def test_a_schedule_that_is_a_function():
    def schedule(step):
        return 0.5

    first, second = weights(), weights()
    pruner = cr.prune.Pruner(first, schedule)
    pruner.step()
    other = cr.prune.Pruner(second, copy.copy(schedule))
    other.load_state_dict(pruner.state_dict())
    np.testing.assert_array_equal(first, second)


@removals
@pytest.mark.parametrize("wrapped", [False, True])
def test_averages_know_the_masks_of_who_is_gone(remove, wrapped):
    w, other = weights(), weights()
    ema = cr.optim.EMA([w])
    holder = remove(w, opt := cr.optim.SGD(w, lr=1e-3))
    if wrapped:
        ema.update()
    del holder, opt
    gc.collect()
    w[~MASK] = 7
    # Another mask changes.
    cr.optim.SGD(other, lr=1e-3).set_masks(~MASK)
    with ema.applied():
        assert gone(w)
    ema.update()
    assert gone(ema.average[0])
    copied = pickle.loads(pickle.dumps(ema))
    w[~MASK] = 7
    copied.copy_to_params()
    assert gone(copied._weights[0], copied.average[0])
    # An optimizer that is only made lifts nothing; one that sets masks does.
    new = cr.optim.SGD(w, lr=1e-3)
    ema.update()
    assert gone(ema.average[0])
    with pytest.raises(ValueError, match="shape"):
        new.set_masks(MASK[:1])
    ema.update()
    assert gone(ema.average[0])
    new.set_masks(None)
    ema.update()
    assert (ema.average[0] != 0).all()


def perceptron():
    return cr.nn.Sequential(cr.nn.Linear(4, 8, rng=0), cr.nn.ReLU(), cr.nn.Linear(8, 3, rng=1))


def test_group_pruners_hold_masks_without_an_optimizer():
    model = perceptron()
    ema = cr.optim.EMA(model.params)
    pruner = cr.prune.GroupPruner(model, cr.prune.OneShot(0.5))
    pruner.step()
    model, ema, pruner = pickle.loads(pickle.dumps((model, ema, pruner)))
    removed = ~pruner.keep["0"]
    for holder in (pruner, None):
        model[0].weight = np.ones((8, 4), np.float32)
        with ema.applied():
            assert (model[0].weight[removed] == 0).all()
            assert (model[0].weight[~removed] != 0).all()
        # Stays masked when the pruner is gone.
        pruner = holder
        gc.collect()


def test_group_pruners_refuse_a_model_that_was_shrunk():
    model = perceptron()
    pruner = cr.prune.GroupPruner(model, cr.prune.OneShot(0.5))
    pruner.step()
    state = pruner.state_dict()
    cr.prune.shrink(model, {0: np.arange(8) > 2})
    before = copy.deepcopy(model.state_dict())
    for use in (pruner.step, pruner.shrink, lambda: pruner.load_state_dict(state)):
        with pytest.raises(ValueError, match="make a new GroupPruner"):
            use()
    np.testing.assert_equal(model.state_dict(), before)
    cr.optim.EMA(model.params).update()


@pytest.mark.parametrize("alive", [False, True])
def test_masks_follow_averages_that_are_shrunk(alive):
    """Also those of a holder that is gone, or that was not given to `shrink`."""
    model = perceptron()
    ema, opt = cr.optim.EMA(model.params), cr.optim.SGD(model.params, lr=0.1)
    mask = np.arange(32).reshape(8, 4) % 3 != 0
    opt.set_masks({"0": {"weight": mask, "bias": None}, "2": {"weight": None, "bias": None}})
    ema.update()
    holder = opt if alive else None
    del opt
    gc.collect()
    for keep in (np.arange(8) > 2, np.array([True, False, True, True, True])):
        cr.prune.shrink(model, {0: keep}, ema=ema)
        mask = mask[keep]
        model[0].weight = np.ones(mask.shape, np.float32)
        with ema.applied():
            np.testing.assert_array_equal(model[0].weight != 0, mask)
    assert (holder is not None) == alive

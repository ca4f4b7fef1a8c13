"""Assignments to public attributes take effect or raise; none is silently without effect."""

import ast
import dataclasses
import functools
import inspect
import textwrap

import numpy as np
import pytest

import compressrs as cr
from compressrs import nn
from tests.faults import public

DTYPES = (np.float32, np.float64)


def own_objects(name):
    made = public.EXAMPLES[name].make()
    return made if isinstance(made, tuple) else (made,)


def leaves(tree, path=()):
    """Yield the dict or list that holds each array, its key there, and its path."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, (dict, list)):
            yield from leaves(value, (*path, key))
        elif isinstance(value, np.ndarray):
            yield tree, key, (*path, key)


def at(tree, path):
    return functools.reduce(lambda tree, key: tree[key], path, tree)


def trees(found):
    """Yield the name of every attribute that is a dict or list of arrays."""
    for name in dir(found):
        if name.startswith("_"):
            continue
        try:
            value = getattr(found, name)
        except ValueError:
            continue  # the transpose of a vector, say
        if isinstance(value, (dict, list)) and any(leaves(value)):
            yield name


def examples(select):
    return pytest.mark.parametrize("name", [n for n in public.EXAMPLES if select(n)])


@examples(lambda name: True)
def test_every_array_in_an_attribute_can_be_assigned_or_says_why_not(name):
    for found in own_objects(name):
        for attribute in trees(found):
            for _, _, path in list(leaves(getattr(found, attribute))):
                holder, key = at(getattr(found, attribute), path[:-1]), path[-1]
                array = holder[key]
                before = array.copy()
                try:
                    holder[key] = before + 1 if before.dtype != bool else ~before
                except (TypeError, ValueError):
                    np.testing.assert_array_equal(array, before)
                    continue
                now = at(getattr(found, attribute), path)
                assert not np.array_equal(now, before), (attribute, path)
                if attribute in ("params", "param_groups", "average"):
                    assert now is array, "the array that is trained was replaced"


@examples(lambda name: issubclass(public.classes()[name], cr.optim.Optimizer))
def test_parameters_of_groups(name):
    opt, model = own_objects(name)
    for change in (
        lambda: opt.param_groups.append({}),
        lambda: opt.param_groups.clear(),
        lambda: opt.param_groups.__setitem__(0, {}),
        lambda: setattr(opt, "param_groups", []),
        lambda: opt.param_groups[0]["params"].append(np.ones(2)),
        lambda: opt.param_groups[0]["params"].pop(),
        lambda: opt.param_groups[0].update(params=[]),
        lambda: opt.param_groups[0]["params"].__setitem__(0, np.ones(3)),
    ):
        with pytest.raises((AttributeError, TypeError, ValueError), match=r"param|arrays"):
            change()
    params = opt.param_groups[0]["params"]
    params[0] = np.full((8, 16), 3.0)
    params[-1] += 1
    params[:] = [x.copy() for x in params]
    assert (model.params["a"] == 3).all()
    before = model.copies()
    for _ in range(2):  # SOAP's first step only finds its bases
        opt.step(model.gradients())
    assert (model.params["a"] != before[0]).any()
    assert (model.params["b"] != before[1]).any()


@examples(lambda name: public.EXAMPLES[name].shape and name != "nn.Embedding")
def test_parameters_of_layers(name):
    model, opt = own_objects(name)
    with pytest.raises(ValueError, match=r"params"):
        model.params["wieght"] = np.ones(2)
    if opt is None:
        return
    before = [x.copy() for x in opt.param_groups[0]["params"]]
    for holder, key, _ in list(leaves(model.params)):
        holder[key] = holder[key] + 1
        holder[key] *= 2
    for new, old in zip(opt.param_groups[0]["params"], before, strict=True):
        np.testing.assert_array_equal(new, (old + 1) * 2)
    copied = {k: v for k, v in model.params.items()}
    model.params = copied
    for holder, key, _ in list(leaves(model.params)):
        with pytest.raises(ValueError, match=r"must be .* of shape"):
            holder[key] = np.ones(77)
        with pytest.raises(TypeError, match="cannot be removed"):
            del holder[key]
    with pytest.raises(ValueError, match=r"params must"):
        model.params = {}
    # Gradients assigned to the model are those of the layers.
    model.grads = {k: v for k, v in model.grads.items()}
    with pytest.raises(ValueError, match=r"grads must"):
        model.grads = {"other": 1}


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_written_when_one_of_several_does_not_fit(dtype):
    model = nn.Sequential(nn.Linear(3, 4, dtype=dtype, rng=0), nn.Linear(4, 2, dtype=dtype, rng=0))
    before = {k: v.copy() for k, v in model.state_dict().items()}
    good = {"weight": np.ones((4, 3), dtype), "bias": np.ones(4, dtype)}
    bad = {"weight": np.ones((2, 4), dtype), "bias": np.ones(3, dtype)}
    with pytest.raises(ValueError, match=r"params\['1'\]\['bias'\] must be .* of shape \(2,\)"):
        model.params = {"0": good, "1": bad}
    np.testing.assert_equal(model.state_dict(), before)
    model.params["0"] = good
    assert (model[0].weight == 1).all()
    assert (model[0].bias == 1).all()


def test_a_layer_of_the_user_s_may_have_parameters_of_its_own():
    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(3, 2, rng=0)
            self.params["scale"] = np.ones(2, np.float32)

    layer = Scaled()
    scale = layer.params["scale"]
    layer.params["scale"] = np.full(2, 3, np.float32)
    assert (scale == 3).all()


def used_outside_init(kind, name):
    """Whether some method but the constructor and `__repr__` reads an attribute of `self`."""
    for base in kind.__mro__:
        if not base.__module__.startswith("compressrs"):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        for method in ast.walk(tree):
            if not isinstance(method, ast.FunctionDef) or method.name in ("__init__", "__repr__"):
                continue
            for node in ast.walk(method):
                if (
                    isinstance(node, ast.Attribute)
                    and isinstance(node.ctx, ast.Load)
                    and node.attr == name
                ):
                    return True
    return False


def frozen(kind):
    return dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen


#: Counts that are there to be read.
RESULTS = {
    ("optim.lr_scheduler.ReduceLROnPlateau", "last_epoch"),
    ("prune.InputStatistics", "count"),
}


@examples(lambda name: name.startswith(("nn.", "optim.", "prune.", "distill.")))
def test_no_attribute_is_read_by_the_constructor_only(name):
    kind = public.classes()[name]
    if issubclass(kind, (tuple, Exception)) or frozen(kind):
        return
    found = own_objects(name)[0]
    idle = {
        attribute
        for attribute in getattr(found, "__dict__", {})
        # scikit-learn's names of what was fitted end in an underscore.
        if not attribute.startswith("_")
        and not attribute.endswith("_")
        and isinstance(found.__dict__[attribute], (bool, int, float, str, list, tuple, dict))
        and (name, attribute) not in RESULTS
        and not used_outside_init(kind, attribute)
    }
    assert not idle, f"assigning to {sorted(idle)} of {name} does nothing: make them properties"


def test_a_schedule_follows_its_rate():
    schedule = cr.prune.IterativeSchedule(rate=0.2, final=0.95, frequency=10)
    schedule.rate = 0.5
    assert schedule.end == cr.prune.IterativeSchedule(rate=0.5, final=0.95, frequency=10).end


def test_averages_and_masks():
    w = {"a": np.zeros((2, 2)), "b": [np.zeros(3)]}
    ema = cr.optim.EMA(w)
    ema.average["a"] = np.ones((2, 2))
    ema.average["b"][0] = np.ones(3)
    with ema.applied():
        assert (w["a"] == 1).all()
        assert (w["b"][0] == 1).all()
    pruner = cr.prune.MagnitudePruner({"a": np.arange(4.0)}, cr.prune.OneShot(0.5))
    with pytest.raises(ValueError, match=r"masks\['a'\] is read-only"):
        pruner.masks["a"] = np.ones(4, bool)

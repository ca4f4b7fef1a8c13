"""State is matched by name and fully validated, and no assignment is ignored."""

import copy

import numpy as np
import pytest

import compressrs as cr

OPTIMIZERS = [name for name in cr.optim.__all__ if name in dir(cr.optim)]
OPTIMIZERS = [
    name
    for name in OPTIMIZERS
    if isinstance(getattr(cr.optim, name), type)
    and issubclass(getattr(cr.optim, name), cr.optim.Optimizer)
    and name != "Optimizer"
]
rules = pytest.mark.parametrize("name", OPTIMIZERS)


def make(name, keys=("a", "b")):
    params = {key: np.full((3, 2), float(ord(key))) for key in keys}
    return params, getattr(cr.optim, name)(params)


def stepped(name, keys=("a", "b")):
    params, opt = make(name, keys)
    opt.step({key: np.full((3, 2), ord(key) / 50) for key in keys})
    return params, opt


def equal(a, b):
    np.testing.assert_equal(a, b)


@rules
def test_by_name(name, tmp_path):
    pytest.importorskip("safetensors")
    _, opt = stepped(name)
    opt.set_masks({"a": np.eye(3, 2) > 0, "b": None})
    opt.save(tmp_path / "a")
    for load in (
        lambda other: other.load_state_dict(copy.deepcopy(opt.state_dict())),
        lambda other: other.load(tmp_path / "a"),
    ):
        _, other = make(name, ("b", "a"))
        load(other)
        equal(dict(other.state[0]), dict(opt.state[1]))
        equal(dict(other.state[1]), dict(opt.state[0]))
        assert list(other.state_dict()["masks"]) == [1]
    _, third = make(name, ("a", "c"))
    with pytest.raises(ValueError, match=r"must be of the parameters \[\"params\['a'\]\", "):
        third.load_state_dict(opt.state_dict())


@rules
def test_state_of_another_class(name):
    _, opt = stepped(name)
    before = copy.deepcopy(opt.state_dict())
    for other in OPTIMIZERS:
        if other != name:
            with pytest.raises(ValueError, match=f"state_dict must be of a {name}"):
                opt.load_state_dict(stepped(other)[1].state_dict())
    equal(opt.state_dict(), before)


@rules
def test_every_entry_is_checked(name):
    params, opt = stepped(name)
    good = copy.deepcopy(stepped(name)[1].state_dict())
    before = copy.deepcopy((params, opt.state_dict()))
    hostile = (None, float("nan"), -5, 1.5, 10**400, "x", [None], [[]], {"x": 1})

    def refused(bad):
        with pytest.raises(ValueError):
            opt.load_state_dict(bad)
        equal((params, opt.state_dict()), before)

    for key in good:
        for value in hostile:
            refused({**good, key: value})
    for value in hostile:
        refused({**good, "state": {**good["state"], 0: value}})
        refused({**good, "masks": {0: value}} if value is not None else None)
        refused({**good, "param_groups": [value]})
        for entry in ("params", "param_names"):
            if value is None and entry == "param_names":
                continue
            refused({**good, "param_groups": [{**good["param_groups"][0], entry: value}]})
        for entry in good["state"][0]:
            if np.ndim(good["state"][0][entry]) or entry == "step":
                state = {**good["state"][0], entry: value}
                if value is None and entry != "step":
                    continue
                refused({**good, "state": {**good["state"], 0: state}})
    refused({**good, "state": {5: good["state"][0], 1: good["state"][1]}})
    refused({**good, "state": {1: good["state"][1]}})
    refused({**good, "param_groups": [{**good["param_groups"][0], "weight_deacy": 1}]})
    opt.load_state_dict(good)


@rules
def test_arrays_swapped_within_the_own_state(name):
    _, opt = stepped(name)
    state = opt.state_dict()
    before = copy.deepcopy(state["state"])
    state["state"] = {0: state["state"][1], 1: state["state"][0]}
    opt.load_state_dict(state)
    equal(opt.state_dict()["state"], {0: before[1], 1: before[0]})


def test_nothing_is_shared():
    betas = [0.9, 0.99]
    group = {"params": np.zeros(2), "betas": betas}
    opt = cr.optim.Adam([group])
    state = opt.state_dict()
    betas[0] = 0.1
    state["param_groups"][0]["betas"][1] = 0.1
    assert opt.param_groups[0]["betas"] == [0.9, 0.99]
    opt.load_state_dict(other := opt.state_dict())
    other["param_groups"][0]["betas"][0] = 0.5
    assert opt.param_groups[0]["betas"] == [0.9, 0.99]


@rules
def test_assignments_have_an_effect_or_are_refused(name):
    _, opt = stepped(name)
    for key, array in opt.state[0].items():
        new = np.full(array.shape, 3)
        opt.state[0][key] = new
        equal(opt.state[0][key], new)
        assert opt.state[0][key] is array
        with pytest.raises(ValueError, match="must be numbers of shape"):
            opt.state[0][key] = np.zeros(7)
    kept = copy.deepcopy(opt.state_dict())
    group = opt.param_groups[0]
    for change in (
        lambda: opt.state[0].update(typo=np.zeros((3, 2))),
        lambda: opt.state.update({7: {}}),
        lambda: opt.state.update({0: {}}),
        lambda: group.update(weight_deacy=1.0),
        lambda: group.setdefault("weight_deacy", 1.0),
        lambda: group.update(params=[np.zeros((3, 2))] * 2),
        lambda: opt.add_param_group({"params": np.zeros(2), "weight_deacy": 1.0}),
    ):
        with pytest.raises(ValueError, match=r"must be|must have|cannot be replaced"):
            change()
    for remove in (lambda: group.pop("lr"), opt.state.clear, opt.state[0].popitem):
        with pytest.raises(TypeError, match="removed"):
            remove()
    with pytest.raises(AttributeError):
        opt.state = {}
    equal(opt.state_dict(), kept)


def test_masks_of_numbers():
    """A 0-d parameter."""
    w = np.array(3.0)
    opt = cr.optim.Adam(w)
    opt.step(np.array(1.0))
    opt.set_masks(np.array(False))
    assert w == 0
    opt.step(np.array(1.0))
    assert w == 0
    opt.set_masks(None)
    with pytest.raises(TypeError):
        opt.set_masks(np.array(1.0))
    opt.step(np.array(1.0))
    assert w != 0


def test_iterators_of_parameters():
    w = [np.zeros(2), np.zeros(3)]
    ema = cr.optim.EMA(iter(w))
    assert [a.shape for a in ema.average] == [(2,), (3,)]


def test_weights_of_layers_are_written_into():
    layer = cr.nn.Linear(3, 2, rng=0)
    opt = cr.optim.SGD(layer.params, lr=1.0)
    layer.weight = np.ones((2, 3), np.float32)
    layer.bias = np.zeros(2, np.float32)
    opt.step({"weight": np.ones((2, 3)), "bias": np.ones(2)})
    assert (layer.weight == 0).all()
    assert (layer(np.ones((1, 3), np.float32)) == -1).all()
    for bad in (np.ones((3, 3), np.float32), np.ones((2, 3))):
        with pytest.raises(ValueError, match="weight must be float32 of shape"):
            layer.weight = bad
    sparse = cr.nn.SparseLinear.from_linear(cr.nn.Linear(3, 2, rng=0))
    with pytest.raises(ValueError, match="weight must be a matrix over the same data"):
        sparse.weight = cr.sparse.CSRMatrix.from_dense(np.eye(2, 3, dtype=np.float32))

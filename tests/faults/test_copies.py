"""Every public class can be copied and pickled, and continues with the same results."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest

from compressrs import distill, nn, optim, sparse
from tests.faults.public import ABSTRACT, EXAMPLES, classes


def through_joblib(value: Any) -> Any:
    joblib = pytest.importorskip("joblib")
    file = io.BytesIO()
    joblib.dump(value, file)
    file.seek(0)
    return joblib.load(file)


WAYS = {
    "deepcopy": copy.deepcopy,
    **{
        f"pickle{protocol}": lambda value, p=protocol: pickle.loads(pickle.dumps(value, p))
        for protocol in (2, pickle.HIGHEST_PROTOCOL)
    },
    "joblib": through_joblib,
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return bool(a == b)


def test_every_public_class_has_an_example() -> None:
    assert set(classes()) == set(EXAMPLES) | ABSTRACT


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_copy_goes_on_with_the_same_numbers_and_alone(name: str, way: str) -> None:
    if name == "distill.DistilledClassifier":
        pytest.importorskip("sklearn")
    if name == "distill.TeacherCache":
        pytest.importorskip("safetensors")
    make, use = EXAMPLES[name][:2]
    original = make()
    use(original)
    copied = WAYS[way](original)
    # If copies shared arrays, the second would continue from the result of the first.
    assert same(use(copied), use(original))
    assert same(use(copied), use(original))


@pytest.mark.parametrize("name", [name for name in EXAMPLES if EXAMPLES[name].shape])
def test_a_pickled_layer_holds_nothing_of_what_it_was_given(name: str) -> None:
    model = EXAMPLES[name].make()[0]
    fresh = len(pickle.dumps(model))
    # The moments of a batch need two.
    batch = 2 if name == "nn.BatchNorm" else 1
    example = EXAMPLES[name]
    rows = np.random.default_rng(9).standard_normal((batch, *example.shape[1:]))
    rows = rows.astype(example.dtype)
    # One row, so that the weight's gradient is a multiple of it.
    model.backward(np.ones_like(model.forward(rows)))
    pickled = pickle.dumps(model)
    assert len(pickled) == fresh
    for value in rows.flat:
        assert value.tobytes() not in pickled
        assert np.maximum(value, 0).tobytes() not in pickled or value <= 0
    state = pickle.loads(pickled)
    assert all((g == 0).all() for g in _leaves(state.grads))
    with pytest.raises(RuntimeError, match="forward"):
        state.backward(np.ones((1, 3)))


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in _leaves(value)]
    return [tree]


def test_an_estimator_holds_nothing_of_what_it_predicted_for() -> None:
    pytest.importorskip("sklearn")
    found = EXAMPLES["distill.DistilledClassifier"].make()
    before = len(pickle.dumps(found))
    found.predict(np.random.default_rng(0).standard_normal((9000, 4)))
    assert len(pickle.dumps(found)) == before


@pytest.mark.parametrize("way", WAYS)
def test_layers_and_what_trains_them_keep_sharing_arrays(way: str) -> None:
    model, opt = EXAMPLES["nn.Sequential"].make()
    ema, teacher = optim.EMA(model.params), np.zeros((2, 3))
    distiller = distill.Distiller(model, teacher, opt)
    model, opt, ema, distiller = WAYS[way]((model, opt, ema, distiller))
    arrays = opt.param_groups[0]["params"]
    assert arrays[0] is model[0].weight.data is model.params["0"]["weight"]
    assert arrays[2] is model[2].weight is model.params["2"]["weight"]
    assert all(a is b for a, b in zip(arrays, ema._weights, strict=True))
    assert distiller._optimizer is opt
    assert model.grads["2"] is model[2].grads
    before = model(np.ones((2, 32)))
    distiller.fit(np.ones((2, 32)), np.array([0, 1]), epochs=1)
    assert (model(np.ones((2, 32))) != before).any()


@pytest.mark.parametrize("way", ["deepcopy", f"pickle{pickle.HIGHEST_PROTOCOL}"])
@pytest.mark.parametrize("first", [True, False])
def test_tensors_that_are_copied_along_are_what_is_trained(way: str, first: bool) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(3, 2)
    opt = optim.SGD(module.parameters(), lr=1.0)
    ema, ticket = optim.EMA(list(module.parameters())), None
    both = (module, opt, ema) if first else (opt, ema, module)
    found = WAYS[way](both)
    module2, opt2, ema2 = found if first else (found[2], *found[:2])
    before = module2.weight.detach().clone()
    opt2.step([np.ones((2, 3), np.float32), None])
    assert torch.equal(module2.weight.detach(), before - 1)
    assert torch.equal(module.weight.detach(), before)
    ema2.copy_to_params()
    assert torch.equal(module2.weight.detach(), before)
    assert ticket is None


@pytest.mark.parametrize("kind", ["CSRMatrix", "BSRMatrix", "NMMatrix"])
@pytest.mark.parametrize("way", WAYS)
def test_patterns_that_nobody_can_write_to_stay_so(kind: str, way: str) -> None:
    a = WAYS[way](EXAMPLES[f"sparse.{kind}"].make())
    for array in (a.indices, a.indptr):
        with pytest.raises(ValueError):
            array.flags.writeable = True
    assert a.data.flags.writeable


@pytest.mark.parametrize("way", WAYS)
def test_patterns_of_the_caller_can_still_be_written_to(way: str) -> None:
    a = EXAMPLES["sparse.CSRMatrix"].make()
    mine = sparse.CSRMatrix((a.data, a.indices.copy(), a.indptr.copy()), a.shape)
    copied = WAYS[way](mine)
    copied.indices[0] = copied.shape[1]
    with pytest.raises(ValueError, match="indices"):
        copied.to_dense()
    assert (mine.to_dense() == a.to_dense()).all()


def test_a_damaged_pickle_of_a_matrix_is_refused() -> None:
    a = EXAMPLES["sparse.CSRMatrix"].make()
    state = a.__getstate__()
    data, indices, indptr = state["_parts"]
    bad = indices.copy()
    bad[0] = 10**6
    state["_parts"] = data.value, bad, indptr
    with pytest.raises(ValueError, match="indices"):
        sparse.CSRMatrix.__new__(sparse.CSRMatrix).__setstate__(state)


def test_shallow_copies_share_arrays() -> None:
    for name in ("sparse.CSRMatrix", "sparse.BSRMatrix", "sparse.NMMatrix"):
        a = EXAMPLES[name].make()
        assert copy.copy(a).data is a.data
    layer = nn.Linear(3, 2, rng=0)
    assert copy.copy(layer).weight is layer.weight

"""State dicts, files, copies, evaluation: what a model is, by name and in files."""

import copy
import pickle

import numpy as np
import pytest
import safetensors.numpy

import compressrs as cr
from compressrs import nn
from tests.faults import public


def network(seed=0):
    rng = np.random.default_rng(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, rng=rng),
        nn.BatchNorm(4),
        nn.ReLU(),
        nn.Residual(nn.Conv2d(4, 4, 3, padding=1, bias=False, rng=rng), nn.BatchNorm(4), nn.SiLU()),
        nn.MaxPool(2),
        nn.Flatten(),
        nn.Dropout(0.1, rng=rng),
        nn.Linear(16, 6, rng=rng),
        nn.LayerNorm(6),
        nn.GELU("tanh"),
        nn.SparseLinear.from_linear(nn.Linear(6, 3, rng=rng), 0.2),
        nn.Softmax(),
    )


X = np.random.default_rng(9).standard_normal((5, 1, 4, 4)).astype(np.float32)


def trained(seed=0):
    model = network(seed)
    opt = cr.optim.Adam(model.params, lr=0.01)
    for _ in range(3):
        model.backward(model(X) - 0.5)
        opt.step(model.grads)
    return model


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], strict=True)


LAYERS = [
    name
    for name, kind in public.classes().items()
    if issubclass(kind, nn.Layer) and kind is not nn.Layer and name in public.EXAMPLES
]


@pytest.mark.parametrize("name", LAYERS)
def test_every_public_layer_is_made_from_its_file(name, tmp_path):
    objects = public.EXAMPLES[name].make()
    layer = objects[0] if isinstance(objects, tuple) else objects
    nn.Sequential(layer).save(tmp_path / "model.safetensors")
    loaded = nn.load(tmp_path / "model.safetensors")
    assert type(loaded[0]) is type(layer) and repr(loaded[0]) == repr(layer)
    equal(loaded, nn.Sequential(layer))


def matrices():
    dense = np.diag(np.arange(1, 9, dtype=np.float32))
    for index in ("int32", "int64"):
        matrix = cr.sparse.CSRMatrix.from_dense(dense)
        pattern = matrix.indices.astype(index), matrix.indptr.astype(index)
        yield cr.sparse.CSRMatrix((matrix.data, *pattern), matrix.shape)
    yield cr.sparse.CSRMatrix.from_dense(dense, index_dtype="int16")
    yield cr.sparse.BSRMatrix.from_dense(dense, (4, 4))
    yield cr.sparse.NMMatrix.from_dense(dense)
    yield cr.sparse.NMMatrix.from_dense(dense, 3, 8)


@pytest.mark.parametrize("matrix", list(matrices()), ids=repr)
def test_every_sparse_weight_is_loaded(matrix, tmp_path):
    model = nn.Sequential(nn.SparseLinear(matrix))
    model.save(tmp_path / "model.safetensors")
    loaded = nn.load(tmp_path / "model.safetensors")
    equal(loaded, model)
    assert type(loaded[0].weight) is type(matrix)
    model.load(tmp_path / "model.safetensors")


def test_files_give_the_same_model_back(tmp_path):
    model, path = trained(), tmp_path / "model.safetensors"
    model.save(path)
    loaded = nn.load(path)
    equal(loaded, model)
    assert repr(loaded) == repr(model)
    np.testing.assert_array_equal(loaded.eval()(X), model.eval()(X))
    # What it loads into may have other values, but not another pattern.
    other = model.copy()
    for array in other.state_dict().values():
        if array.flags.writeable and array.dtype == np.float32:
            array += 1
    other.load(path)
    equal(other, model)
    # It can be trained.
    loaded.train()
    loaded.backward(loaded(X))
    cr.optim.SGD(loaded.params, lr=0.1).step(loaded.grads)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 2)), "layer 0 is|model has layers"),
        (lambda: nn.Sequential(*network()[:1], *network(1)[1:]), "10.weight"),
    ],
)
def test_files_of_other_models_are_refused(tmp_path, change, message):
    path = tmp_path / "model.safetensors"
    trained().save(path)
    model = change() if "weight" not in message else network(3)
    before = {name: array.copy() for name, array in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        model.load(path)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: np.savez(path, weight=np.ones(3)), r"a zip archive, as NumPy's \.npz"),
        (lambda path: np.save(path, np.ones(3)), r"a NumPy \.npy"),
        (lambda path: pickle.dump({"weight": 3}, path), "a pickle"),
        (lambda path: path.write(b"GGUF\x03\0\0\0" * 9), "a GGUF file"),
    ],
)
def test_files_of_other_formats_are_named(tmp_path, write, message):
    path = tmp_path / "model"
    with open(path, "wb") as file:
        write(file)
    model = network()
    run = cr.TrainState(model=model)
    optimizer = cr.optim.Adam(model.params)
    for load in (nn.load, model.load, run.load, optimizer.load, cr.checkpoint.open):
        with pytest.raises(ValueError, match=f"not a complete safetensors file: it is {message}"):
            load(path)


def test_arrays_of_other_programs_are_no_model(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"weight": np.ones(3)}, path)
    with pytest.raises(ValueError, match=r"must have format 'compressrs.nn' .* something else"):
        nn.load(path)


def test_damaged_files_change_nothing(tmp_path):
    model, path = trained(), tmp_path / "model.safetensors"
    model.save(path)
    data = path.read_bytes()
    before = {name: array.copy() for name, array in model.state_dict().items()}
    for damaged in (data[:-1], data[:100], b"", data + b"x", data.replace(b'"1"', b'"9"', 1)):
        path.write_bytes(damaged)
        for load in (model.load, nn.load):
            with pytest.raises(ValueError, match=r"model\.safetensors"):
                load(path)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    with pytest.raises(OSError, match="absent"):
        nn.load(tmp_path / "absent")


def test_state_dicts_are_checked_before_anything_is_copied():
    model = nn.Sequential(nn.Linear(3, 2, rng=0), nn.BatchNorm(2))
    before = {name: array.copy() for name, array in model.state_dict().items()}
    good = {name: array + 1 for name, array in before.items()}
    names = list(good)
    assert names == [
        "0.weight", "0.bias", "1.weight", "1.bias",
        "1.running_mean", "1.running_var", "1.num_batches_tracked",
    ]  # fmt: skip
    for bad, error, message in (
        ({k: v for k, v in good.items() if k != "1.bias"}, ValueError, r"missing: \['1.bias'\]"),
        ({**good, "2.weight": good["0.weight"]}, ValueError, r"unknown: \['2.weight'\]"),
        ({**good, "1.bias": np.ones(3, np.float32)}, ValueError, r"\['1.bias'\] must have shape"),
        ({**good, "1.bias": np.ones(2)}, TypeError, r"\['1.bias'\] must have dtype float32"),
        ({**good, "1.bias": "two"}, TypeError, r"\['1.bias'\] must be a NumPy array"),
        ([1], TypeError, "state_dict must be a dict"),
    ):
        with pytest.raises(error, match=message):
            model.load_state_dict(bad)
        for name, array in model.state_dict().items():
            np.testing.assert_array_equal(array, before[name])
    model.load_state_dict(good)
    np.testing.assert_array_equal(model[0].bias, before["0.bias"] + 1)


def test_assigning_copies_into_the_buffer_that_is_trained():
    layer = nn.Linear(3, 2, rng=0)
    buffer, opt = layer.params["weight"], cr.optim.SGD(layer.params, lr=1.0)
    layer.weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert layer.weight is buffer and buffer[1, 2] == 5
    layer.weight *= 2
    assert layer.weight is buffer and buffer[1, 2] == 10
    opt.step({"weight": np.ones((2, 3), np.float32), "bias": None})
    assert layer.weight[1, 2] == 9
    for bad in (np.ones((3, 2), np.float32), np.ones((2, 3))):
        with pytest.raises(ValueError, match=r"weight must be float32 of shape \(2, 3\)"):
            layer.weight = bad
    with pytest.raises(ValueError, match="Linear has no bias to assign to"):
        nn.Linear(3, 2, bias=False).bias = np.ones(2)
    sparse = nn.SparseLinear.from_linear(layer)
    data = sparse.weight.data
    sparse.weight = sparse.weight.with_data(data * 2)
    assert sparse.weight.data is data and data[-1] == 18
    with pytest.raises(ValueError, match="weight must be a matrix over the same data"):
        sparse.weight = cr.sparse.CSRMatrix.from_dense(np.eye(2, 3, dtype=np.float32))


def test_layers_of_given_arrays_train_them():
    w, b = np.ones((2, 3)), np.zeros(2)
    layer = nn.Linear.from_arrays(w, b)
    assert layer.weight is w and layer.bias is b
    layer.backward(layer(np.ones((1, 3))))
    cr.optim.SGD(layer.params, lr=1.0).step(layer.grads)
    assert (w == -2).all() and (b == -3).all()
    filters = np.ones((2, 1, 3, 3))
    assert nn.Conv2d.from_arrays(filters, stride=2, padding=1)(np.ones((1, 1, 4, 4))).shape == (
        1,
        2,
        2,
        2,
    )
    frozen = np.ones((2, 3))
    frozen.flags.writeable = False
    for bad, error in (
        ((np.ones(3),), ValueError),
        ((np.ones((2, 3)), np.ones(3)), ValueError),
        ((np.ones((2, 3)), np.ones(2, np.float32)), TypeError),
        ((np.ones((2, 3), int),), TypeError),
        ((np.ones((3, 2)).T,), ValueError),
        ((frozen,), ValueError),
    ):
        with pytest.raises(error, match="must"):
            nn.Linear.from_arrays(*bad)


def test_evaluation_keeps_nothing_and_pickles_hold_no_data():
    model = network()
    fresh = len(pickle.dumps(model))
    model.backward(model(np.repeat(X, 50, axis=0)))
    assert len(pickle.dumps(model)) < fresh + 100
    for other in (model.copy(), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        equal(other, model)
        assert other.params["0"] is other[0].params and other.grads["0"] is other[0].grads
        assert not np.shares_memory(other[0].weight, model[0].weight)
        with pytest.raises(RuntimeError, match="backward needs a forward"):
            other.backward(np.ones((5, 3), np.float32))
    assert all(layer._saved is not None for _, layer in model.named_layers())
    model.eval()
    assert all(layer._saved is None for _, layer in model.named_layers())
    model(X)
    assert all(layer._saved is None for _, layer in model.named_layers())
    with pytest.raises(RuntimeError, match="in training mode"):
        model.backward(np.ones((5, 3), np.float32))
    assert model.train() is model and model[3].body.training


def test_summaries_count():
    model = network()
    summary = model.summary((1, 4, 4))
    names = [row.name for row in summary.rows]
    assert names[:4] == ["0", "1", "2", "3.body.0"]
    assert summary.rows[0].multiply_adds == 16 * 4 * 9
    assert summary.rows[0].shape == (4, 4, 4)
    arrays = [a for _, layer in model.named_layers() for a in layer.params.values()]
    assert summary.parameters == sum(a.size for a in arrays)
    assert summary.nonzeros == sum(np.count_nonzero(a) for a in arrays)
    assert summary.nbytes == sum(a.nbytes for a in model.state_dict().values())
    assert "total" in str(summary) and model.summary().multiply_adds is None
    with pytest.raises(ValueError, match=r"layer 0 \(Conv2d\)"):
        model.summary((2, 4, 4))


def test_shapes_that_do_not_chain_name_the_layer():
    with pytest.raises(ValueError, match=r"layer 2 \(Linear\) must take the 4 features of layer 0"):
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(5, 2))
    with pytest.raises(ValueError, match=r"layer 2 \(BatchNorm\) must take the 4 channels"):
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool(2), nn.BatchNorm(5))
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Residual(nn.Flatten(), nn.Linear(9, 2)))
    with pytest.raises(ValueError, match=r"layer 1\.body\.1 \(Linear\): x must have shape"):
        model(np.ones((2, 1, 4, 4), np.float32))
    with pytest.raises(ValueError, match=r"layer 0 \(Conv2d\): x must be at least as large"):
        model(np.ones((2, 1, 2, 4), np.float32))
    with pytest.raises(TypeError, match="layer 1 must be a layer, which has forward, got function"):
        nn.Sequential(nn.ReLU(), lambda x: x)
    layer = nn.ReLU()
    with pytest.raises(ValueError, match="layer 1 must not be in the model twice"):
        nn.Sequential(layer, layer)


def test_folding_keeps_the_outputs_of_evaluation():
    model = trained().eval()
    folded = nn.fold_batch_norm(model)
    kinds = [type(layer).__name__ for _, layer in folded.named_layers()]
    assert "BatchNorm" not in kinds and len(kinds) == len(list(model.named_layers())) - 2
    np.testing.assert_allclose(folded(X), model(X), rtol=1e-5, atol=1e-6)
    assert not folded.training


def test_arguments_out_of_range():
    for make, error, message in (
        (lambda: nn.Conv2d(0, 1, 3), ValueError, "in_channels must be at least 1"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), ValueError, "groups must divide"),
        (lambda: nn.Conv2d(3, 4, (1, 2, 3)), ValueError, "kernel_size must be a number or a pair"),
        (lambda: nn.Conv2d(3, 4, 3, stride=0), ValueError, "stride must be at least 1"),
        (lambda: nn.Conv2d(3, 4, 3, padding=-1), ValueError, "padding must be at least 0"),
        (
            lambda: nn.Conv2d(3, 4, 3, dilation=2**40),
            ValueError,
            r"dilation must be less than 2\^31",
        ),
        (lambda: nn.MaxPool(2, padding=2), ValueError, "padding must be at most half"),
        (lambda: nn.Dropout(1.0), ValueError, r"p must be in \[0, 1\)"),
        (lambda: nn.GELU("erf"), ValueError, "approximate must be one of"),
        (lambda: nn.LayerNorm(0), ValueError, "features must be at least 1"),
        (lambda: nn.BatchNorm(3, eps=0), ValueError, "eps must be"),
        (lambda: nn.MultiHeadAttention(10, 3), ValueError, "heads must divide"),
        (lambda: nn.Embedding(3, 2, dtype=np.float16), TypeError, "dtype must be float32"),
        (lambda: nn.Linear(3.5, 2), TypeError, "in_features must be an integer"),
        (lambda: nn.BatchNorm(3)(np.ones((1, 3), np.float32)), ValueError, "at least 2 values"),
        (lambda: nn.mse_loss(np.ones(2), np.ones(3)), ValueError, "target must have the shape"),
        (lambda: nn.mse_loss(np.ones(0), np.ones(0)), ValueError, "prediction must not be empty"),
    ):
        with pytest.raises(error, match=message):
            make()


def test_no_memory_for_padding_is_an_error():
    layer = nn.Conv2d(1, 1, 1, padding=2**30, rng=0)
    with pytest.raises((MemoryError, ValueError)):
        layer(np.ones((1, 1, 1, 1), np.float32))

"""Layers of sparse codes: the products of the decoded weight, in NumPy."""

import copy
import pickle

import numpy as np
import pytest

import compressrs as cr
from compressrs import checkpoint, nn
from compressrs.quantize import QuantizedCSRMatrix, Scheme, quantize_model

SCHEMES = [
    Scheme(),
    Scheme(bits=4),
    Scheme(bits=2, granularity="tensor"),
    Scheme(granularity="group", group_size=7),
]


def pruned(rows, columns, zeros=0.8, seed=0, bias=True):
    rng = np.random.default_rng(seed)
    layer = nn.Linear(columns, rows, bias=bias, rng=rng)
    layer.weight[rng.random((rows, columns)) < zeros] = 0
    layer.weight[rows // 2] = 0
    return layer


def sparse(*shape, **options):
    return nn.SparseLinear.from_linear(pruned(*shape, **options))


def inputs(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(12, 30), (1, 70), (65, 1), (33, 129)])
@pytest.mark.parametrize("batch", [(0,), (1,), (5,), (3, 17), (2, 0, 3)])
def test_forward_and_backward_are_those_of_the_decoded_weight(scheme, bias, shape, batch):
    layer = nn.QuantizedSparseLinear.from_sparse(sparse(*shape, bias=bias), scheme)
    x, dy = inputs(*batch, shape[1]), inputs(*batch, shape[0], seed=2)
    q = layer.weight
    rows = np.repeat(np.arange(shape[0]), np.diff(q.indptr))
    each = {"channel": rows, "tensor": 0 * rows, "group": np.arange(q.nnz) // 7}
    w = np.zeros(shape)
    w[rows, q.indices] = q.codes * q.scale[each[scheme.granularity]].astype(np.float64)
    expected = x.astype(np.float64) @ w.T + (layer.bias if bias else 0)
    y = layer(x)
    assert y.dtype == np.float32 and y.shape == (*batch, shape[0])
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    dx = layer.backward(dy)
    assert dx.dtype == np.float32 and dx.shape == x.shape
    np.testing.assert_allclose(dx, dy.astype(np.float64) @ w, rtol=1e-5, atol=1e-5)
    assert [*layer.grads] == ["bias"] * bias
    if bias:
        total = dy.reshape(-1, shape[0]).sum(axis=0, dtype=np.float64)
        np.testing.assert_allclose(layer.grads["bias"], total, rtol=1e-5, atol=1e-5)
    # To the bit what the layer with the decoded values gives.
    decoded = nn.SparseLinear(q.dequantize(), layer.bias)
    assert decoded(x).tobytes() == y.tobytes() and decoded.backward(dy).tobytes() == dx.tobytes()


def test_what_is_kept_is_what_the_siblings_keep():
    dense = pruned(16, 32)
    mask = np.zeros((16, 32), bool)
    mask[:, ::4] = True
    for options in ({}, {"threshold": 0.1}, {"mask": mask}):
        layer = nn.QuantizedSparseLinear.from_linear(dense, **options)
        own = nn.SparseLinear.from_linear(dense, **options)
        assert np.array_equal(layer.weight.indices, own.weight.indices)
        assert np.array_equal(layer.weight.indptr, own.weight.indptr)
        assert np.array_equal(layer.weight.codes, QuantizedCSRMatrix.from_csr(own.weight).codes)
        assert np.array_equal(layer.bias, dense.bias) and layer.bias is not dense.bias
    # Other formats, and values of 16 bits.
    csr = cr.sparse.CSRMatrix.from_dense(dense.weight)
    found = [
        nn.SparseLinear(cr.sparse.BSRMatrix.from_dense(dense.weight, (4, 4)), dense.bias),
        nn.SparseLinear(csr.astype("float16"), dense.bias),
        nn.SparseLinear(cr.sparse.NMMatrix.from_dense(dense.weight, 2, 4), dense.bias),
    ]
    for own in found:
        layer = nn.QuantizedSparseLinear.from_sparse(own, Scheme())
        w = own.weight.to_dense().astype(np.float32)
        assert layer.weight.nnz == np.count_nonzero(w)
        steps = np.abs(w).max(axis=1, keepdims=True) / 127.5
        assert (np.abs(layer.weight.to_dense() - w) <= 0.5001 * steps).all()


def test_a_model_with_sparse_layers():
    model = nn.Sequential(
        sparse(40, 24),
        nn.GELU(),
        nn.Residual(sparse(40, 40, seed=3), nn.ReLU(), nn.Linear(40, 40, rng=4)),
        sparse(6, 40, seed=5),
    )
    x = inputs(200, 24)
    for options in (
        {},
        {"method": "mse"},
        {"method": "gptq", "calibration": x},
        {"method": "awq", "calibration": [x[:90], x[90:]]},
        {"input": "int8"},
        {"activations": Scheme(bits=8, granularity="tensor"), "calibration": x},
        {"correct_bias": True, "calibration": x},
    ):
        small = quantize_model(model, Scheme(), **options)
        kinds = {name: type(layer).__name__ for name, layer in small.named_layers()}
        assert [kinds[n] for n in ("0", "2.body.0", "3")] == 3 * ["QuantizedSparseLinear"]
        assert kinds["2.body.2"] == "QuantizedLinear"
        assert np.abs(small(x) - model(x)).max() < 0.05 * np.abs(model(x)).max()
        # Every method rounds sparse layers to nearest.
        for name in ("0", "2.body.0", "3"):
            nearest = QuantizedCSRMatrix.from_csr(model[name].weight)
            assert np.array_equal(small[name].weight.codes, nearest.codes)
    assert type(model[0]) is nn.SparseLinear
    kept = quantize_model(model, {"0": None, "*.body.*": Scheme(bits=4), "3": Scheme()})
    assert type(kept[0]) is nn.SparseLinear and kept[0] is not model[0]
    assert kept["2.body.0"].weight.scheme.bits == 4 and kept[3].weight.scheme.bits == 8


def test_the_bias_keeps_the_mean_of_outputs():
    model = nn.Sequential(sparse(30, 20), nn.ReLU(), sparse(8, 30, seed=2, bias=False))
    x = np.abs(inputs(300, 20))
    plain, corrected = (
        quantize_model(model, Scheme(bits=3), x, correct_bias=correct) for correct in (False, True)
    )
    expected = model(x).mean(axis=0)
    error = np.abs(corrected(x).mean(axis=0) - expected).max()
    assert error < 1e-4 < 1e-2 < np.abs(plain(x).mean(axis=0) - expected).max()
    assert plain[2].bias is None and corrected[2].bias.dtype == np.float32


def test_files_and_copies(tmp_path):
    model = nn.Sequential(sparse(40, 24), nn.ReLU(), sparse(6, 40, seed=5, bias=False))
    small, x = quantize_model(model, SCHEMES[3]).eval(), inputs(9, 24)
    small.save(tmp_path / "model.safetensors")
    checkpoint.compress(tmp_path / "model.safetensors", tmp_path / "small.safetensors")
    model.save(tmp_path / "float.safetensors")
    stored = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("model", "float")]
    assert stored[0] < stored[1]
    for other in (
        nn.load(tmp_path / "model.safetensors").eval(),
        nn.load(tmp_path / "small.safetensors").eval(),
        copy.deepcopy(small),
        small.copy(),
        pickle.loads(pickle.dumps(small)),
    ):
        assert other(x).tobytes() == small(x).tobytes()
        assert other[0].config() == small[0].config()
        assert {k: v.dtype for k, v in other.state_dict().items()} == {
            k: v.dtype for k, v in small.state_dict().items()
        }
        # Its own bias.
        other[0].bias[:] += 1
        assert not np.array_equal(other(x), small(x))
    assert small.summary((24,)).rows[0].parameters == model.summary((24,)).rows[0].parameters
    assert small.summary((24,)).multiply_adds == model.summary((24,)).multiply_adds
    assert small.summary().nbytes < model.summary().nbytes
    assert small[0].nbytes == small.summary().rows[0].nbytes


def test_a_state_of_other_values_and_another_pattern_is_loaded(tmp_path):
    layer = nn.QuantizedSparseLinear.from_sparse(sparse(12, 30, seed=1))
    w = np.zeros((12, 30), np.float32)
    w.reshape(-1)[: layer.weight.nnz] = inputs(layer.weight.nnz)
    other = nn.QuantizedSparseLinear.from_linear(nn.Linear.from_arrays(w, np.ones(12, "f4")))
    assert other.weight.nnz == layer.weight.nnz
    x = inputs(4, 30)
    expected = other(x)
    before, kept = layer(x), layer.weight
    for name, bad, message in [
        ("weight.codes", other.state_dict()["weight.codes"].astype(np.int16), "dtype int8"),
        ("weight.scale", np.full(12, np.nan, np.float32), "scale"),
        ("weight.indices", np.full(layer.weight.nnz, 30, np.int32), "indices"),
        ("weight.codes", other.weight.codes[1:], "must have shape"),
        ("bias", np.zeros(12), "dtype float32"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            layer.load_state_dict({**other.state_dict(), name: bad})
        assert layer.weight is kept and layer(x).tobytes() == before.tobytes()
    layer.load_state_dict(other.state_dict())
    assert layer(x).tobytes() == expected.tobytes()
    # What is loaded does not change with what it was loaded from.
    state = {name: array.copy() for name, array in other.state_dict().items()}
    layer.load_state_dict({**state, "weight.codes": (codes := state["weight.codes"] // 2)})
    half = layer(x)
    codes[:] = 0
    assert layer(x).tobytes() == half.tobytes() != expected.tobytes()
    other.save(tmp_path / "other.safetensors")
    layer.load(tmp_path / "other.safetensors")
    assert layer(x).tobytes() == expected.tobytes()
    assert not any(a.flags.writeable for n, a in layer.state_dict().items() if n != "bias")


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_the_exported_code_gives_the_same_outputs(scheme, tmp_path):
    model = nn.Sequential(sparse(40, 24), nn.ReLU(), sparse(6, 40, seed=5, bias=False))
    small, x = quantize_model(model, scheme).eval(), inputs(9, 24)
    namespace = {}
    exec(small.export(tmp_path / "model.npz", show=False), namespace)
    np.testing.assert_allclose(namespace["predict"](x), small(x), rtol=1e-5, atol=1e-5)


def test_recommend_tries_codes_if_it_is_given_a_scheme():
    layer = pruned(32, 64)
    found = nn.recommend(layer, 8, seconds=0.01, scheme=Scheme())
    assert {"dense", "csr", "quantized", "quantized_csr"} <= set(found.seconds)
    assert found.seconds[found.storage] == min(found.seconds.values())
    kinds = {"quantized": nn.QuantizedLinear, "quantized_csr": nn.QuantizedSparseLinear}
    assert type(found.layer) is kinds.get(found.storage, type(found.layer))
    asymmetric = nn.recommend(layer, 8, seconds=0.01, scheme=Scheme(symmetric=False)).seconds
    assert "quantized" in asymmetric and "quantized_csr" not in asymmetric
    wide = nn.Linear(64, 32, dtype=np.float64, rng=0)
    assert "quantized_csr" not in nn.recommend(wide, 8, seconds=0.01, scheme=Scheme()).seconds
    with pytest.raises(TypeError, match="scheme must be a Scheme"):
        nn.recommend(layer, 8, seconds=0.01, scheme=8)


def test_what_is_refused():
    own = sparse(4, 6)
    layer = nn.QuantizedSparseLinear.from_sparse(own)
    wide = nn.Linear(6, 4, dtype=np.float64, rng=0)
    for make, message in [
        (lambda: nn.QuantizedSparseLinear(own.weight), "weight must be a QuantizedCSRMatrix"),
        (lambda: nn.QuantizedSparseLinear(layer.weight, np.zeros(4)), "bias must have dtype"),
        (lambda: nn.QuantizedSparseLinear(layer.weight, np.zeros(5, "f4")), "bias must have shape"),
        (lambda: nn.QuantizedSparseLinear.from_sparse(wide), "layer must be a SparseLinear"),
        (lambda: nn.QuantizedSparseLinear.from_linear(own), "layer must be a Linear"),
        (lambda: nn.QuantizedSparseLinear.from_linear(wide), "float32, float16 or bfloat16"),
        (lambda: nn.QuantizedSparseLinear.from_sparse(own, 8), "scheme must be a Scheme"),
        (
            lambda: nn.QuantizedSparseLinear.from_sparse(own, Scheme(bits=4, dtype="nf4")),
            "scheme must be symmetric",
        ),
        (lambda: layer(np.zeros((2, 6))), "x must have dtype float32"),
        (lambda: layer(np.zeros((2, 5), "f4")), r"x must have shape \(batch, 6\)"),
        (lambda: layer.backward(np.zeros((2, 4), "f4")), "needs a forward before"),
        (lambda: nn.Sequential(layer, nn.Linear(5, 2, rng=0)), "must take the 4 features"),
    ]:
        with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
            make()
    with pytest.raises(AttributeError):
        layer.weight = layer.weight


def test_a_sparse_layer_that_a_scheme_does_not_fit_is_named():
    model = nn.Sequential(nn.Linear(6, 6, rng=0), nn.Residual(sparse(6, 6)))
    scheme = Scheme(symmetric=False)
    with pytest.raises(ValueError, match=r"layer 1\.body\.0 \(SparseLinear\) .* must be symmetric"):
        quantize_model(model, scheme)
    small = quantize_model(model, {"1.body.0": None, "*": scheme})
    assert type(small["1.body.0"]) is nn.SparseLinear
    wide = pruned(6, 6).weight.astype(np.float64)
    wide = nn.SparseLinear(cr.sparse.CSRMatrix.from_dense(wide))
    with pytest.raises(TypeError, match=r"layer 0 \(SparseLinear\) must have weights in float32"):
        quantize_model(nn.Sequential(wide), Scheme())

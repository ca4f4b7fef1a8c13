"""Sparse matrices whose values are stored in half precision."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import compressrs as cr
from compressrs import nn, optim, sparse
from compressrs.sparse.formats import FORMATS
from tests.reference import sparse as reference

HALF = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
EPS = {HALF[0]: 2.0**-10, HALF[1]: 2.0**-7}


def made(form, dtype, rng, shape=(48, 64), zeros=0.6):
    """Return a matrix of a format with values of `dtype`."""
    w = rng.standard_normal(shape).astype(np.float32)
    if form == "bsr":
        blocks = rng.random((shape[0] // 4, shape[1] // 4)) < 1 - zeros
        w *= blocks.repeat(4, axis=0).repeat(4, axis=1)
        return sparse.BSRMatrix.from_dense(w.astype(dtype), (4, 4))
    if form == "nm":
        return sparse.NMMatrix.from_dense(w.astype(dtype))
    w[rng.random(shape) < zeros] = 0
    return sparse.CSRMatrix.from_dense(w.astype(dtype))


def operand(rng, shape, dtype, layout):
    x = rng.standard_normal(shape).astype(dtype)
    if layout == "columns":
        return x.T.copy().T
    if layout == "strided":
        wide = np.zeros((2 * shape[0], 3 * shape[1]), dtype)
        wide[::2, ::3] = x
        return wide[::2, ::3]
    return x


LAYOUTS = st.sampled_from(["rows", "columns", "strided"])


@given(
    form=st.sampled_from(sorted(FORMATS)),
    dtype=st.sampled_from(HALF),
    wide=st.booleans(),
    n=st.sampled_from([0, 1, 2, 4, 8, 17, 40, 70, 130]),
    layout=LAYOUTS,
    what=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    seed=st.integers(0, 2**32 - 1),
)
def test_products(form, dtype, wide, n, layout, what, seed):
    rng = np.random.default_rng(seed)
    a = made(form, dtype, rng)
    kind = np.dtype(np.float32) if wide else dtype
    accumulate, with_bias, relu = what
    for matrix in (a, a.T):
        rows, columns = matrix.shape
        x = operand(rng, (columns, n), kind, layout)
        y = operand(rng, (rows, n), kind, layout)
        bias = rng.standard_normal(rows).astype(kind) if with_bias else None
        old = y.astype(np.float64) if accumulate else 0.0
        truth = reference.matmul(
            matrix.to_dense().astype(np.float64),
            x,
            old,
            None if bias is None else bias.astype(np.float64),
            relu,
        )
        size = reference.matmul(np.abs(matrix.to_dense().astype(np.float64)), np.abs(x)) + 4
        out = matrix.matmul(x, y, bias=bias, relu=relu, accumulate=accumulate)
        assert out is y and out.dtype == kind
        error = np.abs(out.astype(np.float64) - truth)
        rounding = 0 if wide else EPS[dtype] * np.abs(truth)
        assert (error <= 1e-5 * size + rounding).all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("form", sorted(FORMATS))
def test_values_are_those_of_float32_rounded_once(form, dtype):
    """Sums are those of the widened matrix, bit for bit, and a result is rounded once."""
    rng = np.random.default_rng(0)
    a = made(form, dtype, rng)
    wide = a.astype(np.float32)
    assert a.dtype == dtype and a.data.nbytes * 2 == wide.data.nbytes
    assert np.array_equal(a.to_dense(), wide.to_dense().astype(dtype))
    for n in (1, 3, 20, 70, 130):
        x, y = (rng.standard_normal((k, n)).astype(dtype) for k in (64, 48))
        for ours, theirs, z in ((a, wide, x), (a.T, wide.T, y)):
            sums = theirs @ z.astype(np.float32)
            assert np.array_equal(ours @ z, sums.astype(dtype))
            assert np.array_equal(ours @ z.astype(np.float32), sums)
        u, v = y, x.T
        sums = sparse.sddmm(wide, u.astype(np.float32), v.astype(np.float32))
        assert np.array_equal(sparse.sddmm(a, u, v), sums.astype(dtype))
        mixed = sparse.sddmm(a, u.astype(np.float32), v.astype(np.float32))
        assert mixed.dtype == dtype and np.array_equal(mixed, sums.astype(dtype))
        out = np.ones(a.data.shape, dtype)
        sparse.sddmm(a, u, v, out, accumulate=True)
        assert np.allclose(out.astype(np.float32), sums + 1, rtol=2 * EPS[dtype], atol=0.02)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_extreme_values(dtype):
    """Each number of the type, of which there are few, passes through a product unchanged."""
    values = np.arange(2**16, dtype=np.uint16).view(dtype)
    values = values[np.isfinite(values.astype(np.float32))]
    n = values.size
    a = sparse.CSRMatrix((values, np.arange(n, dtype=np.int32), np.arange(n + 1)), (n, n))
    ones = np.ones(n, dtype)
    for product in (a @ ones, a.T @ ones, (a @ np.ones((n, 20), dtype))[:, 7]):
        assert np.array_equal(product + dtype.type(0), values)
    large = dtype.type(ml_dtypes.finfo(dtype).max)
    b = sparse.CSRMatrix.from_dense(np.full((1, 2), large, dtype))
    assert np.isinf((b @ np.ones(2, dtype)).astype(np.float32)).all()
    assert (b @ np.array([1, -1], dtype) == 0).all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_other_methods(dtype, tmp_path):
    rng = np.random.default_rng(0)
    a = made("csr", dtype, rng)
    b = made("csr", dtype, np.random.default_rng(1))
    assert np.array_equal(a.transpose().to_dense(), a.to_dense().T)
    assert np.array_equal((a + b).to_dense(), a.to_dense() + b.to_dense())
    for way in (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))):
        assert way(a).data.tobytes() == a.data.tobytes() and way(a).dtype == dtype
    sparse.save_npz(tmp_path / "a", a)
    back = sparse.load_npz(tmp_path / "a.npz")
    assert back.dtype == dtype and back.data.tobytes() == a.data.tobytes()
    blocks = made("bsr", dtype, rng)
    sparse.save_npz(tmp_path / "b", blocks)
    back = sparse.load_npz(tmp_path / "b.npz")
    assert back.dtype == dtype and back.data.tobytes() == blocks.data.tobytes()
    for matrix in (a, blocks):
        with pytest.raises(TypeError, match=f"of {dtype}"):
            matrix.to_scipy()
    repeated = sparse.CSRMatrix(
        (np.full(3, 0.1, dtype), np.array([1, 1, 0], np.int32), np.array([0, 3])), (1, 2)
    )
    total = repeated.data[:1].astype(np.float32) * 2
    assert repeated.canonical().data[1] == total.astype(dtype)[0]
    assert repeated.to_dense()[0, 1] == total.astype(dtype)[0]


def test_dtypes_that_do_not_go_together_are_refused():
    rng = np.random.default_rng(0)
    a = made("csr", HALF[0], rng)
    for bad in (np.float64, HALF[1], np.int32):
        with pytest.raises(TypeError, match="x must have dtype float16 like data or float32"):
            a @ np.ones(64, bad)
        with pytest.raises(TypeError, match=r"convert it with a.astype\('float32'\)"):
            a @ np.ones(64, bad)
        with pytest.raises(TypeError, match="u must have dtype float16 like data"):
            sparse.sddmm(a, np.ones((48, 2), bad), np.ones((2, 64), bad))
    x, out = np.ones((64, 3), np.float32), np.zeros((48, 3), np.float16)
    with pytest.raises(TypeError, match="out must have dtype float32 like x"):
        a.matmul(x, out)
    with pytest.raises(TypeError, match="bias must have dtype float32 like x"):
        a.matmul(x, bias=np.ones(48, np.float16))
    with pytest.raises(TypeError, match="v must have dtype float32"):
        sparse.sddmm(a, np.ones((48, 2), np.float32), np.ones((2, 64), np.float16))
    with pytest.raises(TypeError, match="out must have dtype float16 like data"):
        sparse.sddmm(a, out, np.ones((3, 64), np.float16), np.ones(a.nnz, np.float32))
    assert not out.any()
    with pytest.raises(TypeError, match="x must have dtype float32"):
        a.astype(np.float32) @ np.ones(64, np.float16)
    for bad in ("int8", "float128?", None, 3):
        with pytest.raises(TypeError, match="dtype must be float32, float64, float16 or bfloat16"):
            a.astype(bad)
    layer = nn.SparseLinear(a)
    with pytest.raises(TypeError, match="float32 to multiply a weight of float16, got float16"):
        layer(np.ones((2, 64), np.float16))
    for make in (
        sparse.CSRMatrix.from_dense,
        sparse.NMMatrix.from_dense,
        lambda w: sparse.BSRMatrix.from_dense(w, (4, 4)),
    ):
        for bad in (np.int8, np.complex64, np.bool_):
            with pytest.raises(TypeError, match="w must have dtype float32, float64, float16 or"):
                make(np.ones((8, 8), bad))
    memory = np.zeros((112, 3), np.float16)
    with pytest.raises(ValueError, match="out"):
        a.matmul(memory[:64], memory[50:98])


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_layers_train_with_weights_in_half_precision(dtype, tmp_path):
    rng = np.random.default_rng(0)
    layer = nn.SparseLinear(made("csr", dtype, rng), np.zeros(48, np.float32))
    x = rng.standard_normal((32, 64)).astype(np.float32)
    target = rng.standard_normal((32, 48)).astype(np.float32)
    opt = optim.Adam(layer.params, lr=1e-2)
    losses = []
    for _ in range(60):
        error = layer(x) - target
        losses.append(float((error**2).mean()))
        dx = layer.backward(error / 32)
        assert dx.dtype == np.float32 and layer.grads["weight"].dtype == dtype
        opt.step(layer.grads)
    assert losses[-1] < 0.5 * losses[0]
    layer.save(tmp_path / "layer.safetensors")
    back = nn.load(tmp_path / "layer.safetensors")
    assert back.weight.dtype == dtype and np.array_equal(back(x), layer(x))
    namespace = {}
    exec(nn.Sequential(layer).eval().export(tmp_path / "model.npz", show=False), namespace)
    np.testing.assert_allclose(namespace["predict"](x), layer(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="bias must be float32"):
        nn.SparseLinear(layer.weight, np.zeros(48, dtype))
    with pytest.raises(TypeError, match="x must have dtype float32"):
        layer(x.astype(dtype))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("kind", ["SET", "RigL"])
def test_patterns_change_while_such_layers_train(kind, dtype):
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.SparseLinear(made("csr", dtype, rng)))
    opt = optim.Adam(model.params, lr=1e-2)
    make = {"SET": cr.prune.SET, "RigL": cr.prune.RigL}[kind]
    dynamic = make(model, opt, end=20, frequency=2)
    x = rng.standard_normal((16, 64)).astype(np.float32)
    before = model[0].weight
    for _ in range(6):
        model.backward(model(x) - 1)
        opt.step(model.grads)
        dynamic.step()
    after = model[0].weight
    assert after.dtype == dtype and after.nnz == before.nnz
    assert not np.array_equal(after.indices, before.indices)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_the_number_of_threads_does_not_show(dtype):
    rng = np.random.default_rng(0)
    a = made("csr", dtype, rng, (600, 1100), 0.7)
    threads = cr.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            cr.set_num_threads(count)
            a = sparse.CSRMatrix((a.data, a.indices, a.indptr), a.shape)
            results = []
            for n in (1, 8, 100):
                x = np.random.default_rng(n).standard_normal((1100, n)).astype(dtype)
                y = a @ x
                results += [y, a.T @ y, sparse.sddmm(a, y, x.T)]
            found.append(b"".join(r.tobytes() for r in results))
    finally:
        cr.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("block", [(4, 4), (1, 16), (16, 1)])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("n", [1, 3, 8, 20, 70, 130])
def test_blocks_are_widened_a_few_at_a_time(block, dtype, n):
    """The bits of the product of all values widened, also of a row that several tasks share."""
    rng = np.random.default_rng(n)
    rows, columns = 70 * block[0], 3 * 32 * 1024 * block[1] if n == 3 else 48 * block[1]
    kept = rng.random((70, columns // block[1])) < (0.001 if n == 3 else 0.4)
    if n == 3:
        kept[67] = True
    indptr = np.concatenate([[0], np.cumsum(kept.sum(1))]).astype(np.int32)
    indices = np.nonzero(kept)[1].astype(np.int32)
    data = rng.standard_normal((len(indices), *block)).astype(dtype)
    narrow = sparse.BSRMatrix((data, indices, indptr), (rows, columns))
    wide = sparse.BSRMatrix((data.astype(np.float32), indices, indptr), (rows, columns))
    x = rng.standard_normal((columns, n)).astype(np.float32)
    np.testing.assert_array_equal(narrow @ x, wide @ x)
    y = rng.standard_normal((rows, n)).astype(np.float32)
    np.testing.assert_array_equal(narrow.T @ y, wide.T @ y)
    if n != 3:
        np.testing.assert_array_equal(narrow.to_dense(), wide.to_dense())

"""Sparse matrices of codes with scales: the products of what the codes stand for."""

import copy
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import compressrs as cr
from compressrs import quantize
from compressrs.quantize import QuantizedCSRMatrix, Scheme

SCHEMES = [
    Scheme(),
    Scheme(bits=4),
    Scheme(granularity="tensor"),
    Scheme(bits=2, granularity="tensor"),
    *(Scheme(granularity="group", group_size=size) for size in (1, 7, 32, 10_000)),
]


def made(rng, shape=(40, 60), zeros=0.6, **options):
    w = rng.standard_normal(shape).astype(np.float32)
    w *= rng.uniform(0.1, 10, (shape[0], 1)).astype(np.float32)
    w[rng.random(shape) < zeros] = 0
    w[3 % max(shape[0], 1) : 5] = 0
    return cr.sparse.CSRMatrix.from_dense(w, **options)


def reference(a, scheme):
    """Codes and scales, with one loop over the groups."""
    data = a.data.astype(np.float64)
    if scheme.granularity == "channel":
        ends = a.indptr
    else:
        size = scheme.group_size or max(data.size, 1)
        ends = [*range(0, data.size, size), data.size] if data.size else [0]
    codes, scales = np.zeros(data.size), []
    for start, end in itertools.pairwise(ends):
        largest = np.abs(a.data[start:end]).max(initial=0)
        scale = np.float32(largest) / np.float32((2**scheme.bits - 1) / 2) if largest else 1.0
        limit = 2 ** (scheme.bits - 1)
        part = np.round((a.data[start:end] / np.float32(scale)).astype(np.float32))
        codes[start:end] = np.clip(part, -limit, limit - 1)
        scales.append(scale)
    each = np.repeat(scales, np.diff(ends)) if data.size else np.zeros(0)
    return codes, np.array(scales), codes * each


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
@pytest.mark.parametrize("shape", [(40, 60), (1, 300), (300, 1), (4, 5), (0, 3), (3, 0)])
def test_codes_are_those_of_the_groups(scheme, shape):
    a = made(np.random.default_rng(0), shape)
    q = QuantizedCSRMatrix.from_csr(a, scheme)
    codes, scales, values = reference(a, scheme)
    assert q.codes.dtype == np.int8 and np.array_equal(q.codes, codes)
    np.testing.assert_allclose(q.scale, scales, rtol=1e-6)
    np.testing.assert_allclose(q.dequantize().data, values, rtol=1e-6)
    assert q.shape == a.shape and q.nnz == a.nnz


@given(
    scheme=st.sampled_from(SCHEMES),
    index=st.sampled_from([None, "int16"]),
    n=st.sampled_from([0, 1, 2, 8, 9, 33, 64, 150]),
    what=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    columns_first=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_are_those_of_the_dequantized_matrix(scheme, index, n, what, columns_first, seed):
    rng = np.random.default_rng(seed)
    a = made(rng, (rng.integers(1, 90), rng.integers(1, 700)), index_dtype=index)
    q = QuantizedCSRMatrix.from_csr(a, scheme)
    wide = q.dequantize()
    accumulate, with_bias, relu = what
    for ours, theirs in ((q, wide), (q.T, wide.T)):
        rows, columns = ours.shape
        x = rng.standard_normal((columns, n)).astype(np.float32)
        x = np.asfortranarray(x) if columns_first else x
        out, truth = (np.full((rows, n), 0.5, np.float32) for _ in range(2))
        bias = rng.standard_normal(rows).astype(np.float32) if with_bias else None
        ours.matmul(x, out, bias=bias, relu=relu, accumulate=accumulate)
        theirs.matmul(x, truth, bias=bias, relu=relu, accumulate=accumulate)
        assert np.array_equal(out, truth)
        assert np.array_equal(x.T @ ours.T, x.T @ theirs.T)
    assert np.array_equal(q.to_dense(), wide.to_dense())


def test_unsorted_and_repeated_entries():
    indices, indptr = np.array([2, 0, 2, 1], np.int32), np.array([0, 3, 4])
    scale = np.array([0.5, 2.0], np.float32)
    codes = np.array([1, -128, 127, 3], np.int8)
    q = QuantizedCSRMatrix((codes, scale, indices, indptr), (2, 3), Scheme())
    dense = np.array([[-64, 0, 64], [0, 6, 0]], np.float32)
    assert np.array_equal(q.to_dense(), dense)
    for n in (1, 5, 70):
        x = np.random.default_rng(n).integers(-5, 5, (3, n)).astype(np.float32)
        assert np.array_equal(q @ x, dense @ x)
        assert np.array_equal(q.T @ x[:2], dense.T @ x[:2])
    # All arrays are copies.
    indices[:], indptr[:], codes[:], scale[:] = 7, 9, 0, np.nan
    assert (q @ np.ones(3, np.float32)).tolist() == [0, 6]


def test_errors_are_as_quantization_predicts():
    rng = np.random.default_rng(0)
    a = made(rng, (200, 300), 0.9)
    errors = []
    for scheme in (Scheme(granularity="tensor"), Scheme(), Scheme(bits=4)):
        q = QuantizedCSRMatrix.from_csr(a, scheme)
        rows = a.rows() if scheme.granularity == "channel" else np.zeros(a.nnz, int)
        assert (np.abs(q.dequantize().data - a.data) <= 0.51 * q.scale[rows]).all()
        errors.append(np.abs(q.dequantize().data - a.data).mean())
    assert errors[1] < errors[0] < errors[2]


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_copies_and_files(scheme, tmp_path):
    q = QuantizedCSRMatrix.from_csr(made(np.random.default_rng(0)), scheme)
    x = np.random.default_rng(1).standard_normal((60, 5)).astype(np.float32)
    truth = q @ x
    q.save(tmp_path / "q", compressed=False)
    for other in (
        copy.copy(q),
        copy.deepcopy(q),
        pickle.loads(pickle.dumps(q)),
        QuantizedCSRMatrix.load(tmp_path / "q.npz"),
    ):
        assert other.scheme == scheme and other.shape == q.shape
        assert np.array_equal(other @ x, truth)
    with pytest.raises(ValueError, match="must hold a csr or bsr matrix, got 'quantized_csr'"):
        cr.sparse.load_npz(tmp_path / "q.npz")
    cr.sparse.save_npz(tmp_path / "a", made(np.random.default_rng(0)))
    with pytest.raises(ValueError, match="must hold a quantized_csr matrix, got 'csr'"):
        QuantizedCSRMatrix.load(tmp_path / "a.npz")
    content = (tmp_path / "q.npz").read_bytes()
    (tmp_path / "bad.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is not a sparse matrix"):
        QuantizedCSRMatrix.load(tmp_path / "bad.npz")


@pytest.mark.parametrize("scheme", [*SCHEMES, Scheme(bits=3)], ids=repr)
def test_products_hold_at_the_ends_of_float32(scheme):
    largest = np.finfo(np.float32).max
    dense = np.zeros((4, 6), np.float32)
    dense[0, [0, 3]] = largest, -largest
    dense[1] = -3.4e38
    dense[2] = np.array([1, -1, 3e38, 2, -3e38, 0.5], np.float32)
    dense[3, 1:3] = -largest, 1e-38
    a = cr.sparse.CSRMatrix.from_dense(dense)
    q = QuantizedCSRMatrix.from_csr(a, scheme)
    wide = q.dequantize()
    assert np.isfinite(wide.data).all()
    error = np.abs(wide.data.astype(np.float64) - a.data)
    assert error.max() <= 0.51 * 2.0 * float(largest) / (2**scheme.bits - 1)
    assert np.array_equal(q.to_dense(), wide.to_dense())
    for n in (1, 7, 40):
        x = np.random.default_rng(n).uniform(-1e-3, 1e-3, (6, n)).astype(np.float32)
        assert np.array_equal(q @ x, wide @ x)
        assert np.array_equal(q.T @ x[:4], wide.T @ x[:4])
    # Whoever brings arrays is told which entry it is.
    codes, scales = np.array([3, -128], np.int8), np.array([2.67e36], np.float32)
    arrays = codes, scales, np.array([0, 1], np.int32), np.array([0, 2], np.int32)
    with pytest.raises(ValueError, match=r"got -128 times 2\.67e\+36 for codes\[1\]"):
        QuantizedCSRMatrix(arrays, (1, 2), Scheme(granularity="tensor"))
    codes[1] = -127
    QuantizedCSRMatrix(arrays, (1, 2), Scheme(granularity="tensor"))


def test_nothing_of_it_can_be_changed():
    q = QuantizedCSRMatrix.from_csr(made(np.random.default_rng(0)), Scheme(bits=4))
    for matrix in (q, q.copy(), copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        for name in ("codes", "scale", "indices", "indptr", "scheme", "shape", "T"):
            with pytest.raises(AttributeError):
                setattr(matrix, name, getattr(q, name))
        for name in ("codes", "scale", "indices", "indptr"):
            with pytest.raises(ValueError, match="read-only"):
                getattr(matrix, name)[0] = 0
            with pytest.raises(ValueError, match="WRITEABLE"):
                getattr(matrix, name).flags.writeable = True
    # What was made of arrays that can be changed is not changed with them.
    codes, scale = q.codes.copy(), q.scale.copy()
    own = QuantizedCSRMatrix((codes, scale, q.indices, q.indptr), q.shape, q.scheme)
    codes[:], scale[:] = 100, np.nan
    x = np.ones(60, np.float32)
    assert np.array_equal(own @ x, q @ x)


def test_the_interface_of_sparse_matrices():
    q = QuantizedCSRMatrix.from_csr(made(np.random.default_rng(0)))
    assert np.array_equal(q.toarray(), q.to_dense()) and q.size == q.nnz
    other = q.copy()
    assert other is not q and other.codes is q.codes and other.indices is q.indices
    assert np.array_equal(other.toarray(), q.toarray())


def test_bytes():
    a = made(np.random.default_rng(0), (100, 200), 0.5)
    q = QuantizedCSRMatrix.from_csr(a)
    arrays = a.nnz + q.scale.nbytes + a.indices.nbytes + a.indptr.nbytes
    assert q.nbytes == arrays
    q @ np.ones(200, np.float32)
    assert arrays + 2 * q.nnz <= q.nbytes <= arrays + 4 * q.nnz
    # The pattern is shared, and so is what has been prepared of it.
    assert q.indices is a.indices
    assert a.nbytes - a.data.nbytes == q.nbytes - q.codes.nbytes - q.scale.nbytes


def test_what_is_no_such_matrix_is_refused():
    a = made(np.random.default_rng(0))
    q = QuantizedCSRMatrix.from_csr(a)
    good = {"codes": q.codes, "scale": q.scale, "indices": q.indices, "indptr": q.indptr}

    def make(shape=(40, 60), scheme=None, **arrays):
        arrays = {**good, **arrays}
        return QuantizedCSRMatrix(tuple(arrays.values()), shape, scheme or Scheme())

    make()
    changed = q.indices.copy()
    changed[3] = 60
    for error, message, wrong in [
        (TypeError, "codes must have dtype int8", {"codes": q.codes.astype(np.int16)}),
        (TypeError, "scale must have dtype float32", {"scale": q.scale.astype(np.float64)}),
        (ValueError, "scale must have the shape", {"scale": q.scale[1:]}),
        (ValueError, "scale must be finite", {"scale": -q.scale}),
        (ValueError, "scale must be finite", {"scale": np.full(40, np.nan, np.float32)}),
        (ValueError, "codes and scale must have 1 axis", {"scale": q.scale[None]}),
        (ValueError, "data and indices must have the same", {"codes": q.codes[1:]}),
        (ValueError, r"indices\[3\] is 60", {"indices": changed}),
        (ValueError, "codes must be from -8 to 7", {"scheme": Scheme(bits=4)}),
        (ValueError, "scheme must be symmetric", {"scheme": Scheme(symmetric=False)}),
        (ValueError, "scheme must be symmetric", {"scheme": Scheme(dtype="nf4")}),
        (ValueError, "must have one element more", {"shape": (41, 60)}),
        (TypeError, "scheme must be a Scheme", {"scheme": 8}),
    ]:
        with pytest.raises(error, match=message):
            make(**wrong)
    with pytest.raises(TypeError, match="arrays must be a tuple"):
        QuantizedCSRMatrix((q.codes, q.scale), (40, 60), Scheme())
    with pytest.raises(TypeError, match="matrix must be a CSRMatrix"):
        QuantizedCSRMatrix.from_csr(a.to_dense())
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="must have finite values"):
            QuantizedCSRMatrix.from_csr(a.with_data(np.full(a.nnz, bad, np.float32)))
    with pytest.raises(TypeError, match="x must have dtype float32"):
        q @ np.ones(60)
    # Codes are no values of a matrix.
    with pytest.raises(TypeError, match="data must have dtype"):
        cr.sparse.CSRMatrix((q.codes, q.indices, q.indptr), (40, 60))


def test_the_number_of_threads_does_not_show():
    q = QuantizedCSRMatrix.from_csr(made(np.random.default_rng(0), (700, 900), 0.8))
    threads = cr.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            cr.set_num_threads(count)
            products = []
            for n in (1, 8, 100):
                x = np.random.default_rng(n).standard_normal((900, n)).astype(np.float32)
                products += [q @ x, q.T @ x[:700]]
            found.append(b"".join(y.tobytes() for y in products))
    finally:
        cr.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


def test_half_precision_and_doubles_are_taken_as_float32():
    a = made(np.random.default_rng(0))
    for dtype in (np.float64, np.float16):
        given_as = a.astype(dtype)
        q = QuantizedCSRMatrix.from_csr(given_as)
        truth = QuantizedCSRMatrix.from_csr(given_as.astype(np.float32))
        assert np.array_equal(q.codes, truth.codes) and np.array_equal(q.scale, truth.scale)
    assert quantize.quantize(a.data, Scheme(granularity="tensor")).codes.tolist() == (
        QuantizedCSRMatrix.from_csr(a, Scheme(granularity="tensor")).codes.tolist()
    )

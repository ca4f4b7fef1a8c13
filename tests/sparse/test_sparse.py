"""Sparse matrices against SciPy and tests/reference."""

import contextlib
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given

import compressrs as cr
from compressrs.sparse import BSRMatrix, CSRMatrix, NMMatrix, carry, load_npz, save_npz, sddmm
from tests.reference import sparse as reference

TOLERANCE = {np.float32: 1e-5, np.float64: 1e-13}


@st.composite
def matrices(draw):
    """A SciPy CSR array: random, or with a full row, a full column, or empty."""
    rows, columns = draw(st.integers(0, 60)), draw(st.integers(0, 60))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    dense = np.where(rng.random((rows, columns)) < density, rng.standard_normal((rows, columns)), 0)
    if rows and columns and draw(st.booleans()):
        dense[draw(st.integers(0, rows - 1))] = 1
        dense[:, draw(st.integers(0, columns - 1))] = 2
    matrix = scipy.sparse.csr_array(dense.astype(dtype))
    if draw(st.booleans()):
        matrix = scipy.sparse.csr_array(
            (matrix.data, matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)),
            shape=matrix.shape,
        )
    return matrix


def operand(rng, shape, dtype, layout):
    """An array of a shape in C or F order, strided, or reversed."""
    wide = rng.standard_normal([2 * n for n in shape]).astype(dtype)
    if layout == "strided":
        return wide[tuple(slice(0, 2 * n, 2) for n in shape)]
    if layout == "reversed":
        return wide[tuple(slice(0, n) for n in shape)][::-1]
    return np.array(wide[tuple(slice(0, n) for n in shape)], order=layout)


LAYOUTS = st.sampled_from(["C", "F", "strided", "reversed"])


@given(matrices(), st.integers(0, 300), LAYOUTS, LAYOUTS, st.integers(0, 2**32 - 1))
def test_products(matrix, n, layout, layout2, seed):
    a = CSRMatrix.from_scipy(matrix)
    rng = np.random.default_rng(seed)
    (m, k), dtype = matrix.shape, matrix.dtype.type
    tol = TOLERANCE[dtype]
    dense = matrix.toarray()

    def check(got, expected):
        assert got.dtype == dtype
        np.testing.assert_allclose(got, expected, rtol=tol, atol=tol * 10)

    x = operand(rng, (k, n), dtype, layout)
    check(a @ x, dense @ x)
    check(x.T @ a.T, x.T @ dense.T)
    z = operand(rng, (m, n), dtype, layout)
    check(a.T @ z, dense.T @ z)
    check(z.T @ a, z.T @ dense)
    v = operand(rng, (k,), dtype, layout)
    check(a @ v, dense @ v)
    check(v @ a.T, dense @ v)
    z0 = z[:, 0] if n else np.zeros(m, dtype)
    check(a.T @ z0, dense.T @ z0)

    out = np.full((2 * m, 2 * n), np.nan, dtype)
    view = out[::2, ::2] if layout2 == "strided" else np.full((m, n), np.nan, dtype, order="F")
    assert a.matmul(x, out=view) is view
    check(view, dense @ x)
    assert np.isnan(out[1::2]).all()
    assert np.isnan(out[:, 1::2]).all()

    u, w = operand(rng, (m, n), dtype, layout), operand(rng, (n, k), dtype, layout2)
    rows, columns = matrix.nonzero() if (matrix.data != 0).all() else _places(matrix)
    expected = (u.astype(np.float64) @ w.astype(np.float64))[rows, columns]
    np.testing.assert_allclose(sddmm(a, u, w), expected, rtol=tol * 10, atol=tol * 100)


def _places(matrix):
    coo = matrix.tocoo()
    return coo.row, coo.col


def test_layer_sizes_go_by_panels_and_agree():
    """Batches large enough that each thread processes its own panels."""
    rng = np.random.default_rng(3)
    w = np.where(rng.random((130, 210)) < 0.1, rng.standard_normal((130, 210)), 0)
    a = CSRMatrix.from_dense(w)
    for batch in (127, 128, 1000):
        x, dy = rng.standard_normal((batch, 210)), rng.standard_normal((batch, 130))
        np.testing.assert_allclose(x @ a.T, x @ w.T, atol=1e-12)
        np.testing.assert_allclose(dy @ a, dy @ w, atol=1e-12)


@given(matrices())
def test_conversions(matrix):
    a = CSRMatrix.from_scipy(matrix)
    np.testing.assert_array_equal(a.to_dense(), matrix.toarray())
    assert a.shape == matrix.shape
    assert a.nnz == matrix.nnz
    b = CSRMatrix.from_dense(matrix.toarray())
    expected = scipy.sparse.csr_array(matrix.toarray())
    np.testing.assert_array_equal(b.data, expected.data)
    np.testing.assert_array_equal(b.indices, expected.indices)
    np.testing.assert_array_equal(b.indptr, expected.indptr)
    assert b.indices.dtype == np.int32
    np.testing.assert_array_equal(a.T.to_dense(), matrix.toarray().T)


def test_nothing_is_copied_from_and_to_scipy():
    matrix = scipy.sparse.random_array((30, 20), density=0.2, format="csr", rng=0)
    a = CSRMatrix.from_scipy(matrix)
    back = a.to_scipy()
    for name in ("data", "indices", "indptr"):
        assert getattr(a, name) is getattr(matrix, name)
        assert np.shares_memory(getattr(back, name), getattr(matrix, name))


def test_a_large_matrix_in_parallel():
    rng = np.random.default_rng(1)
    w = rng.standard_normal((1500, 1200)).astype(np.float32)
    w[rng.random(w.shape) < 0.9] = 0
    # A hub row and empty rows.
    w[7] = 1
    w[100:300] = 0
    a = CSRMatrix.from_dense(w)
    x = rng.standard_normal((1200, 77)).astype(np.float32)
    np.testing.assert_allclose(a @ x, w @ x, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(a.to_dense(), w)
    y = rng.standard_normal((1500, 77)).astype(np.float32)
    np.testing.assert_allclose(a.T @ y, w.T @ y, rtol=1e-4, atol=1e-4)


def test_from_dense_by_threshold():
    w = np.array([[0.5, -1.0, np.nan], [0.0, 0.9, 2.0]])
    a = CSRMatrix.from_dense(w, threshold=1.0)
    np.testing.assert_array_equal(a.data, [-1.0, np.nan, 2.0])
    np.testing.assert_array_equal(a.indices, [1, 2, 2])
    np.testing.assert_array_equal(CSRMatrix.from_dense(w.T).to_dense(), w.T)


def test_unsorted_and_repeated_entries():
    matrix = scipy.sparse.csr_array(
        (np.array([1.0, 2.0, 3.0]), np.array([2, 0, 2]), np.array([0, 3])), shape=(1, 3)
    )
    a = CSRMatrix.from_scipy(matrix)
    np.testing.assert_array_equal(a.to_dense(), [[2, 0, 4]])
    np.testing.assert_array_equal(a @ np.array([1.0, 10.0, 100.0]), [402])


@pytest.mark.parametrize(
    ("data", "indices", "indptr", "message"),
    [
        ([1.0], [0], [1, 1], "indptr must start at 0, got 1"),
        ([1.0], [0], [0, 2], "indptr must end at the number of indices, 1, got 2"),
        ([1.0, 1.0], [0, 1], [0, 2, 1, 2], "indptr must not decrease, but does after row 1"),
        ([1.0], [3], [0, 1], r"below the number of columns, 3; indices\[0\] is 3"),
        ([1.0], [-1], [0, 1], r"indices\[0\] is -1"),
        ([1.0, 2.0], [0], [0, 1], "data and indices must have the same length, got 2 and 1"),
        ([1.0], [0], [0, 1, 1], "indptr must have one element more than the 1 rows"),
    ],
)
def test_malformed_matrices(data, indices, indptr, message):
    rows = 1 if "rows" in message else len(indptr) - 1
    parts = np.array(data), np.array(indices, np.int32), np.array(indptr, np.int32)
    with pytest.raises(ValueError, match=message):
        CSRMatrix(parts, (rows, 3))


def test_arrays_changed_behind_our_back_are_refused_before_they_are_read():
    a = CSRMatrix.from_dense(np.eye(4))
    x = np.ones((4, 2))
    for name, value in (("indices", 1000), ("indices", -5), ("indptr", 3)):
        # Arrays that the caller owns and may write to.
        parts = a.data.copy(), a.indices.copy(), a.indptr.copy()
        broken = CSRMatrix(parts, a.shape)
        assert not broken._core.is_immutable
        np.testing.assert_array_equal(broken @ x, x)
        getattr(broken, name)[1] = value
        for product in (
            lambda b: b @ x,
            lambda b: b.T @ x,
            lambda b: sddmm(b, x, x.T),
            lambda b: b.to_dense(),
        ):
            with pytest.raises(ValueError, match="ind"):
                product(broken)


def test_outputs_that_overlap_are_refused():
    a = CSRMatrix.from_dense(np.eye(4))
    x = np.ones((4, 4))
    with pytest.raises(ValueError, match="out and x share memory"):
        a.matmul(x, out=x)
    b = CSRMatrix.from_dense(np.ones((4, 4)))
    with pytest.raises(ValueError, match="out and data share memory"):
        b.matmul(x, out=b.data.reshape(4, 4))
    with pytest.raises(ValueError, match="out and data share memory"):
        sddmm(b, x, x, out=b.data)
    with pytest.raises(ValueError, match="not share memory between its own elements"):
        a.matmul(x, out=np.lib.stride_tricks.as_strided(np.ones(4), (4, 4), (0, 8)))
    np.testing.assert_array_equal(x, np.ones((4, 4)))


def test_other_formats_and_types():
    eye = scipy.sparse.eye_array(3)
    with pytest.raises(TypeError, match=r"use \.tocsr\(\)"):
        CSRMatrix.from_scipy(eye.tocsc())
    with pytest.raises(TypeError, match=r"data must have dtype float32.*, got int64"):
        CSRMatrix.from_scipy(eye.tocsr().astype(np.int64))
    a = CSRMatrix.from_scipy(eye.tocsr())
    with pytest.raises(TypeError, match="x must have dtype float64 like data"):
        a @ np.ones((3, 2), np.float32)
    with pytest.raises(ValueError, match=r"x must have shape \(3, 2\), got \(4, 2\)"):
        a @ np.ones((4, 2))
    with pytest.raises(TypeError):
        a @ 3
    with pytest.raises(AttributeError):
        a.data = np.ones(3)


def test_repr():
    a = CSRMatrix.from_dense(np.eye(2, dtype=np.float32))
    assert repr(a) == "<CSRMatrix of shape (2, 2), float32, with 2 stored entries>"
    assert repr(a.T) == f"<transpose of {a!r}>"
    assert a.T.T is a


def test_a_pattern_that_nobody_can_write_to_is_checked_once():
    a = CSRMatrix.from_dense(np.eye(4))
    for b in (a, a.copy(), a.transpose(), a.union(a), a.with_data(np.ones(4)), a + a):
        assert b._core.is_immutable
        with pytest.raises(ValueError, match="read-only"):
            b.indices[0] = 1
        for array in (b.indices, b.indptr, b.indices[1:]):
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.setflags(write=True)
    # Read-only for now, but its owner may change that.
    parts = [x.copy() for x in (a.data, a.indices, a.indptr)]
    for x in parts:
        x.setflags(write=False)
    assert not CSRMatrix(tuple(parts), a.shape)._core.is_immutable
    writable = np.frombuffer(bytearray(a.indices.tobytes()), np.int32)
    writable.setflags(write=False)
    assert not CSRMatrix((a.data, writable, a.indptr), a.shape)._core.is_immutable


def test_an_array_whose_dtype_or_shape_was_set_is_refused():
    x = np.ones((4, 2))
    for name, attribute, value in (
        ("indices", "dtype", np.int16),
        ("data", "dtype", np.float32),
        ("data", "shape", (2, 2)),
    ):
        eye = CSRMatrix.from_dense(np.eye(4))
        a = CSRMatrix((eye.data.copy(), eye.indices.copy(), eye.indptr.copy()), eye.shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            setattr(getattr(a, name), attribute, value)
        with pytest.raises((TypeError, ValueError), match=name):
            a @ x


@given(matrices(), st.integers(0, 70), st.booleans(), st.booleans(), LAYOUTS, st.integers(0, 2**32))
def test_what_follows_a_product(matrix, n, relu, accumulate, layout, seed):
    rng = np.random.default_rng(seed)
    a, dtype = CSRMatrix.from_scipy(matrix), matrix.dtype.type
    tol = TOLERANCE[dtype]
    dense = reference.to_dense(matrix.data, matrix.indices, matrix.indptr, matrix.shape)
    np.testing.assert_array_equal(dense, matrix.toarray())
    for left, w in ((a, dense), (a.T, dense.T)):
        x = operand(rng, (w.shape[1], n), dtype, layout)
        old = rng.standard_normal((w.shape[0], n)).astype(dtype)
        bias = rng.standard_normal(w.shape[0]).astype(dtype)
        out = np.array(old, order="F" if layout == "F" else "C")
        left.matmul(x, out, bias=bias, relu=relu, accumulate=accumulate)
        truth = reference.matmul(w, x, old if accumulate else 0.0, bias, relu)
        np.testing.assert_allclose(out, truth, rtol=tol, atol=100 * tol)
        y = left._transposed().rmatmul(x.T, bias=bias, relu=relu)
        truth = reference.matmul(w, x, 0.0, bias, relu)
        np.testing.assert_allclose(y, truth.T, rtol=tol, atol=100 * tol)
        if n:
            y = left.matmul(x[:, 0], bias=bias, relu=relu)
            np.testing.assert_allclose(y, truth[:, 0], rtol=tol, atol=100 * tol)


@given(matrices(), st.integers(0, 2**32))
def test_other_indices(matrix, seed):
    rng = np.random.default_rng(seed)
    dense = matrix.toarray()
    wide = CSRMatrix.from_dense(dense)
    short = CSRMatrix.from_dense(dense, index_dtype="int16")
    assert short.indices.dtype == np.int16
    assert short.indptr.dtype == np.int32
    x = rng.standard_normal((matrix.shape[1], 9)).astype(matrix.dtype)
    np.testing.assert_array_equal(short @ x, wide @ x)
    np.testing.assert_array_equal(x.T @ short.T, x.T @ wide.T)
    np.testing.assert_array_equal(short.to_dense(), dense)
    np.testing.assert_array_equal(short.to_scipy().toarray(), dense)
    z = rng.standard_normal((9, matrix.shape[0])).astype(matrix.dtype)
    np.testing.assert_array_equal(z @ short, z @ wide)
    np.testing.assert_array_equal(sddmm(short, z.T, x.T), sddmm(wide, z.T, x.T))


def test_int16_where_columns_allow():
    w = np.zeros((1, 32769), np.float32)
    w[0, -1] = 1
    with pytest.raises(ValueError, match="index_dtype is too small for 32769 columns"):
        CSRMatrix.from_dense(w, index_dtype="int16")
    a = CSRMatrix.from_dense(w[:, 1:], index_dtype="int16")
    assert a.indices[0] == 32767
    np.testing.assert_array_equal(a @ np.ones(32768, np.float32), [1])
    with pytest.raises(ValueError, match="index_dtype must be one of 'int16'"):
        CSRMatrix.from_dense(w, index_dtype="int8")


def test_from_dense_by_mask():
    w = np.array([[1.0, 2.0], [0.0, 3.0]])
    mask = np.array([[False, True], [True, False]])
    a = CSRMatrix.from_dense(w, mask=mask)
    np.testing.assert_array_equal(a.data, [2, 0])
    np.testing.assert_array_equal(a.pattern(), mask)
    with pytest.raises(TypeError, match="mask must have dtype bool"):
        CSRMatrix.from_dense(w, mask=w)
    with pytest.raises(ValueError, match=r"mask must have the shape \(2, 2\) of w"):
        CSRMatrix.from_dense(w, mask=mask[:1])
    with pytest.raises(ValueError, match="either threshold or mask"):
        CSRMatrix.from_dense(w, 0.5, mask=mask)


@given(matrices())
def test_transposition_and_scaling(matrix):
    a = CSRMatrix.from_scipy(matrix)
    t, truth = a.transpose(), matrix.T.tocsr()
    truth.sort_indices()
    np.testing.assert_array_equal(t.data, truth.data)
    np.testing.assert_array_equal(t.indices, truth.indices)
    np.testing.assert_array_equal(t.indptr, truth.indptr)
    rows, columns = (np.arange(1, n + 1, dtype=matrix.dtype) for n in matrix.shape)
    np.testing.assert_array_equal(a.scale_rows(rows).to_dense(), matrix.toarray() * rows[:, None])
    np.testing.assert_array_equal(a.scale_columns(columns).to_dense(), matrix.toarray() * columns)
    assert a.scale_rows(rows).indices is a.indices


@given(matrices(), st.integers(0, 2**32))
def test_patterns_as_sets(matrix, seed):
    rng = np.random.default_rng(seed)
    a = CSRMatrix.from_scipy(matrix)
    other = rng.random(matrix.shape) < 0.3
    b = CSRMatrix.from_dense(other.astype(matrix.dtype))
    np.testing.assert_array_equal(a.union(b).pattern(), a.pattern() | other)
    np.testing.assert_array_equal(a.union(b).to_dense(), a.to_dense())
    np.testing.assert_array_equal(a.intersection(b).pattern(), a.pattern() & other)
    np.testing.assert_array_equal(a.intersection(b).to_dense(), a.to_dense() * other)
    np.testing.assert_array_equal((a + b).to_dense(), a.to_dense() + b.to_dense())
    moved = a.with_pattern(b, fill=7)
    np.testing.assert_array_equal(
        moved.to_dense(), np.where(other, np.where(a.pattern(), a.to_dense(), 7), 0)
    )
    # Entries in any order.
    order = np.concatenate(
        [rng.permutation(np.arange(*a.indptr[i : i + 2])) for i in range(a.shape[0])] or [[]]
    ).astype(np.intp)
    shuffled = CSRMatrix((a.data[order], a.indices[order], a.indptr), a.shape)
    np.testing.assert_array_equal(carry(shuffled.data, shuffled, b, 7), moved.data)
    back = shuffled.canonical()
    np.testing.assert_array_equal(back.data, a.data)
    np.testing.assert_array_equal(back.indices, a.indices)
    assert back.has_canonical_format
    assert (order == np.arange(a.nnz)).all() == shuffled.has_sorted_indices


def test_repeated_entries_are_told_apart():
    parts = np.array([1.0, 2.0, 3.0]), np.array([2, 0, 2]), np.array([0, 3])
    a = CSRMatrix(parts, (1, 3))
    assert not a.has_sorted_indices
    b = a.canonical()
    np.testing.assert_array_equal(b.data, [2, 4])
    np.testing.assert_array_equal(b.indices, [0, 2])
    assert b.canonical() is b
    twice = CSRMatrix((parts[0], np.array([0, 2, 2]), parts[2]), (1, 3))
    assert twice.has_sorted_indices
    assert not twice.has_canonical_format
    np.testing.assert_array_equal(twice.canonical().to_dense(), twice.to_dense())
    np.testing.assert_array_equal(a.transpose().to_dense(), a.to_dense().T)
    with pytest.raises(ValueError, match="old must not have repeated entries"):
        carry(a.data, a, b)
    with pytest.raises(ValueError, match="new must not have repeated entries"):
        carry(b.data, b, a)
    with pytest.raises(ValueError, match="shapes must agree"):
        b.union(CSRMatrix.from_dense(np.eye(2)))


BLOCKSIZES = [(4, 4), (1, 16), (16, 1)]


@given(
    st.sampled_from(BLOCKSIZES),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
    st.integers(0, 70),
    st.sampled_from([np.float32, np.float64]),
    LAYOUTS,
    st.integers(0, 2**32),
)
def test_blocks(blocksize, blocks, n, dtype, layout, seed):
    rng = np.random.default_rng(seed)
    tol = TOLERANCE[dtype]
    mask = np.kron(rng.random(blocks) < 0.5, np.ones(blocksize, bool)).astype(bool)
    w = rng.standard_normal(mask.shape).astype(dtype) * mask
    a = BSRMatrix.from_dense(w, blocksize)
    assert a.blocksize == blocksize
    assert a.nnz == mask.sum()
    np.testing.assert_array_equal(a.to_dense(), w)
    np.testing.assert_array_equal(
        a.to_dense(), reference.to_dense(a.data, a.indices, a.indptr, a.shape)
    )
    if a.nnz:
        theirs = a.to_scipy()
        assert np.shares_memory(theirs.data, a.data)
        np.testing.assert_array_equal(theirs.toarray(), w)
        assert BSRMatrix.from_scipy(theirs).data is theirs.data
    bias = rng.standard_normal(w.shape[0]).astype(dtype)
    x = operand(rng, (w.shape[1], n), dtype, layout)
    z = operand(rng, (n, w.shape[0]), dtype, layout)
    check = dict(rtol=tol, atol=100 * tol)
    np.testing.assert_allclose(a @ x, reference.matmul(w, x), **check)
    np.testing.assert_allclose(
        a.matmul(x, bias=bias, relu=True), reference.matmul(w, x, 0, bias, True), **check
    )
    np.testing.assert_allclose(z @ a, reference.matmul(w.T, z.T).T, **check)
    np.testing.assert_allclose(x.T @ a.T, reference.matmul(w, x).T, **check)
    truth = reference.sddmm(a.data, a.indices, a.indptr, z.T, x.T)
    got = sddmm(a, z.T, x.T)
    np.testing.assert_allclose(got, truth, **check)
    np.testing.assert_allclose(
        sddmm(a, z.T, x.T, got, accumulate=True), 2 * truth, rtol=tol, atol=200 * tol
    )


def test_blocks_that_there_are_none_of():
    with pytest.raises(ValueError, match=r"block must be \(4, 4\), .*got \(2, 2\)"):
        BSRMatrix.from_dense(np.eye(4), (2, 2))
    with pytest.raises(ValueError, match=r"a multiple of \(4, 4\), got \(5, 4\)"):
        BSRMatrix.from_dense(np.ones((5, 4)), (4, 4))
    with pytest.raises(ValueError, match="data must have 3 axes"):
        BSRMatrix((np.ones(1), np.zeros(1, np.int32), np.array([0, 1], np.int32)), (4, 4))
    with pytest.raises(ValueError, match=r"blocks must be of shape .*got \(2, 2\)"):
        BSRMatrix.from_scipy(scipy.sparse.bsr_array(np.eye(4), blocksize=(2, 2)))
    parts = np.ones((1, 4, 4)), np.ones(1, np.int32), np.array([0, 1], np.int32)
    with pytest.raises(ValueError, match="below the number of columns, 1"):
        BSRMatrix(parts, (4, 4))
    with pytest.raises(ValueError, match="shape must be a multiple"):
        BSRMatrix(parts, (4, 9))
    with pytest.raises(TypeError, match="indices must have dtype int32"):
        BSRMatrix((parts[0], parts[1].astype(np.int64), parts[2]), (4, 8))


def test_accumulating_needs_somewhere_to_add_to():
    a = CSRMatrix.from_dense(np.eye(3))
    x = np.ones((3, 2))
    with pytest.raises(ValueError, match="accumulate=True needs out"):
        a.matmul(x, accumulate=True)
    with pytest.raises(ValueError, match="accumulate=True needs out"):
        sddmm(a, x, x.T, accumulate=True)
    out = np.ones((3, 2))
    with pytest.raises(ValueError, match=r"bias must have the shape \(3,\)"):
        a.matmul(x, out, bias=np.ones(2))
    with pytest.raises(TypeError, match="bias must have dtype float64"):
        a.matmul(x, out, bias=np.ones(3, np.float32))
    with pytest.raises(ValueError, match="out and bias share memory"):
        a.matmul(x[:, 0], out.reshape(-1)[:3], bias=out.reshape(-1)[:3])
    np.testing.assert_array_equal(out, np.ones((3, 2)))


@pytest.mark.parametrize("compressed", [True, False])
def test_files(tmp_path, compressed):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((8, 32)) * (rng.random((8, 32)) < 0.3)
    for matrix in (
        CSRMatrix.from_dense(w),
        CSRMatrix.from_dense(w.astype(np.float32), index_dtype="int16"),
        BSRMatrix.from_dense(w, (4, 4)),
    ):
        path = tmp_path / "a.npz"
        save_npz(path, matrix, compressed=compressed)
        back = load_npz(path)
        assert type(back) is type(matrix)
        assert back._core.is_immutable
        for name in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(back, name), getattr(matrix, name))
            assert getattr(back, name).dtype == getattr(matrix, name).dtype
        theirs = scipy.sparse.load_npz(path)
        assert theirs.format == matrix.format
        np.testing.assert_array_equal(theirs.toarray(), matrix.to_dense())
        scipy.sparse.save_npz(path, matrix.to_scipy(), compressed=compressed)
        np.testing.assert_array_equal(load_npz(path).to_dense(), matrix.to_dense())
    save_npz(tmp_path / "b", CSRMatrix.from_dense(w))
    assert (tmp_path / "b.npz").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_damaged_files(tmp_path):
    path = tmp_path / "a.npz"
    save_npz(path, CSRMatrix.from_dense(np.eye(40)))
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.npz"):
            load_npz(path)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        broken = bytearray(whole)
        broken[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        with contextlib.suppress(ValueError):
            load_npz(path)
    np.savez(path, x=np.ones(3))
    with pytest.raises(ValueError, match="is not a sparse matrix"):
        load_npz(path)
    scipy.sparse.save_npz(path, scipy.sparse.eye_array(3).tocsc())
    with pytest.raises(ValueError, match="must hold a csr or bsr matrix, got 'csc'"):
        load_npz(path)
    with pytest.raises(FileNotFoundError):
        load_npz(tmp_path / "none.npz")


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_archives_that_lack_bytes_are_corrupt(cut, tmp_path):
    """Offsets in them lead before the start of the file."""
    path = tmp_path / "a.npz"
    save_npz(path, CSRMatrix.from_dense(np.eye(3)))
    data = path.read_bytes()
    path.write_bytes(data[:4] + data[4 + cut :])
    with pytest.raises(ValueError, match="is not a sparse matrix"):
        load_npz(path)
    np.savez(
        path,
        format=np.array(b"csr"),
        shape=np.array([2, 2]),
        data=np.ones(1),
        indices=np.array([9], np.int32),
        indptr=np.array([0, 1, 1], np.int32),
    )
    with pytest.raises(ValueError, match=r"indices\[0\] is 9"):
        load_npz(path)
    with pytest.raises(TypeError, match="matrix must be a CSRMatrix or BSRMatrix"):
        save_npz(path, np.eye(2))


@pytest.mark.parametrize("n", [1, 8, 64, 100])
def test_adversarial_shapes(n):
    rng = np.random.default_rng(n)
    long = np.zeros((3, 70_000), np.float32)
    long[1] = rng.standard_normal(70_000)
    tall = np.ascontiguousarray(long.T)
    cross = np.zeros((300, 300), np.float32)
    cross[7] = cross[:, 5] = 1
    for w in (long, tall, cross, long[1:2], tall[:, 1:2], np.zeros((0, 4), np.float32),
              np.zeros((4, 0), np.float32), np.zeros((5, 5), np.float32)):  # fmt: skip
        a, theirs = CSRMatrix.from_dense(w), scipy.sparse.csr_array(w)
        x = rng.standard_normal((w.shape[1], n)).astype(np.float32)
        z = rng.standard_normal((w.shape[0], n)).astype(np.float32)
        np.testing.assert_allclose(a @ x, theirs.astype(float) @ x, atol=2e-3, rtol=1e-4)
        np.testing.assert_allclose(a.T @ z, theirs.astype(float).T @ z, atol=2e-3, rtol=1e-4)
        rows, columns = theirs.nonzero()
        truth = np.einsum("pk,pk->p", z[rows].astype(float), x[columns].astype(float))
        np.testing.assert_allclose(sddmm(a, z, x.T), truth, atol=1e-4, rtol=1e-4)


def test_layers_of_blocks_train():
    rng = np.random.default_rng(0)
    mask = np.kron(rng.random((4, 8)) < 0.5, np.ones((4, 4))).astype(bool)
    w = rng.standard_normal(mask.shape) * mask
    layer = cr.nn.SparseLinear(BSRMatrix.from_dense(w, (4, 4)), np.zeros(16))
    x, target = rng.standard_normal((64, 32)), rng.standard_normal((64, 16))
    opt = cr.optim.Adam(layer.params, lr=0.05)
    losses = []
    for _ in range(30):
        error = layer(x) - target
        losses.append((error**2).sum())
        layer.backward(2 * error)
        opt.step(layer.grads)
    assert losses[-1] < 0.8 * losses[0]
    assert not layer.weight.to_dense()[~mask].any()


@given(
    st.sampled_from([(2, 4), (1, 4), (4, 8), (1, 1), (3, 5)]),
    st.tuples(st.integers(0, 9), st.integers(0, 9)),
    st.integers(0, 70),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 2**32),
)
def test_n_of_m(pair, groups, k, dtype, seed):
    n, m = pair
    rng = np.random.default_rng(seed)
    w = rng.integers(-3, 4, (groups[0], groups[1] * m)).astype(dtype)
    a = NMMatrix.from_dense(w, n, m)
    # The n largest magnitudes of each group; of equal ones the last.
    mask = np.zeros(w.shape, bool)
    for row in range(w.shape[0]):
        for left in range(0, w.shape[1], m):
            order = sorted(range(left, left + m), key=lambda c: (-abs(w[row, c]), -c))
            mask[row, order[:n]] = True
    dense = np.where(mask, w, 0)
    np.testing.assert_array_equal(a.to_dense(), dense)
    assert a.nnz == mask.sum()
    assert a.positions.nbytes == a.nnz
    again = NMMatrix.from_dense(w, n, m, mask=mask)
    np.testing.assert_array_equal(again.positions, a.positions)
    np.testing.assert_array_equal(again.data, a.data)
    x = rng.integers(-3, 4, (w.shape[1], k)).astype(dtype)
    z = rng.integers(-3, 4, (k, w.shape[0])).astype(dtype)
    np.testing.assert_array_equal(a @ x, dense @ x)
    np.testing.assert_array_equal(z @ a, z @ dense)
    np.testing.assert_array_equal(x.T @ a.T, x.T @ dense.T)
    gradient = sddmm(a, z.T, x.T)
    assert gradient.shape == a.data.shape
    np.testing.assert_array_equal(gradient.ravel(), (z.T @ x.T)[mask])
    np.testing.assert_array_equal(a.to_csr().to_dense(), dense)
    assert a.to_csr().data.size == 0 or np.shares_memory(a.to_csr().data, a.data)
    np.testing.assert_array_equal(a.astype(np.float64).to_dense(), dense)
    np.testing.assert_array_equal(a.copy().to_dense(), dense)


def test_what_is_not_n_of_m():
    data, positions = np.ones((1, 2)), np.array([[0, 3]], np.uint8)
    assert NMMatrix((data, positions), (1, 4)).data is data
    for bad, message in (
        (np.array([[3, 0]], np.uint8), "positions must ascend in each group and be below 4"),
        (np.array([[0, 4]], np.uint8), "positions must ascend in each group and be below 4"),
        (np.array([[1, 1]], np.uint8), "positions must ascend in each group and be below 4"),
        (positions[:, :1], r"positions must have shape \(1, 2\) for .*, got \(1, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            NMMatrix((data, bad), (1, 4))
    with pytest.raises(TypeError, match="positions must have dtype uint8"):
        NMMatrix((data, positions.astype(int)), (1, 4))
    with pytest.raises(ValueError, match="a multiple of m=4 columns"):
        NMMatrix((data, positions), (1, 5))
    with pytest.raises(ValueError, match="n must be at most m"):
        NMMatrix((data, positions), (1, 4), 5, 4)
    with pytest.raises(ValueError, match="mask must keep 2 of each 4 columns"):
        NMMatrix.from_dense(np.ones((1, 4)), mask=np.ones((1, 4), bool))
    with pytest.raises(ValueError, match="the second a multiple of m=4"):
        NMMatrix.from_dense(np.ones((1, 5)))
    with pytest.raises(ValueError, match="data must be C-contiguous"):
        NMMatrix((np.ones((2, 2)).T[::1, :], np.array([[0, 1]] * 2, np.uint8)), (2, 4))
    a = NMMatrix((data, positions), (1, 4))
    with pytest.raises(ValueError, match="out must be C-contiguous of the shape"):
        sddmm(a, np.ones((1, 3)), np.ones((3, 4)), np.ones(2))
    with pytest.raises(TypeError, match=r"see NMMatrix\.to_csr"):
        save_npz("a.npz", a)


def test_rows_by_their_numbers():
    rng = np.random.default_rng(12)
    dense = rng.standard_normal((9, 7)) * (rng.random((9, 7)) < 0.4)
    dense[4] = 0
    a = cr.sparse.CSRMatrix.from_dense(dense)
    for rows in ([3, 3, -1, 4, 0], np.array([], int), slice(2, None, 3), dense[:, 0] > 0, [8]):
        np.testing.assert_array_equal(a[rows].to_dense(), dense[rows])
        assert not np.shares_memory(a[rows].data, a.data)
    for bad, error in (
        ([9], IndexError),
        ([-10], IndexError),
        ([0.5], TypeError),
        ([[1]], TypeError),
    ):
        with pytest.raises(error):
            a[bad]


@pytest.mark.parametrize("columns", [40_000, 100_000, 2**40])
def test_sums_and_unions_hold_the_columns_of_both(columns):
    small = CSRMatrix((np.ones(2), np.array([5, 7], np.int16), np.array([0, 2, 2])), (2, columns))
    large = CSRMatrix(
        (np.full(2, 2.0), np.array([columns - 1, 3], np.int64), np.array([0, 1, 2])), (2, columns)
    )
    for a, b in ((small, large), (large, small)):
        total = a + b
        assert total.indices.tolist() == a.union(b).indices.tolist() == [5, 7, columns - 1, 3]
        assert total.data.tolist() == [1, 1, 2, 2]

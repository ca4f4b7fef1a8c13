"""CSR matrices against SciPy."""

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given

from compressrs.sparse import CSRMatrix, sddmm

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
    """Batches large enough that each thread gets panels of its own."""
    rng = np.random.default_rng(3)
    w = np.where(rng.random((130, 210)) < 0.1, rng.standard_normal((130, 210)), 0)
    a = CSRMatrix.from_dense(w)
    for batch in (127, 128, 1000):
        x, dy = rng.standard_normal((batch, 210)), rng.standard_normal((batch, 130))
        np.testing.assert_allclose(x @ a.T, x @ w.T, atol=1e-12)
        np.testing.assert_allclose(dy @ a, dy @ w, atol=1e-12)
        # Row by row, so that the panels cannot matter.
        np.testing.assert_array_equal(x @ a.T, np.stack([(a @ r[:, None])[:, 0] for r in x]))


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
        broken = a.copy()
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
    with pytest.raises(ValueError, match="out and X share memory"):
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
    with pytest.raises(TypeError, match="data must have dtype float32 or float64, got int64"):
        CSRMatrix.from_scipy(eye.tocsr().astype(np.int64))
    a = CSRMatrix.from_scipy(eye.tocsr())
    with pytest.raises(TypeError, match="X must have dtype float64 like data"):
        a @ np.ones((3, 2), np.float32)
    with pytest.raises(ValueError, match=r"X must have shape \(3, 2\), got \(4, 2\)"):
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

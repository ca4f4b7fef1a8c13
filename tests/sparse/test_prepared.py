"""What products prepare: the arrays stay what counts, whatever is done to them in between."""

import numpy as np
import pytest

import compressrs as cr


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_products_see_what_is_trained_in_place(rng):
    w = rng.standard_normal((70, 90)) * (rng.random((70, 90)) < 0.2)
    A = cr.sparse.CSRMatrix.from_dense(w)
    for n in (1, 3, 20, 70):
        x, y = rng.standard_normal((90, n)), rng.standard_normal((70, n))
        for _ in range(2):
            np.testing.assert_allclose(A @ x, A.to_dense() @ x, atol=1e-12)
            np.testing.assert_allclose(A.T @ y, A.to_dense().T @ y, atol=1e-12)
            A.data[:] *= -1.5


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64])
def test_products_see_changed_patterns(rng, dtype):
    indices = np.array([0, 2, 1, 3], dtype)
    indptr = np.array([0, 2, 3, 4], np.int64)
    A = cr.sparse.CSRMatrix((np.array([1.0, 2.0, 3.0, 4.0]), indices, indptr), (3, 5))
    for n in (1, 20):
        x, y = rng.standard_normal((5, n)), rng.standard_normal((3, n))
        for places, offsets in (
            ([0, 2, 1, 3], [0, 2, 3, 4]),
            ([4, 2, 1, 3], [0, 2, 3, 4]),
            ([4, 4, 4, 4], [0, 2, 3, 4]),
            ([4, 2, 1, 3], [0, 0, 4, 4]),
        ):
            indices[:], indptr[:] = places, offsets
            np.testing.assert_allclose(A @ x, A.to_dense() @ x, atol=1e-12)
            np.testing.assert_allclose(A.T @ y, A.to_dense().T @ y, atol=1e-12)
        for bad in (5, -1):
            indices[1] = bad
            for product in (lambda x=x: A @ x, lambda y=y: A.T @ y):
                with pytest.raises(ValueError, match=r"indices\[1\]"):
                    product()
        indices[1] = 0
        np.testing.assert_allclose(A @ x, A.to_dense() @ x, atol=1e-12)


def test_nbytes_counts_what_products_prepare(rng):
    w = rng.standard_normal((40, 50)).astype(np.float32)
    A = cr.sparse.CSRMatrix.from_dense(w)
    arrays = A.data.nbytes + A.indices.nbytes + A.indptr.nbytes
    assert A.nbytes == arrays
    x = rng.standard_normal((50, 20)).astype(np.float32)
    y = A @ x
    one = A.nbytes
    assert arrays + 2 * A.nnz <= one <= arrays + 4 * A.nnz
    A.T @ y
    both = A.nbytes
    assert one + 6 * A.nnz <= both <= one + 8 * A.nnz
    assert A @ x is not None and A.nbytes == both
    assert A.copy().nbytes == arrays
    B = A.with_data(2 * A.data)
    assert B.nbytes == both  # shared
    np.testing.assert_array_equal(B @ x, 2 * (A @ x))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 4, 5, 8, 9, 16, 17, 24, 31, 32, 33, 48, 64, 65, 130])
def test_products_of_any_number_of_columns(rng, n, dtype):
    w = rng.standard_normal((333, 517)) * (rng.random((333, 517)) < 0.1)
    w[7:20], w[:, 100:130], w[300] = 0, 0, 1
    A = cr.sparse.CSRMatrix.from_dense(w.astype(dtype))
    x, y = rng.standard_normal((517, n)).astype(dtype), rng.standard_normal((333, n)).astype(dtype)
    atol = 1e-4 if dtype == np.float32 else 1e-12
    for order in "CF":
        a, b = np.asarray(x, order=order), np.asarray(y, order=order)
        np.testing.assert_allclose(A @ a, w @ x, atol=atol)
        np.testing.assert_allclose(A.T @ b, w.T @ y, atol=atol)
        np.testing.assert_allclose(b.T @ A, y.T @ w, atol=atol)
        np.testing.assert_allclose(a.T @ A.T, x.T @ w.T, atol=atol)


def test_more_columns_than_two_bytes_count(rng):
    m, k, nnz = 9, 200_000, 3_000
    places = rng.choice(m * k, nnz, replace=False)
    rows, columns = np.unravel_index(places, (m, k))
    order = np.argsort(rows, kind="stable")  # columns stay in any order
    indptr = np.searchsorted(rows[order], np.arange(m + 1))
    data = rng.standard_normal(nnz)
    A = cr.sparse.CSRMatrix((data, columns[order], indptr), (m, k))
    for n in (1, 3, 20):
        x, y = rng.standard_normal((k, n)), rng.standard_normal((m, n))
        forward, backward = np.zeros((m, n)), np.zeros((k, n))
        np.add.at(forward, rows[order], data[:, None] * x[columns[order]])
        np.add.at(backward, columns[order], data[:, None] * y[rows[order]])
        np.testing.assert_allclose(A @ x, forward, atol=1e-10)
        np.testing.assert_allclose(A.T @ y, backward, atol=1e-10)


def test_structural_zeros_do_not_meet_nan(rng):
    w = np.zeros((50, 60), np.float32)
    w[:, ::2] = rng.standard_normal((50, 30))
    A = cr.sparse.CSRMatrix.from_dense(w)
    for n in (1, 4, 40):
        x = rng.standard_normal((60, n)).astype(np.float32)
        x[1::2] = np.nan
        assert np.isfinite(A @ x).all()
        x[1::2], x[0] = np.inf, np.nan
        assert np.isnan(A @ x).all()

"""Lives of sparse matrices: values changed, patterns replaced, products, files, in any order."""

from __future__ import annotations

import copy
import os
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import compressrs as cr
from compressrs.sparse import BSRMatrix, CSRMatrix, NMMatrix
from tests.lives.common import (
    Life,
    both_profiles,
    digest,
    in_fork,
    pickled,
    refused,
    seeds,
    threads,
)
from tests.reference import sparse as reference

#: Multiples of all blocks, so that every format fits.
SHAPES = [(16, 16), (16, 48), (48, 16), (64, 32)]
INDEX_DTYPES = [np.int16, np.int32, np.int64]
is_csr = precondition(lambda self: isinstance(self.matrix, CSRMatrix))
is_plain = precondition(lambda self: self.plain())


class Matrices(Life):
    """A matrix, and the same one as lists of entries, which the loops of the reference take."""

    matrix: Any = None

    @initialize(
        seed=seeds,
        form=st.sampled_from(["csr", "bsr", "nm"]),
        dtype=st.sampled_from([np.float32, np.float64]),
        density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    )
    def start(self, seed: int, form: str, dtype: Any, density: float) -> None:
        rng = np.random.default_rng(seed)
        shape = SHAPES[seed % len(SHAPES)]
        w = np.where(rng.random(shape) < density, rng.standard_normal(shape), 0).astype(dtype)
        if form == "nm":
            self.take(NMMatrix.from_dense(w, *[(2, 4), (1, 8), (4, 4)][seed % 3]))
        elif form == "bsr":
            self.take(BSRMatrix.from_dense(w, [(4, 4), (1, 16), (16, 1)][seed % 3]))
        else:
            self.take(CSRMatrix.from_dense(w, index_dtype="int16" if seed % 2 else None))

    def take(self, matrix: Any) -> None:
        """Go on with a matrix, and copy what it should be."""
        self.matrix = matrix
        self.data = matrix.data.copy()
        self.indices, self.indptr = matrix.indices.copy(), matrix.indptr.copy()

    def go_on_with(self, matrix: Any) -> None:
        """Go on with a matrix that should be equal, which the invariant compares."""
        assert type(matrix) is type(self.matrix)
        self.matrix = matrix

    def plain(self) -> bool:
        """Whether the matrix is a CSR matrix whose entries ascend and do not repeat."""
        return isinstance(self.matrix, CSRMatrix) and self.matrix.has_canonical_format

    def blocks(self) -> Any:
        """Return the values as the reference takes them: n:m matrices are those of CSR."""
        return self.data.reshape(-1) if isinstance(self.matrix, NMMatrix) else self.data

    def dense(self) -> Any:
        return reference.to_dense(self.blocks(), self.indices, self.indptr, self.matrix.shape)

    def close(self, found: Any, expected: Any) -> None:
        unit = 1e-12 if self.matrix.dtype == np.float64 else 1e-4
        largest = max(1.0, np.abs(expected).max(initial=0))
        np.testing.assert_allclose(found, expected, rtol=0, atol=unit * largest)

    # Changes

    @rule(seed=seeds)
    def change_values(self, seed: int) -> None:
        new = np.random.default_rng(seed).standard_normal(self.data.shape)
        self.matrix.data[...] = new
        self.data[...] = new

    @rule(seed=seeds)
    def train(self, seed: int) -> None:
        if self.matrix.nnz:
            optimizer = cr.optim.SGD(self.matrix.data, lr=0.5)
            gradient = np.random.default_rng(seed).standard_normal(self.data.shape)
            optimizer.step(gradient.astype(self.matrix.dtype))
            self.data -= self.matrix.dtype.type(0.5) * gradient.astype(self.matrix.dtype)

    @rule()
    def convert(self) -> None:
        dtype = np.float32 if self.matrix.dtype == np.float64 else np.float64
        self.data = self.data.astype(dtype)
        self.go_on_with(self.matrix.astype(dtype))

    @rule(how=st.sampled_from([copy.copy, copy.deepcopy, pickled, lambda a: a.copy()]))
    def copied(self, how: Any) -> None:
        self.go_on_with(how(self.matrix))

    @rule(compressed=st.booleans())
    @precondition(lambda self: not isinstance(self.matrix, NMMatrix))
    def save_and_load(self, compressed: bool) -> None:
        path = self.path.with_suffix(".npz")
        cr.sparse.save_npz(path, self.matrix, compressed=compressed)
        self.go_on_with(cr.sparse.load_npz(path))

    @rule()
    @precondition(lambda self: not isinstance(self.matrix, NMMatrix))
    def through_scipy(self) -> None:
        self.go_on_with(type(self.matrix).from_scipy(self.matrix.to_scipy()))

    @rule(kind=st.sampled_from(INDEX_DTYPES), width=st.sampled_from([np.int32, np.int64]))
    @is_csr
    def writable_indices(self, kind: Any, width: Any) -> None:
        arrays = self.matrix.data, self.indices.astype(kind), self.indptr.astype(width)
        self.go_on_with(CSRMatrix(arrays, self.matrix.shape))

    @rule(seed=seeds)
    @precondition(lambda self: isinstance(self.matrix, CSRMatrix) and self.matrix.nnz)
    def change_indices(self, seed: int) -> None:
        """Write other indices, in range, in any order, repeated, into writable arrays."""
        if self.matrix.indices.flags.writeable:
            new = np.random.default_rng(seed).integers(0, self.matrix.shape[1], self.matrix.nnz)
            self.matrix.indices[:] = new
            self.indices[:] = new

    @rule(seed=seeds, wrong=st.sampled_from([-1, 2**14, "shape"]))
    @precondition(lambda self: isinstance(self.matrix, CSRMatrix) and self.matrix.nnz)
    def indices_that_lead_outside_are_refused(self, seed: int, wrong: Any) -> None:
        indices = self.matrix.indices
        if not indices.flags.writeable:
            return
        where = seed % indices.size
        good = indices[where]
        indices[where] = self.matrix.shape[1] if wrong == "shape" else wrong
        rows, columns = self.matrix.shape
        x = np.ones((columns, 3), self.matrix.dtype)
        out = np.ones((rows, 3), self.matrix.dtype)
        for call in (
            lambda: self.matrix.matmul(x, out=out),
            lambda: self.matrix.T @ out,
            lambda: cr.sparse.sddmm(self.matrix, out, x.T),
            self.matrix.to_dense,
            self.matrix.transpose,
            self.matrix.copy,
            self.matrix.to_scipy,
            self.matrix.canonical,
            lambda: cr.sparse.save_npz(self.path, self.matrix),
            lambda: pickled(self.matrix),
        ):
            refused(call, lambda: [out, self.matrix.data])
        indices[where] = good

    @rule()
    @is_csr
    def canonical(self) -> None:
        dense, pattern = self.dense(), self.matrix.pattern()
        found = self.matrix.canonical()
        self.close(found.to_dense(), dense)
        assert (found.pattern() == pattern).all() and found.nnz == pattern.sum()
        self.take(found)

    @rule()
    @is_csr
    def transposed(self) -> None:
        dense = self.dense()
        found = self.matrix.transpose()
        assert found.shape == dense.shape[::-1] and found.has_sorted_indices
        self.close(found.to_dense(), dense.T)
        self.take(found)

    @rule(seed=seeds)
    @is_csr
    def some_rows(self, seed: int) -> None:
        dense = self.dense()
        rows = np.random.default_rng(seed).integers(-len(dense), len(dense), len(dense))
        found = self.matrix[rows]
        self.close(found.to_dense(), dense[rows])
        self.take(found)

    @rule(seed=seeds)
    @is_csr
    def scale(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        r, c = (rng.uniform(0.5, 2, n).astype(self.matrix.dtype) for n in self.matrix.shape)
        dense = self.dense() * r[:, None] * c
        found = self.matrix.scale_rows(r).scale_columns(c)
        self.close(found.to_dense(), dense)
        self.take(found)

    @rule(seed=seeds, operation=st.sampled_from(["union", "intersection", "add", "with_pattern"]))
    @is_plain
    def combine(self, seed: int, operation: str) -> None:
        rng = np.random.default_rng(seed)
        dense, pattern = self.dense(), self.matrix.pattern()
        mask = rng.random(self.matrix.shape) < rng.choice([0.02, 0.3])
        values = rng.standard_normal(mask.shape).astype(self.matrix.dtype)
        other = CSRMatrix.from_dense(values, mask=mask)
        if operation == "add":
            found, expected, kept = self.matrix + other, dense + values * mask, pattern | mask
        elif operation == "with_pattern":
            found, expected, kept = self.matrix.with_pattern(other), dense * mask, mask
        elif operation == "union":
            found, expected, kept = self.matrix.union(other), dense, pattern | mask
        else:
            found, expected, kept = self.matrix.intersection(other), dense * mask, pattern & mask
        self.close(found.to_dense(), expected)
        assert (found.pattern() == kept).all()
        self.take(found)

    @rule(seed=seeds)
    @is_plain
    def rewire(self, seed: int) -> None:
        """Replace the smallest entries by others, with Adam's state of those that stay."""
        rng = np.random.default_rng(seed)
        before, pattern = self.dense(), self.matrix.pattern()
        free = before.size - self.matrix.nnz
        n = min(self.matrix.nnz // 3, free)
        if not self.matrix.nnz or not self.matrix.data.flags.writeable:
            return
        optimizer = cr.optim.Adam(self.matrix.data)
        optimizer.state[0]["exp_avg"][...] = np.arange(1, self.matrix.nnz + 1)
        moments = self.matrix.with_data(optimizer.state[0]["exp_avg"]).to_dense()
        growth = rng.random(before.shape).astype(self.matrix.dtype) - 2 * pattern
        found = cr.prune.rewire(self.matrix, growth.astype(self.matrix.dtype), n, optimizer)
        kept = found.pattern() & pattern
        assert found.nnz == self.matrix.nnz and kept.sum() == found.nnz - n
        np.testing.assert_array_equal(found.to_dense(), np.where(kept, before, 0))
        moved = found.with_data(optimizer.state[0]["exp_avg"]).to_dense()
        np.testing.assert_array_equal(moved, np.where(kept, moments, 0))
        # The smallest are those that left.
        if 0 < kept.sum() < pattern.sum():
            gone = np.abs(before[pattern & ~kept]).max()
            assert gone <= np.abs(before[kept]).min()
        self.take(found)

    # Products

    @rule(seed=seeds, columns=st.sampled_from([0, 1, 2, 8, 17]), relu=st.booleans())
    def products(self, seed: int, columns: int, relu: bool) -> None:
        rng = np.random.default_rng(seed)
        a, dense = self.matrix, self.dense()
        rows = a.shape[0]
        x, y, old = (
            rng.standard_normal((n, columns)).astype(a.dtype) for n in (a.shape[1], rows, rows)
        )
        bias = rng.standard_normal(rows).astype(a.dtype)
        out = old.copy()
        assert a.matmul(x, out=out, bias=bias, relu=relu, accumulate=True) is out
        self.close(out, reference.matmul(dense, x, old, bias, relu))
        self.close(a.T @ y, reference.matmul(dense.T, y))
        self.close(y.T @ a, reference.matmul(dense.T, y).T)
        self.close(x.T @ a.T, reference.matmul(dense, x).T)
        sampled = cr.sparse.sddmm(a, y, x.T)
        expected = reference.sddmm(self.blocks(), self.indices, self.indptr, y, x.T)
        self.close(sampled, expected.reshape(sampled.shape))

    @rule(seed=seeds, n=threads)
    def same_bits_in_a_child_and_for_any_number_of_threads(self, seed: int, n: int) -> None:
        x = np.random.default_rng(seed).standard_normal((self.matrix.shape[1], 9))
        x = x.astype(self.matrix.dtype)
        expected = digest(self.matrix @ x)
        cr.set_num_threads(n)
        assert digest(self.matrix @ x) == expected
        if hasattr(os, "fork"):
            assert in_fork(lambda: digest(self.matrix @ x)) == expected

    @rule(seed=seeds)
    def products_that_are_refused(self, seed: int) -> None:
        a = self.matrix
        x = np.ones((a.shape[1], 2), a.dtype)
        out = np.ones((a.shape[0], 2), a.dtype)
        other = np.float64 if a.dtype == np.float32 else np.float32
        for call in (
            lambda: a.matmul(x[:-1], out=out),
            lambda: a.matmul(x.astype(other), out=out),
            lambda: a.matmul(x, out=out[:-1]),
            lambda: a.matmul(x, out=out, bias=np.ones(a.shape[0] + 1, a.dtype)),
            lambda: cr.sparse.sddmm(a, out, x),
            lambda: cr.sparse.sddmm(a, out, x.T, out=a.data.reshape(-1)[:0]),
        ):
            if a.nnz:
                refused(call, lambda: [out, a.data])

    @invariant()
    def arrays_are_those_expected(self) -> None:
        if self.matrix is None:
            return
        a = self.matrix
        np.testing.assert_array_equal(a.indices, self.indices)
        np.testing.assert_array_equal(a.indptr, self.indptr)
        assert a.nnz == self.data.size and a.dtype == self.data.dtype
        assert a.data.tobytes() == self.data.tobytes()
        self.close(a.to_dense(), self.dense())


@both_profiles
def test_matrices(profile: Any) -> None:
    pytest.importorskip("scipy")
    run_state_machine_as_test(Matrices, settings=profile)  # type: ignore[no-untyped-call]

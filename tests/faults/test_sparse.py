"""Sparse matrices with huge shapes, and with arrays that were broken after construction."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from compressrs.sparse import BSRMatrix, CSRMatrix, carry

# Flat indices of entries beyond the first two rows do not fit into int64.
SHAPE = (5, 2**62 - 1)
ENTRIES = {(0, 0): 1.0, (2, 2): 2.0, (4, 4): 4.0, (4, 2**62 - 2): 8.0}


def matrix(entries: dict[tuple[int, int], float]) -> CSRMatrix:
    keys = sorted(entries)
    counts = np.bincount([row for row, _ in keys], minlength=SHAPE[0])
    indptr = np.concatenate([[0], np.cumsum(counts)])
    indices = np.array([column for _, column in keys], np.int64)
    return CSRMatrix((np.array([entries[key] for key in keys]), indices, indptr), SHAPE)


def entries(a: CSRMatrix) -> dict[tuple[int, int], float]:
    return dict(zip(zip(a.rows().tolist(), a.indices.tolist(), strict=True), a.data, strict=True))


def test_keys_beyond_int64() -> None:
    # Under wrapping arithmetic, (0, 4) and (4, 0) of other entries would have equal keys.
    a = matrix(ENTRIES)
    other = {(row, column): 1.0 for row in range(5) for column in (0, 2, 4, 2**62 - 2)}
    b = matrix(other)
    union = entries(a.union(b))
    assert union.keys() == ENTRIES.keys() | other.keys()
    assert {key: value for key, value in union.items() if value} == ENTRIES
    assert entries(a.intersection(b)) == ENTRIES
    assert entries(a + b) == {key: 1.0 + ENTRIES.get(key, 0.0) for key in other}
    assert entries(a.with_pattern(b, fill=-1.0)) == {k: ENTRIES.get(k, -1.0) for k in other}
    np.testing.assert_array_equal(carry(b.data, b, a, fill=0.0), np.ones(4))


def test_canonical_format_with_keys_beyond_int64() -> None:
    indices = np.array([2**62 - 2, 1, 1, 0, 0, 2**62 - 2, 3], np.int64)
    a = CSRMatrix((np.arange(1.0, 8.0), indices, np.array([0, 3, 3, 3, 3, 7])), SHAPE)
    assert not a.has_canonical_format
    found = a.canonical()
    assert found.has_canonical_format
    assert entries(found) == {
        (0, 1): 5.0,
        (0, 2**62 - 2): 1.0,
        (4, 0): 9.0,
        (4, 3): 7.0,
        (4, 2**62 - 2): 6.0,
    }


@pytest.mark.parametrize("kind", ["csr", "bsr"])
@pytest.mark.parametrize(
    ("part", "value"),
    [("indptr", [0, 3, 1, 2, 4]), ("indptr", [0, 1, 2, 3, 400]), ("indices", [99])],
)
def test_broken_arrays_are_not_handed_on(kind: str, part: str, value: Any) -> None:
    scipy = pytest.importorskip("scipy.sparse")
    w = np.kron(np.eye(4), np.ones((4, 4)))
    a: Any = CSRMatrix.from_dense(w) if kind == "csr" else BSRMatrix.from_dense(w, (4, 4))
    a = type(a)((a.data, a.indices.copy(), a.indptr.copy()), a.shape)
    assert isinstance(a.to_scipy(), scipy.sparray)
    array = getattr(a, part)
    array[: len(value)] = value
    with pytest.raises(ValueError, match=part):
        a.to_scipy()


@pytest.mark.parametrize("kind", ["csr", "bsr"])
def test_to_scipy_says_how_to_install_scipy(kind, monkeypatch):
    dense = np.eye(4)
    matrices = {
        "csr": CSRMatrix.from_dense(dense),
        "bsr": BSRMatrix.from_dense(dense, (4, 4)),
    }
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(ModuleNotFoundError, match="pip install scipy"):
        matrices[kind].to_scipy()

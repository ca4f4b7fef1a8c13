"""Empty arrays in any combination, and numbers of any size, in every kernel."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

import compressrs as cr
from compressrs import _core
from compressrs.sparse.bsr import BLOCKSIZES
from tests.faults import kernels
from tests.optim.test_registry import CLASSES

CASES = {case.name: case for case in kernels.cases(1)}
#: Kernels that refuse empty arrays: means over a batch, and the largest of several classes.
MEANS = {"top_k", "kd_loss", "dist_loss", "hint_loss", "rkd_loss", "attention_loss"}
#: Those whose arrays must fit numbers of the table; they are tried with empty ones below.
FIXED = {"Sparse", "Stepper"}


def emptied(array: np.ndarray) -> list[np.ndarray]:
    """Return the array, and arrays that have no elements along one axis or two."""
    axes = range(array.ndim)
    chosen = [*((axis,) for axis in axes), *itertools.combinations(axes, 2)][:6]
    shapes = [tuple(0 if i in zeros else n for i, n in enumerate(array.shape)) for zeros in chosen]
    return [array, *(np.zeros(shape, array.dtype) for shape in shapes)]


def combinations(case: kernels.Case) -> Iterator[kernels.Case]:
    """Yield the case with its arrays emptied in any combination, those of a shape alike if many."""
    leaves = list(case.leaves())
    choices = [emptied(array) for _, array in leaves]
    sizes = {array.shape: len(choice) for (_, array), choice in zip(leaves, choices, strict=True)}
    if np.prod([len(choice) for choice in choices]) <= 5000:
        picks = itertools.product(*(range(len(choice)) for choice in choices))
    else:
        shapes = list(dict.fromkeys(array.shape for _, array in leaves))
        sizes = {
            array.shape: len(choice) for (_, array), choice in zip(leaves, choices, strict=True)
        }
        of_shapes = itertools.product(*(range(sizes[shape]) for shape in shapes))
        picks = (
            tuple(pick[shapes.index(array.shape)] for _, array in leaves)
            for pick in itertools.islice(of_shapes, 5000)
        )
    for pick in picks:
        given = {
            path: choice[i].copy()
            for (path, _), choice, i in zip(leaves, choices, pick, strict=True)
        }
        if any(pick):
            yield case.replaced(given)


@pytest.mark.parametrize("name", CASES)
def test_empty_arrays_are_taken_or_refused_by_name(name: str) -> None:
    taken = 0
    for case in combinations(CASES[name]):
        try:
            case()
        except (TypeError, ValueError):
            continue
        except RuntimeError as error:
            shapes = {path: array.shape for path, array in case.leaves()}
            raise AssertionError(f"{shapes}: {error}") from error
        taken += 1
    if CASES[name].function.partition(".")[0] not in FIXED:
        assert bool(taken) == (CASES[name].function not in MEANS)


@pytest.mark.parametrize("block", ((1, 1), *BLOCKSIZES))
@pytest.mark.parametrize("shape", [(0, 0), (0, 32), (32, 0), (32, 32)])
def test_sparse_matrices_without_entries(shape: tuple[int, int], block: tuple[int, int]) -> None:
    def make() -> _core.Sparse:
        data = np.zeros((0, *block) if block != (1, 1) else 0)
        indptr = np.zeros(shape[0] // block[0] + 1, np.int32)
        return _core.Sparse((data, np.zeros(0, np.int32), indptr), shape, block)

    a = make()
    a.check()
    assert a.to_dense().shape == shape
    a.transpose()
    a.locate(make())
    a.share(make())
    for columns in (0, 5):
        for transposed, (rows, inner) in ((False, shape), (True, shape[::-1])):
            out = np.full((rows, columns), np.nan)
            a.matmul(transposed, np.ones((inner, columns)), out, (False, np.ones(rows), False))
            assert (out == 1).all()
        u, v = np.ones((shape[0], columns)), np.ones((columns, shape[1]))
        a.sddmm(u, v, np.zeros((0, *block) if block != (1, 1) else 0), False)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4)])
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_steps_of_parameters_without_elements(cls: type, shape: tuple[int, ...]) -> None:
    if cls is cr.optim.Muon and len(shape) != 2:
        pytest.skip("takes matrices only")
    for dtype in (np.float32, np.float64, np.float16):
        params = [np.zeros(shape, dtype), np.ones((2, 2), dtype)]
        opt = cls(params)
        for _ in range(2):
            opt.step([np.zeros_like(p) for p in params], max_grad_norm=1.0, nonfinite="raise")
        assert opt.state[0]["step"] == 2


def numbers(value: object) -> Iterator[object]:
    """Yield other numbers in place of a number, or of one of several."""
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        yield from (0, 1, 3, -1, 2**20, 2**31, 2**62)
    elif isinstance(value, float):
        yield from (0.0, -1.0, 1e300, np.inf, np.nan)
    elif isinstance(value, tuple):
        for i, one in enumerate(value):
            yield from ((*value[:i], other, *value[i + 1 :]) for other in numbers(one))


@pytest.mark.parametrize("name", CASES)
def test_numbers_of_any_size_are_taken_or_refused(name: str) -> None:
    for key, value in CASES[name].arguments.items():
        for other in numbers(value):
            case = CASES[name].replaced({})
            case.arguments[key] = other
            try:
                case()
            except (TypeError, ValueError, OverflowError, MemoryError):
                continue
            except RuntimeError as error:
                raise AssertionError(f"{key} = {other}: {error}") from error

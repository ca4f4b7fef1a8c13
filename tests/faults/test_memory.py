"""What must never reach outside an array's memory, whatever other code does meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import compressrs as cr
from tests.faults import kernels

CASES = {case.name: case for case in kernels.cases(1)}

#: Runs products while another thread writes indices that lead outside.
_RACE = """
import sys, threading, time
import numpy as np, compressrs as cr
from compressrs import _core

rows, block, dtype = 256, tuple(map(int, sys.argv[1].split("x"))), np.dtype(sys.argv[2])
across, down = 256 // block[1], rows // block[0]
each = max(1, across // 4)
indices = np.tile(np.arange(0, 4 * each, 4)[:each] % across, down).astype(dtype)
indptr = np.arange(down + 1, dtype=np.int32) * each
shape = indices.shape if block == (1, 1) else (indices.size, *block)
data = np.ones(shape, np.float32)
matrix = _core.Sparse((data, indices, indptr), (rows, 256), block)
good = indices.copy()
bad = np.random.default_rng(0).integers(-2**15, 2**15, indices.size).astype(dtype)
bad[::3] = np.iinfo(dtype).max
stop = False

def write():
    # Large copies give up the GIL, small ones come between any two calls.
    while not stop:
        indices[::2] = bad[::2]
        time.sleep(1e-4)
        indices[:] = good
        indptr[1:-1] = indptr[-2:0:-1]
        indptr[:] = np.arange(down + 1) * each
        time.sleep(2e-4)

writers = [threading.Thread(target=write) for _ in range(2)]
for writer in writers:
    writer.start()
x, y = np.ones((256, 16), np.float32), np.empty((256, 16), np.float32)
out = np.empty_like(data)
done = failed = 0
end = time.monotonic() + float(sys.argv[3])
calls = [
    lambda: matrix.matmul(False, x, y, (False, None, False)),
    lambda: matrix.matmul(True, x, y, (False, None, False)),
    lambda: matrix.matmul(False, x[:, :1], y[:, :1], (False, None, False)),
    lambda: matrix.sddmm(x, x.T, out, False),
    lambda: matrix.sddmm(x[:, :1], x[:, :1].T, out, False),
    matrix.to_dense,
    matrix.transpose,
    lambda: matrix.locate(matrix),
    matrix.check,
]
while time.monotonic() < end + (0 if done and failed else 30):
    for call in calls:
        try:
            call()
            done += 1
        except (ValueError, RuntimeError):
            failed += 1
stop = True
for writer in writers:
    writer.join()
assert done and failed, (done, failed)
"""


@pytest.mark.parametrize(
    ("block", "dtype"),
    [("1x1", "int32"), ("1x1", "int64"), ("1x1", "int16"), ("4x4", "int32"), ("16x1", "int32")],
)
def test_indices_that_another_thread_writes(block: str, dtype: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _RACE, block, dtype, "0.7"],
        env={
            **os.environ,
            "RUST_BACKTRACE": "0",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


class Liar(np.ndarray):
    """An array whose methods are not to be relied on."""

    def copy(self, *_: Any, **__: Any) -> Any:
        return np.zeros(1, np.int8)

    def astype(self, *_: Any, **__: Any) -> Any:
        return np.zeros(1, np.int8)

    def tobytes(self, *_: Any, **__: Any) -> bytes:
        return b""

    def view(self, *_: Any, **__: Any) -> Any:
        return np.zeros(1, np.int8)

    def reshape(self, *_: Any, **__: Any) -> Any:
        return np.zeros(1, np.int8)

    @property
    def base(self) -> bytes:  # type: ignore[override]
        return b"x" * 10**6

    @property
    def flags(self) -> Any:
        raise RuntimeError("flags")

    def __array_finalize__(self, other: object) -> None:
        raise RuntimeError("an array was made by Python code")


def _liar(array: np.ndarray, strided: bool) -> np.ndarray:
    """Return the array as one of the class, and not contiguous if so wanted."""
    if strided and array.ndim:
        wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
        wide[..., ::2] = array
        array = wide[..., ::2]
    finalize, Liar.__array_finalize__ = Liar.__array_finalize__, lambda *_: None  # type: ignore
    try:
        return np.ndarray.view(array, Liar)
    finally:
        Liar.__array_finalize__ = finalize  # type: ignore[method-assign]


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value.tobytes() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("name", list(CASES))
def test_no_method_of_an_array_is_relied_on(name: str) -> None:
    case = CASES[name]
    for path, array in case.leaves():
        for strided in (False, True):
            truth = case.replaced({})
            value = truth()
            given = case.replaced({path: _liar(array, strided)})
            try:
                found = given()
            except (TypeError, ValueError):
                # Some arrays must be contiguous.
                assert strided, path
                continue
            if not type(value).__module__.startswith("compressrs"):
                assert _plain(found) == _plain(value), path
            for (at, x), (_, y) in zip(given.outputs(), truth.outputs(), strict=True):
                assert np.ndarray.tobytes(x) == np.ndarray.tobytes(y), (path, at)


DTYPES = ["?", "i1", "u1", "i2", "i4", "i8", "u8", "f2", "f4", "f8", "c8", ">f4", ">f8", ">i4", "O"]


@pytest.mark.parametrize("name", list(CASES))
def test_arrays_of_any_dtype_and_shape(name: str) -> None:
    case = CASES[name]
    for path, array in case.leaves():
        wrong = [np.zeros(array.shape, dtype) for dtype in DTYPES if array.dtype != dtype]
        zeros = np.zeros((2, *array.shape), array.dtype)
        wrong += [zeros, zeros[0, :0], zeros[0, :1], zeros.reshape(-1)[:0], zeros.reshape(-1)[0]]
        unaligned = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype)
        wrong.append(unaligned.reshape(array.shape))
        for given in wrong:
            # No panic, no abort, no end of memory; it may be right.
            try:
                case.replaced({path: given})()
            except (TypeError, ValueError):
                continue
            except RuntimeError as error:
                raise AssertionError(f"{path} {given.dtype} {given.shape}") from error


def test_booleans_that_are_other_bytes_than_0_and_1() -> None:
    w = np.arange(1.0, 65.0).reshape(8, 8)
    truth = np.arange(64).reshape(8, 8) % 3 == 0
    mask = np.where(truth, np.array([2, 3, 128, 255] * 16, np.uint8).reshape(8, 8), 0)
    mask = mask.astype(np.uint8).view(np.bool_)
    found = cr.sparse.CSRMatrix.from_dense(w, mask=mask).to_dense()
    np.testing.assert_array_equal(found, np.where(truth, w, 0))
    kernels._core.apply_mask(w, mask, "w")
    np.testing.assert_array_equal(w != 0, truth)


def test_a_pattern_that_claims_to_be_immutable() -> None:
    """Only `bytes` are believed, by NumPy's own record of what an array is a view of."""

    class Claims(np.ndarray):
        base = b"\0" * 1000

    memory = np.array([0, 1, 1], np.int32)
    indices = memory.view(Claims)
    indices.setflags(write=False)
    indptr = np.frombuffer(np.array([0, 2, 3], np.int32).tobytes(), np.int32)
    a = cr.sparse.CSRMatrix((np.ones(3), indices, indptr), (2, 2))
    assert not a._core.is_immutable
    memory[0] = 2**30
    with pytest.raises(ValueError, match="indices must be at least 0"):
        a @ np.ones((2, 3))


def test_arrays_of_a_matrix_keep_their_memory() -> None:
    data, indices = np.ones(3), np.array([0, 1, 1], np.int32)
    indptr = np.array([0, 2, 3], np.int32)
    a = cr.sparse.CSRMatrix((data, indices, indptr), (2, 2))
    for array in (data, indices, indptr):
        with pytest.raises(ValueError, match="cannot resize"):
            array.resize(10**6, refcheck=False)
    np.testing.assert_array_equal(a.to_dense(), [[1, 1], [0, 1]])
    indices.shape = (3, 1)
    with pytest.raises(ValueError, match="indices must have 1 axis"):
        a @ np.ones((2, 2))
    # Where the pattern is immutable, its arrays may be reshaped: nobody looks at them.
    b = a.__class__.from_dense(np.eye(4))
    b.indices.shape = (4, 1)
    np.testing.assert_array_equal(b @ np.ones(4), np.ones(4))


class Tensor:
    """A gradient that runs code when it is looked at."""

    def __init__(self, value: np.ndarray, code: Any) -> None:
        self.value, self.code = value, code

    def detach(self) -> np.ndarray:
        self.code()
        return self.value


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}])
def test_gradients_whose_code_changes_arrays(options: dict[str, Any]) -> None:
    def reshape(array: np.ndarray) -> Any:
        def code() -> None:
            array.shape = (100, 100)

        return code

    for victim in ("param", "grad"):
        params = [np.zeros(10_000, np.float32), np.zeros(10_000, np.float32)]
        grads: list[Any] = [np.ones(10_000, np.float32), np.ones(10_000, np.float32)]
        opt = cr.optim.AdamW(params, lr=0.1)
        target = params[0] if victim == "param" else grads[0]
        with pytest.raises(ValueError, match=r"reshaped|shape"):
            opt.step([grads[0], Tensor(grads[1], reshape(target))], **options)
        assert not params[0].any()
        assert not params[1].any()
    for size in (0, 10**6):
        params = [np.zeros(10_000, np.float32), np.zeros(10_000, np.float32)]
        first = np.ones(10_000, np.float32)
        opt = cr.optim.AdamW(params, lr=0.1)

        def resize(array: np.ndarray, size: int = size) -> Any:
            return lambda: array.resize(size, refcheck=False)

        with pytest.raises(ValueError, match="resize"):
            opt.step([first, Tensor(np.ones(10_000, np.float32), resize(params[0]))], **options)
        with pytest.raises(ValueError, match="shape"):
            opt.step([first, Tensor(np.ones(10_000, np.float32), resize(first))], **options)
        assert not params[0].any()


def test_overlap_is_found_for_each_size_of_element() -> None:
    """Disjoint as float16 is not disjoint as float32, though both begin at one place."""
    n = 1000
    memory = np.zeros(3 * n, np.float32)
    opt = cr.optim.SGD([memory[n : 2 * n]], lr=0.1)
    half = memory[n // 2 : n].view(np.float16)
    assert half.size == n
    opt.step([half])
    single = memory[n // 2 : n // 2 + n]
    with pytest.raises(ValueError, match="shares memory"):
        opt.step([single])
    opt.step([half])

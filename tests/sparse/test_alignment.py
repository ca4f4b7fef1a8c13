"""New results of products, which begin with a line of the cache where they are large."""

import numpy as np
import pytest

import compressrs as cr
from compressrs._arrays import empty_aligned


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(0,), (3, 0), (5, 7), (300, 100), (40_000,)])
def test_large_arrays_begin_with_a_line(shape, order):
    for dtype in map(np.dtype, (np.float16, np.float32, np.float64)):
        x = empty_aligned(shape, dtype, order)
        assert (x.shape, x.dtype, x.flags.writeable) == (shape, dtype, True)
        assert x.flags.c_contiguous if order == "C" else x.flags.f_contiguous
        assert x.nbytes < 64 * 1024 or x.__array_interface__["data"][0] % 64 == 0


@pytest.mark.parametrize("columns", [1, 3, 70, 129])
def test_products_do_not_depend_on_where_the_result_begins(columns):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((320, 200)).astype(np.float32)
    a = cr.sparse.CSRMatrix.from_dense(w, threshold=1.0)
    x = rng.standard_normal((200, columns)).astype(np.float32)
    threads = cr.get_num_threads()
    try:
        for count in (1, 2, 3):
            cr.set_num_threads(count)
            new = a @ x
            for start in (0, 4, 16):
                memory = np.empty(new.nbytes + 128, np.uint8)
                begin = start - memory.__array_interface__["data"][0] % 64 + 64
                out = memory[begin : begin + new.nbytes].view(np.float32).reshape(new.shape)
                assert np.array_equal(a.matmul(x, out=out), new)
    finally:
        cr.set_num_threads(threads)

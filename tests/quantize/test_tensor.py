"""Schemes, rounding to the nearest, quantized tensors."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

import compressrs as cr
from compressrs.quantize import QuantizedTensor, Scheme, parameters, quantize
from tests.reference import quantize as reference

SCHEMES = [
    *(Scheme(bits=b) for b in range(2, 9)),
    Scheme(bits=8, symmetric=False),
    Scheme(bits=3, symmetric=False, granularity="tensor"),
    Scheme(bits=4, granularity="group", group_size=32),
    Scheme(bits=4, symmetric=False, granularity="group", group_size=7, dtype="uint"),
    Scheme(bits=5, granularity="block", group_size=(3, 5), dtype="uint"),
    Scheme(bits=8, granularity="block", group_size=16),
    Scheme(dtype="nf4", granularity="group", group_size=64),
    Scheme(dtype="nf4", granularity="tensor"),
    Scheme(dtype="fp8_e4m3"),
    Scheme(dtype="fp8_e5m2", granularity="block", group_size=(2, 8)),
]
SHAPES = [(1,), (5,), (7, 1), (3, 64), (6, 33), (2, 3, 3, 3), (1, 9000), (70, 130)]
DTYPES = ["f4", "f8", "f2", ml_dtypes.bfloat16]


def weights(shape, dtype="f4", seed=0):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(shape) * np.exp2(rng.integers(-4, 4, shape))
    return w.astype(dtype)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_rounding_to_the_nearest_is_that_of_the_reference(scheme, dtype):
    for shape in SHAPES:
        w = weights(shape, dtype)
        q = quantize(w, scheme)
        codes, scale, zero, y = reference.quantize(w, scheme)
        np.testing.assert_array_equal(q.scale, scale)
        assert q.codes.dtype == scheme.code_dtype and q.scale.dtype == scale.dtype
        np.testing.assert_array_equal(q.codes, codes)
        if scheme.has_zero_point:
            np.testing.assert_array_equal(q.zero_point, zero)
        else:
            assert q.zero_point is None
        back = q.dequantize()
        assert back.dtype == w.dtype and back.shape == w.shape
        np.testing.assert_array_equal(back, y)


def test_halves_go_to_the_even_code_and_ends_are_clamped():
    w = np.array([[7.5, 0.5, 1.5, 2.5, -0.5, -1.5, -7.5]], np.float32)
    q = quantize(w, Scheme(bits=4))
    assert q.scale == 1 and q.codes.tolist() == [[7, 0, 2, 2, 0, -2, -8]]
    q = quantize(w, Scheme(bits=4), scale=np.full((1, 1), 0.5, np.float32))
    assert q.codes.tolist() == [[7, 1, 3, 5, -1, -3, -8]]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_zeros_constants_and_tiny_values(scheme):
    rows = [0.0, 1.0, -3.0, 1e-45, -1e-39, 3e38]
    w = np.array([[x] * 20 for x in rows], np.float32)
    if scheme.granularity in ("tensor", "block"):
        w = w[:3]
    q = quantize(w, scheme)
    assert (q.scale >= np.finfo(np.float32).smallest_normal).all()
    back = q.dequantize()
    assert np.isfinite(back).all() and (back[0] == 0).all()
    _, _, _, y = reference.quantize(w, scheme)
    np.testing.assert_array_equal(back, y)


def test_a_range_that_overflows():
    big = np.finfo(np.float32).max
    w = np.array([[-big, big, 0.0]], np.float32)
    for scheme in SCHEMES[:9]:
        q = quantize(w, scheme)
        assert np.isfinite(q.scale).all() and q.dequantize()[0, 2] == 0


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (2, 0, 3)])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_empty_arrays(shape, scheme):
    q = quantize(np.zeros(shape, np.float32), scheme)
    assert q.shape == shape and q.dequantize().shape == shape
    assert q.scale.shape == scheme.scale_shape(shape)


def test_views_are_read_as_they_are():
    w = weights((40, 60))
    q = quantize(w[::2, ::-1], SCHEMES[9])
    np.testing.assert_array_equal(q.codes, quantize(w[::2, ::-1].copy(), SCHEMES[9]).codes)


def test_threads_do_not_change_bits():
    w = weights((512, 1024))
    before = cr.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            cr.set_num_threads(threads)
            qs = [quantize(w, scheme) for scheme in SCHEMES[7:]]
            results.append(
                [(q.codes.tobytes(), q.scale.tobytes(), q.dequantize().tobytes()) for q in qs]
            )
    finally:
        cr.set_num_threads(before)
    assert results[0] == results[1] == results[2]


def test_sizes():
    w = np.zeros((256, 512), np.float32)
    q = quantize(w, Scheme(bits=4, granularity="group", group_size=128))
    assert q.nbytes == w.size // 2 + 4 * w.size // 128
    assert quantize(w, Scheme()).nbytes == w.size + 4 * 256
    asymmetric = Scheme(bits=4, symmetric=False, dtype="uint")
    assert quantize(w, asymmetric).nbytes == w.size // 2 + 256 * 4 + 128


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_rows_are_those_of_the_whole(scheme):
    w = weights((9, 4, 5))
    q = quantize(w, scheme)
    whole = q.dequantize()
    for index in ([], [3], [8, 0, -1], [[1, 2], [2, 1]], 4):
        index = np.array(index, int)
        np.testing.assert_array_equal(q.rows(index), whole[index])
    out = np.empty((2, 4, 5), np.float32)
    assert q.rows([1, 7], out=out).base is not None
    np.testing.assert_array_equal(out, whole[[1, 7]])
    with pytest.raises(IndexError):
        q.rows([9])
    with pytest.raises(TypeError, match="indices"):
        q.rows([0.5])


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_copies_and_pickles_have_the_same_bits(scheme):
    q = quantize(weights((6, 33), "f8"), scheme)
    for other in (q.copy(), copy.copy(q), copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert other.scheme == q.scheme and other.dtype == q.dtype
        np.testing.assert_array_equal(other.dequantize(), q.dequantize())
    other = q.copy()
    other.codes[...] = 0
    other.scale[...] = 1
    assert (q.dequantize() != other.dequantize()).any()


def test_columns_sorted_into_groups():
    rng = np.random.default_rng(0)
    index = rng.permutation(np.arange(10) // 4)
    scheme = Scheme(bits=8, granularity="group", group_size=4)
    codes = rng.integers(-128, 128, (3, 10)).astype(np.int8)
    scale = rng.uniform(0.5, 2, (3, 3)).astype(np.float32)
    q = QuantizedTensor(codes, scale, scheme=scheme, group_index=index)
    np.testing.assert_array_equal(q.dequantize(), codes * scale[:, index])
    np.testing.assert_array_equal(q.rows([2, 0]), (codes * scale[:, index])[[2, 0]])
    assert q.nbytes == 30 + 36 + 40
    with pytest.raises(ValueError, match="group_index"):
        QuantizedTensor(codes, scale, scheme=scheme, group_index=np.zeros(10, int))
    with pytest.raises(ValueError, match="group_index"):
        QuantizedTensor(codes, scale[:, :1], scheme=Scheme(), group_index=index)


def test_codebooks():
    codes = np.array([[0, 1, 3], [2, 2, 0]], np.uint8)
    codebook = np.array([[-1, 0, 1, 5], [0, 0.5, 2, 2]], np.float32)
    scheme = Scheme(bits=2, dtype="codebook")
    ones = np.ones((2, 1), np.float32)
    q = QuantizedTensor(codes, ones, scheme=scheme, codebook=codebook)
    assert q.dequantize().tolist() == [[-1, 0, 5], [2, 2, 0]]
    assert q.rows([1]).tolist() == [[2, 2, 0]]
    assert q.nbytes == 2 + 2 * 4 * 4
    with pytest.raises(ValueError, match="finite"):
        QuantizedTensor(codes, ones, scheme=scheme, codebook=codebook + np.inf)
    with pytest.raises(ValueError, match="codebook"):
        QuantizedTensor(codes, ones, scheme=scheme)
    with pytest.raises(ValueError, match="codes"):
        QuantizedTensor(codes, ones, scheme=scheme, codebook=codebook[:, :3])


def test_dequantize_writes_where_it_is_told():
    q = quantize(weights((4, 5)), Scheme())
    out = np.empty((4, 5), np.float32)
    assert q.dequantize(out=out) is out
    np.testing.assert_array_equal(out, q.dequantize())
    for bad in (np.empty((4, 5)), np.empty((5, 4), "f4"), np.empty((5, 4), "f4").T, [1]):
        with pytest.raises((TypeError, ValueError), match="out"):
            q.dequantize(out=bad)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out"):
        q.dequantize(out=out)


@pytest.mark.parametrize(
    ("scheme", "bad"),
    [
        (Scheme(bits=4), 8),
        (Scheme(bits=3), -5),
        (Scheme(bits=4, dtype="uint"), 16),
        (Scheme(dtype="nf4"), 16),
        (Scheme(dtype="fp8_e4m3"), 0x7F),
        (Scheme(dtype="fp8_e5m2"), 0xFC),
    ],
)
def test_codes_tampered_with_are_refused(scheme, bad):
    q = quantize(weights((4, 5)), scheme)
    q.codes[2, 3] = bad
    out = np.full((4, 5), 7, np.float32)
    with pytest.raises(ValueError, match="codes"):
        q.dequantize(out=out)
    assert (out == 7).all()
    with pytest.raises(ValueError, match="codes"):
        QuantizedTensor(q.codes, q.scale, q.zero_point, scheme=scheme)


@pytest.mark.parametrize(
    "arguments",
    [
        dict(bits=1), dict(bits=9), dict(bits=0), dict(bits=2.0), dict(bits="4"),
        dict(dtype="int4"), dict(dtype=None), dict(bits=8, dtype="nf4"),
        dict(symmetric=1), dict(symmetric=False, dtype="nf4"),
        dict(granularity="row"), dict(granularity="group"), dict(group_size=32),
        dict(granularity="group", group_size=0), dict(granularity="group", group_size=1.5),
        dict(granularity="group", group_size=(1, 2)),
        dict(granularity="block", group_size=(1, 2, 3)),
        dict(bits=9, dtype="codebook"),
    ],
    ids=str,
)  # fmt: skip
def test_schemes_that_do_not_exist(arguments):
    with pytest.raises((TypeError, ValueError), match="|".join(arguments)):
        Scheme(**arguments)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_what_is_not_finite_is_refused(scheme, bad):
    w = weights((70, 130))
    w[69, 129] = bad
    with pytest.raises(ValueError, match="w must be finite"):
        quantize(w, scheme)


def test_scales_and_zero_points_that_are_refused():
    w = weights((3, 4))
    for bad in (0.0, -1.0, np.nan, np.inf, 1e-39):
        with pytest.raises(ValueError, match="scale"):
            quantize(w, Scheme(), scale=np.full((3, 1), bad, np.float32))
    with pytest.raises(ValueError, match="shape"):
        quantize(w, Scheme(), scale=np.ones(3, np.float32))
    with pytest.raises(TypeError, match="scale"):
        quantize(w, Scheme(), scale=np.ones((3, 1), int))
    ones = np.ones((3, 1), np.float32)
    scheme = Scheme(bits=4, dtype="uint")
    for bad in (np.full((3, 1), 16, np.uint8), np.full((3, 1), -1), np.zeros((1, 1), np.uint8)):
        with pytest.raises(ValueError, match="zero_point"):
            quantize(w, scheme, scale=ones, zero_point=bad)
    with pytest.raises(ValueError, match="zero_point"):
        quantize(w, scheme, scale=ones)
    with pytest.raises(ValueError, match="zero_point"):
        quantize(w, scheme, zero_point=np.zeros((3, 1), np.uint8))
    with pytest.raises(ValueError, match="zero_point"):
        quantize(w, Scheme(), scale=ones, zero_point=np.zeros((3, 1), np.int8))
    with pytest.raises(TypeError, match="zero_point"):
        quantize(w, scheme, scale=ones, zero_point=ones)


@pytest.mark.parametrize(
    "w",
    [
        1.0,
        np.float32(1),
        [[1.0]],
        np.ones((2, 2), int),
        np.ones(2, "c8"),
        "a",
        None,
        np.ones(2, np.longdouble),
    ],
)
def test_what_is_no_weight_is_refused(w):
    with pytest.raises((TypeError, ValueError), match="w must"):
        quantize(w, Scheme())
    with pytest.raises(TypeError, match="scheme"):
        quantize(np.ones((2, 2)), "int8")


def test_scales_of_ranges():
    low, high = np.array([[-1.0, 0.5]]), np.array([[2.0, 1.0]])
    for scheme in SCHEMES:
        scale, zero = parameters(low, high, scheme)
        for j in range(2):
            s, z = reference.parameters(low[0, j], high[0, j], scheme, np.float64)
            assert scale[0, j] == s and (zero is None or zero[0, j] == z)
    for bad in (
        (high, low),
        (low.ravel(), high.ravel()),
        (low, high.astype("f4")),
        (low, high * np.inf),
    ):
        with pytest.raises((TypeError, ValueError)):
            parameters(*bad, SCHEMES[0])


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2"])
@pytest.mark.parametrize("arguments", [{}, {"symmetric": False}, {"dtype": "uint"}])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_largest_numbers_stay_finite(dtype, arguments, bits):
    most = np.finfo(dtype).max
    for ends in ([most, -most], [most / 2, -most], [most, 0], [-most, -most]):
        x = np.array([[*ends, 0, most / 3]], dtype)
        with np.errstate(over="ignore"):
            y = quantize(x, Scheme(bits=bits, **arguments)).dequantize()
        assert np.isfinite(y).all()
        assert np.abs(y / 2 - x / 2).max() <= most / (2**bits - 1)

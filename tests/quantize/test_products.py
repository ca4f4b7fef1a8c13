"""Products with quantized weights against tests/reference."""

import copy
import dataclasses
import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import compressrs as cr
from compressrs.quantize import QuantizedMatrix, matmul_integer
from tests.reference import quantize_products as reference

#: Batch, outputs, inputs, group size.
SHAPES = [
    (0, 3, 5, 5),
    (3, 0, 5, 5),
    (2, 3, 0, 1),
    (1, 1, 1, 1),
    (1, 64, 64, 32),
    (2, 17, 33, 33),
    (3, 65, 100, 7),
    (4, 130, 257, 64),
    (5, 40, 1000, 1000),
    (8, 16, 384, 128),
    (67, 70, 300, 36),
    (130, 33, 513, 513),
]


def weights(rng, shape, group, bits, signed, *, zeros=True):
    """Codes with many extremes, scales, and zero points that are any codes."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    dtype = np.int8 if signed else np.uint8
    codes = rng.integers(low, high + 1, shape)
    extreme = rng.random(shape)
    codes = np.where(extreme < 0.3, low, np.where(extreme < 0.6, high, codes)).astype(dtype)
    groups = (shape[0], -(-shape[1] // group))
    scale = (rng.random(groups) + 0.01).astype(np.float32)
    zero = rng.integers(low, high + 1, groups).astype(dtype) if zeros else None
    return codes, scale, zero


def activations(rng, batch, inputs):
    x = rng.standard_normal((batch, inputs)).astype(np.float32)
    if batch > 2 and inputs:
        x[1] = 0
        x[2] *= np.float32(1e-42)
    return x


def packed(codes, scale, zero, bits, group, **options):
    return QuantizedMatrix.from_codes(codes, scale, zero, bits=bits, group_size=group, **options)


@pytest.mark.parametrize(("batch", "outputs", "inputs", "group"), SHAPES)
@pytest.mark.parametrize("bits", range(2, 9))
def test_int8_activations(batch, outputs, inputs, group, bits):
    rng = np.random.default_rng(bits)
    for signed in (True, False):
        w = weights(rng, (outputs, inputs), group, bits, signed, zeros=not signed or bits == 5)
        matrix = packed(*w, bits, group)
        x, bias = activations(rng, batch, inputs), rng.standard_normal(outputs).astype(np.float32)
        product = reference.integer_linear(*reference.dynamic_codes(x), *w, group)
        np.testing.assert_array_equal(matrix.linear(x, input="int8"), product)
        y = matrix.linear(x, bias, "relu", "int8")
        np.testing.assert_array_equal(y, reference.finish(product, bias, "relu"))
        got = matrix.linear(x, bias, "gelu", "int8")
        expected = reference.finish(product, bias, "gelu")
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(("batch", "outputs", "inputs", "group"), SHAPES)
@pytest.mark.parametrize("bits", [2, 4, 7, 8])
def test_float32_activations(batch, outputs, inputs, group, bits):
    rng = np.random.default_rng(bits)
    x, bias = activations(rng, batch, inputs), rng.standard_normal(outputs).astype(np.float32)
    options = [{}]
    if bits <= 4:
        options.append({"levels": rng.standard_normal(2**bits).astype(np.float32)})
    for option in options:
        codes, scale, zero = weights(rng, (outputs, inputs), group, bits, False)
        if option:
            zero = None
        matrix = packed(codes, scale, zero, bits, group, **option)
        expected = reference.float_linear(x, codes, scale, zero, group, **option)
        bound = reference.float_linear(abs(x), codes, scale, None, group).max(initial=0)
        tolerance = {"rtol": 1e-5, "atol": 1e-5 * max(bound, 1e-30)}
        np.testing.assert_allclose(matrix.linear(x), expected, **tolerance)
        y = matrix.linear(x, bias, "relu")
        np.testing.assert_allclose(y, reference.finish(expected, bias, "relu"), **tolerance)
        # A row does not depend on those beside it.
        for row in range(0, batch, 13):
            np.testing.assert_array_equal(
                matrix.linear(x[row : row + 1], bias, "relu"), y[row : row + 1]
            )


def test_the_largest_sums():
    # All products of the largest magnitude and of one sign, on every path of the kernels.
    for inputs in (4, 64, 1000, 65_536):
        x = np.full((2, inputs), -128, np.int8)
        x[1] = 127
        scale = np.ones(2, np.float32)
        for bits, signed in [(8, True), (8, False), (4, True), (4, False)]:
            dtype = np.int8 if signed else np.uint8
            for code in (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1):
                codes = np.full((3, inputs), code, dtype)
                matrix = packed(codes, np.ones((3, 1), np.float32), None, bits, inputs)
                y = matrix.linear(x, input="int8", input_scale=scale)
                exact = x.astype(np.int64).sum(axis=1) * code
                np.testing.assert_array_equal(
                    y, np.repeat(exact, 3).reshape(2, 3).astype(np.float32)
                )


def test_longer_rows_than_a_sum_can_hold():
    inputs = 150_000
    x = np.full((1, inputs), 1.0, np.float32)
    codes = np.full((2, inputs), 255, np.uint8)
    matrix = QuantizedMatrix.from_codes(codes, np.float32(0.5))
    np.testing.assert_allclose(matrix.linear(x, input="int8"), inputs * 255 * 0.5, rtol=1e-6)
    assert matrix.scale.shape == (2, 1)
    again = pickle.loads(pickle.dumps(matrix))
    np.testing.assert_array_equal(again.linear(x), matrix.linear(x))
    with pytest.raises(ValueError, match="group_size must be at most 65536"):
        QuantizedMatrix.from_codes(codes, np.ones((2, 2), np.float32), group_size=100_000)


@pytest.mark.parametrize("kinds", [("i1", "i1"), ("i1", "u1"), ("u1", "i1"), ("u1", "u1")])
def test_matmul_integer(kinds):
    rng = np.random.default_rng(0)
    for m, k, n in [(0, 3, 2), (3, 0, 2), (2, 3, 0), (1, 1, 1), (5, 33, 17), (70, 300, 100)]:
        a, b = (
            rng.choice(np.array([info.min, info.max, 3]), shape).astype(kind)
            for kind, shape in zip(kinds, [(m, k), (k, n)], strict=True)
            for info in [np.iinfo(kind)]
        )
        exact = a.astype(np.int64) @ b.astype(np.int64)
        got = matmul_integer(a, b)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, exact)
        out = np.empty((m, n), np.int32)
        assert matmul_integer(a.copy("F"), b[::-1][::-1], out) is out
        np.testing.assert_array_equal(out, exact)
    limit = (2**31 - 1) // (np.prod([128 if kind == "i1" else 255 for kind in kinds]))
    a, b = (np.full((limit, 1), -128 if kind == "i1" else 255).astype(kind) for kind in kinds)
    exact = limit * int(a[0, 0]) * int(b[0, 0])
    assert matmul_integer(a.T, b)[0, 0] == exact
    longer = np.zeros((1, limit + 1), kinds[0]), np.zeros((limit + 1, 1), kinds[1])
    with pytest.raises(ValueError, match=f"a must have at most {limit} columns"):
        matmul_integer(*longer)


def test_static_activations_and_int8_output():
    rng = np.random.default_rng(0)
    w = weights(rng, (50, 70), 32, 8, True)
    matrix = packed(*w, 8, 32)
    x = rng.integers(-128, 128, (9, 70)).astype(np.int8)
    scale = rng.random(9).astype(np.float32)
    expected = reference.integer_linear(x, scale, *w, 32)
    got = matrix.linear(x, input="int8", input_scale=scale)
    np.testing.assert_array_equal(got, expected)
    for step, zero in [(30.0, 0), (1e-3, -128), (1e6, 127), (77.7, 5)]:
        y = matrix.linear(
            x, input="int8", input_scale=scale, output_scale=step, output_zero_point=zero
        )
        assert y.dtype == np.int8
        np.testing.assert_array_equal(y, reference.requantize(expected, step, zero))
    # Its output is the next one's input.
    square = QuantizedMatrix.from_codes(np.eye(50, dtype=np.int8), np.float32(1))
    again = square.linear(y, input="int8", input_scale=77.7)
    np.testing.assert_array_equal(again, y * np.float32(77.7))


def test_quotients_near_ties_are_rounded_as_numpy_does():
    # Around each half of the scale, above and below by a few units in the last place.
    halves = np.arange(-126.5, 127, dtype=np.float32)
    eye = np.eye(1 + 9 * halves.size, dtype=np.int8)
    matrix = QuantizedMatrix.from_codes(eye, 1.0)
    largest = np.float32([127, 127 / 3, 0.1, 1e-20, 1e-33, 1e33])
    rows = []
    for scale in largest / np.float32(127):
        middle = halves * scale
        near = [middle.view(np.int32) + step for step in range(-4, 5)]
        rows.append(np.concatenate([[scale * 127], np.concatenate(near).view(np.float32)]))
    x = np.array(rows, np.float32)
    codes, scale = reference.dynamic_codes(x)
    assert len(np.unique(codes)) == 255
    y = matrix.linear(x, input="int8")
    np.testing.assert_array_equal(y, codes.astype(np.float32) * scale[:, None])


def test_rows_that_are_not_finite():
    matrix = QuantizedMatrix.from_codes(np.ones((20, 8), np.int8), np.float32(1))
    for bad in (np.nan, np.inf, -np.inf):
        x = np.ones((3, 8), np.float32)
        x[1, 5] = bad
        y = matrix.linear(x, activation="relu", input="int8")
        assert np.isnan(y[1]).all()
        assert (y[[0, 2]] == 8).all()
        out = np.full((3, 20), 7, np.int8)
        for kind in ("float32", "int8"):
            with pytest.raises(ValueError, match="x must be finite"):
                matrix.linear(x, input=kind, output_scale=1.0, out=out)
            with pytest.raises(ValueError, match="bias must be finite"):
                bias = np.full(20, bad, np.float32)
                matrix.linear(x[:1], bias, input=kind, output_scale=1.0, out=out[:1])
        assert (out == 7).all()


def test_scale_below_the_normal_range():
    x = (np.array([[1, -190, 100]]) * 2.0**-149).astype(np.float32)
    codes = np.array([[1, 0, 0], [0, 1, 0]], np.int8)
    matrix = QuantizedMatrix.from_codes(codes, np.float32(1))
    expected = reference.integer_linear(
        *reference.dynamic_codes(x), codes, np.ones((2, 1), np.float32), None, 3
    )
    np.testing.assert_array_equal(matrix.linear(x, input="int8"), expected)


def test_copies_are_private():
    rng = np.random.default_rng(0)
    codes, scale, zero = weights(rng, (30, 50), 16, 4, True)
    before = codes.copy(), scale.copy(), zero.copy()
    matrix = packed(codes, scale, zero, 4, 16)
    x = activations(rng, 4, 50)
    y, z = matrix.linear(x), matrix.linear(x, input="int8")
    codes[:], scale[:], zero[:] = 7, np.nan, 0
    np.testing.assert_array_equal(matrix.linear(x), y)
    for got, had in zip((matrix.codes, matrix.scale, matrix.zero_point), before, strict=True):
        np.testing.assert_array_equal(got, had)
    for again in (copy.copy(matrix), copy.deepcopy(matrix), pickle.loads(pickle.dumps(matrix))):
        np.testing.assert_array_equal(again.linear(x), y)
        np.testing.assert_array_equal(again.linear(x, input="int8"), z)
        assert (again.shape, again.nbytes) == (matrix.shape, matrix.nbytes)
    # 32 padded channels, 4 groups: 26 lines a panel at most, scales, zeros.
    assert matrix.nbytes == 2 * 7 * 64 + 32 * 4 * (4 + 1)
    levels = np.arange(16, dtype=np.float32)
    matrix = packed(abs(before[0]).astype(np.uint8), before[1], None, 4, 16, levels=levels)
    levels[:] = 0
    again = pickle.loads(pickle.dumps(matrix))
    np.testing.assert_array_equal(again.linear(x), matrix.linear(x))
    assert again.linear(x).any()


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A scheme with blocks of any shape."""

    bits: int = 8
    dtype: str = "int"
    granularity: str = "block"
    size: tuple[int, int] = (1, 1)

    def matrix(self, shape):
        return shape[0], int(np.prod(shape[1:]))

    def block(self, shape):
        return self.matrix(shape) if self.granularity == "tensor" else self.size


@dataclasses.dataclass
class Tensor:
    """What QuantizedMatrix takes of a quantized tensor."""

    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray | None = None
    scheme: Blocks = Blocks()
    codebook: np.ndarray | None = None
    group_index: np.ndarray | None = None
    dtype: type = np.float32

    def dequantize(self):
        assert self.scheme.dtype == "nf4"
        return (NF4[self.codes] * self.scale).astype(self.dtype)


NF4 = np.linspace(-1, 1, 16, dtype=np.float32) ** 3


def test_tensors():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 24)).astype(np.float32)
    # Blocks of 3 rows by 5 columns, of a tensor with three axes.
    codes = rng.integers(-128, 128, (7, 4, 6)).astype(np.int8)
    scale = rng.random((3, 5))
    zero = rng.integers(-128, 128, (3, 5)).astype(np.int8)
    q = Tensor(codes, scale, zero, Blocks(size=(3, 5)))
    rows = np.arange(7) // 3
    w = codes.reshape(7, 24), scale.astype(np.float32)[rows], zero[rows]
    expected = reference.integer_linear(*reference.dynamic_codes(x), *w, 5)
    np.testing.assert_array_equal(QuantizedMatrix(q).linear(x, input="int8"), expected)
    # One scale for all.
    q = Tensor(codes, scale[:1, :1], None, Blocks(granularity="tensor"))
    w = w[0], np.repeat(scale[:1, :1], 7, axis=0).astype(np.float32), None
    expected = reference.integer_linear(*reference.dynamic_codes(x), *w, 24)
    np.testing.assert_array_equal(QuantizedMatrix(q).linear(x, input="int8"), expected)
    # Groups of columns that are not neighbours.
    groups = rng.permutation(np.arange(24) // 5).astype(np.int32)
    scale = rng.random((7, 5)).astype(np.float32)
    q = Tensor(codes.reshape(7, 24), scale, None, Blocks(size=(1, 5)), group_index=groups)
    matrix = QuantizedMatrix(q)
    dense = codes.reshape(7, 24) * scale[:, groups]
    for again in (matrix, pickle.loads(pickle.dumps(matrix))):
        np.testing.assert_allclose(again.linear(x), x @ dense.T, rtol=1e-5, atol=1e-3)
        np.testing.assert_array_equal(again.codes, codes.reshape(7, 24))
    memory = np.zeros((3, 24), np.float32)
    with pytest.raises(ValueError, match="share memory"):
        matrix.linear(memory, out=memory.reshape(-1)[:21].reshape(3, 7))
    # Levels, of NF4 and of a codebook with fewer than its bits allow.
    indices = rng.integers(0, 12, (7, 24)).astype(np.uint8)
    scale = rng.random((7, 3)).astype(np.float32)
    columns = np.arange(24) // 8
    for levels, options in [
        (NF4, {"scheme": Blocks(4, "nf4", size=(1, 8))}),
        (x[0, :12], {"scheme": Blocks(4, "codebook", size=(1, 8)), "codebook": x[:1, :12]}),
    ]:
        matrix = QuantizedMatrix(Tensor(indices, scale, **options))
        dense = levels[indices] * scale[:, columns]
        np.testing.assert_allclose(matrix.linear(x), x @ dense.T, rtol=1e-5, atol=1e-5)
        with pytest.raises(ValueError, match="input must be 'float32'"):
            matrix.linear(x, input="int8")
    for scheme, codebook in [
        (Blocks(8, "fp8_e4m3"), None),
        (Blocks(4, "codebook", size=(1, 8)), x[:3]),
        (Blocks(8, "codebook", size=(1, 8)), x[:1]),
    ]:
        with pytest.raises(ValueError, match=r"multiply by q.dequantize\(\) instead"):
            QuantizedMatrix(Tensor(indices, scale, scheme=scheme, codebook=codebook))


ONES = np.ones((4, 6), np.int8)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"codes": np.full((4, 6), 8, np.int8), "bits": 4},
            ValueError,
            "codes must be from -8 to 7",
        ),
        ({"codes": np.full((4, 6), -9, np.int8), "bits": 4}, ValueError, "codes must be from -8"),
        (
            {"codes": np.full((4, 6), 4, np.uint8), "bits": 2},
            ValueError,
            "codes must be from 0 to 3",
        ),
        ({"codes": ONES.astype(np.int16)}, TypeError, "codes must have dtype int8 or uint8"),
        ({"codes": ONES[0]}, ValueError, "codes must have 2 axes"),
        ({"codes": "text"}, TypeError, "codes"),
        ({"scale": np.full((4, 1), np.nan, np.float32)}, ValueError, "scale must be finite"),
        ({"scale": np.full((4, 1), np.inf, np.float32)}, ValueError, "scale must be finite"),
        ({"scale": np.ones((4, 2), np.float32)}, ValueError, "scale must have the shape"),
        ({"scale": np.ones((4, 1), np.float16)}, TypeError, "scale must have dtype float32"),
        ({"zero_point": np.zeros((4, 1), np.uint8)}, TypeError, "zero_point must have the dtype"),
        ({"zero_point": np.full((4, 1), 9, np.int8), "bits": 4}, ValueError, "zero_point must be"),
        ({"zero_point": np.zeros((3, 1), np.int8)}, ValueError, "zero_point must have the shape"),
        ({"zero_point": np.zeros((4, 1))}, TypeError, "zero_point must have dtype int8 or uint8"),
        ({"bits": 1}, ValueError, "bits must be at least 2"),
        ({"bits": 9}, ValueError, "bits must be at most 8"),
        ({"bits": 4.0}, TypeError, "bits must be an integer"),
        ({"group_size": 0}, ValueError, "group_size must be at least 1"),
        ({"levels": np.zeros(16, np.float32), "bits": 4}, ValueError, "levels must belong"),
    ],
)
def test_bad_weights(change, error, message):
    arguments = {"codes": ONES, "scale": np.ones((4, 1), np.float32)} | change
    with pytest.raises(error, match=message):
        QuantizedMatrix.from_codes(**arguments)


X = np.ones((2, 6), np.float32)
ROWS = np.ones(len(X), np.float32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": X.astype(np.float64)}, TypeError, "x must have dtype float32"),
        ({"x": X[:, :5]}, ValueError, "x must have 6 columns"),
        ({"x": X[0]}, ValueError, r"x must have shape \(batch, 6\)"),
        ({"x": [[1.0]]}, TypeError, "x must be"),
        ({"bias": np.ones(3, np.float32)}, ValueError, "bias must have the shape"),
        ({"bias": np.ones(4)}, TypeError, "bias must have dtype float32"),
        ({"activation": "tanh"}, ValueError, "activation must be one of 'relu', 'gelu'"),
        ({"input": "int4"}, ValueError, "input must be one of"),
        ({"out": np.ones((2, 5), np.float32)}, ValueError, "out must have the shape"),
        ({"out": np.ones((2, 4))}, TypeError, "out must have dtype float32"),
        ({"out": np.ones((4, 2), np.float32).T}, ValueError, "out must be C-contiguous"),
        ({"out": np.ones((2, 4), np.int8)}, TypeError, "out must have dtype float32"),
        (
            {"out": np.ones((2, 4), np.float32), "output_scale": 1.0},
            TypeError,
            "out must have dtype",
        ),
        ({"output_scale": 0.0}, ValueError, "output_scale must be"),
        ({"output_scale": 1e-60}, ValueError, "output_scale must be"),
        ({"output_scale": 1e60}, ValueError, "output_scale must be"),
        ({"output_scale": 1.0, "output_zero_point": 128}, ValueError, "output_zero_point"),
        ({"input_scale": 1.0}, ValueError, "input_scale needs input='int8'"),
        ({"input_scale": ROWS, "input": "int8"}, TypeError, "x must have dtype int8"),
        ({"input_scale": 0.0, "input": "int8"}, ValueError, "input_scale must be"),
        ({"input_scale": 1e-42, "input": "int8"}, ValueError, "input_scale must be"),
        ({"input_zero_point": 1, "input": "int8"}, ValueError, "input_zero_point needs one"),
        (
            {"input_scale": 1.0, "input_zero_point": 128, "input": "int8"},
            ValueError,
            "input_zero_point must be",
        ),
        (
            {"input_scale": 1.0, "input_zero_point": 1, "input": "int8", "bias": np.ones(4)},
            TypeError,
            "bias must have dtype",
        ),
        (
            {"x": X.astype(np.float64), "input_scale": 1.0, "input": "int8"},
            TypeError,
            "x must have",
        ),
        (
            {"x": X.astype(np.int8), "input": "int8", "input_scale": np.ones(3, np.float32)},
            ValueError,
            "input_scale must have the shape",
        ),
        (
            {
                "x": X.astype(np.int8),
                "input": "int8",
                "input_scale": np.full(2, np.nan, np.float32),
            },
            ValueError,
            "input_scale must be finite",
        ),
    ],
)
def test_bad_products(change, error, message):
    matrix = QuantizedMatrix.from_codes(ONES, np.float32(1))
    with pytest.raises(error, match=message):
        matrix.linear(**({"x": X} | change))


def test_out_shares_nothing():
    matrix = QuantizedMatrix.from_codes(np.ones((6, 6), np.int8), np.float32(1))
    memory = np.ones((5, 6), np.float32)
    before = memory.copy()
    for x, bias, out in [
        (memory[:3], None, memory[:3]),
        (memory[:3], None, memory[2:]),
        (memory[:3], memory[4], memory[2:]),
        (memory[:2].T.copy().T, memory[4], memory[3:]),
    ]:
        for kind in ("float32", "int8"):
            with pytest.raises(ValueError, match="share memory"):
                matrix.linear(x, bias, input=kind, out=out)
    np.testing.assert_array_equal(memory, before)
    frozen = np.ones((2, 6), np.float32)
    frozen.setflags(write=False)
    with pytest.raises(ValueError, match="out must be writable"):
        matrix.linear(memory[:2], out=frozen)
    strided = np.ones((4, 12), np.float32)[::2, ::2]
    np.testing.assert_array_equal(matrix.linear(strided), np.full((2, 6), 6))
    np.testing.assert_array_equal(matrix.linear(memory[:2], out=memory[3:]), np.full((2, 6), 6))
    a = np.ones((4, 4), np.int32)
    with pytest.raises(ValueError, match="share memory"):
        matmul_integer(a.view(np.int8), np.ones((16, 4), np.int8), a)


def digest() -> str:
    """A digest of products over all paths of the kernels, large enough for the pool."""
    total = hashlib.sha256()
    for n, (batch, outputs, inputs, group) in enumerate(
        [*SHAPES, (1, 1000, 1024, 128), (70, 90, 500, 500), (7, 100, 512, 32)]
    ):
        rng = np.random.default_rng(n)
        x = activations(rng, batch, inputs)
        bias = rng.standard_normal(outputs).astype(np.float32)
        for bits in (4, 8):
            codes, scale, zero = weights(rng, (outputs, inputs), group, bits, False)
            matrices = [packed(codes, scale, zero, bits, group)]
            if bits == 4:
                levels = rng.standard_normal(16).astype(np.float32)
                matrices.append(packed(codes, scale, None, bits, group, levels=levels))
            for matrix in matrices:
                total.update(matrix.linear(x, bias, "gelu").tobytes())
            total.update(matrices[0].linear(x, bias, "gelu", "int8").tobytes())
            y = matrices[0].linear(x, bias, None, "int8", output_scale=50.0)
            total.update(y.tobytes())
        a = rng.integers(-128, 128, (batch, inputs)).astype(np.int8)
        total.update(matmul_integer(a, codes.T).tobytes())
    return total.hexdigest()


def test_same_bits_for_every_instruction_set_and_number_of_threads():
    here = digest()
    for number, level in enumerate(cr._core.simd_levels()):
        outside = {k: v for k, v in os.environ.items() if not k.startswith("COMPRESSRS_")}
        settings = {"COMPRESSRS_SIMD": level, "COMPRESSRS_NUM_THREADS": str(1 + number % 4)}
        child = subprocess.run(
            [
                sys.executable,
                "-c",
                "from tests.quantize.test_products import digest; print(digest())",
            ],
            env={**outside, **settings},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert child.stdout.strip() == here, (level, settings, child.stderr)

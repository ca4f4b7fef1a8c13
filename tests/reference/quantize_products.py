"""Products with quantized weights, in plain NumPy; integers in int64."""

import math

import numpy as np

from tests.reference.nn import conv2d


def unpacked(codes, scale, zero_point, group_size):
    """Return codes relative to their zero, as int64, and the scale of each column."""
    group = np.arange(codes.shape[1]) // group_size
    zero = 0 if zero_point is None else zero_point.astype(np.int64)[:, group]
    return codes.astype(np.int64) - zero, scale[:, group]


def dynamic_codes(x):
    """Return the int8 codes of each row and its scale, max |x| / 127."""
    scale = (np.abs(x).max(axis=1, initial=0) / np.float32(127)).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.rint(x / scale[:, None])
    usable = (scale > 0) & np.isfinite(scale)
    codes = np.where(usable[:, None], np.clip(codes, -127, 127), 0)
    return codes.astype(np.int8), scale


def integer_linear(x_codes, x_scale, codes, scale, zero_point, group_size):
    """Return the product of codes, its float32 operations one by one in their order."""
    w, _ = unpacked(codes, scale, zero_point, group_size)
    total = np.zeros((len(x_codes), len(codes)), np.float32)
    for g, start in enumerate(range(0, codes.shape[1], group_size)):
        columns = slice(start, start + group_size)
        exact = x_codes[:, columns].astype(np.int64) @ w[:, columns].T
        assert np.abs(exact).max(initial=0) < 2**31
        total = total + exact.astype(np.float32) * scale[:, g]
    return total * x_scale[:, None]


def float_linear(x, codes, scale, zero_point, group_size, levels=None):
    """Return the product with what the codes stand for, in double precision."""
    w, s = unpacked(codes, scale, zero_point, group_size)
    w = w.astype(np.float64) if levels is None else levels.astype(np.float64)[codes]
    return x.astype(np.float64) @ (w * s).T


def finish(y, bias=None, activation=None):
    if bias is not None:
        y = y + bias
    if activation == "relu":
        y = np.where(y < 0, y.dtype.type(0), y)
    if activation == "gelu":
        cdf = [0.5 * (1 + math.erf(v / math.sqrt(2))) for v in y.astype(np.float64).ravel()]
        y = y * np.reshape(cdf, y.shape)
    return y


def requantize(y, scale, zero_point):
    return np.clip(np.rint(y / np.float32(scale)) + zero_point, -128, 127).astype(np.int8)


def fixed_codes(x, scale, zero_point):
    """Return int8 codes by a scale and a zero point that are given."""
    return np.clip(np.rint(x / np.float32(scale)) + zero_point, -128, 127).astype(np.int8)


def image_codes(x, fixed=None):
    """Return the codes of each image and its scale, max |x| / 127 unless it is fixed."""
    largest = np.abs(x).max(axis=(1, 2, 3), initial=0).astype(np.float32)
    if fixed is not None:
        codes, scale = fixed_codes(x, *fixed), np.full(len(x), fixed[0], np.float32)
    else:
        scale = np.maximum(largest / np.float32(127), np.finfo(np.float32).smallest_normal)
        with np.errstate(invalid="ignore"):
            codes = np.rint(x / scale[:, None, None, None])
        codes = np.where(np.isfinite(codes), codes, 0).astype(np.int8)
    return codes, np.where(np.isfinite(largest), scale, np.float32(np.nan))


def conv_in_codes(x_codes, x_scale, pad, codes, scale, zero_point, group_size, geometry):
    """Return the convolution of codes, its float32 operations one by one in their order.

    `geometry` is (stride, padding, dilation, groups); images are padded with the code `pad`.
    """
    stride, (py, px), dilation, groups = geometry
    padded = np.pad(
        x_codes.astype(np.int64), ((0, 0), (0, 0), (py, py), (px, px)), constant_values=pad
    )
    rows = codes.reshape(len(codes), -1)
    w, _ = unpacked(rows, scale, zero_point, group_size)
    total = np.float32(0)
    for g, start in enumerate(range(0, rows.shape[1], group_size)):
        own = np.zeros_like(w)
        own[:, start : start + group_size] = w[:, start : start + group_size]
        exact = conv2d(padded, own.reshape(codes.shape), None, stride, (0, 0), dilation, groups)
        total = total + exact.astype(np.float32) * scale[:, g, None, None]
    return total * x_scale[:, None, None, None]

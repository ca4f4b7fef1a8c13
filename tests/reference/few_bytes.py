"""Storage in few bytes, as plainly as it can be written: rounding by thresholds, 8-bit codes."""

import numpy as np

BLOCK = 256
GOLDEN = 0x9E3779B9
NAN, INFINITY = 1, 0  # as levels below the greatest


def mix(x):
    """The output function of SplitMix64."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


NUMBERS = np.array([mix(i) % 2**32 for i in range(1024)], np.uint32)


def thresholds(seed, tensor, t, n, weights=False):
    """What decides whether each of n numbers is rounded up, as fractions of 2^32."""
    key = mix(mix(seed) ^ tensor)
    rows = []
    for block in range(-(-n // BLOCK)):
        x = mix(key ^ int(weights) << 56 ^ block)
        start = (x >> 32) % (1024 - BLOCK)
        offset = (x + t * GOLDEN) % 2**32
        rows.append(NUMBERS[start : start + BLOCK] + np.uint32(offset))
    return np.concatenate(rows or [np.zeros(0, np.uint32)])[:n]


def bfloat16(x, threshold):
    """The upper half of float32's bits, as float32."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    with np.errstate(over="ignore"):
        rounded = (bits + (threshold >> 16)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


class Code:
    """A code of 8 bits: `levels` of them, `octaves` from eps to 1, with a bend."""

    def __init__(self, levels, octaves, bend, divisor):
        self.levels, self.divisor = levels, divisor
        self.eps = np.float32(2.0**-octaves)
        self.floor = self.eps / 32 if divisor else np.float32(0)
        # Above this many octaves from eps, levels are twice as close.
        self.bend = np.int64(bend) << 23

    def value(self, level):
        """What a level stands for, in units of the scale."""
        q = np.asarray(level, np.int64) << 19
        q = np.minimum(q, (q + self.bend) >> 1)
        bits = (self.eps.view(np.int32) + q).astype(np.int32)
        return bits.view(np.float32) - (self.eps - self.floor)

    def scale(self, greatest):
        """The power of 2 by which the greatest gets one of the upper levels."""
        quotient = np.float32(greatest) * (np.float32(1) / self.value(self.levels - 1))
        exponent = (int(quotient.view(np.uint32)) + 0x7FFFFF) >> 23
        return np.float32(2.0 ** (min(max(exponent, 1), 253) - 127))

    def encode_block(self, x, threshold):
        finite = np.where(np.isfinite(x), x, np.float32(0))
        greatest = np.abs(finite).max(initial=np.float32(0))
        special = not np.isfinite(x).all()
        if special:
            with np.errstate(over="ignore"):
                greatest = np.minimum(greatest * np.float32(2), np.finfo(np.float32).max)
        scale = self.scale(greatest)
        y = np.abs(finite).astype(np.float64) / scale + np.float64(self.eps - self.floor)
        log = y.astype(np.float32).view(np.int32).astype(np.int64) - int(self.eps.view(np.int32))
        q = np.maximum(log, 2 * log - self.bend)
        level = (q + (threshold >> np.uint32(13)).astype(np.int64)) >> 19
        code = np.where(np.signbit(finite), -level, level)
        code = np.clip(code, 0 if self.divisor else -128, 255 if self.divisor else 127)
        code = np.where(np.isnan(x), self.levels - NAN, code)
        code = np.where(np.isposinf(x), self.levels - INFINITY, code)
        code = np.where(np.isneginf(x), INFINITY - self.levels, code)
        return code.astype(np.uint8 if self.divisor else np.int8), -scale if special else scale

    def encode(self, x, threshold):
        flat = np.ravel(x)
        parts = [
            self.encode_block(flat[i : i + BLOCK], threshold[i : i + BLOCK])
            for i in range(0, flat.size, BLOCK)
        ]
        codes = np.concatenate([c for c, _ in parts]).reshape(np.shape(x))
        return codes, np.array([s for _, s in parts], np.float32)

    def decode(self, codes, scales):
        flat = codes.ravel().astype(np.int64)
        scale = np.repeat(scales, BLOCK)[: flat.size]
        level = np.abs(flat)
        x = np.where(flat < 0, -1, 1).astype(np.float32) * (self.value(level) * np.abs(scale))
        special = np.signbit(scale)
        x[special & (level == self.levels - NAN)] = np.nan
        infinite = special & (level == self.levels - INFINITY)
        x[infinite] = np.where(flat < 0, -np.inf, np.inf)[infinite]
        return x.reshape(codes.shape)


SIGNED = Code(levels=127, octaves=7, bend=32, divisor=False)
DIVISOR = Code(levels=255, octaves=12, bend=10, divisor=True)


def code_of(codes):
    return DIVISOR if codes.dtype == np.uint8 else SIGNED

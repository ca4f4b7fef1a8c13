"""The kernels of layers, for the table of `kernels`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from compressrs import _core
from tests.faults.kernels import Case, _numbers


def cases(size: int) -> Iterator[Case]:
    n = 8 * size
    x, dy, w = (_numbers(n, n, dtype=np.float32, seed=seed) for seed in range(3))
    square, vector = np.empty((n, n), np.float32), np.ones(n, np.float32)
    one = {"x": x, "out": square}
    yield Case("linear", _core.linear, {**one, "weight": w, "bias": vector}, ("out",))
    back = {"x": x, "dy": dy, "dx": square}
    yield Case(
        "linear_backward",
        _core.linear_backward,
        {**back, "weight": w, "dw": square.copy()},
        ("dx", "dw"),
    )
    yield Case("activate", _core.activate, {**one, "of": "gelu"}, ("out",))
    yield Case("activate_backward", _core.activate_backward, {**back, "of": "gelu"}, ("dx",))
    yield Case(
        "softmax_backward", _core.softmax_backward, {"y": x, "dy": dy, "dx": square}, ("dx",)
    )
    yield Case(
        "layer_norm",
        _core.layer_norm,
        {
            **one,
            "weight": vector,
            "bias": vector.copy(),
            "eps": 1e-5,
            "mean": np.empty(n, np.float32),
            "scale": np.empty(n, np.float32),
        },
        ("out", "mean", "scale"),
    )
    norm = {
        "mean": np.zeros(n, np.float32),
        "scale": vector,
        "weight": vector.copy(),
        "dw": np.empty(n, np.float32),
        "db": np.empty(n, np.float32),
    }
    written = ("dx", "dw", "db")
    yield Case("layer_norm_backward", _core.layer_norm_backward, {**back, **norm}, written)
    yield from _channels(n, norm)
    yield from _windows(n)
    yield Case(
        "add_rows",
        _core.add_rows,
        {"ids": np.arange(n) % 3, "dy": dy, "out": np.zeros((n, n), np.float32)},
        ("out",),
    )
    yield from _attention(n)


def _channels(n: int, norm: dict[str, np.ndarray]) -> Iterator[Case]:
    x, dy = (_numbers(2, n, 3, n, dtype=np.float32, seed=seed) for seed in range(2))
    each = {name: np.empty(n, np.float32) for name in ("mean", "rest", "var", "inverse")}
    moments = {"x": x, "eps": 1e-5, **each}
    yield Case("channel_moments", _core.channel_moments, moments, tuple(each))
    by = {"mean": norm["mean"], "scale": norm["scale"], "bias": norm["weight"]}
    out = {"x": x, **by, "out": np.empty_like(x)}
    yield Case("scale_channels", _core.scale_channels, out, ("out",))
    back = {"x": x, "dy": dy, "dx": np.empty_like(x), "rest": norm["mean"].copy(), **norm}
    yield Case("batch_norm_backward", _core.batch_norm_backward, back, ("dx", "dw", "db"))


def _windows(n: int) -> Iterator[Case]:
    x = _numbers(2, 4, n, n, dtype=np.float32)
    weight = _numbers(4, 4, 3, 3, dtype=np.float32)
    each = np.ones(4, np.float32)
    two = {"stride": (1, 1), "padding": (1, 1)}
    conv = {**two, "dilation": (1, 1), "groups": 1}
    yield Case(
        "conv2d",
        _core.conv2d,
        {"x": x, "weight": weight, "bias": each, **conv, "out": np.empty_like(x)},
        ("out",),
    )
    gradients = {"dx": np.empty_like(x), "dw": np.empty_like(weight), "db": each.copy()}
    yield Case(
        "conv2d_backward",
        _core.conv2d_backward,
        {"x": x, "weight": weight, "dy": x.copy(), **conv, **gradients},
        ("dx", "dw", "db"),
    )
    codes = (np.arange(36 * 4).reshape(4, 36) % 15 - 7).astype(np.int8)
    zero, scale = np.zeros((4, 1), np.int8), np.full((4, 1), 0.1, np.float32)
    for name, fixed in (("images", None), ("fixed", (0.1, 3))):

        def run(x: np.ndarray, bias: np.ndarray, out: np.ndarray, fixed: Any = fixed) -> None:
            packed = [_core.PackedWeights((codes, zero, None), scale, 8, 36)]
            sizes = (3, 3), True, (1, 1), (1, 1), (1, 1)
            _core.conv2d_in_codes(x, packed, bias, *sizes, fixed, out)

        yield Case(
            f"conv2d_in_codes[{name}]",
            run,
            {"x": x, "bias": each, "out": np.empty_like(x)},
            ("out",),
            ("weights", "kernel", "channels_last", "stride", "padding", "dilation", "fixed"),
        )
    rows = x.reshape(-1, n)
    yield Case(
        "fixed_codes",
        _core.fixed_codes,
        {
            "x": rows,
            "scale": 0.1,
            "zero_point": 3,
            "codes": np.empty(rows.shape, np.int8),
            "scales": np.empty(len(rows), np.float32),
        },
        ("codes", "scales"),
    )
    pool = {"kernel": (3, 3), **two}
    for name in ("largest", "mean"):
        places = np.empty(x.shape, np.uint32) if name == "largest" else None
        yield Case(
            f"pool[{name}]",
            _core.pool,
            {"x": x, **pool, "out": np.empty_like(x), "places": places},
            ("out", "places"),
        )
        if places is not None:
            _core.pool(x, (3, 3), (1, 1), (1, 1), np.empty_like(x), places)
            places = places.copy()
        yield Case(
            f"pool_backward[{name}]",
            _core.pool_backward,
            {"dy": x.copy(), **pool, "places": places, "dx": np.empty_like(x)},
            ("dx",),
        )


def _attention(n: int) -> Iterator[Case]:
    length = min(n, 32)
    q, k, v, dy = (_numbers(2, length, 8, dtype=np.float32, seed=seed) for seed in range(4))
    inputs = {"q": q, "k": k, "v": v, "heads": 2}
    probabilities = np.full((2, 2, length, length), 1 / length, np.float32)
    yield Case(
        "attend",
        _core.attend,
        {
            **inputs,
            "causal": False,
            "lengths": np.array([length, 3]),
            "probabilities": probabilities,
            "out": np.empty_like(q),
        },
        ("probabilities", "out"),
    )
    gradients = {name: np.empty_like(q) for name in ("dq", "dk", "dv")}
    yield Case(
        "attend_backward",
        _core.attend_backward,
        {**inputs, "probabilities": probabilities, "dy": dy, **gradients},
        ("dq", "dk", "dv"),
    )

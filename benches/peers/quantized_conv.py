"""Convolutions of images in int8, against those in float."""

import math

import numpy as np

import compressrs as cr
from benches.peers.measure import Target, Work, compare, moved

#: Images, channels, filters, size, kernel, stride.
SHAPES = (
    (1, 64, 64, 56, 3, 1),
    (1, 128, 128, 28, 3, 1),
    (1, 128, 256, 28, 3, 2),
    (1, 256, 256, 14, 3, 1),
    (1, 512, 512, 7, 3, 1),
    (1, 256, 1024, 14, 1, 1),
    (1, 1024, 256, 14, 1, 1),
    (16, 32, 64, 28, 3, 1),
    (16, 128, 128, 14, 3, 1),
    # Stay in float.
    (1, 3, 64, 112, 7, 2),
    (1, 64, 256, 56, 1, 1),
)


def convolutions():
    """Convolve as ResNets do, one image and several."""
    ratios = []
    eight = cr.quantize.Scheme(bits=8)
    for images, channels, filters, size, kernel, stride in SHAPES:
        layer = cr.nn.Conv2d(
            channels, filters, kernel, stride=stride, padding=kernel // 2, rng=0
        ).eval()
        small = cr.nn.QuantizedConv2d.from_conv(layer, eight, input="int8").eval()
        fixed = cr.nn.QuantizedConv2d.from_conv(
            layer, eight, input="int8", activation_scale=0.03
        ).eval()
        x = np.random.default_rng(0).standard_normal((images, channels, size, size), np.float32)
        contenders = {
            "compressrs": lambda layer=small, x=x: layer(x),
            "int8, fixed scale": lambda layer=fixed, x=x: layer(x),
            "Conv2d, float32": lambda layer=layer, x=x: layer(x),
        }
        kind = "" if small.float_reason is None else " (stays in float)"
        title = f"{images} x {channels} x {size} x {size}, {filters} filters, {kernel} x {kernel}"
        work = layer.multiply_adds(x.shape[1:]) * images
        inner = max(1, round(2e7 / work))
        limit = 1.0 if small.float_reason is None else 1.2
        target = (Target("Conv2d, float32", limit),)
        bytes_moved = x.nbytes + small(x).nbytes + layer.weight.size
        binds = "dot_products" if small.float_reason is None else "multiply_adds"
        times = compare(
            f"{title}, stride {stride}{kind}",
            contenders,
            target,
            inner=inner,
            work=(Work(binds, work), moved(bytes_moved)),
        )
        if small.float_reason is None:
            ratios.append(times["Conv2d, float32"] / times["compressrs"])
    mean = math.exp(np.mean(np.log(ratios)))
    print(f"\nint8 is {mean:.2f} x as fast as float32 where it uses codes (geometric mean)")

"""What convolutions multiply by their filters: patches of images, as rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs._arrays import Array
from compressrs.nn.conv import Conv2d
from compressrs.prune.statistics import InputStatistics

#: Elements of patches that are held at a time, about.
_ELEMENTS = 1 << 22


def statistics_of(layer: Conv2d, batches: Sequence[Array]) -> InputStatistics:
    """Return the statistics of the patches of all groups."""
    statistics = InputStatistics(math.prod(layer.weight.shape[1:]), gram=True)
    for patches in _patches(layer, batches):
        statistics.update(patches)
    return statistics


def means(layer: Conv2d, batches: Sequence[Array]) -> npt.NDArray[np.float64]:
    """Return the mean patch of each filter's group, a row for each filter."""
    shape = layer.groups, math.prod(layer.weight.shape[1:])
    total, count = np.zeros(shape), 0
    for patches in _patches(layer, batches):
        total += patches.sum(axis=(0, 2), dtype=np.float64)
        count += patches.shape[0] * patches.shape[2]
    return np.repeat(total / max(count, 1), len(layer.weight) // layer.groups, axis=0)


def _patches(layer: Conv2d, batches: Sequence[Array]) -> Iterator[npt.NDArray[Any]]:
    """Yield patches of shape (images, groups, places, inputs of a filter)."""
    (sy, sx), (py, px), (dy, dx), groups = layer._geometry
    _, channels, height, width = layer.weight.shape
    window = dy * (height - 1) + 1, dx * (width - 1) + 1
    for x in batches:
        places = math.prod(layer.output_shape(x.shape[1:])[1:])
        each = places * channels * height * width * groups
        step = max(1, _ELEMENTS // max(each, 1))
        for start in range(0, len(x), step):
            padded = np.pad(x[start : start + step], ((0, 0), (0, 0), (py, py), (px, px)))
            views = np.lib.stride_tricks.sliding_window_view(padded, window, (2, 3))
            views = views[:, :, ::sy, ::sx, ::dy, ::dx]
            images = len(padded)
            views = views.reshape(images, groups, channels, places, height, width)
            yield views.swapaxes(2, 3).reshape(images, groups, places, -1)

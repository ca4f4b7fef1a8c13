"""Ranges of activations, from calibration inputs in batches."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from compressrs._arrays import Array, as_array, as_matrix, is_number
from compressrs._checks import number, whole
from compressrs.quantize.rounding import parameters
from compressrs.quantize.scheme import Scheme

#: The exponent of a range in which only zeros were seen.
_ZERO = -1000

_O = TypeVar("_O", bound="Observer")


class Observer:
    """Base class of the observers.

    Memory does not grow with the number of inputs.

    Parameters
    ----------
    channels : int, optional
        Size of the last axis, to observe a range for each of its indices; by default one range
        of all values.

    Attributes
    ----------
    count : int
        Number of rows (all axes but the last) observed, without padding.
    """

    def __init__(self, channels: int | None = None) -> None:
        self.channels = None if channels is None else int(whole(channels, "channels", 1, 1 << 30))
        self.count = 0

    def update(self, x: Array, mask: Array | None = None) -> None:
        """Observe a batch.

        Parameters
        ----------
        x : array, shape (..., features)
            float32, float64, float16 or bfloat16.
        mask : array of bool, shape ``x.shape[:-1]``, optional
            True for rows to observe, False for padding, whose values are ignored.

        Raises
        ------
        TypeError
            If an array has another dtype.
        ValueError
            If shapes do not fit, or a value that counts is NaN or infinite (the message says
            where the first one is); nothing is taken in then.
        """
        x = as_array(x, "x")
        if not is_number(x.dtype) or x.dtype.kind in "iu":
            raise TypeError(f"x must have a floating-point dtype, got {x.dtype}")
        if x.ndim < 1 or self.channels not in (None, x.shape[-1]):
            need = "..., features" if self.channels is None else f"..., {self.channels}"
            raise ValueError(f"x must have shape ({need}), got {x.shape}")
        rows = as_matrix(x, -1)
        if mask is not None:
            kept = as_array(mask, "mask")
            if kept.dtype != np.bool_:
                raise TypeError(f"mask must have dtype bool, got {kept.dtype}")
            if kept.shape != x.shape[:-1]:
                raise ValueError(f"mask must have shape {x.shape[:-1]}, got {kept.shape}")
            rows = rows[kept.ravel()]
        rows = rows.astype(np.float64)
        finite = np.isfinite(rows)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise ValueError(
                f"x must be finite, got {rows[row, column]} in row {row}, column {column}"
            )
        if rows.size:
            self._take(rows.T if self.channels else rows.reshape(1, -1))
            self.count += len(rows)

    def merge(self: _O, other: _O) -> _O:
        """Return an observer that has seen what both have, in no order.

        Raises
        ------
        TypeError
            If `other` is of another class.
        ValueError
            If it has other parameters.
        """
        if type(other) is not type(self):
            raise TypeError(f"other must be a {type(self).__name__}, got {type(other).__name__}")
        if other._parameters() != self._parameters():
            raise ValueError(f"other must be {self!r}, got {other!r}")
        if not other.count or not self.count:
            return copy.deepcopy(self if self.count else other)
        result = copy.deepcopy(self)
        result._merge(other)
        result.count += other.count
        return result

    def range(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the smallest and largest values to represent, each of shape (channels or 1,).

        Raises
        ------
        ValueError
            If nothing was seen.
        """
        if not self.count:
            raise ValueError("update must be called with calibration inputs first, got none")
        return self._range()

    def parameters(self, scheme: Scheme) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any] | None]:
        """Return scales and zero points in float32, as `parameters`, of shape (channels or 1, 1).

        Raises
        ------
        TypeError, ValueError
            If `scheme` is no Scheme, or nothing was seen.
        """
        low, high = (np.float32(x).reshape(-1, 1) for x in self.range())
        scale, zero_point = parameters(low, high, scheme)
        return scale.astype(np.float32, copy=False), zero_point

    def _take(self, rows: npt.NDArray[np.float64]) -> None:
        """Take in values, finite, those of a channel in a row."""
        raise NotImplementedError

    def _merge(self: _O, other: _O) -> None:
        raise NotImplementedError

    def _range(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        raise NotImplementedError

    def _parameters(self) -> dict[str, Any]:
        return {"channels": self.channels}

    def __repr__(self) -> str:
        given = ", ".join(f"{k}={v!r}" for k, v in self._parameters().items())
        return f"{type(self).__name__}({given})"


class MinMax(Observer):
    """Observes the smallest and the largest value.

    Examples
    --------
    >>> import numpy as np
    >>> from compressrs.quantize import MinMax
    >>> observer = MinMax(channels=2)
    >>> observer.update(np.array([[1.0, -2.0], [3.0, 0.0]]))
    >>> observer.range()
    (array([ 1., -2.]), array([3., 0.]))
    """

    def __init__(self, channels: int | None = None) -> None:
        super().__init__(channels)
        self.low = np.full(self.channels or 1, np.inf)
        self.high = np.full(self.channels or 1, -np.inf)

    def _take(self, rows: npt.NDArray[np.float64]) -> None:
        np.minimum(self.low, rows.min(axis=1), out=self.low)
        np.maximum(self.high, rows.max(axis=1), out=self.high)

    def _merge(self, other: MinMax) -> None:
        np.minimum(self.low, other.low, out=self.low)
        np.maximum(self.high, other.high, out=self.high)

    def _range(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        return self.low.copy(), self.high.copy()


class MovingAverage(Observer):
    r"""Moving averages of the smallest and the largest value of batches.

    :math:`l \leftarrow l + m\,(\min x - l)`, starting from the first batch, and likewise for the
    maximum. The result depends on the order of batches, so that two cannot be merged.

    Parameters
    ----------
    channels : int, optional
    momentum : float, default 0.01
        :math:`m`, in (0, 1].

    References
    ----------
    Jacob et al., arXiv 1712.05877, section 3.1.
    """

    def __init__(self, channels: int | None = None, *, momentum: float = 0.01) -> None:
        super().__init__(channels)
        self.momentum = number(momentum, "momentum", 0)
        if not 0 < self.momentum <= 1:
            raise ValueError(f"momentum must be in (0, 1], got {momentum}")
        self.low = np.zeros(self.channels or 1)
        self.high = np.zeros(self.channels or 1)

    def _take(self, rows: npt.NDArray[np.float64]) -> None:
        pace = self.momentum if self.count else 1.0
        self.low += pace * (rows.min(axis=1) - self.low)
        self.high += pace * (rows.max(axis=1) - self.high)

    def merge(self, other: MovingAverage) -> MovingAverage:
        """Refuse: the order of batches counts.

        Raises
        ------
        TypeError
            Always.
        """
        raise TypeError("other cannot be merged: a moving average depends on the order of batches")

    def _range(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        return self.low.copy(), self.high.copy()

    def _parameters(self) -> dict[str, Any]:
        return {**super()._parameters(), "momentum": self.momentum}


class Histogram(MinMax):
    r"""Counts of values in bins of equal width, a power of 2, on both sides of 0.

    The range is :math:`[-2^e, 2^e)` with the smallest :math:`e` that contains all values. When it
    grows, adjacent bins are merged. Counts depend neither on the order nor on the batches, and
    merging two histograms is exact.

    Parameters
    ----------
    channels : int, optional
    bins : int, default 2048
        A power of 2, at least 16.

    Attributes
    ----------
    low, high : array of float64, shape (channels or 1,)
        The smallest and the largest value.
    counts : array of int64, shape (channels or 1, bins)
    edges : array of float64, shape (channels or 1, bins + 1)
    """

    def __init__(self, channels: int | None = None, *, bins: int = 2048) -> None:
        super().__init__(channels)
        self.bins = whole(bins, "bins", 16, 1 << 24)
        if self.bins & (self.bins - 1):
            raise ValueError(f"bins must be a power of 2, got {bins}")
        self.counts = np.zeros((self.channels or 1, self.bins), np.int64)
        self._exponents = np.full(self.channels or 1, _ZERO)

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """The ends of the bins."""
        half = self.bins // 2
        steps: npt.NDArray[np.float64] = np.ldexp(
            np.arange(-half, half + 1) / half, self._exponents[:, None]
        )
        return steps

    def _take(self, rows: npt.NDArray[np.float64]) -> None:
        super()._take(rows)
        largest = np.abs(rows).max(axis=1)
        self._grow(np.where(largest > 0, np.frexp(largest)[1], _ZERO))
        half = self.bins // 2
        # Exact: a product with a power of 2.
        places = np.floor(np.ldexp(rows, -self._exponents[:, None]) * half).astype(np.int64) + half
        places += np.arange(len(rows))[:, None] * self.bins
        flat = np.bincount(places.ravel(), minlength=self.counts.size)
        self.counts += flat.reshape(self.counts.shape)

    def _grow(self, exponents: npt.NDArray[Any]) -> None:
        half = self.bins // 2
        for channel in np.flatnonzero(exponents > self._exponents):
            shift = min(int(exponents[channel] - self._exponents[channel]), 62)
            places = ((np.arange(self.bins) - half) >> shift) + half
            old = self.counts[channel].copy()
            self.counts[channel] = 0
            np.add.at(self.counts[channel], places, old)
            self._exponents[channel] = exponents[channel]

    def _merge(self, other: Histogram) -> None:  # type: ignore[override]  # of one class
        super()._merge(other)
        self._grow(other._exponents)
        other = copy.deepcopy(other)
        other._grow(self._exponents)
        self.counts += other.counts

    def _parameters(self) -> dict[str, Any]:
        return {**super()._parameters(), "bins": self.bins}


class Percentile(Histogram):
    r"""The range without the most extreme values: :math:`1 - p` of them on each side.

    Values are assumed to be uniformly distributed within a bin, see `Histogram`.

    Parameters
    ----------
    channels : int, optional
    percentile : float, default 99.99
        :math:`100 p`, in (50, 100].
    bins : int, default 2048

    Examples
    --------
    >>> import numpy as np
    >>> from compressrs.quantize import Percentile
    >>> observer = Percentile(percentile=99)
    >>> observer.update(np.append(np.linspace(0, 1, 999), 100.0))
    >>> bool(observer.range()[1][0] < 1.1)
    True
    """

    def __init__(
        self, channels: int | None = None, *, percentile: float = 99.99, bins: int = 2048
    ) -> None:
        super().__init__(channels, bins=bins)
        self.percentile = number(percentile, "percentile", 0)
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile must be in (50, 100], got {percentile}")

    def _range(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        low, high, share = self.low.copy(), self.high.copy(), self.percentile / 100
        for i, (counts, edges) in enumerate(zip(self.counts, self.edges, strict=True)):
            below = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
            low[i] = max(low[i], np.interp(1 - share, below, edges))
            high[i] = min(high[i], np.interp(share, below, edges))
        return np.minimum(low, high), high

    def _parameters(self) -> dict[str, Any]:
        return {**super()._parameters(), "percentile": self.percentile}


class MSE(Histogram):
    r"""The range with the least mean squared rounding error.

    Of ranges :math:`r\,[\min, \max]`, :math:`r` from 0.01 to 1, the one with the least error of
    the histogram's values, at the middle of their bins, in the given bits.

    Parameters
    ----------
    channels : int, optional
    bits : int, default 8
    symmetric : bool, default True
        Whether the codes are symmetric.
    bins : int, default 2048

    References
    ----------
    Nagel et al., "A White Paper on Neural Network Quantization", arXiv 2106.08295, section 3.1.
    """

    def __init__(
        self,
        channels: int | None = None,
        *,
        bits: int = 8,
        symmetric: bool = True,
        bins: int = 2048,
    ) -> None:
        super().__init__(channels, bins=bins)
        self.scheme = Scheme(bits=bits, symmetric=symmetric, granularity="tensor")

    def _range(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        ratios = np.linspace(0.01, 1, 100)
        least, most = -(2 ** (self.scheme.bits - 1)), 2 ** (self.scheme.bits - 1) - 1
        best = np.ones(len(self.low))
        for i, (counts, edges) in enumerate(zip(self.counts, self.edges, strict=True)):
            used, unit = counts > 0, edges[-1]
            x = (edges[1:] / unit + edges[:-1] / unit)[used] / 2
            ends = np.outer(ratios, (self.low[i] / unit, self.high[i] / unit))
            ends = np.stack([np.minimum(ends[:, 0], 0), np.maximum(ends[:, 1], 0)])[:, :, None]
            scale, zero = parameters(ends[0], ends[1], self.scheme)
            shift = 0 if zero is None else zero.astype(np.float64)
            q = np.clip(np.rint(x / scale) + shift, least, most) - shift
            errors = ((q * scale - x) ** 2) @ counts[used]
            # Of equal ones the largest, which clips least.
            best[i] = ratios[len(ratios) - 1 - errors[::-1].argmin()]
        return best * self.low, best * self.high

    def _parameters(self) -> dict[str, Any]:
        return {
            **super()._parameters(),
            "bits": self.scheme.bits,
            "symmetric": self.scheme.symmetric,
        }


class Entropy(Histogram):
    r"""The symmetric range with the least KL divergence of magnitudes, as in TensorRT.

    Of thresholds :math:`t`, the one for which :math:`\mathrm{KL}(P \,\|\, Q)` is least: P are
    the counts up to `t`, those beyond added to the last bin; Q the same without those
    beyond, spread evenly over the bins that are not empty in each of :math:`2^{b-1}` levels.

    Parameters
    ----------
    channels : int, optional
    bits : int, default 8
        At most as many as leave two bins for each level.
    bins : int, default 4096

    References
    ----------
    Migacz, "8-bit Inference with TensorRT", GTC 2017.
    """

    def __init__(self, channels: int | None = None, *, bits: int = 8, bins: int = 4096) -> None:
        super().__init__(channels, bins=bins)
        self.bits = Scheme(bits=bits).bits
        if self.bins < 4 * 2 ** (self.bits - 1):
            raise ValueError(
                f"bins must be at least {4 * 2 ** (self.bits - 1)} for bits {self.bits}, got {bins}"
            )

    def _range(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        half, levels = self.bins // 2, 2 ** (self.bits - 1)
        threshold = np.maximum(np.abs(self.low), np.abs(self.high))
        for i, counts in enumerate(self.counts):
            magnitudes = counts[half:] + counts[:half][::-1]
            last = int(np.flatnonzero(magnitudes)[-1]) + 1
            width = self.edges[i, -1] / half
            divergences = [
                _divergence(magnitudes[:n], magnitudes[n:].sum(), levels)
                for n in range(levels, last + 1)
            ]
            if divergences:
                n = levels + int(np.argmin(divergences))
                threshold[i] = min(threshold[i], n * width)
        return -threshold, threshold

    def _parameters(self) -> dict[str, Any]:
        return {**super()._parameters(), "bits": self.bits}


def _divergence(kept: npt.NDArray[np.int64], beyond: int, levels: int) -> float:
    """Return KL(P || Q) of the bins kept; P's last bin includes those beyond."""
    if not kept.any():
        return np.inf
    p = kept.astype(np.float64)
    p[-1] += beyond
    starts = np.arange(levels) * len(kept) // levels
    sums = np.add.reduceat(kept, starts)
    filled = np.add.reduceat((kept > 0).astype(np.int64), starts)
    means = sums / np.maximum(filled, 1)
    q = np.where(kept > 0, np.repeat(means, np.diff(np.append(starts, len(kept)))), 0.0)
    used = p > 0
    # What Q lacks would make the divergence infinite; a small share stands for it.
    q = np.where(used & (q == 0), 1e-4, q)[used]
    p = p[used] / p.sum()
    return float((p * np.log(p / (q / q.sum()))).sum())

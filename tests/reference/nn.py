"""Layers in plain NumPy, to be read: loops over places of kernels, whole arrays else."""

from __future__ import annotations

import math

import numpy as np


def conv2d(x, w, b=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    """Correlate images (n, c, h, w) with filters (f, c / groups, k, l)."""
    n, _, height, width = x.shape
    f, c, k, m = w.shape
    (sy, sx), (py, px), (dy, dx) = stride, padding, dilation
    padded = np.pad(x, ((0, 0), (0, 0), (py, py), (px, px)))
    rows = (height + 2 * py - dy * (k - 1) - 1) // sy + 1
    columns = (width + 2 * px - dx * (m - 1) - 1) // sx + 1
    y = np.zeros((n, f, rows, columns), x.dtype)
    for g in range(groups):
        own = slice(g * f // groups, (g + 1) * f // groups)
        channels = padded[:, g * c : (g + 1) * c]
        for i in range(k):
            for j in range(m):
                at = channels[:, :, i * dy :: sy, j * dx :: sx][:, :, :rows, :columns]
                y[:, own] += np.einsum("nchw,fc->nfhw", at, w[own, :, i, j])
    return y if b is None else y + b[:, None, None]


def conv2d_gradients(x, w, dy, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    """Return the gradients with respect to image, filters and bias."""
    _, _, height, width = x.shape
    f, c, k, m = w.shape
    rows, columns = dy.shape[2:]
    (sy, sx), (py, px), (ey, ex) = stride, padding, dilation
    padded = np.pad(x, ((0, 0), (0, 0), (py, py), (px, px)))
    d_padded, dw = np.zeros_like(padded), np.zeros_like(w)
    for g in range(groups):
        own = slice(g * f // groups, (g + 1) * f // groups)
        channels = slice(g * c, (g + 1) * c)
        for i in range(k):
            for j in range(m):
                down = slice(i * ey, i * ey + sy * (rows - 1) + 1, sy)
                right = slice(j * ex, j * ex + sx * (columns - 1) + 1, sx)
                at = padded[:, channels, down, right]
                dw[own, :, i, j] = np.einsum("nfhw,nchw->fc", dy[:, own], at)
                d_padded[:, channels, down, right] += np.einsum(
                    "nfhw,fc->nchw", dy[:, own], w[own, :, i, j]
                )
    return d_padded[:, :, py : py + height, px : px + width], dw, dy.sum((0, 2, 3))


def pool(x, kernel, stride, padding, reduce, fill):
    """Reduce each window of images; the padding holds `fill`."""
    (k, m), (sy, sx), (py, px) = kernel, stride, padding
    padded = np.pad(x, ((0, 0), (0, 0), (py, py), (px, px)), constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k, m), (2, 3))[:, :, ::sy, ::sx]
    return reduce(windows, (4, 5))


def gelu(x):
    """Return x times the normal distribution function."""
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x):
    """Return the approximation of `gelu` by a tangent."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x):
    """Return x times its sigmoid."""
    return x / (1 + np.exp(-x))


def softmax(x):
    """Return the probabilities of each row."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def layer_norm(x, w, b, eps):
    """Normalize the last axis."""
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * w + b


def batch_norm(x, w, b, eps):
    """Normalize each channel by the batch's moments."""
    axes = (0, *range(2, x.ndim))
    shape = (1, -1, *[1] * (x.ndim - 2))
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * w.reshape(shape) + b.reshape(shape)


def attention(x, w, b, w_out, b_out, heads, causal=False, lengths=None):
    """Return self-attention of rows (batch, length, features)."""
    batch, length, features = x.shape
    q, k, v = np.split(x @ w.T + b, 3, axis=-1)
    split = (batch, length, heads, features // heads)
    q, k, v = (part.reshape(split).transpose(0, 2, 1, 3) for part in (q, k, v))
    scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(features // heads)
    if causal:
        scores[..., np.triu(np.ones((length, length), bool), 1)] = -np.inf
    if lengths is not None:
        for i, n in enumerate(lengths):
            scores[i, :, :, n:] = -np.inf
    mixed = (softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(x.shape)
    return mixed @ w_out.T + b_out

"""Quantization in plain NumPy, to be read. Integers, levels, ranges: one block at a time."""

import numpy as np

NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]
)  # fmt: skip


def matrix(w):
    return w.reshape(1, -1) if w.ndim == 1 else w.reshape(len(w), -1)


def blocks(shape, scheme):
    """Slices of rows and columns, block by block, of a matrix."""
    rows, columns = shape
    size = scheme.group_size
    height, width = {
        "tensor": (rows, columns),
        "channel": (1, columns),
        "group": (1, size),
        "block": size,
    }[scheme.granularity]
    return [
        [
            (slice(i, min(i + height, rows)), slice(j, min(j + width, columns)))
            for j in range(0, columns, width)
        ]
        for i in range(0, rows, height)
    ]


def limits(scheme):
    low = -(2 ** (scheme.bits - 1)) if scheme.dtype == "int" else 0
    return low, low + 2**scheme.bits - 1


def parameters(low, high, scheme, dtype):
    """Scale and zero point of one block, in the arithmetic of `dtype`."""
    low, high = dtype(min(low, 0)), dtype(max(high, 0))
    magnitude = max(-low, high)
    tiny = np.finfo(dtype).smallest_normal
    if scheme.dtype == "nf4":
        range_, steps = magnitude, dtype(1)
    elif scheme.dtype.startswith("fp8"):
        range_, steps = magnitude, dtype(448 if scheme.dtype == "fp8_e4m3" else 57344)
    elif scheme.symmetric:
        range_, steps = magnitude, dtype((2**scheme.bits - 1) / 2)
    else:
        range_, steps = high - low, dtype(2**scheme.bits - 1)
    scale = dtype(1) if range_ == 0 else max(range_ / steps, tiny)
    least, most = limits(scheme)
    if scheme.symmetric:
        return scale, (least + most + 1) // 2 if scheme.dtype == "uint" else 0
    return scale, int(np.clip(np.rint(dtype(least) - low / scale), least, most))


def codes(x, scale, zero, scheme):
    """Codes of one block."""
    v = x / scale
    if scheme.dtype == "nf4":
        levels = NF4.astype(x.dtype)
        # argmin takes the first of equal ones, which is the lower level.
        return np.abs(v[..., None] - levels).argmin(-1).astype(np.uint8)
    if scheme.dtype.startswith("fp8"):
        import ml_dtypes

        kind = ml_dtypes.float8_e4m3fn if scheme.dtype == "fp8_e4m3" else ml_dtypes.float8_e5m2
        largest = np.float32(448 if scheme.dtype == "fp8_e4m3" else 57344)
        return np.clip(np.float32(v), -largest, largest).astype(kind).view(np.uint8)
    low, high = limits(scheme)
    return np.clip(np.rint(v) + zero, low, high).astype(scheme.code_dtype)


def values(q, scale, zero, scheme):
    """What the codes of one block stand for."""
    if scheme.dtype == "nf4":
        return NF4.astype(scale.dtype)[q] * scale
    if scheme.dtype.startswith("fp8"):
        import ml_dtypes

        kind = ml_dtypes.float8_e4m3fn if scheme.dtype == "fp8_e4m3" else ml_dtypes.float8_e5m2
        return q.view(kind).astype(scale.dtype) * scale
    return (q.astype(np.int32) - zero).astype(scale.dtype) * scale


def quantize(w, scheme):
    """Round to the nearest code; returns codes, scale, zero point and what they stand for."""
    x = matrix(w)
    compute = np.float64 if w.dtype == np.float64 else np.float32
    x = x.astype(compute)
    grid = blocks(x.shape, scheme)
    shape = len(grid), len(grid[0]) if grid else 0
    q = np.zeros(x.shape, scheme.code_dtype)
    scale, zero = np.zeros(shape, compute), np.zeros(shape, int)
    y = np.zeros(x.shape, compute)
    for i, row in enumerate(grid):
        for j, block in enumerate(row):
            b = x[block]
            scale[i, j], zero[i, j] = parameters(b.min(), b.max(), scheme, compute)
            q[block] = codes(b, scale[i, j], zero[i, j], scheme)
            y[block] = values(q[block], scale[i, j], zero[i, j], scheme)
    return q.reshape(w.shape), scale, zero, y.astype(w.dtype).reshape(w.shape)


def fake_quantize_gradients(x, dy, scheme, scale, zero):
    """Element by element: straight-through, and LSQ's equation 3 without its factor."""
    low, high = limits(scheme)
    dx, ds = np.zeros_like(x), np.zeros(scale.shape)
    for i, row in enumerate(blocks(x.shape, scheme)):
        for j, block in enumerate(row):
            for at in np.ndindex(x[block].shape):
                v = x[block][at] / scale[i, j]
                z = zero[i, j]
                if v < low - z:
                    ds[i, j] += dy[block][at] * (low - z)
                elif v > high - z:
                    ds[i, j] += dy[block][at] * (high - z)
                else:
                    dx[block][at] = dy[block][at]
                    ds[i, j] += dy[block][at] * (np.rint(v) - v)
    return dx, ds


def gptq(w, x, scheme, scale, zero, damping=0.01, order=None, find=False, mask_of=None):
    """Frantar et al.'s first form: the inverse Hessian itself, a column at a time.

    Where weight j of a row becomes q, the row changes by -(w_j - q) / [H^-1]_jj H^-1_j, and j
    leaves the inverse. Scale and zero point are those of each weight, of the shape of `w`.
    """
    w = np.array(w, float)
    columns = w.shape[1]
    order = np.arange(columns) if order is None else order
    h = x.T @ x
    idle = np.diag(h) == 0
    mean = np.mean(np.diag(h)) or 1.0
    h[idle, idle] = 1
    w[:, idle] = 0
    h += damping * mean * np.eye(columns)
    q = np.zeros(w.shape, scheme.code_dtype)
    scale, zero = np.array(scale), np.array(zero)
    for k, j in enumerate(order):
        rest = order[k:]
        inverse = np.linalg.inv(h[np.ix_(rest, rest)])
        if find and k % scheme.group_size == 0:
            group = order[k : k + scheme.group_size]
            for i in range(len(w)):
                b = w[i, group].astype(scale.dtype)
                s, z = parameters(b.min(), b.max(), scheme, scale.dtype.type)
                scale[i, group], zero[i, group] = s, z
        for i in range(len(w)):
            q[i, j] = codes(scale.dtype.type(w[i, j]), scale[i, j], zero[i, j], scheme)
            value = values(q[i, j], scale[i, j], zero[i, j], scheme)
            w[i, rest] -= (w[i, j] - value) / inverse[0, 0] * inverse[0]
    return q, scale, zero


def kmeans(x, levels, rounds=300):
    """Lloyd's algorithm from equal distances; a mean without values stays."""
    means = np.linspace(x.min(), x.max(), levels)
    for _ in range(rounds):
        which = np.abs(x[:, None] - means).argmin(1)
        new = np.array(
            [x[which == k].mean() if (which == k).any() else means[k] for k in range(levels)]
        )
        new.sort()
        if np.array_equal(new, means):
            break
        means = new
    return means


def divergence(p, q):
    p, q = p / p.sum(), q / q.sum()
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def entropy_threshold(magnitudes, width, levels):
    """Migacz's loop over thresholds, on a histogram of magnitudes."""
    last = np.flatnonzero(magnitudes)[-1] + 1
    best = None
    for n in range(levels, last + 1):
        if not magnitudes[:n].any():
            continue
        p = magnitudes[:n].astype(float)
        p[-1] += magnitudes[n:].sum()
        q = np.zeros(n)
        for level in range(levels):
            start, end = level * n // levels, (level + 1) * n // levels
            used = [b for b in range(start, end) if magnitudes[b] > 0]
            for b in used:
                q[b] = sum(magnitudes[start:end]) / len(used)
        q[(p > 0) & (q == 0)] = 1e-4
        loss = divergence(p, q)
        if best is None or loss < best[0]:
            best = loss, n * width
    return best[1] if best else None


def hadamard(n):
    """Sylvester's matrices along the diagonal."""
    size = n & -n
    h = np.ones((1, 1))
    while len(h) < size:
        h = np.block([[h, h], [h, -h]])
    return np.kron(np.eye(n // size), h) / np.sqrt(size)

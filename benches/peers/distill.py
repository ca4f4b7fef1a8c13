"""Softmax, and the distillation loss with its gradient."""

import numpy as np
import scipy.special

import compressrs as cr
from benches.peers.measure import Target, compare, torch


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

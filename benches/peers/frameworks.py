"""`compressrs.torch` against PyTorch, and against the functions of arrays that it calls."""

import numpy as np

import compressrs as cr
from benches.peers.measure import Target, compare, torch

LARGE = 50_000_000


def torch_optim():
    """Compare steps of AdamW, with the same gradient tensors and with new ones at each step."""
    if torch is None:
        return
    rng = np.random.default_rng(0)
    for count, size in ((200, 1000), (1, LARGE)):
        arrays = [rng.standard_normal(size, np.float32) for _ in range(count)]
        grads = [rng.standard_normal(size, np.float32) for _ in range(count)]
        ours = _parameters(arrays, grads)
        theirs = _parameters(arrays, grads)
        same = cr.torch.optim.AdamW(ours)
        plain = cr.optim.AdamW(arrays)
        fused = torch.optim.AdamW(theirs, fused=True)
        contenders = {
            "compressrs.torch": same.step,
            "compressrs, arrays": lambda: plain.step(grads),
            "Torch": fused.step,
        }
        small = count > 1
        targets = (Target("compressrs, arrays", 1.3 if small else 1.05),)
        targets += (Target("Torch", 1 / 5),) if small else ()
        compare(
            f"AdamW, {count} tensor{'s' * small} of {size:,}, same gradients", contenders, targets
        )
        if not small:
            continue
        renewed = cr.torch.optim.AdamW(_parameters(arrays, grads))
        fused = torch.optim.AdamW(_parameters(arrays, grads), fused=True)
        contenders = {
            "compressrs.torch": _renewing(renewed, grads),
            "compressrs, arrays": lambda: plain.step(grads),
            "Torch": _renewing(fused, grads),
            "new gradients alone": _renewing(None, grads, renewed.param_groups[0]["params"]),
        }
        compare(f"AdamW, {count} tensor{'s' * small} of {size:,}, new gradients", contenders)


def _parameters(arrays, grads):
    made = [torch.nn.Parameter(torch.from_numpy(a.copy())) for a in arrays]
    for p, g in zip(made, grads):
        p.grad = torch.from_numpy(g)
    return made


def _renewing(optimizer, grads, params=None):
    """Return a function that gives parameters other gradients and takes a step."""
    params = optimizer.param_groups[0]["params"] if params is None else params
    sets = [[torch.from_numpy(g.copy()) for g in grads] for _ in range(2)]

    def step():
        sets.reverse()
        for p, g in zip(params, sets[0]):
            p.grad = g
        if optimizer is not None:
            optimizer.step()

    return step


class _Masked(torch.nn.Linear if torch else object):
    """A linear module with a mask, as `torch.nn.utils.prune` makes it."""

    def __init__(self, weight, mask):
        super().__init__(weight.shape[1], weight.shape[0])
        self.weight.data.copy_(weight)
        self.register_buffer("mask", mask)

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight * self.mask, self.bias)


def torch_layers():
    """Compare training steps of two linear modules, 95 % zeros."""
    if torch is None:
        return
    n, batch = 2048, 64
    generator = torch.Generator().manual_seed(0)
    layers, masked = [], []
    for _ in range(2):
        weight = torch.randn(n, n, generator=generator) / n**0.5
        mask = torch.rand(n, n, generator=generator) < 0.05
        dense = torch.nn.Linear(n, n)
        dense.weight.data.copy_(weight * mask)
        layers.append(cr.torch.SparseLinear.from_linear(dense))
        masked.append(_Masked(weight, mask))
    x = torch.randn(batch, n, generator=generator)

    def training(modules, make):
        model = torch.nn.Sequential(modules[0], torch.nn.ReLU(), modules[1])
        optimizer = make(model.parameters())

        def step():
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

        return step

    contenders = {
        "compressrs.torch": training(layers, lambda p: cr.torch.optim.AdamW(p, lr=1e-6)),
        "Torch": training(masked, lambda p: torch.optim.AdamW(p, lr=1e-6, fused=True)),
    }
    compare(
        f"training step, {n} x {n}, 95 % zeros, batch {batch}, beside masked weights",
        contenders,
        (Target("Torch", 1 / 4),),
    )


def torch_losses():
    """Compare a loss and its gradient with the function of arrays that computes both."""
    if torch is None:
        return
    rng = np.random.default_rng(0)
    for shape in ((128, 1000), (512, 1000)):
        student, teacher = (rng.standard_normal(shape, np.float32) for _ in range(2))
        labels = rng.integers(0, shape[1], shape[0])
        leaf = torch.from_numpy(student.copy()).requires_grad_()
        logits, classes = torch.from_numpy(teacher), torch.from_numpy(labels)
        functional = torch.nn.functional

        def ours(leaf=leaf, logits=logits, classes=classes):
            leaf.grad = None
            cr.torch.kd_loss(leaf, logits, 4.0, classes, 0.5).backward()

        def plain(leaf=leaf, logits=logits, classes=classes):
            leaf.grad = None
            soft = torch.softmax(logits / 4, 1)
            loss = 8 * functional.kl_div(
                torch.log_softmax(leaf / 4, 1), soft, reduction="batchmean"
            ) + 0.5 * functional.cross_entropy(leaf, classes)
            loss.backward()

        contenders = {
            "compressrs.torch": ours,
            "compressrs, arrays": lambda s=student, t=teacher, y=labels: cr.distill.kd_loss(
                s, t, 4.0, y, 0.5
            ),
            "Torch": plain,
        }
        compare(
            f"kd_loss and its gradient, {shape[0]} x {shape[1]}",
            contenders,
            (Target("compressrs, arrays", 1 / 0.9), Target("Torch", 1)),
        )

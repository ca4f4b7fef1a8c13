"""Functions with a gradient that cannot be differentiated itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Return the `backward` of a `Function` whose gradients refuse to be differentiated.

    As a static method in place of `torch.autograd.function.once_differentiable`, which gives
    gradients that are constants to autograd unless those of the outputs require gradients: a
    gradient penalty would be 0 without an error. What the gradients depend on must be in
    `ctx.saved_tensors`, if only by its `anchor`, so that the error is also raised where
    autograd visits no more than the paths to some tensors, as in `torch.autograd.grad`.
    """

    @functools.wraps(backward)
    def refusing(ctx: Any, *upstream: Any) -> Any:
        with torch.no_grad():
            gradients = backward(ctx, *upstream)
        if not torch.is_grad_enabled():  # not create_graph=True
            return gradients
        given = [i for i, gradient in enumerate(gradients) if gradient is not None]
        sources = [t for t in (*ctx.saved_tensors, *upstream) if t is not None]
        if not any(t.requires_grad for t in sources):
            sources.append(torch.empty(0, requires_grad=True))
        refused = _Refused.apply(len(given), *(gradients[i] for i in given), *sources)
        found = dict(zip(given, refused, strict=True))
        return tuple(found.get(i) for i in range(len(gradients)))

    return refusing


class _Refused(torch.autograd.Function):  # type: ignore[misc]
    """The first `count` tensors, which depend on all, in a way that cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Any) -> Any:
        # On the same memory, but no views, which could not be detached in place.
        return tuple(t.data for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        raise RuntimeError(
            "losses and layers of compressrs.torch cannot be differentiated twice: this gradient "
            "was computed with create_graph=True and is differentiated now; use PyTorch's own "
            "loss or layer where the gradient of a gradient is needed"
        )


def anchor(tensor: Any) -> Any:
    """Return an empty tensor that autograd takes to be computed from `tensor`.

    It does not keep the memory of `tensor`, which a `Function` that saved it would.
    """
    with torch.enable_grad():
        return torch.as_strided(tensor, (0,), (1,)).clone()

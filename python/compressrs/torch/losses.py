"""The losses of `compressrs` as functions of tensors that autograd differentiates.

Each computes loss and gradient in one pass, as the function of arrays of the same name, which
has the formula. ``loss.backward()`` passes the gradient on without computing anything again::

    loss = compressrs.torch.kd_loss(student(x), teacher_logits, temperature=4.0)
    loss.backward()
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from compressrs import distill, nn
from compressrs.torch._autograd import anchor, once_differentiable
from compressrs.torch._tensors import array_of, data_of, tensor_of


class _Loss(torch.autograd.Function):  # type: ignore[misc]
    """A loss with its gradient, which `backward` scales."""

    @staticmethod
    def forward(ctx: Any, student: Any, function: Callable[..., Any], name: str, *rest: Any) -> Any:
        arguments, options = rest
        loss, gradient = function(array_of(student, name), *arguments, **options)
        ctx.save_for_backward(anchor(student))
        # Not saved by `save_for_backward`, which would keep a reference until the whole pass is
        # done, so that autograd copied the gradient instead of taking it over.
        ctx.gradient = tensor_of(gradient)
        # A loss in half precision would lose what float32 keeps.
        dtype = student.dtype if student.dtype == torch.float64 else torch.float32
        return torch.as_tensor(loss, dtype=dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Any) -> Any:
        gradient = ctx.gradient
        if gradient is None:
            raise RuntimeError(
                "Trying to backward through the loss a second time, after its gradient was given "
                "away. Specify retain_graph=True in the first backward pass"
            )
        own = not _graph_is_kept()
        if own:
            ctx.gradient = None
        if upstream.ndim:
            rows = upstream.reshape(*upstream.shape, *[1] * (gradient.ndim - upstream.ndim))
            gradient = gradient * rows.to(gradient.dtype)
        elif upstream.item() != 1:
            # The usual loss.backward() needs no pass over the gradient.
            gradient = gradient.mul_(upstream) if own else gradient * upstream
        elif not own:
            # The caller may write into what torch.autograd.grad returns.
            gradient = gradient.clone()
        return gradient, None, None, None, None


def _graph_is_kept() -> bool:
    """Whether the running backward pass may be run again; True where PyTorch does not tell."""
    kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return kept is None or bool(kept())


def _plain(value: Any, name: str, depth: int = 0) -> Any:
    """Return an argument with arrays in place of tensors, also in a list of lists."""
    if isinstance(value, torch.Tensor):
        return data_of(value, name)
    if isinstance(value, (list, tuple)) and depth < 2:
        return [_plain(x, f"{name}[{i}]", depth + 1) for i, x in enumerate(value)]
    return value


_DOC = """Return `{full}` as a differentiable tensor.

    Parameters
    ----------
    {first} : Tensor
        What is differentiated; a dense CPU tensor.
    {rest}
        As of `{full}`, whose formula this is; tensors among them must not require gradients.

    Returns
    -------
    Tensor
        float64 if `{first}` is, else float32. Its backward pass can be run once or, with
        ``retain_graph=True``, several times. Its gradient cannot be differentiated.

    Raises
    ------
    TypeError, ValueError
        As `{full}`, or if a tensor is on another device, or is data that requires gradients.
    RuntimeError
        When a gradient that was computed with ``create_graph=True`` is differentiated.

    Examples
    --------
    >>> import torch, compressrs as cr
    >>> x = torch.tensor({x}, requires_grad=True)
    >>> cr.torch.{name}(x, torch.tensor({y})).backward()
    >>> x.grad.shape == x.shape
    True
    """

_ROWS = "[[1.0, 2.0, 0.5], [0.0, 1.0, 3.0]]"
_EXAMPLES = {
    "cross_entropy": (_ROWS, "[1, 2]"),
    "dkd_loss": (_ROWS, _ROWS + "), labels=torch.tensor([1, 2]"),
    "attention_loss": (f"[{_ROWS}]", f"[{_ROWS}]"),
}


def _differentiable(module: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of tensors for one of arrays, without its `out`."""
    signature = inspect.signature(function)
    kept = [p for name, p in signature.parameters.items() if name != "out"]
    signature = signature.replace(parameters=kept)
    first, *rest = [p.name for p in kept]
    positional = [p.name for p in kept if p.kind is not p.KEYWORD_ONLY]
    names = {p.name for p in kept}
    required = {p.name for p in kept if p.default is p.empty}

    @functools.wraps(function)
    def loss(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(positional, args, strict=False))
        repeated = given.keys() & kwargs
        given |= kwargs
        if (
            len(args) > len(positional)
            or repeated
            or given.keys() - names
            or required - given.keys()
        ):
            # Raises, with Python's message; it would take longer than a small loss.
            signature.bind(*args, **kwargs)
        student = given.pop(first)
        options = {k: _plain(v, k) for k, v in given.items()}
        return _Loss.apply(student, function, first, (), options)

    made: Any = loss
    name = function.__name__
    x, y = _EXAMPLES.get(name, (_ROWS, _ROWS))
    full = f"compressrs.{module}.{name}"
    made.__doc__ = _DOC.format(full=full, name=name, first=first, rest=", ".join(rest), x=x, y=y)
    made.__module__ = __name__
    made.__signature__ = signature.replace(return_annotation=torch.Tensor)
    hints = {k: v for k, v in typing.get_type_hints(function).items() if k != "out"}
    made.__annotations__ = {**hints, first: torch.Tensor, "return": torch.Tensor}
    del made.__wrapped__
    return loss


_LOSSES = {
    function.__name__: _differentiable(module, function)
    for module, functions in (
        (
            "distill",
            (
                distill.kd_loss,
                distill.dkd_loss,
                distill.dist_loss,
                distill.hint_loss,
                distill.attention_loss,
                distill.rkd_distance_loss,
                distill.rkd_angle_loss,
            ),
        ),
        ("nn", (nn.cross_entropy, nn.mse_loss)),
    )
    for function in functions
}
globals().update(_LOSSES)

__all__ = [*_LOSSES]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Callable[..., Any]: ...

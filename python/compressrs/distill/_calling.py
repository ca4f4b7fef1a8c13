"""How the losses of a `Distiller` are called, which take different arguments."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from compressrs._arrays import Array
from compressrs.distill.kd import dkd_loss, kd_loss

Loss = Callable[..., tuple[Any, Array]]

#: What a loss may take after the outputs of student and teacher, in this order.
_FURTHER = ("temperature", "labels", "alpha")

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class ByName:
    """A loss that is given those of temperature, labels and alpha of which it has parameters.

    One without alpha is `weighted`: multiplied by alpha, and the cross-entropy by the rest.
    """

    def __init__(self, loss: Loss, names: list[str]) -> None:
        self.loss, self.names, self.weighted = loss, names, "alpha" not in names

    def __call__(
        self,
        logits: Array,
        teacher: Any,
        temperature: float,
        labels: Array | None,
        alpha: float,
        **options: Any,
    ) -> tuple[Any, Array]:
        given = {"temperature": temperature, "labels": labels, "alpha": alpha}
        named = {name: given[name] for name in self.names}
        soft, gradient = self.loss(logits, teacher, **named, **options)
        if not self.weighted or alpha == 1:
            return soft, gradient
        # It says so where labels are missing.
        hard, of_hard = kd_loss(logits, logits, 1.0, labels, 0.0, **options)
        return alpha * soft + (1 - alpha) * hard, alpha * gradient + (1 - alpha) * of_hard


def five_arguments(loss: Loss) -> Loss:
    """Return a loss of logits, teacher, temperature, labels and alpha.

    Raises
    ------
    TypeError
        If the loss takes neither these nor the first two with those that it names.
    """
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):
        # A builtin that does not tell its parameters.
        return loss
    parameters = list(signature.parameters.values())
    places = [p.name for p in parameters if p.kind in _POSITIONAL]
    inner: Any = loss
    preset: set[str] = set()
    while isinstance(inner, functools.partial):
        preset |= inner.keywords.keys()
        inner = inner.func
    # The first two are the outputs, whatever they are called. What a partial sets is kept, and the
    # alpha of `dkd_loss` is another one.
    own = {*places[:2], *preset, *(["alpha"] if inner is dkd_loss else [])}
    named = [
        p.name
        for p in parameters
        if p.name in _FURTHER
        and p.name not in own
        and p.kind not in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    by_name = ByName(loss, named)
    in_place = all(name in places[2:] and places.index(name) == _place(name) for name in named)
    if in_place and _binds(signature, 5, []):
        takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        if "alpha" in named or takes_any or not _binds(signature, 2, named):
            return loss
    if not _binds(signature, 2, named):
        raise TypeError(
            "loss must take (logits, teacher), and more only by the names temperature, labels and "
            f"alpha, or (logits, teacher, temperature, labels, alpha), got {signature}"
        )
    return by_name


def _place(name: str) -> int:
    """Return where a parameter of this name stands in a call with five arguments."""
    return 2 + _FURTHER.index(name)


def _binds(signature: inspect.Signature, count: int, names: list[str]) -> bool:
    """Return whether a call with so many arguments by position, and these by name, is possible."""
    try:
        signature.bind(*range(count), **dict.fromkeys(names))
    except TypeError:
        return False
    return True

"""The training of a module by a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from compressrs import distill
from compressrs._arrays import Array, is_branch
from compressrs.distill.distiller import Schedule
from compressrs.optim import EMA
from compressrs.torch._tensors import array_of, data_of, tensor_of
from compressrs.torch.optim import Optimizer
from compressrs.torch.pruning import require_module


class Distiller(distill.Distiller):
    """Trains a module on what a teacher says, then on labels alone.

    The training, its checkpoints and its arguments are those of `compressrs.distill.Distiller`.
    Data, labels and weights of rows may be tensors or arrays.

    Parameters
    ----------
    student : torch.nn.Module
        Gives logits of shape (batch, classes) for a batch. `fit` sets it to training and, for
        validation, to evaluation mode.
    teacher : torch.nn.Module, Tensor, callable, or list of these
        A module is set to evaluation mode and run without gradients; a tensor holds the logits
        of all rows. Also what `compressrs.distill.Distiller` takes.
    optimizer : Optimizer of compressrs.torch.optim
        The optimizer of the student's parameters.
    scheduler : torch.optim.lr_scheduler.LRScheduler, optional
        Whose ``step()`` is called after each step of the optimizer.
    loss, temperature, alpha, pruner, ema, after_step, after_epoch, batch_size, rng
        See `compressrs.distill.Distiller`. A loss is one of `compressrs.distill`: it returns
        the gradient, which no graph has to be recorded for.

    Raises
    ------
    TypeError, ValueError
        If something is not of such a kind, or a tensor of logits requires gradients.

    Notes
    -----
    Modules such as `torch.nn.Dropout` draw from PyTorch's global generator, which is not part
    of checkpoints.

    Examples
    --------
    >>> import torch, compressrs as cr
    >>> x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    >>> y = (x[:, 0] + x[:, 1] > 0).long()
    >>> teacher = torch.stack([-5 * x[:, :2].sum(1), 5 * x[:, :2].sum(1)], dim=1)
    >>> student = torch.nn.Linear(8, 2)
    >>> opt = cr.torch.optim.Adam(student.parameters(), lr=0.05)
    >>> distiller = cr.torch.Distiller(student, teacher, opt, temperature=2.0)
    >>> history = distiller.fit(x, y, epochs=6)
    >>> bool((student(x).argmax(1) == y).float().mean() > 0.9)
    True
    """

    def __init__(
        self,
        student: Any,
        teacher: Any,
        optimizer: Optimizer,
        *,
        loss: Callable[..., tuple[Any, Array]] = distill.kd_loss,
        temperature: Schedule = 4.0,
        alpha: Schedule = 0.5,
        scheduler: Any = None,
        pruner: Any = None,
        ema: EMA | None = None,
        after_step: Callable[[Any], object] | None = None,
        after_epoch: Callable[[Any, distill.Epoch], object] | None = None,
        batch_size: int = 32,
        rng: int | np.random.Generator = 0,
    ) -> None:
        self._module = require_module(student, "student")
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizer must be one of compressrs.torch.optim, got {type(optimizer).__name__}"
            )
        if scheduler is not None and not isinstance(
            scheduler, torch.optim.lr_scheduler.LRScheduler
        ):
            raise TypeError(
                "scheduler must be a torch.optim.lr_scheduler.LRScheduler, got "
                f"{type(scheduler).__name__}"
            )
        members = teacher if isinstance(teacher, (list, tuple)) else [teacher]
        members = [_teacher(member, f"teacher[{i}]") for i, member in enumerate(members)]
        super().__init__(
            (self._logits, self._differentiate),
            members if isinstance(teacher, (list, tuple)) else members[0],
            optimizer.array_optimizer,
            loss=loss,
            temperature=temperature,
            alpha=alpha,
            pruner=pruner,
            ema=ema,
            after_step=after_step,
            after_epoch=after_epoch,
            batch_size=batch_size,
            rng=rng,
        )
        self._torch_optimizer, self._torch_scheduler = optimizer, scheduler
        self._output: Any = None

    def _logits(self, x: Any) -> Array:
        with torch.set_grad_enabled(self._module.training):
            self._output = self._module(_input(x))
        return array_of(self._output, "the student's logits")

    def _differentiate(self, gradient: Array) -> list[list[Array | None]]:
        self._torch_optimizer.zero_grad()
        output, self._output = self._output, None
        output.backward(tensor_of(gradient))
        return [
            [None if p.grad is None else array_of(p.grad, "a gradient") for p in group["params"]]
            for group in self._torch_optimizer.param_groups
        ]

    def _update(self, gradients: Any) -> None:
        self._torch_optimizer.step()
        if self._torch_scheduler is not None:
            self._torch_scheduler.step()

    def _set_mode(self, training: bool) -> None:
        self._module.train(training)

    def _arrays(self) -> dict[str, Array]:
        buffers = {name: array_of(b, name) for name, b in self._module.named_buffers()}
        return {**super()._arrays(), **buffers}

    def _parts(self) -> dict[str, Any]:
        settings = _Settings(self._torch_optimizer, self._torch_scheduler)
        # After the optimizer, whose groups it sets.
        return {**super()._parts(), "settings": settings}


class _Settings:
    """Hyperparameters of PyTorch's groups, and the state of a schedule of PyTorch's."""

    def __init__(self, optimizer: Optimizer, scheduler: Any) -> None:
        self._optimizer, self._scheduler = optimizer, scheduler

    def state_dict(self) -> dict[str, Any]:
        groups = [
            {k: v for k, v in group.items() if k not in ("params", "param_names")}
            for group in self._optimizer.param_groups
        ]
        state = {} if self._scheduler is None else self._scheduler.state_dict()
        return {"groups": _lists(groups), "scheduler": _lists(state)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        for group, given in zip(self._optimizer.param_groups, state_dict["groups"], strict=True):
            group.update(given)
        if self._scheduler is not None:
            self._scheduler.load_state_dict(dict(state_dict["scheduler"]))


def _lists(tree: Any) -> Any:
    """Return a tree with lists in place of tuples, as it is read from a file."""
    if isinstance(tree, dict):
        return {key: _lists(value) for key, value in tree.items()}
    return [_lists(value) for value in tree] if is_branch(tree) else tree


def _input(x: Any) -> Any:
    return tensor_of(x) if isinstance(x, np.ndarray) else x


def _teacher(teacher: Any, name: str) -> Any:
    """Return a teacher of arrays."""
    if isinstance(teacher, torch.Tensor):
        return data_of(teacher, name)
    if not isinstance(teacher, torch.nn.Module):
        return teacher
    teacher.eval()

    def logits(x: Any) -> Array:
        with torch.no_grad():
            return array_of(teacher(_input(x)), f"the logits of {name}")

    return logits

"""Pruning of modules by the names of their parameters, and statistics of what they take."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from compressrs import _core
from compressrs._arrays import Array, require_in_place
from compressrs._checks import strings
from compressrs.prune import Granularity, InputStatistics, Score, masks
from compressrs.prune.scores import as_score
from compressrs.prune.selection import Scope, Sparsity
from compressrs.torch._tensors import changed, data_of, tensor_of, weight_of
from compressrs.torch.layers import SparseLinear
from compressrs.torch.optim import Optimizer


def require_module(module: object, name: str = "module") -> Any:
    """Return `module`, if it is a `torch.nn.Module`.

    Raises
    ------
    TypeError
        If it is not.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {type(module).__name__}")
    return module


def prune(
    module: Any,
    sparsity: Sparsity,
    names: Sequence[str] | None = None,
    *,
    score: Score | None = None,
    scope: Scope = "global",
    granularity: Granularity | None = None,
    optimizer: Any = None,
) -> dict[str, Any]:
    """Set the weights of a module with the lowest scores to 0, and have an optimizer keep them.

    Parameters
    ----------
    module : torch.nn.Module
        Its parameters stay the same tensors; they are changed in place.
    sparsity : float, or sequence of float
        The exact fraction of the weights, or of the units of `granularity`, to remove.
    names : sequence of str, optional
        Names of parameters, as of `named_parameters`; by default all with at least two axes.
        A tied parameter is named once.
    score, scope, granularity
        See `compressrs.prune.masks`; magnitudes of single weights over all parameters together
        by default. A score that needs gradients must have been updated, with a dict of arrays
        by name.
    optimizer : torch.optim.Optimizer, optional
        One of `compressrs.torch.optim` holds the weights at 0 in its update, together with
        their state. Any other resets them after each of its steps.

    Returns
    -------
    dict of str to Tensor of bool
        The masks by name, True where a weight is kept.

    Raises
    ------
    TypeError
        If `module` or `optimizer` is none, or a parameter is not of a floating-point dtype.
    ValueError
        If a name is unknown, two names are of one tied parameter, a parameter is not one of
        the optimizer's, not contiguous, or not on the CPU. Nothing is changed then.

    Examples
    --------
    >>> import torch, compressrs as cr
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> opt = cr.torch.optim.Adam(model.parameters())
    >>> masks = cr.torch.prune(model, 0.5, ["0.weight"], optimizer=opt)
    >>> model(torch.ones(3, 4)).sum().backward()
    >>> opt.step()
    >>> int((model[0].weight == 0).sum())
    16
    """
    parameters = _named(require_module(module), names)
    if optimizer is not None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
            )
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, p in parameters.items():
            if id(p) not in own:
                raise ValueError(f"{name} must be a parameter of the optimizer, but is not")
    weights = {name: weight_of(p, name) for name, p in parameters.items()}
    require_in_place([*weights.values()], [*weights])
    found = masks(as_score(score).scores(weights), sparsity, scope, granularity)
    if isinstance(optimizer, Optimizer):
        optimizer.set_masks({p: found[name] for name, p in parameters.items()})
    else:
        reset = functools.partial(_reset, list(parameters.items()), found)
        reset()
        if optimizer is not None:
            optimizer.register_step_post_hook(reset)
    return {name: tensor_of(mask) for name, mask in found.items()}


def _reset(parameters: list[tuple[str, Any]], masks: dict[str, Array], *_: Any) -> None:
    """Set masked weights to 0."""
    for name, p in parameters:
        _core.apply_mask(weight_of(p, name), masks[name], name)
    changed(*(p for _, p in parameters))


def _named(module: Any, names: Sequence[str] | None) -> dict[str, Any]:
    """Return parameters by name.

    Raises
    ------
    TypeError, ValueError
        If a name is unknown, or of the same parameter as another.
    """
    if names is None:
        found = {name: p for name, p in module.named_parameters() if p.ndim >= 2}
    else:
        names = strings(names, "names")
        known = dict(module.named_parameters(remove_duplicate=False))
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"names must be among {sorted(known)}, got {unknown[0]!r}")
        found = {name: known[name] for name in names}
    if not found:
        raise ValueError("names must be of at least one parameter, got none")
    first: dict[int, str] = {}
    for name, p in found.items():
        if (other := first.setdefault(id(p), name)) != name:
            raise ValueError(f"names must not be of one tied parameter: {other!r} and {name!r}")
    return found


def input_statistics(
    module: Any, batches: Any, *, gram: bool = False
) -> dict[str, InputStatistics]:
    """Return the statistics of the inputs of all linear modules, for calibration inputs.

    Parameters
    ----------
    module : torch.nn.Module
        Of any kind. It is run in evaluation mode, without gradients, and is unchanged.
    batches : Tensor, or iterable of Tensor or of tuples of these
        Inputs of the module, in one tensor or batch by batch; a tuple holds several arguments.
    gram : bool, default False
        See `compressrs.prune.InputStatistics`.

    Returns
    -------
    dict of str to InputStatistics
        By the name of each `torch.nn.Linear` and `SparseLinear`, as
        `compressrs.prune.save_statistics` takes them. A module that is used several times has
        the statistics of all its inputs.

    Raises
    ------
    TypeError
        If `module` is none, or the batches are not tensors.
    ValueError
        If an input is not on the CPU or requires gradients, or an activation is not finite.

    Examples
    --------
    >>> import torch, compressrs as cr
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> cr.torch.input_statistics(model, torch.ones(5, 3))
    {'0': <InputStatistics(3) of 5 rows>, '2': <InputStatistics(4) of 5 rows>}
    """
    module = require_module(module)
    whole = isinstance(batches, torch.Tensor)
    given = [batches] if whole else batches
    # An array of no axes says that it can be iterated over.
    if not isinstance(given, Iterable) or getattr(given, "shape", None) == ():
        raise TypeError(
            f"batches must be a tensor or an iterable of tensors, got {type(batches).__name__}"
        )
    linear = {
        name: m
        for name, m in module.named_modules()
        if isinstance(m, (torch.nn.Linear, SparseLinear))
    }
    found = {name: InputStatistics(m.in_features, gram=gram) for name, m in linear.items()}

    def seen(name: str) -> Callable[[Any, Any, Any], None]:
        def update(_: Any, inputs: Any, named: Any) -> None:
            x = (*inputs, *named.values())[0]
            found[name].update(data_of(x.detach(), f"the input of {name}"))

        return update

    modes = [(m, m.training) for m in module.modules()]
    hooks = [
        m.register_forward_pre_hook(seen(name), with_kwargs=True) for name, m in linear.items()
    ]
    try:
        module.eval()
        with torch.no_grad():
            for k, batch in enumerate(given):
                inputs = batch if isinstance(batch, tuple) else (batch,)
                for x in inputs:
                    data_of(x, "batches" if whole else f"batches[{k}]")
                module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for m, training in modes:
            m.training = training
    return found

"""Every rule of `compressrs.optim` as a `torch.optim.Optimizer`.

The classes have the names, arguments and defaults of those in `compressrs.optim`, which are
PyTorch's where PyTorch has the rule, and the keyword arguments `state_dtype`, `precision` and
`seed`, which PyTorch's lack::

    opt = compressrs.torch.optim.AdamW(model.parameters(), lr=1e-3, state_dtype="int8")
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 100)
    opt.zero_grad()
    loss.backward()
    opt.step()
    scheduler.step()
"""

from __future__ import annotations

import inspect
import operator
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch

from compressrs import optim as rules
from compressrs._arrays import Array, Views
from compressrs._assignment import CheckedDict
from compressrs._checks import flag, function
from compressrs._state import all_or_nothing
from compressrs.optim._dicts import OF_GROUPS
from compressrs.optim._loading import TORCH_SWITCHES
from compressrs.torch._tensors import array_of, changed, tensor_of, weight_of

#: Gradients of up to so many elements in all are not converted again while they are the same
#: tensors. Larger ones are not held on to between steps.
_HELD = 1 << 20

_pointer = torch.Tensor.data_ptr


class Optimizer(torch.optim.Optimizer):  # type: ignore[misc]
    """Base class of the optimizers, of which each has the rule of one in `compressrs.optim`.

    It can be used wherever a `torch.optim.Optimizer` can: with PyTorch's schedulers, with
    `torch.amp.GradScaler`, with hooks. Steps read and write the memory of parameters and
    gradients, and increment the version counters of the parameters, so that a backward pass
    that needs their former values raises.

    Parameters
    ----------
    params : iterable of Tensor, of pairs of name and Tensor, or of group dicts
        Contiguous CPU tensors of float32, float64, float16 or bfloat16.
    *args, **kwargs
        Hyperparameters of the rule, and `state_dtype`, `precision` and `seed`; see
        `compressrs.optim.Optimizer`.

    Attributes
    ----------
    param_groups : list of dict
        As in PyTorch; hyperparameters may be changed between steps.
    state : dict
        By parameter, the tensors of its state; what is written into them takes effect.
    grad_norm : float or None
        The norm of all gradients in the last step, if `step` had to find it.

    Raises
    ------
    TypeError, ValueError
        If a parameter is not such a tensor, or a hyperparameter is out of range. Meta tensors
        have no memory to be updated; tensors that share memory, other than as one tied
        parameter, would be updated twice.
    """

    #: The optimizer in `compressrs.optim` whose rule this is.
    rule: ClassVar[type[rules.Optimizer]]

    def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        args = tuple(map(_number, args))
        kwargs = {name: _number(value) for name, value in kwargs.items()}
        # Validates the hyperparameters, before any parameter is looked at.
        make: Any = self.rule
        defaults = make(np.zeros((1, 1)), *args, **kwargs).defaults
        self._inner: rules.Optimizer | None = None
        self.grad_norm: float | None = None
        super().__init__(_listed(params), dict(defaults))
        known = frozenset(self.defaults) | OF_GROUPS
        groups = [_group_of(group, i, known) for i, group in enumerate(self.param_groups)]
        self._inner = make(groups, *args, **kwargs)
        self._changed_groups()

    def _changed_groups(self) -> None:
        """Note the parameters and where their memory is."""
        self._params = _parameters(self.param_groups)
        self._pointers = list(map(_pointer, self._params))
        self._grads: list[Any] = []
        self._grad_pointers: list[int] = []
        self._arrays: list[Array | None] = []
        self._state_of: Any = None
        #: Whether all parameters had a gradient in the last step.
        self._whole = False
        self._nothing = [None] * len(self._params)

    @property
    def array_optimizer(self) -> rules.Optimizer:
        """The `compressrs.optim.Optimizer` that takes the steps, whose arrays are the tensors'.

        For what takes such an optimizer, as `compressrs.prune.Pruner` and
        `compressrs.optim.EMA` do. Hyperparameters are taken from `param_groups` at each step.
        """
        inner = self._own
        self._synchronize()
        return inner

    @property
    def _own(self) -> rules.Optimizer:
        assert self._inner is not None
        return self._inner

    @property
    def state(self) -> Any:
        """The state of each parameter; what is written into its tensors takes effect."""
        if self._inner is None:
            return {}
        own = self._inner.state
        if self._state_of is not own:
            self._state_of = own
            self._state = _State(
                (p, _State((name, tensor_of(a)) for name, a in own[i].items()))
                for i, p in enumerate(self._params)
            )
        return self._state

    @state.setter
    def state(self, state: Any) -> None:
        if self._inner is not None or state:
            raise TypeError("state cannot be replaced; write into its tensors")

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        max_grad_norm: float | None = None,
        grad_scale: float = 1.0,
        nonfinite: Literal["raise", "skip", "ignore"] = "ignore",
    ) -> Any:
        """Update every parameter that has a gradient.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and the gradients again, and returns the loss.
        max_grad_norm, grad_scale, nonfinite
            Clipping, unscaling and checks within the update; see
            `compressrs.optim.Optimizer.step`. The norm is in `grad_norm` afterwards.

        Returns
        -------
        Tensor or None
            What `closure` returned.

        Raises
        ------
        TypeError, ValueError
            If a gradient or a hyperparameter cannot be used, or a parameter was replaced by one
            of another shape or dtype. All parameters and states are unchanged then.
        """
        loss = None
        if closure is not None:
            function(closure, "closure")
            with torch.enable_grad():
                loss = closure()
        inner = self._own
        self._synchronize()
        flat = self._gradients()
        self.grad_norm = inner._step(flat, max_grad_norm, grad_scale, nonfinite)
        if self._whole:
            changed(*self._params)
        else:
            changed(*(p for p, g in zip(self._params, flat, strict=True) if g is not None))
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as in PyTorch.

        Raises
        ------
        TypeError, ValueError
            As for the constructor; nothing is added in that case.
        """
        before = len(self.param_groups)
        super().add_param_group(param_group)
        if self._inner is None:
            return
        try:
            group = _group_of(self.param_groups[-1], before, self._inner._known)
            self._inner.add_param_group(group)
        except BaseException:
            del self.param_groups[before:]
            raise
        self._changed_groups()

    def set_masks(self, masks: Mapping[Any, Any]) -> None:
        """Set masked weights and their state to exactly 0, and keep them there.

        Parameters
        ----------
        masks : dict of Tensor to Tensor or array of bool, or None
            By parameter, True where a weight is kept; None removes the mask. Parameters that
            are not named keep theirs.

        Raises
        ------
        TypeError
            If a mask is not boolean.
        ValueError
            If a mask does not have its parameter's shape, or a tensor is not a parameter.
        """
        if not isinstance(masks, Mapping):
            raise TypeError(f"masks must be a dict by parameter, got {type(masks).__name__}")
        index = {p: i for i, p in enumerate(self._params)}
        if any(p not in index for p in masks):
            raise ValueError("masks must be of parameters of the optimizer, got another tensor")
        given = {index[p]: _plain(m, f"masks[{index[p]}]") for p, m in masks.items()}
        inner = self._own
        self._synchronize()
        with all_or_nothing() as undo:
            inner._set_masks(given, undo)
        changed(*masks)

    def convert_state(self, state_dtype: Any = None, precision: Any = None) -> None:
        """Convert state and weights to another storage; see `compressrs.optim.Optimizer`.

        Raises
        ------
        ValueError
            If a setting is invalid; nothing is changed in that case.
        """
        self._synchronize()
        self._own.convert_state(state_dtype, precision)
        for group, own in zip(self.param_groups, self._own.param_groups, strict=True):
            group.update({key: own[key] for key in ("state_dtype", "precision")})

    def state_dict(self) -> dict[str, Any]:
        """Return state, hyperparameters and masks, in PyTorch's format.

        The PyTorch optimizer of the same name loads it if the state is in full precision.
        Tensors of the state are the optimizer's own, as in PyTorch.
        """
        state_dict: dict[str, Any] = super().state_dict()
        state_dict["state"] = {
            i: {k: v.to(torch.float32) if k == "step" else v for k, v in values.items()}
            for i, values in state_dict["state"].items()
        }
        own = self._own.state_dict()
        masks = {i: tensor_of(mask) for i, mask in own["masks"].items()}
        codes = {"codes": own["codes"]} if "codes" in own else {}
        return {**state_dict, "class": type(self).__name__, "masks": masks, **codes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, or that of the PyTorch optimizer of the same name.

        Raises
        ------
        ValueError
            If it does not match the optimizer or its parameters; nothing is changed then.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a dict, got {type(state_dict).__name__}")
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            result = hook(self, state_dict)
            state_dict = state_dict if result is None else result
        given = _for_arrays(state_dict, self._own._known)
        self._synchronize()
        self._own.load_state_dict(given)
        keep = {"params", "param_names", "state_dtype", "precision"}
        for group, new in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({k: v for k, v in new.items() if k not in keep | TORCH_SWITCHES})
        if "masks" in state_dict:
            changed(*self._params)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def _synchronize(self) -> None:
        """Take over hyperparameters, and memory that parameters were given since.

        Raises
        ------
        ValueError
            If parameters were replaced by others, or have another shape or dtype now.
        """
        now = _parameters(self.param_groups)
        if len(now) != len(self._params) or not all(map(operator.is_, now, self._params)):
            raise ValueError(
                "the parameters in param_groups must be those that the optimizer was made with; "
                "use add_param_group for more, or make a new optimizer"
            )
        inner = self._own
        if list(map(_pointer, now)) != self._pointers:
            self._rebind()
        switched = False
        for group, own in zip(self.param_groups, inner.param_groups, strict=True):
            for key in self.defaults:
                value = group.get(key, self.defaults[key])
                if key in own and value is not own[key]:
                    if bool(value) != bool(own[key]):
                        switched = True
                    own[key] = _number(value)
            if "frozen" in group:
                own["frozen"] = group["frozen"]
        if switched:
            # A momentum that was 0, for example, needs a buffer from now on.
            inner._configure([{} for _ in inner.param_groups], "step")

    def _rebind(self) -> None:
        """Train the memory that parameters have now, with the state of before."""
        inner, first = self._own, 0
        names = inner._names
        for p, old, name in zip(self._params, inner._arrays(), names, strict=True):
            new = weight_of(p, name)
            if new.shape != old.shape or new.dtype != old.dtype:
                raise ValueError(
                    f"{name} must be {old.dtype} of shape {old.shape}, as when the optimizer was "
                    f"made, got {new.dtype} of shape {new.shape}; make a new optimizer"
                )
        with inner._changing("step"), inner._transaction():
            for group in inner._groups:
                end = first + len(group["params"])
                group.replace_params(Views(self._params[first:end], names[first:end]))
                first = end
            inner._prepare()
        self._changed_groups()

    def _gradients(self) -> list[Array | None]:
        """Return a view of each parameter's gradient."""
        grads = [p.grad for p in self._params]
        if (
            len(grads) == len(self._grads)
            and all(map(operator.is_, grads, self._grads))
            and list(map(_pointer, grads)) == self._grad_pointers
        ):
            return self._arrays
        arrays: list[Array | None] = []
        for i, grad in enumerate(grads):
            if grad is None:
                arrays.append(None)
                continue
            try:
                arrays.append(grad.numpy())
            except (TypeError, RuntimeError):
                # Another dtype than NumPy's, or one that this refuses with its reason.
                arrays.append(array_of(grad, f"the gradient of {self._own._names[i]}"))
        # Not `None in grads`, which asks each tensor whether it equals None.
        self._whole = all(map(operator.is_not, grads, self._nothing))
        held = self._whole and sum(a.size for a in arrays if a is not None) <= _HELD
        self._grads = grads if held else []
        self._grad_pointers = list(map(_pointer, grads)) if held else []
        self._arrays = arrays if held else []
        return arrays

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Remove the gradients, or set them to 0 if not `set_to_none`."""
        if flag(set_to_none, "set_to_none"):
            self._grads, self._grad_pointers, self._arrays = [], [], []
        super().zero_grad(set_to_none)

    def __getstate__(self) -> dict[str, Any]:
        # The optimizer of arrays refers to the parameters themselves: copied or pickled together
        # with a module, it trains the module's copies.
        names = ("defaults", "param_groups", "grad_norm", "_inner")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._changed_groups()


class _State(CheckedDict):
    """State by parameter, or tensors by name; what is assigned is copied into the tensors."""

    def __init__(self, items: Iterator[tuple[Any, Any]]) -> None:
        super().__init__(dict(items))

    def __setitem__(self, key: Any, value: Any) -> None:
        if key not in self:
            raise ValueError(f"the state has no {key!r}")
        own = self[key]
        if isinstance(own, _State):
            own.update(value)
        elif value is not own:
            with torch.no_grad():
                own.copy_(torch.as_tensor(value))


def _listed(params: Any) -> Any:
    """Return parameters as a list, or a tensor, which PyTorch refuses, as it is."""
    if isinstance(params, torch.Tensor):
        return params
    try:
        listed = list(params)
    except TypeError:
        got = type(params).__name__
        raise TypeError(
            f"params must be an iterable of tensors or group dicts, got {got}"
        ) from None
    if not listed:
        raise ValueError("params must hold at least one tensor, got none")
    return listed


def _parameters(groups: list[dict[str, Any]]) -> list[Any]:
    return [p for group in groups for p in group["params"]]


def _number(value: Any) -> Any:
    """Return a hyperparameter as a number if it is a tensor of one, as PyTorch accepts."""
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value


def _group_of(group: Mapping[str, Any], position: int, known: frozenset[str]) -> dict[str, Any]:
    """Return a group for the optimizer of arrays, which refers to the parameters.

    Raises
    ------
    TypeError, ValueError
        If a parameter cannot be updated in place.
    """
    names = list(group.get("param_names") or range(len(group["params"])))
    params = dict(zip(names, group["params"], strict=True))
    if len(params) != len(names):
        raise ValueError(f"params[{position}] must have different names, got {names}")
    for name, p in params.items():
        view = weight_of(p, f"params[{position}][{name!r}]")
        if view.dtype.kind == "c":
            raise TypeError(
                f"params[{position}][{name!r}] must be real, got {view.dtype}; give complex "
                "tensors to the optimizer of compressrs.optim"
            )
    values = {k: _number(v) for k, v in group.items() if k in known and k != "params"}
    return {**values, "params": params if "param_names" in group else list(params.values())}


def _for_arrays(state_dict: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """Return what of a state dict the optimizer of arrays loads; it checks the rest."""
    given = {k: v for k, v in state_dict.items() if k in _LOADED}
    groups = given.get("param_groups")
    if isinstance(groups, (list, tuple)) and all(isinstance(group, Mapping) for group in groups):
        given["param_groups"] = [
            {k: _number(v) for k, v in group.items() if k in known or k == "params"}
            for group in groups
        ]
    masks = given.get("masks")
    if isinstance(masks, Mapping):
        given["masks"] = {i: _plain(mask, f"masks[{i!r}]") for i, mask in masks.items()}
    return given


def _plain(value: Any, name: str) -> Any:
    return array_of(value, name) if isinstance(value, torch.Tensor) else value


#: What an optimizer of arrays takes from a state dict.
_LOADED = frozenset(("class", "state", "param_groups", "masks", "codes"))

_DOC = """{name} as a `torch.optim.Optimizer`; arguments and defaults are those of `{rule}`.

    Parameters
    ----------
    params : iterable of Tensor, of pairs of name and Tensor, or of group dicts
        See `Optimizer`.
    {arguments}
        See `{rule}`.

    Examples
    --------
    >>> import torch, compressrs as cr
    >>> w = torch.nn.Parameter(torch.ones(2, 2))
    >>> opt = cr.torch.optim.{name}([w])
    >>> w.square().sum().backward()
    >>> for _ in range(2):
    ...     opt.step()
    >>> bool((w != 1).all())
    True
    """


def _class_of(rule: type[rules.Optimizer]) -> type[Optimizer]:
    """Return the class of a rule, with the signature of the rule's own."""
    signature = inspect.signature(rule.__init__)
    hints = typing.get_type_hints(rule.__init__)

    def __init__(self: Any, params: Any, *args: Any, **kwargs: Any) -> None:
        Optimizer.__init__(self, params, *args, **kwargs)

    constructor: Any = __init__
    constructor.__signature__ = signature
    constructor.__annotations__ = {**hints, "params": Any, "return": None}
    constructor.__qualname__ = f"{rule.__name__}.__init__"
    arguments = [name for name in signature.parameters if name not in ("self", "params")]
    full = f"compressrs.optim.{rule.__name__}"
    doc = _DOC.format(name=rule.__name__, rule=full, arguments=", ".join(arguments))
    body = {"__module__": __name__, "__doc__": doc, "__init__": constructor, "rule": rule}
    return type(rule.__name__, (Optimizer,), body)


_CLASSES = {
    name: _class_of(value)
    for name, value in vars(rules).items()
    if isinstance(value, type) and issubclass(value, rules.Optimizer) and hasattr(value, "_rule")
}
globals().update(_CLASSES)

__all__ = ["Optimizer", *_CLASSES]


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:

    def __getattr__(name: str) -> type[Optimizer]: ...

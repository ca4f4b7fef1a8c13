"""Base class of the optimizers: the step, and state dicts."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeAlias, TypedDict

import numpy as np

from compressrs import _core
from compressrs._arrays import ArrayTree, flatten_like
from compressrs._checks import file_path
from compressrs._state import Stateful, Take, Undo, all_or_nothing
from compressrs.optim import storage as files
from compressrs.optim._loading import plan
from compressrs.optim._moments import CODES, has_codes
from compressrs.optim._parameters import Parameters
from compressrs.optim._weights import masks_set, packed, unpacked

StateDtype: TypeAlias = Literal["float32", "bfloat16", "int8"]
Precision: TypeAlias = Literal["nearest", "stochastic", "kahan", "master"]


class Storage(TypedDict, total=False):
    """Keyword arguments that say how state and weights are stored; see `Optimizer`."""

    state_dtype: StateDtype
    precision: Precision
    seed: int


#: Defaults of `Storage`.
_STORAGE: dict[str, Any] = {"state_dtype": "float32", "precision": "nearest", "seed": 0}


class Optimizer(Parameters, Stateful):
    """Base class of the optimizers; use one of its subclasses.

    Parameters
    ----------
    params : array, list, nested dict of arrays, or list of group dicts
        float32, float64, float16 or bfloat16 (of ml_dtypes), complex64 or complex128,
        C-contiguous and writable. They are updated in place, so they must not share
        memory. Accepted are NumPy arrays, memory maps, and objects that export their memory
        through DLPack or the buffer protocol, such as PyTorch's CPU tensors. An iterator is
        treated as a list. A group dict has a key ``"params"`` and may override hyperparameters.
        Complex parameters are trained as pairs of real and imaginary parts, as PyTorch does;
        `Muon`, `Adafactor`, `Shampoo` and `SOAP` refuse them.
    defaults : dict
        Default hyperparameters of the groups.
    storage : dict, optional
        How state and weights are stored. Subclasses take these as keyword arguments;
        groups may override them.

        state_dtype : {"float32", "bfloat16", "int8"}, default "float32"
            Precision of the moments. "float32" means float64 for float64 parameters.
            "bfloat16" takes half of the memory, "int8" a quarter: 8-bit codes with one
            scale per block of 256. Both are stochastically rounded, so that small
            updates are not lost. Under "int8", parameters with fewer than 4,096 elements
            keep float32 state, and so do row and column means, step sizes, and the two
            moments that centered RMSprop subtracts.
        precision : {"nearest", "stochastic", "kahan", "master"}, default "nearest"
            How float16 and bfloat16 parameters, whose updates are computed in float32,
            are rounded: "nearest" loses updates smaller than half a unit in the last
            place; "stochastic" is unbiased; "kahan" rounds to nearest and stores the
            rounding error (2 more bytes per element); "master" stores float32 weights (4
            more bytes per element). Other dtypes are not affected.
        seed : int, default 0
            Seed of the stochastic rounding. The same seed gives bit-identical results for
            any number of threads and any vector width.

    Attributes
    ----------
    param_groups : list of dict
        Each has ``"params"``, a list of arrays, and the hyperparameters, which may be
        changed between steps: ``opt.param_groups[0]["lr"] = 1e-4``. A group whose
        ``"frozen"`` is True is not updated, nor is its state. Assigning to an entry of
        ``"params"`` copies into the array that is trained; groups and arrays can be added
        by `add_param_group` only.
    state : dict of dict of array
        By index of the parameter: ``"step"``, the number of steps taken, and the
        rule's buffers, named as in PyTorch. The arrays may be written to.

    Here, in `param_groups`, state dicts and files, a complex parameter of shape `s` and what
    belongs to it are real arrays of shape ``(*s, 2)``.

    Raises
    ------
    TypeError
        If a parameter is not such an array or a hyperparameter not a number.
    ValueError
        If a parameter is read-only, not contiguous, or shares memory with another,
        or a hyperparameter is out of range.
    """

    # A step changes parameters and state in a single call of the core; signal handlers run
    # before or after it.
    _consistent = frozenset(("step", "save", "state_dict"))

    def __init__(
        self, params: ArrayTree, defaults: dict[str, Any], storage: Storage | None = None
    ) -> None:
        if unknown := set(storage or ()) - set(_STORAGE):
            raise TypeError(
                f"{type(self).__name__} has no parameter {sorted(unknown)[0]!r}; "
                f"it takes {', '.join([*defaults, *_STORAGE])}"
            )
        super().__init__(params, {**defaults, **_STORAGE, **(storage or {})})

    def step(
        self,
        grads: ArrayTree,
        *,
        max_grad_norm: float | None = None,
        grad_scale: float = 1.0,
        nonfinite: Literal["raise", "skip", "ignore"] = "ignore",
    ) -> float | None:
        r"""Update every parameter in place.

        Parameters
        ----------
        grads : array, or list or nested dict of arrays
            Gradients in the structure of the parameters (for groups: a list with one
            entry per group), with the parameters' shapes and any floating-point dtype; of
            complex parameters complex ones, the direction of steepest ascent ``df/dx + i df/dy``.
            None leaves a parameter and its state unchanged, a `RowGradient` all rows but
            those that it names. Gradients that are not C-contiguous are copied.
        max_grad_norm : float, optional
            Scales the gradients by ``min(1, max_grad_norm / (norm + 1e-6))``, where
            `norm` is their total 2-norm, as `clip_grad_norm_` does, but without writing
            to them.
        grad_scale : float, default 1.0
            Factor applied to all gradients before clipping: the inverse of a loss scale.
        nonfinite : {"ignore", "raise", "skip"}, default "ignore"
            What to do if a gradient contains NaN or infinity, or, after scaling and
            clipping, a number beyond the range of the type that its parameter is computed
            in: apply it regardless, raise NonFiniteGradientError, or skip the step.
            Gradients of masked weights are not considered.

        Returns
        -------
        float or None
            The total norm of the gradients times `grad_scale`, before clipping, if
            `max_grad_norm` is given or `nonfinite` is not "ignore". NaN or infinite if
            the step was skipped. Also infinite if the norm is beyond the range of
            float64; the gradients are clipped correctly even then.

        Raises
        ------
        TypeError
            If a gradient is not an array of a floating-point dtype, or is complex and its
            parameter is not, or the reverse.
        NonFiniteGradientError
            A ValueError that names the gradient; see `nonfinite`.
        ValueError
            If a gradient does not have its parameter's shape or shares memory with a
            parameter or its state (a `RowGradient` may, since its sums are copies), or a
            hyperparameter is out of range. After any exception all parameters and states
            are unchanged.
        """
        with self._lock:
            self._require_idle("step")
            structure = self._structure
            if structure is None:
                flat = [grads]
            elif type(grads) is list and len(grads) == self._flat_length:
                flat = grads
            else:
                flat = flatten_like(structure, grads, "grads")
            return self._step(flat, max_grad_norm, grad_scale, nonfinite)

    def _step(
        self, flat: list[Any], max_grad_norm: float | None, grad_scale: float, nonfinite: str
    ) -> float | None:
        """Take a step with one gradient, or None, for each parameter, in order."""
        if not isinstance(nonfinite, str):
            raise TypeError(
                f"nonfinite must be 'raise', 'skip' or 'ignore', got {type(nonfinite).__name__}"
            )
        with self._lock:
            self._require_idle("step")
            try:
                self._doing = "step"
                if self._complex:
                    flat = list(map(self._gradient, range(len(flat)), flat, self._arrays()))
                return self._stepper.step(flat, self._groups, max_grad_norm, grad_scale, nonfinite)
            finally:
                self._doing = None

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add a group of parameters; `step` then expects one more entry.

        Parameters
        ----------
        group : dict
            ``"params"`` and hyperparameters that differ from the defaults.

        Raises
        ------
        TypeError, ValueError
            As for the constructor; nothing is added in that case.
        """
        if not isinstance(group, Mapping):
            raise TypeError(f"group must be a dict, got {type(group).__name__}")
        with self._changing("add_param_group"), self._transaction():
            self._add_group(group)

    def _together(self, what: str) -> AbstractContextManager[None]:
        """Have the block raise on all ranks that share this optimizer if it raises on one."""
        return nullcontext()

    def _mean_over_ranks(self, value: float) -> float:
        """Return the mean of a number of each rank that shares this optimizer."""
        return value

    def set_masks(self, masks: ArrayTree | None) -> None:
        """Set masked weights and their state to exactly 0, and keep them there.

        Parameters
        ----------
        masks : array, or list or nested dict of arrays, or None
            Boolean arrays in the structure and shapes of the parameters, True where a weight is
            kept, or `CSRMatrix` patterns, whose stored entries are kept. None removes the
            mask of one parameter, or all masks. Masks are copied, as one bit per weight,
            and are part of state dicts and files. Masked weights are set to 0 at once.

        Raises
        ------
        TypeError
            If a mask is not boolean.
        ValueError
            If a mask does not have its parameter's shape.
        """
        flat = [None] * len(self._paths)
        if masks is not None:
            flat = flatten_like(self._structure, masks, "masks")
        with all_or_nothing() as undo:
            self._set_masks(dict(enumerate(flat)), undo)

    def convert_state(
        self, state_dtype: StateDtype | None = None, precision: Precision | None = None
    ) -> None:
        """Convert the state and weights to another storage precision.

        Parameters
        ----------
        state_dtype, precision : str, optional
            See `Optimizer`; None leaves a setting unchanged. The conversion rounds
            moments to nearest.

        Raises
        ------
        ValueError
            If a setting is invalid; nothing is changed in that case.

        Examples
        --------
        >>> import numpy as np, compressrs as cr
        >>> w = np.zeros(4096, np.float32)
        >>> opt = cr.optim.Adam(w)
        >>> opt.step(np.ones_like(w))
        >>> sum(a.nbytes for a in opt.state[0].values())
        32776
        >>> opt.convert_state("int8")
        >>> sum(a.nbytes for a in opt.state[0].values())
        8328
        """
        given = {"state_dtype": state_dtype, "precision": precision}
        changes = {key: value for key, value in given.items() if value is not None}
        self._configure([changes] * len(self.param_groups), "convert_state")

    def state_dict(self) -> dict[str, Any]:
        """Return state, hyperparameters and masks in PyTorch's format.

        The arrays are the optimizer's own, not copies. Use ``copy.deepcopy`` to keep them
        while training continues.

        Returns
        -------
        dict
            ``"state"``: by index of the parameter, and ``"param_groups"``: with
            these indices in place of the parameters. With complex parameters also
            ``"complex"``, their indices; all that belongs to them is in pairs. With 8-bit
            state also ``"codes"``, the version of the code format; the scales of
            ``"exp_avg"``, for example, are in ``"exp_avg_scale"``.
        """
        with self._reading("state_dict"):
            groups, first = [], 0
            for group in self.param_groups:
                indices = list(range(first, first + len(group["params"])))
                values = {k: copy.deepcopy(v) for k, v in group.items() if k != "params"}
                names = [self._names[i] for i in indices]
                groups.append({**values, "params": indices, "param_names": names})
                first += len(indices)
            state = {i: dict(buffers) for i, buffers in self._state.items()}
            shapes = [array.shape for array in self._arrays()]
            masks = {
                i: unpacked(bits, shapes[i])
                for i, bits in enumerate(self._masks)
                if bits is not None
            }
            # For `to_torch`, which has no parameters to look at.
            pairs = {"complex": sorted(self._complex)} if self._complex else {}
            codes = {"codes": dict(CODES)} if has_codes(state) else {}
            return {
                "class": self._kind,
                "state": state,
                "param_groups": groups,
                "masks": masks,
                **pairs,
                **codes,
            }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the state, hyperparameters and masks that `state_dict` returned.

        Values are copied into the optimizer's own arrays, and converted if `state_dtype`
        differs. State dicts of the PyTorch optimizer of the same name, with CPU tensors, are
        accepted as well.

        Raises
        ------
        ValueError
            If it does not match the optimizer or its parameters; nothing is changed in
            that case.
        """
        super().load_state_dict(state_dict)

    def _checked(self, state_dict: Mapping[str, Any]) -> Take:
        updates, copies, masks = plan(self, state_dict)
        arrays = self._arrays()
        masked = [i for i, mask in enumerate(masks or []) if mask is not None]
        # Changes nothing; rejects arrays that cannot be changed in place.
        _core.clamp([arrays[i] for i in masked], [self._names[i] for i in masked], np.inf)

        def take(undo: Undo) -> None:
            with self._changing("load_state_dict"):
                self._remember(undo)
                if masks is not None:
                    self._masks = [packed(mask) for mask in masks]
                for group, update in zip(self.param_groups, updates, strict=True):
                    group.update(update)
                self._prepare()
                for name, i, value in copies:
                    undo.write(self._state[i][name], value)
                self._apply_masks(range(len(arrays)), undo)
                if masks is not None:
                    masks_set(arrays, undo)

        return take

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save state, hyperparameters and masks to one safetensors file.

        The file is written under a temporary name and then renamed, so an existing file is
        only replaced by a complete one. Requires the package safetensors
        (``pip install 'compressrs[save]'``).

        Raises
        ------
        OSError
            If the file cannot be written.
        TypeError
            If a group holds a value that JSON cannot represent.
        """
        with self._reading("save"):
            files.save(file_path(path), self._kind, self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Load state, hyperparameters and masks from a file that `save` wrote.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it is corrupt, of another format, rule or version, or does not match the
            parameters; nothing is changed in that case.
        """
        file = file_path(path)
        state = files.load(file, self._kind)
        try:
            self.load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    def __repr__(self) -> str:
        groups = "; ".join(
            ", ".join(
                f"{k}={group[k]!r}"
                for k in self.defaults
                if k not in _STORAGE or group[k] != _STORAGE[k]
            )
            for group in self.param_groups
        )
        return f"{type(self).__name__}({len(self._paths)} parameters; {groups})"

"""Exponential moving averages of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from compressrs import _core
from compressrs._arrays import (
    Array,
    ArrayTree,
    compute_dtype,
    is_number,
    rebuild,
    require_in_place,
)
from compressrs._assignment import assignable
from compressrs._checks import count, flag, number
from compressrs._state import Stateful, Take, Undo, require_keys, restoring, uninterrupted
from compressrs.optim._complex import named_parameters
from compressrs.optim._weights import Weights


class EMA(Stateful):
    r"""An exponential moving average of weights.

    .. math:: a \leftarrow a + (1 - \beta_t) (\theta - a), \quad
        \beta_t = \min\left(\beta, \frac{1 + t}{10 + t}\right) \text{ with warm-up, else } \beta

    The average is initialized with the current weights.

    Parameters
    ----------
    params : array, or list or nested dict of arrays
        float32, float64, float16, bfloat16, complex64 or complex128, C-contiguous and writable.
    decay : float, default 0.999
        :math:`\beta` in [0, 1).
    warmup : bool, default False
        Increase the decay from 0.18 to :math:`\beta`, so that the influence of the
        initial weights fades quickly.

    Attributes
    ----------
    average : array, list or dict
        The averages, in the structure of `params`. They are float32 for parameters in
        half precision, which would round small changes away.

    Raises
    ------
    TypeError
        If a parameter is not such an array.
    ValueError
        If `decay` is out of range, or an array cannot be changed in place.

    References
    ----------
    Polyak & Juditsky, "Acceleration of stochastic approximation by averaging", 1992;
    ``torch.optim.swa_utils.get_ema_multi_avg_fn``; the warm-up is TensorFlow's
    ``ExponentialMovingAverage(num_updates=)``.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.zeros(2)
    >>> ema = cr.optim.EMA(w, decay=0.75)
    >>> w += 1
    >>> ema.update()
    >>> ema.average
    array([0.25, 0.25])
    >>> with ema.applied():
    ...     print(w)
    [0.25 0.25]
    >>> w
    array([1., 1.])
    """

    def __init__(self, params: ArrayTree, decay: float = 0.999, *, warmup: bool = False) -> None:
        self.decay = number(decay, "decay", 0, below=1)
        self.warmup = flag(warmup, "warmup")
        self.step_count = 0
        if isinstance(params, Iterator):
            params = list(params)
        self._names, self._weights = named_parameters(params, "params")
        require_in_place(self._weights, self._names)
        self._averages = [w.astype(compute_dtype(w.dtype), order="C") for w in self._weights]
        self._shared = Weights("EMA", self._names, self._weights, (self._averages,))
        self._average_names = [f"the average of {name}" for name in self._names]
        self._structure = rebuild(params, iter([None] * len(self._weights)))

    @property
    def average(self) -> ArrayTree:
        """The averages in the structure of the parameters; assigning to an entry copies."""
        averages = self._weights.originals(self._averages)
        return assignable(rebuild(self._structure, iter(averages)), "average")

    def update(self) -> None:
        """Update the average with the current weights; call once after each step."""
        self._shared.require_unchanged()
        _core.lerp(
            self._averages, self._average_names, self._weights, self._names, 1 - self._decay()
        )
        self._shared.apply_masks(self._averages)
        self.step_count += 1

    def _decay(self) -> float:
        """Return the weight of the average in the next update."""
        if self.warmup:
            return min(self.decay, (1 + self.step_count) / (10 + self.step_count))
        return self.decay

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Return a context in which the weights are replaced by their averages.

        Weights that are masked by an optimizer or a pruner stay 0.

        Raises
        ------
        ValueError
            If a parameter has been replaced or rearranged since, for example by `shrink`.
        """
        self._shared.require_unchanged()
        weights = [w.copy() for w in self._weights]
        with restoring() as undo:
            # Assigned, since a mask may be set meanwhile.
            undo.on_failure(lambda: self._shared.assign(weights))
            self._shared.assign(self._averages)
            yield

    def copy_to_params(self) -> None:
        """Set the weights to their averages permanently; masked weights stay 0."""
        self._shared.require_unchanged()
        with uninterrupted():
            self._shared.assign(self._averages)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages, without copying, and the number of updates.

        Those of complex parameters are pairs, in a last axis.
        """
        return {
            "averages": list(self._averages),
            "param_names": list(self._names),
            "step_count": self.step_count,
        }

    def _checked(self, state_dict: Mapping[str, Any]) -> Take:
        require_keys(state_dict, ("averages", "step_count"), ("param_names",))
        self._shared.require_unchanged(loading=True)
        averages, steps = checked_arrays(self._averages, state_dict, "averages", self._names)

        def take(undo: Undo) -> None:
            undo.remember_attributes(self)
            assign(self._averages, averages, undo)
            self._shared.state_loaded(undo)
            self._shared.apply_masks(self._averages)
            self.step_count = steps

        return take

    def _replace(
        self, find: Callable[[Array], tuple[int, Array] | None], cut: Callable[[int, Array], Array]
    ) -> None:
        """Average smaller arrays in the place of those that `find` has one for."""
        found = {i: new for i, w in enumerate(self._weights) if (new := find(w)) is not None}

        def cut_own(i: int, values: Array) -> Array:
            return cut(found[i][0], values) if i in found else values

        self._weights = self._weights.replaced({i: array for i, (_, array) in found.items()})
        self._averages = [cut_own(i, average) for i, average in enumerate(self._averages)]
        self._shared = self._shared.replaced(self._weights, cut_own, (self._averages,))


def checked_arrays(
    targets: list[Array], state_dict: Mapping[str, Any], key: str, names: list[str]
) -> tuple[list[Array], int]:
    """Return copies of a state dict's arrays that match `targets`, and its ``"step_count"``.

    Nothing is written, so that a caller can check everything before it changes anything.
    Arrays are matched by name, or by position if there are no ``"param_names"`` or only one.

    Raises
    ------
    ValueError
        If they do not match.
    """
    try:
        values = [np.array(value) for value in state_dict[key]]
        steps = count(state_dict["step_count"], "step_count")
        given = state_dict.get("param_names")
        if given is not None:
            # A single parameter needs no name.
            other = len(names) > 1 and sorted(given) != sorted(names)
            if other or isinstance(given, str) or not len(given) == len(values) == len(names):
                raise ValueError(f"param_names must be {names}, got {given}")
            if len(names) == 1:
                given = names
            by_name = dict(zip(given, values, strict=True))
            values = [by_name[name] for name in names]
    except (AttributeError, TypeError, LookupError, ValueError, OverflowError) as error:
        raise ValueError(f"state_dict must hold {key!r} and 'step_count', got {error}") from None
    shapes, own = [v.shape for v in values], [t.shape for t in targets]
    if shapes != own or any(not is_number(v.dtype) for v in values):
        raise ValueError(f"state_dict[{key!r}] must hold numbers of shapes {own}, got {shapes}")
    return values, steps


def assign(targets: list[Array], values: list[Array], undo: Undo) -> None:
    """Copy `values` into `targets` of the same shapes."""
    for target, value in zip(targets, values, strict=True):
        undo.write(target, value)

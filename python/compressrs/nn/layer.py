"""What all layers have in common."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar

import numpy as np

from compressrs._arrays import Array, Shared, as_array, flatten, rebuild

#: A seed, a generator, or None for one that differs from run to run.
RandomState: TypeAlias = int | np.random.Generator | None


_C = TypeVar("_C", bound="Copyable")


class Copyable:
    """Copies and pickles of a layer: its parameters, nothing of the data it was given.

    What a layer keeps of the last batch for `backward` is left out, and gradients, from
    which inputs could be told, are 0 in the copy.
    """

    #: Attributes that hold something of the last batch; None in a copy.
    _of_batch: ClassVar[tuple[str, ...]] = ()

    params: dict[str, Any]
    grads: dict[str, Any]

    def __setattr__(self, name: str, value: Any) -> None:
        trained = self.__dict__.get("params", {}).get(name)
        if not isinstance(trained, np.ndarray) or value is trained:
            super().__setattr__(name, value)
        elif isinstance(self.__dict__[name], np.ndarray):
            # Into the array that an optimizer trains: another would be used, but not trained.
            array = as_array(value, name)
            if array.shape != trained.shape or array.dtype != trained.dtype:
                raise ValueError(
                    f"{name} must be {trained.dtype} of shape {trained.shape} to be written into "
                    f"the array that is there, got {array.dtype} of shape {array.shape}"
                )
            trained[...] = array
        elif getattr(value, "data", None) is trained:
            super().__setattr__(name, value)  # another pattern of the same entries
        else:
            raise ValueError(
                f"{name} must be a matrix over the same data, which an optimizer trains; make a "
                f"new {type(self).__name__} of another matrix"
            )

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("grads", *self._of_batch)
        state = {key: value for key, value in self.__dict__.items() if key not in left_out}
        for key, value in state.items():
            if isinstance(value, np.ndarray):
                state[key] = Shared.of(value)
        state["params"] = rebuild(self.params, (Shared.of(x) for _, x in flatten(self.params)))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for key in self._of_batch:
            setattr(self, key, None)
        self.__dict__.update(state)
        self.grads = rebuild(self.params, (np.zeros_like(x) for _, x in flatten(self.params)))

    def __copy__(self: _C) -> _C:
        # Shares all, as copies of other objects that are not deep.
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new


class Layer(Protocol):
    """What `Sequential` strings together."""

    params: dict[str, Any]
    grads: dict[str, Any]

    def forward(self, x: Array) -> Array:
        """Return the output for a batch of rows."""

    def backward(self, dy: Array) -> Array:
        """Return the gradient with respect to the last input."""

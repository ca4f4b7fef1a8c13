"""Layers made of layers."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from compressrs._arrays import Array
from compressrs.nn.layer import Layer


class Sequential:
    """Layers one after another.

    Attributes
    ----------
    layers : tuple of layer
    params, grads : dict of dict of array
        Those of the layers that have some, by their position as a string.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> model = cr.nn.Sequential(cr.nn.Linear(3, 4, rng=0), cr.nn.ReLU(), cr.nn.Linear(4, 2, rng=1))
    >>> model(np.ones((5, 3), np.float32)).shape
    (5, 2)
    >>> {key: list(value) for key, value in model.params.items()}
    {'0': ['weight', 'bias'], '2': ['weight', 'bias']}
    """

    def __init__(self, *layers: Layer) -> None:
        for i, layer in enumerate(layers):
            for name in ("forward", "backward", "params", "grads"):
                if not hasattr(layer, name):
                    raise TypeError(
                        f"layers[{i}] must have {name}, as the layers of compressrs.nn, "
                        f"got {type(layer).__name__}"
                    )
            if any(layer is other for other in layers[:i]):
                # It would keep the last of its inputs alone.
                raise ValueError(f"layers[{i}] must not be in the model twice")
        self.layers = layers
        self._collect()

    def _collect(self) -> None:
        """Gather the dicts of the layers."""
        layers = self.layers
        self.params = {str(i): layer.params for i, layer in enumerate(layers) if layer.params}
        self.grads = {str(i): layer.grads for i, layer in enumerate(layers) if layer.params}

    def __getstate__(self) -> dict[str, Any]:
        own = self.__dict__.items()
        return {key: value for key, value in own if key not in ("params", "grads")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._collect()

    def forward(self, x: Array) -> Array:
        """Return the last layer's output."""
        for layer in self.layers:
            x = layer.forward(x)
        return x

    __call__ = forward

    def backward(self, dy: Array) -> Array:
        """Fill all `grads` and return the gradient with respect to the input."""
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __getitem__(self, index: int) -> Layer:
        try:
            return self.layers[operator.index(index)]
        except TypeError:
            raise TypeError(f"index must be an integer, got {type(index).__name__}") from None
        except IndexError:
            raise IndexError(
                f"index must be of a layer, of which there are {len(self)}, got {index}"
            ) from None

    def __len__(self) -> int:
        return len(self.layers)

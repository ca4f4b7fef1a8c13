"""Layers that contain layers."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, overload

import numpy as np

from compressrs._arrays import Array, as_array, write_tree
from compressrs._assignment import ArrayDict
from compressrs._checks import dimensions, integer
from compressrs.nn.layer import Layer, check_gradient


class Container(Layer):
    """A layer that contains others, whose `params` and `grads` it gathers."""

    def __init__(self, layers: dict[str, Layer]) -> None:
        super().__init__()
        for name, layer in layers.items():
            for attribute in ("forward", "backward", "params", "grads"):
                if not hasattr(layer, attribute):
                    raise TypeError(
                        f"layer {name} must be a layer, which has {attribute}, "
                        f"got {type(layer).__name__}"
                    )
            if any(layer is other for other in list(layers.values())[: list(layers).index(name)]):
                # A layer keeps only its last input, so that it can be used once.
                raise ValueError(f"layer {name} must not be in the model twice")
        self._children = layers
        self._gather()

    def children(self) -> dict[str, Layer]:
        """Return the layers that this one contains, by name."""
        return dict(self._children)

    def _gather(self) -> None:
        trained = {n: layer for n, layer in self._children.items() if layer.params}
        self._params = ArrayDict({n: layer.params for n, layer in trained.items()}, "params")
        self._grads = ArrayDict({n: layer.grads for n, layer in trained.items()}, "grads")

    @property
    def grads(self) -> dict[str, Any]:
        """The layers' gradients; assigning copies into the layers' arrays."""
        return self._grads

    @grads.setter
    def grads(self, grads: dict[str, Any]) -> None:
        write_tree(self._grads, grads, "grads")

    takes_lengths = True

    def forward(self, x: Array, lengths: Any = None) -> Array:
        """Return the output for a batch.

        Parameters
        ----------
        x : array
        lengths : array of int, shape (batch,), optional
            The lengths of padded sequences, for the attention layers.
        """
        return self._forward(x, functools.partial(self._run, lengths=lengths))

    def _forward(self, x: Array, run: Callable[[str, Array], Array]) -> Array:
        """Return the output, where ``run(name, x)`` is that of a layer."""
        raise NotImplementedError

    def _run(self, name: str, x: Array, lengths: Any = None) -> Array:
        layer = self._children[name]
        try:
            if lengths is not None and layer.takes_lengths:
                return layer(x, lengths)
            return layer.forward(x)
        except (TypeError, ValueError) as error:
            if type(error) not in (TypeError, ValueError):
                raise
            # Names the layer.
            kind = type(layer).__name__
            inner = str(error).removeprefix("layer ") if isinstance(layer, Container) else None
            message = f"{name}.{inner}" if inner else f"{name} ({kind}): {error}"
            raise type(error)(f"layer {message}") from error

    def __getstate__(self) -> dict[str, Any]:
        # Parameters and gradients are those of the layers, and are gathered again.
        left_out = ("_saved", "_params", "_grads")
        return {k: v for k, v in self.__dict__.items() if k not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._saved = None
        self._gather()

    def __repr__(self) -> str:
        lines = (
            f"  ({name}): {layer!r}".replace("\n", "\n  ") for name, layer in self._children.items()
        )
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])


class Sequential(Container):
    """A chain of layers.

    Attributes
    ----------
    layers : tuple of layer
    params, grads : dict of dict of array
        Those of the layers with parameters, by position as a string.

    Raises
    ------
    TypeError
        If an argument is not a layer.
    ValueError
        If the features of a layer do not match those of the next.

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
        super().__init__({str(i): layer for i, layer in enumerate(layers)})
        _check_chain(layers)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers, in order."""
        return tuple(self._children.values())

    def _forward(self, x: Array, run: Callable[[str, Array], Array]) -> Array:
        for name in self._children:
            x = run(name, x)
        return x

    def backward(self, dy: Array) -> Array:
        """Fill all `grads` and return the gradient with respect to the input."""
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the output, without the batch axis."""
        shape = dimensions(shape, "shape")
        for layer in self.layers:
            shape = layer.output_shape(shape)
        return shape

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    @overload
    def __getitem__(self, index: int | str) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequential: ...
    def __getitem__(self, index: int | str | slice) -> Any:
        """Return a layer by its position or name, or some as a model that shares them.

        Raises
        ------
        TypeError, IndexError
            If `index` is of another type, or there is no such layer.

        Examples
        --------
        >>> import compressrs as cr
        >>> inner = cr.nn.Residual(cr.nn.Linear(2, 2, rng=0))
        >>> model = cr.nn.Sequential(inner, cr.nn.ReLU(), cr.nn.Linear(2, 1, rng=1))
        >>> model["0.body.0"] is inner.body[0], len(model[:-1])
        (True, 2)
        """
        if isinstance(index, slice):
            return Sequential(*self.layers[index])
        if isinstance(index, str):
            return self._named(index)
        position = integer(index, "index", "an integer, a slice or a name")
        try:
            return self.layers[position]
        except IndexError:
            raise IndexError(
                f"index must be of a layer, of which there are {len(self)}, got {index}"
            ) from None

    def _named(self, name: str) -> Layer:
        layer: Layer = self
        for key in name.split("."):
            children = layer.children()
            if key not in children:
                raise IndexError(f"index must be the name of a layer, got {name!r}")
            layer = children[key]
        return layer

    def __len__(self) -> int:
        return len(self._children)


class Residual(Container):
    r"""A residual block, :math:`y = x + f(x)`.

    Parameters
    ----------
    *layers : layer
        The chain of layers :math:`f`.
    shortcut : layer, optional
        With a shortcut :math:`s`, :math:`y = s(x) + f(x)`; needed where shapes change.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> block = cr.nn.Residual(cr.nn.Linear(3, 3, rng=0), cr.nn.ReLU())
    >>> block(np.ones((2, 3), np.float32)).shape
    (2, 3)
    """

    def __init__(self, *layers: Layer, shortcut: Layer | None = None) -> None:
        children: dict[str, Layer] = {"body": Sequential(*layers)}
        if shortcut is not None:
            children["shortcut"] = shortcut
        super().__init__(children)

    @property
    def body(self) -> Sequential:
        """The chain of layers :math:`f`."""
        body: Any = self._children["body"]
        return body  # type: ignore[no-any-return]

    @property
    def shortcut(self) -> Layer | None:
        """The layer :math:`s` of the shortcut, or None."""
        return self._children.get("shortcut")

    def _forward(self, x: Array, run: Callable[[str, Array], Array]) -> Array:
        x = as_array(x, "x")
        y = run("body", x)
        side = x if self.shortcut is None else run("shortcut", x)
        if y.shape != side.shape:
            raise ValueError(
                f"the body must give the shape {side.shape} of its input, got {y.shape}"
            )
        self._keep(y.shape, y.dtype)
        total: Array = y + side
        return total

    def backward(self, dy: Array) -> Array:
        """Fill all `grads` and return the gradient with respect to the input."""
        dy = check_gradient(dy, *self._kept())
        through = self.body.backward(dy)
        side = dy if self.shortcut is None else self.shortcut.backward(dy)
        dx: Array = through + side
        return dx

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the output, without the batch axis."""
        shape = dimensions(shape, "shape")
        return self.body.output_shape(shape)


class Flatten(Layer):
    """Flattens all axes but the first into one.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> cr.nn.Flatten()(np.ones((2, 3, 4, 5))).shape
    (2, 60)
    """

    def forward(self, x: Array) -> Array:
        """Return `x` with shape (batch, features)."""
        x = as_array(x, "x")
        if x.ndim < 2:
            raise ValueError(f"x must have at least 2 axes, got shape {x.shape}")
        self._keep(x.shape, x.dtype)
        return x.reshape(len(x), int(np.prod(x.shape[1:])))

    def backward(self, dy: Array) -> Array:
        """Return `dy` in the shape of the input."""
        shape, dtype = self._kept()
        flat = (shape[0], int(np.prod(shape[1:])))
        dx: Array = check_gradient(dy, flat, dtype).reshape(shape)
        return dx

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the output, without the batch axis."""
        shape = dimensions(shape, "shape")
        return (math.prod(shape),)


def forward_seen(
    layer: Layer, x: Array, seen: Callable[[str, Layer, Array], None], name: str = ""
) -> Array:
    """Return the output, after ``seen(name, layer, x)`` for each layer with its input.

    `seen` is called for layers that hold no others, at any depth, in the order in which they run.
    """
    if not isinstance(layer, Container):
        seen(name, layer, x)
        return layer.forward(x)
    children = layer.children()

    def run(key: str, x: Array) -> Array:
        return forward_seen(children[key], x, seen, f"{name}.{key}" if name else key)

    return layer._forward(x, run)


def _check_chain(layers: tuple[Layer, ...]) -> None:
    """Raise a ValueError where the features of a layer do not match those of the next."""
    numbered = [
        (i, layer) for i, layer in enumerate(layers) if getattr(layer, "takes", None) is not None
    ]
    for (i, before), (k, after) in itertools.pairwise(numbered):
        kind, gives = before.gives  # type: ignore[attr-defined]
        other, takes = after.takes  # type: ignore[attr-defined]
        # Only if all layers in between preserve the features.
        passing = _PASSING | _POOLS if kind == "channels" else _PASSING
        passes = all(type(layer).__name__ in passing for layer in layers[i + 1 : k])
        if passes and kind == other and gives != takes:
            raise ValueError(
                f"layer {k} ({type(after).__name__}) must take the {gives} {kind} of layer {i} "
                f"({type(before).__name__}), but takes {takes}"
            )


#: Layers that preserve features.
_PASSING = frozenset(("ReLU", "GELU", "SiLU", "Softmax", "Dropout"))
#: Layers that preserve channels but not features.
_POOLS = frozenset(("MaxPool", "AvgPool"))

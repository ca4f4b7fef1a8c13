"""Base class of the layers: parameters, state, files, copies."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np

from compressrs._arrays import Array, Shared, allocating, as_array, as_gradient, write_tree
from compressrs._assignment import ArrayDict
from compressrs._checks import dimensions, file_path, flag, generator, string
from compressrs._state import Take, Undo, all_or_nothing
from compressrs.nn.summary import Summary

#: A seed, a generator, or None for one that differs from run to run.
RandomState: TypeAlias = int | np.random.Generator | None

_L = TypeVar("_L", bound="Layer")


class Layer:
    """Base class of layers.

    A subclass implements `forward` and `backward`, and fills `params` and `grads`.

    Attributes
    ----------
    params, grads : dict of array, or of dicts of these
        Parameters and their gradients, in the same structure. Assigning to `params`, or to
        an entry, copies into the arrays that are trained.
    buffers : dict of array
        State that is not trained, such as running means.
    training : bool
        Initially True. After `eval` it is False: `forward` keeps no data for `backward`, and
        `Dropout` and `BatchNorm` apply their evaluation formulas.
    """

    def __init__(self) -> None:
        self._params = self._own({})
        self._grads: dict[str, Any] = {}
        self.buffers: dict[str, Array] = {}
        self.training = True
        self._saved: Any = None

    @property
    def params(self) -> dict[str, Any]:
        """The parameters by name; assigning copies into the arrays that are trained."""
        return self._params

    @params.setter
    def params(self, params: dict[str, Any]) -> None:
        self._params.assign(params)

    @property
    def grads(self) -> dict[str, Any]:
        """The gradients by name, in the structure of `params`."""
        return self._grads

    @grads.setter
    def grads(self, grads: dict[str, Any]) -> None:
        if not isinstance(grads, dict) or (self._grads and grads.keys() != self._grads.keys()):
            got = list(grads) if isinstance(grads, dict) else type(grads).__name__
            raise ValueError(f"grads must be a dict with the keys {list(self._grads)}, got {got}")
        # The same dict, since models that contain this layer refer to it.
        self._grads.update(grads)

    def _own(self, params: Mapping[str, Any]) -> ArrayDict:
        # Subclasses defined by users may add parameters later.
        fixed = type(self).__module__.partition(".")[0] == __name__.partition(".")[0]
        return ArrayDict(params, "params", fixed=fixed)

    #: Read-only entries of `state_dict` that describe how the entries of parameters are arranged.
    _pattern: ClassVar[tuple[str, ...]] = ()

    #: Whether `forward` takes the lengths of padded sequences as well.
    takes_lengths: ClassVar[bool] = False

    def forward(self, x: Array) -> Array:
        """Return the output for a batch.

        Layers keep a reference to `x` for `backward`, not a copy: do not change it in between.
        """
        raise NotImplementedError

    def backward(self, dy: Array) -> Array:
        """Fill `grads` and return the gradient with respect to the last input.

        Raises
        ------
        RuntimeError
            If there was no `forward` in training mode.
        """
        raise NotImplementedError

    def __call__(self, x: Array, *args: Any, **kwargs: Any) -> Array:
        """Return ``forward(x, ...)``."""
        return self.forward(x, *args, **kwargs)

    def children(self) -> dict[str, Layer]:
        """Return the layers that this one contains, by name."""
        return {}

    def config(self) -> dict[str, Any]:
        """Return the constructor arguments, without the values of arrays."""
        return {}

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the output shape for an input shape, both without the batch axis.

        Raises
        ------
        ValueError
            If the layer does not accept this shape.
        """
        return dimensions(shape, "shape")

    def multiply_adds(self, shape: tuple[int, ...]) -> int:
        """Return the multiplications for one input of this shape, without the batch axis."""
        dimensions(shape, "shape")
        return 0

    def train(self: _L, mode: bool = True) -> _L:
        """Set training or evaluation mode for this layer and its children; return the layer."""
        self.training = flag(mode, "mode")
        if not mode:
            self._saved = None
        for child in self.children().values():
            if isinstance(child, Layer):
                child.train(mode)
        return self

    def eval(self: _L) -> _L:
        """Set this layer and its children to evaluation mode, in which no data is kept."""
        return self.train(False)

    def copy(self: _L) -> _L:
        """Return a copy with its own arrays, without the data that `forward` kept."""
        return copy.deepcopy(self)

    def named_layers(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        """Yield the names and layers of all leaves, in order."""
        return self._named_layers(string(prefix, "prefix"))

    def _named_layers(self, prefix: str) -> Iterator[tuple[str, Layer]]:
        children = self.children()
        if not children:
            yield prefix, self
        for name, child in children.items():
            path = f"{prefix}.{name}" if prefix else name
            if isinstance(child, Layer):
                yield from child.named_layers(path)
            else:
                yield path, child

    def state_dict(self) -> dict[str, Array]:
        """Return all parameters and buffers by name, as ``"0.weight"``.

        The arrays are the layer's own, not copies.
        """
        state = {**self.params, **self.buffers} if not self.children() else dict(self.buffers)
        for name, child in self.children().items():
            if isinstance(child, Layer):
                of_child: Mapping[str, Array] = child.state_dict()
            else:
                of_child = child.params
            state |= {f"{name}.{key}": array for key, array in of_child.items()}
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy values that `state_dict` returned into this layer's arrays.

        Names are those of PyTorch's modules, so their state dicts are accepted too. The pattern of
        a sparse weight is loaded too, if it has as many entries: what an optimizer, `EMA` or
        pruner holds per entry must then be loaded as well, as `compressrs.TrainState` does.

        Raises
        ------
        ValueError
            If a name is missing or unknown, a shape differs, or a pattern is invalid; nothing
            is changed then.
        TypeError
            If a value is not an array of the same dtype.
        """
        with all_or_nothing() as undo:
            self._checked_state(state_dict)(undo)

    def _checked_state(self, state_dict: Mapping[str, Any]) -> Take:
        """Check a state dict; return what takes it over."""
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a dict, got {type(state_dict).__name__}")
        own = self.state_dict()
        if own.keys() != state_dict.keys():
            missing = sorted(own.keys() - state_dict.keys())
            unknown = sorted(map(str, state_dict.keys() - own.keys()))
            raise ValueError(
                f"state_dict must have the names of this model; missing: {missing or 'none'}, "
                f"unknown: {unknown or 'none'}"
            )
        with_pattern = [
            (f"{path}." if path else "", layer)
            for path, layer in self.named_layers()
            if isinstance(layer, Layer) and layer._pattern
        ]
        patterns = {prefix + key for prefix, layer in with_pattern for key in layer._pattern}
        values = {}
        for name, array in own.items():
            value = as_gradient(state_dict[name], f"state_dict[{name!r}]")
            if value.shape != array.shape:
                raise ValueError(
                    f"state_dict[{name!r}] must have shape {array.shape}, got {value.shape}; a "
                    "model of other shapes is made from its own file by compressrs.nn.load"
                )
            if name not in patterns:
                if value.dtype != array.dtype:
                    raise TypeError(
                        f"state_dict[{name!r}] must have dtype {array.dtype}, got {value.dtype}"
                    )
                if not array.flags.writeable and not np.array_equal(array, value):
                    raise ValueError(f"state_dict[{name!r}] cannot be loaded: it is read-only")
            # Copied, since it may be a view of another array that is written first.
            values[name] = value.copy()
        takes = [layer._checked_pattern(values, prefix) for prefix, layer in with_pattern]

        def take(undo: Undo) -> None:
            for one in takes:
                one(undo)
            for name, array in own.items():
                if array.flags.writeable:
                    undo.write(array, values[name])

        return take

    def _checked_pattern(self, values: Mapping[str, Array], prefix: str) -> Take:
        """Check the entries `_pattern` of a state dict; return what takes them over."""
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, its structure and all arrays, to one safetensors file.

        The file is replaced atomically. Requires the package safetensors
        (``pip install 'compressrs[save]'``).

        Raises
        ------
        OSError
            If it cannot be written.
        """
        from compressrs.nn import files

        files.save(file_path(path), self)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Load the values of a file that `save` wrote; see also `compressrs.nn.load`.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it is damaged, of another version, or of a model with other layers; nothing is
            changed then.
        """
        from compressrs.nn import files

        files.load_into(file_path(path), self)

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        show: bool = True,
        standardize: tuple[Array, Array] | None = None,
    ) -> str:
        """Write an ``.npz`` file and print the few lines of NumPy code that run it.

        Parameters
        ----------
        path : path
        show : bool, default True
            Whether to print the code.
        standardize : pair of array, optional
            Mean and scale of the features, by which the code standardizes its input.

        Returns
        -------
        str
            The code, which needs only NumPy: ``load(path)`` reads the file, decodes the weights
            and returns a function of ``x``; ``predict(x, path)`` is ``load(path)(x)``. With
            attention, both functions take ``lengths`` as well, as the model does. Load once
            where more than one batch is predicted; the weights are then held in floating point.

        Raises
        ------
        TypeError
            If the model has a layer that cannot be exported; it is named.
        ValueError
            If `path` ends like a file of another format, such as ``.onnx``.
        OSError
            If the file cannot be written.
        """
        from compressrs.nn.export import export

        show = flag(show, "show")
        target = file_path(path)
        if target.suffix in (".onnx", ".pt", ".pth", ".safetensors"):
            raise ValueError(
                f"path must be that of an .npz file, got {target.name!r}; `save` writes "
                "safetensors, and there is no export to ONNX or PyTorch"
            )
        code = export(self, target, standardize)
        if show:
            print(code)
        return code

    def summary(self, input_shape: Sequence[int] | None = None) -> Summary:
        """Return parameters, non-zeros, bytes and multiply-adds of each layer.

        Non-zeros are counted by value: biases that are initialized with 0 are not among them.

        Parameters
        ----------
        input_shape : sequence of int, optional
            Shape of one input, without the batch axis. If omitted, shapes and multiply-adds
            are not shown.

        Examples
        --------
        >>> import compressrs as cr
        >>> model = cr.nn.Sequential(cr.nn.Linear(3, 4, rng=0), cr.nn.ReLU())
        >>> model.summary((3,)).parameters, model.summary((3,)).multiply_adds
        (16, 12)
        """
        from compressrs.nn.summarizing import summarize

        return summarize(
            self, None if input_shape is None else dimensions(input_shape, "input_shape")
        )

    def _values(self) -> Iterator[Array]:
        """Yield the parameters as numbers, for counts of them and of those that are not 0."""
        yield from self.params.values()

    def _keep(self, *saved: Any) -> None:
        """Keep the data that `backward` needs, in training mode."""
        self._saved = saved if self.training else None

    def _kept(self) -> Any:
        if self._saved is None:
            raise RuntimeError("backward needs a forward before it, in training mode")
        return self._saved

    def _add(self, **arrays: Array | None) -> None:
        """Add parameters and their gradients; None stands for an absent one."""
        present = {name: array for name, array in arrays.items() if array is not None}
        self._use(present)

    def _use(self, params: Mapping[str, Array]) -> None:
        """Replace the trained arrays; the dicts, which others refer to, remain the same."""
        self._params.replace(params)
        self._grads.update({name: self._no_gradient(value) for name, value in params.items()})
        self._saved = None

    def _no_gradient(self, parameter: Array) -> Any:
        """Return the gradient of a parameter before the first `backward`."""
        return np.zeros_like(parameter)

    def _assign(self, name: str, value: Any) -> None:
        """Copy values into the array of a parameter."""
        own = self.params.get(name)
        if own is None:
            raise ValueError(f"{type(self).__name__} has no {name} to assign to")
        write_tree(own, value, name)

    def __getstate__(self) -> dict[str, Any]:
        # Without the data that forward kept, and without gradients, which derive from data.
        state = {k: v for k, v in self.__dict__.items() if k not in ("_saved", "_grads")}
        for kind in ("_params", "buffers"):
            state[kind] = {name: Shared.of(value) for name, value in state[kind].items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._saved = None
        self._params = self._own(self._params)
        self._grads = {name: self._no_gradient(value) for name, value in self._params.items()}

    def __copy__(self: _L) -> _L:
        # A shallow copy shares the arrays.
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.config().items())
        return f"{type(self).__name__}({arguments})"


class Parameter:
    """A parameter as an attribute; assigning copies into the array that is trained."""

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, layer: Any, owner: type | None = None) -> Any:
        if layer is None:
            return self
        return layer.params.get(self._name)

    def __set__(self, layer: Any, value: Any) -> None:
        layer._assign(self._name, value)


def check_input(
    x: object, name: str, dtype: np.dtype[Any] | None = None, reason: str = "like the weight"
) -> Array:
    """Return `x` as an array of `dtype`, for which there is a reason, or of float32 or float64.

    Raises
    ------
    TypeError
        If it is not.
    """
    x = as_array(x, name)
    if dtype is None and x.dtype not in (np.float32, np.float64):
        raise TypeError(
            f"{name} must have a floating-point dtype (float32, float64), got {x.dtype}"
        )
    if dtype is not None and x.dtype != dtype:
        raise TypeError(f"{name} must have dtype {dtype} {reason}, got {x.dtype}")
    return x


def check_gradient(dy: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return `dy` as an array after checking it against the output.

    Raises
    ------
    TypeError, ValueError
        If it is not.
    """
    dy = as_array(dy, "dy")
    if dy.shape != shape:
        raise ValueError(f"dy must have shape {shape}, got {dy.shape}")
    if dy.dtype != dtype:
        raise TypeError(f"dy must have dtype {dtype} like the output, got {dy.dtype}")
    return dy


def uniform(rng: RandomState, bound: float, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Draw initial values uniformly from [-bound, bound].

    Raises
    ------
    MemoryError
        If the array is too large for any memory.
    """
    draw = generator(rng)
    with allocating(f"an array of shape {shape}"):
        return draw.uniform(-bound, bound, shape).astype(dtype)


def constant(value: float, size: int, dtype: np.dtype[Any]) -> Array:
    """Return an array of `size` equal values.

    Raises
    ------
    MemoryError
        If the array is too large for any memory.
    """
    with allocating(f"an array of {size} elements"):
        return np.full(size, value, dtype)


def check_parameter(
    x: object, name: str, shape: tuple[int, ...] | None = None, dtype: Any = None
) -> Array:
    """Return an array after checking that it can be trained in place.

    Raises
    ------
    TypeError, ValueError
        If it has another shape or dtype, or cannot be changed in place.
    """
    x = as_array(x, name)
    if shape is not None and x.shape != shape:
        raise ValueError(f"{name} must have shape {shape} to fit weight, got {x.shape}")
    if x.dtype != (dtype or x.dtype) or x.dtype not in (np.float32, np.float64):
        need = dtype or "float32 or float64"
        raise TypeError(f"{name} must have dtype {need}, got {x.dtype}")
    if not (x.flags.c_contiguous and x.flags.writeable):
        raise ValueError(f"{name} must be C-contiguous and writable, since it is trained in place")
    return x

"""What the quantized layers share: weights in codes, and codes of the input."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from compressrs._arrays import Array, as_array
from compressrs._checks import choice, number, whole
from compressrs.nn.layer import Layer, Parameter
from compressrs.quantize.rounding import quantize
from compressrs.quantize.scheme import Scheme
from compressrs.quantize.tensor import QuantizedTensor
from compressrs.quantize.training import fake_quantize, lsq_scale

_INPUTS = ("float32", "int8")
_NAMES = ("activation_scale", "activation_zero_point")
_FIXED = Scheme(bits=8, symmetric=False, granularity="tensor")

_F = TypeVar("_F", bound="FakeQuantized")

#: Scale and zero point of the input.
Fixed = tuple[float, int]


class Quantized(Layer):
    """Base class of layers with a quantized weight, for inference."""

    weight: QuantizedTensor
    bias = Parameter("The vector of one number for each output, or None.")
    float_reason: str | None

    def _set(
        self,
        weight: QuantizedTensor,
        axes: int,
        bias: Array | None,
        input: str,
        activation_scale: Array | float | None,
        activation_zero_point: Array | int | None,
    ) -> None:
        """Check and take over what all have."""
        if not isinstance(weight, QuantizedTensor):
            raise TypeError(f"weight must be a QuantizedTensor, got {type(weight).__name__}")
        if weight.ndim != axes:
            name = {2: "two", 4: "four"}[axes]
            raise ValueError(f"weight must have {name} axes, got shape {weight.shape}")
        self.weight = weight
        self.input = choice(input, "input", _INPUTS)
        self._add(bias=vector(bias, "bias", weight.shape[0], weight.dtype))
        fixed = _checked(activation_scale, activation_zero_point, weight.dtype)
        if fixed is not None:
            if self.input != "int8":
                raise ValueError(f"activation_scale needs input='int8', got {self.input!r}")
            self.buffers["activation_scale"] = np.array([fixed[0]], weight.dtype)
            self.buffers["activation_zero_point"] = np.array([fixed[1]], np.int8)
        self._packed: Any = None
        self._dense: npt.NDArray[Any] | None = None

    @property
    def activation_scale(self) -> npt.NDArray[Any] | None:
        """The fixed scale of the input, of shape (1,), or None."""
        return self.buffers.get("activation_scale")

    @property
    def activation_zero_point(self) -> npt.NDArray[np.int8] | None:
        """The fixed zero point of the input, of shape (1,), or None."""
        return self.buffers.get("activation_zero_point")

    def _fixed(self) -> Fixed | None:
        """Return the fixed scale and zero point, which the caller may have written to."""
        scale, zero_point = (self.buffers.get(name) for name in _NAMES)
        return _checked(scale, zero_point, self.weight.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of weight, bias and scales, codes packed."""
        arrays = [self.bias, *self.buffers.values()]
        return sum((int(a.nbytes) for a in arrays if a is not None), self.weight.nbytes)

    def config(self) -> dict[str, Any]:
        """Return shape, dtype and options, without the values of arrays."""
        return {
            "shape": list(self.weight.shape),
            "dtype": self.weight.dtype.name,
            "scheme": dataclasses.asdict(self.weight.scheme),
            "bias": self.bias is not None,
            "input": self.input,
        }

    def state_dict(self) -> dict[str, Array]:
        """Return bias, scales of inputs, and the weight's arrays, as ``"weight.codes"``.

        The arrays are the layer's own, not copies. Since the caller may write to them, the
        weight is packed again at the next `forward`.
        """
        self._packed = self._dense = None
        return {**super().state_dict(), **self.weight._state("weight.")}

    def _values(self) -> Iterator[Array]:
        yield self.weight.dequantize()
        yield from super()._values()

    def _weights(self) -> npt.NDArray[Any]:
        if self._dense is None:
            self._dense = self.weight.dequantize()
        return self._dense

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_packed": None, "_dense": None}


class FakeQuantized(Layer):
    """Base class of layers for quantization-aware training."""

    weight = Parameter("The weight that is trained, before rounding.")
    bias = Parameter("The vector of one number for each output, or None.")
    scale = Parameter("The scales, of shape `scheme.scale_shape(weight.shape)`.")

    def _set(self, layer: Any, kind: type[Layer], scheme: Scheme, input: str) -> None:
        """Check and take over what all have."""
        require_layer(layer, kind)
        if not isinstance(scheme, Scheme):
            raise TypeError(f"scheme must be a Scheme, got {type(scheme).__name__}")
        if scheme.dtype not in ("int", "uint"):
            raise ValueError(f"scheme must have dtype 'int' or 'uint', got {scheme.dtype!r}")
        self.scheme, self.input = scheme, choice(input, "input", _INPUTS)
        found = quantize(layer.weight, scheme)
        scale = found.scale
        if scheme.dtype == "int" and scheme.symmetric:
            # LSQ's initial scale suits few bits; with more it clips less than the range does.
            scale = np.minimum(scale, lsq_scale(layer.weight, scheme))
        self._add(weight=layer.weight, bias=layer.bias, scale=scale)
        if found.zero_point is not None:
            self.buffers["zero_point"] = found.zero_point

    @property
    def zero_point(self) -> npt.NDArray[Any] | None:
        """The zero points, which are not trained, or None."""
        return self.buffers.get("zero_point")

    def config(self) -> dict[str, Any]:
        """Return shape, dtype and options, without the values of arrays."""
        return {
            "shape": list(self.weight.shape),
            "dtype": self.weight.dtype.name,
            "scheme": dataclasses.asdict(self.scheme),
            "bias": self.bias is not None,
            "input": self.input,
        }

    def _rounded(self) -> npt.NDArray[Any]:
        """Return the rounded weight."""
        self._keep_positive()
        return fake_quantize(self.weight, self.scheme, self.scale, self.zero_point)

    def _keep_positive(self) -> None:
        """Raise scales that a step of the optimizer made 0 or negative."""
        scale = self.params["scale"]
        np.maximum(scale, np.finfo(scale.dtype).smallest_normal, out=scale)

    def _codes(self) -> QuantizedTensor:
        """Return the rounded weight as codes, with their own arrays."""
        self._keep_positive()
        scale = self.scale.copy()
        return quantize(self.weight, self.scheme, scale=scale, zero_point=self.zero_point)


def require_layer(layer: object, kind: type[Layer]) -> None:
    """Raise TypeError unless a layer is of this kind."""
    if not isinstance(layer, kind):
        raise TypeError(f"layer must be a {kind.__name__}, got {type(layer).__name__}")


def scheme_of(config: Mapping[str, Any]) -> Scheme:
    """Return the scheme that a layer's `config` describes."""
    scheme = dict(config["scheme"])
    if isinstance(scheme["group_size"], list):
        scheme["group_size"] = tuple(scheme["group_size"])
    return Scheme(**scheme)


def tensor_of_state(config: Mapping[str, Any], state: Mapping[str, Array]) -> QuantizedTensor:
    """Return the weight of a layer whose `config` and `state_dict` these are."""
    arrays = {
        name.removeprefix("weight."): array.copy()
        for name, array in state.items()
        if name.startswith("weight.")
    }
    return QuantizedTensor(**arrays, scheme=scheme_of(config), dtype=config["dtype"])


def options_of_state(config: Mapping[str, Any], state: Mapping[str, Array]) -> dict[str, Any]:
    """Return the arguments of a layer whose `config` and `state_dict` these are."""
    return {
        "bias": state["bias"].copy() if config["bias"] else None,
        "input": config["input"],
        **{name: state[name] for name in _NAMES if name in state},
    }


def product_reason(weight: QuantizedTensor, input: str) -> str | None:
    """Return why `QuantizedMatrix` does not support a weight, or None."""
    scheme = weight.scheme
    if weight.dtype != np.float32:
        return f"products with codes are in float32, the weight is {weight.dtype}"
    if scheme.dtype.startswith("fp8"):
        return f"there are no products with {scheme.dtype}"
    if scheme.dtype == "codebook" and (scheme.granularity != "tensor" or scheme.bits > 4):
        return "a codebook must be of the whole tensor, in at most 4 bits"
    if scheme.dtype in ("nf4", "codebook") and input == "int8":
        return f"inputs in int8 need integer codes, not {scheme.dtype}"
    return None


def round_rows(x: npt.NDArray[Any], fixed: Fixed | None = None) -> npt.NDArray[Any]:
    """Round each row to multiples of ``max|x| / 127``, or by a fixed scale and zero point.

    Rows that are not finite become NaN.
    """
    if not x.size:
        return x
    largest = np.abs(x).max(axis=1, keepdims=True)
    finite = np.isfinite(largest)
    if fixed is None:
        scale = largest / x.dtype.type(127)
        scale = np.where(finite, np.maximum(scale, np.finfo(x.dtype).smallest_normal), 1)
        y = fake_quantize(x, Scheme(bits=8), scale.astype(x.dtype))
    else:
        parameters = np.array([[fixed[0]]], x.dtype), np.array([[fixed[1]]], np.int8)
        y = fake_quantize(x, _FIXED, *parameters)
    y[~finite[:, 0]] = np.nan
    return y


def vector(x: Array | None, name: str, length: int, dtype: np.dtype[Any]) -> Array | None:
    """Return a checked vector in the dtype of the weight, or None.

    Raises
    ------
    TypeError, ValueError
        If it has another dtype or shape.
    """
    if x is None:
        return None
    array = as_array(x, name)
    if array.dtype != dtype:
        raise TypeError(f"{name} must have dtype {dtype} like the weight, got {array.dtype}")
    if array.shape != (length,):
        raise ValueError(f"{name} must have shape ({length},), got {array.shape}")
    return array


def _checked(scale: Any, zero_point: Any, dtype: np.dtype[Any]) -> Fixed | None:
    """Return a fixed scale and zero point, or None if there is no scale."""
    if scale is None:
        if zero_point is not None:
            raise ValueError("activation_zero_point must be None without activation_scale")
        return None
    found = number(_one(scale, "activation_scale"), "activation_scale")
    info = np.finfo(dtype)
    if not float(info.smallest_normal) <= found <= float(info.max):
        raise ValueError(f"activation_scale must be a positive normal {dtype}, got {found!r}")
    if zero_point is None:
        return found, 0
    name = "activation_zero_point"
    zero = whole(_one(zero_point, name), name, -128, 127)
    return float(dtype.type(found)), zero


def _one(x: Any, name: str) -> Any:
    """Return the only element of an array, or a number as it is."""
    if not isinstance(x, np.ndarray):
        return x
    if x.size != 1:
        raise ValueError(f"{name} must be one number, got an array of shape {x.shape}")
    return x.item()

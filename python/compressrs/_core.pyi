"""Stubs of the Rust extension module, which is private; use the package's functions."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CODE_BLOCK",
    "CODE_VERSION",
    "MAX_SCALARS",
    "NORM_BLOCK",
    "Checksum",
    "Factor",
    "NonFiniteGradientError",
    "PackedWeights",
    "Sparse",
    "Stepper",
    "__version__",
    "accumulate",
    "accumulate_inputs",
    "accumulate_products",
    "activate",
    "activate_backward",
    "add_rows",
    "address",
    "apply_mask",
    "attend",
    "attend_backward",
    "attention_loss",
    "batch_norm_backward",
    "block_norms",
    "block_ranges",
    "channel_moments",
    "clamp",
    "conv2d",
    "conv2d_backward",
    "conv2d_in_codes",
    "conv2d_shape",
    "csr_from_dense",
    "decode_planes",
    "decode_state",
    "dequantize",
    "dist_loss",
    "encode_planes",
    "encode_state",
    "expand_blocks",
    "fake_quantize",
    "fake_quantize_backward",
    "fixed_codes",
    "get_num_threads",
    "gptq",
    "gradient_scale",
    "hint_loss",
    "kd_loss",
    "kmeans",
    "layer_norm",
    "layer_norm_backward",
    "lerp",
    "linear",
    "linear_backward",
    "logsumexp",
    "magnitude_threshold",
    "mask_below",
    "mask_n_of_m",
    "mask_rows",
    "mask_smallest",
    "matmul_integer",
    "merge_positions",
    "norm",
    "partial_norms",
    "peak_dot_products",
    "peak_multiply_adds",
    "pool",
    "pool_backward",
    "pool_shape",
    "quantize",
    "reconstruct",
    "refuse_nan",
    "rkd_loss",
    "rule_buffers",
    "rule_is_elementwise",
    "rule_scalars",
    "rule_types",
    "rules",
    "scale",
    "scale_channels",
    "scales",
    "set_num_threads",
    "shutdown",
    "simd_level",
    "simd_levels",
    "softmax",
    "softmax_backward",
    "split_positions",
    "top_k",
]

__version__: str
CODE_BLOCK: int
MAX_SCALARS: int
CODE_VERSION: int
NORM_BLOCK: int

_Array = NDArray[Any]
_Kind = tuple[str, int, bool, _Array | None]
_Parts = tuple[_Array, _Array, _Array]

def address(array: _Array) -> int: ...
def get_num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def shutdown() -> None: ...
def peak_dot_products(rounds: int) -> int: ...
def peak_multiply_adds(rounds: int) -> int: ...
def simd_level() -> str: ...
def simd_levels() -> list[str]: ...
def rule_buffers(
    kind: str, group: dict[str, Any], param: _Array, name: str, elements: int | None = None
) -> list[tuple[str, tuple[int, ...], str, float]]: ...
def rule_is_elementwise(kind: str, group: dict[str, Any]) -> bool: ...
def rule_scalars(kind: str, group: dict[str, Any]) -> list[str]: ...
def rule_types(kind: str, group: dict[str, Any]) -> None: ...
def rules() -> dict[str, dict[str, Any]]: ...

class NonFiniteGradientError(ValueError):
    reason: Literal["nonfinite", "sum", "scale"]

@final
class Stepper:
    def __new__(
        cls,
        kind: str,
        slots: list[tuple[str, _Array, list[_Array], _Array | None, int]],
        groups: Sequence[dict[str, Any]],
        steps: _Array,
        scalars: _Array,
        parts: list[tuple[int, int, int]] | None = None,
    ) -> Stepper: ...
    def step(
        self,
        grads: list[Any] | tuple[Any, ...],
        groups: Sequence[dict[str, Any]],
        max_grad_norm: float | None,
        grad_scale: float,
        nonfinite: str,
        dry: bool = False,
    ) -> float | None: ...

def partial_norms(
    x: _Array, name: str, mask: _Array | None, unit: float | None
) -> NDArray[np.float64]: ...
def gradient_scale(
    partials: Callable[[float | None], list[list[float]]],
    paths: list[str],
    params: list[_Array],
    max_grad_norm: float | None,
    grad_scale: float,
    nonfinite: str,
) -> tuple[float | None, float | None]: ...
def encode_state(x: _Array, codes: _Array, scales: _Array, name: str) -> None: ...
def decode_state(codes: _Array, scales: _Array, x: _Array, name: str) -> None: ...
def lerp(
    targets: list[_Array],
    names: list[str],
    ends: list[_Array],
    end_names: list[str],
    weight: float,
) -> None: ...
def accumulate(
    sums: list[_Array], names: list[str], x: list[_Array], x_names: list[str], weight: float
) -> None: ...
def norm(
    arrays: list[_Array], names: list[str], order: float, max_norm: float
) -> tuple[float, float]: ...
def scale(arrays: list[_Array], names: list[str], factor: float) -> None: ...
def clamp(arrays: list[_Array], names: list[str], limit: float) -> None: ...
def magnitude_threshold(arrays: list[_Array], names: list[str], k: int) -> float: ...
def mask_smallest(
    arrays: list[_Array], names: list[str], k: int, by_value: bool, masks: list[NDArray[Any]]
) -> None: ...
def mask_below(w: _Array, threshold: float, mask: _Array) -> None: ...
def mask_rows(w: _Array, name: str, k: int, by_value: bool, mask: _Array) -> None: ...
def mask_n_of_m(w: _Array, name: str, n: int, m: int, by_value: bool, mask: _Array) -> None: ...
def block_norms(w: _Array, name: str, block: tuple[int, int], norm: str, out: _Array) -> None: ...
def expand_blocks(blocks: _Array, block: tuple[int, int], mask: _Array) -> None: ...
def accumulate_products(scores: _Array, w: _Array, g: _Array, name: str, term: str) -> None: ...
def accumulate_inputs(x: _Array, sums: _Array) -> None: ...

@final
class Factor:
    @staticmethod
    def of(a: _Array) -> Factor | None: ...
    def pivots(self) -> _Array: ...
    def inverse(self) -> _Array: ...

def reconstruct(
    w: _Array, u: _Array, target: tuple[int, int | None], block: int, mask: _Array
) -> bool: ...

@final
class PackedWeights:
    def __new__(
        cls,
        parts: tuple[_Array, _Array | None, _Array | None],
        scale: _Array,
        bits: int,
        group: int,
    ) -> PackedWeights: ...
    @property
    def nbytes(self) -> int: ...
    def codes(self) -> _Array: ...
    def scale(self) -> NDArray[np.float32]: ...
    def zero_point(self) -> _Array: ...
    def linear(
        self,
        x: _Array,
        codes: bool,
        input_scale: _Array | None,
        bias: _Array | None,
        activation: str,
        out: _Array,
        requantize: tuple[float, int] | None,
    ) -> None: ...

def matmul_integer(a: _Array, b: _Array, out: _Array) -> None: ...
def refuse_nan(w: _Array, name: str) -> None: ...
def block_ranges(
    x: _Array, name: str, block: tuple[int, int], low: _Array, high: _Array
) -> None: ...
def scales(low: _Array, high: _Array, kind: _Kind, scale: _Array, zero: _Array) -> None: ...
def quantize(
    x: _Array,
    name: str,
    block: tuple[int, int],
    kind: _Kind,
    own_range: bool,
    scale: _Array,
    zero: _Array,
    codes: _Array,
) -> None: ...
def dequantize(
    codes: _Array,
    block: tuple[int, int],
    kind: _Kind,
    scale: _Array,
    zero: _Array,
    out: _Array,
) -> None: ...
def fake_quantize(
    x: _Array,
    block: tuple[int, int],
    kind: _Kind,
    scale: _Array,
    zero: _Array,
    y: _Array,
) -> None: ...
def fake_quantize_backward(
    x: _Array,
    dy: _Array,
    block: tuple[int, int],
    kind: _Kind,
    scale: _Array,
    zero: _Array,
    dx: _Array,
    dscale: _Array,
) -> None: ...
def kmeans(
    x: _Array, block: tuple[int, int], keep_zero: bool, rounds: int, levels: _Array
) -> None: ...
def gptq(
    w: _Array,
    u: _Array,
    step: int,
    block: tuple[int, int],
    kind: _Kind,
    find: bool,
    scale: _Array,
    zero: _Array,
    codes: _Array,
    removal: tuple[tuple[int, int | None], _Array] | None,
) -> bool: ...
def apply_mask(w: _Array, mask: _Array, name: str) -> None: ...

@final
class Sparse:
    def __new__(
        cls,
        parts: _Parts,
        shape: tuple[int, int],
        block: tuple[int, int],
        scale: tuple[_Array, int] | None = None,
    ) -> Sparse: ...
    @property
    def is_immutable(self) -> bool: ...
    @property
    def prepared_bytes(self) -> int: ...
    def share(self, other: Sparse) -> None: ...
    def check(self) -> None: ...
    def matmul(
        self, transposed: bool, x: _Array, out: _Array, epilogue: tuple[bool, _Array | None, bool]
    ) -> None: ...
    def sddmm(self, u: _Array, v: _Array, out: _Array, accumulate: bool) -> None: ...
    def to_dense(self) -> _Array: ...
    def transpose(self) -> _Parts: ...
    def locate(self, other: Sparse) -> NDArray[np.int64]: ...

def csr_from_dense(w: _Array, threshold: float, mask: _Array | None, short: bool) -> _Parts: ...
def softmax(z: _Array, temperature: float | _Array, axis: int, log: bool, out: _Array) -> None: ...
def logsumexp(z: _Array, temperature: float | _Array, axis: int, out: _Array) -> None: ...
def kd_loss(
    student: _Array,
    kind: str,
    teacher: Any,
    temperature: float | _Array,
    divergence: str,
    decoupled: tuple[float, float],
    standardize: bool,
    alpha: float,
    labels: _Array | None,
    ignore_index: int,
    label_smoothing: float,
    class_weight: _Array | None,
    sample_weight: _Array | None,
    mean: bool,
    losses: _Array,
    grad: _Array,
) -> float: ...
def top_k(z: _Array, temperature: float, chosen: _Array, rest: _Array) -> None: ...
def dist_loss(
    student: _Array, teacher: _Array, temperature: float, beta: float, gamma: float, grad: _Array
) -> float: ...
def hint_loss(student: _Array, teacher: _Array, grad: _Array) -> float: ...
def attention_loss(student: _Array, teacher: _Array, grad: _Array) -> float: ...
def rkd_loss(student: _Array, teacher: _Array, angles: bool, grad: _Array) -> float: ...
def encode_planes(data: NDArray[np.uint8], width: int, rotate: bool) -> bytes: ...
def decode_planes(
    stream: NDArray[np.uint8], width: int, rotate: bool, out: NDArray[np.uint8]
) -> None: ...
def split_positions(x: _Array, gaps: bool) -> tuple[bytes, bytes]: ...
def merge_positions(places: NDArray[np.uint8], values: _Array, gaps: bool, out: _Array) -> None: ...

@final
class Checksum:
    def __new__(cls) -> Checksum: ...
    def update(self, data: NDArray[np.uint8]) -> None: ...
    def digest(self) -> int: ...

_Two = tuple[int, int]
_Shape = tuple[int, ...]

def linear(x: _Array, weight: _Array, bias: _Array | None, out: _Array) -> None: ...
def linear_backward(x: _Array, weight: _Array, dy: _Array, dx: _Array, dw: _Array) -> None: ...
def conv2d_shape(
    x: _Shape, weight: _Shape, stride: _Two, padding: _Two, dilation: _Two, groups: int
) -> list[int]: ...
def conv2d(
    x: _Array,
    weight: _Array,
    bias: _Array | None,
    stride: _Two,
    padding: _Two,
    dilation: _Two,
    groups: int,
    out: _Array,
) -> None: ...
def conv2d_backward(
    x: _Array,
    weight: _Array,
    dy: _Array,
    stride: _Two,
    padding: _Two,
    dilation: _Two,
    groups: int,
    dx: _Array,
    dw: _Array | None,
    db: _Array | None,
) -> None: ...
def conv2d_in_codes(
    x: _Array,
    weights: Sequence[PackedWeights],
    bias: _Array | None,
    kernel: _Two,
    channels_last: bool,
    stride: _Two,
    padding: _Two,
    dilation: _Two,
    fixed: tuple[float, int] | None,
    out: _Array,
) -> None: ...
def fixed_codes(
    x: _Array, scale: float, zero_point: int, codes: _Array, scales: _Array
) -> None: ...
def activate(of: str, x: _Array, out: _Array) -> None: ...
def activate_backward(of: str, x: _Array, dy: _Array, dx: _Array) -> None: ...
def softmax_backward(y: _Array, dy: _Array, dx: _Array) -> None: ...
def layer_norm(
    x: _Array,
    weight: _Array,
    bias: _Array | None,
    eps: float,
    out: _Array,
    mean: _Array,
    scale: _Array,
) -> None: ...
def layer_norm_backward(
    x: _Array,
    mean: _Array,
    scale: _Array,
    weight: _Array,
    dy: _Array,
    dx: _Array,
    dw: _Array,
    db: _Array,
) -> None: ...
def channel_moments(
    x: _Array, eps: float, mean: _Array, rest: _Array, var: _Array, inverse: _Array
) -> None: ...
def scale_channels(x: _Array, mean: _Array, scale: _Array, bias: _Array, out: _Array) -> None: ...
def batch_norm_backward(
    x: _Array,
    mean: _Array,
    rest: _Array,
    scale: _Array,
    weight: _Array,
    dy: _Array,
    dx: _Array,
    dw: _Array,
    db: _Array,
) -> None: ...
def add_rows(ids: _Array, dy: _Array, out: _Array) -> None: ...
def pool_shape(x: _Shape, kernel: _Two, stride: _Two, padding: _Two) -> list[int]: ...
def pool(
    x: _Array, kernel: _Two, stride: _Two, padding: _Two, out: _Array, places: _Array | None
) -> None: ...
def pool_backward(
    dy: _Array, kernel: _Two, stride: _Two, padding: _Two, places: _Array | None, dx: _Array
) -> None: ...
def attend(
    q: _Array,
    k: _Array,
    v: _Array,
    heads: int,
    causal: bool,
    lengths: _Array | None,
    probabilities: _Array,
    out: _Array,
) -> None: ...
def attend_backward(
    q: _Array,
    k: _Array,
    v: _Array,
    heads: int,
    probabilities: _Array,
    dy: _Array,
    dq: _Array,
    dk: _Array,
    dv: _Array,
) -> None: ...

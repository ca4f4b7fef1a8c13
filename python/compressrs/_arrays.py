"""Views of foreign arrays as NumPy arrays, and trees of arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._checks import require_unmasked

Array: TypeAlias = npt.NDArray[Any]

#: An array, or nested lists and dicts of arrays.
ArrayTree: TypeAlias = Any


def as_array(x: object, name: str) -> Array:
    """Return a view of `x` as an array, without copying; of a subclass, as a plain one.

    Accepts arrays, memory maps, and objects that support DLPack (CPU tensors of PyTorch and
    JAX) or the buffer protocol.

    Raises
    ------
    TypeError
        If `x` does not provide such a view.
    """
    require_unmasked(x, name)
    if isinstance(x, np.ndarray):
        # Subclasses, such as np.matrix, may have operators of their own.
        return x if type(x) is np.ndarray else np.asarray(x)
    instead = getattr(type(x), "_instead_of_array", None)
    if isinstance(instead, str):  # a `RowGradient`, whose module imports this one
        raise TypeError(f"{name} must be an array here, got a {type(x).__name__}: {instead}")
    # Tensors that require gradients must be detached before they can be exported.
    detach = getattr(x, "detach", None)
    if detach is not None:
        x = detach()
        is_neg = getattr(x, "is_neg", None)
        if is_neg is not None and is_neg():
            # DLPack exports the memory, whose values are the negated ones.
            raise TypeError(
                f"{name} must have its values in memory, got a tensor that is a negated view "
                "(as z.conj().imag is); call .resolve_neg()"
            )
    try:
        if str(getattr(x, "dtype", "")) == "torch.bfloat16":
            # DLPack supports bfloat16, but NumPy's implementation does not.
            import torch

            bits: Any = x
            return np.from_dlpack(bits.view(torch.int16)).view(bfloat16())
        if hasattr(x, "__dlpack__") and "bfloat16" not in str(getattr(x, "dtype", "")):
            return np.from_dlpack(x)
        return np.asarray(x, copy=False)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must be a NumPy array or export a view of its memory "
            f"(DLPack on the CPU, buffer protocol), got {type(x).__name__}"
        ) from error


def as_matrix(x: Array, leading: int) -> Array:
    """Return `x` with two axes: its first ones, `leading` of them, and the others, both joined.

    ``x.reshape(-1, n)`` is an error where `n` is 0, which says nothing of `x`.
    """
    return x.reshape(math.prod(x.shape[:leading]), math.prod(x.shape[leading:]))


def gradient_like(x: Array, out: object, name: str) -> Array:
    """Return `out` checked as the gradient of `x`, or a new array for None.

    Raises
    ------
    TypeError
        If `out` is not an array.
    ValueError
        If it has another shape, or is not C-contiguous; `name` is the name of `x`.
    """
    if out is None:
        return np.empty(x.shape, x.dtype)
    grad = as_array(out, "out")
    if grad.shape != x.shape or not grad.flags.c_contiguous:
        raise ValueError(
            f"out must be C-contiguous and have the shape {x.shape} of {name}, got {grad.shape}"
        )
    return grad


def bfloat16() -> np.dtype[Any]:
    """Return the bfloat16 dtype of ml_dtypes.

    Raises
    ------
    ModuleNotFoundError
        If ml_dtypes is not installed.
    """
    try:
        import ml_dtypes
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "bfloat16 needs ml_dtypes: pip install 'compressrs[bfloat16]'"
        ) from None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def dtype_of(name: str) -> np.dtype[Any]:
    """Return the dtype with this name, including bfloat16."""
    return bfloat16() if name == "bfloat16" else np.dtype(name)


#: Bytes of a line of the cache, and of an array that is worth to begin with one.
_LINE, _LARGE = 64, 64 * 1024


def empty_aligned(
    shape: tuple[int, ...], dtype: np.dtype[Any], order: Literal["C", "F"]
) -> npt.NDArray[Any]:
    """Return a new array; a large one begins with a line of the cache.

    NumPy's begin 16 bytes after one. Then each vector that is written touches two lines, and
    threads that write neighbouring columns take lines from each other.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < _LARGE:
        return np.empty(shape, dtype, order)
    try:
        buffer = np.empty(size + _LINE, np.uint8)
    except (OverflowError, ValueError):
        raise _too_large(f"an array of shape {shape}") from None
    start = -_core.address(buffer) % _LINE
    array: npt.NDArray[Any] = np.ndarray(shape, dtype, buffer, start, order=order)
    return array


@contextmanager
def allocating(what: str) -> Iterator[None]:
    """Have NumPy raise MemoryError for sizes beyond the address space, too.

    Of these it raises ValueError or OverflowError, without the name of what was too large.
    """
    try:
        yield
    except (OverflowError, ValueError):
        raise _too_large(what) from None


def _too_large(what: str) -> MemoryError:
    return MemoryError(f"{what} is more than memory can hold")


def compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in which arithmetic on arrays of `dtype` is done."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def is_half(dtype: np.dtype[Any]) -> bool:
    """Whether arrays of `dtype` hold float16 or bfloat16."""
    return dtype == np.float16 or dtype.name == "bfloat16"


def is_number(dtype: np.dtype[Any]) -> bool:
    """Whether arrays of `dtype` hold integers or floating-point numbers."""
    return dtype.kind in "iu" or is_floating(dtype)


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether arrays of `dtype` hold floating-point numbers."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def as_gradient(x: object, name: str) -> Array:
    """Return a view like `as_array`; NumPy scalars are copied, since `x` is only read."""
    return np.asarray(x) if isinstance(x, np.generic) else as_array(x, name)


def pairs(x: Array, name: str) -> Array:
    """Return complex numbers as real ones, with a last axis for the real and imaginary part.

    It is a view if `x` is C-contiguous, else a copy.

    Raises
    ------
    TypeError
        If the dtype is neither complex64 nor complex128.
    """
    if x.dtype.itemsize > np.dtype(np.complex128).itemsize:
        raise TypeError(f"{name} must be complex64 or complex128, got {x.dtype}")
    real = np.dtype(f"{x.dtype.byteorder}f{x.dtype.itemsize // 2}")
    view: Array = np.asarray(x, order="C").reshape(*x.shape, 1).view(real)
    return view


def complex_view(x: Array) -> Array:
    """Return the complex numbers of which `x`, C-contiguous, holds the pairs."""
    view: Array = x.view(np.result_type(x.dtype, np.complex64))[..., 0]
    return view


def is_branch(x: object) -> bool:
    """Whether `x` is a dict, list or tuple, rather than an array."""
    return isinstance(x, (dict, list, tuple))


def children(tree: ArrayTree) -> Iterator[tuple[str, Any]]:
    """Yield the path and value of each child of a branch: ``['key']`` or ``[i]``."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield f"[{key!r}]", value
    else:
        for i, value in enumerate(tree):
            yield f"[{i}]", value


#: The depth of nested lists and dicts from which on they are taken to hold themselves.
_MAX_DEPTH = 100


def flatten(tree: ArrayTree, path: str = "", _depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield path and value of each leaf, depth first.

    Raises
    ------
    ValueError
        If branches are nested too deeply, as in a list that holds itself.
    """
    if is_branch(tree):
        if _depth == _MAX_DEPTH:
            name = path.partition("[")[0] or "the tree"
            raise ValueError(f"{name} must not be nested deeper than {_MAX_DEPTH} lists or dicts")
        for step, child in children(tree):
            yield from flatten(child, path + step, _depth + 1)
    else:
        yield path, tree


def flatten_like(structure: ArrayTree, tree: ArrayTree, name: str) -> list[Any]:
    """Return the leaves of `tree`, which must have the branches of `structure`.

    The leaves of `structure` are None.

    Raises
    ------
    ValueError
        If the branches differ; `name` is the name of `tree` in the message.
    """
    if not is_branch(structure):
        return [tree]
    if isinstance(structure, dict):
        if not isinstance(tree, dict) or tree.keys() != structure.keys():
            got = sorted(map(str, tree)) if isinstance(tree, dict) else type(tree).__name__
            need = sorted(map(str, structure))
            raise ValueError(f"{name} must be a dict with the keys {need}, got {got}")
        leaves = []
        for key, child in structure.items():
            leaves += flatten_like(child, tree[key], f"{name}[{key!r}]")
        return leaves
    if isinstance(tree, Iterator):
        tree = list(tree)
    if not isinstance(tree, (list, tuple)) or len(tree) != len(structure):
        got = str(len(tree)) if isinstance(tree, (list, tuple)) else type(tree).__name__
        raise ValueError(f"{name} must be a list of length {len(structure)}, got {got}")
    if all(child is None for child in structure):
        return list(tree)
    leaves = []
    for i, (child, value) in enumerate(zip(structure, tree, strict=True)):
        leaves += flatten_like(child, value, f"{name}[{i}]")
    return leaves


def rebuild(tree: ArrayTree, leaves: Iterator[Any]) -> ArrayTree:
    """Return a tree with the branches of `tree` and these leaves, depth first."""
    if isinstance(tree, dict):
        return {key: rebuild(child, leaves) for key, child in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [rebuild(child, leaves) for child in tree]
    return next(leaves)


def read_only(x: Array) -> Array:
    """Return a read-only view."""
    view: Array = x.view()
    view.flags.writeable = False
    return view


def fitting(value: object, own: Array, name: str) -> Array:
    """Return a copy of `value` that can be written into `own`.

    Raises
    ------
    TypeError
        If `value` is not an array.
    ValueError
        If it has another shape or dtype, or `own` is read-only.
    """
    array = as_gradient(value, name)
    if array.shape != own.shape or array.dtype != own.dtype:
        # Another array would be used, but not trained.
        raise ValueError(
            f"{name} must be {own.dtype} of shape {own.shape} to be written into the array "
            f"that is trained, got {array.dtype} of shape {array.shape}"
        )
    if not own.flags.writeable:
        raise ValueError(f"{name} is read-only and cannot be assigned to")
    copied: Array = array.copy()
    return copied


def write_tree(own: ArrayTree, given: ArrayTree, name: str) -> None:
    """Copy the arrays of one tree into those of another with the same branches, all or none.

    Raises
    ------
    TypeError, ValueError
        If a branch or an array does not fit; nothing is written in that case.
    """
    leaves = list(flatten(own, name))
    values = flatten_like(own, given, name)
    new = [
        (array, fitting(value, array, path))
        for (path, array), value in zip(leaves, values, strict=True)
        # Augmented assignment, as in ``params["weight"] *= 2``, has written already.
        if value is not array
    ]
    for array, value in new:
        array[...] = value


class FixedList(list[Any]):
    """A list of fixed length and order."""

    #: What to do instead of adding to the list, removing from it or sorting it.
    _instead: ClassVar[str] = "write into its arrays"

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"entries cannot be added, removed or moved here; {self._instead}")

    append = extend = insert = pop = remove = clear = sort = reverse = _refuse
    __delitem__ = __iadd__ = __imul__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


class ArrayList(FixedList):
    """A list of arrays, or of trees of them; assigning to a position copies into its arrays."""

    def __init__(self, values: Iterable[Any], names: Sequence[str]) -> None:
        super().__init__(values)
        self.names = list(names)

    def __setitem__(self, index: Any, value: Any) -> None:
        positions = range(len(self))[index]
        if isinstance(positions, int):
            write_tree(self[index], value, self.names[positions])
        else:
            write_tree(self[index], list(value), f"the slice of {len(positions)}")


AnyViews = TypeVar("AnyViews", bound="Views")


class Views(ArrayList):
    """A list of views of the memory of given objects.

    A deep copy refers to the copies of these objects: if a PyTorch tensor is copied together
    with its optimizer, the copied optimizer trains the copied tensor.

    Parameters
    ----------
    sources : iterable of array
        Objects that `as_array` accepts.
    names : iterable of str
        Names of the sources, for messages.
    """

    def __init__(self, sources: Iterable[object], names: Iterable[str]) -> None:
        self.sources, given = list(sources), list(names)
        super().__init__(map(self._view, self.sources, given), given)

    def _view(self, source: object, name: str) -> Array:
        return as_array(source, name)

    def replaced(self: AnyViews, new: Mapping[int, Array]) -> AnyViews:
        """Return a list with the arrays at some positions replaced."""
        sources = [new.get(i, source) for i, source in enumerate(self.sources)]
        return type(self)(sources, self.names)

    def __copy__(self: AnyViews) -> AnyViews:
        return type(self)(self.sources, self.names)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ([Shared.of(source) for source in self.sources], self.names)


class Shared:
    """A stand-in for an object in copied or pickled state; restored as a copy of the object.

    joblib does not use pickle's memo for arrays: an array shared by a layer and an optimizer
    would be loaded twice. All owners of an object put the same `Shared` into their state, for
    which the memo is used.
    """

    _all: ClassVar[WeakValueDictionary[int, Shared]] = WeakValueDictionary()

    def __init__(self, value: Any) -> None:
        self.value = value

    @classmethod
    def of(cls, value: Any) -> Shared:
        """Return the stand-in of this object, the same one as long as it is alive."""
        shared = cls._all.get(id(value))
        if shared is None or shared.value is not value:
            shared = cls._all[id(value)] = cls(value)
        return shared

    def __reduce__(self) -> tuple[Any, ...]:
        return _unchanged, (self.value,)


def _unchanged(value: Any) -> Any:
    return value


def named_arrays(tree: ArrayTree, name: str) -> tuple[list[str], Views]:
    """Return the names and the arrays of all leaves.

    Raises
    ------
    TypeError
        If a leaf is not an array.
    """
    leaves = list(flatten(tree, name))
    arrays = Views((leaf for _, leaf in leaves), (path for path, _ in leaves))
    return arrays.names, arrays


def require_in_place(arrays: Sequence[Array], names: Sequence[str]) -> None:
    """Raise an error unless all arrays are writable in place and do not overlap.

    Raises
    ------
    TypeError
        If a dtype is not supported.
    ValueError
        If an array is not C-contiguous and writable, or shares memory with another.
    """
    _core.clamp(list(arrays), list(names), np.inf)


def same_memory(a: Array, b: Array) -> bool:
    """Whether two arrays are views of the same elements."""
    return a is b or (
        a.shape == b.shape
        and a.strides == b.strides
        and a.dtype == b.dtype
        and _core.address(a) == _core.address(b)
    )

"""Statistics of calibration inputs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, allocating, as_array, as_matrix, is_number
from compressrs._checks import file_path, flag, whole
from compressrs._files import load_tensors, save_tensors
from compressrs._json import parse_json
from compressrs.nn import Affine, Layer, Sequential
from compressrs.nn.container import forward_seen

#: What the metadata of a file of statistics must have.
KIND = {"compressrs": "InputStatistics"}


class InputStatistics:
    r"""Accumulates norms or the Gram matrix of a layer's inputs in double precision.

    Parameters
    ----------
    features : int
        Number of inputs of the layer.
    gram : bool, default False
        Whether to accumulate :math:`X^\top X`, which `sparsegpt` needs. Squared norms alone,
        which `Wanda` needs, take much less time.

    Attributes
    ----------
    count : int
        Number of rows seen.
    norms : array of float64, shape (features,)
        :math:`\|X_j\|_2` of each input over all rows.
    gram : array of float64, shape (features, features), or None

    Raises
    ------
    TypeError, ValueError
        If `features` is not a whole number of at least 1.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> statistics = cr.prune.InputStatistics(2)
    >>> statistics.update(np.array([[3.0, 1.0], [4.0, 0.0]]))
    >>> statistics.count, statistics.norms
    (2, array([5., 1.]))
    """

    def __init__(self, features: int, *, gram: bool = False) -> None:
        self.features = whole(features, "features", 1)
        shape = (self.features, self.features) if flag(gram, "gram") else (self.features,)
        with allocating(f"an array of features={self.features}"):
            self._sums = np.zeros(shape)
        self.count = 0

    def update(self, x: Array) -> None:
        """Add a batch of inputs.

        Parameters
        ----------
        x : array, shape (..., features)
            Inputs of the layer: float32, float64, float16 or bfloat16.

        Raises
        ------
        TypeError
            If `x` is not an array of such a dtype.
        ValueError
            If it has another number of features, something in it is not finite, or the
            sums of its squares would not be; nothing is added in that case.
        """
        x = as_array(x, "x")
        if x.ndim < 1 or x.shape[-1] != self.features:
            raise ValueError(f"x must have shape (..., {self.features}), got {x.shape}")
        rows = as_matrix(x, -1)
        if is_number(x.dtype) and not np.isfinite(rows).all():
            raise ValueError("x must be finite, got NaN or infinity")
        _core.accumulate_inputs(rows, self._sums)
        self.count += len(rows)

    @classmethod
    def _of(cls, sums: npt.NDArray[np.float64], count: int) -> InputStatistics:
        """Return statistics with these sums, of as many rows."""
        found = cls.__new__(cls)
        found.features, found._sums, found.count = sums.shape[0], sums, count
        return found

    @property
    def gram(self) -> npt.NDArray[np.float64] | None:
        """The Gram matrix :math:`X^T X`, or None without ``gram=True``."""
        return self._sums if self._sums.ndim == 2 else None

    @property
    def norms(self) -> npt.NDArray[np.float64]:
        """The 2-norm of each input over all rows."""
        squares = np.diagonal(self._sums) if self._sums.ndim == 2 else self._sums
        return np.sqrt(squares)

    def __repr__(self) -> str:
        gram = ", gram=True" if self._sums.ndim == 2 else ""
        return f"<InputStatistics({self.features}{gram}) of {self.count} rows>"


def input_statistics(
    model: Sequential, batches: Array | Iterable[Array], *, gram: bool = False
) -> list[InputStatistics]:
    """Return the statistics of the inputs of all linear layers, for calibration inputs.

    Parameters
    ----------
    model : Sequential
    batches : array, or iterable of array
        Inputs of the model, in one array or batch by batch.
    gram : bool, default False
        See `InputStatistics`.

    Returns
    -------
    list of InputStatistics
        One per linear layer, `Linear` or `SparseLinear`, in the order of
        `Layer.named_layers`: at any depth of `Sequential` and `Residual`.

    Raises
    ------
    TypeError, ValueError
        If the inputs do not match the model, or an activation is not finite.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> model = cr.nn.Sequential(cr.nn.Linear(3, 4, rng=0), cr.nn.ReLU(), cr.nn.Linear(4, 2, rng=1))
    >>> cr.prune.input_statistics(model, np.ones((5, 3), np.float32))
    [<InputStatistics(3) of 5 rows>, <InputStatistics(4) of 5 rows>]
    """
    if not isinstance(model, Sequential):
        raise TypeError(f"model must be a Sequential, got {type(model).__name__}")
    layers = {name: layer for name, layer in model.named_layers() if isinstance(layer, Affine)}
    found = statistics_of(layers, gram=gram)
    for name, x in batches_of(batches, "batches"):
        try:
            observe(model, x, found)
        except (TypeError, ValueError) as error:
            raised = TypeError if isinstance(error, TypeError) else ValueError
            raise raised(f"{name} does not fit the model: {error}") from error
    return list(found.values())


def batches_of(inputs: Any, name: str) -> Iterator[tuple[str, Array]]:
    """Yield calibration inputs with their names, from one array or batch by batch.

    Raises
    ------
    TypeError
        If they are not arrays.
    """
    single = isinstance(inputs, np.ndarray) or hasattr(inputs, "__dlpack__")
    if not single and (isinstance(inputs, (str, Mapping)) or not isinstance(inputs, Iterable)):
        raise TypeError(
            f"{name} must be an array or an iterable of arrays, got {type(inputs).__name__}"
        )
    for k, x in enumerate([inputs] if single else inputs):
        path = name if single else f"{name}[{k}]"
        yield path, as_array(x, path)


def statistics_of(layers: Mapping[str, Any], *, gram: bool) -> dict[str, InputStatistics]:
    """Return empty statistics of the inputs of layers, by name."""
    return {name: InputStatistics(x.weight.shape[1], gram=gram) for name, x in layers.items()}


def observe(model: Layer, x: Array, found: Mapping[str, InputStatistics]) -> None:
    """Run a model on a batch, and add the inputs of its layers to their statistics."""

    def seen(name: str, _: Layer, x: Array) -> None:
        if name in found:
            found[name].update(x)

    forward_seen(model, x, seen)


def save_statistics(
    path: str | os.PathLike[str], statistics: Mapping[str, InputStatistics]
) -> None:
    """Write statistics of several layers to a safetensors file.

    `compressrs.checkpoint.compress` takes the file as calibration for "gptq" and "awq", if the
    names are those of weights in the checkpoint, with or without ``.weight``.

    Parameters
    ----------
    path : path
    statistics : dict of str to InputStatistics
        By layer. What several layers share, such as queries, keys and values, is written once.

    Raises
    ------
    OSError
        If the file cannot be written; an existing file is then unchanged.
    TypeError, ValueError
        If `statistics` is no such dict, or empty.
    ModuleNotFoundError
        If safetensors is not installed.

    Examples
    --------
    >>> import numpy as np, compressrs as cr, tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "calibration.safetensors"
    >>> found = cr.prune.InputStatistics(2, gram=True)
    >>> found.update(np.array([[3.0, 1.0], [4.0, 0.0]]))
    >>> cr.prune.save_statistics(path, {"query.weight": found, "key.weight": found})
    >>> cr.prune.load_statistics(path)
    {'query.weight': <InputStatistics(2, gram=True) of 2 rows>, \
'key.weight': <InputStatistics(2, gram=True) of 2 rows>}
    """
    path = file_path(path)
    require_statistics(statistics, "statistics")
    first: dict[int, str] = {}
    same = {name: first.setdefault(id(each), name) for name, each in statistics.items()}
    arrays = {name: statistics[name]._sums for name in first.values()}
    counts = {name: statistics[name].count for name in arrays}
    metadata = {**KIND, "counts": json.dumps(counts), "names": json.dumps(same)}
    save_tensors(path, arrays, metadata)


def load_statistics(path: str | os.PathLike[str]) -> dict[str, InputStatistics]:
    """Return the statistics that `save_statistics` wrote.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is damaged, or of another kind.
    ModuleNotFoundError
        If safetensors is not installed.
    """
    path = file_path(path)
    arrays, metadata = load_tensors(path, KIND)
    names, counts = described(path, metadata, arrays)
    found = {name: restored(path, name, arrays[name], counts[name]) for name in arrays}
    return {name: found[stored] for name, stored in names.items()}


def require_statistics(statistics: Any, name: str) -> None:
    """Raise an error unless an argument is a dict of names to statistics, not empty.

    Raises
    ------
    TypeError, ValueError
    """
    if not isinstance(statistics, Mapping):
        raise TypeError(f"{name} must be a dict, got {type(statistics).__name__}")
    for key, value in statistics.items():
        if not isinstance(key, str):
            raise TypeError(f"{name} must have names of layers as keys, got {key!r}")
        if not isinstance(value, InputStatistics):
            got = type(value).__name__
            raise TypeError(f"{name}[{key!r}] must be InputStatistics, got {got}")
    if not statistics:
        raise ValueError(f"{name} must hold the statistics of a layer at least, got none")


def described(
    path: str | os.PathLike[str], metadata: Mapping[str, str], stored: Iterable[str]
) -> tuple[dict[str, str], dict[str, int]]:
    """Return the names of layers with those of their arrays in a file, and rows of each array.

    Raises
    ------
    ValueError
        If the metadata are not those of the arrays `stored`.
    """
    try:
        names, counts = (parse_json(metadata[key]) for key in ("names", "counts"))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)} is damaged: {error!r}") from None
    known = set(stored)
    valid = (
        isinstance(names, dict)
        and isinstance(counts, dict)
        and set(counts) == known
        and all(type(count) is int and count >= 0 for count in counts.values())
        and all(isinstance(name, str) for name in names.values())
        and set(names.values()) == known
    )
    if not valid:
        raise ValueError(f"{os.fspath(path)} is damaged: it describes other statistics")
    return names, counts


def restored(
    path: str | os.PathLike[str], name: str, sums: npt.NDArray[Any], count: int
) -> InputStatistics:
    """Return statistics with these sums, of as many rows.

    Raises
    ------
    ValueError
        If they are no sums of squares or of products.
    """
    square = sums.ndim in (1, 2) and sums.size > 0 and sums.shape[0] == sums.shape[-1]
    if not square or sums.dtype != np.float64:
        raise ValueError(
            f"{os.fspath(path)}, {name!r}: must be float64 of shape (features,) or "
            f"(features, features), got {sums.dtype} of {sums.shape}"
        )
    squares = sums if sums.ndim == 1 else np.diagonal(sums)
    if not np.isfinite(sums).all() or (squares < 0).any():
        raise ValueError(f"{os.fspath(path)}, {name!r}: must hold finite sums of squares")
    return InputStatistics._of(sums.copy(), count)

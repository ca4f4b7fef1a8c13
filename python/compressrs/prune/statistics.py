"""Statistics of calibration inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, as_array, is_number
from compressrs._checks import flag, whole
from compressrs.nn import Affine, Sequential


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
        try:
            self._sums = np.zeros(shape)
        except ValueError:
            # NumPy raises ValueError for sizes beyond the address space.
            raise MemoryError(f"features={self.features} are more than memory can hold") from None
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
            sums of its squares would not be; nothing is taken in then.
        """
        x = as_array(x, "x")
        if x.ndim < 1 or x.shape[-1] != self.features:
            raise ValueError(f"x must have shape (..., {self.features}), got {x.shape}")
        rows = x.reshape(-1, self.features)
        if is_number(x.dtype) and not np.isfinite(rows).all():
            raise ValueError("x must be finite, got NaN or infinity")
        _core.accumulate_inputs(rows, self._sums)
        self.count += len(rows)

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
    """Return the input statistics of all layers with weights for calibration inputs.

    Parameters
    ----------
    model : Sequential
    batches : array, or iterable of array, shape (rows, features)
        All inputs in one array, or an iterable of batches.
    gram : bool, default False
        See `InputStatistics`.

    Returns
    -------
    list of InputStatistics
        One per layer with weights, in their order.

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
    found = {
        i: InputStatistics(layer.weight.shape[1], gram=gram)
        for i, layer in enumerate(model)
        if isinstance(layer, Affine)
    }
    whole = isinstance(batches, np.ndarray) or hasattr(batches, "__dlpack__")
    if not whole and not isinstance(batches, Iterable):
        raise TypeError(
            f"batches must be an array or an iterable of arrays, got {type(batches).__name__}"
        )
    given: Iterable[Any] = [batches] if whole else batches
    for k, x in enumerate(given):
        x = as_array(x, "batches" if whole else f"batches[{k}]")
        for i, layer in enumerate(model):
            if i in found:
                found[i].update(x)
            x = layer.forward(x)
    return list(found.values())

"""Dynamic sparse training: layers in CSR format whose pattern changes during training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressrs import _core
from compressrs._arrays import Array, as_array, compute_dtype, is_half, require_in_place
from compressrs._checks import count as step_number
from compressrs._checks import generator, sequence, share, whole
from compressrs._state import Stateful, Take, Undo, checked_generator, require_keys
from compressrs.nn import RandomState, Sequential, SparseLinear
from compressrs.optim import Optimizer
from compressrs.prune.optimizers import require_index
from compressrs.sparse import CSRMatrix
from compressrs.sparse.patterns import carried


def rewire(
    matrix: CSRMatrix, growth: Array, count: int, optimizer: Optimizer | None = None
) -> CSRMatrix:
    """Drop the smallest entries of a matrix and grow others, which start at 0.

    The number of entries is unchanged, and `data` is rewritten in place: an optimizer
    continues to train it, and its state is moved to the new positions.

    Parameters
    ----------
    matrix : CSRMatrix
        Must not have repeated entries.
    growth : array, shape of the matrix
        The entries with the largest values are grown, among those not stored or just
        dropped. Of the matrix's dtype. An entry that is dropped and grown keeps its value.
    count : int
        Number of entries to drop and to grow.
    optimizer : Optimizer, optional
        The optimizer that trains ``matrix.data``.

    Returns
    -------
    CSRMatrix
        A matrix with the new pattern, in ascending order, and the same `data`.

    Raises
    ------
    TypeError
        If `matrix` is not a CSRMatrix, or `growth` is not an array of its dtype.
    ValueError
        If shapes differ, entries repeat, `count` exceeds the number of entries, a value is
        NaN, or `data` is not one of the optimizer's parameters; nothing is changed in that
        case.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> A = cr.sparse.CSRMatrix.from_dense(np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 0.0]]))
    >>> growth = np.array([[0.0, 0.0, 5.0], [1.0, 0.0, 2.0]])
    >>> cr.prune.rewire(A, growth, 1).to_dense()
    array([[3., 0., 0.],
           [0., 2., 0.]])
    """
    return _commit([_plan(matrix, growth, count)], optimizer)[0]


class _Change(NamedTuple):
    """A planned change of a pattern."""

    matrix: CSRMatrix
    #: The new pattern; its values are unused.
    places: CSRMatrix
    #: The old position of each new entry, -1 for grown entries.
    origin: npt.NDArray[np.int64]


def _plan(matrix: CSRMatrix, growth: Array, count: int) -> _Change:
    """Select the entries to drop and to grow; see `rewire`."""
    if not isinstance(matrix, CSRMatrix):
        raise TypeError(f"matrix must be a CSRMatrix, got {type(matrix).__name__}")
    growth = as_array(growth, "growth")
    if growth.shape != matrix.shape:
        raise ValueError(f"growth must have shape {matrix.shape}, got {growth.shape}")
    if growth.dtype != matrix.dtype:
        raise TypeError(f"growth must have dtype {matrix.dtype}, got {growth.dtype}")
    count = whole(count, "count", 0)
    if count > matrix.nnz:
        raise ValueError(f"count must be at most the {matrix.nnz} entries, got {count}")
    if not matrix.data.flags.writeable:
        raise ValueError("matrix.data must be writable, since it is rewritten")
    keep = np.empty(matrix.nnz, np.bool_)
    if matrix.nnz:
        _core.mask_smallest([matrix.data], ["matrix.data"], count, False, [keep])
    rows, columns = matrix.rows()[keep], matrix.indices[keep]
    candidates = growth.copy()
    candidates[rows, columns] = -np.inf
    pattern = np.empty(matrix.shape, np.bool_)
    if growth.size:
        _core.mask_smallest([candidates], ["growth"], growth.size - count, True, [pattern])
    pattern[rows, columns] = True
    short = "int16" if matrix.indices.dtype == np.int16 else None
    places = CSRMatrix.from_dense(growth, mask=pattern, index_dtype=short)
    origin = matrix._core.locate(places._core)
    if places.nnz != matrix.nnz:
        raise ValueError("growth must be above -inf for at least count entries")
    return _Change(matrix, places, origin)


def _commit(changes: list[_Change], optimizer: Optimizer | None) -> list[CSRMatrix]:
    """Apply all changes, and move an optimizer's state."""
    if optimizer is not None:
        own = {
            require_index(optimizer, change.matrix.data, "matrix.data"): change
            for change in changes
        }
        optimizer._replace(
            {index: change.matrix.data for index, change in own.items()},
            lambda index, state, fill, shape: carried(state, own[index].origin, fill),
        )
    for matrix, _, origin in changes:
        matrix.data[...] = carried(matrix.data, origin, 0)
    return [places.with_data(matrix.data) for matrix, places, _ in changes]


class _Dynamic(Stateful):
    """Base of the methods that drop and grow a fraction of each layer's entries periodically."""

    def __init__(
        self,
        layers: Sequential | SparseLinear | Iterable[SparseLinear],
        optimizer: Optimizer,
        *,
        fraction: float,
        frequency: int,
        end: int | None,
    ) -> None:
        if isinstance(layers, Sequential):
            given = [layer for _, layer in layers.named_layers() if isinstance(layer, SparseLinear)]
        else:
            given = sequence(layers, "layers") if isinstance(layers, Iterable) else [layers]
        if not given:
            raise ValueError("layers must hold at least one SparseLinear, got none")
        for i, layer in enumerate(given):
            if not isinstance(layer, SparseLinear) or not isinstance(layer.weight, CSRMatrix):
                raise TypeError(f"layers[{i}] must be a SparseLinear over a CSRMatrix")
            require_index(optimizer, layer.weight.data, f"layers[{i}].weight.data")
        require_in_place(
            [layer.weight.data for layer in given],
            [f"layers[{i}].weight.data" for i in range(len(given))],
        )
        self.layers = given
        self.optimizer = optimizer
        self.fraction = share(fraction, "fraction")
        self.frequency = whole(frequency, "frequency", 1)
        self.end = None if end is None else whole(end, "end", 1)
        self.step_count = 0

    def step(self) -> bool:
        """Count a training step, and change the patterns every `frequency` steps.

        Call it after the optimizer's step.

        Returns
        -------
        bool
            Whether the patterns have changed.

        Raises
        ------
        RuntimeError
            If a layer's gradient is needed but `backward` has not been called.
        ValueError
            If a weight or a gradient is NaN; nothing is changed in that case, and the step
            is not counted.
        """
        step = self.step_count + 1
        is_time = step % self.frequency == 0 and (self.end is None or step < self.end)
        if is_time:
            part = self._share(step)
            changes = [
                _plan(layer.weight, self._growth(layer), _free_positions(layer.weight, part))
                for layer in self.layers
            ]
            for layer, weight in zip(self.layers, _commit(changes, self.optimizer), strict=True):
                layer._adopt(weight)
        self.step_count = step
        return is_time

    def _share(self, step: int) -> float:
        """Return the fraction of the entries to replace at a step."""
        return self.fraction

    def _growth(self, layer: SparseLinear) -> Array:
        """Return the growth criterion of a layer, the shape of its weight."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the state needed to resume; patterns are saved with the layers."""
        return {"step_count": self.step_count}

    def _checked(self, state_dict: Mapping[str, Any]) -> Take:
        require_keys(state_dict, tuple(self.state_dict()))
        step_count = step_number(state_dict["step_count"], "state_dict['step_count']")

        def take(undo: Undo) -> None:
            undo.remember_attributes(self)
            self.step_count = step_count

        return take


def _free_positions(matrix: CSRMatrix, part: float) -> int:
    """Return a fraction of the entries as a count, at most the number of free positions."""
    free = matrix.shape[0] * matrix.shape[1] - matrix.nnz
    return min(int(part * matrix.nnz), free)


class SET(_Dynamic):
    """Sparse evolutionary training: drop the smallest entries, grow others at random.

    Parameters
    ----------
    layers : Sequential, SparseLinear, or list of SparseLinear
        Layers over CSR matrices; `erdos_renyi` gives suitable initial sparsities.
    optimizer : Optimizer
        The optimizer that trains them; its state is moved with the entries.
    fraction : float, default 0.3
        Fraction of each layer's entries that is dropped and grown.
    frequency : int, default 100
        Steps between changes; one epoch in the paper.
    end : int, optional
        Step from which patterns are fixed.
    rng : int, Generator or None

    Attributes
    ----------
    step_count : int
        Number of steps so far.

    Raises
    ------
    TypeError, ValueError
        If a parameter is invalid.

    Notes
    -----
    Entries are ranked by magnitude; the paper drops the largest negative and the smallest
    positive ones, which differs only in the number of each sign.

    References
    ----------
    Mocanu et al., arXiv 1707.04780.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> dense = cr.nn.Linear(6, 4, rng=0)
    >>> mask = cr.prune.masks(cr.prune.Random(0).scores(dense.weight), 0.5)
    >>> layer = cr.nn.SparseLinear.from_linear(dense, mask=mask)
    >>> opt = cr.optim.Adam(layer.params)
    >>> evolve = cr.prune.SET(layer, opt, frequency=1, rng=0)
    >>> before = layer.weight.pattern()
    >>> evolve.step(), layer.weight.nnz, int((layer.weight.pattern() & ~before).sum())
    (True, 12, 3)
    """

    def __init__(
        self,
        layers: Sequential | SparseLinear | Iterable[SparseLinear],
        optimizer: Optimizer,
        *,
        fraction: float = 0.3,
        frequency: int = 100,
        end: int | None = None,
        rng: RandomState = None,
    ) -> None:
        super().__init__(layers, optimizer, fraction=fraction, frequency=frequency, end=end)
        self._rng = generator(rng)

    def _growth(self, layer: SparseLinear) -> Array:
        dtype = layer.weight.dtype
        growth: Array = self._rng.random(layer.weight.shape, compute_dtype(dtype).type)
        # Entries just dropped are not grown again.
        growth[layer.weight.rows(), layer.weight.indices] -= 2
        # In half precision the largest are those next to 0, where numbers are close together.
        return (growth - 1).astype(dtype) if is_half(dtype) else growth

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps and the generator's state."""
        return {**super().state_dict(), "rng": self._rng.bit_generator.state}

    def _checked(self, state_dict: Mapping[str, Any]) -> Take:
        take_count = super()._checked(state_dict)
        take_rng = checked_generator(self._rng, state_dict["rng"], "state_dict['rng']")

        def take(undo: Undo) -> None:
            take_count(undo)
            take_rng(undo)

        return take


class RigL(_Dynamic):
    r"""RigL: drop the smallest entries, grow those with the largest gradients.

    At step `t` the fraction is :math:`\frac{\alpha}{2} (1 + \cos(\pi t / T_{end}))`.

    Parameters
    ----------
    layers : Sequential, SparseLinear, or list of SparseLinear
        Layers over CSR matrices; `erdos_renyi` gives suitable initial sparsities.
    optimizer : Optimizer
        The optimizer that trains them; its state is moved with the entries.
    end : int
        Step :math:`T_{end}` from which patterns are fixed; three quarters of all steps in
        the paper.
    fraction : float, default 0.3
        The initial fraction :math:`\alpha`.
    frequency : int, default 100
        Steps between changes.

    Attributes
    ----------
    step_count : int
        Number of steps so far.

    Raises
    ------
    TypeError, ValueError
        If a parameter is invalid.

    Notes
    -----
    The gradients are those of the last `backward` for all positions of a layer, the only dense
    product in `frequency` steps. The optimizer's step is taken at these steps too.

    References
    ----------
    Evci et al., "Rigging the Lottery: Making All Tickets Winners", arXiv 1911.11134,
    algorithm 1.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> dense = cr.nn.Linear(6, 4, rng=0)
    >>> mask = cr.prune.masks(cr.prune.Random(0).scores(dense.weight), 0.5)
    >>> layer = cr.nn.SparseLinear.from_linear(dense, mask=mask)
    >>> opt = cr.optim.Adam(layer.params)
    >>> rigl = cr.prune.RigL(layer, opt, frequency=2, end=100)
    >>> for _ in range(2):
    ...     dx = layer.backward(layer(np.ones((1, 6), np.float32)))
    ...     opt.step(layer.grads)
    ...     changed = rigl.step()
    >>> changed, layer.weight.nnz
    (True, 12)
    """

    def __init__(
        self,
        layers: Sequential | SparseLinear | Iterable[SparseLinear],
        optimizer: Optimizer,
        *,
        end: int,
        fraction: float = 0.3,
        frequency: int = 100,
    ) -> None:
        super().__init__(layers, optimizer, fraction=fraction, frequency=frequency, end=end)

    def _share(self, step: int) -> float:
        return self.fraction / 2 * (1 + math.cos(math.pi * step / (self.end or 1)))

    def _growth(self, layer: SparseLinear) -> Array:
        gradient = layer.dense_gradient()
        magnitudes: Array = np.abs(gradient, out=gradient)
        return magnitudes

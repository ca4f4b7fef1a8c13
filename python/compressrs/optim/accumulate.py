"""Gradient accumulation over several batches."""

from __future__ import annotations

import numpy as np

from compressrs import _core
from compressrs._arrays import (
    Array,
    ArrayTree,
    as_gradient,
    compute_dtype,
    flatten,
    flatten_like,
    rebuild,
)
from compressrs._checks import whole
from compressrs._state import Described


class GradientAccumulator(Described):
    """Accumulates the gradients of several batches and returns their mean.

    Parameters
    ----------
    steps : int
        Batches per optimizer step, at least 1.

    Raises
    ------
    TypeError
        If `steps` is not an integer.
    ValueError
        If `steps` is below 1.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.zeros(2)
    >>> opt = cr.optim.SGD(w, lr=1.0)
    >>> accumulator = cr.optim.GradientAccumulator(2)
    >>> for g in (np.array([1.0, 2.0]), np.array([3.0, 4.0])):
    ...     mean = accumulator.add(g)
    ...     if mean is not None:
    ...         _ = opt.step(mean)
    >>> w
    array([-2., -3.])
    """

    def __init__(self, steps: int) -> None:
        self.steps = whole(steps, "steps", 1)
        #: Batches added since the last mean was returned.
        self.count = 0
        self._structure: ArrayTree = None
        self._sums: list[Array] = []
        self._seen: list[bool] = []

    def add(self, grads: ArrayTree) -> ArrayTree | None:
        """Add the gradients of one batch.

        Parameters
        ----------
        grads : array, or list or nested dict of arrays
            float32, float64, float16 or bfloat16, with the same structure and shapes in
            every call. None counts as zeros. Half precision is summed in float32.

        Returns
        -------
        array, list or dict, or None
            None until `steps` batches have been added, then their mean in the structure
            of `grads`, with None where the gradient was None in every batch. The arrays
            belong to the accumulator and are overwritten by the next call.

        Raises
        ------
        TypeError
            If a gradient is not an array of such a dtype.
        ValueError
            If structure or shapes differ from those of the first call; nothing is added
            in that case.
        """
        named = list(flatten(grads, "grads"))
        paths = [path for path, _ in named]
        if not self._sums:
            leaves = [leaf for _, leaf in named]
            arrays = self._arrays(leaves, paths)
            if any(a is None for a in arrays):
                raise ValueError(
                    "grads must all be arrays in the first call, which defines the shapes, got None"
                )
            sums = [np.zeros(a.shape, compute_dtype(a.dtype)) for a in arrays if a is not None]
            structure = rebuild(grads, iter([None] * len(leaves)))
        else:
            structure, sums = self._structure, self._sums
            arrays = self._arrays(flatten_like(structure, grads, "grads"), paths)
        given = [i for i, a in enumerate(arrays) if a is not None]
        if self.count == 0:
            for total in sums:
                total[...] = 0
        # The core checks all arrays before it writes to the first.
        _core.accumulate(
            [sums[i] for i in given],
            [f"the sum for {paths[i]}" for i in given],
            [a for a in arrays if a is not None],
            [paths[i] for i in given],
            1 / self.steps,
        )
        if self.count == 0:
            self._seen = [False] * len(sums)
        for i in given:
            self._seen[i] = True
        self._structure, self._sums = structure, sums
        self.count += 1
        if self.count < self.steps:
            return None
        self.count = 0
        pairs = zip(self._seen, self._sums, strict=True)
        return rebuild(structure, iter([total if seen else None for seen, total in pairs]))

    @staticmethod
    def _arrays(leaves: list[object], paths: list[str]) -> list[Array | None]:
        return [
            None if leaf is None else as_gradient(leaf, path)
            for leaf, path in zip(leaves, paths, strict=True)
        ]

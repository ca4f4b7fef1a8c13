"""Gradient accumulation over several batches."""

from __future__ import annotations

import numpy as np

from compressrs import _core
from compressrs._arrays import (
    Array,
    ArrayTree,
    as_gradient,
    complex_view,
    compute_dtype,
    flatten,
    flatten_like,
    pairs,
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
        #: Which sums are pairs, of complex gradients.
        self._complex: list[bool] = []

    def add(self, grads: ArrayTree) -> ArrayTree | None:
        """Add the gradients of one batch.

        Parameters
        ----------
        grads : array, or list or nested dict of arrays
            float32, float64, float16, bfloat16, complex64 or complex128, with the same structure
            and shapes in every call. None counts as zeros. Half precision is summed in float32.

        Returns
        -------
        array, list or dict, or None
            None until `steps` batches have been added, then their mean in the structure
            of `grads`, with None where the gradient was None in every batch. The arrays
            belong to the accumulator and are overwritten by the next call.

        Raises
        ------
        TypeError
            If a gradient is not an array of such a dtype, or complex unlike that of the first
            call.
        ValueError
            If structure or shapes differ from those of the first call; nothing is added
            in that case.
        """
        named = list(flatten(grads, "grads"))
        paths = [path for path, _ in named]
        if not self._sums:
            leaves = [leaf for _, leaf in named]
            arrays, of_pairs = self._arrays(leaves, paths)
            if any(a is None for a in arrays):
                raise ValueError(
                    "grads must all be arrays in the first call, which defines the shapes, got None"
                )
            sums = [np.zeros(a.shape, compute_dtype(a.dtype)) for a in arrays if a is not None]
            structure = rebuild(grads, iter([None] * len(leaves)))
        else:
            structure, sums = self._structure, self._sums
            arrays, of_pairs = self._arrays(flatten_like(structure, grads, "grads"), paths)
            for path, array, own, given_pairs in zip(
                paths, arrays, self._complex, of_pairs, strict=True
            ):
                if array is not None and own != given_pairs:
                    raise TypeError(
                        f"{path} must be {'complex' if own else 'real'} as in the first call, got "
                        f"{'complex' if given_pairs else 'real'} numbers"
                    )
            of_pairs = self._complex
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
        self._structure, self._sums, self._complex = structure, sums, of_pairs
        self.count += 1
        if self.count < self.steps:
            return None
        self.count = 0
        means = [
            complex_view(total) if is_complex else total
            for total, is_complex in zip(self._sums, of_pairs, strict=True)
        ]
        pairs_of = zip(self._seen, means, strict=True)
        return rebuild(structure, iter([mean if seen else None for seen, mean in pairs_of]))

    @staticmethod
    def _arrays(leaves: list[object], paths: list[str]) -> tuple[list[Array | None], list[bool]]:
        """Return the gradients, complex ones as pairs, and which are complex."""
        arrays: list[Array | None] = []
        of_pairs = []
        for leaf, path in zip(leaves, paths, strict=True):
            array = None if leaf is None else as_gradient(leaf, path)
            of_pairs.append(array is not None and array.dtype.kind == "c")
            arrays.append(pairs(array, path) if array is not None and of_pairs[-1] else array)
        return arrays, of_pairs

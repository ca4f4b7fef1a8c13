"""How much to take from each layer."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

from compressrs._checks import number


def erdos_renyi(shapes: list[tuple[int, ...]], sparsity: float) -> list[float]:
    r"""Return sparsities of layers as of an Erdős-Rényi random graph.

    .. math:: 1 - s_l \propto \frac{n_{in} + n_{out}}{n_{in} n_{out}}

    so that all of them together have `sparsity`. Layers that this would make more than
    dense are dense, and the others have the rest. Kernels count as channels times places:
    see `erdos_renyi_kernel`.

    Parameters
    ----------
    shapes : list of tuple of int
        Of weights, (outputs, inputs, ...).
    sparsity : float
        In [0, 1).

    Returns
    -------
    list of float
        One a layer, in [0, 1).

    Raises
    ------
    TypeError, ValueError
        If `sparsity` is out of range, or a shape has not two axes, or is empty.

    References
    ----------
    Mocanu et al., "Scalable Training of Artificial Neural Networks with Adaptive Sparse
    Connectivity Inspired by Network Science", arXiv 1707.04780, with the constant that
    makes the total come out, as of Evci et al., arXiv 1911.11134.

    Examples
    --------
    >>> import compressrs as cr
    >>> shapes = [(300, 64), (100, 300), (10, 100)]
    >>> [round(s, 3) for s in cr.prune.erdos_renyi(shapes, 0.9)]
    [0.891, 0.923, 0.368]
    """
    return _allocate(shapes, sparsity, lambda shape: (shape[0] + shape[1]) / (shape[0] * shape[1]))


def erdos_renyi_kernel(shapes: list[tuple[int, ...]], sparsity: float) -> list[float]:
    r"""Return sparsities of layers as `erdos_renyi`, the sizes of kernels counting as well.

    .. math:: 1 - s_l \propto \frac{n_{in} + n_{out} + w + h}{n_{in} n_{out} w h}

    For weights of two axes it is `erdos_renyi`. Parameters and errors are the same.

    References
    ----------
    Evci et al., "Rigging the Lottery: Making All Tickets Winners", arXiv 1911.11134.

    Examples
    --------
    >>> import compressrs as cr
    >>> shapes = [(64, 3, 3, 3), (64, 64, 3, 3), (10, 64)]
    >>> [round(s, 3) for s in cr.prune.erdos_renyi_kernel(shapes, 0.9)]
    [0.33, 0.942, 0.0]
    """
    return _allocate(shapes, sparsity, lambda shape: sum(shape) / math.prod(shape))


def _allocate(
    shapes: list[tuple[int, ...]],
    sparsity: float,
    density: Callable[[tuple[int, ...]], float],
) -> list[float]:
    """Return sparsities whose complements are in proportion to `density`, up to dense."""
    sparsity = number(sparsity, "sparsity", 0, below=1)
    try:
        shapes = [tuple(map(operator.index, shape)) for shape in shapes]
    except TypeError:
        raise TypeError(f"shapes must be tuples of whole numbers, got {shapes!r}") from None
    for shape in shapes:
        if len(shape) < 2 or math.prod(shape) == 0:
            raise ValueError(f"shapes must have two axes or more, and not be empty, got {shape}")
    raw = [density(shape) for shape in shapes]
    sizes = [math.prod(shape) for shape in shapes]
    dense: set[int] = set()
    while True:
        sparse = [i for i in range(len(shapes)) if i not in dense]
        left = (1 - sparsity) * sum(sizes) - sum(sizes[i] for i in dense)
        factor = left / sum(raw[i] * sizes[i] for i in sparse) if sparse else 0.0
        full = {i for i in sparse if raw[i] * factor >= 1}
        if not full:
            return [0.0 if i in dense else 1 - raw[i] * factor for i in range(len(shapes))]
        dense |= full

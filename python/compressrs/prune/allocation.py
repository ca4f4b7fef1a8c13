"""Allocation of a total sparsity to layers."""

from __future__ import annotations

import math
from collections.abc import Callable

from compressrs._checks import integer, number


def erdos_renyi(shapes: list[tuple[int, ...]], sparsity: float) -> list[float]:
    r"""Return the sparsity of each layer according to an Erdős-Rényi random graph.

    .. math:: 1 - s_l \propto \frac{n_{in} + n_{out}}{n_{in} n_{out}}

    scaled so that the total sparsity is `sparsity`. Layers whose density would exceed 1 are
    kept dense, and the remainder is distributed over the others. Kernel sizes are ignored;
    see `erdos_renyi_kernel`.

    Parameters
    ----------
    shapes : list of tuple of int
        Shapes of the weights, (outputs, inputs, ...).
    sparsity : float
        In [0, 1).

    Returns
    -------
    list of float
        One per layer, in [0, 1).

    Raises
    ------
    TypeError, ValueError
        If `sparsity` is out of range, or a shape is empty or has fewer than two axes.

    References
    ----------
    Mocanu et al., "Scalable Training of Artificial Neural Networks with Adaptive Sparse
    Connectivity Inspired by Network Science", arXiv 1707.04780, with the constant chosen to
    give the total, as in Evci et al., arXiv 1911.11134.

    Examples
    --------
    >>> import compressrs as cr
    >>> shapes = [(300, 64), (100, 300), (10, 100)]
    >>> [round(s, 3) for s in cr.prune.erdos_renyi(shapes, 0.9)]
    [0.891, 0.923, 0.368]
    """
    return _allocate(shapes, sparsity, lambda shape: (shape[0] + shape[1]) / (shape[0] * shape[1]))


def erdos_renyi_kernel(shapes: list[tuple[int, ...]], sparsity: float) -> list[float]:
    r"""Return the sparsity of each layer as `erdos_renyi` does, counting kernel sizes as well.

    .. math:: 1 - s_l \propto \frac{n_{in} + n_{out} + w + h}{n_{in} n_{out} w h}

    For weights with two axes the result is that of `erdos_renyi`. Parameters and errors are
    the same.

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
    """Return sparsities whose complements are proportional to `density`, capped at 1."""
    sparsity = number(sparsity, "sparsity", 0, below=1)
    try:
        shapes = [tuple(integer(n, "shapes") for n in shape) for shape in shapes]
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

"""Rprop."""

from __future__ import annotations

from compressrs._arrays import ArrayTree
from compressrs._typing import Unpack
from compressrs.optim.base import Optimizer, Storage


class Rprop(Optimizer):
    r"""Rprop: per-weight step sizes adapted by the signs of successive gradients.

    .. math::
        \eta &\leftarrow \begin{cases} \eta\, \eta_+ & g\, g' > 0 \\
        \eta\, \eta_- & g\, g' < 0, \text{ and } g \leftarrow 0 \end{cases}
        \quad \text{clipped to } [\eta_{\min}, \eta_{\max}] \\
        \theta &\leftarrow \theta - \operatorname{sign}(g)\, \eta \\
        g' &\leftarrow g

    For full-batch gradients only.

    Parameters
    ----------
    params : array, list, nested dict of arrays, or list of group dicts
        See `Optimizer`.
    lr : float, default 1e-2
        The initial :math:`\eta`, at least 0.
    etas : pair of float, default (0.5, 1.2)
        :math:`0 < \eta_- < 1 < \eta_+`.
    step_sizes : pair of float, default (1e-6, 50)
        :math:`0 \le \eta_{\min} \le \eta_{\max}`.
    maximize : bool, default False
        Ascend instead of descend.
    **storage
        `state_dtype`, `precision` and `seed`: how state and weights are stored; see
        `Optimizer`.

    References
    ----------
    Riedmiller & Braun, "A direct adaptive method for faster backpropagation learning",
    ICNN 1993; ``torch.optim.Rprop``.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.array([1.0, -2.0])
    >>> opt = cr.optim.Rprop(w, lr=0.1)
    >>> opt.step(2 * w)  # the gradient of w @ w
    >>> w.round(6)
    array([ 0.9, -1.9])
    """

    _rule = "rprop"

    def __init__(
        self,
        params: ArrayTree,
        lr: float = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
        *,
        maximize: bool = False,
        **storage: Unpack[Storage],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "etas": etas,
                "step_sizes": step_sizes,
                "maximize": maximize,
            },
            storage,
        )

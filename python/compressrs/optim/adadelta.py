"""Adadelta."""

from __future__ import annotations

from compressrs._arrays import ArrayTree
from compressrs._typing import Unpack
from compressrs.optim.base import Optimizer, Storage


class Adadelta(Optimizer):
    r"""Adadelta: step sizes adapted by running averages of past steps and gradients.

    .. math::
        g &\leftarrow g + \lambda \theta \\
        s &\leftarrow \rho s + (1 - \rho) g^2 \\
        \delta &= \frac{\sqrt{a + \epsilon}}{\sqrt{s + \epsilon}} g \\
        a &\leftarrow \rho a + (1 - \rho) \delta^2 \\
        \theta &\leftarrow \theta - \gamma \delta

    Parameters
    ----------
    params : array, list, nested dict of arrays, or list of group dicts
        See `Optimizer`.
    lr : float, default 1.0
        Factor :math:`\gamma \ge 0`; 1 is the paper's method, which has no learning rate.
    rho : float, default 0.9
        :math:`\rho` in [0, 1).
    eps : float, default 1e-6
        :math:`\epsilon \ge 0`.
    weight_decay : float, default 0
        L2 penalty :math:`\lambda \ge 0`.
    maximize : bool, default False
        Ascend instead of descend.
    **storage
        `state_dtype`, `precision` and `seed`: how state and weights are stored; see
        `Optimizer`.

    References
    ----------
    Zeiler, "ADADELTA: an adaptive learning rate method", arXiv 1212.5701, algorithm 1;
    ``torch.optim.Adadelta``.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.array([1.0, -2.0])
    >>> opt = cr.optim.Adadelta(w)
    >>> opt.step(2 * w)  # the gradient of w @ w
    >>> w.round(6)
    array([ 0.996838, -1.996838])
    """

    _rule = "adadelta"

    def __init__(
        self,
        params: ArrayTree,
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        *,
        maximize: bool = False,
        **storage: Unpack[Storage],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "rho": rho,
                "eps": eps,
                "weight_decay": weight_decay,
                "maximize": maximize,
            },
            storage,
        )

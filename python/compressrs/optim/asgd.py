"""Averaged stochastic gradient descent."""

from __future__ import annotations

from compressrs._arrays import ArrayTree
from compressrs._typing import Unpack
from compressrs.optim.base import Optimizer, Storage


class ASGD(Optimizer):
    r"""Averaged stochastic gradient descent.

    .. math::
        g &\leftarrow g + \lambda \theta \\
        \theta &\leftarrow (1 - \Lambda \eta) \theta - \eta g \\
        a &\leftarrow a + \mu (\theta - a) \\
        \eta &\leftarrow \gamma / (1 + \Lambda \gamma t)^\alpha, \quad
        \mu \leftarrow 1 / \max(1, t - t_0)

    The average :math:`a` is ``opt.state[i]["ax"]``; for an average of any optimizer's
    iterates see `EMA`.

    Parameters
    ----------
    params : array, list, nested dict of arrays, or list of group dicts
        See `Optimizer`.
    lr : float, default 1e-2
        Learning rate :math:`\gamma \ge 0`.
    lambd : float, default 1e-4
        Decay :math:`\Lambda \ge 0`.
    alpha : float, default 0.75
        Exponent :math:`\alpha` of the learning rate's decay.
    t0 : float, default 1e6
        Step :math:`t_0` at which averaging begins.
    weight_decay : float, default 0
        L2 penalty :math:`\lambda \ge 0`.
    maximize : bool, default False
        Ascend instead of descend.
    **storage
        `state_dtype`, `precision` and `seed`: how state and weights are stored; see
        `Optimizer`.

    References
    ----------
    Polyak & Juditsky, "Acceleration of stochastic approximation by averaging", 1992;
    ``torch.optim.ASGD``.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.array([1.0, -2.0])
    >>> opt = cr.optim.ASGD(w, lr=0.1)
    >>> opt.step(2 * w)  # the gradient of w @ w
    >>> w.round(6)
    array([ 0.79999, -1.59998])
    """

    _rule = "asgd"

    def __init__(
        self,
        params: ArrayTree,
        lr: float = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0,
        *,
        maximize: bool = False,
        **storage: Unpack[Storage],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "lambd": lambd,
                "alpha": alpha,
                "t0": t0,
                "weight_decay": weight_decay,
                "maximize": maximize,
            },
            storage,
        )

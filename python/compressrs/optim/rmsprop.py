"""RMSprop."""

from __future__ import annotations

from compressrs._arrays import ArrayTree
from compressrs._typing import Unpack
from compressrs.optim.base import Optimizer, Storage


class RMSprop(Optimizer):
    r"""RMSprop: steps scaled by a moving average of the squared gradient.

    .. math::
        g &\leftarrow g + \lambda \theta \\
        s &\leftarrow \alpha s + (1 - \alpha) g^2 \\
        \bar g &\leftarrow \alpha \bar g + (1 - \alpha) g \\
        d &= g / (\sqrt{s} + \epsilon), \text{ or } g / (\sqrt{s - \bar g^2} + \epsilon)
        \text{ if centered} \\
        b &\leftarrow \mu b + d \\
        \theta &\leftarrow \theta - \gamma b

    Epsilon is outside the root, as in PyTorch. Where rounding makes
    :math:`s - \bar g^2` negative, it counts as 0.

    Parameters
    ----------
    params : array, list, nested dict of arrays, or list of group dicts
        See `Optimizer`.
    lr : float, default 1e-2
        Learning rate :math:`\gamma \ge 0`.
    alpha : float, default 0.99
        :math:`\alpha` in [0, 1).
    eps : float, default 1e-8
        :math:`\epsilon \ge 0`.
    weight_decay : float, default 0
        L2 penalty :math:`\lambda \ge 0`.
    momentum : float, default 0
        :math:`\mu \ge 0`.
    centered : bool, default False
        Divide by the standard deviation instead of the root mean square.
    maximize : bool, default False
        Ascend instead of descend.
    **storage
        `state_dtype`, `precision` and `seed`: how state and weights are stored; see
        `Optimizer`.

    References
    ----------
    Tieleman & Hinton, "Neural networks for machine learning", lecture 6.5, 2012;
    Graves, arXiv 1308.0850, for the centered form; ``torch.optim.RMSprop``.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.array([1.0, -2.0])
    >>> opt = cr.optim.RMSprop(w, lr=0.01)
    >>> opt.step(2 * w)  # the gradient of w @ w
    >>> w.round(6)
    array([ 0.9, -1.9])
    """

    _rule = "rmsprop"

    def __init__(
        self,
        params: ArrayTree,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        *,
        maximize: bool = False,
        **storage: Unpack[Storage],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "alpha": alpha,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "centered": centered,
                "maximize": maximize,
            },
            storage,
        )

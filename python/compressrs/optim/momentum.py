"""Classical momentum."""

from __future__ import annotations

from compressrs._arrays import ArrayTree
from compressrs._typing import Unpack
from compressrs.optim.base import Optimizer, Storage


class Momentum(Optimizer):
    r"""Classical (heavy-ball) momentum, with the learning rate inside the velocity.

    .. math::
        g &\leftarrow g + \lambda \theta \\
        v &\leftarrow \beta v - \alpha g \\
        \theta &\leftarrow \theta + \beta v - \alpha g \text{ if nesterov, else } \theta + v

    For a constant learning rate this equals ``SGD(momentum=...)``; when the rate
    changes, past gradients keep the rate that they were scaled with.

    Parameters
    ----------
    params : array, list, nested dict of arrays, or list of group dicts
        See `Optimizer`.
    lr : float, default 1e-3
        Learning rate :math:`\alpha \ge 0`.
    momentum : float, default 0.9
        :math:`\beta` in [0, 1).
    weight_decay : float, default 0
        L2 penalty :math:`\lambda \ge 0`.
    nesterov : bool, default False
        Use Nesterov's accelerated form.
    maximize : bool, default False
        Ascend instead of descend.
    **storage
        `state_dtype`, `precision` and `seed`: how state and weights are stored; see
        `Optimizer`.

    References
    ----------
    Polyak, "Some methods of speeding up the convergence of iteration methods",
    1964; Sutskever et al., ICML 2013, equations 1 to 4. The form of Keras and
    scikit-learn.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.array([1.0, -2.0])
    >>> opt = cr.optim.Momentum(w, lr=0.1, momentum=0.5)
    >>> opt.step(2 * w)
    >>> opt.step(2 * w)
    >>> w
    array([ 0.54, -1.08])
    """

    _rule = "momentum"

    def __init__(
        self,
        params: ArrayTree,
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        **storage: Unpack[Storage],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
            },
            storage,
        )

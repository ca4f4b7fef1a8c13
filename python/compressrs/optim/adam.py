"""Adam."""

from __future__ import annotations

from compressrs._arrays import ArrayTree
from compressrs._typing import Unpack
from compressrs.optim.base import Optimizer, Storage


class Adam(Optimizer):
    r"""Adam: adaptive moment estimation.

    .. math::
        g &\leftarrow g + \lambda \theta \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \theta &\leftarrow \theta - \gamma \frac{m / (1 - \beta_1^t)}
        {\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    Epsilon is outside the root. With amsgrad, the maximum of all :math:`v` so far
    replaces :math:`v` in the last line. For decoupled weight decay see `AdamW`.

    Parameters
    ----------
    params : array, list, nested dict of arrays, or list of group dicts
        See `Optimizer`.
    lr : float, default 1e-3
        Learning rate :math:`\gamma \ge 0`.
    betas : pair of float, default (0.9, 0.999)
        :math:`\beta_1, \beta_2`, each in [0, 1).
    eps : float, default 1e-8
        :math:`\epsilon \ge 0`.
    weight_decay : float, default 0
        L2 penalty :math:`\lambda \ge 0`.
    amsgrad : bool, default False
        Divide by the maximum of all second moments so far.
    maximize : bool, default False
        Ascend instead of descend.
    decoupled_weight_decay : bool, default False
        Apply the decay to the parameter directly, as `AdamW` does.
    cautious : bool, default False
        Move only elements whose step agrees in sign with the gradient, and these further to make
        up for it (Liang et al., "Cautious optimizers", arXiv 2411.16085).
    **storage
        `state_dtype`, `precision` and `seed`: how state and weights are stored; see
        `Optimizer`.

    References
    ----------
    Kingma & Ba, "Adam: a method for stochastic optimization", arXiv 1412.6980,
    algorithm 1; Reddi, Kale & Kumar, arXiv 1904.09237, for amsgrad.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.array([1.0, -2.0])
    >>> opt = cr.optim.Adam(w, lr=0.1)
    >>> opt.step(2 * w)  # the first step goes by the sign of the gradient
    >>> w.round(6)
    array([ 0.9, -1.9])
    """

    _rule = "adam"

    def __init__(
        self,
        params: ArrayTree,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        cautious: bool = False,
        **storage: Unpack[Storage],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "maximize": maximize,
                "decoupled_weight_decay": decoupled_weight_decay,
                "cautious": cautious,
            },
            storage,
        )

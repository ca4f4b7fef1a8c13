"""Lion."""

from __future__ import annotations

from compressrs._arrays import ArrayTree
from compressrs._typing import Unpack
from compressrs.optim.base import Optimizer, Storage


class Lion(Optimizer):
    r"""Lion: steps in the direction of the sign of an interpolated momentum.

    .. math::
        \theta &\leftarrow \theta - \gamma \left(\operatorname{sign}(\beta_1 m + (1 - \beta_1) g)
        + \lambda \theta\right) \\
        m &\leftarrow \beta_2 m + (1 - \beta_2) g

    Every weight changes by the same amount, so the learning rate should be 3 to 10
    times smaller than AdamW's, and the weight decay larger by the same factor.

    Parameters
    ----------
    params : array, list, nested dict of arrays, or list of group dicts
        See `Optimizer`.
    lr : float, default 1e-4
        Learning rate :math:`\gamma \ge 0`.
    betas : pair of float, default (0.9, 0.99)
        :math:`\beta_1, \beta_2`, each in [0, 1).
    weight_decay : float, default 1e-3
        Decoupled weight decay :math:`\lambda \ge 0`.
    maximize : bool, default False
        Ascend instead of descend.
    cautious : bool, default False
        Move only elements whose step agrees in sign with the gradient, and these further to make
        up for it (Liang et al., "Cautious optimizers", arXiv 2411.16085).
    **storage
        `state_dtype`, `precision` and `seed`: how state and weights are stored; see
        `Optimizer`.

    References
    ----------
    Chen et al., "Symbolic discovery of optimization algorithms", arXiv 2302.06675,
    algorithm 2; ``optax.lion``.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.array([1.0, -2.0])
    >>> opt = cr.optim.Lion(w, lr=0.1, weight_decay=0)
    >>> opt.step(2 * w)  # the gradient of w @ w
    >>> w.round(6)
    array([ 0.9, -1.9])
    """

    _rule = "lion"

    def __init__(
        self,
        params: ArrayTree,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 1e-3,
        *,
        maximize: bool = False,
        cautious: bool = False,
        **storage: Unpack[Storage],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "weight_decay": weight_decay,
                "maximize": maximize,
                "cautious": cautious,
            },
            storage,
        )

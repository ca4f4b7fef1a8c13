"""AdEMAMix."""

from __future__ import annotations

from compressrs._arrays import ArrayTree
from compressrs._typing import Unpack
from compressrs.optim.base import Optimizer, Storage


class AdEMAMix(Optimizer):
    r"""AdEMAMix: Adam with a second, slow moving average of the gradient.

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        s &\leftarrow \beta_3 s + (1 - \beta_3) g \\
        \theta &\leftarrow \theta - \gamma \left(
        \frac{m / (1 - \beta_1^t) + \alpha s}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}
        + \lambda \theta \right)

    During the warm-up of :math:`T` steps :math:`\alpha` grows linearly from 0, and the half-life
    of the slow average linearly from that of the fast one.

    Parameters
    ----------
    params : array, list, nested dict of arrays, or list of group dicts
        See `Optimizer`.
    lr : float, default 1e-3
        Learning rate :math:`\gamma \ge 0`.
    betas : three floats, default (0.9, 0.999, 0.9999)
        :math:`\beta_1, \beta_2, \beta_3`, each in [0, 1).
    alpha : float, default 5
        Weight of the slow average, :math:`\alpha \ge 0`.
    eps : float, default 1e-8
        :math:`\epsilon \ge 0`.
    weight_decay : float, default 0
        Decoupled weight decay :math:`\lambda \ge 0`.
    warmup : float, default 0
        :math:`T`; in the paper the number of steps of the whole run.
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
    Pagliardini, Ablin & Grangier, "The AdEMAMix optimizer: better, faster, older", arXiv
    2409.03137, algorithm 1.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.array([1.0, -2.0])
    >>> opt = cr.optim.AdEMAMix(w, lr=0.1, warmup=100)
    >>> opt.step(2 * w)
    >>> w.round(3)
    array([ 0.9, -1.9])
    """

    _rule = "ademamix"

    def __init__(
        self,
        params: ArrayTree,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        eps: float = 1e-8,
        weight_decay: float = 0,
        warmup: float = 0,
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
                "alpha": alpha,
                "eps": eps,
                "weight_decay": weight_decay,
                "warmup": warmup,
                "maximize": maximize,
                "cautious": cautious,
            },
            storage,
        )

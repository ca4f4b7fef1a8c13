"""RAdam."""

from __future__ import annotations

from compressrs._arrays import ArrayTree
from compressrs._typing import Unpack
from compressrs.optim.base import Optimizer, Storage


class RAdam(Optimizer):
    r"""RAdam: Adam with rectified variance of the adaptive learning rate.

    .. math::
        g &\leftarrow g + \lambda \theta \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \rho_\infty &= 2 / (1 - \beta_2) - 1, \quad
        \rho_t = \rho_\infty - 2 t \beta_2^t / (1 - \beta_2^t) \\
        r_t &= \sqrt{\frac{(\rho_t - 4)(\rho_t - 2) \rho_\infty}
        {(\rho_\infty - 4)(\rho_\infty - 2) \rho_t}} \\
        \theta &\leftarrow \theta - \gamma \frac{m}{1 - \beta_1^t} \cdot
        \frac{r_t \sqrt{1 - \beta_2^t}}{\sqrt{v} + \epsilon} \text{ if } \rho_t > 5,
        \text{ else } \theta - \gamma \frac{m}{1 - \beta_1^t}

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
    decoupled_weight_decay : bool, default False
        Apply the decay to the parameter directly, as `AdamW` does.
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
    Liu et al., "On the variance of the adaptive learning rate and beyond",
    arXiv 1908.03265, algorithm 2; ``torch.optim.RAdam``.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.array([1.0, -2.0])
    >>> opt = cr.optim.RAdam(w, lr=0.1)
    >>> opt.step(2 * w)  # the gradient of w @ w
    >>> w.round(6)
    array([ 0.8, -1.6])
    """

    _rule = "radam"

    def __init__(
        self,
        params: ArrayTree,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
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
                "eps": eps,
                "weight_decay": weight_decay,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
                "cautious": cautious,
            },
            storage,
        )

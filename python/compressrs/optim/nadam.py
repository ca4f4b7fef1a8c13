"""NAdam."""

from __future__ import annotations

from compressrs._arrays import ArrayTree
from compressrs._typing import Unpack
from compressrs.optim.base import Optimizer, Storage


class NAdam(Optimizer):
    r"""NAdam: Adam with Nesterov momentum.

    .. math::
        g &\leftarrow g + \lambda \theta \\
        \mu_t &= \beta_1 \left(1 - \tfrac12 0.96^{t \psi}\right) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \hat m &= \frac{\mu_{t+1} m}{1 - \prod_{i \le t+1} \mu_i}
        + \frac{(1 - \mu_t) g}{1 - \prod_{i \le t} \mu_i} \\
        \theta &\leftarrow \theta - \gamma \frac{\hat m}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    Parameters
    ----------
    params : array, list, nested dict of arrays, or list of group dicts
        See `Optimizer`.
    lr : float, default 2e-3
        Learning rate :math:`\gamma \ge 0`.
    betas : pair of float, default (0.9, 0.999)
        :math:`\beta_1, \beta_2`, each in [0, 1).
    eps : float, default 1e-8
        :math:`\epsilon \ge 0`.
    weight_decay : float, default 0
        L2 penalty :math:`\lambda \ge 0`.
    momentum_decay : float, default 4e-3
        :math:`\psi \ge 0`.
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
    Dozat, "Incorporating Nesterov momentum into Adam", ICLR workshop, 2016;
    ``torch.optim.NAdam``.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.array([1.0, -2.0])
    >>> opt = cr.optim.NAdam(w, lr=0.1)
    >>> opt.step(2 * w)  # the gradient of w @ w
    >>> w.round(6)
    array([ 0.894355, -1.894355])
    """

    _rule = "nadam"

    def __init__(
        self,
        params: ArrayTree,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
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
                "momentum_decay": momentum_decay,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
                "cautious": cautious,
            },
            storage,
        )

"""Prodigy."""

from __future__ import annotations

import math

from compressrs._arrays import ArrayTree
from compressrs._typing import Unpack
from compressrs.optim.base import Optimizer, Storage


class Prodigy(Optimizer):
    r"""Prodigy: Adam that estimates its own learning rate.

    .. math::
        r &\leftarrow \sqrt{\beta_2} r
        + \tfrac{d}{d_0} d \gamma \langle g, \theta_0 - \theta \rangle \\
        s &\leftarrow \sqrt{\beta_2} s + \tfrac{d}{d_0} d \gamma g \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) d g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) d^2 g^2 \\
        d' &= \max(d, c \, r / \|s\|_1) \\
        \theta &\leftarrow \theta - d \gamma
        \left( \frac{m}{\sqrt{v} + d' \epsilon} + \lambda \theta \right)

    :math:`d`, the distance to the solution as estimated from below, becomes :math:`d'`. It is one
    number for all parameters: scalar product and norm are over all of them, in a fixed order.
    ``opt.state[0]["d"]`` is the estimate.

    Parameters
    ----------
    params : array, list, nested dict of arrays, or list of group dicts
        See `Optimizer`. All groups should have the same `lr`, or 0.
    lr : float, default 1
        Factor :math:`\gamma \ge 0` on the estimated rate; schedules may change it.
    betas : pair of float, default (0.9, 0.999)
        :math:`\beta_1, \beta_2`, each in [0, 1).
    eps : float, default 1e-8
        :math:`\epsilon \ge 0`.
    weight_decay : float, default 0
        :math:`\lambda \ge 0`.
    decoupled_weight_decay : bool, default True
        Apply the decay to the parameter directly, rather than add it to the gradient.
    use_bias_correction : bool, default False
        Multiply the rate by :math:`\sqrt{1 - \beta_2^t} / (1 - \beta_1^t)`, as Adam does.
    safeguard_warmup : bool, default False
        Leave :math:`\gamma` out of :math:`s`, for schedules that warm up.
    d0 : float, default 1e-6
        The first estimate, > 0.
    d_coef : float, default 1
        Factor :math:`c > 0` on estimates: 0.5 to 2 to tune.
    growth_rate : float, default infinity
        By which factor the estimate may grow in a step, at least 1.
    maximize : bool, default False
        Ascend instead of descend.
    **storage
        `state_dtype`, `precision` and `seed`: how state and weights are stored; see
        `Optimizer`.

    References
    ----------
    Mishchenko & Defazio, "Prodigy: an expeditiously adaptive parameter-free learner", arXiv
    2306.06101, algorithm 4; the package ``prodigyopt``.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.array([1.0, -2.0])
    >>> opt = cr.optim.Prodigy(w)
    >>> for _ in range(100):
    ...     opt.step(2 * w)
    >>> bool(np.abs(w).max() < 0.1)
    True
    """

    _rule = "prodigy"
    _of_all_parameters = True

    def __init__(
        self,
        params: ArrayTree,
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        *,
        decoupled_weight_decay: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = math.inf,
        maximize: bool = False,
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
                "use_bias_correction": use_bias_correction,
                "safeguard_warmup": safeguard_warmup,
                "d0": d0,
                "d_coef": d_coef,
                "growth_rate": growth_rate,
                "maximize": maximize,
            },
            storage,
        )

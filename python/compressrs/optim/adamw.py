"""AdamW."""

from __future__ import annotations

from typing import Any, ClassVar

from compressrs._arrays import ArrayTree
from compressrs._typing import Unpack
from compressrs.optim.adam import Adam
from compressrs.optim.base import Storage


class AdamW(Adam):
    r"""Adam with decoupled weight decay.

    The decay is applied to the parameter directly, not through the moments:
    :math:`\theta \leftarrow \theta - \gamma \lambda \theta`, then the step of `Adam`
    without its penalty.

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
    weight_decay : float, default 1e-2
        :math:`\lambda \ge 0`.
    amsgrad : bool, default False
        Divide by the maximum of all second moments so far.
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
    Loshchilov & Hutter, "Decoupled weight decay regularization", arXiv 1711.05101,
    algorithm 2.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.array([1.0, -2.0])
    >>> opt = cr.optim.AdamW(w, lr=0.1, weight_decay=0.5)
    >>> opt.step(2 * w)
    >>> w.round(6)
    array([ 0.85, -1.8 ])
    """

    _fixed: ClassVar[dict[str, Any]] = {"decoupled_weight_decay": True}

    def __init__(
        self,
        params: ArrayTree,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        cautious: bool = False,
        **storage: Unpack[Storage],
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            decoupled_weight_decay=True,
            cautious=cautious,
            **storage,
        )

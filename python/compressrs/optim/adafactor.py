"""Adafactor."""

from __future__ import annotations

from compressrs._arrays import ArrayTree
from compressrs._typing import Unpack
from compressrs.optim._complex import OF_MATRICES
from compressrs.optim.base import Optimizer, Storage


class Adafactor(Optimizer):
    r"""Adafactor: Adam with a factored second moment, stored as row and column means.

    .. math::
        b_t &= t^{\beta} \\
        r &\leftarrow r + b_t (\operatorname{mean}_{\text{row}} g^2 - r), \quad
        c \leftarrow c + b_t (\operatorname{mean}_{\text{column}} g^2 - c) \\
        v &= r c^\top / \max(\operatorname{mean} r, \epsilon_1), \quad
        u = g / \sqrt{\max(v, \epsilon_1^2)} \\
        u &\leftarrow \frac{\max(\epsilon_2, \operatorname{rms} \theta) \min(\gamma, 1 / \sqrt t)}
        {\max(1, \operatorname{rms} u / d)} u \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) u
        \text{ if } \beta_1 \text{ is given, else } m = u \\
        \theta &\leftarrow (1 - \gamma \lambda) \theta - m

    Rows and columns are the last two axes. Parameters with fewer axes keep a full second
    moment.

    Parameters
    ----------
    params : array, list, nested dict of arrays, or list of group dicts
        See `Optimizer`.
    lr : float, default 1e-2
        Learning rate :math:`\gamma \ge 0`.
    beta2_decay : float, default -0.8
        :math:`\beta \le 0`.
    eps : pair of float or None, default (None, 1e-3)
        :math:`\epsilon_1, \epsilon_2 \ge 0`; None stands for the machine epsilon of the
        parameter's dtype.
    d : float, default 1.0
        Clipping threshold :math:`d \ge 1` of the update.
    weight_decay : float, default 0
        Decoupled weight decay :math:`\lambda \ge 0`.
    beta1 : float or None, default None
        :math:`\beta_1` in [0, 1) of a first moment, as in ``optax.adafactor``; None keeps none.
        It may be stored in few bytes (`state_dtype`), unlike the second moment. It cannot be
        switched on or off between steps.
    maximize : bool, default False
        Ascend instead of descend.
    **storage
        `state_dtype`, `precision` and `seed`: how state and weights are stored; see
        `Optimizer`.

    References
    ----------
    Shazeer & Stern, "Adafactor: adaptive learning rates with sublinear memory cost",
    arXiv 1804.04235, algorithms 4 to 6; ``torch.optim.Adafactor``.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.ones((3, 2))
    >>> opt = cr.optim.Adafactor(w, lr=0.1)
    >>> opt.step(2 * w)
    >>> w[0].round(6)
    array([0.9, 0.9])
    >>> {name: array.shape for name, array in opt.state[0].items()}
    {'step': (), 'row_var': (3, 1), 'col_var': (1, 2)}
    """

    _rule = "adafactor"
    _only_real = OF_MATRICES

    def __init__(
        self,
        params: ArrayTree,
        lr: float = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0,
        beta1: float | None = None,
        *,
        maximize: bool = False,
        **storage: Unpack[Storage],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "beta2_decay": beta2_decay,
                "eps": eps,
                "d": d,
                "weight_decay": weight_decay,
                "beta1": beta1,
                "maximize": maximize,
            },
            storage,
        )

"""Muon."""

from __future__ import annotations

from typing import Literal

from compressrs._arrays import ArrayTree
from compressrs._typing import Unpack
from compressrs.optim._complex import OF_MATRICES
from compressrs.optim.base import Optimizer, Storage


class Muon(Optimizer):
    r"""Muon: momentum orthogonalized by a Newton-Schulz iteration.

    .. math::
        b &\leftarrow \mu b + (1 - \mu) g \\
        u &= \mu b + (1 - \mu) g \text{ if nesterov, else } b \\
        x &= u / \max(\|u\|_F, \epsilon), \text{ then } n \text{ times } \\
        x &\leftarrow c_1 x + (c_2 x x^\top + c_3 (x x^\top)^2) x \\
        \theta &\leftarrow (1 - \gamma \lambda) \theta - \gamma\, a(\text{shape})\, x

    For the weight matrices (two axes) of hidden layers; train biases, embeddings and the
    output layer with `AdamW`. The iteration runs in the parameter's dtype; PyTorch's runs
    in bfloat16. Its time is cubic in the size of a matrix, and Ctrl-C takes effect when the step is
    complete.

    Parameters
    ----------
    params : array, list, nested dict of arrays, or list of group dicts
        See `Optimizer`.
    lr : float, default 1e-3
        Learning rate :math:`\gamma \ge 0`.
    weight_decay : float, default 0.1
        Decoupled weight decay :math:`\lambda \ge 0`.
    momentum : float, default 0.95
        :math:`\mu` in [0, 1).
    nesterov : bool, default True
        Use Nesterov momentum.
    ns_coefficients : three float, default (3.4445, -4.775, 2.0315)
        :math:`c_1, c_2, c_3`.
    eps : float, default 1e-7
        :math:`\epsilon > 0`.
    ns_steps : int, default 5
        :math:`n`, from 0 to 99.
    adjust_lr_fn : str or None, default None
        How the rate is scaled by the shape (A, B): "original" (also None),
        :math:`\sqrt{\max(1, A/B)}`; "match_rms_adamw", :math:`0.2 \sqrt{\max(A, B)}`;
        "spectral_unclamped", :math:`\sqrt{A/B}`.
    maximize : bool, default False
        Ascend instead of descend.
    **storage
        `state_dtype`, `precision` and `seed`: how state and weights are stored; see
        `Optimizer`.

    References
    ----------
    Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024;
    ``torch.optim.Muon``.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.zeros((2, 2))
    >>> opt = cr.optim.Muon(w, lr=1.0, weight_decay=0)
    >>> opt.step(np.diag([3.0, 1.0]))
    >>> np.linalg.svd(w)[1].round(1)  # near 1, whatever the gradient's were
    array([1.1, 0.8])
    """

    _rule = "muon"
    _only_real = OF_MATRICES

    def __init__(
        self,
        params: ArrayTree,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["original", "match_rms_adamw", "spectral_unclamped"] | None = None,
        *,
        maximize: bool = False,
        **storage: Unpack[Storage],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "nesterov": nesterov,
                "ns_coefficients": ns_coefficients,
                "eps": eps,
                "ns_steps": ns_steps,
                "adjust_lr_fn": adjust_lr_fn,
                "maximize": maximize,
            },
            storage,
        )

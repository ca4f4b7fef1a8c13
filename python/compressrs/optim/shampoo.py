"""Shampoo."""

from __future__ import annotations

from typing import Literal

from compressrs._arrays import ArrayTree
from compressrs._typing import Unpack
from compressrs.optim._complex import OF_MATRICES
from compressrs.optim.base import Optimizer, Storage


class Shampoo(Optimizer):
    r"""Shampoo: gradients multiplied by inverse roots of their second moments.

    .. math::
        L &\leftarrow \beta_2 L + (1 - \beta_2) g g^\top, \quad
        R \leftarrow \beta_2 R + (1 - \beta_2) g^\top g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        u &= (L / (1 - \beta_2^t) + \epsilon_m)^{-1/4} \, g \,
        (R / (1 - \beta_2^t) + \epsilon_m)^{-1/4} \\
        u &\leftarrow u \, \|a\| / \|u\|, \quad
        a = g / (\sqrt{v / (1 - \beta_2^t)} + \epsilon) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) u \\
        \theta &\leftarrow (1 - \gamma \lambda) \theta - \gamma m / (1 - \beta_1^t)

    A parameter with two or more axes is taken as a matrix, whose rows are the first axis, and
    divided into blocks, each with its own :math:`L` and :math:`R`. Other parameters step by
    :math:`u = a`. Roots are computed in float64, by symmetric eigenvalue decompositions, in the
    first step and then every `precondition_frequency` steps.

    Parameters
    ----------
    params : array, list, nested dict of arrays, or list of group dicts
        See `Optimizer`.
    lr : float, default 1e-3
        Learning rate :math:`\gamma \ge 0`.
    betas : pair of float, default (0.9, 0.999)
        :math:`\beta_1` in [0, 1), :math:`\beta_2` in [0, 1]. With :math:`\beta_2 = 1` second
        moments are sums, as in the original algorithm and in Adagrad: the factors
        :math:`1 - \beta_2` and :math:`1 - \beta_2^t` are left out.
    eps : float, default 1e-8
        :math:`\epsilon \ge 0`.
    weight_decay : float, default 0
        Decoupled weight decay :math:`\lambda \ge 0`.
    matrix_eps : float, default 1e-12
        :math:`\epsilon_m \ge 0`, added to eigenvalues. Those below the largest one times the
        machine epsilon of the computation are raised to that first.
    precondition_frequency : int, default 10
        Steps from one computation of the roots to the next.
    block_size : int, default 512
        Most rows and columns of a block. The second moments and roots of a matrix of `m` rows
        and `n` columns take ``2 m n (b / m + b / n)`` numbers for blocks of `b` rows and columns.
        It cannot be changed between steps.
    grafting : {"adam", "sgd", "none"}, default "adam"
        Whose norm the step has in each block: that of `a`, of the gradient (:math:`a = g`), or
        its own. With "adam" the learning rates of `Adam` are a good start.
    maximize : bool, default False
        Ascend instead of descend.
    **storage
        `state_dtype`, `precision` and `seed`: how state and weights are stored; see
        `Optimizer`. The matrices :math:`L`, :math:`R` and their roots are not rounded.

    Notes
    -----
    A gradient with NaN or infinity that is applied regardless (``nonfinite="ignore"``) makes the
    weights of its blocks NaN, as with `Adam`. Finite gradients never do:
    roots of second moments that have overflowed are 0, and the step of a weight whose own second
    moment has overflowed is 0.

    References
    ----------
    Gupta, Koren & Singer, "Shampoo: preconditioned stochastic tensor optimization", arXiv
    1802.09568; Anil et al., "Scalable second order optimization for deep learning", arXiv
    2002.09018; Shi et al., "A distributed data-parallel PyTorch implementation of the
    distributed Shampoo optimizer", arXiv 2309.06497.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.zeros((2, 2))
    >>> opt = cr.optim.Shampoo(w, lr=1.0, grafting="none")
    >>> opt.step(np.array([[30.0, 10.0], [10.0, 20.0]]))
    >>> np.linalg.svd(w)[1].round(3)  # whatever the gradient's were
    array([1., 1.])
    """

    _rule = "shampoo"
    _only_real = OF_MATRICES

    def __init__(
        self,
        params: ArrayTree,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        matrix_eps: float = 1e-12,
        precondition_frequency: int = 10,
        block_size: int = 512,
        grafting: Literal["adam", "sgd", "none"] = "adam",
        *,
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
                "matrix_eps": matrix_eps,
                "precondition_frequency": precondition_frequency,
                "block_size": block_size,
                "grafting": grafting,
                "maximize": maximize,
            },
            storage,
        )

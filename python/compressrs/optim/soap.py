"""SOAP."""

from __future__ import annotations

from compressrs._arrays import ArrayTree
from compressrs._typing import Unpack
from compressrs.optim._complex import OF_MATRICES
from compressrs.optim.base import Optimizer, Storage


class SOAP(Optimizer):
    r"""SOAP: Adam in the eigenbases of Shampoo's second moments.

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) (Q_L^\top g Q_R)^2 \\
        u &= Q_L \frac{Q_L^\top m Q_R}{\sqrt v + \epsilon} Q_R^\top \\
        \theta &\leftarrow (1 - \gamma \lambda)
        \left(\theta - \gamma \frac{\sqrt{1 - \beta_2^s}}{1 - \beta_1^s} u\right) \\
        L &\leftarrow \beta L + (1 - \beta) g g^\top, \quad
        R \leftarrow \beta R + (1 - \beta) g^\top g

    The first step only sets :math:`L` and :math:`R` and their eigenvectors :math:`Q_L` and
    :math:`Q_R`; no parameter changes, and :math:`s = t - 1`. Every `precondition_frequency` steps
    a basis moves by one step of the power iteration: the orthogonal factor of :math:`L Q_L`, its
    columns sorted by their eigenvalues, and :math:`v` with them.

    A parameter with two or more axes is taken as a matrix, whose rows are the first axis, and
    divided into blocks, each with its own :math:`L` and :math:`R`. For other parameters
    both bases are 1.

    Parameters
    ----------
    params : array, list, nested dict of arrays, or list of group dicts
        See `Optimizer`.
    lr : float, default 3e-3
        Learning rate :math:`\gamma \ge 0`.
    betas : pair of float, default (0.95, 0.95)
        :math:`\beta_1, \beta_2` in [0, 1).
    shampoo_beta : float or None, default None
        :math:`\beta` in [0, 1); None stands for :math:`\beta_2`.
    eps : float, default 1e-8
        :math:`\epsilon \ge 0`.
    weight_decay : float, default 0.01
        Decoupled weight decay :math:`\lambda \ge 0`.
    precondition_frequency : int, default 10
        Steps from one change of the bases to the next.
    block_size : int, default 512
        Most rows and columns of a block. The second moments and bases of a matrix of `m` rows
        and `n` columns take ``2 m n (b / m + b / n)`` numbers for blocks of `b` rows and columns.
        It cannot be changed between steps.
    maximize : bool, default False
        Ascend instead of descend.
    **storage
        `state_dtype`, `precision` and `seed`: how state and weights are stored; see
        `Optimizer`. Of a parameter with two axes or more, only the first moment is rounded.

    Notes
    -----
    A gradient with NaN or infinity that is applied regardless (``nonfinite="ignore"``) makes the
    weights of its blocks NaN, as with `Adam`. Finite gradients never do:
    bases of second moments that
    have overflowed stay as they are, and the step of a weight whose own second
    moment has overflowed is 0.

    References
    ----------
    Vyas et al., "SOAP: improving and stabilizing Shampoo using Adam", arXiv 2409.11321.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> w = np.zeros((2, 2))
    >>> opt = cr.optim.SOAP(w, lr=1.0, weight_decay=0)
    >>> g = np.array([[30.0, 10.0], [10.0, 20.0]])
    >>> opt.step(g)  # finds the bases only
    >>> opt.step(g)
    >>> np.linalg.svd(w)[1].round(3)  # whatever the gradient's were
    array([1., 1.])
    """

    _rule = "soap"
    _only_real = OF_MATRICES

    def __init__(
        self,
        params: ArrayTree,
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        shampoo_beta: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        precondition_frequency: int = 10,
        block_size: int = 512,
        *,
        maximize: bool = False,
        **storage: Unpack[Storage],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "shampoo_beta": shampoo_beta,
                "eps": eps,
                "weight_decay": weight_decay,
                "precondition_frequency": precondition_frequency,
                "block_size": block_size,
                "maximize": maximize,
            },
            storage,
        )
